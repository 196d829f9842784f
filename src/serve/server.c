/*
 * server.c - the IO thread: one epoll loop over the listening socket, the connections, the
 * lifeline and the wake-ups of the other threads; see server.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"
#include "engine_board.h"
#include "log.h"
#include "request_training.h"
#include "sandbox.h"
#include "server_internal.h"

#define LISTEN_BACKLOG 4096
/* How often waiting callers hear of a loading model. */
#define PROGRESS_MILLISECONDS 200
/* Events taken in one turn. */
#define MAX_EVENTS 64
/* How long the IO thread looks for the next event before it sleeps. */
#define LINGER_NANOSECONDS 50000
/* Threads that read JSON and pictures, at most. */
#define MAX_PREPARERS 4

/* What epoll tells besides connections: addresses that stand for other descriptors. */
static char listen_mark;
static char wake_mark;
static char lifeline_mark;

static volatile sig_atomic_t terminated = 0;

static void
note_termination(int signal_number)
{
	terminated = 1;
}

/* ---- beginning ---- */

/* SIGTERM is blocked in all threads but while the loop waits, so that none is missed. */
static void
set_signals(Server *server)
{
	struct sigaction action;
	sigset_t	termination;

	memset(&action, 0, sizeof(action));
	action.sa_handler = note_termination;
	sigaction(SIGTERM, &action, NULL);
	sigemptyset(&termination);
	sigaddset(&termination, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &termination, &server->wait_mask);
	sigdelset(&server->wait_mask, SIGTERM);
	action.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
}

/* As many descriptors as the system allows: each session is a connection. */
static void
raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static bool
make_socket(Server *server, Status *status)
{
	const char *path = server->options.socket_path;
	struct sockaddr_un address;
	mode_t		mask;
	int			fd;

	memset(&address, 0, sizeof(address));
	address.sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(address.sun_path))
		return status_set(status, STATUS_USAGE, "socket path \"%s\" is longer than %zu bytes", path,
						  sizeof(address.sun_path) - 1);
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	mask = umask(0177);
	if (fd < 0 || (unlink(path) != 0 && errno != ENOENT) ||
		bind(fd, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		listen(fd, LISTEN_BACKLOG) != 0)
	{
		status_set(status, STATUS_IO, "could not listen at \"%s\": %s", path, strerror(errno));
		umask(mask);
		if (fd >= 0)
			close(fd);
		return false;
	}
	umask(mask);
	server->options.listen_fd = fd;
	return true;
}

static bool
watch(Server *server, int fd, uint32_t events, void *mark, Status *status)
{
	struct epoll_event event = {.events = events, .data.ptr = mark};

	if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0)
		return true;
	return status_set(status, STATUS_IO, "could not watch descriptor %d: %s", fd, strerror(errno));
}

/* A preparer's part of a request. True: the model's thread goes on with it; false: it is over. */
static bool
prepare(Request *request, const ModelContext *context)
{
	if (request->kind == WIRE_KIND_TRAIN_SAVE || request->kind == WIRE_KIND_TRAIN_ADAPTER)
	{
		request_seal_training(request, context);
		return false;
	}
	if (request_is_training(request))
		return request_prepare_training(request, context);
	return !request_answer_without_model(request, context) &&
		request_prepare(request, context) && request_verify_files(request);
}

static void *
prepare_requests(void *argument)
{
	Server	   *server = argument;

	for (;;)
	{
		Request    *request = request_queue_pop(&server->preparing, true);
		bool		good;

		if (request == NULL)
			return NULL;
		good = prepare(request, &server->host.context);
		request_queue_push(good ? &server->host.inbox : &server->host.outbox, request);
		if (!good)
			model_host_wake_io(&server->host);
	}
}

static bool
start_preparers(Server *server, Status *status)
{
	long		cores = sysconf(_SC_NPROCESSORS_ONLN);
	int			count = cores < 1 ? 1 : cores > MAX_PREPARERS ? MAX_PREPARERS : (int) cores;

	server->preparers = count;
	for (int i = 0; i < count; i++)
	{
		pthread_t	thread;

		if (pthread_create(&thread, NULL, prepare_requests, server) != 0)
			return status_set(status, STATUS_OUT_OF_MEMORY, "could not start a thread");
		pthread_detach(thread);
	}
	return true;
}

/* See that there is a board to tell the load on, where that was asked for. */
static bool
check_board(const Server *server, Status *status)
{
	struct stat info;

	if (server->options.board_slot < 0 ||
		(fstat(ENGINE_BOARD_FD, &info) == 0 && S_ISREG(info.st_mode)))
		return true;
	return status_set(status, STATUS_IO, "descriptor %d is not the file of the board",
					  ENGINE_BOARD_FD);
}

/*
 * Tell backends on the board how much there is to do, where that changed. A failure, such as a full
 * disk, makes their choice a worse one and nothing else.
 */
static void
tell_load(Server *server)
{
	size_t		slot = (size_t) server->options.board_slot;
	size_t		place = ENGINE_BOARD_OFFSET + offsetof(EngineBoard, slots) +
		slot * sizeof(EngineSlot) + offsetof(EngineSlot, load);
	int32_t		load = metrics_load(server);

	if (load == server->told_load)
		return;
	if (pwrite(ENGINE_BOARD_FD, &load, sizeof(load), (off_t) place) == (ssize_t) sizeof(load))
		server->told_load = load;
}

/*
 * Start the model's thread, and close the sandbox for all others. A GPU's driver opens its files
 * for writing whenever it maps memory, and names its threads in files: with one, the model's
 * thread is started before, and stays outside like the driver's own.
 */
static bool
start_model(Server *server, Status *status)
{
	const ModelHostOptions *options = &server->options.host;
	bool		outside = options->cuda != NULL;

	if (outside && !model_host_start(&server->host, options, server->wake_fd, &server->preparing,
									 status))
		return false;
	if (server->options.sandbox && !sandbox_enter(status))
		log_write(ENGINE_WARNING, "%s", status->message);
	return outside || model_host_start(&server->host, options, server->wake_fd,
									   &server->preparing, status);
}

static bool
begin(Server *server, Status *status)
{
	set_signals(server);
	raise_descriptor_limit();
	if (!check_board(server, status) ||
		(server->options.listen_fd < 0 && !make_socket(server, status)))
		return false;
	fcntl(server->options.listen_fd, F_SETFL, O_NONBLOCK);
	server->waiting_end = &server->waiting;
	server->training.opening_end = &server->training.opening;
	request_queue_begin(&server->preparing);
	server->begin_ns = clock_now_ns();
	server->started = calloc(MAX_STARTED, sizeof(Request *));
	server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	server->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (server->started == NULL || server->epoll_fd < 0 || server->wake_fd < 0)
		return status_set(status, STATUS_IO, "could not set up the event loop: %s",
						  strerror(errno));
	return model_host_open_device(&server->options.host, status) &&
		   watch(server, server->options.listen_fd, EPOLLIN, &listen_mark, status) &&
		   watch(server, server->wake_fd, EPOLLIN, &wake_mark, status) &&
		   (server->options.lifeline_fd < 0 ||
			watch(server, server->options.lifeline_fd, EPOLLIN | EPOLLRDHUP, &lifeline_mark,
				  status)) &&
		   start_model(server, status) &&
		   start_preparers(server, status);
}

/* ---- connections ---- */

/* Only the account that runs the engine, and root, may ask. */
static bool
peer_is_trusted(int fd)
{
	struct ucred peer;
	socklen_t	length = sizeof(peer);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
		   (peer.uid == geteuid() || peer.uid == 0);
}

/* Leave callers in the backlog while no descriptors are left, or take them again. */
static void
set_full(Server *server, bool full)
{
	struct epoll_event event = {.events = full ? 0 : EPOLLIN, .data.ptr = &listen_mark};

	if (server->full == full)
		return;
	server->full = full;
	epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, server->options.listen_fd, &event);
	if (full)
		log_write(ENGINE_WARNING, "no descriptors are left for more connections");
}

static void
accept_connections(Server *server)
{
	for (;;)
	{
		int			fd = accept4(server->options.listen_fd, NULL, NULL,
								 SOCK_NONBLOCK | SOCK_CLOEXEC);
		Connection *connection;
		Status		status;

		if (fd < 0)
		{
			set_full(server,
					 errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM);
			return;
		}
		connection = peer_is_trusted(fd) ? connection_create(fd) : NULL;
		if (connection == NULL || !watch(server, fd, EPOLLIN, connection, &status))
		{
			log_write(ENGINE_WARNING, "a connection was refused");
			if (connection != NULL)
				connection_free(connection);
			else
				close(fd);
			continue;
		}
		connection->events = EPOLLIN;
		connection->number = ++server->accepted;
		connection->next = server->connections;
		if (server->connections != NULL)
			server->connections->previous = connection;
		server->connections = connection;
		admission_greet(server, connection);
	}
}

/* Whether the payload of a header may be read: it has room, or would be the only one. */
static bool
payload_fits(Server *server, const Connection *connection)
{
	bool		files = connection->header.type == WIRE_ADAPTER;
	size_t		taken = files ? atomic_load(&server->file_bytes) : server->payload_bytes;

	return taken == 0 ||
		taken + connection->header.length <= (files ? FILE_BUDGET : PAYLOAD_BUDGET);
}

/* Take memory for the payload of a header that was read. */
static bool
allow_payload(Server *server, Connection *connection)
{
	size_t		length = connection->header.length;

	if (!payload_fits(server, connection))
	{
		connection->paused = true;
		server->any_paused = true;
		return false;
	}
	if (!connection_allow_payload(connection))
	{
		log_write(ENGINE_WARNING, "out of memory for a frame of %zu bytes", length);
		connection->closing = true;
		return false;
	}
	if (connection->header.type == WIRE_ADAPTER)
		atomic_fetch_add(&server->file_bytes, length);
	else
		server->payload_bytes += length;
	return true;
}

static void
read_connection(Server *server, Connection *connection)
{
	size_t		turn = 0;

	while (!connection->closing && turn < CONNECTION_TURN)
	{
		WireHeader	header;

		switch (connection_read(connection))
		{
			case READ_AGAIN:
				return;
			case READ_HEADER:
				if (!allow_payload(server, connection))
					return;
				break;
			case READ_FRAME:
				header = connection->header;
				turn += header.length;
				admission_take_frame(server, connection, &header,
									 connection_take_payload(connection));
				break;
			case READ_CLOSED:
				connection->closing = true;
				return;
		}
	}
}

static void
close_connection(Server *server, Connection *connection)
{
	admission_forget(server, connection);
	if (connection->payload != NULL && connection->header.type == WIRE_ADAPTER)
		atomic_fetch_sub(&server->file_bytes, connection->header.length);
	else if (connection->payload != NULL)
		server->payload_bytes -= connection->header.length;
	if (connection->previous != NULL)
		connection->previous->next = connection->next;
	else
		server->connections = connection->next;
	if (connection->next != NULL)
		connection->next->previous = connection->previous;
	connection_free(connection);
	set_full(server, false);
}

/* Watch what the connection now waits for. */
static void
update_events(Server *server, Connection *connection)
{
	uint32_t	events = (connection->paused ? 0 : EPOLLIN) |
						 (connection->output != NULL ? EPOLLOUT : 0);
	struct epoll_event event = {.events = events, .data.ptr = connection};

	if (events == connection->events)
		return;
	epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event);
	connection->events = events;
}

/* Whether a connection that waits for memory may go on. */
static bool
may_resume(Server *server)
{
	Connection *connection = server->any_paused ? server->connections : NULL;

	while (connection != NULL && !(connection->paused && payload_fits(server, connection)))
		connection = connection->next;
	return connection != NULL;
}

/* At the end of a turn: resume those that waited for memory, close what is over. */
static void
tidy_connections(Server *server)
{
	bool		resume = server->any_paused;
	Connection *next;

	server->any_paused = false;
	for (Connection *connection = server->connections; connection != NULL; connection = next)
	{
		next = connection->next;
		if (resume && connection->paused && payload_fits(server, connection))
		{
			connection->paused = false;
			read_connection(server, connection);
		}
		server->any_paused = server->any_paused || connection->paused;
		if (connection->closing)
			close_connection(server, connection);
		else
			update_events(server, connection);
	}
}

/* ---- the loop ---- */

static void
take_finished(Server *server)
{
	uint64_t	count;
	ssize_t		length = read(server->wake_fd, &count, sizeof(count));
	Request    *request;

	(void) length;
	while ((request = request_queue_pop(&server->host.outbox, false)) != NULL)
	{
		bool		computed = request_is_computed(request);

		admission_finish(server, request);
		if (computed)
			model_host_release(&server->host);
	}
}

static void
handle_event(Server *server, const struct epoll_event *event)
{
	if (event->data.ptr == &listen_mark)
		accept_connections(server);
	else if (event->data.ptr == &wake_mark)
		take_finished(server);
	else if (event->data.ptr == &lifeline_mark)
		server->stop = true;
	else
	{
		Connection *connection = event->data.ptr;

		if ((event->events & EPOLLOUT) != 0 && !connection_flush(connection))
			connection->closing = true;
		if (connection->paused && (event->events & (EPOLLHUP | EPOLLERR)) != 0)
			connection->closing = true;
		else if ((event->events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
			read_connection(server, connection);
	}
}

/*
 * Wait for events. A session that calls again and again does so within microseconds, and a
 * core that fell asleep takes longer to wake than a small call to answer: so the thread looks
 * again for a moment before it sleeps.
 */
static int
wait_for_events(Server *server, struct epoll_event *events, int timeout)
{
	uint64_t	begin = clock_now_ns();
	int			count;

	do
		count = epoll_pwait(server->epoll_fd, events, MAX_EVENTS, 0, &server->wait_mask);
	while (count == 0 && timeout != 0 && clock_now_ns() - begin < LINGER_NANOSECONDS);
	if (count != 0 || timeout == 0)
		return count;
	return epoll_pwait(server->epoll_fd, events, MAX_EVENTS, timeout, &server->wait_mask);
}

static void
loop(Server *server)
{
	struct epoll_event events[MAX_EVENTS];
	uint64_t	reported = 0;
	bool		resumed = false;	/* requests may have been read since the last admission */

	while (!server->stop && !terminated && atomic_load(&server->host.state) != HOST_LOST)
	{
		bool		loading = atomic_load(&server->host.state) == HOST_LOADING;
		int			timeout = loading || server->impatient ? PROGRESS_MILLISECONDS : -1;
		int			count = wait_for_events(server, events,
											resumed || may_resume(server) ? 0 : timeout);

		for (int i = 0; i < count; i++)
			handle_event(server, &events[i]);
		admission_advance(server);
		if (loading && clock_now_ns() - reported > PROGRESS_MILLISECONDS * UINT64_C(1000000))
		{
			reported = clock_now_ns();
			admission_report_progress(server);
		}
		if (server->options.board_slot >= 0)
			tell_load(server);
		resumed = may_resume(server);
		tidy_connections(server);
	}
}

bool
server_run(const ServerOptions *options, Status *status)
{
	static Server server;		/* threads use it until the process ends */

	server.options = *options;
	if (!begin(&server, status))
		return false;
	loop(&server);
	log_write(ENGINE_DEBUG, "engine ends");
	if (atomic_load(&server.host.state) == HOST_LOST)
		return status_set(status, STATUS_INTERNAL, "the device failed");
	return true;
}
