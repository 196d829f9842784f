/*
 * log.c - one line a message on standard error; see log.h.
 */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static EngineLogLevel lowest_level = ENGINE_LOG;

void
log_set_level(EngineLogLevel level)
{
	lowest_level = level;
}

const char *
log_level_name(EngineLogLevel level)
{
	static const char *const names[] = {"DEBUG", "LOG", "WARNING", "ERROR"};

	return names[level];
}

void
log_write(EngineLogLevel level, const char *format, ...)
{
	char		line[ENGINE_LOG_LINE_SIZE];
	va_list		arguments;
	int			length;
	int			body;
	ssize_t		written;

	if (level < lowest_level)
		return;
	length = snprintf(line, sizeof(line), "%s: ", log_level_name(level));
	va_start(arguments, format);
	body = vsnprintf(line + length, sizeof(line) - (size_t) length - 1, format, arguments);
	va_end(arguments);
	if (body < 0)
		return;
	length += body;
	if (length > (int) sizeof(line) - 2)
		length = (int) sizeof(line) - 2;
	for (int i = 0; i < length; i++)
		if (line[i] == '\n' || line[i] == '\r')
			line[i] = ' ';
	line[length++] = '\n';
	written = write(STDERR_FILENO, line, (size_t) length);
	(void) written;
}
