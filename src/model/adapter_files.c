/*
 * adapter_files.c - see adapter_files.h.
 *
 * Names are PEFT's, relative to the language model as the original wraps it:
 * base_model.model.model.layers.N.decoder_layer.self_attn.q_proj.lora_A.weight, and without
 * decoder_layer for the gated blocks.
 */
#include "adapter_files.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONFIG_FILE "adapter_config.json"
#define TENSORS_FILE "adapter_model.safetensors"

/* ---- walking over the matrices of a shape ---- */

/* Step to the next matrix, in the order of layers, targets, A and B; false past the last. */
static bool
next_matrix(const Model *model, const AdapterShape *shape, int *place, AdapterMatrix *matrix)
{
	int			places = model->config.decoder.layers * LORA_TARGETS * 2;
	int			outputs;
	int			inputs;

	for (; *place < places; ++*place)
	{
		matrix->layer = *place / 2 / LORA_TARGETS;
		matrix->target = (LoraTarget) (*place / 2 % LORA_TARGETS);
		matrix->b = *place % 2 == 1;
		if ((shape->targets >> matrix->target & 1) != 0 &&
			lora_target_exists(model, matrix->layer, matrix->target))
			break;
	}
	if (*place == places)
		return false;
	++*place;
	lora_target_shape(&model->config, matrix->target, &outputs, &inputs);
	matrix->rows = matrix->b ? outputs : shape->r;
	matrix->columns = matrix->b ? shape->r : inputs;
	return true;
}

/* ---- writing ---- */

static bool
make_config(const AdapterShape *shape, Arena *arena, AdapterFiles *files, Status *status)
{
	json_t	   *targets = json_array();
	json_t	   *root;
	char	   *text;

	for (int target = 0; target < LORA_TARGETS; target++)
		if ((shape->targets >> target & 1) != 0)
			json_array_append_new(targets, json_string(lora_target_name((LoraTarget) target)));
	root = json_pack("{s:s, s:s, s:n, s:b, s:i, s:f, s:f, s:s, s:b, s:o}", "peft_type", "LORA",
					 "task_type", "CAUSAL_LM", "base_model_name_or_path", "inference_mode", true,
					 "r", shape->r, "lora_alpha", shape->alpha, "lora_dropout", 0.0, "bias", "none",
					 "fan_in_fan_out", false, "target_modules", targets);
	text = root == NULL ? NULL : json_dumps(root, JSON_INDENT(2));
	json_decref(root);
	if (text == NULL)
		return status_out_of_memory(status, 0);
	files->config_size = strlen(text);
	files->config = arena_copy_text(arena, text, files->config_size);
	free(text);
	return files->config != NULL || status_out_of_memory(status, files->config_size);
}

/* The header: names, shapes and places of all matrices. *size receives the bytes behind it. */
static json_t *
make_header(const Model *model, const AdapterShape *shape, size_t *size)
{
	json_t	   *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
	AdapterMatrix matrix;
	int			place = 0;

	*size = 0;
	while (next_matrix(model, shape, &place, &matrix))
	{
		size_t		bytes = (size_t) matrix.rows * (size_t) matrix.columns * sizeof(float);
		char		name[LORA_NAME_SIZE + 64];

		snprintf(name, sizeof(name), "base_model.model.model.layers.%d.%s%s.lora_%c.weight",
				 matrix.layer, matrix.target < LORA_TO_Q ? "decoder_layer." : "",
				 lora_target_path(matrix.target), matrix.b ? 'B' : 'A');
		json_object_set_new(header, name,
							json_pack("{s:s, s:[i,i], s:[I,I]}", "dtype", "F32", "shape",
									  matrix.rows, matrix.columns, "data_offsets",
									  (json_int_t) *size, (json_int_t) (*size + bytes)));
		*size += bytes;
	}
	return header;
}

static bool
make_tensors(const Model *model, const AdapterShape *shape, AdapterMatrixFunction give,
			 void *argument, Arena *arena, AdapterFiles *files, Status *status)
{
	size_t		size;
	json_t	   *header = make_header(model, shape, &size);
	char	   *text = header == NULL ? NULL : json_dumps(header, JSON_COMPACT);
	size_t		length = text == NULL ? 0 : strlen(text);
	uint64_t	padded = (length + 7) / 8 * 8;
	AdapterMatrix matrix;
	uint8_t    *at;
	int			place = 0;

	json_decref(header);
	files->tensors_size = 8 + padded + size;
	files->tensors = text == NULL ? NULL : arena_take(arena, files->tensors_size);
	if (files->tensors == NULL)
	{
		free(text);
		return status_out_of_memory(status, files->tensors_size);
	}
	memcpy(files->tensors, &padded, 8);
	memset(files->tensors + 8, ' ', padded);
	memcpy(files->tensors + 8, text, length);
	free(text);
	at = files->tensors + 8 + padded;
	while (next_matrix(model, shape, &place, &matrix))
	{
		give(argument, &matrix, (float *) (void *) at);
		at += (size_t) matrix.rows * (size_t) matrix.columns * sizeof(float);
	}
	return true;
}

bool
adapter_files_make(const Model *model, const AdapterShape *shape, AdapterMatrixFunction give,
				   void *argument, Arena *arena, AdapterFiles *files, Status *status)
{
	return make_config(shape, arena, files, status) &&
		make_tensors(model, shape, give, argument, arena, files, status);
}

/* Write one file beside its place and move it there. */
static bool
save_file(const char *directory, const char *name, const void *bytes, size_t size, Status *status)
{
	char		path[PATH_MAX];
	char		temporary[PATH_MAX + 8];
	FILE	   *file;
	bool		good;

	if (snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int) sizeof(path))
		return status_set(status, STATUS_INVALID_ARGUMENT, "the adapter's path is too long");
	snprintf(temporary, sizeof(temporary), "%s.new", path);
	file = fopen(temporary, "wbe");
	if (file == NULL)
		return status_set(status, STATUS_IO, "could not create file \"%s\": %s", temporary,
						  strerror(errno));
	good = fwrite(bytes, 1, size, file) == size && fflush(file) == 0 && fsync(fileno(file)) == 0;
	good = (fclose(file) == 0) && good && rename(temporary, path) == 0;
	if (good)
		return true;
	status_set(status, STATUS_IO, "could not write file \"%s\": %s", path, strerror(errno));
	unlink(temporary);
	return false;
}

bool
adapter_files_prepare(const char *directory, Status *status)
{
	if (mkdir(directory, 0777) != 0 && errno != EEXIST)
		return status_set(status, STATUS_IO, "could not create directory \"%s\": %s", directory,
						  strerror(errno));
	return access(directory, W_OK | X_OK) == 0 ||
		status_set(status, STATUS_IO, "could not write to directory \"%s\": %s", directory,
				   strerror(errno));
}

bool
adapter_files_save(const AdapterFiles *files, const char *directory, Status *status)
{
	return adapter_files_prepare(directory, status) &&
		save_file(directory, TENSORS_FILE, files->tensors, files->tensors_size, status) &&
		save_file(directory, CONFIG_FILE, files->config, files->config_size, status);
}

/* ---- reading ---- */

/* The store of an adapter's tensors in an arena of its own; NULL with a failure. */
static TensorStore *
open_tensors(const AdapterSource *source, Arena **arena, Status *status)
{
	TensorStore *store;

	*arena = arena_create();
	if (*arena == NULL)
	{
		status_out_of_memory(status, 0);
		return NULL;
	}
	store = source->directory != NULL
		? tensor_store_open(source->directory, TENSORS_FILE, *arena, status)
		: tensor_store_open_bytes(source->content.tensors, source->content.tensors_length,
								  TENSORS_FILE, *arena, status);
	if (store == NULL)
		arena_free(*arena);
	return store;
}

static void
close_tensors(TensorStore *store, Arena *arena)
{
	tensor_store_close(store);
	arena_free(arena);
}

static bool
read_shape(const AdapterSource *source, AdapterShape *shape, Status *status)
{
	return source->directory != NULL
		? adapter_read_config(source->directory, &shape->r, &shape->alpha, status)
		: adapter_parse_config(&source->content, &shape->r, &shape->alpha, status);
}

bool
adapter_files_shape(const Model *model, const AdapterSource *source, AdapterShape *shape,
					Status *status)
{
	Arena	   *arena;
	TensorStore *store;

	memset(shape, 0, sizeof(*shape));
	if (!read_shape(source, shape, status))
		return false;
	store = open_tensors(source, &arena, status);
	if (store == NULL)
		return false;
	for (int layer = 0; layer < model->config.decoder.layers; layer++)
		for (int target = 0; target < LORA_TARGETS; target++)
		{
			char		name[LORA_NAME_SIZE];

			lora_tensor_name(layer, (LoraTarget) target, false, name);
			if (tensor_store_find(store, name) != NULL)
				shape->targets |= 1u << target;
		}
	close_tensors(store, arena);
	return true;
}

/* One target of one layer: both of its matrices have to be there, of the shape's rank. */
static bool
read_pair(const Model *model, TensorStore *store, const AdapterShape *shape, AdapterMatrix *matrix,
		  AdapterMatrixFunction take, void *argument, Status *status)
{
	const StoredTensor *a;
	const StoredTensor *b;
	const StoredTensor *stored;
	float	   *values;

	if (!lora_find_tensors(model, store, matrix->layer, matrix->target, &a, &b, status))
		return false;
	if (a == NULL || a->shape[0] != shape->r)
		return status_set(status, STATUS_INVALID_MODEL,
						  "adapter matrix \"model.layers.%d.%s\" %s", matrix->layer,
						  lora_target_path(matrix->target),
						  a == NULL ? "is missing" : "has another rank than \"r\" says");
	stored = matrix->b ? b : a;
	values = malloc((size_t) matrix->rows * (size_t) matrix->columns * sizeof(float));
	if (values == NULL)
		return status_out_of_memory(status, stored->bytes);
	convert_to_f32(stored->data, stored->type, (size_t) matrix->rows * (size_t) matrix->columns,
				   values);
	take(argument, matrix, values);
	free(values);
	return true;
}

bool
adapter_files_read(const Model *model, const AdapterSource *source, const AdapterShape *shape,
				   AdapterMatrixFunction take, void *argument, Status *status)
{
	Arena	   *arena;
	TensorStore *store = open_tensors(source, &arena, status);
	const StoredTensor *unused;
	AdapterMatrix matrix;
	int			place = 0;
	bool		good = store != NULL;

	if (!good)
		return false;
	while (good && next_matrix(model, shape, &place, &matrix))
		good = read_pair(model, store, shape, &matrix, take, argument, status);
	unused = good ? tensor_store_unused(store) : NULL;
	if (unused != NULL)
	{
		good = status_set(status, STATUS_INVALID_MODEL,
						  "adapter tensor \"%s\" is not among the matrices to train",
						  unused->stored_name);
		status_detail(status, "The file is \"%s\".", unused->file);
	}
	close_tensors(store, arena);
	return good;
}
