/*
 * adapter_send.h - the answer to NEED: an adapter's files on their way to the engine.
 *
 * The frame is made while it is sent, piece by piece from the table, so that a backend never
 * holds more than one piece.
 */
#ifndef MMGPT_ADAPTER_SEND_H
#define MMGPT_ADAPTER_SEND_H

#include "postgres.h"

#include <sys/uio.h>

#include "wire_frame.h"

typedef struct AdapterSend
{
	MemoryContext context;		/* of the piece; NULL: nothing is sent */
	int64		id;				/* of the adapter */
	uint8_t    *head;			/* header, config, and head of the tensors' field */
	size_t		head_size;
	size_t		left;			/* bytes of the frame that were not sent yet */
	const uint8_t *part;		/* bytes that go next: of the head, or of a piece */
	size_t		part_left;
	int			next_piece;
} AdapterSend;

/*
 * Begin the frame that answers request `call` with the files of an adapter. Raises the errors of
 * adapter_table.h, here and in adapter_send_part.
 */
extern void adapter_send_begin(AdapterSend *sending, uint64_t call, int64 id, int64 bytes,
							   const char *config, size_t config_length);

/* The bytes that go next; there are some while sending->left > 0. */
extern struct iovec adapter_send_part(AdapterSend *sending);

/* Count bytes as sent. */
extern void adapter_send_advance(AdapterSend *sending, size_t count);

#endif
