/*
 * engine_board.h - where supervisor and engines tell backends about themselves.
 *
 * With several engines (a list in mmgpt.device) a backend has to choose. The board is a table
 * in the file that all of them have open (descriptor 4 of an engine): a slot for each engine.
 * The supervisor writes process and state, the engine its load. Everything is a number of 32 bits,
 * written whole. It is written and read by calls and not mapped: on a disk without room a write to
 * a mapped page ends the process, and the supervisor's end would take all sessions with it.
 */
#ifndef MMGPT_ENGINE_BOARD_H
#define MMGPT_ENGINE_BOARD_H

#include <stdint.h>

#define ENGINES_MAX 16
#define ENGINE_BOARD_OFFSET 4096	/* bytes into the file: a page of its own */
#define ENGINE_BOARD_FD 4			/* of the file, in an engine */

/* The higher, the sooner an engine is asked. */
typedef enum EngineState
{
	ENGINE_NONE = 0,			/* there is no such engine */
	ENGINE_FAILING = 1,			/* it does not start, or cannot load its model */
	ENGINE_STARTING = 2,		/* it has not come up yet, or is about to be started */
	ENGINE_READY = 3
} EngineState;

typedef struct EngineSlot
{
	int32_t		process;		/* id of the engine's process; 0: none runs */
	int32_t		state;			/* EngineState */
	int32_t		load;			/* requests and trainings that it has and has not answered */
	int32_t		reserved;
} EngineSlot;

typedef struct EngineBoard
{
	EngineSlot	slots[ENGINES_MAX];
} EngineBoard;

#endif
