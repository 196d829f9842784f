/*
 * engine_connection.c - see engine_connection.h.
 *
 * A connection is an event set of the latch, the postmaster's death and a socket, and a buffer of
 * bytes that were read. Nothing blocks but the wait, which is interruptible. It also ends the
 * session when its client has gone away.
 */
#include "postgres.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "tcop/tcopprot.h"

#include "clock.h"
#include "engine_connection.h"
#include "pg_compat.h"
#include "status_to_sqlstate.h"
#include "supervisor_control.h"
#include "worker.h"

#define INPUT_START_SIZE (16 * 1024)
#define READ_LEAST 4096			/* room that each read is given */
#define BACKLOG_FULL_MS 10
#define SOCKET_EVENT 2			/* position in the event set */
#define NS_PER_MS UINT64CONST(1000000)

void
engine_connection_close(EngineConnection *connection)
{
	if (connection->events != NULL)
		FreeWaitEventSet(connection->events);
	connection->events = NULL;
	if (connection->socket >= 0)
	{
		close(connection->socket);
		ReleaseExternalFD();
	}
	connection->socket = -1;
	connection->greeted = false;
	connection->input_start = connection->input_end = 0;
	if (connection->input != NULL)
		pfree(connection->input);
	connection->input = NULL;
	connection->input_size = 0;
}

/* Open a socket without blocking and begin to count it. */
static void
open_socket(EngineConnection *connection)
{
	ReserveExternalFD();
	connection->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (connection->socket < 0)
	{
		ReleaseExternalFD();
		ereport(ERROR, (errcode_for_socket_access(), errmsg("could not create socket: %m")));
	}
}

/* Make the event set of a connected socket. */
static void
prepare(EngineConnection *connection)
{
	connection->events = compat_create_wait_event_set(3);
	AddWaitEventToSet(connection->events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(connection->events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(connection->events, WL_SOCKET_READABLE, connection->socket, NULL, NULL);
	connection->input = MemoryContextAlloc(TopMemoryContext, INPUT_START_SIZE);
	connection->input_size = INPUT_START_SIZE;
}

void
engine_connection_open(EngineConnection *connection, int engine)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	SupervisorSearch search = {0};

	supervisor_socket_path(engine, address.sun_path, sizeof(address.sun_path));
	for (;;)
	{
		open_socket(connection);
		if (connect(connection->socket, (struct sockaddr *) &address, sizeof(address)) == 0)
			break;
		if (errno == ENOENT || errno == ECONNREFUSED)
		{
			engine_connection_close(connection);
			supervisor_search(&search);
		}
		else if (errno == EAGAIN || errno == EINTR)
		{
			engine_connection_close(connection);
			supervisor_pause(BACKLOG_FULL_MS);
		}
		else
			ereport(ERROR,
					(errcode_for_socket_access(),
					 errmsg("could not connect to the mmgpt engine: %m")));
	}
	supervisor_search_end(&search);
	prepare(connection);
}

/* End the session if its client went away, as PostgreSQL itself does where it looks for that. */
static void
check_client(void)
{
	if (MyProcPort == NULL || client_connection_check_interval > 0 || pq_check_connection())
		return;
	ClientConnectionLost = true;
	InterruptPending = true;
	CHECK_FOR_INTERRUPTS();
}

bool
engine_connection_wait(EngineConnection *connection, bool writing, long milliseconds)
{
	static uint64_t client_checked = 0;
	WaitEvent	event;
	int			count;

	ModifyWaitEvent(connection->events, SOCKET_EVENT,
					writing ? WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE,
					NULL);
	count = WaitEventSetWait(connection->events, milliseconds, &event, 1, compat_wait_event());
	if (count > 0 && (event.events & WL_LATCH_SET) != 0)
		ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (clock_now_ns() - client_checked >= ENGINE_CHECK_MS * NS_PER_MS)
	{
		check_client();
		client_checked = clock_now_ns();
	}
	return count > 0;
}

/* Make room for at least so many more bytes of input. */
static void
reserve_input(EngineConnection *connection, size_t bytes)
{
	size_t		pending = connection->input_end - connection->input_start;

	if (connection->input_size - connection->input_end >= bytes)
		return;
	memmove(connection->input, connection->input + connection->input_start, pending);
	connection->input_start = 0;
	connection->input_end = pending;
	if (connection->input_size - pending < bytes)
	{
		size_t		size = Max(pending + bytes, 2 * connection->input_size);

		connection->input = repalloc_huge(connection->input, size);
		connection->input_size = size;
	}
}

bool
engine_connection_read(EngineConnection *connection)
{
	ssize_t		count;

	reserve_input(connection, READ_LEAST);
	count = recv(connection->socket, connection->input + connection->input_end,
				 connection->input_size - connection->input_end, MSG_DONTWAIT);
	if (count > 0)
	{
		connection->input_end += (size_t) count;
		return true;
	}
	return count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

void
engine_connection_raise(EngineConnection *connection, const char *what)
{
	engine_connection_close(connection);
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("the mmgpt engine sent %s", what)));
}

bool
engine_connection_take(EngineConnection *connection, WireHeader *header, const uint8_t **payload)
{
	size_t		pending = connection->input_end - connection->input_start;
	const uint8_t *bytes = connection->input + connection->input_start;

	if (pending < WIRE_HEADER_SIZE)
		return false;
	if (!wire_header_read(bytes, header))
		engine_connection_raise(connection, "a frame of unknown form");
	if (pending - WIRE_HEADER_SIZE < header->length)
	{
		reserve_input(connection, WIRE_HEADER_SIZE + header->length - pending);
		return false;
	}
	*payload = bytes + WIRE_HEADER_SIZE;
	connection->input_start += WIRE_HEADER_SIZE + header->length;
	return true;
}

void
engine_connection_fields(EngineConnection *connection, const uint8_t *payload, size_t length,
						 WireFields *fields)
{
	Status		status;

	status_clear(&status);
	if (!wire_fields_read(payload, length, fields, &status))
	{
		engine_connection_close(connection);
		status_raise(&status);
	}
}

/*
 * What to do about an engine of another version, after an upgrade of the files under a running
 * server. The older of the two is what has to go.
 */
static const char *
upgrade_hint(uint32_t engine_version)
{
	if (engine_version < WIRE_VERSION)
		return "Restart the engine with mmgpt_restart().";
	if (worker_is_preloaded())
		return "Restart the server, which loaded the library at its start.";
	return "Reconnect, so that the session loads the new library.";
}

void
engine_connection_greet(EngineConnection *connection, const uint8_t *payload, size_t length)
{
	WireFields	fields;
	uint32_t	version;

	engine_connection_fields(connection, payload, length, &fields);
	version = wire_get_u32(&fields, WIRE_FIELD_WIRE_VERSION, 0);
	if (version != WIRE_VERSION)
	{
		engine_connection_close(connection);
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the mmgpt engine and this session's mmgpt library are of different versions"),
			 errdetail("The engine speaks version %u of their protocol, the library version %u.",
					   version, (uint32_t) WIRE_VERSION),
			 errhint("%s", upgrade_hint(version))));
	}
	connection->greeted = true;
}
