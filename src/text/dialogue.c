/*
 * dialogue.c - the history of a dialogue, as JSON text in and out.
 *
 *	[{"role": "user", "content": "What is this?"},
 *	 {"role": "assistant", "content": "A red bus."}, ...]
 *
 * Two elements make a round, so the role of an element follows from its place;
 * an error names the element, counted from 1, and what was expected there. Keys
 * other than role and content are passed over. Texts are copied to the arena, and
 * Jansson's tree is freed before returning.
 *
 * Neither the image nor the input of the first round is part of a history: the
 * caller gives both again with every question, and they belong to the first round.
 */
#include "prompt_template.h"

#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "utf8.h"

#define ROLE_SHOWN_SIZE 64		/* bytes of an unknown role that a message shows */

static const char *const role_names[] = {"user", "assistant"};

/* What errors call the two forms. */
#define HISTORY "history"
#define CONVERSATION "conversation"

/* Tell how a history or conversation looks. Always returns false. */
static bool
hint_shape(const char *name, Status *status)
{
	return status_hint(status,
					   "Give the %s as [{\"role\":\"user\",\"content\":\"...\"}, "
					   "{\"role\":\"assistant\",\"content\":\"...\"}, ...].", name);
}

/* What a JSON value is, with its article. */
static const char *
json_kind(const json_t *value)
{
	switch (json_typeof(value))
	{
		case JSON_OBJECT:
			return "an object";
		case JSON_ARRAY:
			return "an array";
		case JSON_STRING:
			return "a string";
		case JSON_INTEGER:
		case JSON_REAL:
			return "a number";
		case JSON_TRUE:
		case JSON_FALSE:
			return "a Boolean";
		case JSON_NULL:
			break;
	}
	return "null";
}

/* Set the status for text that Jansson could not read. Always returns false. */
static bool
set_parse_error(const char *name, const json_error_t *error, Status *status)
{
	/* Jansson cuts its text at a byte, which may leave half a character. */
	int			shown = (int) utf8_valid_prefix(error->text, strlen(error->text));

	if (json_error_code(error) == json_error_out_of_memory)
		return status_out_of_memory(status, (size_t) error->position);
	if (json_error_code(error) == json_error_null_character)
	{
		status_set(status, STATUS_INVALID_JSON, "%s holds the character U+0000", name);
		status_detail(status, "The escape \\u0000 at line %d, column %d has no place in a text.",
					  error->line, error->column);
		return status_hint(status, "Remove the character from the %s.", name);
	}
	status_set(status, STATUS_INVALID_JSON, "%s is not valid JSON at line %d, column %d", name,
			   error->line, error->column);
	status_detail(status, "The JSON reader says: %.*s.", shown, error->text);
	return hint_shape(name, status);
}

/* Parse a history or conversation, which errors call by name. NULL when it is no JSON array. */
static json_t *
parse_turns(const char *name, const char *turns, size_t length, Status *status)
{
	json_error_t error;
	json_t	   *array;
	size_t		good = utf8_valid_prefix(turns, length);

	if (good != length)
	{
		status_set(status, STATUS_INVALID_TEXT, "%s is not valid UTF-8 at byte offset %zu", name,
				   good);
		return NULL;
	}
	array = json_loadb(turns, length, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, &error);
	if (array == NULL)
	{
		set_parse_error(name, &error, status);
		return NULL;
	}
	if (json_is_array(array))
		return array;
	status_set(status, STATUS_INVALID_JSON, "%s must be an array, not %s", name, json_kind(array));
	hint_shape(name, status);
	json_decref(array);
	return NULL;
}

/* Check that the role of element number (from 1) is the one of its place. */
static bool
check_role(const char *name, const json_t *role, size_t number, Status *status)
{
	const char *expected = role_names[(number - 1) % 2];
	const char *text;
	size_t		length;
	size_t		shown;

	if (role == NULL)
		return status_set(status, STATUS_INVALID_JSON, "%s element %zu has no role", name, number);
	if (!json_is_string(role))
		return status_set(status, STATUS_INVALID_JSON,
						  "%s element %zu has %s as its role, not a string", name, number,
						  json_kind(role));
	text = json_string_value(role);
	length = json_string_length(role);
	if (strcmp(text, expected) == 0)
		return true;
	if (strcmp(text, role_names[0]) == 0 || strcmp(text, role_names[1]) == 0)
	{
		status_set(status, STATUS_INVALID_JSON,
				   "%s element %zu must have the role \"%s\", not \"%s\"", name, number, expected,
				   text);
		return status_detail(status, "Roles alternate, beginning with \"user\".");
	}
	shown = utf8_valid_prefix(text, length < ROLE_SHOWN_SIZE ? length : ROLE_SHOWN_SIZE);
	status_set(status, STATUS_INVALID_JSON, "%s element %zu has the unknown role \"%.*s%s\"", name,
			   number, (int) shown, text, shown < length ? "..." : "");
	return status_detail(status, "Its role must be \"%s\".", expected);
}

/* Check one element and copy its content to *content. */
static bool
read_element(const char *name, const json_t *element, size_t number, Arena *arena,
			 TextPart *content, Status *status)
{
	const json_t *value;

	if (!json_is_object(element))
		return status_set(status, STATUS_INVALID_JSON,
						  "%s element %zu must be an object, not %s", name, number,
						  json_kind(element));
	if (!check_role(name, json_object_get(element, "role"), number, status))
		return false;
	value = json_object_get(element, "content");
	if (value == NULL)
		return status_set(status, STATUS_INVALID_JSON, "%s element %zu has no content", name,
						  number);
	if (!json_is_string(value))
		return status_set(status, STATUS_INVALID_JSON,
						  "%s element %zu has %s as its content, not a string", name, number,
						  json_kind(value));
	content->length = json_string_length(value);
	content->text = arena_copy_text(arena, json_string_value(value), content->length);
	if (content->text == NULL)
		return status_out_of_memory(status, content->length);
	return true;
}

/* Read all elements into rounds, two to a round, and see that the last is an answer. */
static bool
read_elements(const char *name, const json_t *array, Arena *arena, DialogueRound *rounds,
			  Status *status)
{
	size_t		count = json_array_size(array);

	for (size_t i = 0; i < count; i++)
	{
		DialogueRound *round = &rounds[i / 2];
		TextPart   *content = i % 2 == 0 ? &round->prompt : &round->response;

		if (!read_element(name, json_array_get(array, i), i + 1, arena, content, status))
		{
			if (status->code == STATUS_INVALID_JSON)
				hint_shape(name, status);
			return false;
		}
	}
	if (count % 2 == 0)
		return true;
	status_set(status, STATUS_INVALID_JSON,
			   "%s must end with the role \"assistant\", but %s element %zu "
			   "is the last and has the role \"user\"", name, name, count);
	if (strcmp(name, HISTORY) == 0)
		status_hint(status, "Give the new question as the prompt, not in the history.");
	return false;
}

/* Take zeroed rounds for elements of a history and one more for the prompt. */
static DialogueRound *
take_rounds(Arena *arena, size_t elements, int *count, Status *status)
{
	/* An odd history is refused later, and still needs room for its half round. */
	size_t		wanted = elements / 2 + elements % 2 + 1;
	DialogueRound *rounds = NULL;

	if (wanted <= INT_MAX)
		rounds = arena_take_array(arena, wanted, sizeof(DialogueRound));
	if (rounds == NULL)
		status_out_of_memory(status, wanted);
	*count = (int) wanted;
	return rounds;
}

/* Fill the rounds of the dialogue from a parsed history; NULL: there is none. */
static bool
fill_rounds(const char *name, const json_t *array, Arena *arena, Dialogue *dialogue, Status *status)
{
	dialogue->rounds = take_rounds(arena, array != NULL ? json_array_size(array) : 0,
								   &dialogue->count, status);
	return dialogue->rounds != NULL &&
		(array == NULL || read_elements(name, array, arena, dialogue->rounds, status));
}

bool
dialogue_read(const char *history, size_t history_length, TextPart prompt, TextPart input,
			  bool has_image, Arena *arena, Dialogue *dialogue, Status *status)
{
	json_t	   *array = NULL;
	bool		good;

	if (history != NULL && history_length > 0)
	{
		array = parse_turns(HISTORY, history, history_length, status);
		if (array == NULL)
			return false;
	}
	good = fill_rounds(HISTORY, array, arena, dialogue, status);
	json_decref(array);
	if (!good)
		return false;
	dialogue->rounds[dialogue->count - 1].prompt = prompt;
	dialogue->rounds[0].input = input;
	dialogue->has_image = has_image;
	return true;
}

bool
dialogue_read_conversation(const char *json, size_t length, bool has_image, Arena *arena,
						   Dialogue *dialogue, Status *status)
{
	json_t	   *array = parse_turns(CONVERSATION, json, length, status);
	bool		good = array != NULL;

	if (good && json_array_size(array) == 0)
		good = status_set(status, STATUS_INVALID_JSON, CONVERSATION " is empty");
	good = good && fill_rounds(CONVERSATION, array, arena, dialogue, status);
	json_decref(array);
	if (!good)
		return false;
	/* the round that a history leaves for its prompt is not needed */
	dialogue->count--;
	dialogue->has_image = has_image;
	return true;
}

/*
 * Make a JSON string of a part. What JSON text for PostgreSQL can't hold (broken
 * bytes, U+0000) becomes U+FFFD. NULL when memory is out.
 */
static json_t *
json_from_part(TextPart part)
{
	size_t		length = part.text != NULL ? part.length : 0;
	char	   *repaired;
	json_t	   *string;

	if (length > (SIZE_MAX - 1) / 3)
		return NULL;
	repaired = malloc(3 * length + 1);
	if (repaired == NULL)
		return NULL;
	length = utf8_repair(length > 0 ? part.text : "", length, repaired);
	string = json_stringn_nocheck(repaired, length);
	free(repaired);
	return string;
}

/* Append {"role": role, "content": content} to the array; false when memory is out. */
static bool
append_element(json_t *array, const char *role, TextPart content)
{
	json_t	   *element = json_object();

	/* The _new functions take over their value, and fail when it is NULL. */
	if (element == NULL || json_object_set_new(element, "role", json_string(role)) != 0 ||
		json_object_set_new(element, "content", json_from_part(content)) != 0)
	{
		json_decref(element);
		return false;
	}
	return json_array_append_new(array, element) == 0;
}

/* The dialogue with its answer as a JSON array; NULL when memory is out. */
static json_t *
json_from_dialogue(const Dialogue *dialogue, TextPart answer, json_t *logprobs)
{
	json_t	   *array = json_array();

	if (array == NULL)
		return NULL;
	for (int i = 0; i < dialogue->count; i++)
	{
		const DialogueRound *round = &dialogue->rounds[i];
		bool		is_last = i == dialogue->count - 1;

		if (!append_element(array, role_names[0], round->prompt) ||
			!append_element(array, role_names[1], is_last ? answer : round->response))
		{
			json_decref(array);
			return NULL;
		}
	}
	if (logprobs == NULL || json_object_set(json_array_get(array, json_array_size(array) - 1),
											"logprobs", logprobs) == 0)
		return array;
	json_decref(array);
	return NULL;
}

char *
dialogue_write(const Dialogue *dialogue, TextPart answer, json_t *logprobs, Arena *arena,
			   size_t *length, Status *status)
{
	json_t	   *array = json_from_dialogue(dialogue, answer, logprobs);
	char	   *text = NULL;
	size_t		size = 0;

	if (array != NULL)
		size = json_dumpb(array, NULL, 0, JSON_COMPACT);
	if (size > 0)
		text = arena_take(arena, size + 1);
	if (text == NULL)
		status_out_of_memory(status, size);
	else
		*length = json_dumpb(array, text, size, JSON_COMPACT);
	json_decref(array);
	return text;
}
