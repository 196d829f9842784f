/*
 * wire_frame.h - the unit of the conversation between a backend and the engine.
 *
 * Both ends run on one machine, so numbers travel in its byte order. A frame is
 * a header of 16 bytes and a payload of header.length bytes. The id is chosen by
 * the backend, one for each request; every frame that answers a request carries
 * its id, and frames with an unknown id are dropped by both sides, so that a
 * cancelled call leaves the connection usable.
 *
 * The conversation:
 *
 *	engine  -> HELLO						once, when the connection is accepted
 *	backend -> REQUEST(id)
 *	engine  -> PROGRESS(id)...				while a model is loading
 *	engine  -> NEED(id)						at most once: the engine lacks the request's adapter
 *	backend -> ADAPTER(id)					the answer to NEED: the adapter's files
 *	engine  -> STARTED(id)					before anything in the request is worked on
 *	engine  -> ANSWER(id) | ERROR(id)		the last frame of a request
 *	backend -> CANCEL(id)					any time; the answer, if one comes, is dropped
 *
 * A training is a number of requests on one connection, to which it belongs: closing the connection
 * frees it. At most one is open on a connection, and one in the engine; others wait for their turn.
 *
 *	TRAIN_OPEN							answered when it is this connection's turn
 *	TRAIN_ROW...						the rows, any number of them in flight
 *	TRAIN_START							no more rows; from a checkpoint, if there is one
 *	TRAIN_STEP...						work for a while; the answer tells what came out
 *	TRAIN_SAVE, TRAIN_ADAPTER			at any time between two TRAIN_STEPs
 *	TRAIN_CLOSE							the next one has its turn
 *
 * These have no STARTED: what they do is work on the training, not on the request. TRAIN_ENCODE,
 * which makes a row of texts and a picture, and EVALUATE are requests like any other, on any
 * connection.
 *
 * Where no engine could be kept running, the supervisor answers on its behalf: one
 * ERROR frame with id 0 in place of HELLO, and the connection is closed.
 *
 * Nothing here allocates.
 */
#ifndef MMGPT_WIRE_FRAME_H
#define MMGPT_WIRE_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Raised with every change of frames, messages or fields. */
#define WIRE_VERSION 4

#define WIRE_HEADER_SIZE 16

/*
 * No frame is larger, whatever a setting allows: what PostgreSQL's bytea can hold, and some fields.
 */
#define WIRE_MAX_PAYLOAD ((uint32_t) 1100 * 1024 * 1024)

typedef enum WireType
{
	WIRE_HELLO = 1,
	WIRE_REQUEST = 2,
	WIRE_CANCEL = 3,
	WIRE_STARTED = 4,
	WIRE_PROGRESS = 5,
	WIRE_ANSWER = 6,
	WIRE_ERROR = 7,
	WIRE_NEED = 8,
	WIRE_ADAPTER = 9,

	WIRE_TYPE_LAST = 9
} WireType;

typedef struct WireHeader
{
	uint32_t	length;			/* bytes of payload */
	uint32_t	type;			/* a WireType */
	uint64_t	id;				/* of the request; 0 in HELLO */
} WireHeader;

/* Write the header to 16 bytes. */
extern void wire_header_write(const WireHeader *header, uint8_t *bytes);

/* Read a header; false when type or length are out of range. */
extern bool wire_header_read(const uint8_t *bytes, WireHeader *header);

#endif
