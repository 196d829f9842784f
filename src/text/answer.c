/*
 * answer.c - what is read out of an answer: where it ends, and the number in it.
 *
 * A model that was not stopped by its end token goes on with the next block of
 * the template; the answer is what stands before it.
 *
 * A count is the first whole number in an answer, written as a word of its own.
 * A word here is a run of letters and digits; a hyphen or an apostrophe inside it
 * belongs to it where a letter stands beside. So
 *
 *	"There are 3 dogs", "3."		3
 *	"No, there is no cat"			0
 *	"1,000 birds"					1000 (commas before groups of three)
 *	"2-3 dogs"						2
 *	"3.5 metres, 2 dogs"			2 (a decimal fraction counts nothing)
 *	"None", "another", "3D", "2nd"	no number
 *	"twenty-one", "two-year-old"	no number: better none than a wrong one
 *
 * Words are English, digits ASCII. A digit may stand next to letters beyond ASCII,
 * since Chinese and Japanese write no spaces around a number.
 */
#include "prompt_template.h"

#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

#include "utf8.h"

#define BLOCK_MARK "\n\n### "
#define GROUP_DIGITS 3			/* digits behind a comma in 1,000 */

/* Headings of the template's blocks; a colon follows. */
static const char *const block_names[] = {"Instruction:", "Response:", "Input:", "Image:"};

/* Words for numbers; the place in the list is the number. "no" is 0 too. */
static const char *const number_words[] = {
	"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
	"eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
	"nineteen", "twenty"
};

#define NUMBER_WORDS (sizeof(number_words) / sizeof(number_words[0]))

/* True when text begins with one of the headings. */
static bool
begins_with_block_name(const char *text, size_t length)
{
	for (size_t i = 0; i < sizeof(block_names) / sizeof(block_names[0]); i++)
	{
		size_t		name_length = strlen(block_names[i]);

		if (name_length <= length && memcmp(text, block_names[i], name_length) == 0)
			return true;
	}
	return false;
}

size_t
answer_find_stop(const char *text, size_t length)
{
	const size_t mark_length = strlen(BLOCK_MARK);

	for (size_t at = 0; at + mark_length <= length; at++)
		if (memcmp(text + at, BLOCK_MARK, mark_length) == 0 &&
			begins_with_block_name(text + at + mark_length, length - at - mark_length))
			return at;
	return length;
}

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool
is_ascii_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* True beyond ASCII for what is no punctuation, symbol or space, as near as ranges tell. */
static bool
is_other_letter(uint32_t c)
{
	return (c >= 0xC0 && c < 0x2000 && c != 0xD7 && c != 0xF7) || (c >= 0x2C00 && c < 0x2E00) ||
		(c >= 0x3040 && c < 0xFE00) || (c >= 0xFF10 && c < 0xFFF0) || c == 0xAA || c == 0xB5 ||
		c == 0xBA;
}

/* Bytes of the letter or digit at text; 0 when another character stands there. */
static size_t
alphanumeric_length(const char *text, size_t left)
{
	size_t		step = utf8_character_length(text, left);

	if (step == 1)
		return is_digit(*text) || is_ascii_letter(*text) ? 1 : 0;
	return step > 1 && is_other_letter(utf8_code_point(text, step)) ? step : 0;
}

/* Bytes of a hyphen or apostrophe at text; 0 when another character stands there. */
static size_t
joiner_length(const char *text, size_t left)
{
	size_t		step = utf8_character_length(text, left);

	if (step == 1)
		return *text == '-' || *text == '\'' ? 1 : 0;
	if (step == 3)
	{
		uint32_t	c = utf8_code_point(text, step);

		/* U+2010 and U+2011 are hyphens, U+2019 is the typographic apostrophe. */
		return c == 0x2010 || c == 0x2011 || c == 0x2019 ? step : 0;
	}
	return 0;
}

/* Length of the word at text, which begins with a letter or digit. */
static size_t
word_length(const char *text, size_t left)
{
	size_t		at = 0;

	for (;;)
	{
		size_t		step;
		size_t		joiner;

		while ((step = alphanumeric_length(text + at, left - at)) > 0)
			at += step;
		joiner = joiner_length(text + at, left - at);
		if (joiner == 0 || alphanumeric_length(text + at + joiner, left - at - joiner) == 0)
			return at;
		if (is_digit(text[at - 1]) && is_digit(text[at + joiner]))
			return at;
		at += joiner;
	}
}

/* Digits at text. */
static size_t
digits_length(const char *text, size_t left)
{
	size_t		at = 0;

	while (at < left && is_digit(text[at]))
		at++;
	return at;
}

/* Length of the digits at text with the commas between groups of three. */
static size_t
grouped_length(const char *text, size_t left)
{
	size_t		at = digits_length(text, left);

	if (at > GROUP_DIGITS)
		return at;
	while (at < left && text[at] == ',' &&
		   digits_length(text + at + 1, left - at - 1) == GROUP_DIGITS)
		at += 1 + GROUP_DIGITS;
	return at;
}

/* The value of digits and commas, or -1 when it exceeds an int. */
static int
grouped_value(const char *text, size_t length)
{
	int64_t		value = 0;

	for (size_t i = 0; i < length; i++)
	{
		if (!is_digit(text[i]))
			continue;
		value = value * 10 + (text[i] - '0');
		if (value > INT_MAX)
			return -1;
	}
	return (int) value;
}

/* The number that a word of letters stands for, or -1. */
static int
number_of_word(const char *word, size_t length)
{
	if (length == 2 && strncasecmp(word, "no", 2) == 0)
		return 0;
	for (size_t i = 0; i < NUMBER_WORDS; i++)
		if (strlen(number_words[i]) == length && strncasecmp(word, number_words[i], length) == 0)
			return (int) i;
	return -1;
}

/* How a run of digits at text goes on. */
typedef enum DigitsKind
{
	DIGITS_NUMBER,
	DIGITS_FRACTION,			/* a decimal point and digits follow */
	DIGITS_IN_WORD				/* an ASCII letter, or a hyphen and a letter, follows */
} DigitsKind;

/*
 * Examine digits at text; *length becomes what belongs to them: the number, the
 * whole fraction or the whole word.
 */
static DigitsKind
examine_digits(const char *text, size_t left, size_t *length)
{
	size_t		number = grouped_length(text, left);
	size_t		word = word_length(text, left);

	*length = number;
	if (number + 1 < left && text[number] == '.' && is_digit(text[number + 1]))
	{
		*length = number + 1 + digits_length(text + number + 1, left - number - 1);
		return DIGITS_FRACTION;
	}
	if (word > number && utf8_character_length(text + number, left - number) == 1)
	{
		*length = word;
		return DIGITS_IN_WORD;
	}
	return DIGITS_NUMBER;
}

/* The first digit in a word of letters beyond ASCII only, or length: "有3只" holds one. */
static size_t
digit_behind_other_letters(const char *word, size_t length)
{
	size_t		at = 0;

	while (at < length && (unsigned char) word[at] >= 0x80)
		at++;
	return at < length && is_digit(word[at]) ? at : length;
}

bool
answer_find_number(const char *text, size_t length, int *number)
{
	size_t		at = 0;

	while (at < length)
	{
		size_t		left = length - at;
		size_t		step;

		if (is_digit(text[at]))
		{
			if (examine_digits(text + at, left, &step) == DIGITS_NUMBER)
			{
				*number = grouped_value(text + at, step);
				return *number >= 0;
			}
		}
		else if (alphanumeric_length(text + at, left) > 0)
		{
			step = word_length(text + at, left);
			*number = number_of_word(text + at, step);
			if (*number >= 0)
				return true;
			step = digit_behind_other_letters(text + at, step);
		}
		else
			step = 1;
		at += step;
	}
	return false;
}

bool
answer_settles_number(const char *text, size_t length)
{
	int			number;

	/* no word, group of digits or fraction goes on across a space */
	while (length > 0 && text[length - 1] != ' ' && text[length - 1] != '\n')
		length--;
	return answer_find_number(text, length, &number);
}
