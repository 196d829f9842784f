/*
 * test_classify.c - the tasks that read log-probabilities: score, filter, classify,
 * classify_multi.
 *
 *	by hand		answers on model-a are those of log-softmax sums over the logits of a full
 *				forward pass, over the ids that the original's tokenizer gives for prompt and
 *				answer as one text
 *	alike		classify_multi judges a label as mmgpt_score judges its question, to the last bit
 *	cost		a picture asked about before is not encoded again, nor what prompts share
 *	bad input	named by its place
 */
#include <unistd.h>

#include "service.h"

#define PICTURE MODEL_A "/images/img0.png"
#define MAX_TOKENS 512
#define TOLERANCE 1e-5

static const char *const labels[] = {"cat", "a red bus behind a tree", "dog", "x", "Tisch",
	"caf\xC3\xA9 \xE2\x82\xAC", "seventeen", NULL};

#define LABELS ((int) (sizeof(labels) / sizeof(labels[0])) - 1)

/* What the engine reads before an answer, as text; %s is the question. */
static const char prompt_format[] =
	"Below is an instruction that describes a task. Write a response that appropriately completes "
	"the request.\n\n### Image:\n<image>\n\n### Instruction:\n%s\n\n### Response:\n";

/* The ids of a prompt with an answer behind it, which may end with "</s>". */
static int
encode_by_hand(Engine *engine, const char *question, const char *answer, int32_t *ids)
{
	char		text[2048];
	int			length = snprintf(text, sizeof(text), prompt_format, question);
	TokenList	list;

	snprintf(text + length, sizeof(text) - (size_t) length, "%s", answer);
	token_list_begin(&list, engine->arena);
	if (!tokenizer_encode_special(engine->tokenizer, text, strlen(text), &list, &engine->status) ||
		list.count > MAX_TOKENS)
		engine_bail(text, &engine->status);
	memcpy(ids, list.ids, (size_t) list.count * sizeof(int32_t));
	return list.count;
}

/* The log-probability of an answer behind a question about a picture. */
static double
sum_by_hand(Engine *engine, const Picture *picture, const char *question, const char *answer)
{
	int			vocabulary = engine->config->decoder.vocabulary;
	int32_t		ids[MAX_TOKENS];
	int			prompt = encode_by_hand(engine, question, "", ids);
	int			count = encode_by_hand(engine, question, answer, ids);
	float	   *logits = engine_forward(engine, picture, 1, NULL, ids, count, 256);
	double		sum = 0;

	UNIT_CHECK(count > prompt);
	for (int i = prompt; i < count; i++)
	{
		const float *row = logits + (size_t) (i - 1) * (size_t) vocabulary;
		double		total = 0;

		for (int j = 0; j < vocabulary; j++)
			total += exp(row[j] - row[ids[i]]);
		sum -= log(total);
	}
	free(logits);
	return sum;
}

/* p(yes) / (p(yes) + p(no)) with the built-in words. */
static double
score_by_hand(Engine *engine, const Picture *picture, const char *question)
{
	double		yes = exp(sum_by_hand(engine, picture, question, "Yes")) +
		exp(sum_by_hand(engine, picture, question, "yes"));
	double		no = exp(sum_by_hand(engine, picture, question, "No")) +
		exp(sum_by_hand(engine, picture, question, "no"));

	return yes / (yes + no);
}

/* Ask about the picture; text becomes the prompt, list the labels, each where it is not NULL. */
static Request *
ask_on(Engine *engine, Scheduler *scheduler, WireKind kind, const char *text,
	   const char *const *list, const char *options)
{
	WireWriter	writer = payload_begin(kind);
	Request    *request;

	wire_write_u32(&writer, WIRE_FIELD_ROLE, 10);
	if (text != NULL)
		payload_text(&writer, WIRE_FIELD_PROMPT, text);
	if (list != NULL)
		payload_labels(&writer, list);
	if (options != NULL)
		payload_text(&writer, WIRE_FIELD_OPTIONS, options);
	payload_file(&writer, PICTURE);
	request = payload_request(&writer);
	service_run(engine, scheduler, request);
	return request;
}

static Request *
ask(Engine *engine, WireKind kind, const char *text, const char *const *list, const char *options)
{
	Scheduler  *scheduler = service_scheduler(engine);
	Request    *request = ask_on(engine, scheduler, kind, text, list, options);

	scheduler_free(scheduler);
	return request;
}

static double
ask_score(Engine *engine, const char *condition)
{
	Request    *request = ask(engine, WIRE_KIND_SCORE, condition, NULL, NULL);
	WireFields	fields = answer_fields(request);
	double		score = wire_get_f64(&fields, WIRE_FIELD_REAL, -1);

	request_free(request);
	return score;
}

/* The place of the label that is chosen. */
static int
ask_label(Engine *engine, const char *const *list)
{
	Request    *request = ask(engine, WIRE_KIND_CLASSIFY, NULL, list, NULL);
	WireFields	fields = answer_fields(request);
	int			place = (int) wire_get_i64(&fields, WIRE_FIELD_INTEGER, -1);

	request_free(request);
	return place;
}

/* One character for each label: 1 where it is chosen. */
static char *
ask_labels(Engine *engine, const char *const *list, const char *options)
{
	static char chosen[LABELS + 1];
	Request    *request = ask(engine, WIRE_KIND_CLASSIFY_MULTI, NULL, list, options);
	WireFields	fields = answer_fields(request);

	memset(chosen, '0', LABELS);
	for (size_t i = 0; i < fields.length[WIRE_FIELD_PLACES]; i += sizeof(uint32_t))
	{
		uint32_t	place;

		memcpy(&place, fields.bytes[WIRE_FIELD_PLACES] + i, sizeof(place));
		if (UNIT_CHECK(place < LABELS))
			chosen[place] = '1';
	}
	request_free(request);
	return chosen;
}

/*
 * Check what is chosen against sums by hand, where before and after stand around a label in an
 * answer. The chosen label is taken away again and again, so that the whole order shows.
 */
static void
check_order(Engine *engine, const char *question, const char *before, const char *after)
{
	Request    *request = ask(engine, WIRE_KIND_CLASSIFY, NULL, labels, NULL);
	const char *left[LABELS + 1];
	double		sums[LABELS];

	memcpy(left, labels, sizeof(labels));
	for (int i = 0; i < LABELS; i++)
	{
		char		answer[64];

		snprintf(answer, sizeof(answer), "%s%s%s</s>", before, labels[i], after);
		sums[i] = sum_by_hand(engine, &request->picture, question, answer);
	}
	for (int count = LABELS; count > 0; count--)
	{
		int			best = 0;

		for (int i = 1; i < count; i++)
			best = sums[i] > sums[best] ? i : best;
		UNIT_EQUAL_INT(ask_label(engine, left), best);
		memmove(left + best, left + best + 1, (size_t) (count - best) * sizeof(*left));
		memmove(sums + best, sums + best + 1, (size_t) (count - best - 1) * sizeof(*sums));
	}
	request_free(request);
}

UNIT_TEST(the_chosen_label_is_the_most_likely_answer)
{
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);

	check_order(&engine, "What is shown in this image?", "", "");
	engine_close(&engine);
}

/* The question that classify_multi asks about a label, before the filter prompt. */
static const char *
question_of(const char *label)
{
	static char question[128];

	snprintf(question, sizeof(question), "Does the image show %s?", label);
	return question;
}

UNIT_TEST(a_score_is_that_of_the_words_by_hand)
{
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Request    *request = ask(&engine, WIRE_KIND_SCORE, "?", NULL, NULL);

	for (int i = 0; i < LABELS; i++)
	{
		char		asked[160];

		snprintf(asked, sizeof(asked), "%s Answer yes or no.", question_of(labels[i]));
		UNIT_NEAR(ask_score(&engine, question_of(labels[i])),
				  score_by_hand(&engine, &request->picture, asked), TOLERANCE);
	}
	request_free(request);
	engine_close(&engine);
}

UNIT_TEST(each_of_many_labels_is_judged_like_its_question_alone)
{
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);

	for (int i = 0; i < LABELS; i++)
	{
		double		score = ask_score(&engine, question_of(labels[i]));
		const char *alone[2] = {labels[i], NULL};
		char		at[64];
		char		above[64];

		snprintf(at, sizeof(at), "{\"threshold\": %.17g}", score);
		snprintf(above, sizeof(above), "{\"threshold\": %.17g}", nextafter(score, 2));
		UNIT_CHECK(ask_labels(&engine, labels, at)[i] == '1');
		UNIT_CHECK(ask_labels(&engine, labels, above)[i] == '0');
		UNIT_CHECK(ask_labels(&engine, alone, at)[0] == '1');
		UNIT_CHECK(ask_labels(&engine, alone, above)[0] == '0');
	}
	UNIT_EQUAL_TEXT(ask_labels(&engine, labels, "{\"threshold\": 0}"), "1111111");
	UNIT_EQUAL_TEXT(ask_labels(&engine, labels, "{\"threshold\": 1}"), "0000000");
	engine_close(&engine);
}

/* Copy a file of model-a; the output matrix becomes zero where indifferent is true. */
static void
copy_file(const char *directory, const char *name, bool indifferent)
{
	char		path[256];
	size_t		length;
	char	   *bytes;
	FILE	   *file;

	snprintf(path, sizeof(path), MODEL_A "/%s", name);
	bytes = unit_read_file(path, &length);
	if (indifferent)
	{
		GoldenFile	tensors = golden_open(path);
		int			count;
		const char *weights = golden_values(&tensors, "lang_encoder.lm_head", ".weight", &count);

		memset(bytes + (weights - tensors.bytes), 0, (size_t) count * sizeof(float));
		golden_close(&tensors);
	}
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "wb");
	if (file == NULL || fwrite(bytes, 1, length, file) != length || fclose(file) != 0)
		engine_bail(path, NULL);
	free(bytes);
}

/*
 * A copy of model-a with other prompts, to which all tokens are equally likely where
 * indifferent is true. directory is a template of mkdtemp.
 */
static void
make_model(char *directory, json_t *prompts, bool indifferent)
{
	json_t	   *config = golden_json(MODEL_A "/config.json");
	char		path[256];

	if (mkdtemp(directory) == NULL)
		engine_bail(directory, NULL);
	copy_file(directory, "tokenizer.model", false);
	copy_file(directory, "model.safetensors", indifferent);
	json_object_set_new(config, "prompts", prompts);
	snprintf(path, sizeof(path), "%s/config.json", directory);
	if (json_dump_file(config, path, 0) != 0)
		engine_bail(path, NULL);
	json_decref(config);
}

/* What a request was asked, as the prompt in its dialogue. */
static void
check_prompt(Engine *engine, WireKind kind, const char *expected)
{
	static const char *const two[] = {"red", "green", NULL};
	Request    *request = ask(engine, kind, NULL, two, NULL);
	const DialogueRound *round = &request->dialogue.rounds[0];
	char		prompt[128];

	snprintf(prompt, sizeof(prompt), "%.*s", (int) round->prompt.length, round->prompt.text);
	UNIT_EQUAL_TEXT(prompt, expected);
	request_free(request);
}

UNIT_TEST(words_and_prompts_are_the_configs)
{
	char		directory[] = "/tmp/mmgpt-classify-XXXXXX";
	Engine		engine;
	Request    *request;
	double		yes = 0;
	double		no = 0;
	/* words of several tokens; "Yes, sir" begins with "Yes" and counts with it */
	static const char *const words[] = {"Yes, sir", "Yes", "It is so", "It is not", "Never mind"};

	make_model(directory,
			   json_pack("{s:s, s:s, s:s, s:[sss], s:[ss]}", "filter", "Q: {}", "classify",
						 "Which of {}?", "classify_multi", "Is it {}?", "yes_words", words[0],
						 words[1], words[2], "no_words", words[3], words[4]), false);
	engine = engine_open(directory, "auto", 2, 0);
	request = ask(&engine, WIRE_KIND_SCORE, "red", NULL, NULL);
	for (int i = 1; i < 5; i++)
		*(i < 3 ? &yes : &no) += exp(sum_by_hand(&engine, &request->picture, "Q: red", words[i]));
	UNIT_NEAR(ask_score(&engine, "red"), yes / (yes + no), TOLERANCE);
	request_free(request);
	check_prompt(&engine, WIRE_KIND_CLASSIFY, "Which of red, green?");
	check_prompt(&engine, WIRE_KIND_CLASSIFY_MULTI, "Q: Is it green?");
	engine_close(&engine);
	engine_remove_model(directory);
}

UNIT_TEST(labels_are_put_into_the_models_answer)
{
	char		directory[] = "/tmp/mmgpt-classify-XXXXXX";
	Engine		engine;

	make_model(directory,
			   json_pack("{s:s, s:s}", "classify", "What?", "classify_answer", "It is a {}, sir."),
			   false);
	engine = engine_open(directory, "auto", 2, 0);
	check_order(&engine, "What?", "It is a ", ", sir.");
	engine_close(&engine);
	engine_remove_model(directory);
}

UNIT_TEST(the_first_of_equally_likely_labels_is_chosen)
{
	/* to a model that finds all tokens alike only the number of tokens matters */
	static const char *const equal[] = {"no one", "s", "t", "7", NULL};
	static const char *const swapped[] = {"no one", "7", "t", "s", NULL};
	char		directory[] = "/tmp/mmgpt-classify-XXXXXX";
	Engine		engine;

	make_model(directory, json_object(), true);
	engine = engine_open(directory, "auto", 2, 0);
	UNIT_EQUAL_INT(ask_label(&engine, equal), 1);
	UNIT_EQUAL_INT(ask_label(&engine, swapped), 1);
	engine_close(&engine);
	engine_remove_model(directory);
}

/* What a kind of request costs on a scheduler, in prompt tokens computed and images encoded. */
static SchedulerCounters
cost_of(Engine *engine, Scheduler *scheduler, WireKind kind, const char *text,
		const char *const *list)
{
	SchedulerCounters before;
	SchedulerCounters after;
	Request    *request;

	scheduler_counters(scheduler, &before);
	request = ask_on(engine, scheduler, kind, text, list, NULL);
	answer_fields(request);
	request_free(request);
	scheduler_counters(scheduler, &after);
	after.steps -= before.steps;
	after.rows -= before.rows;
	after.prompt_tokens -= before.prompt_tokens;
	after.prompt_tokens_reused -= before.prompt_tokens_reused;
	after.images_encoded -= before.images_encoded;
	after.images_found -= before.images_found;
	return after;
}

/* Tokens of the labels alone, behind a prompt. */
static int
label_tokens(Engine *engine)
{
	int32_t		ids[MAX_TOKENS];
	int			prompt = encode_by_hand(engine, "", "", ids);
	int			count = 0;

	for (int i = 0; i < LABELS; i++)
		count += encode_by_hand(engine, "", labels[i], ids) - prompt;
	return count;
}

UNIT_TEST(labels_of_a_picture_asked_about_cost_their_own_tokens)
{
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Scheduler  *scheduler = service_scheduler(&engine);
	int32_t		ids[MAX_TOKENS];
	int			prompt = encode_by_hand(&engine, "What is shown in this image?", "", ids);
	SchedulerCounters cost = cost_of(&engine, scheduler, WIRE_KIND_CLASSIFY, NULL, labels);

	/* all labels follow one prompt in one step */
	UNIT_EQUAL_INT(cost.steps, 2);
	UNIT_EQUAL_INT(cost.rows, 1 + LABELS);
	UNIT_EQUAL_INT(cost.images_encoded, 1);
	UNIT_EQUAL_INT(cost.prompt_tokens, prompt + label_tokens(&engine));
	/* asked again: the logits behind the prompt, and the labels */
	cost = cost_of(&engine, scheduler, WIRE_KIND_CLASSIFY, NULL, labels);
	UNIT_EQUAL_INT(cost.images_encoded, 0);
	UNIT_EQUAL_INT(cost.images_found, 1);
	UNIT_EQUAL_INT(cost.prompt_tokens_reused, prompt - 1);
	UNIT_EQUAL_INT(cost.prompt_tokens, 1 + label_tokens(&engine));
	scheduler_free(scheduler);
	engine_close(&engine);
}

UNIT_TEST(what_answers_begin_with_is_computed_once)
{
	static const char *const buses[] = {"a red bus", "a red car", "a red b", NULL};
	static const char *const one[] = {"a red bus", NULL};
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Scheduler  *scheduler = service_scheduler(&engine);
	int32_t		ids[3][MAX_TOKENS];
	int			counts[3];
	int			common = 0;
	SchedulerCounters cost = cost_of(&engine, scheduler, WIRE_KIND_CLASSIFY, NULL, buses);

	for (int i = 0; i < 3; i++)
		counts[i] = encode_by_hand(&engine, "What is shown in this image?", buses[i], ids[i]);
	while (ids[0][common] == ids[1][common] && ids[0][common] == ids[2][common])
		common++;
	UNIT_EQUAL_INT(cost.steps, 2);
	UNIT_EQUAL_INT(cost.prompt_tokens, counts[0] + counts[1] + counts[2] - 2 * common);
	/* of one label, all but the end token's look-up is the beginning */
	cost = cost_of(&engine, scheduler, WIRE_KIND_CLASSIFY, NULL, one);
	UNIT_EQUAL_INT(cost.prompt_tokens_reused, common);
	UNIT_EQUAL_INT(cost.prompt_tokens, counts[0] - common);
	scheduler_free(scheduler);
	engine_close(&engine);
}

UNIT_TEST(questions_about_labels_share_their_beginning)
{
	static const char *const three[] = {"cat", "dog", "bird", NULL};
	char		directory[] = "/tmp/mmgpt-classify-XXXXXX";
	Engine		engine;
	Scheduler  *scheduler;
	int32_t		ids[3][MAX_TOKENS];
	int			counts[3];
	int			common = 0;
	SchedulerCounters cost;

	/* words of one token, as with LLaMA's vocabulary: one sequence judges a label */
	make_model(directory, json_pack("{s:s, s:s, s:[s], s:[ss]}", "filter", "{}", "classify_multi",
									"Is it a {}?", "yes_words", "s", "no_words", "t", "7"), false);
	engine = engine_open(directory, "auto", 2, 0);
	scheduler = service_scheduler(&engine);
	for (int i = 0; i < 3; i++)
	{
		char		question[64];

		snprintf(question, sizeof(question), "Is it a %s?", three[i]);
		counts[i] = encode_by_hand(&engine, question, "", ids[i]);
	}
	while (ids[0][common] == ids[1][common] && ids[0][common] == ids[2][common])
		common++;
	cost = cost_of(&engine, scheduler, WIRE_KIND_SCORE, "Is it a cat?", NULL);
	UNIT_EQUAL_INT(cost.prompt_tokens, counts[0]);
	cost = cost_of(&engine, scheduler, WIRE_KIND_CLASSIFY_MULTI, NULL, three);
	UNIT_EQUAL_INT(cost.steps, 1);
	UNIT_EQUAL_INT(cost.rows, 3);
	UNIT_EQUAL_INT(cost.images_encoded, 0);
	UNIT_EQUAL_INT(cost.images_found, 1);
	UNIT_EQUAL_INT(cost.prompt_tokens_reused, common);
	UNIT_EQUAL_INT(cost.prompt_tokens, counts[0] + counts[1] + counts[2] - 3 * common);
	scheduler_free(scheduler);
	engine_close(&engine);
	engine_remove_model(directory);
}

/* Check that labels are refused with a code and text, by both kinds. */
static void
check_refused(Engine *engine, const char *const *list, StatusCode code, const char *part)
{
	static const WireKind kinds[] = {WIRE_KIND_CLASSIFY, WIRE_KIND_CLASSIFY_MULTI};

	for (int i = 0; i < 2; i++)
	{
		Request    *request = ask(engine, kinds[i], NULL, list, NULL);

		UNIT_CHECK(!request->answered);
		UNIT_EQUAL_INT(request->status.code, code);
		UNIT_CONTAINS(request->status.message, part);
		request_free(request);
	}
}

#define REFUSED(code, part, ...) \
	check_refused(&engine, (const char *const []) {__VA_ARGS__, NULL}, code, part)

UNIT_TEST(wrong_labels_are_named)
{
	Engine		engine = engine_open(MODEL_A, "auto", 1, 0);
	char	   *text = malloc(200000);

	check_refused(&engine, NULL, STATUS_INVALID_ARGUMENT, "no labels");
	check_refused(&engine, labels + LABELS, STATUS_INVALID_ARGUMENT, "no labels");
	REFUSED(STATUS_INVALID_ARGUMENT, "label 1 is empty", "", "b");
	REFUSED(STATUS_INVALID_ARGUMENT, "label 3 is nothing but white space", "a", "b", " \t\n");
	REFUSED(STATUS_INVALID_ARGUMENT, "label 3 is the same as label 1", "a", "b", "a", "b");
	REFUSED(STATUS_INVALID_TEXT, "label 2 is not valid UTF-8 at byte offset 1", "a", "b\xff");
	memset(text, 'q', 199999);
	text[199999] = '\0';
	REFUSED(STATUS_PROMPT_TOO_LONG, "label 2 of at least", "a", text);
	/* shorter, but longer than the context all the same */
	text[2300] = '\0';
	REFUSED(STATUS_PROMPT_TOO_LONG, "label 3 of", "a", "b", text);
	free(text);
	engine_close(&engine);
}

UNIT_TEST(lists_that_are_none_or_too_long_are_refused)
{
	Engine		engine = engine_open(MODEL_A, "auto", 1, 0);
	WireWriter	writer = payload_begin(WIRE_KIND_CLASSIFY);
	Request    *request;
	uint8_t    *list = malloc(PAYLOAD_SIZE);
	uint8_t    *end = list;

	payload_text(&writer, WIRE_FIELD_LABELS, "\x05\0\0\0abc");
	request = payload_request(&writer);
	run_request(&engine, request);
	UNIT_EQUAL_INT(request->status.code, STATUS_PROTOCOL);
	request_free(request);
	for (int i = 0; i < 70000; i++)
	{
		char		name[16];

		end = wire_list_add(end, name, (uint32_t) snprintf(name, sizeof(name), "%d", i));
	}
	writer = payload_begin(WIRE_KIND_CLASSIFY_MULTI);
	wire_write_bytes(&writer, WIRE_FIELD_LABELS, list, (size_t) (end - list));
	request = payload_request(&writer);
	run_request(&engine, request);
	UNIT_EQUAL_INT(request->status.code, STATUS_PROMPT_TOO_LONG);
	UNIT_CONTAINS(request->status.message, "more than 65536 labels");
	request_free(request);
	free(list);
	engine_close(&engine);
}

UNIT_TEST(a_cancelled_classification_ends_without_an_answer)
{
	static const WireKind kinds[] = {WIRE_KIND_CLASSIFY, WIRE_KIND_CLASSIFY_MULTI};
	Engine		engine = engine_open(MODEL_A, "auto", 1, 0);

	for (int i = 0; i < 2; i++)
	{
		WireWriter	writer = payload_begin(kinds[i]);
		Request    *request;

		payload_labels(&writer, labels);
		payload_file(&writer, PICTURE);
		request = payload_request(&writer);
		atomic_store(&request->cancelled, true);
		run_request(&engine, request);
		UNIT_CHECK(!request->answered);
		request_free(request);
	}
	engine_close(&engine);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
