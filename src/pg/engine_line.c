/*
 * engine_line.c - see engine_line.h.
 *
 * While a request is sent, all that arrives is read and kept for engine_line_receive, so that
 * neither side waits for the other.
 */
#include "postgres.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "adapter_send.h"
#include "adapter_table.h"
#include "arguments.h"
#include "clock.h"
#include "engine_choice.h"
#include "engine_line.h"
#include "status_to_sqlstate.h"

#define NS_PER_MS UINT64CONST(1000000)

void
engine_line_begin(EngineLine *line, struct AdapterRow *adapter)
{
	memset(line, 0, sizeof(*line));
	line->adapter = adapter;
	line->connection.socket = -1;
	status_clear(&line->refusal);
}

void
engine_line_close(EngineLine *line)
{
	engine_connection_close(&line->connection);
	line->deaf = false;
	status_clear(&line->refusal);
}

/* Wait for HELLO, or the refusal of the supervisor. False when it is not HELLO. */
static bool
greet(EngineLine *line)
{
	EngineConnection *connection = &line->connection;
	WireHeader	header;
	const uint8_t *payload;
	WireFields	fields;

	while (!engine_connection_take(connection, &header, &payload))
	{
		(void) engine_connection_wait(connection, false, ENGINE_CHECK_MS);
		if (!engine_connection_read(connection))
			return false;
	}
	if (header.type == WIRE_HELLO)
	{
		engine_connection_greet(connection, payload, header.length);
		return true;
	}
	if (header.type != WIRE_ERROR || header.id != 0)
		engine_connection_raise(connection, "something else before its greeting");
	engine_connection_fields(connection, payload, header.length, &fields);
	wire_get_status(&fields, &line->refusal);
	return false;
}

/* Wait until there is a connection to an engine, or raise the supervisor's error. */
static void
connect_line(EngineLine *line)
{
	int			engine = engine_choose(NULL);
	int			refusals = 0;

	while (line->connection.socket < 0)
	{
		status_clear(&line->refusal);
		engine_connection_open(&line->connection, engine);
		if (greet(line))
			return;
		engine_connection_close(&line->connection);
		if (status_good(&line->refusal))
			engine = engine_choose(NULL);
		else if (!engine_choose_again(NULL, &line->refusal, &refusals, &engine))
			status_raise(&line->refusal);
	}
}

/* Send bytes whole, and read meanwhile. */
static void
send_parts(EngineLine *line, struct iovec *parts, int count)
{
	EngineConnection *connection = &line->connection;

	while (count > 0 && !line->deaf)
	{
		struct msghdr message = {.msg_iov = parts,.msg_iovlen = (size_t) count};
		ssize_t		sent = sendmsg(connection->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent < 0 && errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)
			line->deaf = true;
		else if (sent < 0 && errno != EINTR)
		{
			(void) engine_connection_wait(connection, true, ENGINE_CHECK_MS);
			line->deaf = !engine_connection_read(connection);
		}
		for (; sent >= 0 && count > 0 && (size_t) sent >= parts->iov_len; count--, parts++)
			sent -= (ssize_t) parts->iov_len;
		if (sent > 0 && count > 0)
		{
			parts->iov_base = (uint8_t *) parts->iov_base + sent;
			parts->iov_len -= (size_t) sent;
		}
	}
}

uint64_t
engine_line_send(EngineLine *line, const EngineRequest *request)
{
	size_t		length = request->writer.used + request->image_length;
	uint64_t	id = ++line->last_id;
	WireHeader	header = {.length = (uint32_t) length,.type = WIRE_REQUEST,.id = id};
	uint8_t		head[WIRE_HEADER_SIZE];
	struct iovec parts[3] = {
		{head, sizeof(head)},
		{request->writer.bytes, request->writer.used},
		{(void *) request->image, request->image_length},
	};

	if (request->writer.overflow || length > WIRE_MAX_PAYLOAD)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a request of %zu bytes is too large for the mmgpt engine", length)));
	connect_line(line);
	wire_header_write(&header, head);
	send_parts(line, parts, 3);
	return id;
}

/* Send the adapter that the engine lacks. */
static void
send_adapter(EngineLine *line, uint64_t id)
{
	AdapterSend sending;
	size_t		length;
	char	   *config;

	if (line->adapter == NULL)
		engine_connection_raise(&line->connection, "an unexpected request for an adapter");
	config = request_json_text(line->adapter->config, &length);
	adapter_send_begin(&sending, id, line->adapter->id, line->adapter->bytes, config, length);
	while (sending.left > 0 && !line->deaf)
	{
		struct iovec part = adapter_send_part(&sending);
		size_t		size = part.iov_len;

		send_parts(line, &part, 1);
		adapter_send_advance(&sending, size);
	}
}

/* Keep what a frame says beyond the next read. */
static void
keep_fields(EngineLine *line, const WireHeader *header, const uint8_t *payload, WireFields *fields)
{
	uint8_t    *copy = palloc_extended(Max(header->length, 1), MCXT_ALLOC_HUGE);

	memcpy(copy, payload, header->length);
	engine_connection_fields(&line->connection, copy, header->length, fields);
}

/* Take the next frame that answers a request, if one has arrived. */
static LineEvent
take_event(EngineLine *line, uint64_t *id, EngineAnswer *answer, Status *status)
{
	EngineConnection *connection = &line->connection;
	WireHeader	header;
	const uint8_t *payload;
	WireFields	fields;

	while (engine_connection_take(connection, &header, &payload))
	{
		*id = header.id;
		if (header.type == WIRE_NEED)
			send_adapter(line, header.id);
		else if (header.type == WIRE_ANSWER)
		{
			keep_fields(line, &header, payload, &answer->fields);
			return LINE_ANSWER;
		}
		else if (header.type == WIRE_ERROR)
		{
			engine_connection_fields(connection, payload, header.length, &fields);
			wire_get_status(&fields, status);
			return LINE_ERROR;
		}
	}
	return LINE_NOTHING;
}

LineEvent
engine_line_receive(EngineLine *line, long milliseconds, uint64_t *id, EngineAnswer *answer,
			 Status *status)
{
	uint64_t	end = clock_now_ns() + (uint64_t) milliseconds * NS_PER_MS;

	if (line->connection.socket < 0)
		return LINE_LOST;
	for (;;)
	{
		LineEvent	event = take_event(line, id, answer, status);
		uint64_t	now = clock_now_ns();

		if (event != LINE_NOTHING)
			return event;
		if (!engine_connection_read(&line->connection))
		{
			engine_line_close(line);
			return LINE_LOST;
		}
		event = take_event(line, id, answer, status);
		if (event != LINE_NOTHING || now >= end)
			return event;
		(void) engine_connection_wait(&line->connection, false,
									  Min((long) ((end - now) / NS_PER_MS) + 1, ENGINE_CHECK_MS));
	}
}
