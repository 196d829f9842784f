/*
 * fuzz.h - what the fuzz programs for texts and headers share: random numbers, damage, turns.
 *
 * A program defines a turn and calls fuzz_run from main. Turn NUMBER of a SEED depends on nothing
 * else, so that a failed turn can be run alone:
 *
 *	PROGRAM COUNT [SEED [NUMBER]]
 *
 * Turns take a good text and damage it, mostly by changes that keep it close to its
 * grammar: words of a dictionary put in, pieces doubled, moved or taken out. The
 * sanitizers are the judge; beside them a turn checks what the functions promise.
 */
#ifndef MMGPT_FUZZ_H
#define MMGPT_FUZZ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"
#include "utf8.h"

#define FUZZ_ROOM 512			/* bytes that damage may add */
#define FUZZ_MAX_PIECE 48
#define FUZZ_MAX_CHANGES 4

/* Bytes on the C heap with room to grow. */
typedef struct FuzzText
{
	char	   *bytes;
	size_t		length;
	size_t		room;
} FuzzText;

/* Runs one turn with the random numbers of *state. Returns false when a promise was broken. */
typedef bool (*FuzzTurn) (uint64_t *state);

/* What JSON readers and readers of numbers trip over. */
static const char *const fuzz_words[] = {
	"{", "}", "[", "]", "\"", ",", ":", "null", "true", "0", "-1", "1e999", "1.5", "-0",
	"2147483648", "4294967296", "9223372036854775807", "99999999999999999999", "\\u0000",
	"\\ud800", "\\\"", "\xC3\xA9\xC3\xA9\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xC3",
	"\xFF", "\xED\xA0\x80", "[[[[[[[[[[[[[[[[", "{\"a\":", "0123456789012345678901234567890123456",
};

/* A random number below limit (splitmix64). */
static inline uint64_t
fuzz_draw(uint64_t *state, uint64_t limit)
{
	uint64_t	z = *state += 0x9E3779B97F4A7C15;

	z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
	z = (z ^ z >> 27) * 0x94D049BB133111EB;
	return (z ^ z >> 31) % limit;
}

/* A copy of bytes with room for damage. */
static inline FuzzText
fuzz_text(const void *bytes, size_t length)
{
	FuzzText	text = {malloc(length + FUZZ_ROOM), length, length + FUZZ_ROOM};

	memcpy(text.bytes, bytes, length);
	return text;
}

/* Put bytes in at a place, unless there is no room. */
static inline void
fuzz_insert(FuzzText *text, size_t place, const char *bytes, size_t length)
{
	if (length > text->room - text->length)
		return;
	memmove(text->bytes + place + length, text->bytes + place, text->length - place);
	memcpy(text->bytes + place, bytes, length);
	text->length += length;
}

/* Double a piece of the text at another place. */
static inline void
fuzz_double(FuzzText *text, uint64_t *state, size_t place)
{
	char		piece[FUZZ_MAX_PIECE];
	size_t		from = fuzz_draw(state, text->length);
	size_t		length = 1 + fuzz_draw(state, FUZZ_MAX_PIECE);

	if (length > text->length - from)
		length = text->length - from;
	memcpy(piece, text->bytes + from, length);
	fuzz_insert(text, place, piece, length);
}

/* Take a piece out. */
static inline void
fuzz_cut(FuzzText *text, uint64_t *state, size_t place)
{
	size_t		length = 1 + fuzz_draw(state, FUZZ_MAX_PIECE / 4);

	if (length > text->length - place)
		length = text->length - place;
	memmove(text->bytes + place, text->bytes + place + length, text->length - place - length);
	text->length -= length;
}

/* Make one change. */
static inline void
fuzz_change(FuzzText *text, uint64_t *state)
{
	size_t		place;
	const char *word;

	if (text->length == 0)
		return;
	place = fuzz_draw(state, text->length);
	switch (fuzz_draw(state, 6))
	{
		case 0:
			fuzz_double(text, state, place);
			break;
		case 1:
			fuzz_cut(text, state, place);
			break;
		case 2:
			text->bytes[place] = (char) fuzz_draw(state, 256);
			break;
		case 3:
			text->bytes[place] = (char) (text->bytes[place] ^ 1 << fuzz_draw(state, 8));
			break;
		default:
			word = fuzz_words[fuzz_draw(state, sizeof(fuzz_words) / sizeof(fuzz_words[0]))];
			fuzz_insert(text, place, word, strlen(word));
	}
}

/* Make some changes, or none in one turn of eight; sometimes the end is lost. */
static inline void
fuzz_damage(FuzzText *text, uint64_t *state)
{
	if (fuzz_draw(state, 8) == 0)
		return;
	for (uint64_t changes = 1 + fuzz_draw(state, FUZZ_MAX_CHANGES); changes > 0; changes--)
		fuzz_change(text, state);
	if (text->length > 0 && fuzz_draw(state, 16) == 0)
		text->length = fuzz_draw(state, text->length);
}

/* Give up the room: a byte read behind the end is then found. Never gives NULL. */
static inline void
fuzz_tighten(FuzzText *text)
{
	char	   *exact = malloc(text->length > 0 ? text->length : 1);

	memcpy(exact, text->bytes, text->length);
	free(text->bytes);
	text->bytes = exact;
	text->room = text->length;
}

/* Print a promise that was broken. Returns false. */
static inline bool
fuzz_broken(const char *promise)
{
	printf("broken: %s\n", promise);
	return false;
}

/* True when a failure says in UTF-8 what is wrong. */
static inline bool
fuzz_says_why(const Status *status)
{
	const char *texts[] = {status->message, status->detail, status->hint};

	if (status_good(status) || status->message[0] == '\0')
		return fuzz_broken("a failure without code or message");
	for (int i = 0; i < 3; i++)
		if (utf8_valid_prefix(texts[i], strlen(texts[i])) != strlen(texts[i]))
		{
			printf("%s\n", texts[i]);
			return fuzz_broken("a failure that is not told in UTF-8");
		}
	return true;
}

/* Run the turns that the command line asks for. Returns the exit status. */
static inline int
fuzz_run(int argc, char **argv, FuzzTurn turn)
{
	uint64_t	count = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
	uint64_t	seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
	uint64_t	first = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
	uint64_t	failed = 0;

	if (count == 0)
	{
		fprintf(stderr, "usage: %s COUNT [SEED [NUMBER]]\n", argv[0]);
		return 2;
	}
	for (uint64_t number = first; number < first + count; number++)
	{
		uint64_t	state = seed * 0x100000001B3 + number;

		if (turn(&state))
			continue;
		printf("turn %llu of seed %llu broke a promise\n", (unsigned long long) number,
			   (unsigned long long) seed);
		failed++;
	}
	printf("%llu turns of seed %llu, %llu wrong\n", (unsigned long long) count,
		   (unsigned long long) seed, (unsigned long long) failed);
	return failed == 0 ? 0 : 1;
}

#endif
