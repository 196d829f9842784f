/*
 * engine_client.c - the backend's side of the conversation with the engine.
 *
 * Each backend keeps one connection to each engine that it asked (mostly there is one, see
 * engine_choice.c). A request gets an id, is sent, and the backend waits on an event set: its
 * latch, the postmaster's death, the socket.
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

#include "adapter_send.h"
#include "adapter_table.h"
#include "arguments.h"
#include "engine_board.h"
#include "engine_choice.h"
#include "engine_client.h"
#include "engine_connection.h"
#include "pg_compat.h"
#include "status_to_sqlstate.h"
#include "wire_frame.h"

#define ANY_ENGINE (-1)
#define FLAGS_OFFSET 8			/* of the value of FLAGS: after the head of the first field */

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
	EngineConnection *connection;	/* to the engine that was chosen */
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

static EngineConnection connections[ENGINES_MAX] = {[0 ... ENGINES_MAX - 1] = {.socket = -1}};
static uint64_t last_id = 0;

void
engine_disconnect(void)
{
	for (int i = 0; i < ENGINES_MAX; i++)
		engine_connection_close(&connections[i]);
}

/* Keep the answer: copy the payload out of the input. */
static void
take_answer(Call *call, const uint8_t *payload, size_t length)
{
	uint8_t    *copy = palloc(Max(length, 1));

	memcpy(copy, payload, length);
	engine_connection_fields(call->connection, copy, length, &call->answer->fields);
	call->outcome = OUTCOME_ANSWERED;
}

/* Keep the error. One of id 0 comes from the supervisor, which then hangs up. */
static void
take_error(Call *call, const WireHeader *header, const uint8_t *payload)
{
	WireFields	fields;

	engine_connection_fields(call->connection, payload, header->length, &fields);
	wire_get_status(&fields, &call->status);
	call->outcome = OUTCOME_FAILED;
	if (header->id == 0)
		engine_connection_close(call->connection);
}

/* Begin to send the adapter. */
static void
take_need(Call *call)
{
	struct AdapterRow *row = call->request->adapter;
	size_t		length;
	char	   *config;

	if (row == NULL || call->needed || call->sent < call->length)
		engine_connection_raise(call->connection, "an unexpected request for an adapter");
	config = request_json_text(row->config, &length);
	adapter_send_begin(&call->adapter, call->id, row->id, row->bytes, config, length);
	call->needed = true;
}

/* Handle all frames that have arrived. */
static void
take_frames(Call *call)
{
	WireHeader	header;
	const uint8_t *payload;

	while (call->outcome == OUTCOME_NONE &&
		   engine_connection_take(call->connection, &header, &payload))
	{
		if (header.type == WIRE_HELLO)
			engine_connection_greet(call->connection, payload, header.length);
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
		count = sendmsg(call->connection->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
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
	if (call->connection->socket < 0)
		engine_connection_open(call->connection, (int) (call->connection - connections));
	for (;;)
	{
		bool		unsent;

		take_frames(call);
		if (call->outcome != OUTCOME_NONE)
			return;
		if (call->connection->greeted && !call->deaf)
			send_some(call);
		unsent = call->connection->greeted && !call->deaf && is_unsent(call);
		(void) engine_connection_wait(call->connection, unsent, ENGINE_CHECK_MS);
		if (!engine_connection_read(call->connection))
		{
			engine_connection_close(call->connection);
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

	if (call->connection->input == NULL)
		engine_connection_close(call->connection);	/* it was not made completely */
	if (call->connection->socket < 0 || call->sent == 0)
		return;
	wire_header_write(&header, frame);
	if (is_unsent(call) ||
		send(call->connection->socket, frame, sizeof(frame), MSG_NOSIGNAL | MSG_DONTWAIT) !=
		(ssize_t) sizeof(frame))
		engine_connection_close(call->connection);
}

/* Ask one engine once; the answer lies in call->answer, an error in call->status. */
static Outcome
call_once(Call *call, EngineRequest *request, EngineAnswer *answer, int engine)
{
	WireHeader	header = {.type = WIRE_REQUEST};

	memset(call, 0, sizeof(*call));
	call->connection = &connections[engine];
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
	if (call->connection->socket >= 0 && is_unsent(call))
		engine_connection_close(call->connection);
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

/*
 * Ask one engine, or where that is ANY_ENGINE, the one to choose, as often as it takes. False, with
 * the reason in call->status, where it refuses.
 */
static bool
ask(Call *call, EngineRequest *request, EngineAnswer *answer, int engine)
{
	int			asked = engine == ANY_ENGINE ? engine_choose(request) : engine;
	int			refusals = 0;
	bool		alone = false;

	if (request->writer.overflow)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("an mmgpt request overflowed")));
	for (;;)
	{
		switch (call_once(call, request, answer, asked))
		{
			case OUTCOME_ANSWERED:
				return true;
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
				if (engine != ANY_ENGINE ||
					!engine_choose_again(request, &call->status, &refusals, &asked))
					return false;
				continue;
		}
		if (engine == ANY_ENGINE)
			asked = engine_choose(request);
	}
}

void
engine_ask(EngineRequest *request, EngineAnswer *answer)
{
	Call		call;

	if (!ask(&call, request, answer, ANY_ENGINE))
		status_raise(&call.status);
}

bool
engine_ask_one(EngineRequest *request, EngineAnswer *answer, int engine, Status *status)
{
	Call		call;

	if (ask(&call, request, answer, engine))
		return true;
	*status = call.status;
	return false;
}
