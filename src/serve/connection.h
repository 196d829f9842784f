/*
 * connection.h - one backend's connection, as the IO thread sees it: bytes to frames and
 * frames to bytes. Never blocks.
 */
#ifndef MMGPT_CONNECTION_H
#define MMGPT_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire_frame.h"

/* Called when bytes are not needed any more. */
typedef void (*OutputRelease)(void *argument);

/* A frame on its way out. */
typedef struct Output
{
	struct Output *next;
	size_t		length;			/* of the payload */
	size_t		sent;			/* of header and payload */
	uint8_t		header[WIRE_HEADER_SIZE];
	const uint8_t *payload;
	OutputRelease release;		/* of the payload; NULL: it is `copy` */
	void	   *argument;
	uint8_t		copy[];
} Output;

typedef struct Connection
{
	int			fd;
	uint64_t	number;			/* its own, from 1 */
	int			started;		/* requests of it at work */
	struct Connection *next;	/* in the server's list */
	struct Connection *previous;
	bool		closing;		/* to be closed at the end of the turn */
	bool		paused;			/* not read from until others gave memory back */
	uint32_t	events;			/* what epoll watches */

	/* the frame being read */
	uint8_t		header_bytes[WIRE_HEADER_SIZE];
	size_t		header_filled;
	WireHeader	header;
	bool		has_header;
	uint8_t    *payload;		/* malloc'ed; NULL until it may be read */
	size_t		payload_filled;

	Output	   *output;			/* oldest first */
	Output	  **output_end;
} Connection;

typedef enum ReadResult
{
	READ_AGAIN,					/* nothing more now, or in this turn */
	READ_HEADER,				/* a header was read: connection_allow_payload or leave it */
	/* a whole frame: header and payload; take it with connection_take_payload */
	READ_FRAME,
	READ_CLOSED					/* end of file, error, or bytes that are no frame */
} ReadResult;

extern Connection *connection_create(int fd);
extern void connection_free(Connection *connection);

/* Bytes that are read from, or written to, one connection before others have their turn. */
#define CONNECTION_TURN ((size_t) 1 << 20)

/* Read until a header or a frame is complete, but no longer than a turn. */
extern ReadResult connection_read(Connection *connection);

/* Allocate the payload of the header that was read; false: out of memory. */
extern bool connection_allow_payload(Connection *connection);

/* Hand over the payload of a complete frame and be ready for the next header. */
extern uint8_t *connection_take_payload(Connection *connection);

/* Append a frame to the output and send what goes now. False: the connection is broken. */
extern bool connection_send(Connection *connection, WireType type, uint64_t id, const void *payload,
							size_t length);

/*
 * The same without a copy: the payload stays as it is until release(argument) is called, which
 * happens when it was sent, and when it can't be.
 */
extern bool connection_send_held(Connection *connection, WireType type, uint64_t id,
								 const void *payload, size_t length, OutputRelease release,
								 void *argument);

/* Send what is waiting, as much as goes in a turn. False: the connection is broken. */
extern bool connection_flush(Connection *connection);

#endif
