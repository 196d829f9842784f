/*
 * model_weights.c - names of tensors to places in ModelWeights; see model_weights.h.
 *
 * The names are the original's (MultiModal-GPT's checkpoint filter), without the
 * wrappers that safetensors.c takes off. The first failure stops the loading.
 */
#include "model_weights.h"

#include "quantize.h"
#include "random_tensors.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_NAME 160

/* One allocation on the device, or one packed weight. */
typedef struct WeightOwner
{
	Weight	   *weight;			/* NULL: a plain buffer */
	void	   *buffer;
	struct WeightOwner *next;
} WeightOwner;

typedef struct Loader
{
	TensorStore *store;			/* NULL: noise */
	RandomTensors *noise;
	Backend    *backend;
	DataType	format;
	const LoadProgress *progress;
	Arena	   *arena;
	ModelWeights *weights;
	Status	   *status;
	size_t		total;			/* bytes of the files' tensors */
	size_t		done;
	bool		good;
} Loader;

static void
remember(Loader *loader, Weight *weight, void *buffer)
{
	WeightOwner *owner = arena_take(loader->arena, sizeof(WeightOwner));

	if (owner == NULL)
	{
		if (weight != NULL)
			loader->backend->ops->weight_destroy(loader->backend, weight);
		else
			loader->backend->ops->release(loader->backend, buffer);
		loader->good = status_out_of_memory(loader->status, sizeof(WeightOwner));
		return;
	}
	owner->weight = weight;
	owner->buffer = buffer;
	owner->next = loader->weights->owned;
	loader->weights->owned = owner;
}

static void
report_progress(Loader *loader, size_t bytes)
{
	const LoadProgress *progress = loader->progress;

	loader->done += bytes;
	if (progress->report != NULL && loader->total > 0)
		progress->report(progress->argument, (double) loader->done / (double) loader->total);
	if (progress->cancel != NULL && *progress->cancel)
		loader->good = status_set(loader->status, STATUS_CANCELLED, "loading was cancelled");
}

/* A tensor has been read: its pages of the file are not needed any more. */
static void
finish_tensor(Loader *loader, const StoredTensor *stored)
{
	tensor_release_pages(stored);
	report_progress(loader, stored->bytes);
}

/* "[96, 64]" */
static void
describe_shape(int dimensions, const int *shape, char *text, size_t size)
{
	size_t		used = (size_t) snprintf(text, size, "[");

	for (int i = 0; i < dimensions && used < size; i++)
		used += (size_t) snprintf(text + used, size - used, "%s%d", i ? ", " : "", shape[i]);
	if (used < size)
		snprintf(text + used, size - used, "]");
}

/* A tensor has to be there. */
static StoredTensor *
find_named(Loader *loader, const char *name)
{
	StoredTensor *tensor = tensor_store_find(loader->store, name);

	if (tensor != NULL)
		return tensor;
	loader->good = status_set(loader->status, STATUS_INVALID_MODEL, "tensor \"%s\" is missing",
							  name);
	status_detail(loader->status, "No *.safetensors file of the model directory holds it.");
	return NULL;
}

static bool
check_shape(Loader *loader, const StoredTensor *tensor, int dimensions, const int *shape)
{
	char		expected[64];
	char		found[64];

	if (tensor->dimensions == dimensions &&
		memcmp(tensor->shape, shape, (size_t) dimensions * sizeof(int)) == 0)
		return true;
	describe_shape(dimensions, shape, expected, sizeof(expected));
	describe_shape(tensor->dimensions, tensor->shape, found, sizeof(found));
	loader->good = status_set(loader->status, STATUS_INVALID_MODEL,
							  "tensor \"%s\" has shape %s, not %s", tensor->stored_name, found,
							  expected);
	return status_detail(loader->status, "The file is \"%s\"; config.json asks for %s.",
						 tensor->file, expected);
}

/* The tensor of this name and shape; NULL and a failure otherwise. */
static StoredTensor *
find_tensor(Loader *loader, const char *name, int dimensions, const int *shape)
{
	StoredTensor *tensor;

	if (!loader->good)
		return NULL;
	if (loader->noise != NULL)
	{
		tensor = random_tensors_draw(loader->noise, name, dimensions, shape, loader->status);
		loader->good = tensor != NULL;
		return tensor;
	}
	tensor = find_named(loader, name);
	if (tensor == NULL)
		return NULL;
	if (!stored_tensor_is_floating(tensor))
	{
		loader->good = status_set(loader->status, STATUS_INVALID_MODEL,
								  "tensor \"%s\" is quantised, which only matrices of linear layers "
								  "can be", tensor->stored_name);
		status_detail(loader->status, "The file is \"%s\".", tensor->file);
		return NULL;
	}
	return check_shape(loader, tensor, dimensions, shape) ? tensor : NULL;
}

/* Are all of these bf16 finite? */
static bool
scales_are_finite(const StoredTensor *scales)
{
	const uint8_t *bytes = scales->data;	/* a file need not align its tensors */

	for (size_t i = 0; i < scales->bytes; i += 2)
		if ((bytes[i + 1] & 0x7F) == 0x7F && (bytes[i] & 0x80) != 0)
			return false;
	return true;
}

/* The scales that belong to a quantised matrix [outputs, inputs]. */
static StoredTensor *
find_scales(Loader *loader, const StoredTensor *matrix, int outputs, int inputs)
{
	int			shape[2] = {outputs, quantized_blocks(inputs)};
	char		name[MAX_NAME + 8];
	StoredTensor *scales;

	snprintf(name, sizeof(name), "%s_scale", matrix->name);
	scales = find_named(loader, name);
	if (scales == NULL || !check_shape(loader, scales, 2, shape))
		return NULL;
	if (scales->type == TYPE_BF16 && scales_are_finite(scales))
		return scales;
	loader->good = status_set(loader->status, STATUS_INVALID_MODEL, "tensor \"%s\" %s",
							  scales->stored_name, scales->type == TYPE_BF16
							  ? "holds a number that is not finite" : "is not of type BF16");
	status_detail(loader->status, "The file is \"%s\".", scales->file);
	return NULL;
}

/* A matrix as the files have it. */
typedef struct StoredMatrix
{
	StoredTensor *values;
	StoredTensor *scales;		/* NULL: not quantised */
} StoredMatrix;

/* The matrix of this name: numbers, or codes with scales; see MODEL.md. */
static bool
find_matrix(Loader *loader, const char *name, int outputs, int inputs, StoredMatrix *matrix,
			WeightPart *part)
{
	int			shape[2] = {outputs, inputs};
	StoredTensor *tensor = loader->good && loader->store != NULL
						   ? tensor_store_find(loader->store, name) : NULL;
	DataType	type = tensor != NULL && tensor->type == TYPE_U8 ? TYPE_Q4 : TYPE_Q8;

	matrix->scales = NULL;
	if (tensor == NULL || stored_tensor_is_floating(tensor))
		tensor = find_tensor(loader, name, 2, shape);
	else
	{
		shape[1] = quantized_row_bytes(type, inputs);
		if (check_shape(loader, tensor, 2, shape))
			matrix->scales = find_scales(loader, tensor, outputs, inputs);
	}
	if (!loader->good)
		return false;
	matrix->values = tensor;
	*part = (WeightPart) {.data = tensor->data,
						  .type = matrix->scales == NULL ? tensor->type : type,
						  .outputs = outputs,
						  .scales = matrix->scales == NULL ? NULL : matrix->scales->data,
						  .name = tensor->stored_name};
	return true;
}

static void *
take_buffer(Loader *loader, size_t bytes)
{
	void	   *buffer = NULL;

	if (!loader->good)
		return NULL;
	loader->good = loader->backend->ops->allocate(loader->backend, bytes, &buffer, loader->status);
	if (!loader->good)
		return NULL;
	loader->weights->bytes += bytes;
	remember(loader, NULL, buffer);
	return loader->good ? buffer : NULL;
}

/* A stored tensor as f32 [rows, columns] on the device. */
static Tensor
load_values(Loader *loader, const StoredTensor *stored, int rows, int columns)
{
	Tensor		tensor = tensor_make(NULL, TYPE_F32, rows, columns);
	size_t		count = (size_t) rows * (size_t) columns;
	float	   *values;

	if (stored == NULL)
		return tensor;
	tensor.data = take_buffer(loader, count * sizeof(float));
	values = arena_take_array(loader->arena, count, sizeof(float));
	if (values == NULL)
		loader->good = loader->good && status_out_of_memory(loader->status, count * sizeof(float));
	if (!loader->good)
		return tensor;
	convert_to_f32(stored->data, stored->type, count, values);
	loader->backend->ops->upload(loader->backend, tensor.data, values, count * sizeof(float));
	finish_tensor(loader, stored);
	return tensor;
}

/* The name of a tensor from a format; "" after a failure. */
static const char *
tensor_name(char *buffer, const char *format, va_list arguments)
{
	vsnprintf(buffer, MAX_NAME, format, arguments);
	return buffer;
}

/* A vector f32 [1, n]. */
static Tensor __attribute__((format(printf, 3, 4)))
load_vector(Loader *loader, int n, const char *format, ...)
{
	char		name[MAX_NAME];
	va_list		arguments;

	va_start(arguments, format);
	tensor_name(name, format, arguments);
	va_end(arguments);
	return load_values(loader, find_tensor(loader, name, 1, &n), 1, n);
}

static Norm __attribute__((format(printf, 3, 4)))
load_norm(Loader *loader, int n, const char *format, ...)
{
	char		prefix[MAX_NAME - 8];
	Norm		norm;
	va_list		arguments;

	va_start(arguments, format);
	vsnprintf(prefix, sizeof(prefix), format, arguments);
	va_end(arguments);
	norm.weight = load_vector(loader, n, "%s.weight", prefix);
	norm.bias = load_vector(loader, n, "%s.bias", prefix);
	return norm;
}

/* Pack parts into a weight of the format that a matrix of this name has. */
static bool
pack_weight(Loader *loader, Weight *weight, const WeightPart *parts, int count, int inputs,
			const char *name)
{
	loader->good = loader->backend->ops->weight_create(loader->backend, parts, count, inputs,
													   weight_format_of_matrix(loader->format, name),
													   weight, loader->status);
	if (!loader->good)
		return false;
	loader->weights->bytes += weight->bytes;
	remember(loader, weight, NULL);
	return loader->good;
}

/* Stack the named tensors [outputs[i], inputs] into one weight. */
static void
load_stacked(Loader *loader, Weight *weight, int inputs, int count, const int *outputs,
			 char names[][MAX_NAME])
{
	WeightPart	parts[3];
	StoredMatrix matrices[3];

	for (int i = 0; i < count; i++)
		if (!find_matrix(loader, names[i], outputs[i], inputs, &matrices[i], &parts[i]))
			return;
	if (!pack_weight(loader, weight, parts, count, inputs, names[0]))
		return;
	for (int i = 0; i < count; i++)
	{
		finish_tensor(loader, matrices[i].values);
		if (matrices[i].scales != NULL)
			finish_tensor(loader, matrices[i].scales);
	}
}

/* One weight matrix [outputs, inputs]. */
static void __attribute__((format(printf, 5, 6)))
load_weight(Loader *loader, Weight *weight, int outputs, int inputs, const char *format, ...)
{
	char		names[1][MAX_NAME];
	va_list		arguments;

	va_start(arguments, format);
	tensor_name(names[0], format, arguments);
	va_end(arguments);
	load_stacked(loader, weight, inputs, 1, &outputs, names);
}

static void
load_feed_forward(Loader *loader, FeedForward *ff, int width, int mlp, const char *prefix)
{
	ff->norm = load_norm(loader, width, "%s.0", prefix);
	load_weight(loader, &ff->up, mlp, width, "%s.1.weight", prefix);
	load_weight(loader, &ff->down, width, mlp, "%s.3.weight", prefix);
}

/* ---- CLIP ViT ---- */

#define VISUAL "vision_encoder.visual."

static void
load_vision_block(Loader *loader, VisionBlock *block, const VisionConfig *config, int i)
{
	int			width = config->width;
	char		prefix[MAX_NAME / 2];

	snprintf(prefix, sizeof(prefix), VISUAL "transformer.resblocks.%d", i);
	block->ln_1 = load_norm(loader, width, "%s.ln_1", prefix);
	load_weight(loader, &block->qkv, 3 * width, width, "%s.attn.in_proj_weight", prefix);
	block->qkv_bias = load_vector(loader, 3 * width, "%s.attn.in_proj_bias", prefix);
	load_weight(loader, &block->out, width, width, "%s.attn.out_proj.weight", prefix);
	block->out_bias = load_vector(loader, width, "%s.attn.out_proj.bias", prefix);
	block->ln_2 = load_norm(loader, width, "%s.ln_2", prefix);
	load_weight(loader, &block->c_fc, config->mlp, width, "%s.mlp.c_fc.weight", prefix);
	block->c_fc_bias = load_vector(loader, config->mlp, "%s.mlp.c_fc.bias", prefix);
	load_weight(loader, &block->c_proj, width, config->mlp, "%s.mlp.c_proj.weight", prefix);
	block->c_proj_bias = load_vector(loader, width, "%s.mlp.c_proj.bias", prefix);
}

static void *
take_array(Loader *loader, int count, size_t size)
{
	void	   *array = arena_take_array(loader->arena, (size_t) count, size);

	if (array == NULL && loader->good)
		loader->good = status_out_of_memory(loader->status, (size_t) count * size);
	return array;
}

/* conv1 [W, 3, P, P] is a matrix [W, 3 P P] for patches cut in that order. */
static void
load_patch_embedding(Loader *loader, Weight *weight, const VisionConfig *config)
{
	int			shape[4] = {config->width, 3, config->patch_size, config->patch_size};
	StoredTensor *stored = find_tensor(loader, VISUAL "conv1.weight", 4, shape);
	WeightPart	part;

	if (stored == NULL)
		return;
	part = (WeightPart) {.data = stored->data, .type = stored->type, .outputs = config->width,
		.name = stored->stored_name};
	if (!pack_weight(loader, weight, &part, 1, 3 * config->patch_size * config->patch_size,
					 stored->name))
		return;
	finish_tensor(loader, stored);
}

static void
load_vision(Loader *loader, const VisionConfig *config, VisionWeights *vision)
{
	int			across = config->image_size / config->patch_size;
	int			shape[2] = {1 + across * across, config->width};

	load_patch_embedding(loader, &vision->conv1, config);
	vision->class_embedding = load_vector(loader, config->width, VISUAL "class_embedding");
	vision->positions = load_values(
		loader, find_tensor(loader, VISUAL "positional_embedding", 2, shape), shape[0], shape[1]);
	vision->ln_pre = load_norm(loader, config->width, VISUAL "ln_pre");
	vision->blocks = take_array(loader, config->layers, sizeof(VisionBlock));
	for (int i = 0; i < config->layers && loader->good; i++)
		load_vision_block(loader, &vision->blocks[i], config, i);
}

/* ---- perceiver resampler ---- */

static void
load_resampler(Loader *loader, const ResamplerConfig *config, int width,
			   ResamplerWeights *resampler)
{
	int			inner = config->heads * config->head_size;
	int			shape[2] = {config->latents, width};

	resampler->latents = load_values(loader, find_tensor(loader, "perceiver.latents", 2, shape),
									 shape[0], shape[1]);
	resampler->layers = take_array(loader, config->depth, sizeof(ResamplerLayer));
	for (int i = 0; i < config->depth && loader->good; i++)
	{
		ResamplerLayer *layer = &resampler->layers[i];
		char		prefix[MAX_NAME / 2];

		layer->norm_media = load_norm(loader, width, "perceiver.layers.%d.0.norm_media", i);
		layer->norm_latents = load_norm(loader, width, "perceiver.layers.%d.0.norm_latents", i);
		load_weight(loader, &layer->to_q, inner, width, "perceiver.layers.%d.0.to_q.weight", i);
		load_weight(loader, &layer->to_kv, 2 * inner, width, "perceiver.layers.%d.0.to_kv.weight",
					i);
		load_weight(loader, &layer->to_out, width, inner, "perceiver.layers.%d.0.to_out.weight", i);
		snprintf(prefix, sizeof(prefix), "perceiver.layers.%d.1", i);
		load_feed_forward(loader, &layer->ff, width, config->mlp, prefix);
	}
	resampler->norm = load_norm(loader, width, "perceiver.norm");
}

/* ---- decoder with gated blocks ---- */

/* A gate is one number; its tanh scales what the block adds. */
static float __attribute__((format(printf, 2, 3)))
load_gate(Loader *loader, const char *format, ...)
{
	char		name[MAX_NAME];
	int			one = 1;
	float		value = 0;
	StoredTensor *stored;
	va_list		arguments;

	va_start(arguments, format);
	tensor_name(name, format, arguments);
	va_end(arguments);
	stored = find_tensor(loader, name, 1, &one);
	if (stored != NULL)
		convert_to_f32(stored->data, stored->type, 1, &value);
	return tanhf(value);
}

static void
load_gated_block(Loader *loader, const ModelConfig *config, GatedBlock *block, int i)
{
	const CrossAttentionConfig *cross = &config->cross_attention;
	int			hidden = config->decoder.hidden;
	int			inner = cross->heads * cross->head_size;
	char		prefix[MAX_NAME / 2];

	snprintf(prefix, sizeof(prefix), "model.layers.%d.gated_cross_attn_layer", i);
	block->norm = load_norm(loader, hidden, "%s.attn.norm", prefix);
	load_weight(loader, &block->to_q, inner, hidden, "%s.attn.to_q.weight", prefix);
	load_weight(loader, &block->to_kv, 2 * inner, config->vision.width, "%s.attn.to_kv.weight",
				prefix);
	load_weight(loader, &block->to_out, hidden, inner, "%s.attn.to_out.weight", prefix);
	block->attn_gate = load_gate(loader, "%s.attn_gate", prefix);
	snprintf(prefix, sizeof(prefix), "model.layers.%d.gated_cross_attn_layer.ff", i);
	load_feed_forward(loader, &block->ff, hidden, cross->mlp, prefix);
	block->ff_gate = load_gate(loader, "%s_gate", prefix);
}

static void
load_decoder_layer(Loader *loader, const DecoderConfig *config, DecoderLayer *layer, int i)
{
	int			kv = config->kv_heads * config->head_size;
	int			qkv_outputs[3] = {config->heads * config->head_size, kv, kv};
	int			mlp_outputs[2] = {config->mlp, config->mlp};
	char		qkv[3][MAX_NAME];
	char		mlp[2][MAX_NAME];

	for (int j = 0; j < 3; j++)
		snprintf(qkv[j], MAX_NAME, "model.layers.%d.self_attn.%c_proj.weight", i, "qkv"[j]);
	snprintf(mlp[0], MAX_NAME, "model.layers.%d.mlp.gate_proj.weight", i);
	snprintf(mlp[1], MAX_NAME, "model.layers.%d.mlp.up_proj.weight", i);
	layer->input_norm.weight = load_vector(loader, config->hidden,
										   "model.layers.%d.input_layernorm.weight", i);
	load_stacked(loader, &layer->qkv, config->hidden, 3, qkv_outputs, qkv);
	load_weight(loader, &layer->o_proj, config->hidden, config->heads * config->head_size,
				"model.layers.%d.self_attn.o_proj.weight", i);
	layer->post_norm.weight = load_vector(loader, config->hidden,
										  "model.layers.%d.post_attention_layernorm.weight", i);
	load_stacked(loader, &layer->gate_up, config->hidden, 2, mlp_outputs, mlp);
	load_weight(loader, &layer->down_proj, config->hidden, config->mlp,
				"model.layers.%d.mlp.down_proj.weight", i);
}

/* Angles of rotary position embedding (RoFormer): position * theta^(-2i/D). */
static void
make_rotary(Loader *loader, const DecoderConfig *config, Tensor *table)
{
	int			half = config->head_size / 2;
	size_t		bytes = (size_t) config->context * (size_t) config->head_size * sizeof(float);
	float	   *values = arena_take(loader->arena, bytes);

	*table = tensor_make(take_buffer(loader, bytes), TYPE_F32, config->context, config->head_size);
	if (values == NULL)
		loader->good = loader->good && status_out_of_memory(loader->status, bytes);
	if (!loader->good)
		return;
	for (int i = 0; i < half; i++)
	{
		float		frequency = 1.0f / powf(config->rope_theta,
											(float) (2 * i) / (float) config->head_size);

		for (int position = 0; position < config->context; position++)
		{
			float	   *row = values + (size_t) position * (size_t) config->head_size;
			float		angle = (float) position * frequency;

			row[i] = cosf(angle);
			row[half + i] = sinf(angle);
		}
	}
	loader->backend->ops->upload(loader->backend, table->data, values, bytes);
}

/* The embedding table stays as stored: only single rows of it are read. */
static void
load_embedding(Loader *loader, const DecoderConfig *config, Tensor *table)
{
	int			shape[2] = {config->vocabulary, config->hidden};
	StoredTensor *stored = find_tensor(loader, "model.embed_tokens.weight", 2, shape);

	if (stored == NULL)
		return;
	*table = tensor_make(take_buffer(loader, stored->bytes), stored->type, shape[0], shape[1]);
	if (!loader->good)
		return;
	loader->backend->ops->upload(loader->backend, table->data, stored->data, stored->bytes);
	finish_tensor(loader, stored);
}

static void
load_decoder(Loader *loader, const ModelConfig *config, ModelWeights *weights)
{
	const DecoderConfig *decoder = &config->decoder;

	load_embedding(loader, decoder, &weights->decoder.embed_tokens);
	weights->decoder.layers = take_array(loader, decoder->layers, sizeof(DecoderLayer));
	for (int i = 0; i < decoder->layers && loader->good; i++)
	{
		DecoderLayer *layer = &weights->decoder.layers[i];

		load_decoder_layer(loader, decoder, layer, i);
		if ((i + 1) % config->cross_attention.every != 0)
			continue;
		layer->gated = take_array(loader, 1, sizeof(GatedBlock));
		if (loader->good)
			load_gated_block(loader, config, layer->gated, i);
		weights->gated_blocks++;
	}
	weights->decoder.norm.weight = load_vector(loader, decoder->hidden, "model.norm.weight");
	load_weight(loader, &weights->decoder.lm_head, decoder->vocabulary, decoder->hidden,
				"lm_head.weight");
	make_rotary(loader, decoder, &weights->decoder.rotary);
}

/*
 * Tensors of the usual files that nobody needs: what CLIP computes behind the tokens that are taken
 * here, and buffers of Hugging Face's LLaMA.
 */
static void
ignore_tensors(TensorStore *store)
{
	tensor_store_find(store, VISUAL "ln_post.weight");
	tensor_store_find(store, VISUAL "ln_post.bias");
	tensor_store_find(store, VISUAL "proj");
	for (int i = 0; i < tensor_store_count(store); i++)
		if (strstr(tensor_store_at(store, i)->name, "rotary_emb.inv_freq") != NULL)
			tensor_store_at(store, i)->used = true;
}

/* Is there a tensor that the model has no place for? */
static bool
check_unused(TensorStore *store, Status *status)
{
	const StoredTensor *unused;

	ignore_tensors(store);
	unused = tensor_store_unused(store);
	if (unused == NULL)
		return true;
	status_set(status, STATUS_INVALID_MODEL, "tensor \"%s\" is not part of the model",
			   unused->stored_name);
	return status_detail(status, "The file is \"%s\"; the sizes in config.json leave no place for "
						 "it.", unused->file);
}

static void
load_parts(Loader *loader, const ModelConfig *config)
{
	load_vision(loader, &config->vision, &loader->weights->vision);
	load_resampler(loader, &config->resampler, config->vision.width, &loader->weights->resampler);
	load_decoder(loader, config, loader->weights);
}

bool
model_weights_load(const ModelConfig *config, TensorStore *store, Backend *backend, DataType format,
				   const LoadProgress *progress, Arena *arena, ModelWeights *weights,
				   Status *status)
{
	Loader		loader = {.store = store, .backend = backend, .format = format,
		.progress = progress, .arena = arena, .weights = weights, .status = status, .good = true};

	loader.total = tensor_store_bytes(store);
	load_parts(&loader, config);
	return loader.good && check_unused(store, status);
}

bool
model_weights_draw(const ModelConfig *config, Backend *backend, DataType format,
				   const LoadProgress *progress, Arena *arena, ModelWeights *weights,
				   Status *status)
{
	Loader		loader = {.backend = backend, .format = format, .progress = progress,
		.arena = arena, .weights = weights, .status = status, .good = true};

	loader.noise = random_tensors_create(arena);
	if (loader.noise == NULL)
		return status_out_of_memory(status, 0);
	load_parts(&loader, config);
	random_tensors_free(loader.noise);
	return loader.good;
}

void
model_weights_free(ModelWeights *weights, Backend *backend)
{
	for (WeightOwner *owner = weights->owned; owner != NULL; owner = owner->next)
	{
		if (owner->weight != NULL)
			backend->ops->weight_destroy(backend, owner->weight);
		else
			backend->ops->release(backend, owner->buffer);
	}
	weights->owned = NULL;
}
