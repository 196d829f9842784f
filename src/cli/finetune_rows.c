/*
 * finetune_rows.c - see finetune_rows.h.
 */
#include "finetune_rows.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_text.h"

/* One line, while it is read. */
typedef struct LineReader
{
	const RowFile *file;
	json_t	   *object;
	Arena	   *arena;
	Status	   *status;
} LineReader;

/* A failure of this line alone. */
static bool
unusable(LineReader *reader, const char *message)
{
	return status_set(reader->status, STATUS_INVALID_ARGUMENT, "%s", message);
}

/* A path in the folder of the data file. */
static const char *
resolve_path(LineReader *reader, const char *path)
{
	const char *slash = strrchr(reader->file->path, '/');
	size_t		folder = slash == NULL ? 0 : (size_t) (slash - reader->file->path) + 1;
	char	   *resolved;

	if (path[0] == '/' || folder == 0)
		return path;
	resolved = arena_take(reader->arena, folder + strlen(path) + 1);
	if (resolved == NULL)
		return path;
	memcpy(resolved, reader->file->path, folder);
	strcpy(resolved + folder, path);
	return resolved;
}

/* The value of a key; NULL where it is absent or null. */
static json_t *
find_value(LineReader *reader, const char *key)
{
	json_t	   *value = json_object_get(reader->object, key);

	return json_is_null(value) ? NULL : value;
}

/* A text, or nothing. */
static bool
read_text(LineReader *reader, const char *key, TextPart *part)
{
	json_t	   *value = find_value(reader, key);

	*part = (TextPart) {NULL, 0};
	if (value == NULL)
		return true;
	if (!json_is_string(value))
		return status_set(reader->status, STATUS_INVALID_ARGUMENT, "\"%s\" is not a text", key);
	*part = (TextPart) {json_string_value(value), json_string_length(value)};
	return true;
}

/* The conversation's JSON, which the reader of histories understands. */
static bool
read_conversation(LineReader *reader, TextPart *part)
{
	json_t	   *value = find_value(reader, "conversation");
	char	   *text;

	*part = (TextPart) {NULL, 0};
	if (value == NULL)
		return true;
	text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
	if (text == NULL)
		return status_out_of_memory(reader->status, 0);
	part->length = strlen(text);
	part->text = arena_copy_text(reader->arena, text, part->length);
	free(text);
	return part->text != NULL || status_out_of_memory(reader->status, part->length);
}

/* ---- rows of texts ---- */

static bool
read_image(LineReader *reader, json_t *image, TrainingRow *row)
{
	Picture    *picture = arena_take(reader->arena, sizeof(Picture));

	if (picture == NULL)
		return status_out_of_memory(reader->status, sizeof(Picture));
	if (!json_is_string(image))
		return unusable(reader, "\"image\" is not a path");
	row->pictures = picture;
	row->picture_count = 1;
	return cli_read_image(resolve_path(reader, json_string_value(image)), reader->file->rules,
						  &reader->file->config->vision, reader->arena, picture, reader->status);
}

static bool
read_text_row(LineReader *reader, TrainingRow *row)
{
	PromptTemplate prompt_template = model_text_template(reader->file->config);
	json_t	   *image = find_value(reader, "image");
	RowText		text = {.has_image = image != NULL};

	if (!read_text(reader, "instruction", &text.instruction) ||
		!read_text(reader, "input", &text.input) ||
		!read_text(reader, "response", &text.response) ||
		!read_conversation(reader, &text.conversation))
		return false;
	if (text.conversation.text != NULL &&
		(text.instruction.text != NULL || text.input.text != NULL || text.response.text != NULL))
		return unusable(reader, "the row has a conversation and an instruction, input or response");
	if (!training_row_encode(reader->file->tokenizer, &prompt_template, &text,
							 reader->file->max_length, reader->arena, row, reader->status))
		return false;
	return image == NULL || read_image(reader, image, row);
}

/* ---- rows of tokens ---- */

static bool
read_integers(LineReader *reader, const char *key, int32_t **values, int *count)
{
	json_t	   *array = find_value(reader, key);

	*count = (int) json_array_size(array);
	*values = arena_take_array(reader->arena, json_array_size(array), sizeof(int32_t));
	if (*values == NULL)
		return status_out_of_memory(reader->status, json_array_size(array) * sizeof(int32_t));
	for (int i = 0; i < *count; i++)
	{
		json_t	   *value = json_array_get(array, (size_t) i);

		if (!json_is_integer(value) || json_integer_value(value) < INT32_MIN ||
			json_integer_value(value) > INT32_MAX)
			return status_set(reader->status, STATUS_INVALID_ARGUMENT,
							  "\"%s\" is not a list of integers", key);
		(*values)[i] = (int32_t) json_integer_value(value);
	}
	return json_is_array(array) ||
		status_set(reader->status, STATUS_INVALID_ARGUMENT, "\"%s\" is not a list", key);
}

static bool
read_pixels(LineReader *reader, TrainingRow *row)
{
	json_t	   *pixels = find_value(reader, "pixels");
	size_t		count = pixels == NULL ? 0 : json_is_array(pixels) ? json_array_size(pixels) : 1;
	Picture    *pictures = arena_take_array(reader->arena, count, sizeof(Picture));

	if (pictures == NULL)
		return status_out_of_memory(reader->status, count * sizeof(Picture));
	for (size_t i = 0; i < count; i++)
	{
		json_t	   *path = json_is_array(pixels) ? json_array_get(pixels, i) : pixels;

		if (!json_is_string(path))
			return unusable(reader, "\"pixels\" is neither a path nor a list of paths");
		if (!cli_read_normalised(resolve_path(reader, json_string_value(path)),
								 &reader->file->config->vision, reader->arena, &pictures[i],
								 reader->status))
			return false;
	}
	row->pictures = pictures;
	row->picture_count = (int) count;
	return true;
}

static bool
read_token_row(LineReader *reader, TrainingRow *row)
{
	int32_t    *ids;
	int32_t    *labels;
	int			labels_count;

	if (!read_integers(reader, "ids", &ids, &row->count) ||
		!read_integers(reader, "labels", &labels, &labels_count))
		return false;
	if (labels_count != row->count)
		return status_set(reader->status, STATUS_INVALID_ARGUMENT,
						  "the row has %d ids and %d labels", row->count, labels_count);
	row->ids = ids;
	row->labels = labels;
	return read_pixels(reader, row);
}

/* ---- the file ---- */

/* Read one line and give it to the trainer. */
static bool
read_row(LineReader *reader, const char *line, size_t length, Trainer *trainer)
{
	TrainingRow row = {0};
	json_error_t error;
	bool		good;

	reader->object = json_loadb(line, length, 0, &error);
	if (!json_is_object(reader->object))
	{
		json_decref(reader->object);
		return status_set(reader->status, STATUS_INVALID_JSON, "the line is not a JSON object");
	}
	good = find_value(reader, "ids") != NULL ? read_token_row(reader, &row)
											 : read_text_row(reader, &row);
	good = good && trainer_add_row(trainer, &row, reader->status);
	json_decref(reader->object);
	return good;
}

/* Is the failure the row's own, so that others can still be used? */
static bool
is_row_fault(const Status *status)
{
	return status->code != STATUS_OUT_OF_MEMORY && status->code != STATUS_INTERNAL;
}

/* One line with its number; false ends the reading. */
static bool
take_line(RowFile *file, Arena *arena, const char *line, size_t length, long number,
		  Trainer *trainer, Status *status)
{
	LineReader	reader = {file, NULL, arena, status};

	if (strspn(line, " \t\r\n") == length)
		return true;
	file->rows++;
	if (read_row(&reader, line, length, trainer))
		return true;
	status_prefix(status, "%s line %ld", file->path, number);
	if (!file->skip_unusable || !is_row_fault(status))
		return false;
	file->unusable++;
	fprintf(stderr, "skipped: %s\n", status->message);
	status_clear(status);
	return true;
}

bool
finetune_rows_read(RowFile *file, Trainer *trainer, Status *status)
{
	bool		standard_input = strcmp(file->path, "-") == 0;
	FILE	   *stream = standard_input ? stdin : fopen(file->path, "re");
	Arena	   *arena = arena_create();
	char	   *line = NULL;
	size_t		capacity = 0;
	ssize_t		length;
	long		number = 0;
	bool		good = true;

	if (stream == NULL)
		good = status_set(status, STATUS_IO, "could not read file \"%s\": %s", file->path,
						  strerror(errno));
	else if (arena == NULL)
		good = status_out_of_memory(status, 0);
	while (good && (length = getline(&line, &capacity, stream)) >= 0)
	{
		arena_reset(arena);
		good = take_line(file, arena, line, (size_t) length, ++number, trainer, status);
	}
	if (good && ferror(stream))
		good = status_set(status, STATUS_IO, "could not read file \"%s\" whole", file->path);
	free(line);
	arena_free(arena);
	if (stream != NULL && !standard_input)
		fclose(stream);
	return good;
}
