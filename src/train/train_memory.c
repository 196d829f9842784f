/*
 * train_memory.c - how much memory a training takes, and taking it.
 *
 * One function takes all tensors of a pass from a workspace; a workspace without memory only
 * measures. The plan is the first that fits of
 *
 *	passes of PASS_TOKENS tokens, all layers' activations kept
 *	passes of the longest row, all kept
 *	passes of the longest row, as many of the upper layers kept as fit; of the others only their
 *	input, from which they are computed anew on the way back
 *
 * None of these choices changes a bit of the result.
 */
#include <stdlib.h>
#include <string.h>

#include "trainer_internal.h"

/* Tokens that go through the model at once where memory allows: enough for full speed. */
#define PASS_TOKENS 1024
/* Most sequences of a pass; bounds the pages of short ones. */
#define PASS_SEQUENCES 256

/* ---- limits ---- */

/* The longest row, and the most latents of one. */
static void
measure_rows(const Trainer *trainer, int *longest, int *latents)
{
	*longest = 0;
	*latents = 0;
	for (int i = 0; i < trainer->store.count; i++)
	{
		const StoredRow *row = &trainer->store.rows[i];
		int			here = row->picture_count * trainer->model->config.resampler.latents;

		*longest = row->count > *longest ? row->count : *longest;
		*latents = here > *latents ? here : *latents;
	}
}

/* Limits of passes of at most `tokens` tokens, or one row where that is longer. */
static PassLimits
make_limits(const Trainer *trainer, int tokens)
{
	int			longest;
	int			latents;
	int64_t		batch_rows = 0;
	PassLimits	limits;

	measure_rows(trainer, &longest, &latents);
	/* a micro step may hold less than a pass */
	for (int kind = 0; kind < ROW_KINDS; kind++)
		batch_rows += (int64_t) longest * row_stream_batch(&trainer->store.streams[kind],
														   &trainer->options);
	tokens = tokens < batch_rows ? tokens : (int) batch_rows;
	limits.rows = longest > tokens ? longest : tokens;
	limits.sequences = limits.rows / 2 < PASS_SEQUENCES ? limits.rows / 2 : PASS_SEQUENCES;
	limits.latents = latents > 0 && latents < tokens ? tokens : latents;
	limits.media_rows = latents > 0 ? limits.rows : 0;
	limits.keys = longest;
	limits.media_keys = latents;
	return limits;
}

/* ---- tensors ---- */

static void
take_activations(Workspace *workspace, const Trainer *trainer, const PassLimits *limits,
				 bool gated, LayerActivations *a)
{
	const DecoderConfig *config = &trainer->model->config.decoder;
	const CrossAttentionConfig *cross = &trainer->model->config.cross_attention;
	int			inner = cross->heads * cross->head_size;
	int			media_rows = gated ? limits->media_rows : 0;
	int			latents = gated ? limits->latents : 0;

	a->x_gated = workspace_floats(workspace, media_rows, config->hidden);
	a->media_kv = workspace_floats(workspace, latents, 2 * inner);
	a->cross_q = workspace_floats(workspace, media_rows, inner);
	a->cross_attended = workspace_floats(workspace, media_rows, inner);
	a->x_ff = workspace_floats(workspace, media_rows, config->hidden);
	a->ff_input = workspace_floats(workspace, media_rows, cross->mlp);
	a->x_attention = workspace_floats(workspace, limits->rows, config->hidden);
	a->qkv = workspace_floats(workspace, limits->rows,
							  (config->heads + 2 * config->kv_heads) * config->head_size);
	a->attended = workspace_floats(workspace, limits->rows, config->heads * config->head_size);
	a->x_mlp = workspace_floats(workspace, limits->rows, config->hidden);
	a->gate_up = workspace_floats(workspace, limits->rows, 2 * config->mlp);
}

static int
trained_layers(const Trainer *trainer)
{
	return trainer->model->config.decoder.layers - trainer->first_stage / LAYER_STAGES;
}

/* The number of a layer among those whose activations are kept; negative: it is not kept. */
static int
kept_index(const Trainer *trainer, int layer)
{
	return layer - (trainer->model->config.decoder.layers - trainer->memory.kept_layers);
}

/* Activations of the kept layers, the shared ones, and the inputs of layers computed anew. */
static void
take_layers(Workspace *workspace, const Trainer *trainer, const PassLimits *limits, int kept,
			PassTensors *t)
{
	int			layers = trainer->model->config.decoder.layers;
	int			trained = trained_layers(trainer);
	LayerActivations scratch;
	bool		shared = kept < layers;	/* some layer is not kept, or only passed through */

	for (int i = 0; i < kept; i++)
		take_activations(workspace, trainer, limits,
						 trainer->model->weights.decoder.layers[layers - kept + i].gated != NULL,
						 t->kept != NULL ? &t->kept[i] : &scratch);
	if (shared)
		take_activations(workspace, trainer, limits, true, &t->shared);
	for (int i = 0; i < trained - kept; i++)
	{
		Tensor		start = workspace_floats(workspace, limits->rows,
											 trainer->model->config.decoder.hidden);

		if (t->starts != NULL)
			t->starts[i] = start;
	}
}

static void
take_integers(Workspace *workspace, const PassLimits *limits, PassTensors *t)
{
	int			pages = limits->rows / KV_PAGE_KEYS + limits->sequences;
	int			media_pages = limits->latents / KV_PAGE_KEYS + limits->sequences;

	t->t.ids = workspace_integers(workspace, 1, limits->rows);
	t->t.positions = workspace_integers(workspace, 1, limits->rows);
	t->t.slots = workspace_integers(workspace, 1, limits->rows);
	t->t.spans = workspace_integers(workspace, limits->rows, ATTENTION_SPAN_FIELDS);
	t->t.lists = workspace_integers(workspace, 1, pages);
	t->t.media_spans = workspace_integers(workspace, limits->media_rows, ATTENTION_SPAN_FIELDS);
	t->t.media_lists = workspace_integers(workspace, 1, media_pages);
	t->latents_index = workspace_integers(workspace, 1, limits->latents);
	t->media_slots = workspace_integers(workspace, 1, limits->latents);
	t->groups = workspace_integers(workspace, limits->sequences, ATTENTION_GROUP_FIELDS);
	t->media_groups = workspace_integers(workspace, limits->sequences, ATTENTION_GROUP_FIELDS);
	t->label_index = workspace_integers(workspace, 1, limits->rows);
	t->targets = workspace_integers(workspace, 1, limits->rows);
	t->weights = workspace_floats(workspace, 1, limits->rows);
	t->losses = workspace_floats(workspace, 1, limits->rows);
}

/* What lives through a whole pass, or through a layer forward. */
static void
take_streams(Workspace *workspace, const Trainer *trainer, const PassLimits *limits,
			 PassTensors *t)
{
	const DecoderConfig *config = &trainer->model->config.decoder;
	const CrossAttentionConfig *cross = &trainer->model->config.cross_attention;
	int			reduced = limits->rows > limits->latents ? limits->rows : limits->latents;

	t->t.x = workspace_floats(workspace, limits->rows, config->hidden);
	t->t.normed = workspace_floats(workspace, limits->rows, config->hidden);
	t->t.mlp = workspace_floats(workspace, limits->rows, config->mlp);
	t->t.cross_ff = workspace_floats(workspace, limits->media_rows, cross->mlp);
	t->t.reduced = workspace_floats(workspace, limits->rows, LORA_MAX_RANK);
	t->latents = workspace_floats(workspace, limits->latents, trainer->model->config.vision.width);
	t->media_reduced = workspace_floats(workspace, limits->latents, LORA_MAX_RANK);
	t->z = workspace_floats(workspace, reduced, trainer->parameters.shape.r);
	t->dz = workspace_floats(workspace, reduced, trainer->parameters.shape.r);
	t->dx = workspace_floats(workspace, limits->rows, config->hidden);
	t->d_normed = workspace_floats(workspace, limits->rows, config->hidden);
}

/* The head, and the stages of a layer backward: all in the same place. */
static void
take_stages(Workspace *workspace, const Trainer *trainer, const PassLimits *limits, PassTensors *t)
{
	const DecoderConfig *config = &trainer->model->config.decoder;
	const CrossAttentionConfig *cross = &trainer->model->config.cross_attention;
	int			inner = cross->heads * cross->head_size;
	size_t		start = workspace->used;

	t->head_x = workspace_floats(workspace, HEAD_ROWS, config->hidden);
	t->head_normed = workspace_floats(workspace, HEAD_ROWS, config->hidden);
	t->head_logits = workspace_floats(workspace, HEAD_ROWS, config->vocabulary);
	t->head_d_normed = workspace_floats(workspace, HEAD_ROWS, config->hidden);
	t->head_dx = workspace_floats(workspace, HEAD_ROWS, config->hidden);
	workspace->used = start;
	t->d_mlp = workspace_floats(workspace, limits->rows, config->mlp);
	t->d_gate_up = workspace_floats(workspace, limits->rows, 2 * config->mlp);
	workspace->used = start;
	t->d_attended = workspace_floats(workspace, limits->rows, config->heads * config->head_size);
	t->d_qkv = workspace_floats(workspace, limits->rows,
								(config->heads + 2 * config->kv_heads) * config->head_size);
	workspace->used = start;
	t->d_ff = workspace_floats(workspace, limits->media_rows, cross->mlp);
	workspace->used = start;
	t->d_cross_attended = workspace_floats(workspace, limits->media_rows, inner);
	t->d_cross_q = workspace_floats(workspace, limits->media_rows, inner);
	t->d_media_kv = workspace_floats(workspace, limits->latents, 2 * inner);
	workspace->used = workspace->peak;
}

static void
take_attention_scratch(Workspace *workspace, const Trainer *trainer, const PassLimits *limits,
					   PassTensors *t)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	size_t		self = ops->attention_backward_size(backend, limits->keys,
													trainer->model->config.decoder.head_size);
	size_t		cross = ops->attention_backward_size(
		backend, limits->media_keys, trainer->model->config.cross_attention.head_size);
	size_t		bytes = self > cross ? self : cross;

	/* in rows of a page, as one row of a tensor might have more bytes than an int counts */
	t->attention_scratch = workspace_take(workspace, TYPE_U8, (int) (bytes / 4096) + 1, 4096).data;
}

/* All tensors; returns the bytes of activations. */
static size_t
take_tensors(Workspace *workspace, const Trainer *trainer, const PassLimits *limits, int kept,
			 PassTensors *t)
{
	size_t		activations;

	workspace->used = 0;
	take_layers(workspace, trainer, limits, kept, t);
	activations = workspace->used;
	take_integers(workspace, limits, t);
	take_streams(workspace, trainer, limits, t);
	take_attention_scratch(workspace, trainer, limits, t);
	take_stages(workspace, trainer, limits, t);
	return activations;
}

/* ---- the plan ---- */

/* Pages for keys and values of one layer, of tokens or of latents. */
static int
pool_pages(int rows, int sequences)
{
	return rows / KV_PAGE_KEYS + sequences;
}

static size_t
pool_bytes(const Trainer *trainer, int pages, int heads, int head_size)
{
	DataType	type = model_cache_type(trainer->model);

	return (size_t) pages * trainer->model->backend->ops->kv_page_size(type, 1, heads, head_size);
}

/* What a plan takes. */
static TrainerMemory
measure_plan(const Trainer *trainer, const PassLimits *limits, int kept)
{
	const ModelConfig *config = &trainer->model->config;
	Workspace	measure = {0};
	PassTensors tensors = {0};
	TrainerMemory memory = {.pass_tokens = limits->rows,
							.trained_layers = trained_layers(trainer),
							.kept_layers = kept};

	memory.rows = trainer->store.bytes;
	memory.pictures = (size_t) trainer->store.picture_count * (size_t) config->resampler.latents *
		(size_t) config->vision.width * sizeof(float);
	memory.parameters = lora_parameters_bytes(trainer);
	memory.activations = take_tensors(&measure, trainer, limits, kept, &tensors);
	memory.scratch = measure.peak - memory.activations +
		pool_bytes(trainer, pool_pages(limits->rows, limits->sequences),
				   config->decoder.kv_heads, config->decoder.head_size) +
		pool_bytes(trainer, pool_pages(limits->latents, limits->sequences),
				   config->cross_attention.heads, config->cross_attention.head_size);
	memory.total = memory.rows + memory.pictures + memory.parameters + memory.activations +
		memory.scratch;
	return memory;
}

static bool
refuse_plan(const TrainerMemory *memory, size_t limit, Status *status)
{
	status_set(status, STATUS_OUT_OF_MEMORY,
			   "training needs %zu MB of memory and may take %zu MB", (memory->total >> 20) + 1,
			   limit >> 20);
	status_detail(status,
				  "%zu MB for the rows, %zu MB for encoded pictures, %zu MB for adapter and "
				  "optimizer, %zu MB for activations of %d tokens, %zu MB for scratch.",
				  memory->rows >> 20, memory->pictures >> 20, memory->parameters >> 20,
				  memory->activations >> 20, memory->pass_tokens, memory->scratch >> 20);
	return status_hint(status, "Use fewer rows with pictures, a lower r, or a lower max_length.");
}

/* The first plan that fits. */
static bool
choose_plan(Trainer *trainer, size_t limit, Status *status)
{
	int			trained = trained_layers(trainer);

	trainer->limits = make_limits(trainer, PASS_TOKENS);
	trainer->memory = measure_plan(trainer, &trainer->limits, trained);
	if (limit == 0 || trainer->memory.total <= limit)
		return true;
	trainer->limits = make_limits(trainer, 0);
	for (int kept = trained; kept >= 0; kept--)
	{
		trainer->memory = measure_plan(trainer, &trainer->limits, kept);
		if (trainer->memory.total <= limit)
			return true;
	}
	return refuse_plan(&trainer->memory, limit, status);
}

/* Host memory of passes. */
static bool
take_host_memory(Trainer *trainer, Status *status)
{
	const PassLimits *limits = &trainer->limits;
	Arena	   *arena = trainer->store.arena;
	int			held_out = 0;
	int			batch = 0;
	size_t		integers = (size_t) (limits->rows + limits->latents) * ATTENTION_SPAN_FIELDS +
		(size_t) limits->sequences * ATTENTION_GROUP_FIELDS;

	for (int kind = 0; kind < ROW_KINDS; kind++)
	{
		held_out += trainer->store.streams[kind].held_out_count;
		batch += row_stream_batch(&trainer->store.streams[kind], &trainer->options);
	}
	trainer->batch = arena_take_array(arena, (size_t) (held_out > batch ? held_out : batch),
									  sizeof(BatchRow));
	trainer->staging = arena_take_array(arena, integers, sizeof(int32_t));
	trainer->host_floats = arena_take_array(arena, (size_t) limits->rows, sizeof(float));
	trainer->tensors.kept = arena_take_array(arena, (size_t) trainer->memory.kept_layers,
											 sizeof(LayerActivations));
	trainer->tensors.starts = arena_take_array(
		arena, (size_t) (trainer->memory.trained_layers - trainer->memory.kept_layers),
		sizeof(Tensor));
	return (trainer->batch != NULL && trainer->staging != NULL && trainer->host_floats != NULL &&
			trainer->tensors.kept != NULL && trainer->tensors.starts != NULL) ||
		status_out_of_memory(status, integers * sizeof(int32_t));
}

bool
train_memory_take(Trainer *trainer, size_t limit, Status *status)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	const ModelConfig *config = &trainer->model->config;
	const PassLimits *limits = &trainer->limits;
	DataType	format = model_cache_type(trainer->model);
	Workspace	measure = {0};
	PassTensors tensors = {0};

	if (!choose_plan(trainer, limit, status) || !take_host_memory(trainer, status))
		return false;
	take_tensors(&measure, trainer, limits, trainer->memory.kept_layers, &tensors);
	trainer->workspace.size = measure.peak;
	if (!ops->allocate(backend, measure.peak, (void **) &trainer->workspace.base, status) ||
		!ops->allocate(backend, trainer->memory.pictures, &trainer->latents_memory, status) ||
		!ops->kv_create(backend, format, 1, pool_pages(limits->rows, limits->sequences),
						config->decoder.kv_heads, config->decoder.head_size, &trainer->cache,
						status) ||
		!ops->kv_create(backend, format, 1, pool_pages(limits->latents, limits->sequences),
						config->cross_attention.heads, config->cross_attention.head_size,
						&trainer->media, status))
		return false;
	trainer->latents = tensor_make(trainer->latents_memory, TYPE_F32,
								   trainer->store.picture_count * config->resampler.latents,
								   config->vision.width);
	return true;
}

void
train_memory_free(Trainer *trainer)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;

	ops->release(backend, trainer->workspace.base);
	ops->release(backend, trainer->latents_memory);
	ops->kv_destroy(backend, &trainer->cache);
	ops->kv_destroy(backend, &trainer->media);
}

void
train_memory_begin_pass(Trainer *trainer)
{
	const Pass *pass = &trainer->pass;
	PassLimits	here = trainer->limits;

	here.rows = pass->rows;
	here.media_rows = pass->media_rows;
	here.latents = pass->latents;
	here.sequences = pass->count;
	take_tensors(&trainer->workspace, trainer, &here, trainer->memory.kept_layers,
				 &trainer->tensors);
}

bool
layer_is_kept(const Trainer *trainer, int layer)
{
	return kept_index(trainer, layer) >= 0;
}

LayerActivations *
layer_activations(Trainer *trainer, int layer)
{
	int			index = kept_index(trainer, layer);

	return index >= 0 ? &trainer->tensors.kept[index] : &trainer->tensors.shared;
}
