/*
 * cli_common.c - see cli_common.h.
 */
#include "cli_common.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "model_text.h"
#include "npy.h"

const CliOption *
cli_option(const CliArguments *arguments, const char *name)
{
	for (const CliOption *option = arguments->options; option->name != NULL; option++)
		if (strcmp(option->name, name) == 0)
			return option;
	return NULL;
}

const char *
cli_value(const CliArguments *arguments, const char *name)
{
	const CliOption *option = cli_option(arguments, name);

	return option == NULL || option->count == 0 ? NULL : option->values[option->count - 1];
}

static bool
usage_error(const CliArguments *arguments, int *result, const char *what, const char *word)
{
	fprintf(stderr, "mmgpt-engine %s: %s%s%s\n", arguments->command, what, word[0] ? " " : "",
			word);
	fprintf(stderr, "hint: Try \"mmgpt-engine %s --help\".\n", arguments->command);
	*result = 2;
	return false;
}

/* The option that an argument names, as "--name" or "--name=value". */
static CliOption *
match_option(CliArguments *arguments, const char *argument, const char **value)
{
	for (CliOption *option = arguments->options; option->name != NULL; option++)
	{
		size_t		length = strlen(option->name);

		if (strncmp(argument, option->name, length) != 0)
			continue;
		*value = argument[length] == '=' ? argument + length + 1 : NULL;
		if (argument[length] == '\0' || (argument[length] == '=' && option->has_value))
			return option;
	}
	return NULL;
}

bool
cli_parse(int argc, char **argv, CliArguments *arguments, int positional, const char *help,
		  int *result)
{
	arguments->command = argv[0];
	for (int i = 1; i < argc; i++)
	{
		const char *value = NULL;
		CliOption  *option;

		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
		{
			fputs(help, stdout);
			*result = 0;
			return false;
		}
		if (argv[i][0] != '-' || argv[i][1] == '\0')
		{
			if (arguments->positional_count == positional)
				return usage_error(arguments, result, "unexpected argument", argv[i]);
			arguments->positional[arguments->positional_count++] = argv[i];
			continue;
		}
		option = match_option(arguments, argv[i], &value);
		if (option == NULL)
			return usage_error(arguments, result, "unknown option", argv[i]);
		if (option->has_value && value == NULL)
			value = ++i < argc ? argv[i] : NULL;
		if (option->has_value && value == NULL)
			return usage_error(arguments, result, "a value is missing after", option->name);
		if (option->count == CLI_MAX_VALUES)
			return usage_error(arguments, result, "too many times given:", option->name);
		option->values[option->count++] = value;
	}
	if (arguments->positional_count < positional - arguments->optional)
		return usage_error(arguments, result, "an argument is missing", "");
	return true;
}

bool
cli_integer(const CliArguments *arguments, const char *name, long low, long high, long fallback,
			long *value, Status *status)
{
	const char *text = cli_value(arguments, name);
	char	   *end;

	*value = fallback;
	if (text == NULL)
		return true;
	errno = 0;
	*value = strtol(text, &end, 10);
	if (errno == 0 && end != text && *end == '\0' && *value >= low && *value <= high)
		return true;
	return status_set(status, STATUS_USAGE, "%s must be an integer between %ld and %ld, not \"%s\"",
					  name, low, high, text);
}

bool
cli_image_rules(const CliArguments *arguments, ImageRules *rules, Status *status)
{
	const char *text = cli_value(arguments, "--image-rules");

	*rules = IMAGE_RULES_DISPLAY;
	if (text == NULL || strcmp(text, "display") == 0)
		return true;
	*rules = IMAGE_RULES_ORIGINAL;
	if (strcmp(text, "original") == 0)
		return true;
	return status_set(status, STATUS_USAGE, "--image-rules must be display or original, not \"%s\"",
					  text);
}

int
cli_fail(const Status *status)
{
	fprintf(stderr, "mmgpt-engine: %s\n", status->message);
	if (status->detail[0] != '\0')
		fprintf(stderr, "detail: %s\n", status->detail);
	if (status->hint[0] != '\0')
		fprintf(stderr, "hint: %s\n", status->hint);
	return status->code == STATUS_USAGE || status->code == STATUS_NOT_SUPPORTED ? 2 : 1;
}

bool
cli_any_order(const CliArguments *arguments, bool *any_order, Status *status)
{
	const char *text = cli_value(arguments, "--deterministic");

	*any_order = text != NULL && strcmp(text, "off") == 0;
	return text == NULL || *any_order || strcmp(text, "on") == 0 ||
		status_set(status, STATUS_USAGE, "--deterministic must be on or off, not \"%s\"", text);
}

bool
cli_open_backend(const CliArguments *arguments, CliModel *opened, Status *status)
{
	DeviceOptions options = {.device = cli_value(arguments, "--device"),
							 .cpu = {0, cli_value(arguments, "--instruction-set")}};
	long		threads;

	if (!cli_any_order(arguments, &options.any_order, status) ||
		!cli_integer(arguments, "--threads", 0, 1024, 0, &threads, status))
		return false;
	options.cpu.threads = (int) threads;
	if (opened->arena == NULL)
		opened->arena = arena_create();
	if (opened->arena == NULL)
		return status_out_of_memory(status, 0);
	log_set_level(ENGINE_WARNING);	/* which device "auto" is, is news to a server's log only */
	opened->backend = backend_open(&options, status);
	return opened->backend != NULL;
}

/* What the common options say about computing. */
static bool
read_model_options(const CliArguments *arguments, ModelOptions *options, Status *status)
{
	long		attend_previous;

	if (!cli_integer(arguments, "--attend-previous", 0, 1, -1, &attend_previous, status))
		return false;
	options->attend_previous = (int) attend_previous;
	return weight_format_read(cli_value(arguments, "--weights"), &options->weights, status);
}

bool
cli_open_model(const CliArguments *arguments, const char *directory, ModelOptions *options,
			   CliModel *opened, Status *status)
{
	const char *adapter = cli_value(arguments, "--adapter");

	if (!read_model_options(arguments, options, status) ||
		!cli_open_backend(arguments, opened, status))
		return false;
	opened->model = model_open(directory, opened->backend, options, status);
	if (opened->model == NULL)
		return false;
	if (adapter != NULL)
		opened->adapter = adapter_open(opened->model, adapter, status);
	return adapter == NULL || opened->adapter != NULL;
}

bool
cli_open_random_model(const CliArguments *arguments, const ModelConfig *config,
					  ModelOptions *options, CliModel *opened, Status *status)
{
	if (!read_model_options(arguments, options, status) ||
		!cli_open_backend(arguments, opened, status))
		return false;
	opened->model = model_open_random(config, opened->backend, options, status);
	return opened->model != NULL;
}

void
cli_close_model(CliModel *opened)
{
	if (opened->model != NULL)
		adapter_close(opened->model, opened->adapter);
	model_close(opened->model);
	if (opened->backend != NULL)
		opened->backend->ops->close(opened->backend);
	arena_free(opened->arena);
}

Tokenizer *
cli_open_tokenizer(const char *directory, Arena *arena, ModelConfig *config, Status *status)
{
	if (!model_config_read(directory, arena, config, status))
		return NULL;
	return model_text_tokenizer(directory, config, arena, status);
}

bool
cli_read_file(const char *path, Arena *arena, uint8_t **bytes, size_t *length, Status *status)
{
	FILE	   *file = fopen(path, "rb");
	long		size = -1;

	if (file != NULL && fseek(file, 0, SEEK_END) == 0)
		size = ftell(file);
	if (size < 0 || fseek(file, 0, SEEK_SET) != 0)
	{
		status_set(status, STATUS_IO, "could not read file \"%s\": %s", path, strerror(errno));
		if (file != NULL)
			fclose(file);
		return false;
	}
	*bytes = arena_take(arena, (size_t) size + 1);
	*length = *bytes == NULL ? 0 : fread(*bytes, 1, (size_t) size, file);
	fclose(file);
	if (*bytes == NULL)
		return status_out_of_memory(status, (size_t) size);
	return *length == (size_t) size ||
		   status_set(status, STATUS_IO, "could not read file \"%s\" whole", path);
}

bool
cli_parse_ids(const char *text, int vocabulary, Arena *arena, int32_t **ids, int *count,
			  Status *status)
{
	*ids = arena_take_array(arena, strlen(text) / 2 + 1, sizeof(int32_t));
	*count = 0;
	if (*ids == NULL)
		return status_out_of_memory(status, strlen(text) * 2);
	for (;;)
	{
		char	   *end;
		long		id;

		text += strspn(text, " ,\t\n");
		if (*text == '\0')
			return *count > 0 || status_set(status, STATUS_USAGE, "--ids holds no token ids");
		id = strtol(text, &end, 10);
		if (end == text || id < 0 || id >= vocabulary)
			return status_set(status, STATUS_INVALID_ARGUMENT,
							  "--ids holds \"%.20s\", which is not a token id below %d", text,
							  vocabulary);
		(*ids)[(*count)++] = (int32_t) id;
		text = end;
	}
}

bool
cli_read_image(const char *path, ImageRules rules, const VisionConfig *config, Arena *arena,
			   Picture *picture, Status *status)
{
	ImageLimits limits = {UINT64_C(1) << 31};
	size_t		size = (size_t) config->image_size;
	uint8_t    *pixels = arena_take(arena, size * size * 3);
	uint8_t    *bytes;
	size_t		length;

	if (pixels == NULL)
		return status_out_of_memory(status, size * size * 3);
	if (!cli_read_file(path, arena, &bytes, &length, status))
		return false;
	picture->pixels = pixels;
	return image_preprocess(bytes, length, rules, &limits, config->image_size, arena, pixels,
							status) ||
		   status_prefix(status, "%s", path);
}

bool
cli_read_normalised(const char *path, const VisionConfig *config, Arena *arena, Picture *picture,
					Status *status)
{
	int			size = config->image_size;
	NpyArray	array;

	if (!npy_read(path, arena, &array, status))
		return false;
	if (array.type != TYPE_F32 || array.dimensions != 3 || array.shape[0] != 3 ||
		array.shape[1] != size || array.shape[2] != size)
		return status_set(status, STATUS_INVALID_ARGUMENT,
						  "\"%s\" is not float32 of shape (3, %d, %d)", path, size, size);
	picture->normalised = array.data;
	return true;
}

/* Which of the two options an argument is; its value is the rest or the next argument. */
static const char *
picture_option(char **argv, int i, const char *name)
{
	size_t		length = strlen(name);

	if (strncmp(argv[i], name, length) != 0)
		return NULL;
	return argv[i][length] == '='	 ? argv[i] + length + 1
		   : argv[i][length] == '\0' ? argv[i + 1]
									 : NULL;
}

bool
cli_read_pictures(const CliArguments *arguments, int argc, char **argv, const VisionConfig *config,
				  Arena *arena, Picture **pictures, int *count, Status *status)
{
	int			total = cli_option(arguments, "--image")->count +
						cli_option(arguments, "--pixels")->count;
	ImageRules	rules;

	*count = 0;
	*pictures = arena_take_array(arena, (size_t) total + 1, sizeof(Picture));
	if (*pictures == NULL)
		return status_out_of_memory(status, (size_t) total * sizeof(Picture));
	if (!cli_image_rules(arguments, &rules, status))
		return false;
	for (int i = 1; i < argc; i++)
	{
		const char *image = picture_option(argv, i, "--image");
		const char *pixels = picture_option(argv, i, "--pixels");
		Picture    *picture = &(*pictures)[*count];

		if (image == NULL && pixels == NULL)
			continue;
		if (image != NULL ? !cli_read_image(image, rules, config, arena, picture, status) :
			!cli_read_normalised(pixels, config, arena, picture, status))
			return false;
		(*count)++;
		i += strchr(argv[i], '=') == NULL;
	}
	return true;
}
