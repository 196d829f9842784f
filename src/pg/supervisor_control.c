/*
 * supervisor_control.c - start a supervisor on demand, and have it restart the
 * engine; see supervisor_control.h.
 *
 * Were all backends that find none to register a supervisor, the first calls of many
 * sessions would fill the places for background workers, though the locked file lets only
 * one live and the others leave (worker.c). So they take turns, by a lock (flock) on
 * another file: one registers and holds its turn until it is connected, the others look
 * for the supervisor that comes. Whoever gets a turn looks once more first. What may
 * come besides is the postmaster's: it starts a preloaded supervisor soon after the
 * server, and one that ended a second later.
 */
#include "postgres.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/fd.h"

#include "clock.h"
#include "pg_compat.h"
#include "supervisor_control.h"
#include "worker.h"

#define POLL_MS 10
#define NS_PER_MS UINT64CONST(1000000)
#define SEARCH_LIMIT (30 * 1000 * NS_PER_MS)
#define REGISTER_AGAIN (500 * NS_PER_MS)	/* after one of ours has left */
#define COMING_BACK (3 * 1000 * NS_PER_MS)	/* a supervisor that the postmaster starts again */

void
supervisor_pause(long milliseconds)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 milliseconds, compat_wait_event());
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Take the turn to register a supervisor, if nobody has it; true when it is ours now. */
static bool
take_turn(SupervisorSearch *search)
{
	if (!search->opened)
	{
		search->turn = OpenTransientFilePerm(SUPERVISOR_TURN_PATH,
											 O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (search->turn < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not open file \"%s\": %m", SUPERVISOR_TURN_PATH)));
		search->opened = true;
	}
	search->has_turn = flock(search->turn, LOCK_EX | LOCK_NB) == 0;
	if (!search->has_turn && errno != EWOULDBLOCK && errno != EINTR)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not lock file \"%s\": %m", SUPERVISOR_TURN_PATH)));
	return search->has_turn;
}

/*
 * True while the postmaster may bring a supervisor that has its place among the background
 * workers already.
 */
static bool
may_come_back(const SupervisorSearch *search)
{
	return clock_now_ns() - search->begun < COMING_BACK &&
		(worker_is_preloaded() || supervisor_file_is_known());
}

/* Register a supervisor, or raise an error. */
static void
register_supervisor(SupervisorSearch *search)
{
	BackgroundWorkerHandle *handle;

	if (!IsUnderPostmaster)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("mmgpt does not work in single-user mode")));
	if (!worker_register_dynamic(&handle))
	{
		if (may_come_back(search))
			return;
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("could not start the mmgpt supervisor: all background workers are in use"),
				 worker_is_preloaded() ?
				 errhint("Increase max_worker_processes.") :
				 errhint("Increase max_worker_processes, or add mmgpt to shared_preload_libraries "
						 "so that the supervisor starts with the server.")));
	}
	search->handle = handle;
	search->registered = clock_now_ns();
}

/* True while the supervisor that we registered runs or is about to. */
static bool
ours_is_alive(const SupervisorSearch *search)
{
	pid_t		process;
	BgwHandleStatus status;

	if (search->handle == NULL)
		return false;
	status = GetBackgroundWorkerPid(search->handle, &process);
	return status == BGWH_STARTED || status == BGWH_NOT_YET_STARTED;
}

void
supervisor_search(SupervisorSearch *search)
{
	uint64_t	now = clock_now_ns();

	if (search->begun == 0)
		search->begun = now;
	if (now - search->begun > SEARCH_LIMIT)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the mmgpt supervisor did not start within %d seconds",
						(int) (SEARCH_LIMIT / NS_PER_MS / 1000)),
				 errhint("The server's log says why.")));
	if (!search->has_turn)
	{
		if (take_turn(search))
			return;
	}
	else if (!ours_is_alive(search) &&
			 (search->registered == 0 || now - search->registered > REGISTER_AGAIN))
		register_supervisor(search);
	supervisor_pause(POLL_MS);
}

void
supervisor_search_end(SupervisorSearch *search)
{
	if (search->opened)
		CloseTransientFile(search->turn);
	search->opened = search->has_turn = false;
}

/* Read the state of a supervisor that really is one. */
static bool
find_supervisor(SupervisorState *state)
{
	const char *type;

	if (!supervisor_file_read(state))
		return false;
	type = GetBackgroundWorkerTypeByPid(state->supervisor);
	return type != NULL && strcmp(type, SUPERVISOR_TYPE) == 0;
}

void
supervisor_restart_engine(void)
{
	SupervisorState before;
	SupervisorState now;
	uint64_t	begun = clock_now_ns();

	/* the first call starts a supervisor where there is none, and with it a new engine */
	if (!find_supervisor(&before))
		return;
	if (kill(before.supervisor, SIGUSR2) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_SYSTEM_ERROR),
				 errmsg("could not signal the mmgpt supervisor (process %d): %m",
						before.supervisor)));
	for (;;)
	{
		if (!find_supervisor(&now))
			return;
		if (now.supervisor != before.supervisor || now.starts >= before.starts + now.engines)
			return;
		if (clock_now_ns() - begun > SEARCH_LIMIT)
			ereport(ERROR,
					(errcode(ERRCODE_SYSTEM_ERROR),
					 errmsg("the mmgpt engine was not restarted within %d seconds",
							(int) (SEARCH_LIMIT / NS_PER_MS / 1000)),
					 errhint("The server's log says why.")));
		supervisor_pause(POLL_MS);
	}
}
