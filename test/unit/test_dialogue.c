/*
 * test_dialogue.c - histories as JSON, and what is read out of answers.
 */
#include "prompt_template.h"
#include "unit.h"
#include "utf8.h"

/* A text of the test as a part. */
#define PART(literal) ((TextPart) {(literal), strlen(literal)})

static const TextPart absent = {NULL, 0};

UNIT_TEST(dialogues_are_read)
{
	const char *history = "[{\"role\":\"user\",\"content\":\"What?\"},"
		" {\"content\":\"A \\u00e4 bus\", \"role\":\"assistant\", \"more\": 1234567890123456789}]";
	Arena	   *arena = arena_create();
	Dialogue	dialogue;
	Status		status;

	status_clear(&status);
	UNIT_CHECK(dialogue_read(NULL, 0, PART("p"), PART("i"), true, arena, &dialogue, &status));
	UNIT_CHECK(dialogue.count == 1 && dialogue.has_image);
	UNIT_EQUAL_TEXT(dialogue.rounds[0].prompt.text, "p");
	UNIT_EQUAL_TEXT(dialogue.rounds[0].input.text, "i");
	UNIT_CHECK(dialogue_read("[]", 2, PART("p"), absent, false, arena, &dialogue, &status));
	UNIT_CHECK(dialogue.count == 1 && dialogue.rounds[0].input.text == NULL);
	UNIT_CHECK(dialogue_read(history, strlen(history), PART("next"), PART("i"), false, arena,
							 &dialogue, &status));
	UNIT_EQUAL_INT(dialogue.count, 2);
	UNIT_EQUAL_TEXT(dialogue.rounds[0].prompt.text, "What?");
	UNIT_EQUAL_TEXT(dialogue.rounds[0].response.text, "A \xC3\xA4 bus");
	UNIT_EQUAL_TEXT(dialogue.rounds[0].input.text, "i");
	UNIT_EQUAL_TEXT(dialogue.rounds[1].prompt.text, "next");
	UNIT_CHECK(dialogue.rounds[1].input.text == NULL && dialogue.rounds[1].response.text == NULL);
	arena_free(arena);
}

#define U(content) "{\"role\":\"user\",\"content\":" content "}"
#define A(content) "{\"role\":\"assistant\",\"content\":" content "}"

/* A history that is refused, and what the message says. */
typedef struct WrongHistory
{
	const char *history;
	StatusCode	code;
	const char *message;
} WrongHistory;

static const WrongHistory wrong_histories[] = {
	{"{}", STATUS_INVALID_JSON, "history must be an array, not an object"},
	{"\"a\"", STATUS_INVALID_JSON, "history must be an array, not a string"},
	{"null", STATUS_INVALID_JSON, "history must be an array, not null"},
	{" ", STATUS_INVALID_JSON, "history is not valid JSON at line 1, column 1"},
	{"[\n  {\"role\": }]", STATUS_INVALID_JSON, "history is not valid JSON at line 2, column 12"},
	{"[1, 2]", STATUS_INVALID_JSON, "history element 1 must be an object, not a number"},
	{"[[]]", STATUS_INVALID_JSON, "history element 1 must be an object, not an array"},
	{"[{\"content\":\"a\"}]", STATUS_INVALID_JSON, "history element 1 has no role"},
	{"[{\"role\":1}]", STATUS_INVALID_JSON,
	"history element 1 has a number as its role, not a string"},
	{"[{\"role\":\"system\",\"content\":\"a\"}]", STATUS_INVALID_JSON,
	"history element 1 has the unknown role \"system\""},
	{"[" A("\"a\"") "]", STATUS_INVALID_JSON,
	"history element 1 must have the role \"user\", not \"assistant\""},
	{"[" U("\"a\"") "," U("\"b\"") "]", STATUS_INVALID_JSON,
	"history element 2 must have the role \"assistant\", not \"user\""},
	{"[" U("\"a\"") "," A("\"b\"") ",{\"role\":\"user\"}]", STATUS_INVALID_JSON,
	"history element 3 has no content"},
	{"[" U("\"a\"") "," A("null") "]", STATUS_INVALID_JSON,
	"history element 2 has null as its content, not a string"},
	{"[" U("true") "]", STATUS_INVALID_JSON,
	"history element 1 has a Boolean as its content, not a string"},
	{"[" U("\"a\"") "," A("\"b\"") "," U("\"c\"") "]", STATUS_INVALID_JSON,
	"history must end with the role \"assistant\", but history element 3 is the last "
	"and has the role \"user\""},
	{"[" U("\"a\\u0000b\"") "]", STATUS_INVALID_JSON, "history holds the character U+0000"},
	{"[" U("\"a\xFF\"") "]", STATUS_INVALID_TEXT,
	"history is not valid UTF-8 at byte offset 28"},
	{"[] x", STATUS_INVALID_JSON, "history is not valid JSON at line 1, column 4"},
};

UNIT_TEST(wrong_histories_are_named)
{
	Arena	   *arena = arena_create();

	for (size_t i = 0; i < sizeof(wrong_histories) / sizeof(wrong_histories[0]); i++)
	{
		const WrongHistory *wrong = &wrong_histories[i];
		Dialogue	dialogue;
		Status		status;

		status_clear(&status);
		UNIT_CHECK(!dialogue_read(wrong->history, strlen(wrong->history), PART("p"), absent, false,
								  arena, &dialogue, &status));
		UNIT_EQUAL_INT(status.code, wrong->code);
		UNIT_EQUAL_TEXT(status.message, wrong->message);
		if (wrong->code == STATUS_INVALID_JSON)
			UNIT_CHECK(status.hint[0] != '\0');
	}
	arena_free(arena);
}

UNIT_TEST(long_unknown_roles_are_cut_at_a_character)
{
	char		history[512] = "[{\"role\":\"";
	Arena	   *arena = arena_create();
	Dialogue	dialogue;
	Status		status;

	for (int i = 0; i < 50; i++)
		strcat(history, "\xE4\xBD\xA0");
	strcat(history, "\"}]");
	status_clear(&status);
	UNIT_CHECK(!dialogue_read(history, strlen(history), PART("p"), absent, false, arena, &dialogue,
							  &status));
	UNIT_CONTAINS(status.message, "...");
	UNIT_EQUAL_INT(utf8_valid_prefix(status.message, strlen(status.message)),
				   strlen(status.message));
	arena_free(arena);
}

UNIT_TEST(deeply_nested_history_is_refused)
{
	const size_t depth = 1000000;
	char	   *history = malloc(depth);
	Arena	   *arena = arena_create();
	Dialogue	dialogue;
	Status		status;

	memset(history, '[', depth);
	status_clear(&status);
	UNIT_CHECK(!dialogue_read(history, depth, PART("p"), absent, false, arena, &dialogue,
							  &status));
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_JSON);
	free(history);
	arena_free(arena);
}

UNIT_TEST(dialogues_are_written)
{
	const char *history = "[" U("\"a\"") "," A("\"b\"") "]";
	Arena	   *arena = arena_create();
	Dialogue	dialogue;
	Dialogue	again;
	Status		status;
	size_t		length;
	char	   *text;

	status_clear(&status);
	UNIT_CHECK(dialogue_read(history, strlen(history), PART("c\"\n"), PART("i"), true, arena,
							 &dialogue, &status));
	text = dialogue_write(&dialogue, PART("\xC3\xA4"), NULL, arena, &length, &status);
	UNIT_EQUAL_TEXT(text, "[" U("\"a\"") "," A("\"b\"") "," U("\"c\\\"\\n\"") ","
					A("\"\xC3\xA4\"") "]");
	UNIT_EQUAL_INT(strlen(text), length);
	UNIT_CHECK(dialogue_read(text, length, PART("e"), absent, false, arena, &again, &status));
	UNIT_EQUAL_INT(again.count, 3);
	UNIT_CHECK(dialogue_read(NULL, 0, PART("p"), absent, false, arena, &again, &status));
	text = dialogue_write(&again, (TextPart) {"\xFFx\0y", 4}, NULL, arena, &length, &status);
	UNIT_EQUAL_TEXT(text, "[" U("\"p\"") "," A("\"\xEF\xBF\xBDx\xEF\xBF\xBDy\"") "]");
	arena_free(arena);
}

UNIT_TEST(answers_stop_before_blocks)
{
	UNIT_EQUAL_INT(answer_find_stop("", 0), 0);
	UNIT_EQUAL_INT(answer_find_stop("A dog.", 6), 6);
	UNIT_EQUAL_INT(answer_find_stop("A dog.\n\n### Instruction:\nx", 26), 6);
	UNIT_EQUAL_INT(answer_find_stop("\n\n### Response:", 15), 0);
	UNIT_EQUAL_INT(answer_find_stop("a\n\n### Input:", 13), 1);
	UNIT_EQUAL_INT(answer_find_stop("a\n\n### Image:", 13), 1);
	UNIT_EQUAL_INT(answer_find_stop("a\n\n### Image", 12), 12);
	UNIT_EQUAL_INT(answer_find_stop("a\n\n### Images:", 14), 14);
	UNIT_EQUAL_INT(answer_find_stop("a\n### Response:", 15), 15);
	UNIT_EQUAL_INT(answer_find_stop("a\n\n### Notes:\n\n### Response:", 28), 13);
	UNIT_EQUAL_INT(answer_find_stop("a\n\n\n### Response:", 17), 2);
}

/* An answer and its number; -1 for none. */
typedef struct NumberCase
{
	const char *text;
	int			number;
} NumberCase;

static const NumberCase number_cases[] = {
	{"There are 3 dogs", 3}, {"No, there is no cat", 0}, {"", -1}, {"3", 3}, {"3.", 3},
	{"There are 3.", 3}, {"(12)", 12}, {"None of them", -1}, {"another dog", -1},
	{"not a dog", -1}, {"TWENTY birds", 20}, {"Zero.", 0}, {"There is one", 1},
	{"Seventeen and 3", 17}, {"eleventh", -1}, {"1,000 birds", 1000}, {"1,234,567", 1234567},
	{"1, 2 and 3", 1}, {"1,23", 1}, {"1,0000", 1}, {"1234,567", 1234}, {"3.5 metres, 2 dogs", 2},
	{"3.5", -1}, {"twenty-one", -1}, {"two-year-old", -1}, {"a 2-year-old", -1}, {"2-3 dogs", 2},
	{"-4", 4}, {"3D", -1}, {"the 2nd", -1}, {"B2", -1}, {"2147483647", 2147483647},
	{"2147483648", -1}, {"99999999999999999999999", -1}, {"007", 7}, {"No\xC3\xABl", -1},
	{"\xC3\xA9no", -1}, {"\xE2\x80\x94""3\xE2\x80\x94", 3}, {"\xE6\x9C\x89""3\xE5\x8F\xAA", 3},
	{"one's", -1}, {"'one'", 1}, {"\"Two\"", 2}, {"no\n", 0}, {"12:30", 12}, {"-", -1},
	{"\xFF 5", 5}, {"1,", 1}, {"four\xE2\x80\x99s 5", 5}, {"3dogs and 4", 4},
};

UNIT_TEST(numbers_are_found_in_answers)
{
	for (size_t i = 0; i < sizeof(number_cases) / sizeof(number_cases[0]); i++)
	{
		const NumberCase *expected = &number_cases[i];
		size_t		length = strlen(expected->text);
		char	   *exact = malloc(length + 1);
		int			number = -1;

		/* Without its NUL, so that a sanitizer sees any read behind the end. */
		exact = realloc(memcpy(exact, expected->text, length + 1), length > 0 ? length : 1);
		if (!answer_find_number(exact, length, &number))
			number = -1;
		if (number != expected->number)
			UNIT_FAIL("\"%s\" gives %d, not %d", expected->text, number, expected->number);
		free(exact);
	}
}

/* What settles the number may be followed by anything: it stays the answer's first. */
UNIT_TEST(a_settled_number_is_the_first_one_of_the_whole_answer)
{
	static const char *const settled = "There are 3 ";
	static const char *const rests[] = {"", "dogs.", "000 dogs", "-4", "5"};

	for (size_t i = 0; i < sizeof(number_cases) / sizeof(number_cases[0]); i++)
		for (size_t length = 0; length <= strlen(number_cases[i].text); length++)
		{
			int			number = -1;

			if (answer_settles_number(number_cases[i].text, length) &&
				(!answer_find_number(number_cases[i].text, length, &number) ||
				 number != number_cases[i].number))
				UNIT_FAIL("\"%.*s\" does not settle the number of \"%s\"", (int) length,
						  number_cases[i].text, number_cases[i].text);
		}
	for (size_t length = 0; length <= strlen(settled); length++)
		UNIT_CHECK(answer_settles_number(settled, length) == (length == strlen(settled)));
	for (size_t i = 0; i < sizeof(rests) / sizeof(rests[0]); i++)
	{
		char		text[64];
		int			number = -1;

		snprintf(text, sizeof(text), "%s%s", settled, rests[i]);
		UNIT_CHECK(answer_find_number(text, strlen(text), &number) && number == 3);
	}
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
