/*
 * connection.c - see connection.h.
 */
#include "connection.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

Connection *
connection_create(int fd)
{
	Connection *connection = calloc(1, sizeof(Connection));

	if (connection == NULL)
		return NULL;
	connection->fd = fd;
	connection->output_end = &connection->output;
	return connection;
}

static void
output_free(Output *output)
{
	if (output->release != NULL)
		output->release(output->argument);
	free(output);
}

void
connection_free(Connection *connection)
{
	while (connection->output != NULL)
	{
		Output	   *output = connection->output;

		connection->output = output->next;
		output_free(output);
	}
	free(connection->payload);
	close(connection->fd);
	free(connection);
}

/* Fill a buffer up to size, in turns; READ_FRAME when it is full. */
static ReadResult
fill(Connection *connection, uint8_t *buffer, size_t size, size_t *filled)
{
	size_t		most = size - *filled > CONNECTION_TURN ? *filled + CONNECTION_TURN : size;

	while (*filled < most)
	{
		ssize_t		length = recv(connection->fd, buffer + *filled, most - *filled, MSG_DONTWAIT);

		if (length > 0)
			*filled += (size_t) length;
		else if (length < 0 && errno == EINTR)
			continue;
		else if (length < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return READ_AGAIN;
		else
			return READ_CLOSED;
	}
	return most < size ? READ_AGAIN : READ_FRAME;
}

ReadResult
connection_read(Connection *connection)
{
	ReadResult	result;

	if (!connection->has_header)
	{
		result = fill(connection, connection->header_bytes, WIRE_HEADER_SIZE,
					  &connection->header_filled);
		if (result != READ_FRAME)
			return result;
		if (!wire_header_read(connection->header_bytes, &connection->header))
			return READ_CLOSED;
		connection->has_header = true;
		connection->payload_filled = 0;
	}
	if (connection->payload == NULL)
		return READ_HEADER;
	return fill(connection, connection->payload, connection->header.length,
				&connection->payload_filled);
}

bool
connection_allow_payload(Connection *connection)
{
	connection->payload = malloc(connection->header.length > 0 ? connection->header.length : 1);
	return connection->payload != NULL;
}

uint8_t *
connection_take_payload(Connection *connection)
{
	uint8_t    *payload = connection->payload;

	connection->payload = NULL;
	connection->has_header = false;
	connection->header_filled = 0;
	return payload;
}

/* Write what is left of a frame's header and payload; as write(). */
static ssize_t
write_output(int fd, const Output *output)
{
	size_t		header = output->sent < WIRE_HEADER_SIZE ? WIRE_HEADER_SIZE - output->sent : 0;
	size_t		at = output->sent + header - WIRE_HEADER_SIZE;
	size_t		left = output->length - at;
	struct iovec parts[2] = {
		{(uint8_t *) output->header + WIRE_HEADER_SIZE - header, header},
		{(uint8_t *) output->payload + at, left < CONNECTION_TURN ? left : CONNECTION_TURN},
	};

	return writev(fd, parts, 2);
}

bool
connection_flush(Connection *connection)
{
	size_t		turn = 0;

	while (connection->output != NULL && turn < CONNECTION_TURN)
	{
		Output	   *output = connection->output;
		ssize_t		sent = write_output(connection->fd, output);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return errno == EAGAIN || errno == EWOULDBLOCK;
		turn += (size_t) sent;
		output->sent += (size_t) sent;
		if (output->sent < WIRE_HEADER_SIZE + output->length)
			continue;
		connection->output = output->next;
		if (connection->output == NULL)
			connection->output_end = &connection->output;
		output_free(output);
	}
	return true;
}

/* Append a frame with room for a copy of its payload; NULL: out of memory. */
static Output *
append_output(Connection *connection, WireType type, uint64_t id, size_t length, size_t copied)
{
	WireHeader	header = {(uint32_t) length, (uint32_t) type, id};
	Output	   *output = calloc(1, sizeof(Output) + copied);

	if (output == NULL)
		return NULL;
	output->length = length;
	wire_header_write(&header, output->header);
	*connection->output_end = output;
	connection->output_end = &output->next;
	return output;
}

bool
connection_send(Connection *connection, WireType type, uint64_t id, const void *payload,
				size_t length)
{
	Output	   *output = append_output(connection, type, id, length, length);

	if (output == NULL)
		return false;
	output->payload = output->copy;
	if (length > 0)
		memcpy(output->copy, payload, length);
	return connection_flush(connection);
}

bool
connection_send_held(Connection *connection, WireType type, uint64_t id, const void *payload,
					 size_t length, OutputRelease release, void *argument)
{
	Output	   *output = append_output(connection, type, id, length, 0);

	if (output == NULL)
	{
		release(argument);
		return false;
	}
	output->payload = payload;
	output->release = release;
	output->argument = argument;
	return connection_flush(connection);
}
