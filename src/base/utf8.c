/*
 * utf8.c - UTF-8 as RFC 3629 defines it; see utf8.h.
 */
#include "utf8.h"

#include <string.h>

size_t
utf8_character_length(const char *text, size_t left)
{
	const uint8_t *b = (const uint8_t *) text;
	size_t		length;
	uint8_t		low = 0x80;
	uint8_t		high = 0xBF;

	if (left == 0)
		return 0;
	if (b[0] < 0x80)
		return 1;
	if (b[0] >= 0xC2 && b[0] <= 0xDF)
		length = 2;
	else if (b[0] >= 0xE0 && b[0] <= 0xEF)
		length = 3;
	else if (b[0] >= 0xF0 && b[0] <= 0xF4)
		length = 4;
	else
		return 0;
	if (left < length)
		return 0;
	/* The second byte excludes overlong forms, surrogates and what lies above U+10FFFF. */
	if (b[0] == 0xE0)
		low = 0xA0;
	else if (b[0] == 0xED)
		high = 0x9F;
	else if (b[0] == 0xF0)
		low = 0x90;
	else if (b[0] == 0xF4)
		high = 0x8F;
	if (b[1] < low || b[1] > high)
		return 0;
	for (size_t i = 2; i < length; i++)
		if ((b[i] & 0xC0) != 0x80)
			return 0;
	return length;
}

size_t
utf8_valid_prefix(const char *text, size_t length)
{
	size_t		at = 0;

	while (at < length)
	{
		size_t		step = utf8_character_length(text + at, length - at);

		if (step == 0)
			break;
		at += step;
	}
	return at;
}

size_t
utf8_repair(const char *text, size_t length, char *out)
{
	size_t		at = 0;
	size_t		written = 0;

	while (at < length)
	{
		size_t		step = utf8_character_length(text + at, length - at);

		if (step == 0 || text[at] == '\0')
		{
			memcpy(out + written, "\xEF\xBF\xBD", 3);
			written += 3;
			at++;
			continue;
		}
		memcpy(out + written, text + at, step);
		written += step;
		at += step;
	}
	return written;
}

uint32_t
utf8_code_point(const char *text, size_t length)
{
	const uint8_t *b = (const uint8_t *) text;

	switch (length)
	{
		case 1:
			return b[0];
		case 2:
			return (uint32_t) (b[0] & 0x1F) << 6 | (b[1] & 0x3F);
		case 3:
			return (uint32_t) (b[0] & 0x0F) << 12 | (uint32_t) (b[1] & 0x3F) << 6 | (b[2] & 0x3F);
		default:
			return (uint32_t) (b[0] & 0x07) << 18 | (uint32_t) (b[1] & 0x3F) << 12 |
				(uint32_t) (b[2] & 0x3F) << 6 | (b[3] & 0x3F);
	}
}
