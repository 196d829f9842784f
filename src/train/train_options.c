/*
 * train_options.c - see train_options.h. A table of keys, each with its place and range.
 */
#include "train_options.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model_internal.h"

/* What the original trains (its configs/lora_config.py), for data of a few thousand rows. */
#define DEFAULT_LEARNING_RATE 2e-4
#define DEFAULT_WEIGHT_DECAY 0.1
#define DEFAULT_MAX_LENGTH 512

/* Exact in a double, and so in JSON readers that know no integers. */
#define MAX_SEED ((json_int_t) 1 << 53)

typedef enum OptionKind
{
	OPTION_INTEGER,
	OPTION_NUMBER,
	OPTION_BOOLEAN,
	OPTION_SEED,
	OPTION_SCHEDULE,
	OPTION_TARGETS,
	OPTION_UNUSABLE
} OptionKind;

typedef struct OptionRule
{
	const char *key;
	OptionKind	kind;
	size_t		place;			/* of the field in TrainOptions */
	double		low;
	double		high;
	const char *range;			/* in words */
} OptionRule;

#define FIELD(name) offsetof(TrainOptions, name)

static const OptionRule rules[] = {
	{"r", OPTION_INTEGER, FIELD(r), 1, LORA_MAX_RANK, "an integer between 1 and 256"},
	{"alpha", OPTION_NUMBER, FIELD(alpha), 1e-6, 1e6, "a number between 0.000001 and 1000000"},
	{"target_modules", OPTION_TARGETS, FIELD(targets), 0, 0,
	 "a list of some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, to_q, "
	 "to_kv, to_out, ff.1, ff.3"},
	{"learning_rate", OPTION_NUMBER, FIELD(learning_rate), 0, 1, "a number between 0 and 1"},
	{"weight_decay", OPTION_NUMBER, FIELD(weight_decay), 0, 1, "a number between 0 and 1"},
	{"warmup_steps", OPTION_INTEGER, FIELD(warmup_steps), 0, 1e9,
	 "an integer between 0 and 1000000000"},
	{"schedule", OPTION_SCHEDULE, FIELD(schedule), 0, 0, "\"cosine\", \"linear\" or \"constant\""},
	{"clip", OPTION_NUMBER, FIELD(clip), 1e-6, 1e6, "a number between 0.000001 and 1000000"},
	{"accumulation", OPTION_INTEGER, FIELD(accumulation), 1, 1e6,
	 "an integer between 1 and 1000000"},
	{"batch_size", OPTION_INTEGER, FIELD(batch_size), 1, 4096, "an integer between 1 and 4096"},
	{"epochs", OPTION_INTEGER, FIELD(epochs), 1, 1e6, "an integer between 1 and 1000000"},
	{"micro_steps", OPTION_INTEGER, FIELD(micro_steps), 1, 1e9,
	 "an integer between 1 and 1000000000"},
	{"shuffle", OPTION_BOOLEAN, FIELD(shuffle), 0, 0, "true or false"},
	{"seed", OPTION_SEED, FIELD(seed), 0, 0, "an integer between 0 and 9007199254740992"},
	{"max_length", OPTION_INTEGER, FIELD(max_length), 2, 1e6, "an integer between 2 and 1000000"},
	{"validation", OPTION_NUMBER, FIELD(validation), 0, 0.9, "a number between 0 and 0.9"},
	{"early_stopping", OPTION_INTEGER, FIELD(early_stopping), 0, 1e6,
	 "an integer between 0 and 1000000"},
	{"unusable", OPTION_UNUSABLE, FIELD(skip_unusable), 0, 0, "\"skip\" or \"fail\""},
};

#define RULES (sizeof(rules) / sizeof(rules[0]))

void
train_options_defaults(TrainOptions *options)
{
	memset(options, 0, sizeof(*options));
	options->learning_rate = DEFAULT_LEARNING_RATE;
	options->weight_decay = DEFAULT_WEIGHT_DECAY;
	options->schedule = SCHEDULE_COSINE;
	options->clip = 1.0;
	options->accumulation = 1;
	options->batch_size = 1;
	options->epochs = 1;
	options->shuffle = true;
	options->max_length = DEFAULT_MAX_LENGTH;
	options->skip_unusable = true;
}

/* The index of a JSON string among words; -1 if it is none of them. */
static int
word_index(const json_t *value, const char *const *words, int count)
{
	for (int i = 0; i < count; i++)
		if (json_is_string(value) && strcmp(json_string_value(value), words[i]) == 0)
			return i;
	return -1;
}

static bool
read_targets(const json_t *value, unsigned *targets)
{
	*targets = 0;
	for (size_t i = 0; i < json_array_size(value); i++)
	{
		int			target = 0;

		while (target < LORA_TARGETS &&
			   word_index(json_array_get(value, i),
						  (const char *[]) {lora_target_name((LoraTarget) target)}, 1) < 0)
			target++;
		if (target == LORA_TARGETS)
			return false;
		*targets |= 1u << target;
	}
	return *targets != 0;
}

static bool
read_number(const OptionRule *rule, const json_t *value, double *number)
{
	*number = json_number_value(value);
	return isfinite(*number) && *number >= rule->low && *number <= rule->high &&
		(rule->kind == OPTION_INTEGER ? json_is_integer(value) : json_is_number(value));
}

/* Read a value into its field; false when it is not in the rule's range. */
static bool
read_value(const OptionRule *rule, const json_t *value, TrainOptions *options)
{
	static const char *const schedules[] = {"cosine", "linear", "constant"};
	static const char *const unusable[] = {"fail", "skip"};
	void	   *field = (char *) options + rule->place;
	double		number;
	int			index;

	switch (rule->kind)
	{
		case OPTION_INTEGER:
			if (!read_number(rule, value, &number))
				return false;
			*(int *) field = (int) number;
			return true;
		case OPTION_NUMBER:
			return read_number(rule, value, (double *) field);
		case OPTION_BOOLEAN:
			*(bool *) field = json_is_true(value);
			return json_is_boolean(value);
		case OPTION_SEED:
			*(uint64_t *) field = (uint64_t) json_integer_value(value);
			return json_is_integer(value) && json_integer_value(value) >= 0 &&
				json_integer_value(value) <= MAX_SEED;
		case OPTION_SCHEDULE:
			index = word_index(value, schedules, 3);
			*(TrainSchedule *) field = (TrainSchedule) index;
			return index >= 0;
		case OPTION_TARGETS:
			return read_targets(value, (unsigned *) field);
		case OPTION_UNUSABLE:
			index = word_index(value, unusable, 2);
			*(bool *) field = index == 1;
			return index >= 0;
	}
	return false;
}

/* The keys, with commas between. */
static bool
hint_keys(Status *status)
{
	char		keys[STATUS_HINT_SIZE] = "";

	for (size_t i = 0; i < RULES; i++)
	{
		strncat(keys, i > 0 ? ", " : "", sizeof(keys) - strlen(keys) - 1);
		strncat(keys, rules[i].key, sizeof(keys) - strlen(keys) - 1);
	}
	return status_hint(status, "Options are %s.", keys);
}

static bool
read_option(const char *key, json_t *value, TrainOptions *options, Status *status)
{
	char	   *text;

	for (size_t i = 0; i < RULES; i++)
	{
		if (strcmp(key, rules[i].key) != 0)
			continue;
		if (read_value(&rules[i], value, options))
			return true;
		text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
		status_set(status, STATUS_INVALID_ARGUMENT, "option \"%s\" must be %s, not %.64s", key,
				   rules[i].range, text == NULL ? "this" : text);
		free(text);
		return false;
	}
	status_set(status, STATUS_INVALID_ARGUMENT, "unknown option \"%.64s\"", key);
	return hint_keys(status);
}

bool
train_options_read(const char *json, size_t length, TrainOptions *options, Status *status)
{
	json_error_t error;
	json_t	   *root;
	json_t	   *value;
	const char *key;
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
	if (!json_is_object(root))
	{
		status_set(status, STATUS_INVALID_JSON, "options are not a JSON object");
		good = status_hint(status, "Write them as {\"epochs\": 3, \"learning_rate\": 0.0002}.");
	}
	json_object_foreach(root, key, value)
		good = good && read_option(key, value, options, status);
	json_decref(root);
	if (good && options->early_stopping > 0 && options->validation == 0)
	{
		status_set(status, STATUS_INVALID_ARGUMENT,
				   "option \"early_stopping\" needs rows that are held out");
		return status_hint(status, "Set \"validation\" to their share of all rows.");
	}
	return good;
}
