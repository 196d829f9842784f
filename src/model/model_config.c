/*
 * model_config.c - config.json into ModelConfig; see model_config.h.
 *
 * Each value is checked where it is read, and what the parts must agree on is
 * checked at the end, so that no later code meets an impossible size.
 */
#include "model_config.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* No real model comes near; keeps products of two sizes inside 31 bits where they are widths. */
#define MAX_SIZE 1000000

typedef struct Reader
{
	json_t	   *root;
	const char *path;
	Arena	   *arena;
	Status	   *status;
	bool		good;
} Reader;

static void
fault(Reader *reader, const char *section, const char *key, const char *what)
{
	if (!reader->good)
		return;
	reader->good = status_set(reader->status, STATUS_INVALID_MODEL, "\"%s%s%s\" in \"%s\" %s",
							  section, section[0] ? "." : "", key, reader->path, what);
}

/* The value of a key in a section ("" is the root); NULL if it is absent. */
static json_t *
find(Reader *reader, const char *section, const char *key)
{
	json_t	   *object = section[0] ? json_object_get(reader->root, section) : reader->root;

	return json_object_get(object, key);
}

/* A size of 1 or more; 0 after a fault. fallback 0: the key must be there. */
static int
read_size(Reader *reader, const char *section, const char *key, int fallback)
{
	json_t	   *value = find(reader, section, key);

	if (value == NULL && fallback > 0)
		return fallback;
	if (!json_is_integer(value) || json_integer_value(value) < 1 ||
		json_integer_value(value) > MAX_SIZE)
	{
		fault(reader, section, key,
			  value == NULL ? "is missing" : "is not a size between 1 and 1000000");
		return fallback;
	}
	return (int) json_integer_value(value);
}

static int
read_id(Reader *reader, const char *key, int fallback)
{
	json_t	   *value = find(reader, "special_ids", key);

	if (value == NULL)
		return fallback;
	if (!json_is_integer(value) || json_integer_value(value) < 0 ||
		json_integer_value(value) > MAX_SIZE)
	{
		fault(reader, "special_ids", key, "is not a token id");
		return fallback;
	}
	return (int) json_integer_value(value);
}

static double
read_number(Reader *reader, const char *section, const char *key, double fallback)
{
	json_t	   *value = find(reader, section, key);

	if (value == NULL)
		return fallback;
	if (!json_is_number(value) || !(json_number_value(value) > 0) ||
		!isfinite(json_number_value(value)))
		fault(reader, section, key, "is not a positive number");
	return json_number_value(value);
}

static bool
read_boolean(Reader *reader, const char *key, bool fallback)
{
	json_t	   *value = find(reader, "", key);

	if (value == NULL)
		return fallback;
	if (!json_is_boolean(value))
		fault(reader, "", key, "is not true or false");
	return json_is_true(value);
}

static const char *
copy_text(Reader *reader, json_t *value)
{
	const char *copy = arena_copy_text(reader->arena, json_string_value(value),
									   json_string_length(value));

	if (copy == NULL && reader->good)
		reader->good = status_out_of_memory(reader->status, json_string_length(value));
	return copy;
}

static const char *
read_text(Reader *reader, const char *section, const char *key, const char *fallback)
{
	json_t	   *value = find(reader, section, key);

	if (value == NULL)
		return fallback;
	if (!json_is_string(value))
	{
		fault(reader, section, key, "is not a text");
		return fallback;
	}
	return copy_text(reader, value);
}

static WordList
read_words(Reader *reader, const char *key, const char *const *fallback, int fallback_count)
{
	WordList	list = {fallback, fallback_count};
	json_t	   *value = find(reader, "prompts", key);
	const char **words;

	if (value == NULL)
		return list;
	if (!json_is_array(value) || json_array_size(value) == 0 || json_array_size(value) > 100)
	{
		fault(reader, "prompts", key, "is not a list of 1 to 100 words");
		return list;
	}
	words = arena_take_array(reader->arena, json_array_size(value), sizeof(char *));
	for (size_t i = 0; words != NULL && i < json_array_size(value); i++)
	{
		json_t	   *word = json_array_get(value, i);

		if (!json_is_string(word) || json_string_length(word) == 0)
		{
			fault(reader, "prompts", key, "holds something other than words");
			return list;
		}
		words[i] = copy_text(reader, word);
	}
	if (words == NULL)
		reader->good = reader->good && status_out_of_memory(reader->status, json_array_size(value) *
																				sizeof(char *));
	list.words = words;
	list.count = (int) json_array_size(value);
	return list;
}

static void
read_vision(Reader *reader, VisionConfig *vision)
{
	static const double clip_mean[3] = {0.48145466, 0.4578275, 0.40821073};
	static const double clip_deviation[3] = {0.26862954, 0.26130258, 0.27577711};
	json_t	   *mean = find(reader, "", "image_mean");
	json_t	   *deviation = find(reader, "", "image_std");

	vision->image_size = read_size(reader, "vision", "image_size", 0);
	vision->patch_size = read_size(reader, "vision", "patch_size", 0);
	vision->width = read_size(reader, "vision", "width", 0);
	vision->layers = read_size(reader, "vision", "layers", 0);
	vision->heads = read_size(reader, "vision", "heads", 0);
	vision->mlp = (int) ((double) vision->width * read_number(reader, "vision", "mlp_ratio", 4.0));
	vision->output_dim = read_size(reader, "vision", "output_dim", vision->width);
	vision->epsilon = (float) read_number(reader, "vision", "layer_norm_eps", 1e-5);
	for (int i = 0; i < 3; i++)
	{
		vision->mean[i] = (float) (mean ? json_number_value(json_array_get(mean, (size_t) i))
										: clip_mean[i]);
		vision->deviation[i] = (float) (deviation ? json_number_value(
														json_array_get(deviation, (size_t) i))
												  : clip_deviation[i]);
		if (!(vision->deviation[i] > 0))
			fault(reader, "", "image_std", "does not hold three positive numbers");
		if (mean != NULL &&
			(json_array_size(mean) != 3 || !json_is_number(json_array_get(mean, (size_t) i))))
			fault(reader, "", "image_mean", "does not hold three numbers");
	}
}

static void
read_resampler(Reader *reader, ResamplerConfig *resampler, int width)
{
	resampler->depth = read_size(reader, "perceiver", "depth", 0);
	resampler->heads = read_size(reader, "perceiver", "heads", 0);
	resampler->head_size = read_size(reader, "perceiver", "dim_head", 0);
	resampler->latents = read_size(reader, "perceiver", "num_latents", 0);
	resampler->mlp = width * read_size(reader, "perceiver", "ff_mult", 4);
	resampler->epsilon = (float) read_number(reader, "perceiver", "layer_norm_eps", 1e-5);
}

static void
read_decoder(Reader *reader, DecoderConfig *decoder, CrossAttentionConfig *cross)
{
	decoder->hidden = read_size(reader, "llama", "hidden_size", 0);
	decoder->mlp = read_size(reader, "llama", "intermediate_size", 0);
	decoder->layers = read_size(reader, "llama", "num_hidden_layers", 0);
	decoder->heads = read_size(reader, "llama", "num_attention_heads", 0);
	decoder->kv_heads = read_size(reader, "llama", "num_key_value_heads",
								  decoder->heads > 0 ? decoder->heads : 1);
	decoder->base_vocabulary = read_size(reader, "llama", "base_vocab_size", 0);
	decoder->vocabulary = read_size(reader, "llama", "vocab_size", decoder->base_vocabulary + 3);
	decoder->context = read_size(reader, "", "max_position_embeddings", 2048);
	decoder->epsilon = (float) read_number(reader, "llama", "rms_norm_eps", 1e-6);
	decoder->rope_theta = (float) read_number(reader, "llama", "rope_theta", 10000.0);
	cross->every = read_size(reader, "cross_attention", "every_n_layers", 0);
	cross->heads = read_size(reader, "cross_attention", "heads", 0);
	cross->head_size = read_size(reader, "cross_attention", "dim_head", 0);
	cross->mlp = decoder->hidden * read_size(reader, "cross_attention", "ff_mult", 4);
	cross->epsilon = (float) read_number(reader, "cross_attention", "layer_norm_eps", 1e-5);
}

static void
read_prompts(Reader *reader, ModelConfig *config)
{
	static const char *const yes[] = {"Yes", "yes"};
	static const char *const no[] = {"No", "no"};
	PromptConfig *prompts = &config->prompts;

	prompts->caption_brief = read_text(reader, "prompts", "caption_brief",
									   "Write a caption for this image.");
	prompts->caption_detailed = read_text(reader, "prompts", "caption_detailed",
										  "Describe this image in detail.");
	prompts->count = read_text(reader, "prompts", "count", "How many {} are in the image?");
	prompts->filter = read_text(reader, "prompts", "filter", "{} Answer yes or no.");
	prompts->classify = read_text(reader, "prompts", "classify", "What is shown in this image?");
	prompts->classify_answer = read_text(reader, "prompts", "classify_answer", "{}");
	if (prompts->classify_answer != NULL && strstr(prompts->classify_answer, "{}") == NULL)
		fault(reader, "prompts", "classify_answer", "has no {} where the label goes");
	prompts->classify_multi = read_text(reader, "prompts", "classify_multi",
										"Does the image show {}?");
	prompts->yes_words = read_words(reader, "yes_words", yes, 2);
	prompts->no_words = read_words(reader, "no_words", no, 2);
	config->introduction = read_text(reader, "", "template",
									 "Below is an instruction that describes a task. "
									 "Write a response that appropriately completes the request.");
	config->separator = read_text(reader, "", "separator", "\n\n### ");
	config->user_prefix = read_text(reader, "", "user_prefix", "Instruction");
	config->ai_prefix = read_text(reader, "", "ai_prefix", "Response");
}

static void
read_special(Reader *reader, ModelConfig *config)
{
	int			base = config->decoder.base_vocabulary;

	config->unk = read_id(reader, "unk", 0);
	config->bos = read_id(reader, "bos", 1);
	config->eos = read_id(reader, "eos", 2);
	config->endofchunk = read_id(reader, "endofchunk", base);
	config->image = read_id(reader, "image", base + 1);
	config->pad = read_id(reader, "pad", base + 2);
	config->attend_previous = read_boolean(reader, "attend_previous_default", false);
	config->history_eos = read_boolean(reader, "history_eos", false);
}

/* What several values have to agree on. */
static void
check_agreement(Reader *reader, ModelConfig *config)
{
	DecoderConfig *decoder = &config->decoder;
	int			special[6] = {config->unk, config->bos, config->eos,
							  config->endofchunk, config->image, config->pad};

	if (!reader->good)
		return;
	if (config->vision.image_size % config->vision.patch_size != 0)
		fault(reader, "vision", "image_size", "is not a multiple of patch_size");
	if (config->vision.width % config->vision.heads != 0)
		fault(reader, "vision", "width", "is not a multiple of heads");
	if (decoder->hidden % decoder->heads != 0 || decoder->hidden / decoder->heads % 2 != 0)
		fault(reader, "llama", "hidden_size", "is not an even multiple of num_attention_heads");
	if (decoder->heads % decoder->kv_heads != 0)
		fault(reader, "llama", "num_key_value_heads", "does not divide num_attention_heads");
	if (decoder->vocabulary < decoder->base_vocabulary)
		fault(reader, "llama", "vocab_size", "is smaller than base_vocab_size");
	for (int i = 0; i < 6; i++)
		if (special[i] >= decoder->vocabulary)
			fault(reader, "", "special_ids", "holds an id outside of the vocabulary");
	decoder->head_size = decoder->hidden / decoder->heads;
}

/* Everything from a document, which is NULL where it could not be read. */
static bool
read_document(json_t *root, const json_error_t *error, const char *path, Arena *arena,
			  ModelConfig *config, Status *status)
{
	Reader		reader = {root, path, arena, status, true};

	if (root == NULL)
	{
		if (error->line < 0)
			return status_set(status, STATUS_INVALID_MODEL, "could not read file \"%s\": %s", path,
							  strerror(errno));
		status_set(status, STATUS_INVALID_MODEL, "file \"%s\" is not valid JSON", path);
		return status_detail(status, "%s at line %d, column %d.", error->text, error->line,
							 error->column);
	}
	read_vision(&reader, &config->vision);
	read_resampler(&reader, &config->resampler, config->vision.width);
	read_decoder(&reader, &config->decoder, &config->cross_attention);
	read_special(&reader, config);
	read_prompts(&reader, config);
	check_agreement(&reader, config);
	json_decref(root);
	return reader.good;
}

bool
model_config_read_file(const char *path, Arena *arena, ModelConfig *config, Status *status)
{
	json_error_t error;
	json_t	   *root;

	errno = 0;
	root = json_load_file(path, 0, &error);
	return read_document(root, &error, path, arena, config, status);
}

bool
model_config_read_text(const char *text, const char *name, Arena *arena, ModelConfig *config,
					   Status *status)
{
	json_error_t error;
	json_t	   *root = json_loads(text, 0, &error);

	return read_document(root, &error, name, arena, config, status);
}

bool
model_config_read(const char *directory, Arena *arena, ModelConfig *config, Status *status)
{
	size_t		length = strlen(directory) + sizeof("/config.json");
	char	   *path = arena_take(arena, length);

	if (path == NULL)
		return status_out_of_memory(status, length);
	snprintf(path, length, "%s/config.json", directory);
	return model_config_read_file(path, arena, config, status);
}
