/*
 * engine_probe.c - see engine_probe.h.
 *
 * An engine that dies while it starts - a missing library, a model that does
 * not fit the memory - will die again, and callers should hear of it. An engine
 * that came up and died of a request, or was killed, should just be started
 * again. Neither the exit status nor the time tells the two apart, so each new
 * engine is asked how many tokens an empty text has, which it answers when its
 * model is loaded (or refuses when that failed, staying alive). What it wrote
 * can still be read after its end.
 */
#include "postgres.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "engine_probe.h"
#include "supervisor_file.h"
#include "wire_message.h"

#define PROBE_ID 1

void
engine_probe_clear(EngineProbe *probe)
{
	memset(probe, 0, sizeof(*probe));
	probe->socket = -1;
}

void
engine_probe_end(EngineProbe *probe)
{
	if (probe->socket >= 0)
		close(probe->socket);
	probe->socket = -1;
}

/* Write the question; returns the length of the frame. */
static size_t
write_question(uint8_t *frame, size_t size)
{
	WireHeader	header = {.type = WIRE_REQUEST,.id = PROBE_ID};
	WireWriter	writer;

	wire_writer_begin(&writer, frame + WIRE_HEADER_SIZE, size - WIRE_HEADER_SIZE);
	wire_write_u32(&writer, WIRE_FIELD_FLAGS, 0);
	wire_write_u32(&writer, WIRE_FIELD_KIND, WIRE_KIND_TOKEN_COUNT);
	wire_write_bytes(&writer, WIRE_FIELD_PROMPT, "", 0);
	header.length = (uint32_t) writer.used;
	wire_header_write(&header, frame);
	return WIRE_HEADER_SIZE + writer.used;
}

void
engine_probe_begin(EngineProbe *probe, int engine)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	uint8_t		frame[WIRE_HEADER_SIZE + WIRE_REQUEST_OVERHEAD];
	size_t		length = write_question(frame, sizeof(frame));

	engine_probe_end(probe);
	engine_probe_clear(probe);
	supervisor_socket_path(engine, address.sun_path, sizeof(address.sun_path));
	probe->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (probe->socket < 0)
		return;
	if (connect(probe->socket, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		send(probe->socket, frame, length, MSG_NOSIGNAL) != (ssize_t) length)
		engine_probe_end(probe);
}

/* Follow the stream of frames over some more bytes. */
static void
take_bytes(EngineProbe *probe, const uint8_t *bytes, size_t count)
{
	WireHeader	header;

	while (count > 0 && !probe->answered)
	{
		size_t		taken = probe->skip > 0 ? probe->skip : WIRE_HEADER_SIZE - probe->filled;

		taken = Min(taken, count);
		if (probe->skip > 0)
			probe->skip -= taken;
		else
		{
			memcpy(probe->header + probe->filled, bytes, taken);
			probe->filled += taken;
		}
		bytes += taken;
		count -= taken;
		if (probe->filled == WIRE_HEADER_SIZE)
		{
			probe->filled = 0;
			if (!wire_header_read(probe->header, &header))
				return;
			probe->skip = header.length;
			probe->refused = header.type == WIRE_ERROR;
			probe->answered = header.type == WIRE_STARTED || header.type == WIRE_ANSWER ||
				probe->refused;
		}
	}
}

bool
engine_probe_answered(EngineProbe *probe)
{
	uint8_t		bytes[1024];
	ssize_t		count;

	while (probe->socket >= 0 && !probe->answered)
	{
		count = recv(probe->socket, bytes, sizeof(bytes), MSG_DONTWAIT);
		if (count > 0)
			take_bytes(probe, bytes, (size_t) count);
		else if (count < 0 && errno == EINTR)
			continue;
		else if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return false;
		else
			break;
	}
	engine_probe_end(probe);
	return probe->answered;
}
