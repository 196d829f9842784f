/*
 * status.c - codes and texts of failures; see status.h.
 */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "utf8.h"

/*
 * Replace bytes that are not UTF-8 by question marks: texts quote what was read, which
 * a precision or another library may have cut inside a character.
 */
static void
repair_text(char *text)
{
	size_t		length = strlen(text);
	size_t		at = utf8_valid_prefix(text, length);

	while (at < length)
	{
		text[at] = '?';
		at += utf8_valid_prefix(text + at, length - at);
	}
}

/*
 * Format into a buffer and, where the text does not fit, cut it so that no
 * UTF-8 character is left half.
 */
static void
format_text(char *buffer, size_t size, const char *format, va_list arguments)
{
	int			length = vsnprintf(buffer, size, format, arguments);
	size_t		end;

	if (length < 0)
	{
		buffer[0] = '\0';
		return;
	}
	if ((size_t) length >= size)
	{
		end = size - 1;
		while (end > 0 && ((unsigned char) buffer[end - 1] & 0xC0) == 0x80)
			end--;
		if (end > 0 && (unsigned char) buffer[end - 1] >= 0xC0)
			end--;
		buffer[end] = '\0';
	}
	repair_text(buffer);
}

void
status_clear(Status *status)
{
	status->code = STATUS_SUCCESS;
	status->message[0] = '\0';
	status->detail[0] = '\0';
	status->hint[0] = '\0';
}

bool
status_good(const Status *status)
{
	return status->code == STATUS_SUCCESS;
}

bool
status_set(Status *status, StatusCode code, const char *format, ...)
{
	va_list		arguments;

	status_clear(status);
	status->code = code;
	va_start(arguments, format);
	format_text(status->message, sizeof(status->message), format, arguments);
	va_end(arguments);
	return false;
}

bool
status_detail(Status *status, const char *format, ...)
{
	va_list		arguments;

	va_start(arguments, format);
	format_text(status->detail, sizeof(status->detail), format, arguments);
	va_end(arguments);
	return false;
}

bool
status_hint(Status *status, const char *format, ...)
{
	va_list		arguments;

	va_start(arguments, format);
	format_text(status->hint, sizeof(status->hint), format, arguments);
	va_end(arguments);
	return false;
}

bool
status_out_of_memory(Status *status, size_t size)
{
	status_set(status, STATUS_OUT_OF_MEMORY, "out of memory");
	return status_detail(status, "Failed to allocate %zu bytes.", size);
}

bool
status_prefix(Status *status, const char *format, ...)
{
	char		old[STATUS_MESSAGE_SIZE];
	char		prefix[STATUS_MESSAGE_SIZE];
	va_list		arguments;

	memcpy(old, status->message, sizeof(old));
	va_start(arguments, format);
	format_text(prefix, sizeof(prefix), format, arguments);
	va_end(arguments);
	snprintf(status->message, sizeof(status->message), "%.*s: %.*s", 200, prefix, 300, old);
	repair_text(status->message);
	return false;
}
