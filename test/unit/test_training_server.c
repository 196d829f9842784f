/*
 * test_training_server.c - trainings over the socket: the very adapter of the command line,
 * whatever happens meanwhile; who waits for whom, and what is left when somebody goes.
 */
#include "cli_run.h"
#include "training_client.h"

#define OPTIONS "{\"r\": 2, \"epochs\": 4, \"batch_size\": 2, \"seed\": 3, \"validation\": 0.3}"
#define ENDLESS "{\"r\": 2, \"micro_steps\": 100000000}"

/* The tensors that a training of the rows has to give, by the command line. */
static char *expected;
static size_t expected_length;

/* The rows as the command line reads them. */
static void
write_rows(const char *path)
{
	FILE	   *file = fopen(path, "w");
	char	   *folder = getcwd(NULL, 0);

	for (int i = 0; i < ROWS; i++)
	{
		json_t	   *row = json_object();
		char		image[4096];

		snprintf(image, sizeof(image), "%s/%s", folder, rows[i].image);
		if (rows[i].image != NULL)
			json_object_set_new(row, "image", json_string(image));
		if (rows[i].instruction != NULL)
			json_object_set_new(row, "instruction", json_string(rows[i].instruction));
		if (rows[i].input != NULL)
			json_object_set_new(row, "input", json_string(rows[i].input));
		if (rows[i].response != NULL)
			json_object_set_new(row, "response", json_string(rows[i].response));
		if (rows[i].conversation != NULL)
			json_object_set_new(row, "conversation", json_loads(rows[i].conversation, 0, NULL));
		json_dumpf(row, file, 0);
		fputs("\n", file);
		json_decref(row);
	}
	fclose(file);
	free(folder);
}

/* Train with the command line, once. */
static void
train_by_command(void)
{
	char		folder[] = "/tmp/mmgpt-training-XXXXXX";
	char		data[64];
	char		adapter[64];
	char		tensors[128];
	Outcome		outcome;

	if (expected != NULL || mkdtemp(folder) == NULL)
		return;
	snprintf(data, sizeof(data), "%s/rows.jsonl", folder);
	snprintf(adapter, sizeof(adapter), "%s/adapter", folder);
	snprintf(tensors, sizeof(tensors), "%s/adapter_model.safetensors", adapter);
	write_rows(data);
	outcome = run(cli_finetune, "",
				  (const char *[]) {"finetune", MODEL_A, "--data", data, "--adapter-out", adapter,
									"--options", OPTIONS, NULL});
	if (!UNIT_EQUAL_INT(outcome.status, 0))
		engine_bail(outcome.messages, NULL);
	forget(&outcome);
	expected = unit_read_file(tensors, &expected_length);
	engine_remove_adapter(adapter);
	unlink(data);
	rmdir(folder);
}

/* Is this the adapter that is expected? The frame is freed. */
static void
check_adapter(ClientFrame *frame)
{
	train_by_command();
	UNIT_EQUAL_INT(frame->fields.length[WIRE_FIELD_ADAPTER_TENSORS], expected_length);
	UNIT_CHECK(frame->fields.length[WIRE_FIELD_ADAPTER_TENSORS] == expected_length &&
			   memcmp(frame->fields.bytes[WIRE_FIELD_ADAPTER_TENSORS], expected,
					  expected_length) == 0);
	free(frame->payload);
}

/* Ask for the adapter of an open training, and compare it. */
static void
check_result(int fd)
{
	ClientFrame frame = client_simple(fd, 6000, WIRE_KIND_TRAIN_ADAPTER);

	if (frame_is_answer(&frame))
		check_adapter(&frame);
}

UNIT_TEST(a_training_gives_the_adapter_of_the_command_line)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			fd = client_open(&engine);
	ClientFrame adapter = client_train(fd, rows, ROWS, OPTIONS);
	WireWriter	check = message_begin(WIRE_KIND_ADAPTER_CHECK, adapter.header.length);
	ClientFrame checked;

	/* what is told of the adapter is what importing it would tell */
	wire_write_bytes(&check, WIRE_FIELD_ADAPTER_CONFIG,
					 adapter.fields.bytes[WIRE_FIELD_ADAPTER_CONFIG],
					 adapter.fields.length[WIRE_FIELD_ADAPTER_CONFIG]);
	wire_write_bytes(&check, WIRE_FIELD_ADAPTER_TENSORS,
					 adapter.fields.bytes[WIRE_FIELD_ADAPTER_TENSORS],
					 adapter.fields.length[WIRE_FIELD_ADAPTER_TENSORS]);
	checked = message_ask(fd, 1, &check);
	UNIT_CHECK(checked.fields.length[WIRE_FIELD_JSON] == adapter.fields.length[WIRE_FIELD_JSON] &&
			   memcmp(checked.fields.bytes[WIRE_FIELD_JSON],
					  adapter.fields.bytes[WIRE_FIELD_JSON],
					  adapter.fields.length[WIRE_FIELD_JSON]) == 0);
	free(checked.payload);
	check_adapter(&adapter);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(answers_tell_how_far_a_training_is)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			fd = client_open(&engine);
	json_t	   *json = client_open_training(fd, OPTIONS);
	int			steps = 0;
	int			validated = 0;
	bool		done = false;

	UNIT_EQUAL_INT(json_number_at(json, "rank"), 2);
	UNIT_EQUAL_INT(json_number_at(json, "alpha"), 16);
	UNIT_EQUAL_INT(json_number_at(json, "pixels"), 56);
	UNIT_EQUAL_INT(json_array_size(json_object_get(json, "targets")), 9);
	UNIT_EQUAL_INT(json_string_length(json_object_get(json, "model")), 64);
	json_decref(json);
	client_add_rows(fd, rows, ROWS, OPTIONS);
	json = client_start_training(fd, NULL);
	UNIT_EQUAL_INT(json_number_at(json, "rows_image"), 3);
	UNIT_EQUAL_INT(json_number_at(json, "rows_language"), 2);
	UNIT_EQUAL_INT(json_number_at(json, "rows_validation"), 3);
	UNIT_EQUAL_INT(json_number_at(json, "pictures"), 3);
	UNIT_EQUAL_INT(json_number_at(json, "micro_steps"), 8);
	UNIT_EQUAL_INT(json_number_at(json, "micro_step"), 0);
	UNIT_CHECK(json_number_at(json, "memory.total") > json_number_at(json, "memory.activations"));
	json_decref(json);
	while (!done && (json = client_step(fd, 0)) != NULL)
	{
		json_t	   *list = json_object_get(json, "steps");

		/* a budget of nothing ends with the first pictures, or the first micro step */
		UNIT_CHECK(json_array_size(list) <= 1);
		if (json_array_size(list) == 1)
		{
			UNIT_EQUAL_INT(json_number_at(json_array_get(list, 0), "step"), ++steps);
			UNIT_CHECK(json_number_at(json_array_get(list, 0), "loss_vision") > 0);
			validated += json_number_at(json_array_get(list, 0), "validation_loss_vision") > 0;
		}
		UNIT_EQUAL_INT(json_number_at(json, "micro_step"), steps);
		UNIT_CHECK(json_number_at(json, "seconds") > 0);
		done = json_number_at(json, "done") == 1;
		json_decref(json);
	}
	UNIT_EQUAL_INT(steps, 8);
	UNIT_EQUAL_INT(validated, 4);
	json = client_status(fd);
	UNIT_EQUAL_INT(json_number_at(json, "training.open"), 1);
	UNIT_EQUAL_INT(json_number_at(json, "training.micro_step"), 8);
	UNIT_EQUAL_INT(json_number_at(json, "training.micro_steps"), 8);
	UNIT_CHECK(json_number_at(json, "training.tokens") > 0);
	UNIT_CHECK(json_number_at(json, "training.seconds") > 0);
	UNIT_CHECK(json_number_at(json, "training.slices") > 8 * 8);
	json_decref(json);
	check_result(fd);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(validations_may_end_a_training)
{
	static const char options[] = "{\"r\": 2, \"epochs\": 200, \"learning_rate\": 0.1, "
		"\"validation\": 0.3, \"early_stopping\": 2}";
	ServedEngine engine = engine_serve(MODEL_A);
	int			fd = client_open(&engine);
	json_t	   *json;

	json_decref(client_open_training(fd, options));
	client_add_rows(fd, rows, ROWS, options);
	json_decref(client_start_training(fd, NULL));
	json = client_finish_training(fd, 1);
	UNIT_EQUAL_INT(json_number_at(json, "early"), 1);
	UNIT_CHECK(json_number_at(json, "micro_step") < json_number_at(json, "micro_steps"));
	UNIT_CHECK(json_number_at(json, "best_micro_step") > 0);
	UNIT_CHECK(json_number_at(json, "best_micro_step") < json_number_at(json, "micro_step"));
	json_decref(json);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* The answer to a question with or without a picture, as its bytes. */
static ClientFrame
ask_question(int fd, uint64_t id, bool picture, const ClientFrame *wanted)
{
	static char *image;
	static size_t length;
	ClientQuestion question = {.kind = WIRE_KIND_CHAT_TURN, .prompt = "What is this?",
							   .options = "{\"max_tokens\": 12, \"logprobs\": true}"};
	ClientFrame frame;

	if (image == NULL)
		image = unit_read_file(IMAGE(1), &length);
	if (picture)
	{
		question.image = image;
		question.image_length = length;
	}
	frame = client_ask(fd, id, &question);
	frame_is_answer(&frame);
	if (wanted != NULL)
		UNIT_CHECK(frame.header.length == wanted->header.length &&
				   memcmp(frame.payload, wanted->payload, frame.header.length) == 0);
	return frame;
}

/* Neither the training nor the answers change by a bit. */
UNIT_TEST(questions_are_answered_while_a_training_goes_on)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			trainer = client_open(&engine);
	int			asker = client_open(&engine);
	ClientFrame wanted[2] = {ask_question(asker, 1, false, NULL),
							 ask_question(asker, 2, true, NULL)};
	bool		started;
	bool		done = false;

	json_decref(client_open_training(trainer, OPTIONS));
	client_add_rows(trainer, rows, ROWS, OPTIONS);
	json_decref(client_start_training(trainer, NULL));
	for (uint64_t i = 10; !done; i++)
	{
		ClientFrame frame;
		json_t	   *json;

		client_send_step(trainer, i, 0);
		frame = ask_question(asker, i, i % 2 == 1, &wanted[i % 2]);
		free(frame.payload);
		frame = client_read_end(trainer, i, &started);
		json = frame_json(&frame);
		done = json == NULL || json_number_at(json, "done") == 1;
		json_decref(json);
	}
	check_result(trainer);
	free(wanted[0].payload);
	free(wanted[1].payload);
	close(trainer);
	close(asker);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* A request that runs alone does not wait for the end of a step, nor the step for ever for it. */
UNIT_TEST(a_training_stands_still_for_a_request_that_runs_alone)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			trainer = client_open(&engine);
	int			asker = client_open(&engine);
	ClientQuestion question = {.kind = WIRE_KIND_CHAT, .prompt = "What is this?",
							   .options = "{\"max_tokens\": 4}", .flags = WIRE_FLAG_ALONE};
	json_t	   *json;
	double		slices;

	json_decref(client_open_training(trainer, ENDLESS));
	client_add_rows(trainer, rows, ROWS, ENDLESS);
	json_decref(client_start_training(trainer, NULL));
	client_send_step(trainer, 1, 3600000);
	for (uint64_t i = 1; i <= 20; i++)
	{
		ClientFrame frame = client_ask(asker, i, &question);

		frame_is_answer(&frame);
		free(frame.payload);
	}
	json = client_status(asker);
	slices = json_number_at(json, "training.slices");
	json_decref(json);
	json = client_status(asker);
	while (json_number_at(json, "training.slices") < slices + 1)
	{
		json_decref(json);
		json = client_status(asker);
	}
	json_decref(json);
	close(trainer);
	UNIT_CHECK(client_status_becomes(asker, "training.open", 0));
	close(asker);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* Append a request as a frame. */
static size_t
append_frame(uint8_t *to, uint64_t id, WireWriter *writer)
{
	WireHeader	header = {(uint32_t) writer->used, WIRE_REQUEST, id};

	wire_header_write(&header, to);
	memcpy(to + WIRE_HEADER_SIZE, writer->bytes, writer->used);
	free(writer->bytes);
	return WIRE_HEADER_SIZE + writer->used;
}

/* One that comes right behind another which is refused at once has nobody to wake it up. */
UNIT_TEST(a_request_that_runs_alone_needs_no_other_event)
{
	static const char zeros[] = "0000000000000000000000000000000000000000000000000000000000000000";
	ServedEngine engine = engine_serve(MODEL_A);
	int			trainer = client_open(&engine);
	int			asker = client_open(&engine);
	WireWriter	refused = message_begin(WIRE_KIND_CHAT, 1024);
	WireWriter	alone = message_begin(WIRE_KIND_CHAT, 1024);
	uint8_t		bytes[4096];
	size_t		length;
	ClientFrame frame;
	bool		started;

	json_decref(client_open_training(trainer, ENDLESS));
	client_add_rows(trainer, rows, ROWS, ENDLESS);
	json_decref(client_start_training(trainer, NULL));
	client_send_step(trainer, 1, 3600000);
	message_text(&refused, WIRE_FIELD_PROMPT, "What is this?");
	message_text(&refused, WIRE_FIELD_ADAPTER, zeros);
	message_text(&refused, WIRE_FIELD_ADAPTER_MODEL, zeros);
	message_text(&alone, WIRE_FIELD_PROMPT, "What is this?");
	message_text(&alone, WIRE_FIELD_OPTIONS, "{\"max_tokens\": 4}");
	wire_write_u32(&alone, WIRE_FIELD_FLAGS, WIRE_FLAG_ALONE);
	length = append_frame(bytes, 1, &refused);
	length += append_frame(bytes + length, 2, &alone);
	UNIT_CHECK(client_send_bytes(asker, bytes, length));
	frame = client_read_end(asker, 1, &started);
	check_error(&frame, STATUS_OTHER_MODEL, "was made for another model");
	frame = client_read_end(asker, 2, &started);
	frame_is_answer(&frame);
	free(frame.payload);
	close(trainer);
	close(asker);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(a_training_goes_on_from_a_checkpoint_on_another_connection)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			fd = client_open(&engine);
	ClientFrame checkpoint;
	json_t	   *json;

	json_decref(client_open_training(fd, OPTIONS));
	client_add_rows(fd, rows, ROWS, OPTIONS);
	json_decref(client_start_training(fd, NULL));
	for (int i = 0; i < 5; i++)
		json_decref(client_step(fd, 0));
	checkpoint = client_simple(fd, 1, WIRE_KIND_TRAIN_SAVE);
	frame_is_answer(&checkpoint);
	close(fd);
	fd = client_open(&engine);
	json_decref(client_open_training(fd, OPTIONS));
	client_add_rows(fd, rows, ROWS, OPTIONS);
	json = client_start_training(fd, &checkpoint);
	UNIT_CHECK(json_number_at(json, "micro_step") > 0);
	UNIT_CHECK(json_number_at(json, "micro_step") < 8);
	json_decref(json);
	json_decref(client_finish_training(fd, 1));
	check_result(fd);
	free(checkpoint.payload);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(an_adapter_is_trained_further)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			fd = client_open(&engine);
	ClientFrame adapter = client_train(fd, rows, ROWS, OPTIONS);
	ClientFrame frame;
	json_t	   *json;
	bool		started;

	client_send_open(fd, 1, "{\"micro_steps\": 1, \"learning_rate\": 0}", &adapter);
	frame = client_read_end(fd, 1, &started);
	json = frame_json(&frame);
	UNIT_EQUAL_INT(json_number_at(json, "rank"), 2);
	json_decref(json);
	client_add_rows(fd, rows, ROWS, NULL);
	json_decref(client_start_training(fd, NULL));
	json_decref(client_finish_training(fd, 10));
	check_result(fd);			/* a rate of 0 changes nothing */
	free(client_simple(fd, 2, WIRE_KIND_TRAIN_CLOSE).payload);
	client_send_open(fd, 3, "{\"r\": 3}", &adapter);
	frame = client_read_end(fd, 3, &started);
	check_error(&frame, STATUS_INVALID_ARGUMENT, "option \"r\" differs from the initial adapter's");
	((uint8_t *) adapter.fields.bytes[WIRE_FIELD_ADAPTER_CONFIG])[0] = '!';
	client_send_open(fd, 4, NULL, &adapter);
	frame = client_read_end(fd, 4, &started);
	check_error(&frame, STATUS_INVALID_ADAPTER, "\"adapter_config.json\" is not valid JSON");
	json_decref(client_open_training(fd, NULL));
	free(adapter.payload);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* ---- turns ---- */

UNIT_TEST(trainings_wait_for_each_other)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			fds[3];
	ClientFrame frame;
	bool		started;

	for (int i = 0; i < 3; i++)
		fds[i] = client_open(&engine);
	json_decref(client_open_training(fds[0], OPTIONS));
	client_send_open(fds[1], 1, OPTIONS, NULL);
	UNIT_CHECK(client_status_becomes(fds[0], "training.waiting", 1));
	client_send_open(fds[2], 1, OPTIONS, NULL);
	UNIT_CHECK(client_status_becomes(fds[0], "training.waiting", 2));
	/* one that waits may ask otherwise, and give up; the others keep their order */
	frame = ask_question(fds[1], 2, false, NULL);
	free(frame.payload);
	client_send_frame(fds[1], WIRE_CANCEL, 1, NULL, 0);
	UNIT_CHECK(client_status_becomes(fds[0], "training.waiting", 1));
	frame = client_simple(fds[1], 3, WIRE_KIND_TRAIN_START);
	check_error(&frame, STATUS_PROTOCOL, "has none open");
	client_send_open(fds[1], 4, OPTIONS, NULL);
	UNIT_CHECK(client_status_becomes(fds[0], "training.waiting", 2));
	free(client_simple(fds[0], 5, WIRE_KIND_TRAIN_CLOSE).payload);
	frame = client_read_end(fds[2], 1, &started);
	json_decref(frame_json(&frame));
	UNIT_CHECK(client_status_becomes(fds[0], "training.waiting", 1));
	/* and so when the one before is lost */
	close(fds[2]);
	frame = client_read_end(fds[1], 4, &started);
	json_decref(frame_json(&frame));
	client_add_rows(fds[1], rows, ROWS, OPTIONS);
	json_decref(client_start_training(fds[1], NULL));
	json_decref(client_finish_training(fds[1], 100));
	check_result(fds[1]);
	close(fds[0]);
	close(fds[1]);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(a_step_can_be_cancelled)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			fd = client_open(&engine);
	int			other = client_open(&engine);
	ClientFrame frame;
	json_t	   *json;

	json_decref(client_open_training(fd, ENDLESS));
	client_add_rows(fd, rows, ROWS, NULL);
	json_decref(client_start_training(fd, NULL));
	client_send_step(fd, 1, 3600000);
	client_send_frame(fd, WIRE_CANCEL, 1, NULL, 0);
	/* it is over: the next request of the training is answered */
	json = client_step(fd, 0);
	UNIT_EQUAL_INT(json_number_at(json, "done"), 0);
	json_decref(json);
	client_send_step(fd, 2, 3600000);
	UNIT_CHECK(client_status_becomes(other, "training.open", 1));
	close(fd);
	UNIT_CHECK(client_status_becomes(other, "training.open", 0));
	frame = client_train(other, rows, ROWS, OPTIONS);
	check_adapter(&frame);
	close(other);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* Connections that break at any point leave an engine that trains for the next. */
UNIT_TEST(a_lost_connection_frees_its_training)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			last = client_open(&engine);
	ClientFrame encoded = client_encode(last, 1, &rows[0], NULL);
	ClientFrame frame;

	for (int i = 0; i < 60; i++)
	{
		int			fd = client_open(&engine);

		client_send_open(fd, 1, ENDLESS, NULL);
		if (i % 6 > 0)
		{
			bool		started;

			frame = client_read_end(fd, 1, &started);
			free(frame.payload);
		}
		if (i % 6 > 1)
			for (uint64_t row = 0; row < 20; row++)
				client_send_row(fd, 2, WIRE_KIND_TRAIN_ROW, &encoded);
		if (i % 6 > 2)
		{
			WireWriter	start = message_begin(WIRE_KIND_TRAIN_START, 0);

			message_send(fd, 3, &start);
		}
		if (i % 6 > 3)
			client_send_step(fd, 4, 3600000);
		if (i % 6 > 4)
			UNIT_CHECK(client_status_becomes(last, "training.open", 1));
		close(fd);
	}
	UNIT_CHECK(client_status_becomes(last, "training.open", 0));
	UNIT_CHECK(client_status_becomes(last, "training.waiting", 0));
	frame = client_train(last, rows, ROWS, OPTIONS);
	check_adapter(&frame);
	free(encoded.payload);
	close(last);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* ---- what is refused ---- */

UNIT_TEST(rows_that_can_not_be_used_harm_nobody)
{
	static const int32_t tokens[] = {1, 5, 6, 7};
	static const int32_t marked[] = {1, 601, 6, 7};
	static const int32_t foreign[] = {1, 5, 603, 7};
	static const int32_t targets[] = {-100, -100, 6, 7};
	static const int32_t none[] = {-100, -100, -100, -100};
	ServedEngine engine = engine_serve(MODEL_A);
	int			fd = client_open(&engine);
	size_t		pixels = 56 * 56 * 3;
	ClientFrame frame;

	json_decref(client_open_training(fd, OPTIONS));
	frame = client_send_numbers(fd, WIRE_KIND_TRAIN_ROW, tokens, 4, targets, 15, 0);
	check_error(&frame, STATUS_PROTOCOL, "targets of a row are missing or no integers: 15 bytes");
	frame = client_send_numbers(fd, WIRE_KIND_TRAIN_ROW, tokens, 4, NULL, 0, 0);
	check_error(&frame, STATUS_PROTOCOL, "targets of a row are missing");
	frame = client_send_numbers(fd, WIRE_KIND_TRAIN_ROW, tokens, 4, targets, 12, 0);
	check_error(&frame, STATUS_PROTOCOL, "a row of 4 tokens has 3 targets");
	frame = client_send_numbers(fd, WIRE_KIND_TRAIN_ROW, tokens, 0, targets, 0, 0);
	check_error(&frame, STATUS_INVALID_ARGUMENT, "the row has 0 tokens");
	frame = client_send_numbers(fd, WIRE_KIND_TRAIN_ROW, foreign, 4, targets, 16, 0);
	check_error(&frame, STATUS_INVALID_ARGUMENT, "token or label 3 of the row is outside");
	frame = client_send_numbers(fd, WIRE_KIND_TRAIN_ROW, tokens, 4, none, 16, 0);
	check_error(&frame, STATUS_INVALID_ARGUMENT, "no token of a response is left");
	frame = client_send_numbers(fd, WIRE_KIND_TRAIN_ROW, marked, 4, targets, 16, pixels - 1);
	check_error(&frame, STATUS_PROTOCOL, "has 9407 bytes and not the model's 56 x 56 x 3");
	frame = client_send_numbers(fd, WIRE_KIND_TRAIN_ROW, tokens, 4, targets, 16, pixels);
	check_error(&frame, STATUS_INVALID_ARGUMENT, "1 picture and 0 <image> marks");
	client_add_rows(fd, rows, ROWS, OPTIONS);
	json_decref(client_start_training(fd, NULL));
	json_decref(client_finish_training(fd, 100));
	check_result(fd);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(texts_that_can_not_be_used_are_refused_with_their_reason)
{
	static const struct
	{
		ClientRow	row;
		const char *options;
		StatusCode	code;
		const char *message;
	} wrong[] = {
		{{NULL, "a", NULL, NULL, NULL}, NULL, STATUS_INVALID_ARGUMENT, "the row has no response"},
		{{NULL, NULL, NULL, "b", NULL}, NULL, STATUS_INVALID_ARGUMENT,
		 "the row has no instruction"},
		{{NULL, NULL, NULL, NULL, "[]"}, NULL, STATUS_INVALID_JSON, "conversation is empty"},
		{{NULL, "a", NULL, "b", NULL}, "{\"max_length\": 5}", STATUS_INVALID_ARGUMENT,
		 "no token of a response is left within 5 tokens"},
		{{NULL, "a", NULL, "b", NULL}, "{\"max_len\": 5}", STATUS_INVALID_ARGUMENT,
		 "unknown option \"max_len\""},
		{{NULL, "a\xFF", NULL, "b", NULL}, NULL, STATUS_INVALID_TEXT, "UTF-8"},
		{{MODEL_A "/config.json", "a", NULL, "b", NULL}, NULL, STATUS_INVALID_IMAGE, ""},
	};
	ServedEngine engine = engine_serve(MODEL_A);
	int			fd = client_open(&engine);

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
	{
		ClientFrame frame = client_encode(fd, i + 1, &wrong[i].row, wrong[i].options);

		check_error(&frame, wrong[i].code, wrong[i].message);
	}
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(requests_out_of_their_order_are_refused)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			fd = client_open(&engine);
	ClientFrame frame;
	bool		started;

	for (int kind = WIRE_KIND_TRAIN_ROW; kind <= WIRE_KIND_TRAIN_CLOSE; kind++)
	{
		frame = client_simple(fd, 1, (WireKind) kind);
		check_error(&frame, STATUS_PROTOCOL, "a connection that has none open");
	}
	client_send_open(fd, 2, "{\"r\": 0}", NULL);
	frame = client_read_end(fd, 2, &started);
	check_error(&frame, STATUS_INVALID_ARGUMENT, "option \"r\" must be");
	json_decref(client_open_training(fd, OPTIONS));
	client_send_open(fd, 3, OPTIONS, NULL);
	frame = client_read_end(fd, 3, &started);
	check_error(&frame, STATUS_PROTOCOL, "a connection opened a second training");
	frame = client_simple(fd, 4, WIRE_KIND_TRAIN_STEP);
	check_error(&frame, STATUS_PROTOCOL, "a step of a training that was not started");
	frame = client_simple(fd, 5, WIRE_KIND_TRAIN_SAVE);
	check_error(&frame, STATUS_PROTOCOL, "a checkpoint of a training that was not started");
	frame = client_simple(fd, 6, WIRE_KIND_TRAIN_START);
	check_error(&frame, STATUS_INVALID_ARGUMENT, "there are no rows to train on");
	frame = client_simple(fd, 7, WIRE_KIND_TRAIN_STEP);
	check_error(&frame, STATUS_INVALID_ARGUMENT, "there are no rows to train on");
	free(client_simple(fd, 8, WIRE_KIND_TRAIN_CLOSE).payload);
	json_decref(client_open_training(fd, OPTIONS));
	client_add_rows(fd, rows, ROWS, OPTIONS);
	json_decref(client_start_training(fd, NULL));
	frame = client_simple(fd, 9, WIRE_KIND_TRAIN_START);
	check_error(&frame, STATUS_PROTOCOL, "a training was started twice");
	frame = client_simple(fd, 9, WIRE_KIND_TRAIN_ROW);
	check_error(&frame, STATUS_PROTOCOL, "a row for a training that has begun");
	for (uint32_t percent = 0; percent <= 100; percent += 100)
	{
		frame = client_step_with_share(fd, percent);
		check_error(&frame, STATUS_PROTOCOL, "percent, not of 1 to 99");
	}
	json_decref(client_finish_training(fd, 100));
	check_result(fd);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(checkpoints_of_others_are_refused)
{
	ServedEngine engine = engine_serve(MODEL_A);
	int			fd = client_open(&engine);
	ClientFrame checkpoint;
	ClientFrame frame;

	for (int i = 0; i < 3; i++)
	{
		const char *options = i == 1 ? "{\"r\": 2, \"seed\": 9}" : OPTIONS;
		WireWriter	start;

		json_decref(client_open_training(fd, options));
		client_add_rows(fd, rows, ROWS, options);
		if (i == 0)
		{
			json_decref(client_start_training(fd, NULL));
			checkpoint = client_simple(fd, 1, WIRE_KIND_TRAIN_SAVE);
			frame_is_answer(&checkpoint);
		}
		else
		{
			start = message_begin(WIRE_KIND_TRAIN_START, checkpoint.header.length);
			if (i == 2)
				((uint8_t *) checkpoint.fields.bytes[WIRE_FIELD_CHECKPOINT])[200] ^= 1;
			wire_write_bytes(&start, WIRE_FIELD_CHECKPOINT,
							 checkpoint.fields.bytes[WIRE_FIELD_CHECKPOINT],
							 checkpoint.fields.length[WIRE_FIELD_CHECKPOINT]);
			frame = message_ask(fd, 1, &start);
			check_error(&frame, STATUS_INVALID_ARGUMENT,
						i == 1 ? "the checkpoint belongs to another training"
							   : "the checkpoint is damaged");
		}
		free(client_simple(fd, 2, WIRE_KIND_TRAIN_CLOSE).payload);
	}
	free(checkpoint.payload);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(a_training_that_can_not_fit_is_refused_with_the_numbers)
{
	ServedEngine engine = engine_serve_with(MODEL_A, "--memory-limit-mb", "32");
	int			fd = client_open(&engine);
	ClientFrame frame;
	bool		started;

	client_send_open(fd, 1, "{\"r\": 256}", NULL);
	frame = client_read_end(fd, 1, &started);
	check_error(&frame, STATUS_OUT_OF_MEMORY, "of memory for adapter and optimizer and may take");
	json_decref(client_open_training(fd, "{\"r\": 1}"));
	client_add_rows(fd, rows, ROWS, NULL);
	frame = client_simple(fd, 2, WIRE_KIND_TRAIN_START);
	check_error(&frame, STATUS_OUT_OF_MEMORY, "MB of memory and may take");
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(a_training_on_a_model_that_can_not_be_loaded_fails)
{
	ServedEngine engine = engine_serve("/tmp");
	int			fd = client_open(&engine);
	ClientFrame frame;
	bool		started;

	client_send_open(fd, 1, OPTIONS, NULL);
	frame = client_read_end(fd, 1, &started);
	check_error(&frame, STATUS_MODEL_UNAVAILABLE, "could not be loaded");
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

int
main(int argc, char **argv)
{
	serve_if_asked(argc, argv);
	return unit_run(argc, argv);
}
