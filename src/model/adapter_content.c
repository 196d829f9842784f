/*
 * adapter_content.c - adapters in PEFT's two files, adapter_config.json and
 * adapter_model.safetensors: in a directory, or in memory as they come out of a table.
 *
 * Nothing of the files is trusted. What the config says beside r and lora_alpha changes
 * the arithmetic in ways that are refused by name rather than ignored.
 */
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model_internal.h"

#define CONFIG_FILE "adapter_config.json"
#define TENSORS_FILE "adapter_model.safetensors"
/* Values that are looked at together. */
#define CHECKED_VALUES 1024

/* ---- adapter_config.json ---- */

/* Whether a key asks for something: it is there and neither null, false, nor empty. */
static bool
asks_for(const json_t *root, const char *key)
{
	const json_t *value = json_object_get(root, key);

	if (json_is_object(value))
		return json_object_size(value) > 0;
	if (json_is_array(value))
		return json_array_size(value) > 0;
	return value != NULL && !json_is_null(value) && !json_is_false(value);
}

/* Refuse what would need other arithmetic, or other tensors than pairs of A and B. */
static bool
check_variant(const json_t *root, const char *file, Status *status)
{
	static const char *const unsupported[] = {"use_rslora", "use_dora", "fan_in_fan_out",
		"rank_pattern", "alpha_pattern", "lora_bias", "modules_to_save", "alora_invocation_tokens"};
	const char *type = json_string_value(json_object_get(root, "peft_type"));
	const char *bias = json_string_value(json_object_get(root, "bias"));

	if (type != NULL && strcmp(type, "LORA") != 0)
		return status_set(status, STATUS_NOT_SUPPORTED,
						  "\"peft_type\" %.64s in \"%s\" is not supported, only LORA", type, file);
	if (bias != NULL && strcmp(bias, "none") != 0)
		return status_set(status, STATUS_NOT_SUPPORTED, "\"bias\" %.64s in \"%s\" is not supported",
						  bias, file);
	for (size_t i = 0; i < sizeof(unsupported) / sizeof(unsupported[0]); i++)
		if (asks_for(root, unsupported[i]))
			return status_set(status, STATUS_NOT_SUPPORTED, "\"%s\" in \"%s\" is not supported",
							  unsupported[i], file);
	return true;
}

/* Read r and lora_alpha of a parsed config. */
static bool
read_config(const json_t *root, const char *file, int *r, double *alpha, Status *status)
{
	const json_t *rank = json_object_get(root, "r");

	if (!json_is_object(root))
		return status_set(status, STATUS_INVALID_MODEL, "\"%s\" is not a JSON object", file);
	*alpha = json_number_value(json_object_get(root, "lora_alpha"));
	if (!json_is_integer(rank) || json_integer_value(rank) < 1 ||
		json_integer_value(rank) > LORA_MAX_RANK)
	{
		status_set(status, STATUS_INVALID_MODEL, "\"r\" in \"%s\" is missing or out of range",
				   file);
		return status_detail(status, "It must be an integer between 1 and %d.", LORA_MAX_RANK);
	}
	if (!isfinite(*alpha) || !(*alpha > 0))
		return status_set(status, STATUS_INVALID_MODEL,
						  "\"lora_alpha\" in \"%s\" is missing or not a number above 0", file);
	*r = (int) json_integer_value(rank);
	return check_variant(root, file, status);
}

bool
adapter_parse_config(const AdapterContent *content, int *r, double *alpha, Status *status)
{
	json_error_t error;
	json_t	   *root = json_loadb(content->config, content->config_length, JSON_DECODE_ANY, &error);
	bool		good;

	if (root == NULL)
	{
		status_set(status, STATUS_INVALID_MODEL, "\"%s\" is not valid JSON", CONFIG_FILE);
		return status_detail(status, "%s at line %d, column %d.", error.text, error.line,
							 error.column);
	}
	good = read_config(root, CONFIG_FILE, r, alpha, status);
	json_decref(root);
	return good;
}

bool
adapter_read_config(const char *directory, int *r, double *alpha, Status *status)
{
	char		path[PATH_MAX];
	json_error_t error;
	json_t	   *root;
	bool		good;

	if (snprintf(path, sizeof(path), "%s/" CONFIG_FILE, directory) >= (int) sizeof(path))
		return status_set(status, STATUS_INVALID_ARGUMENT, "the adapter's path is too long");
	root = json_load_file(path, 0, &error);
	if (root == NULL)
	{
		status_set(status, STATUS_INVALID_MODEL, "could not read adapter file \"%s\"", path);
		return status_detail(status, "%s.", error.text);
	}
	good = read_config(root, path, r, alpha, status);
	json_decref(root);
	return good;
}

/* ---- both files ---- */

void
adapter_content_digest(const AdapterContent *content, uint8_t digest[DIGEST_SIZE])
{
	uint64_t	length = content->config_length;
	DigestState state;

	digest_begin(&state);
	digest_add(&state, &length, sizeof(length));
	digest_add(&state, content->config, content->config_length);
	digest_add(&state, content->tensors, content->tensors_length);
	digest_end(&state, digest);
}

/* The first value of a tensor that is no number counts as damage. */
static bool
check_values(const StoredTensor *tensor, Status *status)
{
	size_t		size = data_type_size(tensor->type);
	size_t		count = tensor->bytes / size;
	float		values[CHECKED_VALUES];

	for (size_t at = 0; at < count; at += CHECKED_VALUES)
	{
		size_t		part = count - at < CHECKED_VALUES ? count - at : CHECKED_VALUES;

		convert_to_f32((const uint8_t *) tensor->data + at * size, tensor->type, part, values);
		for (size_t i = 0; i < part; i++)
			if (!isfinite(values[i]))
				return status_set(status, STATUS_INVALID_MODEL,
								  "adapter tensor \"%s\" holds a value that is not finite",
								  tensor->stored_name);
	}
	return true;
}

/* Check the pair of a target of a layer, if it is there, and add it to the description. */
static bool
check_pair(const Model *model, TensorStore *store, int layer, LoraTarget target,
		   AdapterDescription *description, Status *status)
{
	const StoredTensor *a;
	const StoredTensor *b;

	if (!lora_find_tensors(model, store, layer, target, &a, &b, status))
		return false;
	if (a == NULL)
		return true;
	if (a->shape[0] != description->rank)
		return status_set(status, STATUS_INVALID_MODEL,
						  "adapter tensor \"%s\" has rank %d, and \"r\" is %d", a->stored_name,
						  a->shape[0], description->rank);
	description->targets |= 1u << target;
	description->parameters += (uint64_t) a->shape[0] * (uint64_t) a->shape[1] +
		(uint64_t) b->shape[0] * (uint64_t) b->shape[1];
	return check_values(a, status) && check_values(b, status);
}

static bool
check_pairs(const Model *model, TensorStore *store, AdapterDescription *description,
			Status *status)
{
	for (int layer = 0; layer < model->config.decoder.layers; layer++)
		for (int target = 0; target < LORA_TARGETS; target++)
			if (lora_target_exists(model, layer, (LoraTarget) target) &&
				!check_pair(model, store, layer, (LoraTarget) target, description, status))
				return false;
	if (!lora_all_used(store, status))
		return false;
	if (description->targets == 0)
		return status_set(status, STATUS_INVALID_MODEL, "the adapter holds no tensors");
	return true;
}

bool
adapter_check_content(const Model *model, const AdapterContent *content,
					  AdapterDescription *description, Status *status)
{
	Arena	   *arena = arena_create();
	TensorStore *store;
	bool		good;

	memset(description, 0, sizeof(*description));
	if (arena == NULL)
		return status_out_of_memory(status, 0);
	good = adapter_parse_config(content, &description->rank, &description->alpha, status);
	store = !good ? NULL : tensor_store_open_bytes(content->tensors, content->tensors_length,
												   TENSORS_FILE, arena, status);
	good = store != NULL && check_pairs(model, store, description, status);
	arena_free(arena);
	return good;
}

/* An adapter of r and alpha with the tensors of a store, which is closed. */
static Adapter *
open_pairs(Model *model, Adapter *adapter, TensorStore *store, int r, double alpha, Status *status)
{
	bool		good = store != NULL;

	adapter->scale = (float) (alpha / r);
	good = good && lora_load_pairs(model, adapter, store, status);
	tensor_store_close(store);
	if (good)
		return adapter;
	adapter_close(model, adapter);
	return NULL;
}

Adapter *
adapter_open_content(Model *model, const AdapterContent *content, Status *status)
{
	TensorStore *store;
	Adapter    *adapter;
	double		alpha;
	int			r;

	if (!adapter_parse_config(content, &r, &alpha, status))
		return NULL;
	adapter = adapter_allocate(model, status);
	if (adapter == NULL)
		return NULL;
	adapter_content_digest(content, adapter->digest);
	store = tensor_store_open_bytes(content->tensors, content->tensors_length, TENSORS_FILE,
									adapter->arena, status);
	return open_pairs(model, adapter, store, r, alpha, status);
}

Adapter *
adapter_open(Model *model, const char *directory, Status *status)
{
	TensorStore *store;
	Adapter    *adapter;
	DigestState state;
	double		alpha;
	int			r;

	if (!adapter_read_config(directory, &r, &alpha, status))
		return NULL;
	adapter = adapter_allocate(model, status);
	if (adapter == NULL)
		return NULL;
	store = tensor_store_open(directory, TENSORS_FILE, adapter->arena, status);
	if (store != NULL)
	{
		digest_begin(&state);
		digest_add(&state, &r, sizeof(r));
		digest_add(&state, &alpha, sizeof(alpha));
		tensor_store_digest(store, &state);
		digest_end(&state, adapter->digest);
	}
	return open_pairs(model, adapter, store, r, alpha, status);
}

/* ---- what others ask ---- */

const char *
adapter_target_name(int i)
{
	return i < LORA_TARGETS ? lora_target_name((LoraTarget) i) : NULL;
}

void
adapter_identity(const Adapter *adapter, uint8_t digest[DIGEST_SIZE])
{
	if (adapter != NULL)
		memcpy(digest, adapter->digest, DIGEST_SIZE);
	else
		memset(digest, 0, DIGEST_SIZE);
}

size_t
adapter_bytes(const Adapter *adapter)
{
	size_t		bytes = arena_size(adapter->arena);

	for (int i = 0; i < adapter->layers; i++)
		for (int target = 0; target < LORA_TARGETS; target++)
			if (adapter->pairs[i][target].present)
				bytes += adapter->pairs[i][target].a.bytes + adapter->pairs[i][target].b.bytes;
	return bytes;
}

bool
adapter_changes_pictures(const Adapter *adapter)
{
	for (int i = 0; i < adapter->layers; i++)
		if (adapter->pairs[i][LORA_TO_KV].present)
			return true;
	return false;
}
