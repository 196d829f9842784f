/*
 * engine_process.c - start, hear and end the engine; see engine_process.h.
 *
 * The engine must not outlive its supervisor, and must not hold anything of
 * the server's. Three things see to the first: the kernel kills it when its
 * parent ends (PDEATHSIG); its standard input is a pipe, the lifeline, that ends
 * with the supervisor; and it stays in the supervisor's process group, which the
 * postmaster signals as a whole. For the second, the child closes every
 * descriptor above its five, takes an environment of our choosing and default
 * signal handling, between fork and exec:
 *
 *	0	the lifeline
 *	1 2	the log pipe, whose lines are reported to the server's log
 *	3	the listening socket, which lives in the supervisor, so that calls made
 *		while the engine is restarted wait in its queue
 *	4	the locked file (supervisor_file.h)
 *
 * Both pipes are without blocking on both ends: neither process can stall the
 * other.
 */
#include "postgres.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "miscadmin.h"

#include "clock.h"
#include "engine_process.h"
#include "pg_compat.h"

#define ENGINE_DESCRIPTORS 5	/* descriptors 0 to 4, see above */
#define SAFE_DESCRIPTOR 16		/* where they wait while the five are laid out */
#define ENGINE_OOM_SCORE "500"	/* of 1000: the out-of-memory killer's first choice */
#define STOP_PATIENCE_MS 1000
#define STOP_POLL_MS 5
#define EXEC_FAILED 127			/* exit status of a child that could not run the program */
#define MAX_ENVIRONMENT 16

/* Variables of the server's environment that the engine is given. */
static const char *const passed_variables[] = {
	"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_CACHE_PATH", "CUDA_MPS_PIPE_DIRECTORY",
	"LD_LIBRARY_PATH", "TZ", "ASAN_OPTIONS", "UBSAN_OPTIONS"
};

void
engine_process_clear(EngineProcess *engine)
{
	memset(engine, 0, sizeof(*engine));
	engine->lifeline = -1;
	engine->log = -1;
}

/* Close a descriptor, if it is open. */
static void
close_descriptor(int *descriptor)
{
	if (*descriptor >= 0)
		close(*descriptor);
	*descriptor = -1;
}

/* The engine's environment, built once: the server's own does not change. */
static char **
engine_environment(void)
{
	static char *environment[MAX_ENVIRONMENT];
	int			count = 0;

	if (environment[0] != NULL)
		return environment;
	environment[count++] = "PATH=/usr/local/bin:/usr/bin:/bin";
	environment[count++] = "LC_ALL=C.UTF-8";
	for (int i = 0; i < (int) lengthof(passed_variables); i++)
	{
		const char *value = getenv(passed_variables[i]);

		if (value != NULL)
			environment[count++] = MemoryContextStrdup(TopMemoryContext,
													   psprintf("%s=%s", passed_variables[i],
																value));
	}
	return environment;
}

/* Lay out descriptors 0 to 4 and close all others. Runs in the child. */
static bool
child_lay_out_descriptors(const int sources[ENGINE_DESCRIPTORS])
{
	int			safe[ENGINE_DESCRIPTORS];

	for (int i = 0; i < ENGINE_DESCRIPTORS; i++)
	{
		safe[i] = fcntl(sources[i], F_DUPFD, SAFE_DESCRIPTOR);
		if (safe[i] < 0)
			return false;
	}
	for (int i = 0; i < ENGINE_DESCRIPTORS; i++)
		if (dup2(safe[i], i) < 0)
			return false;
#ifdef SYS_close_range
	if (syscall(SYS_close_range, ENGINE_DESCRIPTORS, ~0U, 0) == 0)
		return true;
#endif
	for (long i = ENGINE_DESCRIPTORS, last = sysconf(_SC_OPEN_MAX); i < last; i++)
		close((int) i);
	return true;
}

/* Give back the signal handling of a new process, save that some signals are ignored. */
static void
child_reset_signals(void)
{
	sigset_t	none;

	for (int i = 1; i < NSIG; i++)
		signal(i, SIG_DFL);
	/* pg_cancel_backend on the supervisor reaches the whole process group */
	signal(SIGINT, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Leave no core in the data directory, and be the out-of-memory killer's first choice. */
static void
child_set_limits(void)
{
	struct rlimit no_core = {0, 0};
	int			descriptor;

	setrlimit(RLIMIT_CORE, &no_core);
	descriptor = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (descriptor >= 0)
	{
		ssize_t		written = write(descriptor, ENGINE_OOM_SCORE, strlen(ENGINE_OOM_SCORE));

		(void) written;
		close(descriptor);
	}
}

/* Become the engine; never returns. Only calls that are safe after fork. */
static void
child_run(char **arguments, char **environment, const int sources[ENGINE_DESCRIPTORS],
		  pid_t supervisor)
{
	char		message[ENGINE_LINE_SIZE];
	int			length;
	ssize_t		written;

	child_reset_signals();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != supervisor)
		_exit(EXEC_FAILED);
	child_set_limits();
	if (!child_lay_out_descriptors(sources))
		_exit(EXEC_FAILED);
	execve(arguments[0], arguments, environment);
	length = snprintf(message, sizeof(message), "ERROR: could not run \"%s\": %s\n",
					  arguments[0], strerror(errno));
	written = write(STDERR_FILENO, message, (size_t) Min(length, (int) sizeof(message) - 1));
	(void) written;
	_exit(EXEC_FAILED);
}

/* Fork with all signals blocked, so that no handler of ours ever runs in the child. */
static pid_t
fork_engine(char **arguments, const int sources[ENGINE_DESCRIPTORS])
{
	char	  **environment = engine_environment();
	pid_t		supervisor = getpid();
	pid_t		child;
	sigset_t	all;
	sigset_t	before;
	int			error;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	child = fork();
	if (child == 0)
		child_run(arguments, environment, sources, supervisor);
	error = errno;
	sigprocmask(SIG_SETMASK, &before, NULL);
	errno = error;
	return child;
}

/* Say why the engine could not be started. */
static bool
start_failed(EngineProcess *engine, const char *what)
{
	snprintf(engine->reason, sizeof(engine->reason), "could not %s: %s", what, strerror(errno));
	ereport(LOG, (errmsg("mmgpt engine: %s", engine->reason)));
	return false;
}

bool
engine_process_start(EngineProcess *engine, char **arguments,
					 int listen_descriptor, int lock_descriptor)
{
	int			lifeline[2];
	int			log[2];
	int			sources[ENGINE_DESCRIPTORS];

	engine_process_clear(engine);
	engine->started = clock_now_ns();
	if (pipe2(lifeline, O_CLOEXEC | O_NONBLOCK) != 0)
		return start_failed(engine, "create a pipe");
	if (pipe2(log, O_CLOEXEC | O_NONBLOCK) != 0)
	{
		start_failed(engine, "create a pipe");
		close(lifeline[0]);
		close(lifeline[1]);
		return false;
	}
	sources[0] = lifeline[0];
	sources[1] = log[1];
	sources[2] = log[1];
	sources[3] = listen_descriptor;
	sources[4] = lock_descriptor;
	engine->lifeline = lifeline[1];
	engine->log = log[0];
	engine->pid = fork_engine(arguments, sources);
	if (engine->pid < 0)
	{
		engine->pid = 0;
		start_failed(engine, "fork a process");
		close_descriptor(&engine->lifeline);
		close_descriptor(&engine->log);
	}
	close(lifeline[0]);
	close(log[1]);
	return engine->pid > 0;
}

/*
 * Report one line at the level that it begins with. An error of the engine is
 * not one of the supervisor, so it is reported as a warning.
 */
static void
report_line(EngineProcess *engine, const char *line)
{
	static const struct
	{
		const char *prefix;
		int			level;
		bool		complaint;
	}			levels[] = {
		{"DEBUG: ", DEBUG1, false},
		{"LOG: ", LOG, false},
		{"WARNING: ", WARNING, false},
		{"ERROR: ", WARNING, true},
		/* what the command line says of arguments it refuses */
		{"mmgpt-engine: ", WARNING, true},
	};
	int			level = LOG;
	bool		complaint = false;

	for (int i = 0; i < (int) lengthof(levels); i++)
	{
		size_t		length = strlen(levels[i].prefix);

		if (strncmp(line, levels[i].prefix, length) == 0)
		{
			line += length;
			level = levels[i].level;
			complaint = levels[i].complaint;
			break;
		}
	}
	if (*line == '\0')
		return;
	if (complaint || (!engine->complained && level != DEBUG1))
	{
		strlcpy(engine->reason, line, sizeof(engine->reason));
		engine->complained = complaint;
	}
	ereport(level, (errmsg("mmgpt engine: %s", line)));
}

/* Take bytes of the log, and report each line that ends; overlong lines are cut. */
static void
take_log(EngineProcess *engine, const char *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
	{
		if (bytes[i] == '\n')
		{
			engine->line[engine->filled] = '\0';
			engine->filled = 0;
			report_line(engine, engine->line);
		}
		else if (engine->filled < sizeof(engine->line) - 1)
			engine->line[engine->filled++] = bytes[i];
	}
}

void
engine_process_read_log(EngineProcess *engine)
{
	char		bytes[4096];
	ssize_t		count;

	while (engine->log >= 0)
	{
		count = read(engine->log, bytes, sizeof(bytes));
		if (count > 0)
			take_log(engine, bytes, (size_t) count);
		else if (count < 0 && errno == EINTR)
			continue;
		else
		{
			/* an engine that closed its log is not heard any more, and must not keep us awake */
			if (count == 0)
				close_descriptor(&engine->log);
			return;
		}
	}
}

/* Describe the end of the engine, where it did not complain itself. */
static void
describe_end(EngineProcess *engine, int status)
{
	char		end[128];

	if (WIFSIGNALED(status))
		snprintf(end, sizeof(end), "ended by signal %d: %s", WTERMSIG(status),
				 pg_strsignal(WTERMSIG(status)));
	else
		snprintf(end, sizeof(end), "exited with status %d", WEXITSTATUS(status));
	ereport(LOG, (errmsg("mmgpt engine (process %d) %s", (int) engine->pid, end)));
	if (!engine->complained)
		strlcpy(engine->reason, end, sizeof(engine->reason));
}

bool
engine_process_reap(EngineProcess *engine)
{
	int			status;

	if (engine->pid == 0 || waitpid(engine->pid, &status, WNOHANG) != engine->pid)
		return false;
	engine_process_read_log(engine);
	if (engine->filled > 0)
		take_log(engine, "\n", 1);
	describe_end(engine, status);
	close_descriptor(&engine->lifeline);
	close_descriptor(&engine->log);
	engine->pid = 0;
	return true;
}

void
engine_process_stop(EngineProcess *engine)
{
	uint64_t	begun = clock_now_ns();
	bool		killed = false;

	if (engine->pid == 0)
		return;
	kill(engine->pid, SIGTERM);
	while (!engine_process_reap(engine))
	{
		if (!killed && clock_now_ns() - begun > UINT64CONST(1000000) * STOP_PATIENCE_MS)
		{
			kill(engine->pid, SIGKILL);
			killed = true;
		}
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, STOP_POLL_MS,
						 compat_wait_event());
		engine_process_read_log(engine);
	}
}
