/*
 * supervisor_file.h - the file that makes supervisor and engine unique.
 *
 * A supervisor holds a lock (flock) on the file and its engine inherits the
 * descriptor, so the lock is free only when both are gone: there are never two
 * engines for one device. The file's text tells other processes who holds it, and the
 * board behind it (engine_board.h) about each engine. File and sockets
 * lie in pg_stat_tmp, which only the server's account can enter and whose
 * contents base backups leave out; paths are relative to the data directory,
 * the working directory of every process of the server.
 */
#ifndef MMGPT_SUPERVISOR_FILE_H
#define MMGPT_SUPERVISOR_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "engine_board.h"

#define SUPERVISOR_LOCK_PATH "pg_stat_tmp/mmgpt.lock"
#define SUPERVISOR_SOCKET_PATH "pg_stat_tmp/mmgpt.sock"
#define SUPERVISOR_TURN_PATH "pg_stat_tmp/mmgpt.turn"	/* see supervisor_control.c */

typedef struct SupervisorState
{
	int			supervisor;		/* process id */
	int			postmaster;		/* process id of the server it belongs to */
	int			engines;		/* that it keeps alive */
	int			starts;			/* engines started by this supervisor so far */
	int			restarts;		/* of them, those in place of another */
} SupervisorState;

typedef enum SupervisorLock
{
	SUPERVISOR_LOCK_TAKEN,		/* by us */
	SUPERVISOR_LOCK_REDUNDANT,	/* another supervisor of this server holds it */
	SUPERVISOR_LOCK_BUSY		/* an engine whose supervisor is gone holds it: try again */
} SupervisorLock;

/* Open the file for locking; raises an error where that fails. Returns the descriptor. */
extern int	supervisor_file_open(void);

/* Try to take the lock, without waiting. */
extern SupervisorLock supervisor_file_lock(int descriptor);

/* Write the state; a failure is logged. */
extern void supervisor_file_write(int descriptor, const SupervisorState *state);

/* Write the path of an engine's socket. */
extern void supervisor_socket_path(int engine, char *path, size_t size);

/* Make the board of an open file say that there are no engines; a failure is logged. */
extern void supervisor_file_clear_board(int descriptor);

/* Write an engine's slot, all or as far as the engine's load; a failure is logged. */
extern void supervisor_file_write_slot(int descriptor, int engine, const EngineSlot *slot,
									   bool keep_load);

/* Read the board; false when there is none. */
extern bool supervisor_file_read_board(EngineBoard *board);

/* Read the state; false when there is none, or it is not of this server. */
extern bool supervisor_file_read(SupervisorState *state);

/* True when this server has had a supervisor since its start, be it gone or not. */
extern bool supervisor_file_is_known(void);

#endif
