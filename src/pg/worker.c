/*
 * worker.c - the supervisor.
 *
 * One background worker for each server, without any model code: a worker that
 * dies takes every session through crash recovery, so what can crash lives in
 * the engine, a child process, and the supervisor stays small.
 *
 * Its life: take the lock that makes it unique (supervisor_file.h), bind the
 * socket that backends call, then turn in a loop: start the engine when it is
 * due, report its log, notice its end. Where mmgpt.device is a list there is an
 * engine for each device, with a socket of its own, and what follows is true of each.
 *
 * After an end it waits, 0.1 s at first and twice as long each time, up to 30 s; an
 * engine that came up (engine_probe.h) or lived 10 s starts the series anew. While it
 * waits, callers queue in the socket's backlog. But once three engines in a row ended
 * within their first 10 s without coming up, making callers wait would be wrong: the
 * supervisor then takes their calls itself and answers each with one ERROR frame of
 * id 0, in place of HELLO, that gives the last line of the engine's log. The next
 * attempt ends this. Engines that a request killed do not count: that request's own
 * call fails, and nobody else's.
 *
 * SIGHUP re-reads the configuration, and restarts an engine if it would be
 * started differently now. SIGUSR2 restarts all in any case (mmgpt_restart).
 * SIGTERM ends them and the supervisor. The exit status is 1, so that the postmaster starts the
 * supervisor again if the server goes on; it is 0, never again, only where
 * another supervisor does the work.
 */
#include "postgres.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "access/xlog.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"

#include "clock.h"
#include "engine_path.h"
#include "engine_probe.h"
#include "engine_process.h"
#include "job_resume.h"
#include "pg_compat.h"
#include "settings.h"
#include "status.h"
#include "supervisor_file.h"
#include "wire_frame.h"
#include "wire_message.h"
#include "worker.h"

#define LIBRARY "mmgpt"
#define RESTART_SECONDS 1		/* of the supervisor, by the postmaster */
#define LISTEN_BACKLOG 4096
#define LOCK_POLL_MS 50
#define FIRST_DELAY_MS 100
#define LAST_DELAY_MS (30 * 1000)
#define FULL_LIFE_MS (10 * 1000)	/* an engine that lived so long was well */
#define EARLY_ENDS_REFUSED 3
#define PROBE_MS 1000			/* how often the probe's progress is read */
#define RESUME_MS 1000			/* how often resuming jobs is tried until it can be */
#define STATUS_PAYLOAD_SIZE 2048	/* what wire_write_status needs */
#define MAX_ARGUMENTS 24
#define NS_PER_MS UINT64CONST(1000000)

/* The engine of one device: the process of now, and what is known of those before. */
typedef struct Charge
{
	int			number;			/* among the engines */
	int			listener;		/* descriptor of its listening socket; -1: none */
	bool		started;		/* an engine, before or now */
	EngineProcess engine;
	EngineProbe probe;			/* of that engine */
	char	  **arguments;		/* of the engine, as the configuration has it */
	MemoryContext arguments_context;
	int			delay_ms;		/* before the next start after an end */
	uint64_t	due;			/* clock_now_ns() of the next start */
	int			early_ends;		/* engines in a row that ended early without coming up */
} Charge;

typedef struct Supervisor
{
	int			lock;			/* descriptor of the locked file */
	SupervisorState state;		/* what the locked file says */
	Charge		charges[ENGINES_MAX];	/* state.engines of them */
	bool		resumed;		/* a worker was asked to look for jobs without one */
} Supervisor;

static volatile sig_atomic_t restart_pending = false;
static bool preloaded = false;	/* written by the postmaster, inherited by all its processes */

extern EXPORTED void mmgpt_supervisor_main(Datum argument);

void
worker_describe(BackgroundWorker *worker, const char *type, const char *function)
{
	memset(worker, 0, sizeof(*worker));
	strlcpy(worker->bgw_name, type, BGW_MAXLEN);
	strlcpy(worker->bgw_type, type, BGW_MAXLEN);
	/* without a database connection it would be missing from pg_stat_activity */
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker->bgw_library_name, LIBRARY, BGW_MAXLEN);
	strlcpy(worker->bgw_function_name, function, BGW_MAXLEN);
}

/* Fill in what both ways of registering the supervisor have in common. */
static void
describe_supervisor(BackgroundWorker *worker)
{
	worker_describe(worker, SUPERVISOR_TYPE, "mmgpt_supervisor_main");
	worker->bgw_start_time = BgWorkerStart_ConsistentState;
	worker->bgw_restart_time = RESTART_SECONDS;
}

void
worker_register_static(void)
{
	BackgroundWorker worker;

	describe_supervisor(&worker);
	RegisterBackgroundWorker(&worker);
	preloaded = true;
}

bool
worker_is_preloaded(void)
{
	return preloaded;
}

bool
worker_register_dynamic(BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker;

	describe_supervisor(&worker);
	worker.bgw_notify_pid = MyProcPid;
	return RegisterDynamicBackgroundWorker(&worker, handle);
}

/* SIGCHLD: wake the loop, which looks after the engine in each turn. */
static void
handle_child(SIGNAL_ARGS)
{
	int			error = errno;

	SetLatch(MyLatch);
	errno = error;
}

/* SIGUSR2: restart the engine. */
static void
handle_restart(SIGNAL_ARGS)
{
	int			error = errno;

	restart_pending = true;
	SetLatch(MyLatch);
	errno = error;
}

/* Take the lock, waiting while an engine whose supervisor is gone still ends. */
static int
take_lock(void)
{
	int			descriptor = supervisor_file_open();

	for (;;)
	{
		switch (supervisor_file_lock(descriptor))
		{
			case SUPERVISOR_LOCK_TAKEN:
				return descriptor;
			case SUPERVISOR_LOCK_REDUNDANT:
				ereport(DEBUG1, (errmsg("mmgpt has a supervisor already")));
				proc_exit(0);
			case SUPERVISOR_LOCK_BUSY:
				break;
		}
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOCK_POLL_MS, compat_wait_event());
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ShutdownRequestPending)
			proc_exit(1);
	}
}

/* Bind the socket of an engine, which backends call; only the server's account may connect. */
static int
bind_listener(int engine)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	mode_t		before;
	int			descriptor;
	int			bound;

	supervisor_socket_path(engine, address.sun_path, sizeof(address.sun_path));
	if (unlink(address.sun_path) != 0 && errno != ENOENT)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", address.sun_path)));
	descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (descriptor < 0)
		ereport(ERROR, (errcode_for_socket_access(), errmsg("could not create socket: %m")));
	before = umask(0177);
	bound = bind(descriptor, (struct sockaddr *) &address, sizeof(address));
	umask(before);
	if (bound != 0 || listen(descriptor, LISTEN_BACKLOG) != 0)
		ereport(ERROR,
				(errcode_for_socket_access(),
				 errmsg("could not listen on socket \"%s\": %m", address.sun_path)));
	return descriptor;
}

/* Add an option of the engine's command line, unless it has its default value. */
static int
add_option(char **arguments, int count, const char *option, const char *value,
		   const char *default_value)
{
	if (strcmp(value, default_value) == 0)
		return count;
	arguments[count++] = pstrdup(option);
	arguments[count++] = pstrdup(value);
	return count;
}

/* Build an engine's command line from the configuration, in the current memory context. */
static char **
build_arguments(int engine)
{
	char	  **arguments = palloc0(sizeof(char *) * MAX_ARGUMENTS);
	char		path[MAXPGPATH];
	int			count = 0;

	engine_path_program(path);
	arguments[count++] = pstrdup(path);
	arguments[count++] = pstrdup("serve");
	if (setting_model != NULL && setting_model[0] != '\0')
		arguments[count++] = pstrdup(setting_model);
	else
	{
		engine_path_demo_model(path);
		arguments[count++] = pstrdup(path);
	}
	count = add_option(arguments, count, "--listen-fd", "3", "");
	count = add_option(arguments, count, "--board-slot", psprintf("%d", engine), "");
	count = add_option(arguments, count, "--device", setting_engine_device(engine), "auto");
	count = add_option(arguments, count, "--deterministic", setting_deterministic ? "on" : "off",
					   "on");
	count = add_option(arguments, count, "--threads", psprintf("%d", setting_threads), "0");
	count = add_option(arguments, count, "--weights", setting_weight_format_name(), "stored");
	count = add_option(arguments, count, "--instruction-set", setting_instruction_set_name(),
					   "auto");
	count = add_option(arguments, count, "--memory-limit-mb",
					   psprintf("%d", setting_memory_limit), "0");
	Assert(count < MAX_ARGUMENTS);
	return arguments;
}

/* True when two command lines are the same. */
static bool
same_arguments(char **one, char **other)
{
	int			i;

	for (i = 0; one[i] != NULL && other[i] != NULL; i++)
		if (strcmp(one[i], other[i]) != 0)
			return false;
	return one[i] == NULL && other[i] == NULL;
}

/* Read an engine's command line from the configuration; true when it changed. */
static bool
refresh_arguments(Charge *charge)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "mmgpt engine arguments",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext before = MemoryContextSwitchTo(context);
	char	  **arguments = build_arguments(charge->number);
	bool		changed;

	MemoryContextSwitchTo(before);
	changed = charge->arguments == NULL || !same_arguments(charge->arguments, arguments);
	if (charge->arguments_context != NULL)
		MemoryContextDelete(charge->arguments_context);
	charge->arguments = arguments;
	charge->arguments_context = context;
	return changed;
}

/* What backends are told about an engine, which may be one that is not looked after any more. */
static EngineState
charge_state(const Supervisor *supervisor, const Charge *charge)
{
	if (charge->number >= supervisor->state.engines)
		return ENGINE_NONE;
	if (charge->probe.refused || (!charge->probe.answered &&
								  charge->early_ends >= EARLY_ENDS_REFUSED))
		return ENGINE_FAILING;
	return charge->probe.answered ? ENGINE_READY : ENGINE_STARTING;
}

/* Tell others, through the locked file, which engines run, and how this one is. */
static void
publish_state(const Supervisor *supervisor, const Charge *charge)
{
	EngineSlot	slot = {.process = (int32_t) charge->engine.pid,
						.state = (int32_t) charge_state(supervisor, charge)};

	/* what runs may have told its load already; what ended has none */
	supervisor_file_write_slot(supervisor->lock, charge->number, &slot, charge->engine.pid != 0);
	supervisor_file_write(supervisor->lock, &supervisor->state);
}

/* Note that an engine ended, and when the next one is due. */
static void
note_end(Supervisor *supervisor, Charge *charge)
{
	uint64_t	now = clock_now_ns();

	if (engine_probe_answered(&charge->probe) ||
		now - charge->engine.started >= FULL_LIFE_MS * NS_PER_MS)
	{
		charge->early_ends = 0;
		charge->delay_ms = FIRST_DELAY_MS;
	}
	else
		charge->early_ends++;
	charge->due = now + charge->delay_ms * NS_PER_MS;
	charge->delay_ms = Min(charge->delay_ms * 2, LAST_DELAY_MS);
	engine_probe_end(&charge->probe);
	engine_probe_clear(&charge->probe);
	publish_state(supervisor, charge);
}

/* Tell pg_stat_activity which processes the engines are. */
static void
report_activity(const Supervisor *supervisor)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, supervisor->state.engines == 1 ? "engine process"
																 : "engine processes");
	for (int i = 0; i < supervisor->state.engines; i++)
		if (supervisor->charges[i].engine.pid != 0)
			appendStringInfo(&text, " %d", (int) supervisor->charges[i].engine.pid);
	pgstat_report_activity(STATE_RUNNING, text.data);
	pfree(text.data);
}

/* Start an engine. */
static void
start_engine(Supervisor *supervisor, Charge *charge)
{
	supervisor->state.starts++;
	if (charge->started)
		supervisor->state.restarts++;
	charge->started = true;
	engine_probe_clear(&charge->probe);
	if (!engine_process_start(&charge->engine, charge->arguments, charge->listener,
							  supervisor->lock))
	{
		note_end(supervisor, charge);
		return;
	}
	engine_probe_begin(&charge->probe, charge->number);
	publish_state(supervisor, charge);
	report_activity(supervisor);
	ereport(LOG, (errmsg("mmgpt engine started as process %d", (int) charge->engine.pid)));
}

/* End an engine, if one runs, and forget earlier failures: a new one is due at once. */
static void
restart_engine(Supervisor *supervisor, Charge *charge)
{
	engine_process_stop(&charge->engine);
	engine_probe_end(&charge->probe);
	engine_probe_clear(&charge->probe);
	charge->early_ends = 0;
	charge->delay_ms = FIRST_DELAY_MS;
	charge->due = clock_now_ns();
	publish_state(supervisor, charge);
}

/* Begin to look after one more engine. */
static void
add_charge(Supervisor *supervisor)
{
	Charge	   *charge = &supervisor->charges[supervisor->state.engines];

	memset(charge, 0, sizeof(*charge));
	charge->number = supervisor->state.engines++;
	engine_process_clear(&charge->engine);
	engine_probe_clear(&charge->probe);
	charge->delay_ms = FIRST_DELAY_MS;
	charge->due = clock_now_ns();
	refresh_arguments(charge);
	charge->listener = bind_listener(charge->number);
	publish_state(supervisor, charge);
}

/* End the last engine and hang up on those that call it: they will choose another one. */
static void
remove_charge(Supervisor *supervisor)
{
	Charge	   *charge = &supervisor->charges[--supervisor->state.engines];
	char		path[MAXPGPATH];

	publish_state(supervisor, charge);	/* first of all, so that nobody chooses it any more */
	restart_engine(supervisor, charge);
	close(charge->listener);
	supervisor_socket_path(charge->number, path, sizeof(path));
	unlink(path);
	MemoryContextDelete(charge->arguments_context);
}

/* Do what the configuration says now. */
static void
follow_configuration(Supervisor *supervisor)
{
	int			engines = setting_engines();

	while (supervisor->state.engines > engines)
		remove_charge(supervisor);
	for (int i = 0; i < supervisor->state.engines; i++)
		if (refresh_arguments(&supervisor->charges[i]))
			restart_engine(supervisor, &supervisor->charges[i]);
	while (supervisor->state.engines < engines)
		add_charge(supervisor);
}

/* True while calls are refused: no engine runs, and the last ones all ended early. */
static bool
is_refusing(const Charge *charge)
{
	return charge->engine.pid == 0 && charge->early_ends >= EARLY_ENDS_REFUSED;
}

/* Write the ERROR frame that tells a caller why there is no engine; returns its length. */
static size_t
write_refusal(const Charge *charge, uint8_t *frame, size_t size)
{
	Status		status;
	WireWriter	writer;
	WireHeader	header = {.type = WIRE_ERROR,.id = 0};

	status_clear(&status);
	status_set(&status, STATUS_MODEL_UNAVAILABLE, "the mmgpt engine does not start");
	status_detail(&status, "It ended %d times soon after its start. The last time: %s",
				  charge->early_ends, charge->engine.reason);
	status_hint(&status, "The server's log says more. It is tried again from time to time, and "
				"at once by mmgpt_restart().");
	wire_writer_begin(&writer, frame + WIRE_HEADER_SIZE, size - WIRE_HEADER_SIZE);
	wire_write_status(&writer, &status);
	header.length = (uint32_t) writer.used;
	wire_header_write(&header, frame);
	return WIRE_HEADER_SIZE + writer.used;
}

/* Answer all waiting calls with the refusal. A frame always fits the buffer of a new socket. */
static void
refuse_calls(Charge *charge)
{
	uint8_t		frame[WIRE_HEADER_SIZE + STATUS_PAYLOAD_SIZE];
	size_t		length = write_refusal(charge, frame, sizeof(frame));
	int			caller;

	/* an engine shares the listener, and may have made it block */
	fcntl(charge->listener, F_SETFL, O_NONBLOCK);
	while ((caller = accept4(charge->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0)
	{
		(void) send(caller, frame, length, MSG_NOSIGNAL);
		close(caller);
	}
}

/*
 * See to it that jobs go on that lost their workers with the last run of the server: once, and not
 * on a standby before it is promoted.
 */
static void
resume_jobs(Supervisor *supervisor)
{
	if (!supervisor->resumed && !RecoveryInProgress())
		supervisor->resumed = job_resume_register(InvalidOid, NULL);
}

/* What a turn of the loop has to look after of an engine: what to wait for, and how long. */
static pgsocket
charge_wait(const Charge *charge, long *timeout)
{
	uint64_t	now = clock_now_ns();
	long		wait;

	if (charge->engine.pid != 0)
	{
		if (charge->probe.socket >= 0)
			*timeout = *timeout < 0 ? PROBE_MS : Min(*timeout, PROBE_MS);
		return charge->engine.log;
	}
	wait = charge->due > now ? (long) ((charge->due - now) / NS_PER_MS) + 1 : 0;
	*timeout = *timeout < 0 ? wait : Min(*timeout, wait);
	return is_refusing(charge) ? charge->listener : PGINVALID_SOCKET;
}

/* Sleep until something happens that a turn of the loop must look after. */
static void
wait_for_event(Supervisor *supervisor)
{
	WaitEventSet *events = compat_create_wait_event_set(2 + supervisor->state.engines);
	WaitEvent	event;
	long		timeout = supervisor->resumed ? -1 : RESUME_MS;

	AddWaitEventToSet(events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < supervisor->state.engines; i++)
	{
		pgsocket	descriptor = charge_wait(&supervisor->charges[i], &timeout);

		if (descriptor != PGINVALID_SOCKET)
			AddWaitEventToSet(events, WL_SOCKET_READABLE, descriptor, NULL, NULL);
	}
	(void) WaitEventSetWait(events, timeout, &event, 1, compat_wait_event());
	FreeWaitEventSet(events);
	ResetLatch(MyLatch);
}

/* Do what signals asked for. */
static void
handle_signals(Supervisor *supervisor)
{
	CHECK_FOR_INTERRUPTS();
	if (catchupInterruptPending)
		ProcessCatchupInterrupt();
	if (ShutdownRequestPending)
	{
		for (int i = 0; i < supervisor->state.engines; i++)
			engine_process_stop(&supervisor->charges[i].engine);
		proc_exit(1);
	}
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		follow_configuration(supervisor);
	}
	if (restart_pending)
	{
		restart_pending = false;
		for (int i = 0; i < supervisor->state.engines; i++)
			restart_engine(supervisor, &supervisor->charges[i]);
	}
}

/* Look after one engine. */
static void
supervise_charge(Supervisor *supervisor, Charge *charge)
{
	bool		was_ready = charge->probe.answered;

	engine_process_read_log(&charge->engine);
	if (engine_process_reap(&charge->engine))
		note_end(supervisor, charge);
	if (charge->engine.pid == 0 && clock_now_ns() >= charge->due)
		start_engine(supervisor, charge);
	if (engine_probe_answered(&charge->probe) && !was_ready)
		publish_state(supervisor, charge);
	if (is_refusing(charge))
		refuse_calls(charge);
}

/* Run the supervisor; the entry point of the background worker. */
void
mmgpt_supervisor_main(Datum argument)
{
	static Supervisor supervisor;

	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, SIG_IGN);	/* there is no statement to cancel */
	pqsignal(SIGCHLD, handle_child);
	pqsignal(SIGUSR2, handle_restart);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	supervisor.lock = take_lock();
	supervisor.state.supervisor = MyProcPid;
	supervisor.state.postmaster = PostmasterPid;
	supervisor_file_clear_board(supervisor.lock);
	follow_configuration(&supervisor);
	for (;;)
	{
		handle_signals(&supervisor);
		for (int i = 0; i < supervisor.state.engines; i++)
			supervise_charge(&supervisor, &supervisor.charges[i]);
		resume_jobs(&supervisor);
		wait_for_event(&supervisor);
	}
}
