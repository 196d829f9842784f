/*
 * adapter_client.h - a client of a running engine that brings adapters.
 */
#ifndef MMGPT_TEST_ADAPTER_CLIENT_H
#define MMGPT_TEST_ADAPTER_CLIENT_H

#include "adapter_variants.h"
#include "serve_client.h"

/* Wait until the engine has its model; the digest of it, as HELLO tells it. */
static UNIT_UNUSED void
client_model_digest(const ServedEngine *engine, char hex[DIGEST_HEX_SIZE])
{
	ClientQuestion tokens = {.kind = WIRE_KIND_TOKEN_COUNT, .prompt = "x"};
	int			fd = client_open(engine);
	ClientFrame frame = client_ask(fd, 1, &tokens);

	free(frame.payload);
	close(fd);
	fd = client_connect(engine);
	frame = client_read_frame(fd);
	if (UNIT_EQUAL_INT(frame.fields.length[WIRE_FIELD_MODEL_DIGEST], 2 * DIGEST_SIZE))
		memcpy(hex, frame.fields.bytes[WIRE_FIELD_MODEL_DIGEST], 2 * DIGEST_SIZE);
	hex[2 * DIGEST_SIZE] = '\0';
	free(frame.payload);
	close(fd);
}

/* A question of a role with an adapter, or none, for the model with a digest. */
static UNIT_UNUSED void
send_adapted_question(int fd, uint64_t id, uint32_t role, const AdapterVariant *variant,
					  const char *model, const char *options, uint32_t flags)
{
	static const char prompt[] = "What is in the picture?";
	uint8_t		bytes[4096];
	WireWriter	writer;

	wire_writer_begin(&writer, bytes, sizeof(bytes));
	wire_write_u32(&writer, WIRE_FIELD_FLAGS, flags);
	wire_write_u32(&writer, WIRE_FIELD_KIND, WIRE_KIND_CHAT);
	wire_write_u32(&writer, WIRE_FIELD_DATABASE, 1);
	wire_write_u32(&writer, WIRE_FIELD_ROLE, role);
	wire_write_bytes(&writer, WIRE_FIELD_PROMPT, prompt, strlen(prompt));
	wire_write_bytes(&writer, WIRE_FIELD_OPTIONS, options, strlen(options));
	if (variant != NULL)
	{
		wire_write_bytes(&writer, WIRE_FIELD_ADAPTER, variant->digest, 2 * DIGEST_SIZE);
		wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_MODEL, model, 2 * DIGEST_SIZE);
		wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_NAME, "mine", 4);
	}
	UNIT_CHECK(client_send_frame(fd, WIRE_REQUEST, id, writer.bytes, writer.used));
}

/* Read the next frame of a request and check its type. */
static UNIT_UNUSED ClientFrame
read_type(int fd, uint64_t id, uint32_t type)
{
	ClientFrame frame = client_read_frame(fd);

	UNIT_EQUAL_INT(frame.header.type, type);
	UNIT_EQUAL_INT(frame.header.id, id);
	return frame;
}

static UNIT_UNUSED void
expect_need(int fd, uint64_t id)
{
	free(read_type(fd, id, WIRE_NEED).payload);
}

/* The end of a request that needs nothing more: its text, on the heap. */
static UNIT_UNUSED char *
read_answer(int fd, uint64_t id)
{
	ClientFrame frame;
	char	   *text;

	free(read_type(fd, id, WIRE_STARTED).payload);
	frame = read_type(fd, id, WIRE_ANSWER);
	text = calloc(1, (size_t) frame.fields.length[WIRE_FIELD_TEXT] + 1);
	if (wire_has(&frame.fields, WIRE_FIELD_TEXT))
		memcpy(text, frame.fields.bytes[WIRE_FIELD_TEXT], frame.fields.length[WIRE_FIELD_TEXT]);
	free(frame.payload);
	return text;
}

/* The payload that answers NEED, on the heap. */
static UNIT_UNUSED uint8_t *
make_files(const AdapterVariant *variant, size_t *length)
{
	size_t		size = variant->content.tensors_length + variant->content.config_length + 64;
	uint8_t    *bytes = malloc(size);
	WireWriter	writer;

	wire_writer_begin(&writer, bytes, size);
	wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_CONFIG, variant->content.config,
					 variant->content.config_length);
	wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_TENSORS, variant->content.tensors,
					 variant->content.tensors_length);
	UNIT_CHECK(!writer.overflow);
	*length = writer.used;
	return bytes;
}

static UNIT_UNUSED void
send_files(int fd, uint64_t id, const AdapterVariant *variant)
{
	size_t		length;
	uint8_t    *bytes = make_files(variant, &length);

	UNIT_CHECK(client_send_frame(fd, WIRE_ADAPTER, id, bytes, length));
	free(bytes);
}

#endif
