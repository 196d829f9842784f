/*
 * test_evaluate.c - EVALUATE over the socket: the loss of rows, and whether the model would
 * answer just that.
 */
#include "training_client.h"

/* What EVALUATE tells about an encoded row. */
typedef struct Evaluated
{
	double		loss;			/* mean over the targets */
	int64_t		targets;
	bool		greedy;
} Evaluated;

/* Read an answer of EVALUATE; the frame is freed. */
static Evaluated
read_evaluated(ClientFrame *frame)
{
	Evaluated	evaluated = {-1, 0, false};

	if (frame_is_answer(frame))
	{
		evaluated.targets = wire_get_i64(&frame->fields, WIRE_FIELD_INTEGER, 0);
		evaluated.loss = wire_get_f64(&frame->fields, WIRE_FIELD_REAL, 0) /
			(double) evaluated.targets;
		evaluated.greedy = wire_get_u32(&frame->fields, WIRE_FIELD_BOOLEAN, 0) != 0;
	}
	free(frame->payload);
	return evaluated;
}

static Evaluated
evaluate(int fd, const ClientFrame *encoded)
{
	ClientFrame frame;
	bool		started;

	client_send_row(fd, 1, WIRE_KIND_EVALUATE, encoded);
	frame = client_read_end(fd, 1, &started);
	UNIT_CHECK(started);
	return read_evaluated(&frame);
}

/* The loss of a single row as a training sees it. */
static double
training_loss(int fd, const ClientRow *row)
{
	static const char options[] = "{\"micro_steps\": 1, \"learning_rate\": 0}";
	json_t	   *json;
	json_t	   *step;
	double		loss;

	json_decref(client_open_training(fd, options));
	client_add_rows(fd, row, 1, options);
	json_decref(client_start_training(fd, NULL));
	json = client_finish_training(fd, 1000);
	step = json_array_get(json_object_get(json, "steps"), 0);
	loss = json_number_at(step, row->image == NULL ? "loss_language" : "loss_vision");
	json_decref(json);
	free(client_simple(fd, 2, WIRE_KIND_TRAIN_CLOSE).payload);
	return loss;
}

UNIT_TEST(evaluating_a_row_gives_the_loss_of_training)
{
	ServedEngine engine = engine_serve(TRAINED_MODEL);
	int			fd = client_open(&engine);

	for (int i = 0; i < ROWS; i++)
	{
		ClientFrame encoded = client_encode(fd, 1, &rows[i], NULL);
		const uint8_t *targets = encoded.fields.bytes[WIRE_FIELD_TARGETS];
		Evaluated	evaluated = evaluate(fd, &encoded);
		Evaluated	again = evaluate(fd, &encoded);
		int			count = 0;

		for (uint32_t j = 0; j < encoded.fields.length[WIRE_FIELD_TARGETS]; j += 4)
		{
			int32_t		target;

			memcpy(&target, targets + j, 4);
			count += target >= 0;
		}
		UNIT_EQUAL_INT(evaluated.targets, count);
		UNIT_NEAR(evaluated.loss, training_loss(fd, &rows[i]), 1e-5);
		UNIT_CHECK(evaluated.loss == again.loss);
		UNIT_CHECK(!evaluated.greedy);
		free(encoded.payload);
	}
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* A response is what greedy decoding gives if and only if it is the model's own answer. */
UNIT_TEST(evaluating_tells_whether_the_model_would_say_just_that)
{
	static const char picture[] = "test/golden/demo/pictures/00.png";
	ServedEngine engine = engine_serve("demo/model");
	int			fd = client_open(&engine);
	ClientQuestion question = {.kind = WIRE_KIND_CHAT, .prompt = "What is in the picture?"};
	ClientRow	row = {picture, question.prompt, NULL, NULL, NULL};
	size_t		length;
	char	   *image = unit_read_file(picture, &length);
	char		said[512];
	ClientFrame frame;

	question.image = image;
	question.image_length = length;
	frame = client_ask(fd, 1, &question);
	UNIT_EQUAL_INT(frame.fields.length[WIRE_FIELD_FINISH], 3);	/* eos */
	snprintf(said, sizeof(said), "%.*s", (int) frame.fields.length[WIRE_FIELD_TEXT],
			 (const char *) frame.fields.bytes[WIRE_FIELD_TEXT]);
	free(frame.payload);
	row.response = said;
	for (int i = 0; i < 3; i++)
	{
		ClientFrame encoded = client_encode(fd, 2, &row, NULL);
		Evaluated	evaluated = evaluate(fd, &encoded);

		UNIT_EQUAL_INT(evaluated.greedy, i == 0);
		free(encoded.payload);
		if (i == 0)
			strcat(said, " Yes.");	/* an answer that goes on, and one that ends too early */
		else
			said[strlen(said) / 2] = '\0';
	}
	free(image);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* Evaluate with an adapter, the answer of a TRAIN_ADAPTER, which the engine asks for. */
static Evaluated
evaluate_with(int fd, const ClientFrame *encoded, const ClientFrame *adapter)
{
	json_t	   *json = json_loadb((const char *) adapter->fields.bytes[WIRE_FIELD_JSON],
								  adapter->fields.length[WIRE_FIELD_JSON], 0, NULL);
	WireWriter	writer = message_begin(WIRE_KIND_EVALUATE, encoded->header.length + 256);
	size_t		skipped = 0;
	ClientFrame frame;

	message_text(&writer, WIRE_FIELD_ADAPTER, json_string_value(json_object_get(json, "digest")));
	message_text(&writer, WIRE_FIELD_ADAPTER_MODEL,
				 json_string_value(json_object_get(json, "base_model")));
	memcpy(writer.bytes + writer.used, encoded->payload + skipped, encoded->header.length);
	writer.used += encoded->header.length;
	message_send(fd, 1, &writer);
	frame = client_read_frame(fd);
	if (UNIT_EQUAL_INT(frame.header.type, WIRE_NEED))
		client_send_frame(fd, WIRE_ADAPTER, 1, adapter->payload, adapter->header.length);
	while (frame.header.type == WIRE_NEED || frame.header.type == WIRE_STARTED)
	{
		free(frame.payload);
		frame = client_read_frame(fd);
	}
	json_decref(json);
	return read_evaluated(&frame);
}

UNIT_TEST(evaluating_with_a_trained_adapter_shows_what_it_learned)
{
	static const char options[] = "{\"r\": 4, \"micro_steps\": 60, \"learning_rate\": 0.01}";
	ServedEngine engine = engine_serve(TRAINED_MODEL);
	int			fd = client_open(&engine);
	ClientFrame adapter = client_train(fd, &rows[0], 1, options);
	ClientFrame encoded = client_encode(fd, 1, &rows[0], NULL);
	Evaluated	before = evaluate(fd, &encoded);
	Evaluated	after = evaluate_with(fd, &encoded, &adapter);

	UNIT_CHECK(before.loss > 1);
	UNIT_CHECK(after.loss < 0.1);
	UNIT_CHECK(after.greedy);
	free(encoded.payload);
	free(adapter.payload);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(rows_that_can_not_be_evaluated_are_refused)
{
	static const int32_t tokens[] = {1, 5, 6, 601};
	static const int32_t foreign[] = {1, 5, 603, 7};
	static const int32_t targets[] = {-100, 5, -100, 601};
	static const int32_t none[] = {5, -100, -100, -100};
	ServedEngine engine = engine_serve(TRAINED_MODEL);
	int			fd = client_open(&engine);
	ClientFrame frame;

	frame = client_send_numbers(fd, WIRE_KIND_EVALUATE, tokens, 4, targets, 12, 0);
	check_error(&frame, STATUS_PROTOCOL, "a row of 4 tokens has 3 targets");
	frame = client_send_numbers(fd, WIRE_KIND_EVALUATE, foreign, 4, targets, 16, 0);
	check_error(&frame, STATUS_INVALID_ARGUMENT, "token or label 3 of the row is outside");
	frame = client_send_numbers(fd, WIRE_KIND_EVALUATE, tokens, 4, none, 16, 0);
	check_error(&frame, STATUS_INVALID_ARGUMENT, "no token of a response is left");
	frame = client_send_numbers(fd, WIRE_KIND_EVALUATE, tokens, 4, targets, 16, 56 * 56 * 3 + 1);
	check_error(&frame, STATUS_PROTOCOL, "a picture has 9409 bytes");
	/* the picture's own mark is never trained, so all of it lies before the first response */
	frame = client_send_numbers(fd, WIRE_KIND_EVALUATE, tokens, 4, targets, 16, 0);
	UNIT_EQUAL_INT(read_evaluated(&frame).targets, 2);
	frame = client_simple(fd, 2, WIRE_KIND_STATUS);
	UNIT_CHECK(frame_is_answer(&frame));
	free(frame.payload);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

int
main(int argc, char **argv)
{
	serve_if_asked(argc, argv);
	return unit_run(argc, argv);
}
