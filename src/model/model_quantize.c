/*
 * model_quantize.c - write a model with quantised matrices; the form is described in MODEL.md.
 *
 * Tensors keep their names. A matrix that is quantised becomes codes under its own name, followed
 * by its scales under that name and "_scale"; all others are copied. One tensor after another is
 * converted by all threads, in pieces of some MB, and its pages of the source are given back; so
 * memory stays small for a model of any size.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model_internal.h"
#include "quantize.h"
#include "thread_pool.h"

/* Bytes of codes that are converted at once, roughly. */
#define PIECE_BYTES ((size_t) 4 << 20)

#define TENSORS_FILE "model.safetensors"

typedef struct Conversion
{
	const QuantizeOptions *options;
	DataType	format;
	TensorStore *store;
	ThreadPool *pool;
	const char *output;			/* directory */
	char		path[PATH_MAX];	/* of the file while it is written */
	FILE	   *file;
	size_t		done;			/* bytes of the source */
	Status	   *status;
} Conversion;

/* What becomes of a tensor: its own type, or a quantised one. */
static DataType
target_type(const Conversion *conversion, const StoredTensor *tensor)
{
	DataType	type = tensor->type;

	if (tensor->dimensions == 2)
		type = weight_format_of_matrix(conversion->format, tensor->name);
	return data_type_is_quantized(type) ? type : tensor->type;
}

/* ---- the header ---- */

static const char *
file_type_name(DataType type)
{
	switch (type)
	{
		case TYPE_F32:
			return "F32";
		case TYPE_F16:
			return "F16";
		case TYPE_BF16:
			return "BF16";
		case TYPE_Q8:
			return "I8";
		default:
			return "U8";
	}
}

/* Add an entry to the header; its bytes follow those of the last. */
static void
add_entry(json_t *header, const char *name, const char *type, int dimensions, const int *shape,
		  size_t bytes, size_t *offset)
{
	json_t	   *sizes = json_array();

	for (int i = 0; i < dimensions; i++)
		json_array_append_new(sizes, json_integer(shape[i]));
	json_object_set_new(header, name, json_pack("{s:s, s:o, s:[I, I]}", "dtype", type, "shape",
												sizes, "data_offsets", (json_int_t) *offset,
												(json_int_t) (*offset + bytes)));
	*offset += bytes;
}

static void
add_tensor(const Conversion *conversion, json_t *header, const StoredTensor *tensor,
		   size_t *offset)
{
	DataType	type = target_type(conversion, tensor);
	int			shape[2] = {tensor->shape[0], tensor->shape[1]};
	char		name[512];

	if (!data_type_is_quantized(type))
	{
		add_entry(header, tensor->stored_name, file_type_name(type), tensor->dimensions,
				  tensor->shape, tensor->bytes, offset);
		return;
	}
	shape[1] = quantized_row_bytes(type, tensor->shape[1]);
	add_entry(header, tensor->stored_name, file_type_name(type), 2, shape,
			  (size_t) shape[0] * (size_t) shape[1], offset);
	shape[1] = quantized_blocks(tensor->shape[1]);
	snprintf(name, sizeof(name), "%s_scale", tensor->stored_name);
	add_entry(header, name, "BF16", 2, shape, (size_t) shape[0] * (size_t) shape[1] * 2, offset);
}

static bool
write_failed(const Conversion *conversion)
{
	return status_set(conversion->status, STATUS_INVALID_ARGUMENT,
					  "could not write file \"%s\": %s", conversion->path, strerror(errno));
}

static bool
write_bytes(const Conversion *conversion, const void *bytes, size_t count)
{
	return fwrite(bytes, 1, count, conversion->file) == count || write_failed(conversion);
}

static bool
write_header(const Conversion *conversion)
{
	json_t	   *header = json_object();
	size_t		offset = 0;
	char	   *text;
	uint64_t	length;
	bool		good;

	json_object_set_new(header, "__metadata__",
						json_pack("{s:s, s:s}", "format", "mmgpt", "weights",
								  data_type_name(conversion->format)));
	for (int i = 0; i < tensor_store_count(conversion->store); i++)
		add_tensor(conversion, header, tensor_store_at(conversion->store, i), &offset);
	text = json_dumps(header, JSON_COMPACT);
	json_decref(header);
	if (text == NULL)
		return status_out_of_memory(conversion->status, 0);
	/* blanks behind the header align the data */
	length = (strlen(text) + 7) / 8 * 8;
	good = write_bytes(conversion, &length, sizeof(length)) &&
		write_bytes(conversion, text, strlen(text)) &&
		write_bytes(conversion, "       ", (size_t) length - strlen(text));
	free(text);
	return good;
}

/* ---- tensors ---- */

/* Some rows of a matrix. */
typedef struct Piece
{
	const StoredTensor *tensor;
	DataType	type;
	int			first_row;
	int			inputs;
	float	   *values;			/* [threads, inputs] */
	uint8_t    *codes;			/* of the piece */
	uint16_t   *scales;			/* of the piece */
	volatile bool failed;		/* set by any thread */
} Piece;

static void
quantize_row_task(void *argument, int task, int thread)
{
	Piece	   *piece = argument;
	size_t		inputs = (size_t) piece->inputs;
	float	   *values = piece->values + (size_t) thread * inputs;
	size_t		first = (size_t) (piece->first_row + task) * inputs;

	convert_to_f32((const char *) piece->tensor->data +
					   first * data_type_size(piece->tensor->type),
				   piece->tensor->type, inputs, values);
	if (!quantize_values(piece->type, piece->inputs, values,
						 piece->codes +
							 (size_t) task * (size_t) quantized_row_bytes(piece->type, piece->inputs),
						 piece->scales + (size_t) task * (size_t) quantized_blocks(piece->inputs)))
		piece->failed = true;
}

static bool
write_rows(const Conversion *conversion, Piece *piece, uint16_t *scales)
{
	int			outputs = piece->tensor->shape[0];
	size_t		row_bytes = (size_t) quantized_row_bytes(piece->type, piece->inputs);
	size_t		blocks = (size_t) quantized_blocks(piece->inputs);
	int			step = (int) (PIECE_BYTES / row_bytes) + 1;

	for (piece->first_row = 0; piece->first_row < outputs; piece->first_row += step)
	{
		int			rows = outputs - piece->first_row < step ? outputs - piece->first_row : step;

		piece->scales = scales + (size_t) piece->first_row * blocks;
		thread_pool_run(conversion->pool, quantize_row_task, piece, rows, 1);
		if (piece->failed)
		{
			status_set(conversion->status, STATUS_INVALID_MODEL,
					   "tensor \"%s\" holds a number that is not finite and can't be quantised",
					   piece->tensor->stored_name);
			return status_detail(conversion->status, "The file is \"%s\".", piece->tensor->file);
		}
		if (!write_bytes(conversion, piece->codes, (size_t) rows * row_bytes))
			return false;
	}
	return write_bytes(conversion, scales, (size_t) outputs * blocks * sizeof(uint16_t));
}

static bool
write_quantized(const Conversion *conversion, const StoredTensor *tensor, DataType type)
{
	int			inputs = tensor->shape[1];
	size_t		scales_count = (size_t) tensor->shape[0] * (size_t) quantized_blocks(inputs);
	size_t		floats = (size_t) thread_pool_threads(conversion->pool) * (size_t) inputs;
	Piece		piece = {.tensor = tensor, .type = type, .inputs = inputs};
	uint16_t   *scales = malloc(scales_count * sizeof(uint16_t));
	bool		good;

	piece.values = malloc(floats * sizeof(float));
	piece.codes = malloc(PIECE_BYTES + (size_t) quantized_row_bytes(type, inputs));
	good = scales != NULL && piece.values != NULL && piece.codes != NULL;
	if (!good)
		status_out_of_memory(conversion->status, PIECE_BYTES);
	good = good && write_rows(conversion, &piece, scales);
	free(scales);
	free(piece.values);
	free(piece.codes);
	return good;
}

static bool
write_tensors(Conversion *conversion)
{
	const QuantizeOptions *options = conversion->options;
	size_t		total = tensor_store_bytes(conversion->store);

	for (int i = 0; i < tensor_store_count(conversion->store); i++)
	{
		const StoredTensor *tensor = tensor_store_at(conversion->store, i);
		DataType	type = target_type(conversion, tensor);

		if (data_type_is_quantized(type) ? !write_quantized(conversion, tensor, type)
			: !write_bytes(conversion, tensor->data, tensor->bytes))
			return false;
		tensor_release_pages(tensor);
		conversion->done += tensor->bytes;
		if (options->progress != NULL && total > 0)
			options->progress(options->argument, (double) conversion->done / (double) total);
	}
	return true;
}

/* ---- files ---- */

/* Copy a file of the model's directory as it is. */
static bool
copy_file(Conversion *conversion, const char *directory, const char *name)
{
	char		buffer[65536];
	size_t		length;
	FILE	   *from;
	bool		good = true;

	snprintf(conversion->path, sizeof(conversion->path), "%s/%s", directory, name);
	from = fopen(conversion->path, "re");
	if (from == NULL)
		return status_set(conversion->status, STATUS_INVALID_MODEL,
						  "could not open file \"%s\": %s", conversion->path, strerror(errno));
	snprintf(conversion->path, sizeof(conversion->path), "%s/%s", conversion->output, name);
	conversion->file = fopen(conversion->path, "we");
	if (conversion->file == NULL)
		good = write_failed(conversion);
	while (good && (length = fread(buffer, 1, sizeof(buffer), from)) > 0)
		good = write_bytes(conversion, buffer, length);
	if (conversion->file != NULL && fclose(conversion->file) != 0 && good)
		good = write_failed(conversion);
	fclose(from);
	return good;
}

/* Make the directory; one that is there must not hold a model. */
static bool
make_directory(Conversion *conversion)
{
	struct stat info;

	snprintf(conversion->path, sizeof(conversion->path), "%s/" TENSORS_FILE, conversion->output);
	if (stat(conversion->path, &info) == 0)
	{
		status_set(conversion->status, STATUS_INVALID_ARGUMENT, "file \"%s\" exists",
				   conversion->path);
		return status_hint(conversion->status, "Write into another directory.");
	}
	if (mkdir(conversion->output, 0777) == 0 || errno == EEXIST)
		return true;
	return status_set(conversion->status, STATUS_INVALID_ARGUMENT,
					  "could not create directory \"%s\": %s", conversion->output,
					  strerror(errno));
}

/* Write the tensors under another name, and give the file its own when it is complete. */
static bool
write_store(Conversion *conversion)
{
	char		path[PATH_MAX + 32];
	bool		good;

	snprintf(path, sizeof(path), "%s/" TENSORS_FILE, conversion->output);
	snprintf(conversion->path, sizeof(conversion->path), "%s/" TENSORS_FILE ".part",
			 conversion->output);
	conversion->file = fopen(conversion->path, "we");
	if (conversion->file == NULL)
		return write_failed(conversion);
	good = write_header(conversion) && write_tensors(conversion);
	if (good && (fflush(conversion->file) != 0 || fsync(fileno(conversion->file)) != 0))
		good = write_failed(conversion);
	if (fclose(conversion->file) != 0 && good)
		good = write_failed(conversion);
	if (good && rename(conversion->path, path) != 0)
		good = write_failed(conversion);
	if (!good)
		unlink(conversion->path);
	return good;
}

static bool
check_source(const Conversion *conversion)
{
	for (int i = 0; i < tensor_store_count(conversion->store); i++)
	{
		const StoredTensor *tensor = tensor_store_at(conversion->store, i);

		if (stored_tensor_is_floating(tensor))
			continue;
		status_set(conversion->status, STATUS_INVALID_MODEL, "tensor \"%s\" is quantised already",
				   tensor->stored_name);
		return status_hint(conversion->status, "Quantise the model that it was made from.");
	}
	return true;
}

bool
model_quantize(const char *directory, const char *output, const QuantizeOptions *options,
			   Status *status)
{
	Arena	   *arena = arena_create();
	Conversion	conversion = {.options = options, .format = weight_format_type(options->format),
		.output = output, .status = status};
	ModelConfig config;
	bool		good;

	if (arena == NULL)
		return status_out_of_memory(status, 0);
	good = model_config_read(directory, arena, &config, status);
	conversion.store = !good ? NULL : tensor_store_open(directory, TENSORS_FILE, arena, status);
	good = conversion.store != NULL && check_source(&conversion);
	conversion.pool = !good ? NULL : thread_pool_create(options->threads, status);
	good = conversion.pool != NULL && make_directory(&conversion) &&
		copy_file(&conversion, directory, "config.json") &&
		copy_file(&conversion, directory, "tokenizer.model") && write_store(&conversion);
	if (conversion.pool != NULL)
		thread_pool_free(conversion.pool);
	tensor_store_close(conversion.store);
	arena_free(arena);
	return good;
}
