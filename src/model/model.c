/*
 * model.c - opening and closing a model directory; see model.h.
 *
 * Opening goes: config.json, the tensors of the files checked and packed, then all
 * memory that answers will need: pages for keys and values, and one workspace as large
 * as the largest step measures.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_internal.h"

#define DEFAULT_STEP_TOKENS 512
#define DEFAULT_STEP_LOGITS 64
#define DEFAULT_IMAGES 4
#define DEFAULT_CONTEXTS 32
#define DEFAULT_PICTURES 64
#define MAX_DEFAULT_CACHE ((size_t) 1 << 30)
#define MAX_DEFAULT_MEDIA ((size_t) 512 << 20)
/* Of what a memory limit leaves, what a training may take. */
#define TRAINING_PART 4

static void
apply_options(Model *model, const ModelOptions *options)
{
	model->options = *options;
	if (model->options.max_step_tokens <= 0)
		model->options.max_step_tokens = DEFAULT_STEP_TOKENS;
	if (model->options.max_step_logits <= 0)
		model->options.max_step_logits = DEFAULT_STEP_LOGITS;
	if (model->options.max_images <= 0)
		model->options.max_images = DEFAULT_IMAGES;
	if (options->attend_previous >= 0)
		model->config.attend_previous = options->attend_previous != 0;
}

/* Add a whole file to the digest; a missing one adds nothing, whoever needs it complains. */
static void
digest_file(DigestState *digest, const char *directory, const char *name)
{
	char		path[4096];
	char		buffer[8192];
	size_t		length;
	FILE	   *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "re");
	if (file == NULL)
		return;
	while ((length = fread(buffer, 1, sizeof(buffer), file)) > 0)
		digest_add(digest, buffer, length);
	fclose(file);
}

static void
make_digest(Model *model, const char *directory, const TensorStore *store)
{
	DigestState state;
	uint8_t		digest[DIGEST_SIZE];

	digest_begin(&state);
	digest_file(&state, directory, "config.json");
	digest_file(&state, directory, "tokenizer.model");
	tensor_store_digest(store, &state);
	digest_end(&state, digest);
	digest_to_hex(digest, model->digest);
}

static LoadProgress
load_progress(const Model *model)
{
	return (LoadProgress) {model->options.progress, model->options.argument,
						   model->options.cancel};
}

static bool
load_weights(Model *model, const char *directory, Status *status)
{
	LoadProgress progress = load_progress(model);
	Arena	   *arena = arena_create();		/* of the files' names; not needed afterwards */
	TensorStore *store;
	bool		good = false;

	if (arena == NULL)
		return status_out_of_memory(status, 0);
	store = tensor_store_open(directory, "model.safetensors", arena, status);
	if (store != NULL)
	{
		make_digest(model, directory, store);
		model->format = weight_format_choose(model->options.weights, store);
		good = model_weights_load(&model->config, store, model->backend, model->format, &progress,
								  model->arena, &model->weights, status);
		tensor_store_close(store);
	}
	arena_free(arena);
	return good;
}

static bool
draw_weights(Model *model, Status *status)
{
	LoadProgress progress = load_progress(model);

	model->format = weight_format_type(model->options.weights);
	return model_weights_draw(&model->config, model->backend, model->format, &progress,
							  model->arena, &model->weights, status);
}

/*
 * How many pages a pool gets: what was asked for, else wanted pages within the largest default; at
 * least one unit.
 */
static int
pool_pages(size_t bytes, size_t page, int wanted, int unit, size_t largest)
{
	size_t		pages = bytes > 0 ? bytes / page : (size_t) wanted;

	if (bytes == 0 && pages * page > largest)
		pages = largest / page;
	if (pages < (size_t) unit)
		pages = (size_t) unit;
	return pages > 1000000 ? 1000000 : (int) pages;
}

/* Bytes of the largest step. */
static size_t
workspace_size(const Model *model)
{
	Workspace	measure = {0};
	size_t		media = media_workspace_size(&model->config, model->options.max_images);

	decoder_take_tensors(&measure, model, model->options.max_step_tokens,
						 model->options.max_step_tokens, model->options.max_step_logits);
	return measure.peak > media ? measure.peak : media;
}

/*
 * Bytes for the keys and values of sequences within the memory limit; 0: no limit was set. False
 * if the rest alone exceeds it, or leaves less than one context.
 */
static bool
cache_room(Model *model, size_t one_context, size_t *bytes, Status *status)
{
	size_t		limit = model->options.memory_limit;
	size_t		taken = model->weights.bytes + model->media.bytes + model->vision_scratch.bytes +
		model->resampler_scratch.bytes + workspace_size(model) + model->options.adapter_bytes;

	*bytes = 0;
	if (limit == 0)
		return true;
	if (limit < taken + one_context)
	{
		status_set(status, STATUS_OUT_OF_MEMORY,
				   "the model does not fit the memory limit of %zu MB", limit >> 20);
		return status_detail(status,
							 "It needs %zu MB, and %zu MB for the keys and values of one context.",
							 (taken >> 20) + 1, (one_context >> 20) + 1);
	}
	*bytes = limit - taken;
	if (model->options.training)
		model->training_bytes = (*bytes - one_context) / TRAINING_PART;
	*bytes -= model->training_bytes;
	return true;
}

static bool
create_pools(Model *model, Status *status)
{
	const BackendOps *ops = model->backend->ops;
	const ModelConfig *config = &model->config;
	const DecoderConfig *decoder = &config->decoder;
	const CrossAttentionConfig *cross = &config->cross_attention;
	const ResamplerConfig *resampler = &config->resampler;
	DataType	type = model_cache_type(model);
	int			context = pages_for_keys(decoder->context);
	int			asked = pages_for_keys(model->options.cache_tokens);
	int			picture = pages_for_keys(resampler->latents);
	int			images = model->options.max_images;
	int			blocks = model->weights.gated_blocks > 0 ? model->weights.gated_blocks : 1;
	int			tokens = 1 + vision_patches(&config->vision);
	int			cache_pages;
	size_t		media_page = ops->kv_page_size(type, blocks, cross->heads, cross->head_size);
	int			media_pages = pool_pages(model->options.media_bytes, media_page,
										 DEFAULT_PICTURES * picture, images * picture,
										 MAX_DEFAULT_MEDIA);
	size_t		page = ops->kv_page_size(type, decoder->layers, decoder->kv_heads,
										 decoder->head_size);
	size_t		bytes;

	if (!pages_begin(&model->media_pages, media_pages, model->arena, status) ||
		!ops->kv_create(model->backend, type, blocks, media_pages, cross->heads, cross->head_size,
						&model->media, status) ||
		!ops->kv_create(model->backend, type, 1, images * group_pages(tokens), config->vision.heads,
						config->vision.width / config->vision.heads, &model->vision_scratch,
						status) ||
		!ops->kv_create(model->backend, type, 1,
						images * group_pages(tokens - 1 + resampler->latents), resampler->heads,
						resampler->head_size, &model->resampler_scratch, status) ||
		!cache_room(model, (size_t) context * page, &bytes, status))
		return false;
	cache_pages = pool_pages(bytes, page, DEFAULT_CONTEXTS * context,
							 bytes == 0 && asked > context ? asked : context, MAX_DEFAULT_CACHE);
	return pages_begin(&model->cache_pages, cache_pages, model->arena, status) &&
		   ops->kv_create(model->backend, type, decoder->layers, cache_pages, decoder->kv_heads,
						  decoder->head_size, &model->cache, status);
}

/* The workspace, and host memory for the integers of a step. */
static bool
create_workspace(Model *model, Status *status)
{
	int			images = model->options.max_images;
	int			rows = model->options.max_step_tokens;
	size_t		image_rows = (size_t) images * (size_t) (1 + vision_patches(&model->config.vision) +
														 model->config.resampler.latents);
	size_t		pages = (size_t) (step_list_pages(model) > step_media_pages(model) ?
								  step_list_pages(model) : step_media_pages(model));
	size_t		staged = (image_rows > (size_t) rows ? image_rows : (size_t) rows) *
		(ATTENTION_SPAN_FIELDS + pages) + (size_t) model->options.max_step_logits;
	size_t		runs = (size_t) (rows > images ? rows : images);

	model->workspace.size = workspace_size(model);
	model->staging = arena_take_array(model->arena, staged, sizeof(int32_t));
	model->runs = arena_take_array(model->arena, runs, sizeof(AdapterRun));
	if (model->staging == NULL || model->runs == NULL)
		return status_out_of_memory(status, staged * sizeof(int32_t));
	return model->backend->ops->allocate(model->backend, model->workspace.size,
										 (void **) &model->workspace.base, status);
}

/* A model without anything yet; NULL when memory is out. */
static Model *
model_create(Backend *backend, Status *status)
{
	Arena	   *arena = arena_create();
	Model	   *model = arena == NULL ? NULL : arena_take(arena, sizeof(Model));

	if (model == NULL)
	{
		arena_free(arena);
		status_out_of_memory(status, sizeof(Model));
		return NULL;
	}
	model->arena = arena;
	model->backend = backend;
	return model;
}

Model *
model_open(const char *directory, Backend *backend, const ModelOptions *options, Status *status)
{
	Model	   *model = model_create(backend, status);

	if (model == NULL)
		return NULL;
	if (model_config_read(directory, model->arena, &model->config, status))
	{
		apply_options(model, options);
		if (load_weights(model, directory, status) && create_pools(model, status) &&
			create_workspace(model, status))
			return model;
	}
	model_close(model);
	return NULL;
}

Model *
model_open_random(const ModelConfig *config, Backend *backend, const ModelOptions *options,
				  Status *status)
{
	Model	   *model = model_create(backend, status);

	if (model == NULL)
		return NULL;
	model->config = *config;
	apply_options(model, options);
	if (draw_weights(model, status) && create_pools(model, status) &&
		create_workspace(model, status))
		return model;
	model_close(model);
	return NULL;
}

void
model_close(Model *model)
{
	const BackendOps *ops;

	if (model == NULL)
		return;
	ops = model->backend->ops;
	model_weights_free(&model->weights, model->backend);
	ops->kv_destroy(model->backend, &model->cache);
	ops->kv_destroy(model->backend, &model->media);
	ops->kv_destroy(model->backend, &model->vision_scratch);
	ops->kv_destroy(model->backend, &model->resampler_scratch);
	ops->release(model->backend, model->workspace.base);
	free(model->tap_values);
	arena_free(model->arena);
}

const ModelConfig *
model_config(const Model *model)
{
	return &model->config;
}

DataType
model_cache_type(const Model *model)
{
	return model->format == TYPE_F32 ? TYPE_F32 : TYPE_BF16;
}

DataType
model_format(const Model *model)
{
	return model->format;
}

const char *
model_digest(const Model *model)
{
	return model->digest;
}

/* Parameters of a feed-forward with its norm. */
static uint64_t
feed_forward_parameters(uint64_t width, uint64_t mlp)
{
	return 2 * width * mlp + 2 * width;
}

static void
count_parameters(const ModelConfig *config, int blocks, ModelDescription *description)
{
	uint64_t	width = (uint64_t) config->vision.width;
	uint64_t	patch = (uint64_t) config->vision.patch_size;
	uint64_t	hidden = (uint64_t) config->decoder.hidden;
	uint64_t	inner = (uint64_t) config->resampler.heads * (uint64_t) config->resampler.head_size;
	uint64_t	cross = (uint64_t) config->cross_attention.heads *
						(uint64_t) config->cross_attention.head_size;
	uint64_t	q = (uint64_t) config->decoder.heads * (uint64_t) config->decoder.head_size;
	uint64_t	kv = (uint64_t) config->decoder.kv_heads * (uint64_t) config->decoder.head_size;

	description->parameters_vision = width * 3 * patch * patch +
									 width * (uint64_t) (2 + vision_patches(&config->vision)) +
									 4 * width + width * (uint64_t) config->vision.output_dim +
									 (uint64_t) config->vision.layers *
										 (4 * width * width + 4 * width +
										  2 * width * (uint64_t) config->vision.mlp +
										  (uint64_t) config->vision.mlp + width + 4 * width);
	description->parameters_resampler = (uint64_t) config->resampler.latents * width + 2 * width +
										(uint64_t) config->resampler.depth *
											(4 * width + 4 * inner * width +
											 feed_forward_parameters(
												 width, (uint64_t) config->resampler.mlp));
	description->parameters_cross_attention = (uint64_t) blocks *
		(2 * hidden + 2 * cross * hidden + 2 * cross * width + 2 +
		 feed_forward_parameters(hidden, (uint64_t) config->cross_attention.mlp));
	description->parameters_decoder = 2 * (uint64_t) config->decoder.vocabulary * hidden + hidden +
		(uint64_t) config->decoder.layers * (2 * hidden + 2 * q * hidden + 2 * kv * hidden +
											 3 * hidden * (uint64_t) config->decoder.mlp);
}

void
model_describe(const Model *model, ModelDescription *description)
{
	memset(description, 0, sizeof(*description));
	count_parameters(&model->config, model->weights.gated_blocks, description);
	description->weight_bytes = model->weights.bytes;
	description->cache_bytes = model->cache.bytes;
	description->media_bytes = model->media.bytes;
	description->workspace_bytes = model->workspace.size;
	description->training_bytes = model->training_bytes;
	description->cache_pages = model->cache_pages.total;
	description->media_pictures = model->media_pages.total /
								  pages_for_keys(model->config.resampler.latents);
}

void
model_step_limits(const Model *model, int *tokens, int *logits, int *images)
{
	*tokens = model->options.max_step_tokens;
	*logits = model->options.max_step_logits;
	*images = model->options.max_images;
}

void
model_set_tap(Model *model, TapFunction function, void *argument)
{
	model->tap = function;
	model->tap_argument = argument;
}

void
model_tap(Model *model, const char *name, int number, Tensor tensor)
{
	size_t		row = (size_t) tensor.columns * sizeof(float);
	size_t		size = (size_t) tensor.rows * row;
	char		text[32];

	if (model->tap == NULL)
		return;
	if (size > model->tap_size)
	{
		float	   *grown = realloc(model->tap_values, size);

		if (grown == NULL)
			return;
		model->tap_values = grown;
		model->tap_size = size;
	}
	for (int r = 0; r < tensor.rows; r++)
		model->backend->ops->download(model->backend,
									  model->tap_values + (size_t) r * (size_t) tensor.columns,
									  tensor_row_range(tensor, r, 1).data, row);
	if (number >= 0)
		snprintf(text, sizeof(text), "%.16s%02d", name, number);
	else
		snprintf(text, sizeof(text), "%.31s", name);
	model->tap(model->tap_argument, text, tensor.rows, tensor.columns, model->tap_values);
}
