/*
 * test_sandbox.c - what the serving engine gives up, and what it keeps.
 *
 * The filter cannot be left again, so that each action is tried in a child of its own, first
 * without the sandbox and then in it. An action that changes something undoes it, or
 * would be seen by the parent: a refusal must come from the filter, not from
 * elsewhere. The child's exit status is the errno of the action, 0 when it worked.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox.h"
#include "unit.h"

#define NO_SANDBOX 200			/* exit status: the kernel offers no filter */
#define CONTENT "kept"

typedef int (*Action) (void);

static char victim[64];			/* a file of the test */
static int	pair[2];			/* sockets made before the sandbox */
static pid_t bystander;			/* a process of the test */

/* ---- the harness ---- */

/* The errno of a call that gave result; 0 when it worked. */
static int
error_of(long result)
{
	return result < 0 ? errno : 0;
}

/* Try an action in a child; returns its errno, NO_SANDBOX, or -1 when the child was killed. */
static int
try_action(Action action, bool in_sandbox)
{
	pid_t		child;
	int			status = 0;

	fflush(stdout);
	child = fork();
	if (child == 0)
	{
		Status		entered;

		status_clear(&entered);
		if (in_sandbox && !sandbox_enter(&entered))
			_exit(NO_SANDBOX);
		_exit(action());
	}
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

/* Make the victim anew, with its content. */
static void
make_victim(void)
{
	int			fd;

	strcpy(victim, "/tmp/mmgpt-sandbox-XXXXXX");
	fd = mkstemp(victim);
	UNIT_CHECK(fd >= 0 && write(fd, CONTENT, strlen(CONTENT)) == (ssize_t) strlen(CONTENT));
	close(fd);
}

/* Check that the victim is as it was made, and remove it. */
static void
check_victim(void)
{
	struct stat info;
	size_t		length = 0;
	char	   *content;

	if (!UNIT_CHECK(stat(victim, &info) == 0))
		return;
	content = unit_read_file(victim, &length);
	UNIT_EQUAL_TEXT(content, CONTENT);
	free(content);
	unlink(victim);
}

/* Check that an action fails with EPERM in the sandbox; returns false where there is none. */
static bool
check_refused(Action action)
{
	int			error;

	make_victim();
	error = try_action(action, true);
	check_victim();
	if (error == NO_SANDBOX)
		return false;
	UNIT_EQUAL_INT(error, EPERM);
	return true;
}

/* Define a test that an action works outside of the sandbox and is refused in it. */
#define REFUSED(action) \
	UNIT_TEST(action##_is_refused) \
	{ \
		make_victim(); \
		UNIT_EQUAL_INT(try_action(action, false), 0); \
		unlink(victim); \
		if (!check_refused(action)) \
			UNIT_SKIP("no seccomp here"); \
	}

/* The same for what not every machine lets the test do outside of the sandbox. */
#define REFUSED_EVERYWHERE(action) \
	UNIT_TEST(action##_is_refused) \
	{ \
		if (!check_refused(action)) \
			UNIT_SKIP("no seccomp here"); \
	}

/* Define a test that an action works in the sandbox. */
#define KEPT(action) \
	UNIT_TEST(action##_still_works) \
	{ \
		int			error; \
		\
		make_victim(); \
		error = try_action(action, true); \
		check_victim(); \
		if (error == NO_SANDBOX) \
			UNIT_SKIP("no seccomp here"); \
		UNIT_EQUAL_INT(error, 0); \
	}

/* ---- connections and programs ---- */

static int
internet_socket(void)
{
	return error_of(socket(AF_INET, SOCK_STREAM, 0));
}

static int
unix_socket(void)
{
	return error_of(socket(AF_UNIX, SOCK_STREAM, 0));
}

static int
new_socketpair(void)
{
	int			made[2];

	return error_of(socketpair(AF_UNIX, SOCK_STREAM, 0, made));
}

static int
connecting(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/nowhere"};

	return error_of(connect(pair[0], (struct sockaddr *) &address, sizeof(address)));
}

static int
running_a_program(void)
{
	char	   *arguments[] = {"true", NULL};

	execve("/bin/true", arguments, arguments + 1);
	return errno;
}

static int
tracing(void)
{
	return error_of(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
}

static int
signalling_another(void)
{
	return error_of(kill(bystander, 0));
}

REFUSED(internet_socket)
REFUSED(unix_socket)
REFUSED(new_socketpair)
REFUSED_EVERYWHERE(connecting)
REFUSED(running_a_program)
REFUSED_EVERYWHERE(tracing)

UNIT_TEST(signalling_another_is_refused)
{
	bystander = getpid();
	UNIT_EQUAL_INT(try_action(signalling_another, false), 0);
	if (!check_refused(signalling_another))
		UNIT_SKIP("no seccomp here");
}

/* ---- files ---- */

static int
opening_for_writing(void)
{
	return error_of(open(victim, O_WRONLY | O_APPEND));
}

static int
opening_for_both(void)
{
	return error_of(open(victim, O_RDWR));
}

static int
truncating_by_open(void)
{
	return error_of(open(victim, O_RDONLY | O_TRUNC));
}

static int
making_a_file(void)
{
	char		name[sizeof(victim) + 4];
	int			fd;

	snprintf(name, sizeof(name), "%s.new", victim);
	fd = open(name, O_RDONLY | O_CREAT, 0600);
	if (fd >= 0)
		unlink(name);
	return error_of(fd);
}

static int
calling_creat(void)
{
	return error_of(syscall(SYS_creat, victim, 0600));
}

static int
calling_openat2(void)
{
	struct open_how how = {.flags = O_WRONLY};

	return error_of(syscall(SYS_openat2, AT_FDCWD, victim, &how, sizeof(how)));
}

static int
making_a_ring(void)
{
	char		parameters[256] = {0};

	return error_of(syscall(SYS_io_uring_setup, 1, parameters));
}

static int
unlinking(void)
{
	return error_of(unlink(victim));
}

static int
renaming(void)
{
	char		name[sizeof(victim) + 4];
	int			error;

	snprintf(name, sizeof(name), "%s.new", victim);
	error = error_of(rename(victim, name));
	if (error == 0)
		unlink(name);
	return error;
}

static int
making_readable(void)
{
	return error_of(chmod(victim, 0644));
}

static int
making_a_folder(void)
{
	char		name[sizeof(victim) + 4];
	int			error;

	snprintf(name, sizeof(name), "%s.new", victim);
	error = error_of(mkdir(name, 0700));
	if (error == 0)
		rmdir(name);
	return error;
}

REFUSED(opening_for_writing)
REFUSED(opening_for_both)
REFUSED(truncating_by_open)
REFUSED(making_a_file)
#ifdef SYS_creat
REFUSED(calling_creat)
#endif
REFUSED_EVERYWHERE(calling_openat2)
REFUSED_EVERYWHERE(making_a_ring)
REFUSED(unlinking)
REFUSED(renaming)
REFUSED(making_readable)
REFUSED(making_a_folder)

/* ---- what the engine needs ---- */

static int
reading_a_file(void)
{
	char		content[sizeof(CONTENT)] = "";
	int			fd = open(victim, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno;
	if (read(fd, content, sizeof(content) - 1) != (ssize_t) strlen(CONTENT))
		return EIO;
	return strcmp(content, CONTENT) == 0 ? 0 : EIO;
}

static int
talking_through_a_socket(void)
{
	char		byte = 'x';

	if (write(pair[0], &byte, 1) != 1)
		return errno;
	byte = '\0';
	if (recv(pair[1], &byte, 1, 0) != 1)
		return errno;
	return byte == 'x' ? 0 : EIO;
}

static void *
set_flag(void *argument)
{
	*(int *) argument = 1;
	return NULL;
}

static int
starting_a_thread(void)
{
	pthread_t	thread;
	int			flag = 0;
	int			error = pthread_create(&thread, NULL, set_flag, &flag);

	if (error == 0)
		error = pthread_join(thread, NULL);
	return error != 0 ? error : flag == 1 ? 0 : EIO;
}

static void *
open_a_socket(void *argument)
{
	*(int *) argument = unix_socket();
	return NULL;
}

/* The errno of opening a socket in a thread that the sandboxed child starts. */
static int
socket_of_a_thread(void)
{
	pthread_t	thread;
	int			error = 0;

	if (pthread_create(&thread, NULL, open_a_socket, &error) != 0)
		return EIO;
	pthread_join(thread, NULL);
	return error;
}

static int
signalling_itself(void)
{
	signal(SIGUSR1, SIG_IGN);
	return raise(SIGUSR1) == 0 ? error_of(kill(getpid(), SIGUSR1)) : errno;
}

KEPT(reading_a_file)
KEPT(talking_through_a_socket)
KEPT(starting_a_thread)
KEPT(signalling_itself)
REFUSED(socket_of_a_thread)

int
main(int argc, char **argv)
{
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
	{
		printf("Bail out! no sockets: %s\n", strerror(errno));
		return 2;
	}
	return unit_run(argc, argv);
}
