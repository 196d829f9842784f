/*
 * wire_message.c - fields of a payload; see wire_message.h.
 */
#include "wire_message.h"

#include <string.h>

#include "wire_frame.h"

#define FIELD_HEADER_SIZE 8

void
wire_writer_begin(WireWriter *writer, void *buffer, size_t size)
{
	writer->bytes = buffer;
	writer->size = size;
	writer->used = 0;
	writer->overflow = false;
}

void
wire_write_tail(WireWriter *writer, WireField field, size_t length)
{
	uint32_t	tag = (uint32_t) field;
	uint32_t	length32 = (uint32_t) length;

	if (writer->overflow || length > WIRE_MAX_PAYLOAD ||
		writer->size - writer->used < FIELD_HEADER_SIZE)
	{
		writer->overflow = true;
		return;
	}
	memcpy(writer->bytes + writer->used, &tag, 4);
	memcpy(writer->bytes + writer->used + 4, &length32, 4);
	writer->used += FIELD_HEADER_SIZE;
}

void
wire_write_bytes(WireWriter *writer, WireField field, const void *bytes, size_t length)
{
	if (writer->overflow || writer->size - writer->used < FIELD_HEADER_SIZE ||
		writer->size - writer->used - FIELD_HEADER_SIZE < length)
	{
		writer->overflow = true;
		return;
	}
	wire_write_tail(writer, field, length);
	if (writer->overflow)
		return;
	if (length > 0)
		memcpy(writer->bytes + writer->used, bytes, length);
	writer->used += length;
}

uint8_t *
wire_list_add(uint8_t *to, const void *text, uint32_t length)
{
	memcpy(to, &length, WIRE_LIST_HEADER_SIZE);
	if (length > 0)
		memcpy(to + WIRE_LIST_HEADER_SIZE, text, length);
	return to + WIRE_LIST_HEADER_SIZE + length;
}

bool
wire_list_next(const uint8_t *list, size_t length, size_t *at, const uint8_t **text,
			   uint32_t *text_length)
{
	size_t		left = length - *at;

	if (left < WIRE_LIST_HEADER_SIZE)
		return false;
	memcpy(text_length, list + *at, WIRE_LIST_HEADER_SIZE);
	if (left - WIRE_LIST_HEADER_SIZE < *text_length)
		return false;
	*text = list + *at + WIRE_LIST_HEADER_SIZE;
	*at += WIRE_LIST_HEADER_SIZE + (size_t) *text_length;
	return true;
}

void
wire_write_u32(WireWriter *writer, WireField field, uint32_t value)
{
	wire_write_bytes(writer, field, &value, sizeof(value));
}

void
wire_write_u64(WireWriter *writer, WireField field, uint64_t value)
{
	wire_write_bytes(writer, field, &value, sizeof(value));
}

void
wire_write_i64(WireWriter *writer, WireField field, int64_t value)
{
	wire_write_bytes(writer, field, &value, sizeof(value));
}

void
wire_write_f64(WireWriter *writer, WireField field, double value)
{
	wire_write_bytes(writer, field, &value, sizeof(value));
}

bool
wire_fields_read(const uint8_t *payload, size_t length, WireFields *fields, Status *status)
{
	size_t		at = 0;

	memset(fields, 0, sizeof(*fields));
	while (at < length)
	{
		uint32_t	tag;
		uint32_t	size;

		if (length - at < FIELD_HEADER_SIZE)
			return status_set(status, STATUS_PROTOCOL, "a message ends inside the head of a field");
		memcpy(&tag, payload + at, 4);
		memcpy(&size, payload + at + 4, 4);
		at += FIELD_HEADER_SIZE;
		if (length - at < size)
			return status_set(status, STATUS_PROTOCOL,
							  "a message ends inside field %u: %zu bytes of %u", tag, length - at,
							  size);
		if (tag <= WIRE_FIELD_LAST)
		{
			if (fields->bytes[tag] != NULL)
				return status_set(status, STATUS_PROTOCOL, "a message has field %u twice", tag);
			fields->bytes[tag] = payload + at;
			fields->length[tag] = size;
		}
		at += size;
	}
	return true;
}

bool
wire_has(const WireFields *fields, WireField field)
{
	return fields->bytes[field] != NULL;
}

/* Copy a field of exactly size bytes to value; leave value alone otherwise. */
static void
get_fixed(const WireFields *fields, WireField field, void *value, size_t size)
{
	if (fields->bytes[field] != NULL && fields->length[field] == size)
		memcpy(value, fields->bytes[field], size);
}

uint32_t
wire_get_u32(const WireFields *fields, WireField field, uint32_t fallback)
{
	get_fixed(fields, field, &fallback, sizeof(fallback));
	return fallback;
}

uint64_t
wire_get_u64(const WireFields *fields, WireField field, uint64_t fallback)
{
	get_fixed(fields, field, &fallback, sizeof(fallback));
	return fallback;
}

int64_t
wire_get_i64(const WireFields *fields, WireField field, int64_t fallback)
{
	get_fixed(fields, field, &fallback, sizeof(fallback));
	return fallback;
}

double
wire_get_f64(const WireFields *fields, WireField field, double fallback)
{
	get_fixed(fields, field, &fallback, sizeof(fallback));
	return fallback;
}

void
wire_write_status(WireWriter *writer, const Status *status)
{
	wire_write_u32(writer, WIRE_FIELD_CODE, (uint32_t) status->code);
	wire_write_bytes(writer, WIRE_FIELD_MESSAGE, status->message, strlen(status->message));
	if (status->detail[0] != '\0')
		wire_write_bytes(writer, WIRE_FIELD_DETAIL, status->detail, strlen(status->detail));
	if (status->hint[0] != '\0')
		wire_write_bytes(writer, WIRE_FIELD_HINT, status->hint, strlen(status->hint));
}

/* Copy a text field into a buffer of size bytes, NUL added; empty where absent. */
static void
get_text(const WireFields *fields, WireField field, char *buffer, size_t size)
{
	size_t		length = fields->bytes[field] == NULL ? 0 : fields->length[field];

	if (length > size - 1)
		length = size - 1;
	if (length > 0)
		memcpy(buffer, fields->bytes[field], length);
	buffer[length] = '\0';
}

void
wire_get_status(const WireFields *fields, Status *status)
{
	status_clear(status);
	status->code = (StatusCode) wire_get_u32(fields, WIRE_FIELD_CODE, STATUS_INTERNAL);
	get_text(fields, WIRE_FIELD_MESSAGE, status->message, sizeof(status->message));
	get_text(fields, WIRE_FIELD_DETAIL, status->detail, sizeof(status->detail));
	get_text(fields, WIRE_FIELD_HINT, status->hint, sizeof(status->hint));
}
