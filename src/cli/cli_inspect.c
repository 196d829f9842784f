/*
 * cli_inspect.c - looking at a model and at what goes into it: info, preprocess, tokenize,
 * detokenize.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_common.h"
#include "npy.h"

/* ---- info ---- */

static json_t *
words_json(const WordList *list)
{
	json_t	   *array = json_array();

	for (int i = 0; i < list->count; i++)
		json_array_append_new(array, json_string(list->words[i]));
	return array;
}

static json_t *
shapes_json(const ModelConfig *c)
{
	return json_pack(
		"{s:{s:i,s:i,s:i,s:i,s:i}, s:{s:i,s:i,s:i,s:i}, s:{s:i,s:i,s:i}, "
		"s:{s:i,s:i,s:i,s:i,s:i,s:i}}",
		"vision", "image_size", c->vision.image_size, "patch_size", c->vision.patch_size, "width",
		c->vision.width, "layers", c->vision.layers, "heads", c->vision.heads, "resampler", "depth",
		c->resampler.depth, "heads", c->resampler.heads, "head_size", c->resampler.head_size,
		"latents", c->resampler.latents, "cross_attention", "every_n_layers",
		c->cross_attention.every, "heads", c->cross_attention.heads, "head_size",
		c->cross_attention.head_size, "decoder", "hidden_size", c->decoder.hidden,
		"intermediate_size", c->decoder.mlp, "layers", c->decoder.layers, "heads", c->decoder.heads,
		"vocabulary", c->decoder.vocabulary, "context", c->decoder.context);
}

static json_t *
prompts_json(const PromptConfig *prompts)
{
	return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:o}", "caption_brief",
					 prompts->caption_brief, "caption_detailed", prompts->caption_detailed, "count",
					 prompts->count, "filter", prompts->filter, "classify", prompts->classify,
					 "classify_answer", prompts->classify_answer, "classify_multi",
					 prompts->classify_multi, "yes_words", words_json(&prompts->yes_words),
					 "no_words", words_json(&prompts->no_words));
}

static json_t *
sizes_json(const ModelDescription *d)
{
	json_int_t	total = (json_int_t) (d->parameters_vision + d->parameters_resampler +
									  d->parameters_cross_attention + d->parameters_decoder);

	return json_pack("{s:{s:I,s:I,s:I,s:I,s:I}, s:{s:I,s:I,s:I,s:I}}", "parameters", "vision",
					 (json_int_t) d->parameters_vision, "resampler",
					 (json_int_t) d->parameters_resampler, "cross_attention",
					 (json_int_t) d->parameters_cross_attention, "decoder",
					 (json_int_t) d->parameters_decoder, "total", total, "bytes", "weights",
					 (json_int_t) d->weight_bytes, "cache", (json_int_t) d->cache_bytes, "pictures",
					 (json_int_t) d->media_bytes, "workspace", (json_int_t) d->workspace_bytes);
}

int
cli_info(int argc, char **argv)
{
	static const char help[] = "Usage: mmgpt-engine info MODEL [OPTION]...\n\n"
							   "Print the model's sizes, parameters, bytes by part and prompts as "
							   "JSON.\n\nOptions:\n" CLI_MODEL_HELP;
	CliOption	options[] = {CLI_MODEL_OPTIONS, {.name = NULL}};
	CliArguments arguments = {.options = options};
	CliModel	opened = {0};
	ModelOptions model_options = {0};
	ModelDescription description;
	const ModelConfig *config;
	json_t	   *root;
	Status		status;
	int			result = 0;

	if (!cli_parse(argc, argv, &arguments, 1, help, &result))
		return result;
	if (!cli_open_model(&arguments, arguments.positional[0], &model_options, &opened, &status))
	{
		result = cli_fail(&status);
		cli_close_model(&opened);
		return result;
	}
	config = model_config(opened.model);
	model_describe(opened.model, &description);
	root = json_pack("{s:s, s:s, s:s, s:s, s:b, s:b, s:o}", "model", arguments.positional[0],
					 "digest", model_digest(opened.model), "device",
					 opened.backend->ops->describe(opened.backend), "weight_format",
					 data_type_name(model_format(opened.model)), "attend_previous",
					 config->attend_previous, "history_eos", config->history_eos, "shapes",
					 shapes_json(config));
	json_object_update_new(root, sizes_json(&description));
	json_object_set_new(root, "prompts", prompts_json(&config->prompts));
	json_dumpf(root, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(root);
	cli_close_model(&opened);
	return 0;
}

/* ---- preprocess ---- */

static bool
preprocess(const CliArguments *arguments, Arena *arena, Status *status)
{
	const char *path = arguments->positional[1];
	ImageLimits limits = {UINT64_C(1) << 31};
	ModelConfig config;
	ImageRules	rules;
	NpyArray	array = {.type = TYPE_U8, .dimensions = 3};
	uint8_t    *bytes;
	size_t		length;
	long		size;

	if (cli_value(arguments, "-o") == NULL)
		return status_set(status, STATUS_USAGE, "-o FILE is missing");
	if (!cli_image_rules(arguments, &rules, status) ||
		!cli_integer(arguments, "--size", 1, 16384, 0, &size, status))
		return false;
	if (size == 0)
	{
		if (!model_config_read(arguments->positional[0], arena, &config, status))
			return false;
		size = config.vision.image_size;
	}
	array.shape[0] = array.shape[1] = (int) size;
	array.shape[2] = 3;
	array.data = arena_take(arena, (size_t) size * (size_t) size * 3);
	if (array.data == NULL)
		return status_out_of_memory(status, (size_t) (size * size * 3));
	if (!cli_read_file(path, arena, &bytes, &length, status))
		return false;
	if (!image_preprocess(bytes, length, rules, &limits, (int) size, arena, array.data, status))
		return status_prefix(status, "%s", path);
	return npy_write(cli_value(arguments, "-o"), &array, status);
}

int
cli_preprocess(int argc, char **argv)
{
	static const char help[] =
		"Usage: mmgpt-engine preprocess MODEL IMAGE [OPTION]... -o FILE.npy\n\n"
		"Decode, resize and crop a JPEG or PNG file: uint8 [S, S, 3], before "
		"normalising.\n\nOptions:\n"
		"  --size S                   pixels of a side (default: the model's)\n"
		"  --image-rules RULES        display or original (default: display)\n"
		"  -o FILE                    where to write\n";
	CliOption	options[] = {{.name = "--size", .has_value = true},
							 {.name = "--image-rules", .has_value = true},
							 {.name = "-o", .has_value = true},
							 {.name = NULL}};
	CliArguments arguments = {.options = options};
	Arena	   *arena;
	Status		status;
	int			result = 0;

	if (!cli_parse(argc, argv, &arguments, 2, help, &result))
		return result;
	arena = arena_create();
	if (arena == NULL)
		return 1;
	if (!preprocess(&arguments, arena, &status))
		result = cli_fail(&status);
	arena_free(arena);
	return result;
}

/* ---- tokenize, detokenize ---- */

/* One line of input to one line of output. */
typedef bool (*LineFunction)(const Tokenizer *tokenizer, bool parse_special, json_t *in,
							 Arena *arena, json_t **out, Status *status);

static bool
tokenize_line(const Tokenizer *tokenizer, bool parse_special, json_t *in, Arena *arena,
			  json_t **out, Status *status)
{
	TokenList	ids;

	if (!json_is_string(in))
		return status_set(status, STATUS_INVALID_ARGUMENT, "is not a JSON string");
	token_list_begin(&ids, arena);
	if (parse_special)
	{
		if (!tokenizer_encode_special(tokenizer, json_string_value(in), json_string_length(in),
									  &ids, status))
			return false;
	}
	else if (!token_list_add(&ids, tokenizer_special(tokenizer)->bos, status) ||
			 !tokenizer_encode_plain(tokenizer, json_string_value(in), json_string_length(in), &ids,
									 status))
		return false;
	*out = json_array();
	for (int i = 0; i < ids.count; i++)
		json_array_append_new(*out, json_integer(ids.ids[i]));
	return true;
}

static bool
detokenize_line(const Tokenizer *tokenizer, bool parse_special, json_t *in, Arena *arena,
				json_t **out, Status *status)
{
	size_t		count = json_array_size(in);
	int32_t    *ids = arena_take_array(arena, count + 1, sizeof(int32_t));
	size_t		length;
	char	   *text;

	if (!json_is_array(in))
		return status_set(status, STATUS_INVALID_ARGUMENT, "is not a JSON array");
	if (ids == NULL)
		return status_out_of_memory(status, count * sizeof(int32_t));
	for (size_t i = 0; i < count; i++)
	{
		json_t	   *id = json_array_get(in, i);

		if (!json_is_integer(id) || json_integer_value(id) < 0 ||
			json_integer_value(id) >= tokenizer_base_vocabulary(tokenizer) + 3)
			return status_set(status, STATUS_INVALID_ARGUMENT,
							  "holds something other than token ids");
		ids[i] = (int32_t) json_integer_value(id);
	}
	text = tokenizer_decode(tokenizer, ids, (int) count, arena, &length, status);
	if (text == NULL)
		return false;
	*out = json_stringn(text, length);
	return *out != NULL || status_set(status, STATUS_INTERNAL, "gives text that is not UTF-8");
}

static bool
run_lines(const Tokenizer *tokenizer, bool parse_special, LineFunction function, Arena *arena,
		  Status *status)
{
	char	   *line = NULL;
	size_t		size = 0;
	ssize_t		length;
	long		number = 0;
	bool		good = true;

	while (good && (length = getline(&line, &size, stdin)) >= 0)
	{
		json_error_t error;
		json_t	   *in = json_loadb(line, (size_t) length, JSON_DECODE_ANY | JSON_ALLOW_NUL,
									&error);
		json_t	   *out = NULL;

		number++;
		good = in != NULL ? function(tokenizer, parse_special, in, arena, &out, status) :
			status_set(status, STATUS_INVALID_JSON, "is not JSON: %s", error.text);
		if (good)
		{
			json_dumpf(out, stdout, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
			putchar('\n');
		}
		else
			status_prefix(status, "line %ld", number);
		json_decref(in);
		json_decref(out);
		arena_reset(arena);
	}
	free(line);
	return good;
}

/* What tokenize and detokenize share. */
static int
run_tokenizer(int argc, char **argv, const char *help, CliOption *options, LineFunction function)
{
	CliArguments arguments = {.options = options};
	ModelConfig config;
	Arena	   *arena;
	Arena	   *scratch;
	Tokenizer  *tokenizer;
	Status		status;
	int			result = 0;

	if (!cli_parse(argc, argv, &arguments, 1, help, &result))
		return result;
	arena = arena_create();
	scratch = arena_create();
	if (arena == NULL || scratch == NULL)
		return 1;
	tokenizer = cli_open_tokenizer(arguments.positional[0], arena, &config, &status);
	if (tokenizer == NULL || !run_lines(tokenizer, options[0].name != NULL && options[0].count > 0,
										function, scratch, &status))
		result = cli_fail(&status);
	tokenizer_close(tokenizer);
	arena_free(scratch);
	arena_free(arena);
	return result;
}

int
cli_tokenize(int argc, char **argv)
{
	static const char help[] = "Usage: mmgpt-engine tokenize MODEL [--parse-special]\n\n"
							   "Standard input: one JSON string a line. Standard output: one JSON "
							   "array of ids a line, BOS in front.\n\n"
							   "Options:\n"
							   "  --parse-special            spellings of special tokens become "
							   "these tokens, as in the original\n";
	CliOption	options[] = {{.name = "--parse-special"}, {.name = NULL}};

	return run_tokenizer(argc, argv, help, options, tokenize_line);
}

int
cli_detokenize(int argc, char **argv)
{
	static const char help[] = "Usage: mmgpt-engine detokenize MODEL\n\n"
							   "Standard input: one JSON array of ids a line. Standard output: one "
							   "JSON string a line, special tokens dropped.\n";
	CliOption	options[] = {{.name = NULL}};

	return run_tokenizer(argc, argv, help, options, detokenize_line);
}
