/*
 * cli_bench.c - measure speed: text, pictures encoded, and training.
 *
 *	bench_shapes.c	sizes of models without their weights
 *	bench_text.c	tokens a second of prompts and of answers
 *	bench_vision.c	pictures a second
 *	bench_train.c	tokens a second that LoRA trains on
 */
#include "cli_bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* Tokens of a training row, and of a sequence before any are generated, unless told. */
#define DEFAULT_TOKENS 256
#define DEFAULT_DEPTH 16

/* ---- what all measurements need ---- */

bool
bench_runs_add(BenchRuns *runs, double seconds, double enough)
{
	runs->seconds[runs->count++] = seconds;
	runs->total += seconds;
	return runs->count < BENCH_MAX_RUNS &&
		(runs->count < BENCH_LEAST_RUNS || runs->total < enough);
}

static int
compare_times(const void *a, const void *b)
{
	double		difference = *(const double *) a - *(const double *) b;

	return (difference > 0) - (difference < 0);
}

void
bench_runs_sort(BenchRuns *runs)
{
	qsort(runs->seconds, (size_t) runs->count, sizeof(double), compare_times);
}

size_t
bench_peak_memory(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (size_t) usage.ru_maxrss * 1024;
}

bool
bench_draw_picture(int image_size, uint32_t seed, Arena *arena, Picture *picture, Status *status)
{
	size_t		bytes = (size_t) image_size * (size_t) image_size * 3;
	uint8_t    *pixels = arena_take(arena, bytes);

	if (pixels == NULL)
		return status_out_of_memory(status, bytes);
	for (size_t i = 0; i < bytes; i++)
	{
		seed = seed * 1664525u + 1013904223u;
		pixels[i] = (uint8_t) (seed >> 24);
	}
	*picture = (Picture) {.pixels = pixels};
	return true;
}

/* ---- options ---- */

/* "1,4,16" */
static bool
read_batches(const char *text, BenchOptions *options, Status *status)
{
	const char *at = text;

	for (options->batch_count = 0; options->batch_count < BENCH_MAX_BATCHES;)
	{
		char	   *end;
		long		batch = strtol(at, &end, 10);

		if (end == at || batch < 1 || batch > BENCH_MAX_BATCH || (*end != ',' && *end != '\0'))
			break;
		options->batches[options->batch_count++] = (int) batch;
		if (*end == '\0')
			return true;
		at = end + 1;
	}
	return status_set(status, STATUS_USAGE,
					  "--batch must be at most %d sizes of 1 to %d, as in \"1,4,16\", not \"%s\"",
					  BENCH_MAX_BATCHES, BENCH_MAX_BATCH, text);
}

static bool
read_options(const CliArguments *arguments, BenchOptions *options, Status *status)
{
	const char *batches = cli_value(arguments, "--batch");
	const char *training = cli_value(arguments, "--options");
	long		seconds;
	long		tokens;
	long		prompt;
	long		generate;
	long		depth;

	options->vision = cli_option(arguments, "--vision")->count > 0;
	options->train = cli_option(arguments, "--train")->count > 0;
	options->picture = cli_option(arguments, "--picture")->count > 0;
	if (!cli_integer(arguments, "--prompt", 1, 1000000, 0, &prompt, status) ||
		!cli_integer(arguments, "--generate", 1, 1000000, 0, &generate, status) ||
		!cli_integer(arguments, "--depth", 1, 1000000, DEFAULT_DEPTH, &depth, status))
		return false;
	options->prompt = (int) prompt;
	options->generate = (int) generate;
	options->depth = (int) depth;
	if (!options->vision && !options->train && prompt + generate == 0)
		return status_set(status, STATUS_USAGE, "nothing to measure: give --prompt, --generate, "
						  "--vision or --train");
	if (!cli_integer(arguments, "--seconds", 1, 3600, 5, &seconds, status) ||
		!cli_integer(arguments, "--tokens", 2, 1000000, DEFAULT_TOKENS, &tokens, status))
		return false;
	options->seconds = (double) seconds;
	options->tokens = (int) tokens;
	train_options_defaults(&options->training);
	return train_options_read(training, training == NULL ? 0 : strlen(training),
							  &options->training, status) &&
		read_batches(batches == NULL ? "1" : batches, options, status);
}

/* ---- the run ---- */

/* The model of the arguments: a directory's, or one of a shape with random weights. */
static bool
open_model(const CliArguments *arguments, const BenchOptions *options, CliModel *opened,
		   Status *status)
{
	ModelOptions model_options = {.max_images = 1, .media_bytes = 1};
	const char *shape = cli_value(arguments, "--shape");
	int			tokens = bench_text_tokens(options);
	ModelConfig config;

	if ((shape == NULL) == (arguments->positional_count == 0))
		return status_set(status, STATUS_USAGE, "bench measures either MODEL or a --shape");
	for (int i = 0; i < options->batch_count; i++)
	{
		if (options->vision && options->batches[i] > model_options.max_images)
			model_options.max_images = options->batches[i];
		if (options->batches[i] > model_options.max_step_logits)
			model_options.max_step_logits = options->batches[i];
		if (options->batches[i] * tokens > model_options.cache_tokens)
			model_options.cache_tokens = options->batches[i] * tokens;
	}
	if (shape == NULL)
		return cli_open_model(arguments, arguments->positional[0], &model_options, opened, status);
	if (cli_value(arguments, "--adapter") != NULL)
		return status_set(status, STATUS_USAGE, "an adapter does not go with a --shape");
	opened->arena = arena_create();
	if (opened->arena == NULL)
		return status_out_of_memory(status, 0);
	return bench_shape_read(shape, opened->arena, &config, status) &&
		cli_open_random_model(arguments, &config, &model_options, opened, status);
}

static bool
check_tokens(const CliModel *opened, const BenchOptions *options, Status *status)
{
	int			context = model_config(opened->model)->decoder.context;

	if (options->prompt > context)
		return status_set(status, STATUS_USAGE, "--prompt %d exceeds the model's context of %d",
						  options->prompt, context);
	if (options->generate > 0 && options->depth + options->generate > context)
		return status_set(status, STATUS_USAGE, "--depth %d and --generate %d exceed the model's "
						  "context of %d", options->depth, options->generate, context);
	return !options->train || options->tokens <= context ||
		status_set(status, STATUS_USAGE, "--tokens %d exceeds the model's context of %d",
				   options->tokens, context);
}

static bool
bench(const CliArguments *arguments, CliModel *opened, json_t *root, Status *status)
{
	BenchOptions options = {0};
	bool		quiet = cli_option(arguments, "--json")->count > 0;
	json_t	   *text = json_array();
	json_t	   *vision = json_array();
	json_t	   *train = json_array();
	bool		good;

	json_object_set_new(root, "text", text);
	json_object_set_new(root, "vision", vision);
	json_object_set_new(root, "train", train);
	if (!read_options(arguments, &options, status) ||
		!open_model(arguments, &options, opened, status) ||
		!check_tokens(opened, &options, status))
		return false;
	json_object_set_new(root, "device",
						json_string(opened->backend->ops->describe(opened->backend)));
	json_object_set_new(root, "weight_format",
						json_string(data_type_name(model_format(opened->model))));
	if (!quiet)
		printf("%s, %s\n", opened->backend->ops->describe(opened->backend),
			   data_type_name(model_format(opened->model)));
	good = (options.prompt + options.generate == 0 ||
			bench_text(opened, &options, quiet, text, status)) &&
		(!options.vision || bench_vision(opened, &options, quiet, vision, status)) &&
		(!options.train || bench_train(opened, &options, quiet, train, status));
	if (options.prompt + options.generate == 0)
		json_object_del(root, "text");
	if (!options.vision)
		json_object_del(root, "vision");
	if (!options.train)
		json_object_del(root, "train");
	return good;
}

int
cli_bench(int argc, char **argv)
{
	static const char help[] =
		"Usage: mmgpt-engine bench (MODEL | --shape SHAPE) [OPTION]...\n\n"
		"Measure speed: a warm-up, then runs until the time is over.\n\nOptions:\n"
		"  --shape 7b|1b|FILE.json    random weights of this shape instead of a model; a file has\n"
		"                             the form of config.json\n"
		"  --prompt N                 read prompts of N tokens\n"
		"  --generate N               generate N tokens, greedily\n"
		"  --depth N                  tokens that a sequence has before that (default: 16)\n"
		"  --vision                   encode pictures of noise: vision encoder, resampler, and the\n"
		"                             keys and values of the gated blocks\n"
		"  --train                    train a LoRA adapter on rows of random tokens\n"
		"  --batch N[,N]...           sequences or pictures at once, or rows of a micro step\n"
		"                             (default: 1)\n"
		"  --tokens N                 of a training row (default: 256)\n"
		"  --picture                  a training row has a picture, which the gated blocks attend to\n"
		"  --options JSON             of training, as finetune's: r, alpha, target_modules, ...\n"
		"  --seconds N                time for each batch size (default: 5)\n"
		"  --json                     JSON instead of a table\n" CLI_MODEL_HELP;
	CliOption	options[] = {CLI_MODEL_OPTIONS,
							 {.name = "--shape", .has_value = true},
							 {.name = "--prompt", .has_value = true},
							 {.name = "--generate", .has_value = true},
							 {.name = "--depth", .has_value = true},
							 {.name = "--vision"},
							 {.name = "--train"},
							 {.name = "--batch", .has_value = true},
							 {.name = "--tokens", .has_value = true},
							 {.name = "--picture"},
							 {.name = "--options", .has_value = true},
							 {.name = "--seconds", .has_value = true},
							 {.name = "--json"},
							 {.name = NULL}};
	CliArguments arguments = {.options = options, .optional = 1};
	CliModel	opened = {0};
	json_t	   *root;
	Status		status;
	int			result = 0;

	if (!cli_parse(argc, argv, &arguments, 1, help, &result))
		return result;
	status_clear(&status);
	root = json_object();
	if (!bench(&arguments, &opened, root, &status))
		result = cli_fail(&status);
	else if (cli_option(&arguments, "--json")->count > 0)
	{
		json_dumpf(root, stdout, JSON_INDENT(2));
		putchar('\n');
	}
	json_decref(root);
	cli_close_model(&opened);
	return result;
}
