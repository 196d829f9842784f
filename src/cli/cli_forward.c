/*
 * cli_forward.c - one forward pass over given ids and pictures, and what happens inside it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli_common.h"
#include "npy.h"

typedef struct DumpTarget
{
	const char *directory;
	Status	   *status;
} DumpTarget;

/* Write one tensor of the forward pass to DIR/NAME.npy. */
static void
dump_tensor(void *argument, const char *name, int rows, int columns, const float *values)
{
	DumpTarget *target = argument;
	NpyArray	array = {TYPE_F32, 2, {rows, columns}, (void *) values};
	char		path[4096];

	if (!status_good(target->status))
		return;
	snprintf(path, sizeof(path), "%s/%s.npy", target->directory, name);
	npy_write(path, &array, target->status);
}

/* Encode the pictures, run all tokens in one step and write the logits of each. */
static bool
run_forward(CliModel *opened, const int32_t *ids, int count, const Picture *pictures,
			int picture_count, const char *path, Status *status)
{
	int			vocabulary = model_config(opened->model)->decoder.vocabulary;
	NpyArray	logits = {TYPE_F32, 2, {count, vocabulary}, NULL};
	Media	   *media = NULL;
	Sequence   *sequence;
	bool		good;

	logits.data = arena_take_array(opened->arena, (size_t) count * (size_t) vocabulary,
								   sizeof(float));
	if (logits.data == NULL)
		return status_out_of_memory(status, (size_t) count * (size_t) vocabulary * sizeof(float));
	if (picture_count > 0 && !model_encode_images(opened->model, 1, &picture_count,
												  &opened->adapter, pictures, &media, status))
		return false;
	sequence = sequence_open(opened->model, media, opened->adapter, ids, count, status);
	good = sequence != NULL && sequence_reserve(opened->model, sequence, count, status) &&
		model_step(opened->model, &(StepItem) {sequence, ids, count, count}, 1, status) &&
		model_read_logits(opened->model, count, logits.data, status) && status_good(status) &&
		npy_write(path, &logits, status);
	sequence_close(opened->model, sequence);
	media_release(opened->model, media);
	return good;
}

static bool
forward(const CliArguments *arguments, int argc, char **argv, CliModel *opened, Status *status)
{
	const char *directory = arguments->positional[0];
	const char *dump = cli_value(arguments, "--dump");
	const char *output = cli_value(arguments, "-o");
	DumpTarget	target = {dump, status};
	ModelOptions options = {0};
	ModelConfig config;
	Arena	   *arena = opened->arena = arena_create();
	Picture    *pictures;
	int			picture_count;
	int32_t    *ids;
	int			count;

	if (arena == NULL)
		return status_out_of_memory(status, 0);
	if (output == NULL || cli_value(arguments, "--ids") == NULL)
		return status_set(status, STATUS_USAGE, "%s is missing",
						  output == NULL ? "-o FILE" : "--ids");
	if (!model_config_read(directory, arena, &config, status) ||
		!cli_parse_ids(cli_value(arguments, "--ids"), config.decoder.vocabulary, arena, &ids,
					   &count, status) ||
		!cli_read_pictures(arguments, argc, argv, &config.vision, arena, &pictures, &picture_count,
						   status))
		return false;
	if (dump != NULL && mkdir(dump, 0777) != 0 && errno != EEXIST)
		return status_set(status, STATUS_IO, "could not create directory \"%s\": %s", dump,
						  strerror(errno));
	options.max_step_tokens = count;
	options.max_step_logits = count;
	options.max_images = picture_count > 0 ? picture_count : 1;
	if (!cli_open_model(arguments, directory, &options, opened, status))
		return false;
	status_clear(status);
	if (dump != NULL)
		model_set_tap(opened->model, dump_tensor, &target);
	return run_forward(opened, ids, count, pictures, picture_count, output, status);
}

int
cli_forward(int argc, char **argv)
{
	static const char help[] =
		"Usage: mmgpt-engine forward MODEL --ids \"1 2 3\" [OPTION]... -o FILE.npy\n\n"
		"One forward pass: float32 [tokens, vocabulary].\n\nOptions:\n"
		"  --ids \"1 2 3\"              token ids\n"
		"  --image FILE               a picture for the next <image> mark; may be repeated\n"
		"  --pixels FILE.npy          the same, float32 [3, S, S] already normalised\n"
		"  --image-rules RULES        display or original (default: display)\n"
		"  --dump DIR                 write vision.npy, latents.npy, hidden_00.npy ... there\n"
		"  -o FILE                    where to write the logits\n" CLI_MODEL_HELP;
	CliOption options[] = {CLI_MODEL_OPTIONS,
						   {.name = "--ids", .has_value = true},
						   {.name = "--image", .has_value = true},
						   {.name = "--pixels", .has_value = true},
						   {.name = "--image-rules", .has_value = true},
						   {.name = "--dump", .has_value = true},
						   {.name = "-o", .has_value = true},
						   {.name = NULL}};
	CliArguments arguments = {.options = options};
	CliModel	opened = {0};
	Status		status;
	int			result = 0;

	if (!cli_parse(argc, argv, &arguments, 1, help, &result))
		return result;
	if (!forward(&arguments, argc, argv, &opened, &status))
		result = cli_fail(&status);
	cli_close_model(&opened);
	return result;
}
