/*
 * decoder.c - LLaMA (Touvron et al. 2023) with Flamingo's gated blocks between its
 * layers, over a ragged batch: R new tokens of any number of sequences.
 *
 *	x = embed_tokens[ids]
 *	each layer:  [gated cross attention, for the rows of sequences with a picture]
 *				 x += o_proj(attention(rotary(q), rotary(k), v)),  q, k, v of RMSNorm(x)
 *				 x += down_proj(silu(gate_proj(n)) * up_proj(n)),  n = RMSNorm(x)
 *	logits = lm_head(RMSNorm(x)), only where they were asked for
 *
 * Every product may have LoRA added: y += alpha/r B(A x) (Hu et al. 2021), by the
 * adapter of each row's sequence.
 */
#include "model_internal.h"

DecoderTensors
decoder_take_tensors(Workspace *workspace, const Model *model, int rows, int media_rows,
					 int logits_rows)
{
	const DecoderConfig *config = &model->config.decoder;
	const CrossAttentionConfig *cross = &model->config.cross_attention;
	int			inner = cross->heads * cross->head_size;
	DecoderTensors t;

	t.ids = workspace_integers(workspace, 1, rows);
	t.positions = workspace_integers(workspace, 1, rows);
	t.slots = workspace_integers(workspace, 1, rows);
	t.spans = workspace_integers(workspace, rows, ATTENTION_SPAN_FIELDS);
	t.lists = workspace_integers(workspace, rows, step_list_pages(model));
	t.media_spans = workspace_integers(workspace, media_rows, ATTENTION_SPAN_FIELDS);
	t.media_lists = workspace_integers(workspace, media_rows, step_media_pages(model));
	t.logits_index = workspace_integers(workspace, 1, logits_rows);
	t.x = workspace_floats(workspace, rows, config->hidden);
	t.normed = workspace_floats(workspace, rows, config->hidden);
	t.qkv = workspace_floats(workspace, rows,
							 (config->heads + 2 * config->kv_heads) * config->head_size);
	t.attended = workspace_floats(workspace, rows, config->heads * config->head_size);
	t.gate_up = workspace_floats(workspace, rows, 2 * config->mlp);
	t.mlp = workspace_floats(workspace, rows, config->mlp);
	t.cross_q = workspace_floats(workspace, media_rows, inner);
	t.cross_attended = workspace_floats(workspace, media_rows, inner);
	t.cross_ff = workspace_floats(workspace, media_rows, cross->mlp);
	t.cross_ff_input = tensor_make(NULL, TYPE_F32, 0, 0);
	t.reduced = workspace_floats(workspace, rows, LORA_MAX_RANK);
	t.last = workspace_floats(workspace, logits_rows, config->hidden);
	t.logits = workspace_floats(workspace, logits_rows, config->vocabulary);
	return t;
}

void
decoder_attention_forward(Model *model, int layer, const DecoderBatch *batch, DecoderTensors *t)
{
	const BackendOps *ops = model->backend->ops;
	const DecoderLayer *weights = &model->weights.decoder.layers[layer];
	Backend    *backend = model->backend;
	const DecoderConfig *config = &model->config.decoder;
	int			q_width = config->heads * config->head_size;
	int			kv_width = config->kv_heads * config->head_size;
	Tensor		q = tensor_column_range(t->qkv, 0, q_width);
	Tensor		k = tensor_column_range(t->qkv, q_width, kv_width);
	Tensor		v = tensor_column_range(t->qkv, q_width + kv_width, kv_width);

	ops->rms_norm(backend, t->normed, t->x, weights->input_norm.weight, config->epsilon);
	ops->matmul(backend, t->qkv, t->normed, &weights->qkv, EPILOGUE_STORE);
	lora_add(model, &batch->adapters, layer, LORA_Q_PROJ, q, t->normed, 1.0f);
	lora_add(model, &batch->adapters, layer, LORA_K_PROJ, k, t->normed, 1.0f);
	lora_add(model, &batch->adapters, layer, LORA_V_PROJ, v, t->normed, 1.0f);
	ops->rotary(backend, q, config->heads, t->positions, model->weights.decoder.rotary);
	ops->rotary(backend, k, config->kv_heads, t->positions, model->weights.decoder.rotary);
	ops->kv_write(backend, batch->cache, pool_layer(batch->cache, layer), k, v, t->slots);
	ops->attention(backend, t->attended, q, batch->cache, pool_layer(batch->cache, layer),
				   &batch->self_attention);
	ops->matmul(backend, t->x, t->attended, &weights->o_proj, EPILOGUE_ADD);
	lora_add(model, &batch->adapters, layer, LORA_O_PROJ, t->x, t->attended, 1.0f);
}

void
decoder_mlp_forward(Model *model, int layer, const DecoderBatch *batch, DecoderTensors *t)
{
	const BackendOps *ops = model->backend->ops;
	const DecoderLayer *weights = &model->weights.decoder.layers[layer];
	Backend    *backend = model->backend;
	int			mlp = model->config.decoder.mlp;

	ops->rms_norm(backend, t->normed, t->x, weights->post_norm.weight,
				  model->config.decoder.epsilon);
	ops->matmul(backend, t->gate_up, t->normed, &weights->gate_up, EPILOGUE_STORE);
	lora_add(model, &batch->adapters, layer, LORA_GATE_PROJ,
			 tensor_column_range(t->gate_up, 0, mlp), t->normed, 1.0f);
	lora_add(model, &batch->adapters, layer, LORA_UP_PROJ,
			 tensor_column_range(t->gate_up, mlp, mlp), t->normed, 1.0f);
	ops->swiglu(backend, t->mlp, t->gate_up);
	ops->matmul(backend, t->x, t->mlp, &weights->down_proj, EPILOGUE_ADD);
	lora_add(model, &batch->adapters, layer, LORA_DOWN_PROJ, t->x, t->mlp, 1.0f);
}

static void
logits_forward(Model *model, const DecoderBatch *batch, DecoderTensors *t)
{
	const BackendOps *ops = model->backend->ops;
	const DecoderWeights *weights = &model->weights.decoder;

	if (batch->logits_rows == 0)
		return;
	ops->gather(model->backend, t->last, t->x, t->logits_index);
	ops->rms_norm(model->backend, t->last, t->last, weights->norm.weight,
				  model->config.decoder.epsilon);
	ops->matmul(model->backend, t->logits, t->last, &weights->lm_head, EPILOGUE_STORE);
}

void
decoder_forward(Model *model, const DecoderBatch *batch, DecoderTensors *t)
{
	const DecoderWeights *weights = &model->weights.decoder;
	int			block = 0;

	model->backend->ops->embed(model->backend, t->x, weights->embed_tokens, t->ids);
	model_tap(model, "hidden_", 0, t->x);
	for (int i = 0; i < model->config.decoder.layers; i++)
	{
		if (weights->layers[i].gated != NULL)
		{
			if (batch->media_rows > 0)
			{
				gated_attention_forward(model, i, block, batch, t);
				gated_feed_forward(model, i, batch, t);
			}
			block++;
		}
		decoder_attention_forward(model, i, batch, t);
		decoder_mlp_forward(model, i, batch, t);
		model_tap(model, "hidden_", i + 1, t->x);
	}
	logits_forward(model, batch, t);
}
