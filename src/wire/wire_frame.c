/*
 * wire_frame.c - headers of frames; see wire_frame.h.
 */
#include "wire_frame.h"

#include <string.h>

void
wire_header_write(const WireHeader *header, uint8_t *bytes)
{
	memcpy(bytes, &header->length, 4);
	memcpy(bytes + 4, &header->type, 4);
	memcpy(bytes + 8, &header->id, 8);
}

bool
wire_header_read(const uint8_t *bytes, WireHeader *header)
{
	memcpy(&header->length, bytes, 4);
	memcpy(&header->type, bytes + 4, 4);
	memcpy(&header->id, bytes + 8, 8);
	return header->type >= WIRE_HELLO && header->type <= WIRE_TYPE_LAST &&
		header->length <= WIRE_MAX_PAYLOAD;
}
