/*
 * engine_board.h - where supervisor and engines tell backends about themselves.
 *
 * With several engines (a list in mmgpt.device) a backend has to choose. The board is a table
 * in the file that all of them have open (descriptor 4 of an engine): a slot for each engine.
 * The supervisor writes process and readiness, the engine maps the file and writes its load.
 * Everything is a number of 32 bits, read and written whole.
 */
#ifndef MMGPT_ENGINE_BOARD_H
#define MMGPT_ENGINE_BOARD_H

#include <stdint.h>

#define ENGINES_MAX 16
#define ENGINE_BOARD_OFFSET 4096	/* bytes into the file: a page of its own */
#define ENGINE_BOARD_FD 4			/* of the file, in an engine */

typedef struct EngineSlot
{
	int32_t		process;		/* id of the engine's process; 0: none runs */
	int32_t		ready;			/* 1: it has come up */
	_Atomic int32_t load;		/* requests and trainings that it has and has not answered */
	int32_t		reserved;
} EngineSlot;

typedef struct EngineBoard
{
	EngineSlot	slots[ENGINES_MAX];
} EngineBoard;

#endif
