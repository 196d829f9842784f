/*
 * tokenizer_encode.c - text to token ids.
 *
 * Two ways in. Plain text is one piece for SentencePiece, whatever it spells:
 * that is how everything a user typed is encoded. Text with marks is what the
 * original's tokenizer is given: it is cut at every spelling of a special token,
 * white space on the sides that touch one vanishes (Python's strip), pieces that
 * became empty are dropped, and every other piece is encoded on its own, each
 * with its own leading space. <unk> is the exception and strips nothing.
 */
#include "tokenizer_state.h"

#include <limits.h>
#include <string.h>

#include "utf8.h"

#define TOKEN_LIST_FIRST_CAPACITY 64

void
token_list_begin(TokenList *list, Arena *arena)
{
	list->arena = arena;
	list->ids = NULL;
	list->count = 0;
	list->capacity = 0;
}

/* Double the room of a list. The old ids stay in the arena until it is freed. */
static bool
token_list_grow(TokenList *list, Status *status)
{
	int			capacity = TOKEN_LIST_FIRST_CAPACITY;
	int32_t    *ids;

	if (list->capacity > INT_MAX / 2)
		return status_out_of_memory(status, (size_t) list->capacity * sizeof(int32_t));
	if (list->capacity > 0)
		capacity = list->capacity * 2;
	ids = arena_take_array(list->arena, (size_t) capacity, sizeof(int32_t));
	if (ids == NULL)
		return status_out_of_memory(status, (size_t) capacity * sizeof(int32_t));
	if (list->count > 0)
		memcpy(ids, list->ids, (size_t) list->count * sizeof(int32_t));
	list->ids = ids;
	list->capacity = capacity;
	return true;
}

bool
token_list_add(TokenList *list, int32_t id, Status *status)
{
	if (list->count == list->capacity && !token_list_grow(list, status))
		return false;
	list->ids[list->count++] = id;
	return true;
}

/* True for what Python's str.isspace() calls white space. */
static bool
is_white_space(uint32_t c)
{
	return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
		c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
		c == 0x205F || c == 0x3000;
}

/* Bytes of the white space character that text begins with; 0 if it begins with another. */
static size_t
leading_space(const char *text, size_t length)
{
	size_t		step = utf8_character_length(text, length);

	return step > 0 && is_white_space(utf8_code_point(text, step)) ? step : 0;
}

/* Bytes of the white space character that text ends with; 0 if it ends with another. */
static size_t
trailing_space(const char *text, size_t length)
{
	size_t		start = length;

	if (length == 0)
		return 0;
	do
		start--;
	while (start > 0 && ((unsigned char) text[start] & 0xC0) == 0x80);
	return leading_space(text + start, length - start) == length - start ? length - start : 0;
}

const char *
tokenizer_strip(const char *text, size_t length, bool left, bool right, size_t *stripped_length)
{
	size_t		step;

	while (left && (step = leading_space(text, length)) > 0)
	{
		text += step;
		length -= step;
	}
	while (right && (step = trailing_space(text, length)) > 0)
		length -= step;
	*stripped_length = length;
	return text;
}

/* Check that text is UTF-8; the message says where it is not. */
static bool
check_utf8(const char *text, size_t length, Status *status)
{
	size_t		good = utf8_valid_prefix(text, length);

	if (good == length)
		return true;
	return status_set(status, STATUS_INVALID_TEXT, "text is not valid UTF-8 at byte offset %zu",
					  good);
}

bool
tokenizer_encode_plain(const Tokenizer *tokenizer, const char *text, size_t length,
					   TokenList *ids, Status *status)
{
	if (length == 0)
		return true;
	if (!check_utf8(text, length, status))
		return false;
	return sentencepiece_encode(tokenizer->model, text, length, ids, status);
}

/* The mark that text begins with, or NULL. */
static const SpecialMark *
mark_at(const Tokenizer *tokenizer, const char *text, size_t length)
{
	for (int i = 0; i < TOKENIZER_MARKS; i++)
	{
		const SpecialMark *mark = &tokenizer->marks[i];
		size_t		spelled = strlen(mark->spelling);

		if (spelled <= length && memcmp(text, mark->spelling, spelled) == 0)
			return mark;
	}
	return NULL;
}

/*
 * Find the first mark in text. *before is the number of bytes in front of it, all
 * of them when there is none (NULL).
 */
static const SpecialMark *
find_mark(const Tokenizer *tokenizer, const char *text, size_t length, size_t *before)
{
	const char *at = text;
	const char *end = text + length;

	while (at < end && (at = memchr(at, '<', (size_t) (end - at))) != NULL)
	{
		const SpecialMark *mark = mark_at(tokenizer, at, (size_t) (end - at));

		if (mark != NULL)
		{
			*before = (size_t) (at - text);
			return mark;
		}
		at++;
	}
	*before = length;
	return NULL;
}

bool
tokenizer_encode_special(const Tokenizer *tokenizer, const char *text, size_t length,
						 TokenList *ids, Status *status)
{
	const SpecialMark *previous = NULL;
	const SpecialMark *next;

	if (!check_utf8(text, length, status) || !token_list_add(ids, tokenizer->special.bos, status))
		return false;
	do
	{
		size_t		before;
		size_t		piece_length;
		const char *piece;

		next = find_mark(tokenizer, text, length, &before);
		piece = tokenizer_strip(text, before, previous != NULL && previous->strips,
								next != NULL && next->strips, &piece_length);
		if (!tokenizer_encode_plain(tokenizer, piece, piece_length, ids, status))
			return false;
		if (next != NULL)
		{
			size_t		consumed = before + strlen(next->spelling);

			if (!token_list_add(ids, next->id, status))
				return false;
			text += consumed;
			length -= consumed;
		}
		previous = next;
	} while (next != NULL);
	return true;
}
