/*
 * cli_quantize.c - make a model directory with 8-bit or 4-bit weights from another.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli_common.h"

/* How far the conversion is, where a terminal shows it. */
static void
show_progress(void *argument, double fraction)
{
	int		   *shown = argument;
	int			percent = (int) (100 * fraction);

	if (percent == *shown)
		return;
	*shown = percent;
	fprintf(stderr, "\r%3d %%%s", percent, percent >= 100 ? "\n" : "");
	fflush(stderr);
}

static bool
quantize(const CliArguments *arguments, Status *status)
{
	const char *format = cli_value(arguments, "--format");
	const char *output = cli_value(arguments, "-o");
	int			shown = -1;
	QuantizeOptions options = {.format = WEIGHTS_STORED};
	long		threads;

	if (format == NULL || output == NULL)
		return status_set(status, STATUS_USAGE, "quantize needs --format and -o");
	if (strcmp(format, "q8") == 0)
		options.format = WEIGHTS_Q8;
	else if (strcmp(format, "q4") == 0)
		options.format = WEIGHTS_Q4;
	else
		return status_set(status, STATUS_USAGE, "--format must be q8 or q4, not \"%s\"", format);
	if (!cli_integer(arguments, "--threads", 0, 1024, 0, &threads, status))
		return false;
	options.threads = (int) threads;
	if (isatty(STDERR_FILENO))
	{
		options.progress = show_progress;
		options.argument = &shown;
	}
	return model_quantize(arguments->positional[0], output, &options, status);
}

int
cli_quantize(int argc, char **argv)
{
	static const char help[] =
		"Usage: mmgpt-engine quantize MODEL --format q8|q4 -o DIR [--threads N]\n\n"
		"Make a model directory whose matrices have 8 or 4 bits a weight and a scale for each 32\n"
		"weights. With q4 the output matrix, the vision encoder and the resampler have 8 bits.\n"
		"Embedding and vectors are copied as they are.\n\nOptions:\n"
		"  --format q8|q4             bits of a weight\n"
		"  -o DIR                     where to; made if it is not there\n"
		"  --threads N                threads (default: all cores)\n";
	CliOption	options[] = {{.name = "--format", .has_value = true},
							 {.name = "-o", .has_value = true},
							 {.name = "--threads", .has_value = true},
							 {.name = NULL}};
	CliArguments arguments = {.options = options};
	Status		status;
	int			result = 0;

	if (!cli_parse(argc, argv, &arguments, 1, help, &result))
		return result;
	status_clear(&status);
	return quantize(&arguments, &status) ? 0 : cli_fail(&status);
}
