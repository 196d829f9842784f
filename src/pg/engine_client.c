/*
 * engine_client.c - the backend's side of the conversation with the engine.
 *
 * Each backend keeps one connection. A request gets an id, is sent, and the
 * backend waits on an event set: its latch, the postmaster's death, the socket.
 * It always reads while it writes, so that neither side waits for the other.
 * Frames with another id are dropped: they answer a call that was cancelled.
 *
 * Whatever ends the wait - cancel, statement_timeout, termination, an error of
 * any kind - passes through PG_CATCH, where CANCEL is sent; if the request or
 * the CANCEL cannot be sent whole, the connection is closed, which the engine
 * understands in the same way. A client that went away is noticed by PostgreSQL
 * where client_connection_check_interval is set, and here, once a second, where
 * it is not.
 *
 * An engine that lacks the adapter of a request says NEED, before it begins to work on it;
 * the files are then read from the table and sent (adapter_send.c), under the rights of
 * the caller, in the same loop.
 *
 * Loss of the engine. STARTED tells that the engine began to work on the
 * request. A loss before that says nothing about the request: it is sent again,
 * as often as needed; an engine that keeps failing is refused by the supervisor
 * (worker.c). The first loss after STARTED leads to one retry marked ALONE,
 * during which the engine works on nothing else; losing that one too means that
 * this request kills engines, and is the error of this statement.
 */
#include "postgres.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "tcop/tcopprot.h"

#include "adapter_send.h"
#include "adapter_table.h"
#include "arguments.h"
#include "clock.h"
#include "engine_client.h"
#include "pg_compat.h"
#include "status_to_sqlstate.h"
#include "supervisor_control.h"
#include "wire_frame.h"
#include "worker.h"

#define INPUT_START_SIZE (16 * 1024)
#define READ_LEAST 4096			/* room that each read is given */
#define CLIENT_CHECK_MS 1000	/* where client_connection_check_interval is 0 */
#define BACKLOG_FULL_MS 10
#define SOCKET_EVENT 2			/* position in the event set */
#define NS_PER_MS UINT64CONST(1000000)
#define FLAGS_OFFSET 8			/* of the value of FLAGS: after the head of the first field */

typedef struct Connection
{
	int			socket;			/* -1 while there is none */
	WaitEventSet *events;
	bool		greeted;		/* HELLO was read */
	uint8_t    *input;			/* bytes read, of TopMemoryContext */
	size_t		input_size;
	size_t		input_start;	/* of the first byte that was not taken yet */
	size_t		input_end;
} Connection;

/* What became of one sending of a request. */
typedef enum Outcome
{
	OUTCOME_NONE,				/* none yet */
	OUTCOME_ANSWERED,
	OUTCOME_FAILED,				/* the engine answered with an error */
	OUTCOME_LOST_WAITING,		/* the engine was lost before STARTED */
	OUTCOME_LOST_RUNNING		/* the engine was lost after STARTED */
} Outcome;

/* One sending of a request. */
typedef struct Call
{
	uint64_t	id;
	uint8_t		header[WIRE_HEADER_SIZE];
	EngineRequest *request;
	size_t		length;			/* of header, fields and image */
	size_t		sent;
	AdapterSend adapter;		/* the answer to NEED */
	bool		needed;			/* NEED came */
	bool		deaf;			/* the engine takes no more bytes; it may still have said why */
	bool		started;
	Outcome		outcome;
	Status		status;			/* of OUTCOME_FAILED */
	EngineAnswer *answer;
} Call;

static Connection connection = {.socket = -1};
static uint64_t last_id = 0;

void
engine_disconnect(void)
{
	if (connection.events != NULL)
		FreeWaitEventSet(connection.events);
	connection.events = NULL;
	if (connection.socket >= 0)
	{
		close(connection.socket);
		ReleaseExternalFD();
	}
	connection.socket = -1;
	connection.greeted = false;
	connection.input_start = connection.input_end = 0;
	if (connection.input != NULL)
		pfree(connection.input);
	connection.input = NULL;
	connection.input_size = 0;
}

/* Open a socket without blocking and begin to count it. */
static void
open_socket(void)
{
	ReserveExternalFD();
	connection.socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (connection.socket < 0)
	{
		ReleaseExternalFD();
		ereport(ERROR, (errcode_for_socket_access(), errmsg("could not create socket: %m")));
	}
}

/* Make the event set of a connected socket. */
static void
prepare_connection(void)
{
	connection.events = compat_create_wait_event_set(3);
	AddWaitEventToSet(connection.events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(connection.events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(connection.events, WL_SOCKET_READABLE, connection.socket, NULL, NULL);
	connection.input = MemoryContextAlloc(TopMemoryContext, INPUT_START_SIZE);
	connection.input_size = INPUT_START_SIZE;
}

/* Connect, however long it takes until somebody listens. */
static void
connect_engine(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	SupervisorSearch search = {0};

	strlcpy(address.sun_path, SUPERVISOR_SOCKET_PATH, sizeof(address.sun_path));
	for (;;)
	{
		open_socket();
		if (connect(connection.socket, (struct sockaddr *) &address, sizeof(address)) == 0)
			break;
		if (errno == ENOENT || errno == ECONNREFUSED)
		{
			engine_disconnect();
			supervisor_search(&search);
		}
		else if (errno == EAGAIN || errno == EINTR)
		{
			engine_disconnect();
			supervisor_pause(BACKLOG_FULL_MS);
		}
		else
			ereport(ERROR,
					(errcode_for_socket_access(),
					 errmsg("could not connect to the mmgpt engine: %m")));
	}
	supervisor_search_end(&search);
	prepare_connection();
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

/* Wait until the socket can be read (or written, where asked), handling interrupts. */
static void
wait_for_socket(bool writing)
{
	static uint64_t client_checked = 0;
	WaitEvent	event;
	int			count;

	ModifyWaitEvent(connection.events, SOCKET_EVENT,
					writing ? WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE,
					NULL);
	count = WaitEventSetWait(connection.events, CLIENT_CHECK_MS, &event, 1, compat_wait_event());
	if (count > 0 && (event.events & WL_LATCH_SET) != 0)
		ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (clock_now_ns() - client_checked >= CLIENT_CHECK_MS * NS_PER_MS)
	{
		check_client();
		client_checked = clock_now_ns();
	}
}

/* Make room for at least so many more bytes of input. */
static void
reserve_input(size_t bytes)
{
	size_t		pending = connection.input_end - connection.input_start;

	if (connection.input_size - connection.input_end >= bytes)
		return;
	memmove(connection.input, connection.input + connection.input_start, pending);
	connection.input_start = 0;
	connection.input_end = pending;
	if (connection.input_size - pending < bytes)
	{
		size_t		size = Max(pending + bytes, 2 * connection.input_size);

		connection.input = repalloc_huge(connection.input, size);
		connection.input_size = size;
	}
}

/* Read what is there; false when the engine is gone. */
static bool
read_input(void)
{
	ssize_t		count;

	reserve_input(READ_LEAST);
	count = recv(connection.socket, connection.input + connection.input_end,
				 connection.input_size - connection.input_end, MSG_DONTWAIT);
	if (count > 0)
	{
		connection.input_end += (size_t) count;
		return true;
	}
	return count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

/* Raise the error for bytes that are no conversation. */
static void
raise_protocol_violation(const char *what)
{
	engine_disconnect();
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("the mmgpt engine sent %s", what)));
}

/* Take the next whole frame of the input; payload is valid until the next read. */
static bool
take_frame(WireHeader *header, const uint8_t **payload)
{
	size_t		pending = connection.input_end - connection.input_start;
	const uint8_t *bytes = connection.input + connection.input_start;

	if (pending < WIRE_HEADER_SIZE)
		return false;
	if (!wire_header_read(bytes, header))
		raise_protocol_violation("a frame of unknown form");
	if (pending - WIRE_HEADER_SIZE < header->length)
	{
		reserve_input(WIRE_HEADER_SIZE + header->length - pending);
		return false;
	}
	*payload = bytes + WIRE_HEADER_SIZE;
	connection.input_start += WIRE_HEADER_SIZE + header->length;
	return true;
}

/* Read the fields of a payload, or raise an error. */
static void
read_fields(const uint8_t *payload, size_t length, WireFields *fields)
{
	Status		status;

	status_clear(&status);
	if (!wire_fields_read(payload, length, fields, &status))
	{
		engine_disconnect();
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

/* Check that library and engine speak the same language. */
static void
take_hello(const uint8_t *payload, size_t length)
{
	WireFields	fields;
	uint32_t	version;

	read_fields(payload, length, &fields);
	version = wire_get_u32(&fields, WIRE_FIELD_WIRE_VERSION, 0);
	if (version != WIRE_VERSION)
	{
		engine_disconnect();
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the mmgpt engine and this session's mmgpt library are of different versions"),
			 errdetail("The engine speaks version %u of their protocol, the library version %u.",
					   version, (uint32_t) WIRE_VERSION),
			 errhint("%s", upgrade_hint(version))));
	}
	connection.greeted = true;
}

/* Keep the answer: copy the payload out of the input. */
static void
take_answer(Call *call, const uint8_t *payload, size_t length)
{
	uint8_t    *copy = palloc(Max(length, 1));

	memcpy(copy, payload, length);
	read_fields(copy, length, &call->answer->fields);
	call->outcome = OUTCOME_ANSWERED;
}

/* Keep the error. One of id 0 comes from the supervisor, which then hangs up. */
static void
take_error(Call *call, const WireHeader *header, const uint8_t *payload)
{
	WireFields	fields;

	read_fields(payload, header->length, &fields);
	wire_get_status(&fields, &call->status);
	call->outcome = OUTCOME_FAILED;
	if (header->id == 0)
		engine_disconnect();
}

/* Begin to send the adapter. */
static void
take_need(Call *call)
{
	struct AdapterRow *row = call->request->adapter;
	size_t		length;
	char	   *config;

	if (row == NULL || call->needed || call->sent < call->length)
		raise_protocol_violation("an unexpected request for an adapter");
	config = adapter_config_text(row->config, &length);
	adapter_send_begin(&call->adapter, call->id, row->id, row->bytes, config, length);
	call->needed = true;
}

/* Handle all frames that have arrived. */
static void
take_frames(Call *call)
{
	WireHeader	header;
	const uint8_t *payload;

	while (call->outcome == OUTCOME_NONE && take_frame(&header, &payload))
	{
		if (header.type == WIRE_HELLO)
			take_hello(payload, header.length);
		else if (header.type == WIRE_ERROR && (header.id == call->id || header.id == 0))
			take_error(call, &header, payload);
		else if (header.id != call->id)
			continue;
		else if (header.type == WIRE_STARTED)
			call->started = true;
		else if (header.type == WIRE_NEED)
			take_need(call);
		else if (header.type == WIRE_ANSWER)
			take_answer(call, payload, header.length);
	}
}

/* Describe the bytes that were not sent yet; returns the number of parts. */
static int
unsent_parts(const Call *call, struct iovec parts[3])
{
	struct iovec all[3] = {
		{(void *) call->header, WIRE_HEADER_SIZE},
		{call->request->writer.bytes, call->request->writer.used},
		{(void *) call->request->image, call->request->image_length},
	};
	size_t		skip = call->sent;
	int			count = 0;

	for (int i = 0; i < 3; i++)
	{
		if (skip < all[i].iov_len)
		{
			parts[count].iov_base = (uint8_t *) all[i].iov_base + skip;
			parts[count++].iov_len = all[i].iov_len - skip;
			skip = 0;
		}
		else
			skip -= all[i].iov_len;
	}
	return count;
}

/* Whether a part of a frame was not sent yet. */
static bool
is_unsent(const Call *call)
{
	return call->sent < call->length || call->adapter.left > 0;
}

/* Send as much as the socket takes: the request, then the adapter where it is wanted. */
static void
send_some(Call *call)
{
	while (is_unsent(call))
	{
		bool		request = call->sent < call->length;
		struct iovec parts[3];
		struct msghdr message = {.msg_iov = parts,.msg_iovlen = 1};
		ssize_t		count;

		if (request)
			message.msg_iovlen = (size_t) unsent_parts(call, parts);
		else
			parts[0] = adapter_send_part(&call->adapter);
		count = sendmsg(connection.socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (count > 0 && request)
			call->sent += (size_t) count;
		else if (count > 0)
			adapter_send_advance(&call->adapter, (size_t) count);
		else if (errno == EINTR)
			continue;
		else
		{
			call->deaf = errno != EAGAIN && errno != EWOULDBLOCK;
			return;
		}
	}
}

/* Send and receive until the call has an outcome. */
static void
converse(Call *call)
{
	if (connection.socket < 0)
		connect_engine();
	for (;;)
	{
		bool		unsent;

		take_frames(call);
		if (call->outcome != OUTCOME_NONE)
			return;
		if (connection.greeted && !call->deaf)
			send_some(call);
		unsent = connection.greeted && !call->deaf && is_unsent(call);
		wait_for_socket(unsent);
		if (!read_input())
		{
			engine_disconnect();
			call->outcome = call->started ? OUTCOME_LOST_RUNNING : OUTCOME_LOST_WAITING;
			return;
		}
	}
}

/* Tell the engine that nobody waits for the answer any more. Raises nothing. */
static void
abandon(const Call *call)
{
	WireHeader	header = {.type = WIRE_CANCEL,.id = call->id};
	uint8_t		frame[WIRE_HEADER_SIZE];

	if (connection.input == NULL)
		engine_disconnect();	/* it was not made completely */
	if (connection.socket < 0 || call->sent == 0)
		return;
	wire_header_write(&header, frame);
	if (is_unsent(call) ||
		send(connection.socket, frame, sizeof(frame), MSG_NOSIGNAL | MSG_DONTWAIT) !=
		(ssize_t) sizeof(frame))
		engine_disconnect();
}

/* Send the request once and wait; the answer lies in call->answer, an error in call->status. */
static Outcome
call_once(Call *call, EngineRequest *request, EngineAnswer *answer)
{
	WireHeader	header = {.type = WIRE_REQUEST};

	memset(call, 0, sizeof(*call));
	call->id = header.id = ++last_id;
	call->request = request;
	call->answer = answer;
	header.length = (uint32_t) (request->writer.used + request->image_length);
	wire_header_write(&header, call->header);
	call->length = WIRE_HEADER_SIZE + (size_t) header.length;
	PG_TRY();
	{
		converse(call);
	}
	PG_CATCH();
	{
		abandon(call);
		PG_RE_THROW();
	}
	PG_END_TRY();
	/* an engine that answers before it has read everything leaves the stream inside a frame */
	if (connection.socket >= 0 && is_unsent(call))
		engine_disconnect();
	return call->outcome;
}

/* Mark the request, which was lost once, to be worked on alone. */
static void
mark_alone(EngineRequest *request)
{
	uint32_t	flags = WIRE_FLAG_ALONE;

	memcpy(request->writer.bytes + FLAGS_OFFSET, &flags, sizeof(flags));
}

/* Raise the error for a request that was lost while it ran alone. */
static void
raise_lost_twice(void)
{
	Status		status;

	status_clear(&status);
	status_set(&status, STATUS_ENGINE_LOST,
			   "the mmgpt engine ended twice while it worked on this call");
	status_detail(&status, "The second time it worked on nothing else. The engine was restarted, "
				  "and other calls were not affected.");
	status_hint(&status, "The server's log says how the engine ended.");
	status_raise(&status);
}

void
engine_ask(EngineRequest *request, EngineAnswer *answer)
{
	Call		call;
	bool		alone = false;

	if (request->writer.overflow)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("an mmgpt request overflowed")));
	for (;;)
	{
		switch (call_once(&call, request, answer))
		{
			case OUTCOME_ANSWERED:
				return;
			case OUTCOME_LOST_RUNNING:
				if (alone)
					raise_lost_twice();
				alone = true;
				mark_alone(request);
				break;
			case OUTCOME_LOST_WAITING:
				break;
			case OUTCOME_FAILED:
			case OUTCOME_NONE:
				status_raise(&call.status);
		}
	}
}
