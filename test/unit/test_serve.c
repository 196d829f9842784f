/*
 * test_serve.c - requests without sockets: options, fields of frames, the tasks.
 *
 * Requests are made of payloads as a backend sends them, prepared, and run by a scheduler
 * of the demo model in this thread. Classification and scores have test_classify.c.
 */
#include "service.h"

#define PICTURE "test/golden/demo/pictures/00.png"

/* ---- options ---- */

/* Read options; the arena of the result is freed by the caller through *arena. */
static bool
read_options(const char *json, bool command_line, Arena **arena, RequestOptions *options,
			 Status *status)
{
	*arena = arena_create();
	request_options_defaults(options);
	status_clear(status);
	return request_options_read(json, strlen(json), command_line, *arena, options, status);
}

/* Check that options are refused with a code and a message that holds a text. */
static void
check_refused(const char *json, StatusCode code, const char *part)
{
	RequestOptions options;
	Status		status;
	Arena	   *arena;

	UNIT_CHECK(!read_options(json, false, &arena, &options, &status));
	UNIT_EQUAL_INT(status.code, code);
	UNIT_CONTAINS(status.message, part);
	arena_free(arena);
}

UNIT_TEST(options_are_read)
{
	RequestOptions options;
	Status		status;
	Arena	   *arena;

	UNIT_CHECK(read_options(
		"{\"max_tokens\": 7, \"temperature\": 0.5, \"top_k\": 3, \"top_p\": 0.25, \"seed\": -9,"
		" \"stop\": [\"a\", \"bc\"], \"input\": \"x y\", \"threshold\": 0.75}",
		false, &arena, &options, &status));
	UNIT_EQUAL_INT(options.max_tokens, 7);
	UNIT_NEAR(options.temperature, 0.5, 0);
	UNIT_EQUAL_INT(options.top_k, 3);
	UNIT_NEAR(options.top_p, 0.25, 0);
	UNIT_CHECK(options.has_seed);
	UNIT_EQUAL_INT(options.seed, -9);
	UNIT_EQUAL_INT(options.stop_count, 2);
	UNIT_EQUAL_TEXT(options.stops[1], "bc");
	UNIT_EQUAL_TEXT(options.input, "x y");
	UNIT_NEAR(options.threshold, 0.75, 0);
	arena_free(arena);
}

UNIT_TEST(absent_options_leave_the_defaults)
{
	RequestOptions options;
	Status		status;
	Arena	   *arena;

	UNIT_CHECK(read_options("", false, &arena, &options, &status));
	UNIT_EQUAL_INT(options.max_tokens, 256);
	UNIT_NEAR(options.temperature, 0, 0);
	UNIT_CHECK(!options.has_seed);
	arena_free(arena);
	UNIT_CHECK(read_options("null", false, &arena, &options, &status));
	UNIT_EQUAL_INT(options.max_tokens, 256);
	arena_free(arena);
}

UNIT_TEST(wrong_options_are_named)
{
	check_refused("{\"max_token\": 1}", STATUS_INVALID_ARGUMENT, "unknown option \"max_token\"");
	check_refused("{\"max_tokens\": 0}", STATUS_INVALID_ARGUMENT,
				  "option \"max_tokens\" must be an integer between 1 and 1000000, not 0");
	check_refused("{\"max_tokens\": 1.5}", STATUS_INVALID_ARGUMENT, "not 1.5");
	check_refused("{\"max_tokens\": \"1\"}", STATUS_INVALID_ARGUMENT, "not \"1\"");
	check_refused("{\"temperature\": -0.1}", STATUS_INVALID_ARGUMENT, "\"temperature\"");
	check_refused("{\"top_p\": 0}", STATUS_INVALID_ARGUMENT, "above 0 and at most 1");
	check_refused("{\"top_p\": true}", STATUS_INVALID_ARGUMENT, "not true");
	check_refused("{\"seed\": 1e3}", STATUS_INVALID_ARGUMENT, "\"seed\"");
	check_refused("{\"stop\": []}", STATUS_INVALID_ARGUMENT, "\"stop\"");
	check_refused("{\"stop\": [\"\"]}", STATUS_INVALID_ARGUMENT, "\"stop\"");
	check_refused("{\"logprobs\": 1}", STATUS_INVALID_ARGUMENT, "true or false");
	check_refused("{\"threshold\": 2}", STATUS_INVALID_ARGUMENT, "between 0 and 1");
	check_refused("{\"num_beams\": 17}", STATUS_INVALID_ARGUMENT, "num_beams");
	check_refused("{\"no_repeat_ngram_size\": -1}", STATUS_INVALID_ARGUMENT,
				  "no_repeat_ngram_size");
	check_refused("{\"adapter\": 5}", STATUS_INVALID_ARGUMENT,
				  "name of an adapter, or null, not 5");
	check_refused("{\"eos_token_id\": 5}", STATUS_INVALID_ARGUMENT,
				  "unknown option \"eos_token_id\"");
}

UNIT_TEST(an_adapter_is_a_name_or_none)
{
	RequestOptions options;
	Status		status;
	Arena	   *arena;

	UNIT_CHECK(read_options("{}", false, &arena, &options, &status));
	UNIT_CHECK(options.adapter_name == NULL);
	arena_free(arena);
	UNIT_CHECK(read_options("{\"adapter\": \"support\"}", false, &arena, &options, &status));
	UNIT_EQUAL_TEXT(options.adapter_name, "support");
	arena_free(arena);
	UNIT_CHECK(read_options("{\"adapter\": null}", false, &arena, &options, &status));
	UNIT_EQUAL_TEXT(options.adapter_name, "");
	arena_free(arena);
}

UNIT_TEST(options_that_are_no_object_are_refused)
{
	check_refused("[1]", STATUS_INVALID_JSON, "not a JSON object");
	check_refused("5", STATUS_INVALID_JSON, "not a JSON object");
	check_refused("{\"seed\": 1", STATUS_INVALID_JSON, "not valid JSON");
	check_refused("{\"seed\": 1, \"seed\": 2}", STATUS_INVALID_JSON, "not valid JSON");
}

UNIT_TEST(the_command_line_may_choose_its_end_token)
{
	RequestOptions options;
	Status		status;
	Arena	   *arena;

	UNIT_CHECK(read_options("{\"eos_token_id\": 5}", true, &arena, &options, &status));
	UNIT_EQUAL_INT(options.eos_token_id, 5);
	arena_free(arena);
}

/* ---- requests ---- */

/*
 * Run a request of a kind with a prompt and options; its failure is checked against code and text.
 */
static void
check_failure(Engine *engine, WireWriter writer, StatusCode code, const char *part)
{
	Request    *request = payload_request(&writer);

	run_request(engine, request);
	UNIT_CHECK(!status_good(&request->status));
	UNIT_EQUAL_INT(request->status.code, code);
	UNIT_CONTAINS(request->status.message, part);
	request_free(request);
}

UNIT_TEST(bad_payloads_become_failures)
{
	uint8_t    *bytes = calloc(1, 12);
	Request    *request;

	request = request_create(1, bytes, 5, NULL);
	UNIT_EQUAL_INT(request->status.code, STATUS_PROTOCOL);
	request_free(request);
	bytes = malloc(12);
	memset(bytes, 0xff, 12);
	request = request_create(1, bytes, 12, NULL);
	UNIT_EQUAL_INT(request->status.code, STATUS_PROTOCOL);
	request_free(request);
	request = request_create(1, malloc(1), 0, NULL);
	UNIT_EQUAL_INT(request->status.code, STATUS_PROTOCOL);
	UNIT_CONTAINS(request->status.message, "unknown kind of request 0");
	request_free(request);
}

UNIT_TEST(requests_that_are_wrong_say_why)
{
	Engine		engine = engine_open(DEMO_MODEL, "auto", 1, -1);
	WireWriter	writer = payload_begin(WIRE_KIND_CHAT);
	char	   *prompt = malloc(100000);

	check_failure(&engine, writer, STATUS_PROTOCOL, "without a prompt");
	writer = payload_begin(WIRE_KIND_CAPTION);
	payload_text(&writer, WIRE_FIELD_PROMPT, "long");
	check_failure(&engine, writer, STATUS_INVALID_ARGUMENT, "unknown detail \"long\"");
	writer = payload_begin(WIRE_KIND_CHAT);
	payload_text(&writer, WIRE_FIELD_PROMPT, "?");
	payload_text(&writer, WIRE_FIELD_HISTORY, "{}");
	check_failure(&engine, writer, STATUS_INVALID_JSON, "history");
	writer = payload_begin(WIRE_KIND_CHAT);
	payload_text(&writer, WIRE_FIELD_PROMPT, "?");
	payload_text(&writer, WIRE_FIELD_IMAGE, "GIF89a");
	check_failure(&engine, writer, STATUS_INVALID_IMAGE, "neither JPEG nor PNG");
	writer = payload_begin(WIRE_KIND_CHAT);
	payload_text(&writer, WIRE_FIELD_PROMPT, "\xff");
	check_failure(&engine, writer, STATUS_INVALID_TEXT, "UTF-8");
	writer = payload_begin(WIRE_KIND_CHAT);
	payload_text(&writer, WIRE_FIELD_PROMPT, "?");
	wire_write_u32(&writer, WIRE_FIELD_MAX_TOKENS, 0);
	check_failure(&engine, writer, STATUS_INVALID_ARGUMENT, "out of range");
	memset(prompt, 'q', 99999);
	prompt[99999] = '\0';
	writer = payload_begin(WIRE_KIND_CHAT);
	payload_text(&writer, WIRE_FIELD_PROMPT, prompt);
	check_failure(&engine, writer, STATUS_PROMPT_TOO_LONG, "context of 2048 tokens");
	free(prompt);
	engine_close(&engine);
}

UNIT_TEST(only_digits_can_begin_and_go_on_a_number)
{
	Engine		engine = engine_open(DEMO_MODEL, "auto", 1, -1);
	ModelContext context;
	int			first = 0;

	UNIT_CHECK(model_context_create(&context, engine.config, engine.tokenizer, engine.arena,
									&engine.status));
	for (int32_t id = 0; id < engine.config->decoder.vocabulary; id++)
	{
		bool		begins = (context.digits_first[id / 32] >> (id % 32) & 1) != 0;
		bool		goes_on = (context.digits_rest[id / 32] >> (id % 32) & 1) != 0;
		const char *piece = tokenizer_piece(engine.tokenizer, id);
		size_t		mark = strncmp(piece, "\xE2\x96\x81", 3) == 0 ? 3 : 0;
		bool		digits = piece[mark] != '\0' &&
							 strspn(piece + mark, "0123456789") == strlen(piece + mark);

		UNIT_EQUAL_INT(begins, digits);
		UNIT_EQUAL_INT(goes_on, (digits && mark == 0) || id == engine.config->eos);
		first += begins;
	}
	UNIT_CHECK(first >= 10);
	engine_close(&engine);
}

/* Ask about the picture; the answer's fields point into the request. */
static Request *
ask_about_picture(Engine *engine, WireKind kind, const char *prompt, bool digits,
				  WireFields *fields)
{
	WireWriter	writer = payload_begin(kind);
	Request    *request;

	payload_text(&writer, WIRE_FIELD_PROMPT, prompt);
	payload_file(&writer, PICTURE);
	request = payload_request(&writer);
	request->counting_digits = digits;
	run_request(engine, request);
	*fields = answer_fields(request);
	return request;
}

UNIT_TEST(a_count_is_a_number)
{
	Engine		engine = engine_open(DEMO_MODEL, "auto", 1, -1);
	WireFields	fields;
	Request    *request = ask_about_picture(&engine, WIRE_KIND_COUNT, "dogs", false, &fields);
	int64_t		count = wire_get_i64(&fields, WIRE_FIELD_INTEGER, -1);

	UNIT_CHECK(count >= 0 && count < 20);
	request_free(request);
	/* an answer without a number is asked for again, with digits only; here from the start */
	request = ask_about_picture(&engine, WIRE_KIND_COUNT, "dogs", true, &fields);
	UNIT_CHECK(wire_get_i64(&fields, WIRE_FIELD_INTEGER, -1) >= 0);
	UNIT_CHECK(request->new_tokens <= 9);
	request_free(request);
	engine_close(&engine);
}

UNIT_TEST(a_score_is_a_probability_and_the_filter_its_threshold)
{
	Engine		engine = engine_open(DEMO_MODEL, "auto", 1, -1);
	WireFields	fields;
	Request *request = ask_about_picture(&engine, WIRE_KIND_SCORE, "Is there a dog?", false,
										 &fields);
	double		score = wire_get_f64(&fields, WIRE_FIELD_REAL, -1);

	UNIT_CHECK(score >= 0 && score <= 1);
	request_free(request);
	request = ask_about_picture(&engine, WIRE_KIND_FILTER, "Is there a dog?", false, &fields);
	UNIT_NEAR(wire_get_f64(&fields, WIRE_FIELD_REAL, -1), score, 0);
	UNIT_EQUAL_INT(wire_get_u32(&fields, WIRE_FIELD_BOOLEAN, 2), score >= 0.5);
	request_free(request);
	engine_close(&engine);
}

UNIT_TEST(a_turn_is_appended_to_the_history)
{
	Engine		engine = engine_open(DEMO_MODEL, "auto", 1, -1);
	WireWriter	writer = payload_begin(WIRE_KIND_CHAT_TURN);
	WireFields	fields;
	Request    *request;
	json_t	   *turns;

	payload_text(&writer, WIRE_FIELD_PROMPT, "And </s> now?");
	payload_text(&writer, WIRE_FIELD_HISTORY,
				 "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
				 "\"content\": \"b\"}]");
	request = payload_request(&writer);
	run_request(&engine, request);
	fields = answer_fields(request);
	turns = json_loadb((const char *) fields.bytes[WIRE_FIELD_JSON], fields.length[WIRE_FIELD_JSON],
					   0, NULL);
	UNIT_EQUAL_INT(json_array_size(turns), 4);
	UNIT_EQUAL_TEXT(json_string_value(json_object_get(json_array_get(turns, 2), "content")),
					"And </s> now?");
	UNIT_EQUAL_TEXT(json_string_value(json_object_get(json_array_get(turns, 3), "role")),
					"assistant");
	json_decref(turns);
	request_free(request);
	engine_close(&engine);
}

/* Ask for the log-probabilities of an answer of four tokens at most. */
static Request *
ask_for_logprobs(Engine *engine, WireKind kind)
{
	WireWriter	writer = payload_begin(kind);
	Request    *request;

	payload_text(&writer, WIRE_FIELD_PROMPT, "What is this?");
	payload_text(&writer, WIRE_FIELD_OPTIONS, "{\"logprobs\": true, \"max_tokens\": 4}");
	request = payload_request(&writer);
	run_request(engine, request);
	return request;
}

UNIT_TEST(a_turn_tells_how_sure_its_tokens_are)
{
	Engine		engine = engine_open(DEMO_MODEL, "auto", 1, -1);
	Request    *request = ask_for_logprobs(&engine, WIRE_KIND_CHAT_TURN);
	WireFields	fields = answer_fields(request);
	json_t	   *turns = json_loadb((const char *) fields.bytes[WIRE_FIELD_JSON],
								   fields.length[WIRE_FIELD_JSON], 0, NULL);
	json_t	   *logprobs = json_object_get(json_array_get(turns, 1), "logprobs");

	UNIT_EQUAL_INT(json_array_size(logprobs), wire_get_u32(&fields, WIRE_FIELD_NEW_TOKENS, 0));
	UNIT_CHECK(json_array_size(logprobs) > 0);
	for (size_t i = 0; i < json_array_size(logprobs); i++)
	{
		const json_t *token = json_array_get(logprobs, i);

		UNIT_EQUAL_TEXT(json_string_value(json_object_get(token, "token")),
						tokenizer_piece(engine.tokenizer, (int32_t) json_integer_value(
											json_object_get(token, "id"))));
		UNIT_CHECK(json_number_value(json_object_get(token, "logprob")) <= 0);
	}
	UNIT_CHECK(json_object_get(json_array_get(turns, 0), "logprobs") == NULL);
	json_decref(turns);
	request_free(request);
	/* others have no room for them in their answer */
	request = ask_for_logprobs(&engine, WIRE_KIND_CHAT);
	UNIT_EQUAL_INT(request->status.code, STATUS_INVALID_ARGUMENT);
	UNIT_CONTAINS(request->status.message, "logprobs");
	request_free(request);
	engine_close(&engine);
}

UNIT_TEST(a_cancelled_request_ends_without_an_answer)
{
	Engine		engine = engine_open(DEMO_MODEL, "auto", 1, -1);
	WireWriter	writer = payload_begin(WIRE_KIND_CHAT);
	Request    *request;

	payload_text(&writer, WIRE_FIELD_PROMPT, "What is this?");
	payload_file(&writer, PICTURE);
	request = payload_request(&writer);
	atomic_store(&request->cancelled, true);
	run_request(&engine, request);
	UNIT_CHECK(!request->answered);
	request_free(request);
	engine_close(&engine);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
