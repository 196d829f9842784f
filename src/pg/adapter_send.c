/*
 * adapter_send.c - see adapter_send.h.
 */
#include "adapter_send.h"

#include "utils/memutils.h"

#include "adapter_table.h"
#include "pg_compat.h"
#include "wire_message.h"

void
adapter_send_begin(AdapterSend *sending, uint64_t call, int64 id, int64 bytes, const char *config,
				   size_t config_length)
{
	size_t		room = WIRE_HEADER_SIZE + config_length + WIRE_REQUEST_OVERHEAD;
	WireHeader	header = {.type = WIRE_ADAPTER,.id = call};
	WireWriter	writer;

	memset(sending, 0, sizeof(*sending));
	sending->id = id;
	sending->head = palloc(room);
	wire_writer_begin(&writer, sending->head + WIRE_HEADER_SIZE, room - WIRE_HEADER_SIZE);
	wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_CONFIG, config, config_length);
	wire_write_tail(&writer, WIRE_FIELD_ADAPTER_TENSORS, (size_t) bytes);
	if (writer.overflow || writer.used + (size_t) bytes > WIRE_MAX_PAYLOAD)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("adapter of %lld bytes is too large for the engine", (long long) bytes)));
	header.length = (uint32_t) (writer.used + (size_t) bytes);
	wire_header_write(&header, sending->head);
	sending->head_size = WIRE_HEADER_SIZE + writer.used;
	sending->left = WIRE_HEADER_SIZE + (size_t) header.length;
	sending->part = sending->head;
	sending->part_left = sending->head_size;
	sending->context = AllocSetContextCreate(CurrentMemoryContext, "mmgpt adapter",
											 ALLOCSET_SMALL_SIZES);
}

/* Read the next piece; its length must be that of the rest of the file, or of a whole piece. */
static void
read_piece(AdapterSend *sending)
{
	MemoryContext previous;
	bytea	   *piece;

	MemoryContextReset(sending->context);
	previous = MemoryContextSwitchTo(sending->context);
	piece = adapter_read_piece(sending->id, sending->next_piece,
							   Min(sending->left, ADAPTER_PIECE_SIZE));
	MemoryContextSwitchTo(previous);
	sending->part = (const uint8_t *) VARDATA(piece);
	sending->part_left = VARSIZE(piece) - VARHDRSZ;
	sending->next_piece++;
}

struct iovec
adapter_send_part(AdapterSend *sending)
{
	struct iovec part;

	if (sending->part_left == 0)
		read_piece(sending);
	part.iov_base = (void *) sending->part;
	part.iov_len = sending->part_left;
	return part;
}

void
adapter_send_advance(AdapterSend *sending, size_t count)
{
	sending->part += count;
	sending->part_left -= count;
	sending->left -= count;
	if (sending->left == 0)
		MemoryContextReset(sending->context);
}
