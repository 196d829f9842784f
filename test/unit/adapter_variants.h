/*
 * adapter_variants.h - adapters for model-a in memory, made from the golden one: all of it, or
 * without some of its tensors, with another alpha or other values.
 */
#ifndef MMGPT_TEST_ADAPTER_VARIANTS_H
#define MMGPT_TEST_ADAPTER_VARIANTS_H

#include <jansson.h>

#include "digest.h"
#include "model.h"
#include "unit.h"

#define GOLDEN_ADAPTER "test/golden/model-a/lora_forward.safetensors"
#define GOLDEN_ALPHA 8
#define VARIANT_CONFIG_SIZE 128

/* The two files of a variant, on the heap. */
typedef struct AdapterVariant
{
	char	   *config;
	uint8_t    *tensors;
	AdapterContent content;
	char		digest[DIGEST_HEX_SIZE];
} AdapterVariant;

static UNIT_UNUSED void
variant_finish(AdapterVariant *variant, size_t length)
{
	uint8_t		digest[DIGEST_SIZE];

	variant->content = (AdapterContent) {variant->config, strlen(variant->config),
		variant->tensors, length};
	adapter_content_digest(&variant->content, digest);
	digest_to_hex(digest, variant->digest);
}

/*
 * The golden adapter without the tensors whose names hold a text (NULL: with all). Lower parts of
 * the files are those of the golden one.
 */
static UNIT_UNUSED AdapterVariant
variant_make(double alpha, const char *without)
{
	AdapterVariant variant;
	size_t		length;
	char	   *golden = unit_read_file(GOLDEN_ADAPTER, &length);
	uint64_t	header_length;
	uint64_t	padded;
	json_t	   *header;
	json_t	   *kept = json_object();
	const char *name;
	json_t	   *entry;
	size_t		size = 0;
	char	   *text;

	memcpy(&header_length, golden, 8);
	header = json_loadb(golden + 8, header_length, 0, NULL);
	variant.tensors = malloc(length + 64);
	/* data first, where the largest header would end; moved down below */
	json_object_foreach(header, name, entry)
	{
		json_t	   *offsets = json_object_get(entry, "data_offsets");
		size_t		begin = (size_t) json_integer_value(json_array_get(offsets, 0));
		size_t		bytes = (size_t) json_integer_value(json_array_get(offsets, 1)) - begin;

		if (offsets == NULL || (without != NULL && strstr(name, without) != NULL))
			continue;
		memcpy(variant.tensors + 8 + header_length + size, golden + 8 + header_length + begin,
			   bytes);
		json_object_set_new(kept, name,
							json_pack("{s:O, s:O, s:[I,I]}", "dtype",
									  json_object_get(entry, "dtype"), "shape",
									  json_object_get(entry, "shape"), "data_offsets",
									  (json_int_t) size, (json_int_t) (size + bytes)));
		size += bytes;
	}
	text = json_dumps(kept, JSON_COMPACT);
	padded = (strlen(text) + 7) / 8 * 8;
	memmove(variant.tensors + 8 + padded, variant.tensors + 8 + header_length, size);
	memset(variant.tensors + 8, ' ', padded);
	memcpy(variant.tensors, &padded, 8);
	memcpy(variant.tensors + 8, text, strlen(text));
	variant.config = malloc(VARIANT_CONFIG_SIZE);
	snprintf(variant.config, VARIANT_CONFIG_SIZE,
			 "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": %g}", alpha);
	free(text);
	free(golden);
	json_decref(kept);
	json_decref(header);
	variant_finish(&variant, 8 + padded + size);
	return variant;
}

static UNIT_UNUSED void
variant_free(AdapterVariant *variant)
{
	free(variant->tensors);
	free(variant->config);
}

/* Change an entry of the header by a text of the same length, wherever it stands first. */
static UNIT_UNUSED void
variant_replace(AdapterVariant *variant, const char *from, const char *to)
{
	uint8_t    *at = memmem(variant->tensors, variant->content.tensors_length, from, strlen(from));

	if (!UNIT_CHECK(at != NULL && strlen(from) == strlen(to)))
		return;
	memcpy(at, to, strlen(to));
	variant_finish(variant, variant->content.tensors_length);
}

#endif
