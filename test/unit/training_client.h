/*
 * training_client.h - a training over the socket, as a job worker does it.
 */
#ifndef MMGPT_TEST_TRAINING_CLIENT_H
#define MMGPT_TEST_TRAINING_CLIENT_H

#include <jansson.h>

#include "serve_client.h"

#define TRAINED_MODEL "test/golden/model-a"
#define IMAGE(n) TRAINED_MODEL "/images/img" #n ".png"
#define ROWS ((int) (sizeof(rows) / sizeof(rows[0])))

/* A row of a table; NULL: the column is NULL. */
typedef struct ClientRow
{
	const char *image;			/* path of a file */
	const char *instruction;
	const char *input;
	const char *response;
	const char *conversation;	/* JSON */
} ClientRow;

/* A table of rows of all forms. */
static UNIT_UNUSED const ClientRow rows[] = {
	{IMAGE(0), "What is this?", NULL, "A dog.", NULL},
	{IMAGE(1), "What is this?", "", "Two red buses.", NULL},
	{NULL, "Name a fruit.", "red", "An apple.", NULL},
	{IMAGE(0), "How many?", NULL, "3", NULL},
	{NULL, NULL, NULL, NULL,
	 "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b c\"}, "
	 "{\"role\": \"user\", \"content\": \"d\"}, {\"role\": \"assistant\", \"content\": \"e\"}]"},
	{IMAGE(2), NULL, NULL, NULL,
	 "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]"},
	{NULL, "Say a word.", NULL, "Word.", NULL},
	{IMAGE(1), "Describe the picture.", NULL, "A bus and another bus.", NULL},
};

/* A request of a kind with room for this many bytes of fields. */
static UNIT_UNUSED WireWriter
message_begin(WireKind kind, size_t room)
{
	WireWriter	writer;

	wire_writer_begin(&writer, malloc(room + WIRE_REQUEST_OVERHEAD), room + WIRE_REQUEST_OVERHEAD);
	wire_write_u32(&writer, WIRE_FIELD_KIND, kind);
	wire_write_u32(&writer, WIRE_FIELD_DATABASE, 1);
	wire_write_u32(&writer, WIRE_FIELD_ROLE, 10);
	return writer;
}

/* A text field, if there is a text. */
static UNIT_UNUSED void
message_text(WireWriter *writer, WireField field, const char *text)
{
	if (text != NULL)
		wire_write_bytes(writer, field, text, strlen(text));
}

static UNIT_UNUSED void
message_send(int fd, uint64_t id, WireWriter *writer)
{
	UNIT_CHECK(!writer->overflow);
	UNIT_CHECK(client_send_frame(fd, WIRE_REQUEST, id, writer->bytes, writer->used));
	free(writer->bytes);
}

/* Send and wait for the end. */
static UNIT_UNUSED ClientFrame
message_ask(int fd, uint64_t id, WireWriter *writer)
{
	bool		started;

	message_send(fd, id, writer);
	return client_read_end(fd, id, &started);
}

/* An answer is good; a failure is told. */
static UNIT_UNUSED bool
frame_is_answer(const ClientFrame *frame)
{
	if (frame->header.type == WIRE_ANSWER)
		return true;
	if (frame->header.type != WIRE_ERROR)
		return UNIT_FAIL("a frame of type %u", frame->header.type);
	return UNIT_FAIL("%.*s", (int) frame->fields.length[WIRE_FIELD_MESSAGE],
					 (const char *) frame->fields.bytes[WIRE_FIELD_MESSAGE]);
}

/* A failure has this code, and a message with this part. */
static UNIT_UNUSED void
check_error(ClientFrame *frame, StatusCode code, const char *part)
{
	Status		status;

	if (UNIT_CHECK(frame->header.type == WIRE_ERROR))
	{
		wire_get_status(&frame->fields, &status);
		UNIT_EQUAL_INT(status.code, code);
		UNIT_CONTAINS(status.message, part);
	}
	free(frame->payload);
}

/* The JSON of an answer; the frame is freed. */
static UNIT_UNUSED json_t *
frame_json(ClientFrame *frame)
{
	json_t	   *root = NULL;

	if (frame_is_answer(frame) && UNIT_CHECK(wire_has(&frame->fields, WIRE_FIELD_JSON)))
		root = json_loadb((const char *) frame->fields.bytes[WIRE_FIELD_JSON],
						  frame->fields.length[WIRE_FIELD_JSON], 0, NULL);
	free(frame->payload);
	return root;
}

/* A number or truth of an object, named "key" or "group.key". */
static UNIT_UNUSED double
json_number_at(const json_t *root, const char *name)
{
	const char *dot = strchr(name, '.');
	char		group[32] = "";

	if (dot != NULL)
	{
		memcpy(group, name, (size_t) (dot - name));
		root = json_object_get(root, group);
		name = dot + 1;
	}
	root = json_object_get(root, name);
	return json_is_boolean(root) ? json_is_true(root) : json_number_value(root);
}

/* Have the engine make tokens of a row. */
static UNIT_UNUSED ClientFrame
client_encode(int fd, uint64_t id, const ClientRow *row, const char *options)
{
	size_t		length = 0;
	char	   *image = row->image == NULL ? NULL : unit_read_file(row->image, &length);
	WireWriter	writer = message_begin(WIRE_KIND_TRAIN_ENCODE, length + 65536);

	message_text(&writer, WIRE_FIELD_PROMPT, row->instruction);
	message_text(&writer, WIRE_FIELD_INPUT, row->input);
	message_text(&writer, WIRE_FIELD_RESPONSE, row->response);
	message_text(&writer, WIRE_FIELD_CONVERSATION, row->conversation);
	message_text(&writer, WIRE_FIELD_OPTIONS, options);
	if (image != NULL)
		wire_write_bytes(&writer, WIRE_FIELD_IMAGE, image, length);
	free(image);
	return message_ask(fd, id, &writer);
}

/* Send what client_encode gave as a row of the training. */
static UNIT_UNUSED void
client_send_row(int fd, uint64_t id, WireKind kind, const ClientFrame *encoded)
{
	static const WireField fields[] = {WIRE_FIELD_TOKENS, WIRE_FIELD_TARGETS, WIRE_FIELD_PIXELS};
	WireWriter	writer = message_begin(kind, encoded->header.length);

	for (int i = 0; i < 3; i++)
		if (wire_has(&encoded->fields, fields[i]))
			wire_write_bytes(&writer, fields[i], encoded->fields.bytes[fields[i]],
							 encoded->fields.length[fields[i]]);
	message_send(fd, id, &writer);
}

/* A request without fields of its own. */
static UNIT_UNUSED ClientFrame
client_simple(int fd, uint64_t id, WireKind kind)
{
	WireWriter	writer = message_begin(kind, 0);

	return message_ask(fd, id, &writer);
}

/* Ask for a training; the initial adapter is the answer of a TRAIN_ADAPTER, or NULL. */
static UNIT_UNUSED void
client_send_open(int fd, uint64_t id, const char *options, const ClientFrame *initial)
{
	static const WireField fields[] = {WIRE_FIELD_ADAPTER_CONFIG, WIRE_FIELD_ADAPTER_TENSORS};
	WireWriter	writer = message_begin(WIRE_KIND_TRAIN_OPEN,
									   (initial == NULL ? 0 : initial->header.length) + 65536);

	message_text(&writer, WIRE_FIELD_OPTIONS, options);
	for (int i = 0; i < 2 && initial != NULL; i++)
		wire_write_bytes(&writer, fields[i], initial->fields.bytes[fields[i]],
						 initial->fields.length[fields[i]]);
	message_send(fd, id, &writer);
}

static UNIT_UNUSED json_t *
client_open_training(int fd, const char *options)
{
	ClientFrame frame;
	bool		started;

	client_send_open(fd, 1000, options, NULL);
	frame = client_read_end(fd, 1000, &started);
	UNIT_CHECK(!started);
	return frame_json(&frame);
}

/* Encode rows and send them, many at once; they have to be usable. */
static UNIT_UNUSED void
client_add_rows(int fd, const ClientRow *list, int count, const char *options)
{
	ClientFrame frame;
	bool		started;

	for (int i = 0; i < count; i++)
	{
		ClientFrame encoded = client_encode(fd, 2000, &list[i], options);

		if (frame_is_answer(&encoded))
			client_send_row(fd, 3000 + (uint64_t) i, WIRE_KIND_TRAIN_ROW, &encoded);
		free(encoded.payload);
	}
	/* client_encode drops the answers that came before its own; the last one is still to come */
	frame = client_read_end(fd, 2999 + (uint64_t) count, &started);
	frame_is_answer(&frame);
	free(frame.payload);
}

/* No more rows; checkpoint is the answer of a TRAIN_SAVE, or NULL. */
static UNIT_UNUSED json_t *
client_start_training(int fd, const ClientFrame *checkpoint)
{
	WireWriter	writer = message_begin(WIRE_KIND_TRAIN_START,
									   checkpoint == NULL ? 0 : checkpoint->header.length);
	ClientFrame frame;

	if (checkpoint != NULL)
		wire_write_bytes(&writer, WIRE_FIELD_CHECKPOINT,
						 checkpoint->fields.bytes[WIRE_FIELD_CHECKPOINT],
						 checkpoint->fields.length[WIRE_FIELD_CHECKPOINT]);
	frame = message_ask(fd, 4000, &writer);
	return frame_json(&frame);
}

static UNIT_UNUSED void
client_send_step(int fd, uint64_t id, uint32_t milliseconds)
{
	WireWriter	writer = message_begin(WIRE_KIND_TRAIN_STEP, 0);

	wire_write_u32(&writer, WIRE_FIELD_BUDGET_MS, milliseconds);
	message_send(fd, id, &writer);
}

/* A step of a training that names its share of the time. */
static UNIT_UNUSED ClientFrame
client_step_with_share(int fd, uint32_t percent)
{
	WireWriter	writer = message_begin(WIRE_KIND_TRAIN_STEP, 0);

	wire_write_u32(&writer, WIRE_FIELD_TRAINING_SHARE, percent);
	return message_ask(fd, 5100, &writer);
}

static UNIT_UNUSED json_t *
client_step(int fd, uint32_t milliseconds)
{
	ClientFrame frame;
	bool		started;

	client_send_step(fd, 5000, milliseconds);
	frame = client_read_end(fd, 5000, &started);
	return frame_json(&frame);
}

/* Work until the training is done; returns its last answer. */
static UNIT_UNUSED json_t *
client_finish_training(int fd, uint32_t milliseconds)
{
	json_t	   *answer = client_step(fd, milliseconds);

	while (answer != NULL && !json_is_true(json_object_get(answer, "done")))
	{
		json_decref(answer);
		answer = client_step(fd, milliseconds);
	}
	return answer;
}

/* A whole training; returns the answer of TRAIN_ADAPTER. */
static UNIT_UNUSED ClientFrame
client_train(int fd, const ClientRow *list, int count, const char *options)
{
	ClientFrame adapter;
	ClientFrame closed;

	json_decref(client_open_training(fd, options));
	client_add_rows(fd, list, count, options);
	json_decref(client_start_training(fd, NULL));
	json_decref(client_finish_training(fd, 5));
	adapter = client_simple(fd, 6000, WIRE_KIND_TRAIN_ADAPTER);
	frame_is_answer(&adapter);
	closed = client_simple(fd, 7000, WIRE_KIND_TRAIN_CLOSE);
	frame_is_answer(&closed);
	free(closed.payload);
	return adapter;
}

/* Send a row of given numbers. */
static UNIT_UNUSED ClientFrame
client_send_numbers(int fd, WireKind kind, const int32_t *tokens, size_t count,
					const int32_t *targets, size_t targets_bytes, size_t pixels)
{
	WireWriter	writer = message_begin(kind, pixels + 65536);
	uint8_t    *bytes = calloc(pixels + 1, 1);

	wire_write_bytes(&writer, WIRE_FIELD_TOKENS, tokens, count * sizeof(int32_t));
	if (targets != NULL)
		wire_write_bytes(&writer, WIRE_FIELD_TARGETS, targets, targets_bytes);
	if (pixels > 0)
		wire_write_bytes(&writer, WIRE_FIELD_PIXELS, bytes, pixels);
	free(bytes);
	return message_ask(fd, 1, &writer);
}

/* mmgpt_status(). */
static UNIT_UNUSED json_t *
client_status(int fd)
{
	ClientFrame frame = client_simple(fd, 900000, WIRE_KIND_STATUS);

	return frame_json(&frame);
}

/* Wait until a number of the status has a value. */
static UNIT_UNUSED bool
client_status_becomes(int fd, const char *name, double value)
{
	struct timespec pause = {0, 2000000};

	for (int i = 0; i < 30000; i++)
	{
		json_t	   *status = client_status(fd);
		double		now = json_number_at(status, name);

		json_decref(status);
		if (now == value)
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

#endif
