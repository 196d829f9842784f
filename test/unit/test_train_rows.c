/*
 * test_train_rows.c - from texts to what is trained: ids, labels, and rows that can't be used.
 *
 * For rows of a single round ids and labels are the original's, which its dataset classes made of
 * the files in train_data (labels.json). Dialogues of several rounds differ from the
 * original on purpose: it pairs questions with the wrong answers (golden README, Facts 6).
 */
#include "engine.h"
#include "model_text.h"
#include "train_cases.h"

#define ORIGINAL_MAX_LENGTH 512

static Engine engine;

/* Text between two marks of a golden instruction; absent if the first is not there. */
static TextPart
between(const char *text, const char *before, const char *after)
{
	const char *begin = strstr(text, before);
	const char *end;

	if (begin == NULL)
		return (TextPart) {NULL, 0};
	begin += strlen(before);
	end = strstr(begin, after);
	return (TextPart) {begin, (size_t) (end - begin)};
}

/* A single round as the golden sample gives it: the whole prompt, and the answer. */
static RowText
sample_text(const json_t *sample)
{
	const char *prompt = json_string_value(json_object_get(sample, "instruction"));
	const json_t *answer = json_object_get(sample, "answer");
	bool		has_input = strstr(prompt, "\n\n### Input:\n") != NULL;
	RowText		text = {.has_image = strstr(prompt, "<image>") != NULL,
						.response = {json_string_value(answer), json_string_length(answer)}};

	text.instruction = between(prompt, "### Instruction:\n",
							   has_input ? "\n\n### Input:\n" : "\n\n### Response:\n");
	text.input = between(prompt, "### Input:\n", "\n\n### Response:\n");
	return text;
}

/* A single round: the prompt has one heading of a response, and no round was lost. */
static bool
is_single_round(const json_t *sample)
{
	const char *prompt = json_string_value(json_object_get(sample, "instruction"));
	const char *first;

	if (prompt == NULL)
		return false;
	first = strstr(prompt, "### Response:");
	return first != NULL && strstr(first + 1, "### Response:") == NULL;
}

static bool
equal_ids(const int32_t *actual, int count, const json_t *expected, int expected_count)
{
	if (!UNIT_EQUAL_INT(count, expected_count))
		return false;
	for (int i = 0; i < count; i++)
		if (actual[i] != json_integer_value(json_array_get(expected, (size_t) i)))
			return UNIT_FAIL("element %d is %d, not %lld", i, actual[i],
							 json_integer_value(json_array_get(expected, (size_t) i)));
	return true;
}

/* Compare one sample, before and after collating; rows without a label are refused. */
static void
check_sample(const json_t *sample, const json_t *collated)
{
	PromptTemplate prompt_template = model_text_template(engine.config);
	RowText		text = sample_text(sample);
	const json_t *labels = json_object_get(sample, "labels_before_collate");
	int			count = (int) json_array_size(labels);
	int			trained = 0;
	TrainingRow row = {0};
	bool		good = training_row_encode(engine.tokenizer, &prompt_template, &text,
										   ORIGINAL_MAX_LENGTH, engine.arena, &row, &engine.status);

	for (int i = 1; i < count; i++)
		trained += json_integer_value(json_array_get(labels, (size_t) i)) >= 0;
	if (trained == 0)
	{
		UNIT_CHECK(!good);
		UNIT_CONTAINS(engine.status.message, "no token of a response is left within 512 tokens");
		return;
	}
	if (!UNIT_CHECK(good))
		return;
	equal_ids(row.ids, row.count, json_object_get(sample, "ids"), count);
	equal_ids(row.labels, row.count, labels, count);
	equal_ids(row.labels, row.count, collated, count);
}

UNIT_TEST(single_rounds_have_the_original_s_ids_and_labels)
{
	json_t	   *root = golden_json(MODEL_A "/labels.json");
	int			checked = 0;

	for (size_t i = 0; i < json_array_size(root); i++)
	{
		const json_t *set = json_array_get(root, i);
		const json_t *samples = json_object_get(set, "samples");
		const json_t *collated = json_object_get(json_object_get(set, "collated"), "labels");

		for (size_t j = 0; j < json_array_size(samples); j++)
			if (is_single_round(json_array_get(samples, j)))
			{
				check_sample(json_array_get(samples, j), json_array_get(collated, j));
				checked++;
			}
	}
	UNIT_EQUAL_INT(checked, 20);
	json_decref(root);
}

/* ---- several rounds ---- */

#define TURN(role, text) "{\"role\": \"" role "\", \"content\": \"" text "\"}"
#define ROUNDS \
	TURN("user", "What is in this image?") ", " TURN("assistant", "A small dog.") ", " \
	TURN("user", "What color is it?") ", " TURN("assistant", "It is red.\\nYes </s> it is.") ", " \
	TURN("user", "Why?") ", " TURN("assistant", "I do not know.")

static const char *const responses[] = {"A small dog.", "It is red.\nYes </s> it is.",
	"I do not know."};

/* Ids and labels of the conversation above. */
static TrainingRow
encode_rounds(bool history_eos, int max_length)
{
	static const char json[] = "[" ROUNDS "]";
	PromptTemplate prompt_template = model_text_template(engine.config);
	RowText		text = {.conversation = {json, strlen(json)}, .has_image = true};
	TrainingRow row = {0};

	prompt_template.history_eos = history_eos;
	if (!training_row_encode(engine.tokenizer, &prompt_template, &text, max_length, engine.arena,
							 &row, &engine.status))
		engine_bail("rounds", &engine.status);
	return row;
}

/* The texts of the runs of labels, checked to be the tokens themselves. */
static int
labelled_texts(const TrainingRow *row, char texts[][128], bool *ended)
{
	int			count = 0;

	for (int i = 0; i < row->count; i++)
	{
		int			begin = i;
		size_t		length;
		char	   *text;

		while (i < row->count && row->labels[i] >= 0)
		{
			UNIT_EQUAL_INT(row->labels[i], row->ids[i]);
			i++;
		}
		if (i == begin)
			continue;
		ended[count] = row->ids[i - 1] == engine.config->eos;
		text = tokenizer_decode(engine.tokenizer, row->ids + begin, i - begin, engine.arena,
								&length, &engine.status);
		snprintf(texts[count++], 128, "%s", text);
	}
	return count;
}

UNIT_TEST(every_response_of_a_conversation_is_trained)
{
	for (int history_eos = 0; history_eos < 2; history_eos++)
	{
		TrainingRow row = encode_rounds(history_eos, 512);
		char		texts[8][128];
		bool		ended[8];

		if (!UNIT_EQUAL_INT(labelled_texts(&row, texts, ended), 3))
			continue;
		for (int i = 0; i < 3; i++)
		{
			UNIT_EQUAL_TEXT(texts[i], responses[i]);
			UNIT_EQUAL_INT(ended[i], i == 2 || history_eos);
		}
	}
}

/* A chat that goes on after the conversation reads the very tokens that were trained. */
UNIT_TEST(a_chat_reads_what_was_trained)
{
	for (int history_eos = 0; history_eos < 2; history_eos++)
	{
		static const char history[] = "[" ROUNDS "]";
		PromptTemplate prompt_template = model_text_template(engine.config);
		TrainingRow row = encode_rounds(history_eos, 512);
		int			same = history_eos ? row.count : row.count - 1;
		Dialogue	dialogue;
		TokenList	ids;

		prompt_template.history_eos = history_eos;
		token_list_begin(&ids, engine.arena);
		UNIT_CHECK(dialogue_read(history, strlen(history), (TextPart) {"And?", 4},
								 (TextPart) {NULL, 0}, true, engine.arena, &dialogue,
								 &engine.status));
		UNIT_CHECK(prompt_encode(engine.tokenizer, &prompt_template, &dialogue, &ids,
								 &engine.status));
		UNIT_CHECK(ids.count > same &&
				   memcmp(ids.ids, row.ids, (size_t) same * sizeof(int32_t)) == 0);
	}
}

UNIT_TEST(rows_are_cut_at_the_maximum_length)
{
	TrainingRow whole = encode_rounds(false, 512);

	for (int length = whole.count - 30; length <= whole.count + 1; length++)
	{
		TrainingRow row = encode_rounds(false, length);
		int			expected = length < whole.count ? length : whole.count;

		UNIT_EQUAL_INT(row.count, expected);
		UNIT_CHECK(memcmp(row.ids, whole.ids, (size_t) expected * sizeof(int32_t)) == 0);
		UNIT_CHECK(memcmp(row.labels, whole.labels, (size_t) expected * sizeof(int32_t)) == 0);
	}
}

UNIT_TEST(an_empty_answer_trains_the_end_alone)
{
	PromptTemplate prompt_template = model_text_template(engine.config);
	RowText		text = {.instruction = {"Name a fruit.", 13}, .response = {"", 0}};
	TrainingRow row = {0};

	UNIT_CHECK(training_row_encode(engine.tokenizer, &prompt_template, &text, 512, engine.arena,
								   &row, &engine.status));
	UNIT_EQUAL_INT(training_row_labels(row.labels, row.count), 1);
	UNIT_EQUAL_INT(row.labels[row.count - 1], engine.config->eos);
}

/* ---- rows that can't be used ---- */

typedef struct UnusableText
{
	const char *instruction;
	const char *response;
	const char *conversation;
	const char *message;
} UnusableText;

static const UnusableText unusable_texts[] = {
	{NULL, "a", NULL, "no instruction"},
	{"a", NULL, NULL, "no response"},
	{NULL, NULL, "[]", "conversation is empty"},
	{NULL, NULL, "{}", "conversation must be an array"},
	{NULL, NULL, "[" TURN("user", "a") "]", "conversation must end with the role \"assistant\""},
	{NULL, NULL, "[" TURN("assistant", "a") "]", "conversation element 1 must have the role"},
	{"a\xFF", "b", NULL, "prompt of round 1 is not valid UTF-8"},
	{"a", "b\xFF", NULL, "response of round 1 is not valid UTF-8"},
};

static TextPart
part(const char *text)
{
	return (TextPart) {text, text == NULL ? 0 : strlen(text)};
}

UNIT_TEST(unusable_texts_are_refused_with_their_reason)
{
	PromptTemplate prompt_template = model_text_template(engine.config);

	for (size_t i = 0; i < sizeof(unusable_texts) / sizeof(unusable_texts[0]); i++)
	{
		const UnusableText *wrong = &unusable_texts[i];
		RowText		text = {.instruction = part(wrong->instruction),
							.response = part(wrong->response),
							.conversation = part(wrong->conversation)};
		TrainingRow row;

		UNIT_CHECK(!training_row_encode(engine.tokenizer, &prompt_template, &text, 512,
										engine.arena, &row, &engine.status));
		UNIT_CONTAINS(engine.status.message, wrong->message);
	}
}

/* A row of tokens that the trainer has to refuse. */
static void
check_refused(Trainer *trainer, const int32_t *ids, const int32_t *labels, int count,
			  int pictures, const char *message)
{
	float	   *pixels = calloc((size_t) (3 * 56 * 56), sizeof(float));
	Picture		picture[2] = {{NULL, pixels}, {NULL, pixels}};
	TrainingRow row = {ids, labels, count, picture, pictures};

	UNIT_CHECK(!trainer_add_row(trainer, &row, &engine.status));
	UNIT_EQUAL_INT(engine.status.code, STATUS_INVALID_ARGUMENT);
	UNIT_CONTAINS(engine.status.message, message);
	free(pixels);
}

UNIT_TEST(unusable_rows_are_refused_with_their_reason)
{
	static const int32_t ids[] = {1, 601, 5, 6};
	static const int32_t labels[] = {-100, -100, 5, 6};
	static const int32_t no_labels[] = {1, -100, -100, -100};
	static const int32_t image_label[] = {-100, 601, -100, -100};
	static const int32_t large[] = {1, 2, 603, 3};
	static const int32_t negative[] = {1, -1, 5, 6};
	TrainOptions options;
	Trainer    *trainer;

	train_options_defaults(&options);
	options.max_length = 3;
	trainer = trainer_create(engine.model, &options, NULL, &engine.status);
	check_refused(trainer, ids, labels, 1, 0, "the row has 1 token");
	check_refused(trainer, ids, labels, 0, 0, "the row has 0 tokens");
	check_refused(trainer, large, labels, 4, 0, "token or label 3 of the row is outside");
	check_refused(trainer, ids, large, 4, 1, "token or label 3 of the row is outside");
	check_refused(trainer, negative, labels, 4, 0, "token or label 2 of the row is outside");
	check_refused(trainer, ids, no_labels, 4, 1, "no token of a response is left within 3");
	check_refused(trainer, ids, image_label, 4, 1, "no token of a response is left within 3");
	check_refused(trainer, ids, labels, 4, 2, "the row has 2 pictures and 1 <image> mark");
	UNIT_CHECK(!trainer_start(trainer, 0, &engine.status));
	UNIT_CONTAINS(engine.status.message, "no rows to train on");
	trainer_free(trainer);
}

/* ---- options ---- */

static const struct
{
	const char *json;
	const char *message;
} wrong_options[] = {
	{"{", "not valid JSON"},
	{"[]", "not a JSON object"},
	{"{\"rank\": 4}", "unknown option \"rank\""},
	{"{\"r\": 0}", "option \"r\" must be an integer between 1 and 256, not 0"},
	{"{\"r\": 1.5}", "option \"r\" must be"},
	{"{\"r\": \"4\"}", "option \"r\" must be"},
	{"{\"alpha\": 0}", "option \"alpha\""},
	{"{\"learning_rate\": -1}", "option \"learning_rate\""},
	{"{\"learning_rate\": null}", "option \"learning_rate\""},
	{"{\"target_modules\": []}", "option \"target_modules\""},
	{"{\"target_modules\": [\"lm_head\"]}", "ff.1, ff.3, not [\"lm_head\"]"},
	{"{\"target_modules\": \"q_proj\"}", "option \"target_modules\""},
	{"{\"schedule\": \"step\"}", "\"cosine\", \"linear\" or \"constant\", not \"step\""},
	{"{\"shuffle\": 1}", "option \"shuffle\" must be true or false"},
	{"{\"seed\": -1}", "option \"seed\""},
	{"{\"validation\": 1}", "option \"validation\""},
	{"{\"unusable\": \"ignore\"}", "option \"unusable\" must be \"skip\" or \"fail\""},
	{"{\"batch_size\": 0}", "option \"batch_size\""},
	{"{\"epochs\": 0}", "option \"epochs\""},
	{"{\"r\": 1, \"r\": 2}", "not valid JSON"},
};

UNIT_TEST(wrong_options_are_named)
{
	for (size_t i = 0; i < sizeof(wrong_options) / sizeof(wrong_options[0]); i++)
	{
		TrainOptions options;

		train_options_defaults(&options);
		UNIT_CHECK(!train_options_read(wrong_options[i].json, strlen(wrong_options[i].json),
									   &options, &engine.status));
		UNIT_CONTAINS(engine.status.message, wrong_options[i].message);
	}
}

UNIT_TEST(options_are_read)
{
	static const char json[] =
		"{\"r\": 8, \"alpha\": 4.5, \"target_modules\": [\"ff.1\", \"q_proj\"], "
		"\"learning_rate\": 0.01, \"schedule\": \"linear\", \"shuffle\": false, \"seed\": 7, "
		"\"epochs\": 3, \"unusable\": \"fail\"}";
	TrainOptions options;

	train_options_defaults(&options);
	UNIT_CHECK(train_options_read(json, strlen(json), &options, &engine.status));
	UNIT_EQUAL_INT(options.r, 8);
	UNIT_NEAR(options.alpha, 4.5, 0);
	UNIT_EQUAL_INT(options.targets, 1u << LORA_FF_1 | 1u << LORA_Q_PROJ);
	UNIT_NEAR(options.learning_rate, 0.01, 0);
	UNIT_EQUAL_INT(options.schedule, SCHEDULE_LINEAR);
	UNIT_CHECK(!options.shuffle && !options.skip_unusable);
	UNIT_EQUAL_INT(options.seed, 7);
	UNIT_EQUAL_INT(options.epochs, 3);
	UNIT_EQUAL_INT(options.max_length, 512);
}

UNIT_TEST(learning_rates_follow_their_schedule)
{
	TrainOptions options;

	train_options_defaults(&options);
	options.learning_rate = 1;
	options.warmup_steps = 4;
	for (int schedule = 0; schedule < 3; schedule++)
	{
		options.schedule = (TrainSchedule) schedule;
		UNIT_NEAR(schedule_learning_rate(&options, 0, 14), 0, 0);
		UNIT_NEAR(schedule_learning_rate(&options, 1, 14), 0.25, 1e-15);
		UNIT_NEAR(schedule_learning_rate(&options, 4, 14), 1, 1e-15);
	}
	options.schedule = SCHEDULE_CONSTANT;
	UNIT_NEAR(schedule_learning_rate(&options, 13, 14), 1, 0);
	options.schedule = SCHEDULE_LINEAR;
	UNIT_NEAR(schedule_learning_rate(&options, 9, 14), 0.5, 1e-15);
	UNIT_NEAR(schedule_learning_rate(&options, 20, 14), 0, 0);
	options.schedule = SCHEDULE_COSINE;
	UNIT_NEAR(schedule_learning_rate(&options, 9, 14), 0.5, 1e-15);
	UNIT_NEAR(schedule_learning_rate(&options, 14, 14), 0, 1e-15);
}

/* ---- the initial adapter ---- */

UNIT_TEST(an_initial_adapter_says_rank_alpha_and_targets)
{
	TrainRun	run = run_open("with_mlp_targets");
	TrainOptions golden = run_options(&run);
	AdapterShape shape = {golden.r, golden.alpha, golden.targets};
	char		directory[] = "/tmp/mmgpt-train-XXXXXX";
	AdapterSource initial = {.directory = directory};
	TrainOptions options;
	Trainer    *trainer;

	save_adapter(&engine, &shape, give_initial, &run, directory);
	train_options_defaults(&options);
	trainer = trainer_create(engine.model, &options, &initial, &engine.status);
	if (UNIT_CHECK(trainer != NULL))
	{
		trainer_adapter_shape(trainer, &shape);
		UNIT_EQUAL_INT(shape.r, golden.r);
		UNIT_NEAR(shape.alpha, golden.alpha, 0);
		UNIT_EQUAL_INT(shape.targets, golden.targets);
	}
	trainer_free(trainer);
	options.r = golden.r + 1;
	UNIT_CHECK(trainer_create(engine.model, &options, &initial, &engine.status) == NULL);
	UNIT_CONTAINS(engine.status.message, "option \"r\" differs from the initial adapter's");
	options.r = 0;
	options.targets = 1u << LORA_Q_PROJ;
	UNIT_CHECK(trainer_create(engine.model, &options, &initial, &engine.status) == NULL);
	UNIT_CONTAINS(engine.status.message, "option \"target_modules\" differs");
	engine_remove_adapter(directory);
	UNIT_CHECK(trainer_create(engine.model, &options, &initial, &engine.status) == NULL);
	UNIT_CONTAINS(engine.status.message, "adapter_config.json");
	run_close(&run);
}

/* PEFT's own reader looks for these keys and names. */
UNIT_TEST(adapters_are_written_as_peft_writes_them)
{
	TrainOptions options;
	Trainer    *trainer;
	AdapterFiles files;
	json_t	   *config;
	GoldenFile	tensors;
	char	   *copy;
	int			count;

	train_options_defaults(&options);
	trainer = trainer_create(engine.model, &options, NULL, &engine.status);
	files = trainer_adapter(&engine, trainer);
	config = json_loads(files.config, 0, NULL);
	UNIT_EQUAL_TEXT(json_string_value(json_object_get(config, "peft_type")), "LORA");
	UNIT_EQUAL_INT(json_integer_value(json_object_get(config, "r")), 16);
	UNIT_NEAR(json_number_value(json_object_get(config, "lora_alpha")), 16, 0);
	UNIT_EQUAL_INT(json_array_size(json_object_get(config, "target_modules")), 9);
	UNIT_EQUAL_TEXT(json_string_value(json_array_get(json_object_get(config, "target_modules"), 8)),
					"ff.3");
	copy = malloc(files.tensors_size);
	memcpy(copy, files.tensors, files.tensors_size);
	tensors = golden_parse(copy, "the adapter");
	UNIT_EQUAL_INT((tensors.data - tensors.bytes) % 8, 0);
	golden_values(&tensors, "base_model.model.model.layers.3.",
				  "decoder_layer.self_attn.v_proj.lora_A.weight", &count);
	UNIT_EQUAL_INT(count, 16 * 96);
	golden_values(&tensors, "base_model.model.model.layers.1.",
				  "gated_cross_attn_layer.ff.1.lora_B.weight", &count);
	UNIT_EQUAL_INT(count, 384 * 16);
	golden_close(&tensors);
	json_decref(config);
	trainer_free(trainer);
}

int
main(int argc, char **argv)
{
	int			result;

	engine = engine_open(MODEL_A, "auto", 2, 0);
	result = unit_run(argc, argv);
	engine_close(&engine);
	return result;
}
