/*
 * connection.c - see connection.h.
 */
#include "connection.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
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

void
connection_free(Connection *connection)
{
	while (connection->output != NULL)
	{
		Output	   *output = connection->output;

		connection->output = output->next;
		free(output);
	}
	free(connection->payload);
	close(connection->fd);
	free(connection);
}

/* Fill a buffer up to size; READ_FRAME when it is full. */
static ReadResult
fill(Connection *connection, uint8_t *buffer, size_t size, size_t *filled)
{
	while (*filled < size)
	{
		ssize_t		length = recv(connection->fd, buffer + *filled, size - *filled, MSG_DONTWAIT);

		if (length > 0)
			*filled += (size_t) length;
		else if (length < 0 && errno == EINTR)
			continue;
		else if (length < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return READ_AGAIN;
		else
			return READ_CLOSED;
	}
	return READ_FRAME;
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

bool
connection_flush(Connection *connection)
{
	while (connection->output != NULL)
	{
		Output	   *output = connection->output;
		ssize_t		sent = write(connection->fd, output->bytes + output->sent,
								 output->size - output->sent);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return errno == EAGAIN || errno == EWOULDBLOCK;
		output->sent += (size_t) sent;
		if (output->sent < output->size)
			return true;
		connection->output = output->next;
		if (connection->output == NULL)
			connection->output_end = &connection->output;
		free(output);
	}
	return true;
}

bool
connection_send(Connection *connection, WireType type, uint64_t id, const void *payload,
				size_t length)
{
	WireHeader	header = {(uint32_t) length, (uint32_t) type, id};
	Output	   *output = malloc(sizeof(Output) + WIRE_HEADER_SIZE + length);

	if (output == NULL)
		return false;
	output->next = NULL;
	output->size = WIRE_HEADER_SIZE + length;
	output->sent = 0;
	wire_header_write(&header, output->bytes);
	if (length > 0)
		memcpy(output->bytes + WIRE_HEADER_SIZE, payload, length);
	*connection->output_end = output;
	connection->output_end = &output->next;
	return connection_flush(connection);
}
