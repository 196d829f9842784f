/*
 * engine_process.h - the engine as a child of the supervisor.
 */
#ifndef MMGPT_ENGINE_PROCESS_H
#define MMGPT_ENGINE_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ENGINE_LINE_SIZE 1024	/* bytes of a line of the engine's log */

typedef struct EngineProcess
{
	pid_t		pid;			/* 0 while none runs */
	uint64_t	started;		/* clock_now_ns() */
	int			lifeline;		/* our end of the pipe whose end the engine takes as its own */
	int			log;			/* our end of the pipe that its messages come through */
	char		line[ENGINE_LINE_SIZE];	/* a line that has not ended yet */
	size_t		filled;			/* bytes of it */
	char		reason[ENGINE_LINE_SIZE];	/* its last complaint, or else its last line */
	bool		complained;		/* reason is a complaint */
} EngineProcess;

/* Make an EngineProcess that runs nothing. */
extern void engine_process_clear(EngineProcess *engine);

/*
 * Start arguments[0] with the listening socket as descriptor 3 and the lock file
 * as descriptor 4. False, with the reason set, where that fails.
 */
extern bool engine_process_start(EngineProcess *engine, char **arguments,
								 int listen_descriptor, int lock_descriptor);

/* Report what the engine has written so far to the server's log. Never waits. */
extern void engine_process_read_log(EngineProcess *engine);

/*
 * True when the engine has ended; its descriptors are closed then, and reason
 * says what it complained about last, or how it ended.
 */
extern bool engine_process_reap(EngineProcess *engine);

/* End the engine: ask it, and kill it after a second. Returns when it is gone. */
extern void engine_process_stop(EngineProcess *engine);

#endif
