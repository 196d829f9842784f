/*
 * resampler.c - the perceiver resampler (Flamingo, section 3.1.1; OpenFlamingo's
 * PerceiverResampler): a fixed number of latents for a picture of any number of tokens.
 *
 *	each layer:  latents += to_out(attention(q = norm_latents(latents),
 *									kv of [norm_media(x), norm_latents(latents)]))
 *				 latents += ff(latents)
 *	at the end:  norm(latents)
 *
 * No biases in the projections, no masks, no time embeddings.
 */
#include "model_internal.h"

ResamplerTensors
resampler_take_tensors(Workspace *workspace, const ModelConfig *config, int images)
{
	const ResamplerConfig *resampler = &config->resampler;
	int			tokens = images * vision_patches(&config->vision);
	int			latents = images * resampler->latents;
	int			inner = resampler->heads * resampler->head_size;
	int			keys = vision_patches(&config->vision) + resampler->latents;
	ResamplerTensors t;

	t.latents = workspace_floats(workspace, latents, config->vision.width);
	t.media = workspace_floats(workspace, tokens, config->vision.width);
	t.normed = workspace_floats(workspace, latents, config->vision.width);
	t.q = workspace_floats(workspace, latents, inner);
	t.media_kv = workspace_floats(workspace, tokens, 2 * inner);
	t.latents_kv = workspace_floats(workspace, latents, 2 * inner);
	t.attended = workspace_floats(workspace, latents, inner);
	t.ff = workspace_floats(workspace, latents, resampler->mlp);
	t.index = workspace_integers(workspace, 1, latents);
	t.media_slots = workspace_integers(workspace, 1, tokens);
	t.latents_slots = workspace_integers(workspace, 1, latents);
	t.spans = workspace_integers(workspace, latents, ATTENTION_SPAN_FIELDS);
	t.lists = workspace_integers(workspace, 1, images * group_pages(keys));
	return t;
}

/* The same learned latents for every picture. */
static void
begin_latents(Model *model, int images, ResamplerTensors *t)
{
	int			latents = model->config.resampler.latents;

	for (int i = 0; i < images * latents; i++)
		model->staging[i] = i % latents;
	model->backend->ops->upload(model->backend, t->index.data, model->staging,
								(size_t) (images * latents) * sizeof(int32_t));
	model->backend->ops->gather(model->backend, t->latents, model->weights.resampler.latents,
								t->index);
}

static void
resampler_layer_forward(Model *model, const ResamplerLayer *layer, Tensor tokens,
						const AttentionPlan *plan, ResamplerTensors *t)
{
	const BackendOps *ops = model->backend->ops;
	Backend    *backend = model->backend;
	const ResamplerConfig *config = &model->config.resampler;
	const KvPool *scratch = &model->resampler_scratch;
	int			inner = config->heads * config->head_size;

	ops->layer_norm(backend, t->media, tokens, layer->norm_media.weight, layer->norm_media.bias,
					config->epsilon);
	ops->layer_norm(backend, t->normed, t->latents, layer->norm_latents.weight,
					layer->norm_latents.bias, config->epsilon);
	ops->matmul(backend, t->q, t->normed, &layer->to_q, EPILOGUE_STORE);
	ops->matmul(backend, t->media_kv, t->media, &layer->to_kv, EPILOGUE_STORE);
	ops->matmul(backend, t->latents_kv, t->normed, &layer->to_kv, EPILOGUE_STORE);
	ops->kv_write(backend, scratch, 0, tensor_column_range(t->media_kv, 0, inner),
				  tensor_column_range(t->media_kv, inner, inner), t->media_slots);
	ops->kv_write(backend, scratch, 0, tensor_column_range(t->latents_kv, 0, inner),
				  tensor_column_range(t->latents_kv, inner, inner), t->latents_slots);
	ops->attention(backend, t->attended, t->q, scratch, 0, plan);
	ops->matmul(backend, t->latents, t->attended, &layer->to_out, EPILOGUE_ADD);

	ops->layer_norm(backend, t->normed, t->latents, layer->ff.norm.weight, layer->ff.norm.bias,
					config->epsilon);
	ops->matmul(backend, t->ff, t->normed, &layer->ff.up,
				(Epilogue){NULL, ACTIVATION_GELU, 1.0f, false});
	ops->matmul(backend, t->latents, t->ff, &layer->ff.down, EPILOGUE_ADD);
}

void
resampler_forward(Model *model, Tensor tokens, int images, ResamplerTensors *t)
{
	const ResamplerConfig *config = &model->config.resampler;
	const ResamplerWeights *weights = &model->weights.resampler;
	int			patches = vision_patches(&model->config.vision);
	int			keys = patches + config->latents;
	AttentionPlan plan = group_plan(model, t->spans, t->lists, images, config->latents, keys,
									config->heads, config->head_size);

	group_slots(model, t->media_slots, images, keys, 0, patches);
	group_slots(model, t->latents_slots, images, keys, patches, config->latents);
	begin_latents(model, images, t);
	for (int i = 0; i < config->depth; i++)
		resampler_layer_forward(model, &weights->layers[i], tokens, &plan, t);
	model->backend->ops->layer_norm(model->backend, t->latents, t->latents, weights->norm.weight,
									weights->norm.bias, config->epsilon);
	model_tap(model, "latents", -1, t->latents);
}
