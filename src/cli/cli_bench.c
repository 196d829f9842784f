/*
 * cli_bench.c - measure speed. So far: how many pictures a second are encoded.
 *
 * The pictures are noise, which takes the same time as any other. A measurement is a warm-up and
 * then runs until the given time is over; fastest and median run are told.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_common.h"
#include "clock.h"

#define MAX_BATCHES 16
#define MAX_BATCH 256
#define MAX_RUNS 1000
#define LEAST_RUNS 3

typedef struct BenchOptions
{
	int			batches[MAX_BATCHES];
	int			batch_count;
	double		seconds;		/* for each batch size */
} BenchOptions;

/* What was measured with one batch size. */
typedef struct VisionResult
{
	int			batch;
	int			runs;
	double		best;			/* images a second */
	double		median;
} VisionResult;

/* "1,4,16" */
static bool
read_batches(const char *text, BenchOptions *options, Status *status)
{
	const char *at = text;

	for (options->batch_count = 0; options->batch_count < MAX_BATCHES;)
	{
		char	   *end;
		long		batch = strtol(at, &end, 10);

		if (end == at || batch < 1 || batch > MAX_BATCH || (*end != ',' && *end != '\0'))
			break;
		options->batches[options->batch_count++] = (int) batch;
		if (*end == '\0')
			return true;
		at = end + 1;
	}
	return status_set(status, STATUS_USAGE,
					  "--batch must be at most %d sizes of 1 to %d, as in \"1,4,16\", not \"%s\"",
					  MAX_BATCHES, MAX_BATCH, text);
}

static bool
read_options(const CliArguments *arguments, BenchOptions *options, Status *status)
{
	const char *batches = cli_value(arguments, "--batch");
	long		seconds;

	if (cli_option(arguments, "--vision")->count == 0)
	{
		status_set(status, STATUS_NOT_SUPPORTED, "bench without --vision is not supported yet");
		return status_hint(status, "Only the encoding of pictures is measured so far.");
	}
	if (!cli_integer(arguments, "--seconds", 1, 3600, 5, &seconds, status))
		return false;
	options->seconds = (double) seconds;
	return read_batches(batches == NULL ? "1" : batches, options, status);
}

static int
compare_times(const void *a, const void *b)
{
	double		difference = *(const double *) a - *(const double *) b;

	return (difference > 0) - (difference < 0);
}

/* Encode batch pictures once; the seconds it took. */
static bool
encode_once(Model *model, const Picture *pictures, int batch, double *seconds, Status *status)
{
	uint64_t	begin = clock_now_ns();
	Adapter    *adapter = NULL;
	Media	   *media;

	if (!model_encode_images(model, 1, &batch, &adapter, pictures, &media, status))
		return false;
	*seconds = (double) (clock_now_ns() - begin) * 1e-9;
	media_release(model, media);
	return true;
}

static bool
measure_vision(Model *model, const Picture *pictures, int batch, double seconds,
			   VisionResult *result, Status *status)
{
	static double times[MAX_RUNS];
	double		total = 0;
	int			runs = 0;

	if (!encode_once(model, pictures, batch, &times[0], status))
		return false;
	while (runs < MAX_RUNS && (runs < LEAST_RUNS || total < seconds))
	{
		if (!encode_once(model, pictures, batch, &times[runs], status))
			return false;
		total += times[runs++];
	}
	qsort(times, (size_t) runs, sizeof(double), compare_times);
	*result = (VisionResult) {batch, runs, batch / times[0], batch / times[runs / 2]};
	return true;
}

/* Noise that is the same in every run. */
static bool
make_pictures(int count, int image_size, Arena *arena, Picture **pictures, Status *status)
{
	size_t		bytes = (size_t) image_size * (size_t) image_size * 3;
	uint32_t	state = 1;

	*pictures = arena_take_array(arena, (size_t) count, sizeof(Picture));
	for (int i = 0; i < count; i++)
	{
		uint8_t    *pixels = *pictures == NULL ? NULL : arena_take(arena, bytes);

		if (pixels == NULL)
			return status_out_of_memory(status, bytes);
		for (size_t j = 0; j < bytes; j++)
		{
			state = state * 1664525u + 1013904223u;
			pixels[j] = (uint8_t) (state >> 24);
		}
		(*pictures)[i].pixels = pixels;
	}
	return true;
}

static void
print_table(const CliModel *opened, const VisionResult *results, int count)
{
	printf("%s, %s\n", opened->backend->ops->describe(opened->backend),
		   data_type_name(model_format(opened->model)));
	printf("%-8s %6s %14s %14s\n", "vision", "runs", "images/s best", "median");
	for (int i = 0; i < count; i++)
		printf("batch %-2d %6d %14.2f %14.2f\n", results[i].batch, results[i].runs,
			   results[i].best, results[i].median);
}

static void
print_json(const CliModel *opened, const VisionResult *results, int count)
{
	json_t	   *vision = json_array();
	json_t	   *root = json_pack("{s:s, s:s}", "device",
								 opened->backend->ops->describe(opened->backend), "weight_format",
								 data_type_name(model_format(opened->model)));

	for (int i = 0; i < count; i++)
		json_array_append_new(vision, json_pack("{s:i, s:i, s:{s:f, s:f}}", "batch",
												results[i].batch, "runs", results[i].runs,
												"images_per_second", "best", results[i].best,
												"median", results[i].median));
	json_object_set_new(root, "vision", vision);
	json_dumpf(root, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(root);
}

static bool
bench(const CliArguments *arguments, CliModel *opened, Status *status)
{
	ModelOptions model_options = {.max_images = 1};
	BenchOptions options = {0};
	VisionResult results[MAX_BATCHES];
	Picture    *pictures;

	if (!read_options(arguments, &options, status))
		return false;
	for (int i = 0; i < options.batch_count; i++)
		if (options.batches[i] > model_options.max_images)
			model_options.max_images = options.batches[i];
	if (!cli_open_model(arguments, arguments->positional[0], &model_options, opened, status) ||
		!make_pictures(model_options.max_images, model_config(opened->model)->vision.image_size,
					   opened->arena, &pictures, status))
		return false;
	for (int i = 0; i < options.batch_count; i++)
		if (!measure_vision(opened->model, pictures, options.batches[i], options.seconds,
							&results[i], status))
			return false;
	if (cli_option(arguments, "--json")->count > 0)
		print_json(opened, results, options.batch_count);
	else
		print_table(opened, results, options.batch_count);
	return true;
}

int
cli_bench(int argc, char **argv)
{
	static const char help[] =
		"Usage: mmgpt-engine bench MODEL --vision [OPTION]...\n\n"
		"Measure how many pictures a second are encoded: vision encoder, resampler, and the keys\n"
		"and values of the gated blocks. Pictures are noise, already resized.\n\nOptions:\n"
		"  --vision                   encode pictures (the only measurement so far)\n"
		"  --batch N[,N]...           pictures at once (default: 1)\n"
		"  --seconds N                time for each batch size (default: 5)\n"
		"  --json                     JSON instead of a table\n" CLI_MODEL_HELP;
	CliOption	options[] = {CLI_MODEL_OPTIONS,
							 {.name = "--vision"},
							 {.name = "--batch", .has_value = true},
							 {.name = "--seconds", .has_value = true},
							 {.name = "--json"},
							 {.name = NULL}};
	CliArguments arguments = {.options = options};
	CliModel	opened = {0};
	Status		status;
	int			result = 0;

	if (!cli_parse(argc, argv, &arguments, 1, help, &result))
		return result;
	if (!bench(&arguments, &opened, &status))
		result = cli_fail(&status);
	cli_close_model(&opened);
	return result;
}
