/*
 * layer_backward.c - one decoder layer with its gated block, from the gradient of the residual
 * stream behind it to the one before it.
 *
 * Each stage is x += f(norm(x)): the gradient dx goes on past it and through it,
 *
 *	d_normed = gradient of f for dx,  dx += gradient of the norm for d_normed
 *
 * and LoRA's matrices get their gradients on the way. Frozen matrices get none. In the lowest
 * stage with LoRA only what its matrices need is computed, and nothing below it.
 */
#include "trainer_internal.h"

/* A tensor that says that a gradient is not wanted. */
static const Tensor nothing;

/* Is the gradient wanted before this stage of the layer? */
static bool
goes_below(const Trainer *trainer, int layer, int stage)
{
	return layer * LAYER_STAGES + stage > trainer->pass.first_stage;
}

/* A gradient that is wanted or not. */
static Tensor
wanted(bool want, Tensor tensor)
{
	return want ? tensor : nothing;
}

/* x += down(swiglu(gate_up(rms_norm(x)))) */
static void
mlp_backward(Trainer *trainer, int layer, const LayerActivations *a)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	const DecoderLayer *weights = &trainer->model->weights.decoder.layers[layer];
	PassTensors *t = &trainer->tensors;
	int			width = trainer->model->config.decoder.mlp;
	float		epsilon = trainer->model->config.decoder.epsilon;
	bool		below = goes_below(trainer, layer, STAGE_MLP);
	bool		inside = below || lora_trains(trainer, layer, LORA_GATE_PROJ) ||
		lora_trains(trainer, layer, LORA_UP_PROJ);

	if (lora_trains(trainer, layer, LORA_DOWN_PROJ))
		ops->swiglu(backend, t->t.mlp, a->gate_up);
	if (inside)
		ops->matmul_backward(backend, t->d_mlp, t->dx, &weights->down_proj, 1.0f, false);
	lora_backward(trainer, layer, LORA_DOWN_PROJ, wanted(inside, t->d_mlp), t->dx, t->t.mlp, 1.0f);
	if (!inside)
		return;
	ops->swiglu_backward(backend, t->d_gate_up, t->d_mlp, a->gate_up);
	ops->rms_norm(backend, t->t.normed, a->x_mlp, weights->post_norm.weight, epsilon);
	if (below)
		ops->matmul_backward(backend, t->d_normed, t->d_gate_up, &weights->gate_up, 1.0f, false);
	lora_backward(trainer, layer, LORA_GATE_PROJ, wanted(below, t->d_normed),
				  tensor_column_range(t->d_gate_up, 0, width), t->t.normed, 1.0f);
	lora_backward(trainer, layer, LORA_UP_PROJ, wanted(below, t->d_normed),
				  tensor_column_range(t->d_gate_up, width, width), t->t.normed, 1.0f);
	if (below)
		ops->rms_norm_backward(backend, t->dx, t->d_normed, a->x_mlp, weights->post_norm.weight,
							   epsilon);
}

/* Gradients of queries, keys and values as the products made them, before rotary. */
static void
self_attention_backward(Trainer *trainer, const LayerActivations *a)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	const DecoderConfig *config = &trainer->model->config.decoder;
	PassTensors *t = &trainer->tensors;
	int			q = config->heads * config->head_size;
	int			kv = config->kv_heads * config->head_size;
	AttentionGradient gradient = {.plan = &trainer->pass.batch.self_attention,
								  .type = trainer->cache.type,
								  .kv_heads = config->kv_heads,
								  .head_size = config->head_size,
								  .groups = t->groups,
								  .q = tensor_column_range(a->qkv, 0, q),
								  .k = tensor_column_range(a->qkv, q, kv),
								  .v = tensor_column_range(a->qkv, q + kv, kv),
								  .dy = t->d_attended,
								  .dq = tensor_column_range(t->d_qkv, 0, q),
								  .dk = tensor_column_range(t->d_qkv, q, kv),
								  .dv = tensor_column_range(t->d_qkv, q + kv, kv),
								  .scratch = t->attention_scratch};

	ops->attention_backward(backend, &gradient);
	ops->rotary_backward(backend, gradient.dq, config->heads, t->t.positions,
						 trainer->model->weights.decoder.rotary);
	ops->rotary_backward(backend, gradient.dk, config->kv_heads, t->t.positions,
						 trainer->model->weights.decoder.rotary);
}

/* x += o_proj(attention(qkv(rms_norm(x)))) */
static void
attention_backward(Trainer *trainer, int layer, const LayerActivations *a)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	const DecoderConfig *config = &trainer->model->config.decoder;
	const DecoderLayer *weights = &trainer->model->weights.decoder.layers[layer];
	PassTensors *t = &trainer->tensors;
	int			q = config->heads * config->head_size;
	int			kv = config->kv_heads * config->head_size;
	bool		below = goes_below(trainer, layer, STAGE_ATTENTION);
	bool		inside = below || lora_trains(trainer, layer, LORA_Q_PROJ) ||
		lora_trains(trainer, layer, LORA_K_PROJ) || lora_trains(trainer, layer, LORA_V_PROJ);

	if (inside)
		ops->matmul_backward(backend, t->d_attended, t->dx, &weights->o_proj, 1.0f, false);
	lora_backward(trainer, layer, LORA_O_PROJ, wanted(inside, t->d_attended), t->dx, a->attended,
				  1.0f);
	if (!inside)
		return;
	self_attention_backward(trainer, a);
	ops->rms_norm(backend, t->t.normed, a->x_attention, weights->input_norm.weight,
				  config->epsilon);
	if (below)
		ops->matmul_backward(backend, t->d_normed, t->d_qkv, &weights->qkv, 1.0f, false);
	lora_backward(trainer, layer, LORA_Q_PROJ, wanted(below, t->d_normed),
				  tensor_column_range(t->d_qkv, 0, q), t->t.normed, 1.0f);
	lora_backward(trainer, layer, LORA_K_PROJ, wanted(below, t->d_normed),
				  tensor_column_range(t->d_qkv, q, kv), t->t.normed, 1.0f);
	lora_backward(trainer, layer, LORA_V_PROJ, wanted(below, t->d_normed),
				  tensor_column_range(t->d_qkv, q + kv, kv), t->t.normed, 1.0f);
	if (below)
		ops->rms_norm_backward(backend, t->dx, t->d_normed, a->x_attention,
							   weights->input_norm.weight, config->epsilon);
}

/* x += ff_gate * down(gelu(up(layer_norm(x)))), on the rows that look at pictures */
static void
gated_ff_backward(Trainer *trainer, int layer, const LayerActivations *a)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	const GatedBlock *weights = trainer->model->weights.decoder.layers[layer].gated;
	PassTensors *t = &trainer->tensors;
	int			rows = trainer->pass.media_rows;
	Tensor		dx = tensor_row_range(t->dx, 0, rows);
	Tensor		normed = tensor_row_range(t->t.normed, 0, rows);
	Tensor		d_normed = tensor_row_range(t->d_normed, 0, rows);
	float		epsilon = trainer->model->config.cross_attention.epsilon;
	bool		below = goes_below(trainer, layer, STAGE_GATED_FF);
	bool		inside = below || lora_trains(trainer, layer, LORA_FF_1);

	if (lora_trains(trainer, layer, LORA_FF_3))
	{
		ops->copy(backend, t->t.cross_ff, a->ff_input);
		ops->activate(backend, t->t.cross_ff, ACTIVATION_GELU);
	}
	if (inside)
		ops->matmul_backward(backend, t->d_ff, dx, &weights->ff.down, weights->ff_gate, false);
	lora_backward(trainer, layer, LORA_FF_3, wanted(inside, t->d_ff), dx, t->t.cross_ff,
				  weights->ff_gate);
	if (!inside)
		return;
	ops->activate_backward(backend, t->d_ff, a->ff_input, ACTIVATION_GELU);
	ops->layer_norm(backend, normed, a->x_ff, weights->ff.norm.weight, weights->ff.norm.bias,
					epsilon);
	if (below)
		ops->matmul_backward(backend, d_normed, t->d_ff, &weights->ff.up, 1.0f, false);
	lora_backward(trainer, layer, LORA_FF_1, wanted(below, d_normed), t->d_ff, normed, 1.0f);
	if (below)
		ops->layer_norm_backward(backend, dx, d_normed, a->x_ff, weights->ff.norm.weight, epsilon);
}

/* Gradients of queries, and of the latents' keys and values where to_kv is trained. */
static void
cross_attention_backward(Trainer *trainer, int layer, const LayerActivations *a)
{
	const CrossAttentionConfig *config = &trainer->model->config.cross_attention;
	PassTensors *t = &trainer->tensors;
	int			inner = config->heads * config->head_size;
	bool		trains = lora_trains(trainer, layer, LORA_TO_KV);
	AttentionGradient gradient = {.plan = &trainer->pass.batch.cross_attention,
								  .type = trainer->media.type,
								  .kv_heads = config->heads,
								  .head_size = config->head_size,
								  .groups = tensor_row_range(t->media_groups, 0,
															 trainer->pass.media_sequences),
								  .q = a->cross_q,
								  .k = tensor_column_range(a->media_kv, 0, inner),
								  .v = tensor_column_range(a->media_kv, inner, inner),
								  .dy = t->d_cross_attended,
								  .dq = t->d_cross_q,
								  .scratch = t->attention_scratch};

	gradient.dk = wanted(trains, tensor_column_range(t->d_media_kv, 0, inner));
	gradient.dv = wanted(trains, tensor_column_range(t->d_media_kv, inner, inner));
	trainer->model->backend->ops->attention_backward(trainer->model->backend, &gradient);
	lora_backward(trainer, layer, LORA_TO_KV, nothing, t->d_media_kv, t->latents, 1.0f);
}

/* x += attn_gate * to_out(attention(to_q(layer_norm(x)), to_kv(latents))) */
static void
gated_attention_backward(Trainer *trainer, int layer, const LayerActivations *a)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	const GatedBlock *weights = trainer->model->weights.decoder.layers[layer].gated;
	PassTensors *t = &trainer->tensors;
	int			rows = trainer->pass.media_rows;
	Tensor		dx = tensor_row_range(t->dx, 0, rows);
	Tensor		normed = tensor_row_range(t->t.normed, 0, rows);
	Tensor		d_normed = tensor_row_range(t->d_normed, 0, rows);
	float		epsilon = trainer->model->config.cross_attention.epsilon;
	bool		below = goes_below(trainer, layer, STAGE_GATED_ATTENTION);
	bool		inside = below || lora_trains(trainer, layer, LORA_TO_Q) ||
		lora_trains(trainer, layer, LORA_TO_KV);

	if (inside)
		ops->matmul_backward(backend, t->d_cross_attended, dx, &weights->to_out,
							 weights->attn_gate, false);
	lora_backward(trainer, layer, LORA_TO_OUT, wanted(inside, t->d_cross_attended), dx,
				  a->cross_attended, weights->attn_gate);
	if (!inside)
		return;
	cross_attention_backward(trainer, layer, a);
	ops->layer_norm(backend, normed, a->x_gated, weights->norm.weight, weights->norm.bias,
					epsilon);
	if (below)
		ops->matmul_backward(backend, d_normed, t->d_cross_q, &weights->to_q, 1.0f, false);
	lora_backward(trainer, layer, LORA_TO_Q, wanted(below, d_normed), t->d_cross_q, normed, 1.0f);
	if (below)
		ops->layer_norm_backward(backend, dx, d_normed, a->x_gated, weights->norm.weight, epsilon);
}

void
layer_backward(Trainer *trainer, int layer)
{
	const LayerActivations *a = layer_activations(trainer, layer);
	int			first = trainer->pass.first_stage - layer * LAYER_STAGES;
	bool		gated = trainer->model->weights.decoder.layers[layer].gated != NULL &&
		trainer->pass.media_rows > 0;

	mlp_backward(trainer, layer, a);
	if (first <= STAGE_ATTENTION)
		attention_backward(trainer, layer, a);
	if (first <= STAGE_GATED_FF && gated)
		gated_ff_backward(trainer, layer, a);
	if (first <= STAGE_GATED_ATTENTION && gated)
		gated_attention_backward(trainer, layer, a);
}
