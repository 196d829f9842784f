/*
 * test_adapter_server.c - adapters over the socket: NEED and its answer, who is asked, what
 * happens when files are wrong, late, or never come.
 */
#include <jansson.h>

#include "adapter_client.h"

#define MODEL_A "test/golden/model-a"
#define ANSWER_OPTIONS "{\"max_tokens\": 8}"
#define LONG_OPTIONS "{\"max_tokens\": 150, \"temperature\": 100, \"seed\": 5}"
#define MANY 12

/* The digest of the loaded model, as HELLO tells it. */
static char model_hex[DIGEST_HEX_SIZE];

static ServedEngine
serve(const char *memory_limit)
{
	ServedEngine engine = engine_serve_with(MODEL_A, "--memory-limit-mb", memory_limit);

	client_model_digest(&engine, model_hex);
	return engine;
}

/* A question with an adapter, of a role; model NULL: the loaded one. */
static void
send_question(int fd, uint64_t id, uint32_t role, const AdapterVariant *variant, const char *model,
			  const char *options, uint32_t flags)
{
	send_adapted_question(fd, id, role, variant, model == NULL ? model_hex : model, options, flags);
}

/* The failure of a request, started or not. */
static Status
read_failure(int fd, uint64_t id)
{
	bool		started;
	ClientFrame frame = client_read_end(fd, id, &started);
	Status		status;

	status_clear(&status);
	UNIT_EQUAL_INT(frame.header.type, WIRE_ERROR);
	wire_get_status(&frame.fields, &status);
	free(frame.payload);
	return status;
}

/* Ask and bring the adapter if it is needed; the text, on the heap. */
static char *
ask(int fd, uint64_t id, uint32_t role, const AdapterVariant *variant, bool needed)
{
	send_question(fd, id, role, variant, NULL, ANSWER_OPTIONS, 0);
	if (needed)
	{
		expect_need(fd, id);
		send_files(fd, id, variant);
	}
	return read_answer(fd, id);
}

UNIT_TEST(an_adapter_is_asked_for_once_for_each_role)
{
	ServedEngine engine = serve("0");
	AdapterVariant variants[2] = {variant_make(GOLDEN_ALPHA, NULL), variant_make(80, NULL)};
	int			fd = client_open(&engine);
	char	   *plain = ask(fd, 1, 5, NULL, false);
	char	   *first = ask(fd, 2, 5, &variants[0], true);
	char	   *again = ask(fd, 3, 5, &variants[0], false);
	char	   *of_other = ask(fd, 4, 6, &variants[0], true);
	char	   *second = ask(fd, 5, 5, &variants[1], true);

	UNIT_CHECK(strcmp(plain, first) != 0);
	UNIT_CHECK(strcmp(first, second) != 0);
	UNIT_EQUAL_TEXT(again, first);
	UNIT_EQUAL_TEXT(of_other, first);
	free(plain);
	free(first);
	free(again);
	free(of_other);
	free(second);
	close(fd);
	for (int i = 0; i < 2; i++)
		variant_free(&variants[i]);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(wrong_files_fail_their_request_only)
{
	ServedEngine engine = serve("0");
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	AdapterVariant other = variant_make(80, NULL);
	int			fd = client_open(&engine);
	Status		status;

	send_question(fd, 1, 5, &variant, NULL, ANSWER_OPTIONS, 0);
	expect_need(fd, 1);
	send_files(fd, 1, &other);
	status = read_failure(fd, 1);
	UNIT_EQUAL_INT(status.code, STATUS_DAMAGED_ADAPTER);
	UNIT_CONTAINS(status.message, "adapter \"mine\" is damaged");
	UNIT_CONTAINS(status.detail, variant.digest);
	UNIT_CONTAINS(status.detail, other.digest);
	/* not even fields */
	send_question(fd, 2, 5, &variant, NULL, ANSWER_OPTIONS, 0);
	expect_need(fd, 2);
	client_send_frame(fd, WIRE_ADAPTER, 2, "abc", 3);
	status = read_failure(fd, 2);
	UNIT_EQUAL_INT(status.code, STATUS_PROTOCOL);
	free(ask(fd, 3, 5, &variant, true));
	close(fd);
	variant_free(&variant);
	variant_free(&other);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(an_adapter_for_another_model_is_refused_with_both_digests)
{
	ServedEngine engine = serve("0");
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	int			fd = client_open(&engine);
	char		other[DIGEST_HEX_SIZE];
	Status		status;

	memset(other, 'a', sizeof(other) - 1);
	other[sizeof(other) - 1] = '\0';
	send_question(fd, 1, 5, &variant, other, ANSWER_OPTIONS, 0);
	status = read_failure(fd, 1);
	UNIT_EQUAL_INT(status.code, STATUS_OTHER_MODEL);
	UNIT_CONTAINS(status.detail, model_hex);
	UNIT_CONTAINS(status.detail, other);
	memset(other, 'x', sizeof(other) - 1);
	send_question(fd, 2, 5, &variant, other, ANSWER_OPTIONS, 0);
	status = read_failure(fd, 2);
	UNIT_EQUAL_INT(status.code, STATUS_PROTOCOL);
	close(fd);
	variant_free(&variant);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(a_name_without_a_digest_is_not_taken_for_no_adapter)
{
	ServedEngine engine = serve("0");
	int			fd = client_open(&engine);
	Status		status;

	send_question(fd, 1, 5, NULL, NULL, "{\"adapter\": \"mine\"}", 0);
	status = read_failure(fd, 1);
	UNIT_EQUAL_INT(status.code, STATUS_PROTOCOL);
	UNIT_CONTAINS(status.message, "\"mine\"");
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(giving_up_while_files_are_wanted_or_come_harms_nobody)
{
	ServedEngine engine = serve("0");
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	int			fd = client_open(&engine);
	int			leaving;
	size_t		length;
	uint8_t    *files = make_files(&variant, &length);
	WireHeader	header = {(uint32_t) length, WIRE_ADAPTER, 1};
	uint8_t		bytes[WIRE_HEADER_SIZE];

	/* cancelled while they are wanted; they come all the same */
	send_question(fd, 1, 5, &variant, NULL, ANSWER_OPTIONS, 0);
	expect_need(fd, 1);
	client_send_frame(fd, WIRE_CANCEL, 1, NULL, 0);
	send_files(fd, 1, &variant);
	/* files that nobody asked for */
	send_files(fd, 77, &variant);
	/* gone while they are wanted, and in the middle of them */
	for (int i = 0; i < 2; i++)
	{
		leaving = client_open(&engine);
		send_question(leaving, 1, 5, &variant, NULL, ANSWER_OPTIONS, 0);
		expect_need(leaving, 1);
		wire_header_write(&header, bytes);
		client_send_bytes(leaving, bytes, sizeof(bytes));
		client_send_bytes(leaving, files, i * length / 2);
		close(leaving);
	}
	free(ask(fd, 2, 5, &variant, true));
	free(files);
	close(fd);
	variant_free(&variant);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(a_client_must_not_need_anything)
{
	ServedEngine engine = serve("0");
	int			fd = client_open(&engine);
	ClientFrame frame;

	client_send_frame(fd, WIRE_NEED, 1, NULL, 0);
	frame = client_read_frame(fd);
	UNIT_EQUAL_INT(frame.header.type, 0);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(one_of_many_sessions_brings_what_all_want)
{
	ServedEngine engine = serve("0");
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	int			asked = client_open(&engine);
	int			others[3];

	send_question(asked, 1, 5, &variant, NULL, ANSWER_OPTIONS, 0);
	expect_need(asked, 1);
	for (int i = 0; i < 3; i++)
	{
		others[i] = client_open(&engine);
		send_question(others[i], 1, 5, &variant, NULL, ANSWER_OPTIONS, 0);
	}
	send_files(asked, 1, &variant);
	free(read_answer(asked, 1));
	/*
	 * None of them is asked, unless the one that was took too long; so much time may pass here on a
	 * busy machine, and then they have to bring it.
	 */
	for (int i = 0; i < 3; i++)
	{
		ClientFrame frame = client_read_frame(others[i]);

		if (frame.header.type == WIRE_NEED)
		{
			send_files(others[i], 1, &variant);
			free(read_answer(others[i], 1));
		}
		else
		{
			UNIT_EQUAL_INT(frame.header.type, WIRE_STARTED);
			free(read_type(others[i], 1, WIRE_ANSWER).payload);
		}
		free(frame.payload);
		close(others[i]);
	}
	close(asked);
	variant_free(&variant);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(one_that_never_delivers_is_not_waited_for)
{
	ServedEngine engine = serve("0");
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	int			silent = client_open(&engine);
	int			other = client_open(&engine);

	send_question(silent, 1, 5, &variant, NULL, ANSWER_OPTIONS, 0);
	expect_need(silent, 1);
	free(ask(other, 1, 5, &variant, true));
	/* and what the other one brought serves it too, whenever it comes to it */
	send_files(silent, 1, &variant);
	free(read_answer(silent, 1));
	close(silent);
	close(other);
	variant_free(&variant);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(a_request_that_runs_alone_gets_its_adapter)
{
	ServedEngine engine = serve("0");
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	int			fd = client_open(&engine);
	int			other = client_open(&engine);

	send_question(other, 1, 5, NULL, NULL, LONG_OPTIONS, 0);
	send_question(fd, 1, 5, &variant, NULL, ANSWER_OPTIONS, WIRE_FLAG_ALONE);
	expect_need(fd, 1);
	send_files(fd, 1, &variant);
	free(read_answer(fd, 1));
	free(read_answer(other, 1));
	close(fd);
	close(other);
	variant_free(&variant);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* A number of the status' group "adapters". */
static int
adapters_status(int fd, const char *key)
{
	ClientQuestion question = {.kind = WIRE_KIND_STATUS};
	ClientFrame frame = client_ask(fd, 900, &question);
	json_t	   *root = json_loadb((const char *) frame.fields.bytes[WIRE_FIELD_JSON],
								  frame.fields.length[WIRE_FIELD_JSON], 0, NULL);
	json_t	   *value = json_object_get(json_object_get(root, "adapters"), key);
	int			number = (int) json_integer_value(value);

	UNIT_CHECK(json_is_integer(value));
	json_decref(root);
	free(frame.payload);
	return number;
}

UNIT_TEST(more_adapters_than_fit_take_turns)
{
	/* an eighth of the limit holds a few, so requests have to wait for others */
	ServedEngine engine = serve("20");
	AdapterVariant variants[MANY];
	int			fds[MANY];

	for (int i = 0; i < MANY; i++)
	{
		variants[i] = variant_make(i + 1, NULL);
		fds[i] = client_open(&engine);
		send_question(fds[i], 1, 5, &variants[i], NULL, LONG_OPTIONS, 0);
	}
	for (int i = 0; i < MANY; i++)
	{
		expect_need(fds[i], 1);
		send_files(fds[i], 1, &variants[i]);
	}
	for (int i = 0; i < MANY; i++)
	{
		free(read_answer(fds[i], 1));
		variant_free(&variants[i]);
	}
	UNIT_EQUAL_INT(adapters_status(fds[0], "adapters_loaded"), MANY);
	UNIT_CHECK(adapters_status(fds[0], "adapters_held") < MANY);
	UNIT_EQUAL_INT(adapters_status(fds[0], "adapters_evicted"),
				   MANY - adapters_status(fds[0], "adapters_held"));
	for (int i = 0; i < MANY; i++)
		close(fds[i]);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* Ask the engine to check files; tensors with a config of its own. */
static ClientFrame
check(int fd, uint64_t id, const char *config, const AdapterVariant *variant)
{
	size_t		size = variant->content.tensors_length + 1024;
	uint8_t    *bytes = malloc(size);
	WireWriter	writer;
	bool		started;

	wire_writer_begin(&writer, bytes, size);
	wire_write_u32(&writer, WIRE_FIELD_FLAGS, 0);
	wire_write_u32(&writer, WIRE_FIELD_KIND, WIRE_KIND_ADAPTER_CHECK);
	if (config != NULL)
		wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_CONFIG, config, strlen(config));
	wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_TENSORS, variant->content.tensors,
					 variant->content.tensors_length);
	UNIT_CHECK(client_send_frame(fd, WIRE_REQUEST, id, writer.bytes, writer.used));
	free(bytes);
	return client_read_end(fd, id, &started);
}

UNIT_TEST(files_are_checked_before_they_are_stored)
{
	ServedEngine engine = serve("0");
	AdapterVariant variant = variant_make(GOLDEN_ALPHA, NULL);
	int			fd = client_open(&engine);
	ClientFrame frame = check(fd, 1, variant.config, &variant);
	json_t	   *root = json_loadb((const char *) frame.fields.bytes[WIRE_FIELD_JSON],
								  frame.fields.length[WIRE_FIELD_JSON], 0, NULL);
	Status		status;

	UNIT_EQUAL_INT(frame.header.type, WIRE_ANSWER);
	UNIT_EQUAL_TEXT(json_string_value(json_object_get(root, "digest")), variant.digest);
	UNIT_EQUAL_TEXT(json_string_value(json_object_get(root, "base_model")), model_hex);
	UNIT_EQUAL_INT(json_integer_value(json_object_get(root, "rank")), 4);
	UNIT_EQUAL_INT(json_array_size(json_object_get(root, "targets")), 9);
	json_decref(root);
	free(frame.payload);
	frame = check(fd, 2, "{\"r\": 8, \"lora_alpha\": 8}", &variant);
	wire_get_status(&frame.fields, &status);
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_ADAPTER);
	UNIT_CONTAINS(status.message, "lora_A");
	free(frame.payload);
	frame = check(fd, 3, NULL, &variant);
	wire_get_status(&frame.fields, &status);
	UNIT_EQUAL_INT(status.code, STATUS_PROTOCOL);
	free(frame.payload);
	close(fd);
	variant_free(&variant);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

int
main(int argc, char **argv)
{
	serve_if_asked(argc, argv);
	return unit_run(argc, argv);
}
