/*
 * request_options.c - one small reader for each key, found in a table; see
 * request_options.h.
 */
#include "request_options.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#define KNOWN_KEYS \
	"max_tokens, temperature, top_k, top_p, seed, num_beams, length_penalty, early_stopping, " \
	"no_repeat_ngram_size, stop, logprobs, input, threshold, adapter"

typedef struct OptionReader
{
	const char *key;
	json_t	   *value;
	Arena	   *arena;
	RequestOptions *options;
	Status	   *status;
} OptionReader;

typedef bool (*ReadFunction) (OptionReader *reader);

/* The value as a user wrote it, cut where it is long. */
static void
print_value(json_t *value, char *text, size_t size)
{
	char	   *dump = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);

	if (dump == NULL || strlen(dump) >= size)
		strcpy(text, "that is too long to show");
	else
		strcpy(text, dump);
	free(dump);
}

static bool
out_of_range(OptionReader *reader, const char *range)
{
	char		text[64];

	print_value(reader->value, text, sizeof(text));
	status_set(reader->status, STATUS_INVALID_ARGUMENT, "option \"%s\" must be %s, not %s",
			   reader->key, range, text);
	return false;
}

static bool
read_integer(OptionReader *reader, json_int_t low, json_int_t high, const char *range, int *out)
{
	if (!json_is_integer(reader->value) || json_integer_value(reader->value) < low ||
		json_integer_value(reader->value) > high)
		return out_of_range(reader, range);
	*out = (int) json_integer_value(reader->value);
	return true;
}

static bool
read_number(OptionReader *reader, double low, double high, const char *range, double *out)
{
	double		value = json_number_value(reader->value);

	if (!json_is_number(reader->value) || !isfinite(value) || value < low || value > high)
		return out_of_range(reader, range);
	*out = value;
	return true;
}

static bool
read_max_tokens(OptionReader *reader)
{
	return read_integer(reader, 1, 1000000, "an integer between 1 and 1000000",
						&reader->options->max_tokens);
}

static bool
read_temperature(OptionReader *reader)
{
	return read_number(reader, 0, 100, "a number between 0 and 100", &reader->options->temperature);
}

static bool
read_top_k(OptionReader *reader)
{
	return read_integer(reader, 0, 1000000, "an integer between 0 and 1000000",
						&reader->options->top_k);
}

static bool
read_top_p(OptionReader *reader)
{
	if (json_is_number(reader->value) && json_number_value(reader->value) <= 0)
		return out_of_range(reader, "a number above 0 and at most 1");
	return read_number(reader, 0, 1, "a number above 0 and at most 1", &reader->options->top_p);
}

static bool
read_seed(OptionReader *reader)
{
	if (!json_is_integer(reader->value))
		return out_of_range(reader, "an integer");
	reader->options->has_seed = true;
	reader->options->seed = json_integer_value(reader->value);
	return true;
}

static bool
read_num_beams(OptionReader *reader)
{
	return read_integer(reader, 1, OPTIONS_MAX_BEAMS, "an integer between 1 and 16",
						&reader->options->num_beams);
}

static bool
read_length_penalty(OptionReader *reader)
{
	return read_number(reader, -100, 100, "a number between -100 and 100",
					   &reader->options->length_penalty);
}

static bool
read_early_stopping(OptionReader *reader)
{
	reader->options->early_stopping = json_is_true(reader->value);
	return json_is_boolean(reader->value) || out_of_range(reader, "true or false");
}

static bool
read_no_repeat_ngram_size(OptionReader *reader)
{
	return read_integer(reader, 0, 1000, "an integer between 0 and 1000",
						&reader->options->no_repeat_ngram_size);
}

static bool
copy_text(OptionReader *reader, json_t *value, const char **text)
{
	*text = arena_copy_text(reader->arena, json_string_value(value), json_string_length(value));
	return *text != NULL || status_out_of_memory(reader->status, json_string_length(value));
}

static bool
read_stop(OptionReader *reader)
{
	static const char range[] = "a text, or a list of 1 to 16 texts, none of them empty";
	size_t		count = json_is_array(reader->value) ? json_array_size(reader->value) : 1;

	if (count < 1 || count > OPTIONS_MAX_STOPS)
		return out_of_range(reader, range);
	for (size_t i = 0; i < count; i++)
	{
		json_t	   *value = json_is_array(reader->value) ? json_array_get(reader->value, i)
														 : reader->value;

		if (!json_is_string(value) || json_string_length(value) == 0)
			return out_of_range(reader, range);
		if (!copy_text(reader, value, &reader->options->stops[i]))
			return false;
	}
	reader->options->stop_count = (int) count;
	return true;
}

static bool
read_input(OptionReader *reader)
{
	if (!json_is_string(reader->value))
		return out_of_range(reader, "a text");
	reader->options->input_length = json_string_length(reader->value);
	return copy_text(reader, reader->value, &reader->options->input);
}

static bool
read_threshold(OptionReader *reader)
{
	return read_number(reader, 0, 1, "a number between 0 and 1", &reader->options->threshold);
}

static bool
read_logprobs(OptionReader *reader)
{
	reader->options->logprobs = json_is_true(reader->value);
	return json_is_boolean(reader->value) || out_of_range(reader, "true or false");
}

static bool
read_adapter(OptionReader *reader)
{
	reader->options->adapter_name = "";
	if (json_is_null(reader->value))
		return true;
	if (!json_is_string(reader->value))
		return out_of_range(reader, "the name of an adapter, or null");
	return copy_text(reader, reader->value, &reader->options->adapter_name);
}

static bool
read_eos_token_id(OptionReader *reader)
{
	return read_integer(reader, 0, 1000000, "a token id", &reader->options->eos_token_id);
}

#ifdef MMGPT_FAULTS
static bool
read_fault(OptionReader *reader)
{
	static const char *const names[] = {"none", "abort", "hang", "out_of_memory", "slow"};

	for (int i = 0; i < 5; i++)
		if (json_is_string(reader->value) &&
			strcmp(json_string_value(reader->value), names[i]) == 0)
		{
			reader->options->fault = (FaultKind) i;
			return true;
		}
	return out_of_range(reader, "abort, hang, out_of_memory or slow");
}
#endif

static const struct
{
	const char *key;
	ReadFunction read;
	bool		command_line;	/* only there */
} option_readers[] = {
	{"max_tokens", read_max_tokens, false},
	{"temperature", read_temperature, false},
	{"top_k", read_top_k, false},
	{"top_p", read_top_p, false},
	{"seed", read_seed, false},
	{"num_beams", read_num_beams, false},
	{"length_penalty", read_length_penalty, false},
	{"early_stopping", read_early_stopping, false},
	{"no_repeat_ngram_size", read_no_repeat_ngram_size, false},
	{"stop", read_stop, false},
	{"logprobs", read_logprobs, false},
	{"input", read_input, false},
	{"threshold", read_threshold, false},
	{"adapter", read_adapter, false},
	{"eos_token_id", read_eos_token_id, true},
#ifdef MMGPT_FAULTS
	{"fault", read_fault, false},
#endif
};

void
request_options_defaults(RequestOptions *options)
{
	memset(options, 0, sizeof(*options));
	options->max_tokens = 256;
	options->top_p = 1.0;
	options->num_beams = 1;
	options->length_penalty = 1.0;
	options->threshold = 0.5;
	options->eos_token_id = -1;
}

static bool
read_option(OptionReader *reader, bool command_line)
{
	for (size_t i = 0; i < sizeof(option_readers) / sizeof(option_readers[0]); i++)
		if (strcmp(reader->key, option_readers[i].key) == 0 &&
			(command_line || !option_readers[i].command_line))
			return option_readers[i].read(reader);
	status_set(reader->status, STATUS_INVALID_ARGUMENT, "unknown option \"%.64s\"", reader->key);
	return status_hint(reader->status, "Options are %s.", KNOWN_KEYS);
}

bool
request_options_read(const char *json, size_t length, bool command_line, Arena *arena,
					 RequestOptions *options, Status *status)
{
	OptionReader reader = {NULL, NULL, arena, options, status};
	json_error_t error;
	json_t	   *root;
	bool		good = true;

	if (length == 0)
		return true;
	root = json_loadb(json, length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
	if (root == NULL)
	{
		status_set(status, STATUS_INVALID_JSON, "options are not valid JSON");
		return status_detail(status, "%s at line %d, column %d.", error.text, error.line,
							 error.column);
	}
	if (json_is_null(root))
		good = true;
	else if (!json_is_object(root))
	{
		status_set(status, STATUS_INVALID_JSON, "options are not a JSON object");
		good = status_hint(status, "Write them as {\"max_tokens\": 64}.");
	}
	else
		json_object_foreach(root, reader.key, reader.value)
			if (good)
				good = read_option(&reader, command_line);
	json_decref(root);
	return good;
}
