/*
 * supervisor_file.c - lock and state of the supervisor; see supervisor_file.h.
 *
 * The state is one line of fixed length written with one pwrite, so a reader
 * never sees half of it.
 */
#include "postgres.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#include "miscadmin.h"

#include "supervisor_file.h"

#define LINE_FORMAT "%10d %10d %10d %10d %10d\n"
#define LINE_LENGTH 55

int
supervisor_file_open(void)
{
	int			descriptor = open(SUPERVISOR_LOCK_PATH, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (descriptor < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", SUPERVISOR_LOCK_PATH)));
	return descriptor;
}

/* Read the line of an open file. */
static bool
read_line(int descriptor, SupervisorState *state)
{
	char		line[LINE_LENGTH + 1];

	if (pread(descriptor, line, LINE_LENGTH, 0) != LINE_LENGTH)
		return false;
	line[LINE_LENGTH] = '\0';
	return sscanf(line, "%d %d %d %d %d", &state->supervisor, &state->postmaster,
				  &state->engines, &state->starts, &state->restarts) == 5;
}

void
supervisor_socket_path(int engine, char *path, size_t size)
{
	if (engine == 0)
		strlcpy(path, SUPERVISOR_SOCKET_PATH, size);
	else
		snprintf(path, size, "%s.%d", SUPERVISOR_SOCKET_PATH, engine);
}

/* Write a part of the file; a failure is logged. */
static void
write_part(int descriptor, const void *bytes, size_t length, off_t offset)
{
	ssize_t		written;

	errno = 0;
	written = pwrite(descriptor, bytes, length, offset);
	if (written == (ssize_t) length)
		return;
	if (written >= 0 && errno == 0)
		errno = ENOSPC;
	ereport(LOG,
			(errcode_for_file_access(),
			 errmsg("could not write file \"%s\": %m", SUPERVISOR_LOCK_PATH)));
}

void
supervisor_file_clear_board(int descriptor)
{
	EngineBoard board = {0};

	write_part(descriptor, &board, sizeof(board), ENGINE_BOARD_OFFSET);
}

void
supervisor_file_write_slot(int descriptor, int engine, const EngineSlot *slot, bool keep_load)
{
	write_part(descriptor, slot, keep_load ? offsetof(EngineSlot, load) : sizeof(*slot),
			   (off_t) (ENGINE_BOARD_OFFSET + (size_t) engine * sizeof(*slot)));
}

bool
supervisor_file_read_board(EngineBoard *board)
{
	int			descriptor = open(SUPERVISOR_LOCK_PATH, O_RDONLY | O_CLOEXEC);
	bool		found;

	if (descriptor < 0)
		return false;
	found = pread(descriptor, board, sizeof(*board), ENGINE_BOARD_OFFSET) == sizeof(*board);
	close(descriptor);
	return found;
}

/* True when the process exists. */
static bool
process_exists(int process)
{
	return process > 0 && (kill(process, 0) == 0 || errno == EPERM);
}

SupervisorLock
supervisor_file_lock(int descriptor)
{
	SupervisorState holder;

	if (flock(descriptor, LOCK_EX | LOCK_NB) == 0)
		return SUPERVISOR_LOCK_TAKEN;
	if (errno != EWOULDBLOCK && errno != EINTR)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not lock file \"%s\": %m", SUPERVISOR_LOCK_PATH)));
	if (read_line(descriptor, &holder) && holder.postmaster == PostmasterPid &&
		holder.supervisor != MyProcPid && process_exists(holder.supervisor))
		return SUPERVISOR_LOCK_REDUNDANT;
	return SUPERVISOR_LOCK_BUSY;
}

void
supervisor_file_write(int descriptor, const SupervisorState *state)
{
	char		line[LINE_LENGTH + 1];

	snprintf(line, sizeof(line), LINE_FORMAT, state->supervisor, state->postmaster,
			 state->engines, state->starts, state->restarts);
	write_part(descriptor, line, LINE_LENGTH, 0);
}

/* Read the state that a supervisor of this server wrote, which may be gone. */
static bool
read_last_state(SupervisorState *state)
{
	int			descriptor = open(SUPERVISOR_LOCK_PATH, O_RDONLY | O_CLOEXEC);
	bool		found;

	if (descriptor < 0)
		return false;
	found = read_line(descriptor, state);
	close(descriptor);
	return found && state->postmaster == PostmasterPid;
}

bool
supervisor_file_read(SupervisorState *state)
{
	return read_last_state(state) && process_exists(state->supervisor);
}

bool
supervisor_file_is_known(void)
{
	SupervisorState state;

	return read_last_state(&state);
}
