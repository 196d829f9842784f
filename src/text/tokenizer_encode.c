/*
 * tokenizer_encode.c - text to token ids.
 *
 * Two ways in. Plain text is one piece for SentencePiece, whatever it spells:
 * that is how everything a user typed is encoded. Text with marks is what the
 * original's tokenizer is given: it is cut at every spelling of a special token,
 * white space on the sides that touch one vanishes (Python's strip), pieces that
 * became empty are dropped, and every other piece is encoded on its own, each
 * with its own leading space. <unk> is the exception and strips nothing.
 *
 * SentencePiece takes about 330 bytes of memory for each byte that it encodes at
 * once, so a long text is handed to it in parts of about ENCODE_PART bytes. This
 * changes no id: a part ends before a space that follows another character, no
 * piece of the vocabulary reaches over such a place, merges happen within pieces
 * only, and the dummy prefix of the next part stands for the space left out.
 * tokenizer_measure checks of each vocabulary that this holds; where it does not,
 * a text stays whole.
 */
#include "tokenizer_state.h"

#include <limits.h>
#include <string.h>

#include "utf8.h"

#define TOKEN_LIST_FIRST_CAPACITY 64
#define ENCODE_PART ((size_t) 64 * 1024)
#define SPACE_MARK "\xE2\x96\x81"	/* U+2581, SentencePiece's spelling of a space */
#define SPACE_MARK_LENGTH 3

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

/* True when a piece spells a space behind another character. */
static bool
piece_reaches_over_space(const char *piece)
{
	const char *at = piece;

	while (strncmp(at, SPACE_MARK, SPACE_MARK_LENGTH) == 0)
		at += SPACE_MARK_LENGTH;
	return strstr(at, SPACE_MARK) != NULL;
}

/* True when encoding "a b" whole and in two parts gives the same ids. */
static bool
parts_join(const Tokenizer *tokenizer, Arena *arena, bool *join, Status *status)
{
	TokenList	whole;
	TokenList	parts;

	token_list_begin(&whole, arena);
	token_list_begin(&parts, arena);
	if (!sentencepiece_encode(tokenizer->model, "a b", 3, &whole, status) ||
		!sentencepiece_encode(tokenizer->model, "a", 1, &parts, status) ||
		!sentencepiece_encode(tokenizer->model, "b", 1, &parts, status))
		return false;
	*join = whole.count == parts.count && whole.count > 0 &&
		memcmp(whole.ids, parts.ids, (size_t) whole.count * sizeof(int32_t)) == 0;
	return true;
}

bool
tokenizer_measure(Tokenizer *tokenizer, Status *status)
{
	Arena	   *arena = arena_create();
	bool		good;

	if (arena == NULL)
		return status_out_of_memory(status, sizeof(TokenList));
	good = parts_join(tokenizer, arena, &tokenizer->splits_at_spaces, status);
	arena_free(arena);
	tokenizer->longest_piece = 1;
	for (int id = 0; id < tokenizer->base_vocabulary; id++)
	{
		const char *piece = sentencepiece_piece(tokenizer->model, id);
		size_t		length = strlen(piece);

		if (length > tokenizer->longest_piece)
			tokenizer->longest_piece = length;
		if (piece_reaches_over_space(piece))
			tokenizer->splits_at_spaces = false;
	}
	return good;
}

/* True when a space stands at the offset, and before it what is neither space nor space mark. */
static bool
can_cut(const char *text, size_t at)
{
	if (text[at] != ' ' || text[at - 1] == ' ')
		return false;
	return at < SPACE_MARK_LENGTH ||
		memcmp(text + at - SPACE_MARK_LENGTH, SPACE_MARK, SPACE_MARK_LENGTH) != 0;
}

/* Bytes to hand to SentencePiece next; a space follows them unless the text ends. */
static size_t
part_length(const Tokenizer *tokenizer, const char *text, size_t length)
{
	if (!tokenizer->splits_at_spaces)
		return length;
	/* A space that ends the text is no cut: the part after it would be empty. */
	for (size_t at = ENCODE_PART; at + 1 < length; at++)
		if (can_cut(text, at))
			return at;
	return length;
}

/* Set the status for what can't be encoded in parts. Always returns false. */
static bool
refuse_long_word(Status *status)
{
	status_set(status, STATUS_NOT_SUPPORTED, "text has a word longer than %zu bytes",
			   TOKENIZER_MAX_WORD);
	return status_detail(status, "A word is what stands between two single spaces.");
}

bool
tokenizer_encode_plain(const Tokenizer *tokenizer, const char *text, size_t length,
					   TokenList *ids, Status *status)
{
	if (!check_utf8(text, length, status))
		return false;
	while (length > 0)
	{
		size_t		part = part_length(tokenizer, text, length);

		if (part > TOKENIZER_MAX_WORD)
			return refuse_long_word(status);
		if (!sentencepiece_encode(tokenizer->model, text, part, ids, status))
			return false;
		/* The space at the cut is the dummy prefix of the next part. */
		if (part < length)
			part++;
		text += part;
		length -= part;
	}
	return true;
}

int
tokenizer_fewest_tokens(const Tokenizer *tokenizer, size_t length)
{
	size_t		fewest = length / tokenizer->longest_piece;

	return fewest < INT_MAX ? (int) fewest : INT_MAX;
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
