/*
 * gated_cross_attention.c - how the decoder sees (Flamingo, section 3.1.2;
 * OpenFlamingo's GatedCrossAttentionBlock).
 *
 *	x += tanh(attn_gate) * to_out(attention(to_q(norm(x)), latents of the token's picture))
 *	x += tanh(ff_gate) * ff(x)
 *
 * Keys and values of the latents were computed when the picture was encoded. Which
 * picture a token attends to is worked out in sequence.c; a token without one gets zero
 * from the attention and still passes the gated feed-forward.
 */
#include "model_internal.h"

void
gated_attention_forward(Model *model, int layer, int block, const DecoderBatch *batch,
						DecoderTensors *t)
{
	const BackendOps *ops = model->backend->ops;
	Backend    *backend = model->backend;
	const GatedBlock *weights = model->weights.decoder.layers[layer].gated;
	int			rows = batch->media_rows;
	Tensor		x = tensor_row_range(t->x, 0, rows);
	Tensor		normed = tensor_row_range(t->normed, 0, rows);
	Tensor		q = tensor_row_range(t->cross_q, 0, rows);
	Tensor		attended = tensor_row_range(t->cross_attended, 0, rows);

	ops->layer_norm(backend, normed, x, weights->norm.weight, weights->norm.bias,
					model->config.cross_attention.epsilon);
	ops->matmul(backend, q, normed, &weights->to_q, EPILOGUE_STORE);
	lora_add(model, &batch->adapters, layer, LORA_TO_Q, q, normed, 1.0f);
	ops->attention(backend, attended, q, batch->media, pool_layer(batch->media, block),
				   &batch->cross_attention);
	if (model->tap != NULL)
	{
		ops->matmul(backend, normed, attended, &weights->to_out, EPILOGUE_STORE);
		lora_add(model, &batch->adapters, layer, LORA_TO_OUT, normed, attended, 1.0f);
		model_tap(model, "cross_", layer, normed);
	}
	ops->matmul(backend, x, attended, &weights->to_out,
				(Epilogue) {NULL, ACTIVATION_NONE, weights->attn_gate, true});
	lora_add(model, &batch->adapters, layer, LORA_TO_OUT, x, attended, weights->attn_gate);
}

void
gated_feed_forward(Model *model, int layer, const DecoderBatch *batch, DecoderTensors *t)
{
	const BackendOps *ops = model->backend->ops;
	Backend    *backend = model->backend;
	const GatedBlock *weights = model->weights.decoder.layers[layer].gated;
	int			rows = batch->media_rows;
	Tensor		x = tensor_row_range(t->x, 0, rows);
	Tensor		normed = tensor_row_range(t->normed, 0, rows);
	Tensor		ff = tensor_row_range(t->cross_ff, 0, rows);

	ops->layer_norm(backend, normed, x, weights->ff.norm.weight, weights->ff.norm.bias,
					model->config.cross_attention.epsilon);
	if (lora_applies(&batch->adapters, layer, LORA_FF_1) || t->cross_ff_input.data != NULL)
	{
		/* LoRA is added before the activation, so it can't be fused with the product. */
		ops->matmul(backend, ff, normed, &weights->ff.up, EPILOGUE_STORE);
		lora_add(model, &batch->adapters, layer, LORA_FF_1, ff, normed, 1.0f);
		if (t->cross_ff_input.data != NULL)
			ops->copy(backend, tensor_row_range(t->cross_ff_input, 0, rows), ff);
		ops->activate(backend, ff, ACTIVATION_GELU);
	}
	else
		ops->matmul(backend, ff, normed, &weights->ff.up,
					(Epilogue){NULL, ACTIVATION_GELU, 1.0f, false});
	ops->matmul(backend, x, ff, &weights->ff.down,
				(Epilogue){NULL, ACTIVATION_NONE, weights->ff_gate, true});
	lora_add(model, &batch->adapters, layer, LORA_FF_3, x, ff, weights->ff_gate);
}
