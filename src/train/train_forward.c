/*
 * train_forward.c - forward with what the way back needs.
 *
 * The arithmetic is src/model's own: this only points its tensors to the place of a layer's
 * activations and copies the residual stream before each stage. In the end the logits of
 * the rows with labels are made, HEAD_ROWS at a time, and become their own gradient.
 */
#include "trainer_internal.h"

/* Keys and values of the pass's latents in one gated block, with the adapter as it is now. */
static void
project_latents(Trainer *trainer, int layer, LayerActivations *a)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	PassTensors *t = &trainer->tensors;
	int			inner = a->media_kv.columns / 2;
	AdapterRuns runs = {&trainer->media_run, 1, true, t->media_reduced};

	trainer->media_run = (AdapterRun) {0, t->latents.rows, trainer->parameters.adapter};
	ops->matmul(backend, a->media_kv, t->latents,
				&trainer->model->weights.decoder.layers[layer].gated->to_kv, EPILOGUE_STORE);
	lora_add(trainer->model, &runs, layer, LORA_TO_KV, a->media_kv, t->latents, 1.0f);
	ops->kv_write(backend, &trainer->media, 0, tensor_column_range(a->media_kv, 0, inner),
				  tensor_column_range(a->media_kv, inner, inner), t->media_slots);
}

static void
gated_block_forward(Trainer *trainer, int layer, LayerActivations *a)
{
	const BackendOps *ops = trainer->model->backend->ops;
	DecoderTensors *t = &trainer->tensors.t;
	Tensor		x = tensor_row_range(t->x, 0, trainer->pass.media_rows);

	project_latents(trainer, layer, a);
	ops->copy(trainer->model->backend, a->x_gated, x);
	gated_attention_forward(trainer->model, layer, 0, &trainer->pass.batch, t);
	ops->copy(trainer->model->backend, a->x_ff, x);
	gated_feed_forward(trainer->model, layer, &trainer->pass.batch, t);
}

void
layer_forward(Trainer *trainer, int layer)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	LayerActivations *a = layer_activations(trainer, layer);
	DecoderTensors *t = &trainer->tensors.t;

	t->cross_q = a->cross_q;
	t->cross_attended = a->cross_attended;
	t->cross_ff_input = a->ff_input;
	t->qkv = a->qkv;
	t->attended = a->attended;
	t->gate_up = a->gate_up;
	if (trainer->model->weights.decoder.layers[layer].gated != NULL &&
		trainer->pass.media_rows > 0)
		gated_block_forward(trainer, layer, a);
	ops->copy(backend, a->x_attention, t->x);
	decoder_attention_forward(trainer->model, layer, &trainer->pass.batch, t);
	ops->copy(backend, a->x_mlp, t->x);
	decoder_mlp_forward(trainer->model, layer, &trainer->pass.batch, t);
	if (!layer_is_kept(trainer, layer))
		trainer->layer_in_shared = layer;
}

/* Logits of labels [first, first + count), their losses and their gradients. */
static void
score_labels(Trainer *trainer, int first, int count)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	const DecoderWeights *weights = &trainer->model->weights.decoder;
	PassTensors *t = &trainer->tensors;
	Tensor		x = tensor_row_range(t->head_x, 0, count);
	Tensor		normed = tensor_row_range(t->head_normed, 0, count);
	Tensor		logits = tensor_row_range(t->head_logits, 0, count);

	ops->gather(backend, x, t->t.x, tensor_column_range(t->label_index, first, count));
	ops->rms_norm(backend, normed, x, weights->norm.weight,
				  trainer->model->config.decoder.epsilon);
	ops->matmul(backend, logits, normed, &weights->lm_head, EPILOGUE_STORE);
	ops->cross_entropy(backend, logits, tensor_column_range(t->losses, first, count),
					   tensor_column_range(t->targets, first, count),
					   tensor_column_range(t->weights, first, count));
}

/* From the logits' gradients to those of the rows of x. */
static void
head_backward(Trainer *trainer, int first, int count)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	const DecoderWeights *weights = &trainer->model->weights.decoder;
	PassTensors *t = &trainer->tensors;
	Tensor		d_normed = tensor_row_range(t->head_d_normed, 0, count);
	Tensor		dx = tensor_row_range(t->head_dx, 0, count);

	ops->matmul_backward(backend, d_normed, tensor_row_range(t->head_logits, 0, count),
						 &weights->lm_head, 1.0f, false);
	ops->scale(backend, dx, 0.0f);
	ops->rms_norm_backward(backend, dx, d_normed, tensor_row_range(t->head_x, 0, count),
						   weights->norm.weight, trainer->model->config.decoder.epsilon);
	ops->scatter(backend, t->dx, dx, tensor_column_range(t->label_index, first, count));
}

bool
head_forward(Trainer *trainer, bool backward, Status *status)
{
	const BackendOps *ops = trainer->model->backend->ops;
	const Pass *pass = &trainer->pass;
	float	   *losses = trainer->host_floats;

	if (backward)
		ops->scale(trainer->model->backend, trainer->tensors.dx, 0.0f);
	for (int first = 0; first < pass->labels; first += HEAD_ROWS)
	{
		int			count = pass->labels - first < HEAD_ROWS ? pass->labels - first : HEAD_ROWS;

		score_labels(trainer, first, count);
		if (backward)
			head_backward(trainer, first, count);
	}
	if (!ops->synchronize(trainer->model->backend, status))
		return false;
	ops->download(trainer->model->backend, losses, trainer->tensors.losses.data,
				  (size_t) pass->labels * sizeof(float));
	for (int i = 0; i < pass->labels; i++)
		trainer->loss_sums[i < pass->image_labels ? ROWS_IMAGE : ROWS_LANGUAGE] +=
			(double) losses[i];
	return true;
}
