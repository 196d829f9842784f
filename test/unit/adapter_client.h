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
