/*
 * optimizer.c - norm, clipping, learning rate and AdamW, as the original's training loop uses
 * PyTorch's (golden README, Facts 6).
 */
#include <math.h>

#include "trainer_internal.h"

/* The original's, which are PyTorch's defaults. */
#define ADAM_BETA1 0.9
#define ADAM_BETA2 0.999
#define ADAM_EPSILON 1e-8f
/* What torch.nn.utils.clip_grad_norm_ adds to the norm. */
#define CLIP_EPSILON 1e-6

double
schedule_learning_rate(const TrainOptions *options, int64_t step, int64_t total)
{
	int64_t		warmup = options->warmup_steps;
	double		rest = (double) (total - warmup > 1 ? total - warmup : 1);
	double		factor = 1;

	/* the schedules of transformers' optimization.py */
	if (step < warmup)
		factor = (double) step / (double) warmup;
	else if (options->schedule == SCHEDULE_COSINE)
		factor = 0.5 * (1 + cos(M_PI * (double) (step - warmup) / rest));
	else if (options->schedule == SCHEDULE_LINEAR)
		factor = (double) (total - step) / rest;
	return options->learning_rate * (factor > 0 ? factor : 0);
}

bool
optimizer_clip(Trainer *trainer, Status *status)
{
	LoraParameters *p = &trainer->parameters;
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	double		sum = 0;
	double		factor;

	ops->square_sums(backend, p->sums, p->gradient);
	if (!ops->synchronize(backend, status))
		return false;
	ops->download(backend, p->host_sums, p->sums.data, (size_t) p->rows * sizeof(float));
	for (int i = 0; i < p->rows; i++)
		sum += (double) p->host_sums[i];
	trainer->report.gradient_norm = sqrt(sum);
	if (!isfinite(sum))
	{
		status_set(status, STATUS_INVALID_ARGUMENT,
				   "the gradients of micro step %d are not finite", trainer->micro_step + 1);
		return status_hint(status, "The training diverged: lower learning_rate.");
	}
	factor = trainer->options.clip / (trainer->report.gradient_norm + CLIP_EPSILON);
	if (factor < 1)
		ops->scale(backend, p->gradient, (float) factor);
	return true;
}

/* AdamW over some rows of the flat tensors. */
static void
step_rows(Trainer *trainer, int first, int count, const AdamwRule *rule)
{
	const LoraParameters *p = &trainer->parameters;

	if (count > 0)
		trainer->model->backend->ops->adamw(trainer->model->backend,
											tensor_row_range(p->values, first, count),
											tensor_row_range(p->gradient, first, count),
											tensor_row_range(p->mean, first, count),
											tensor_row_range(p->square, first, count), rule);
}

void
optimizer_step(Trainer *trainer)
{
	const LoraParameters *p = &trainer->parameters;
	double		rate = schedule_learning_rate(&trainer->options, trainer->optimizer_steps,
											  trainer->optimizer_total);
	int			t = ++trainer->optimizer_steps;
	AdamwRule	rule = {1.0f, (float) ADAM_BETA1, (float) ADAM_BETA2, ADAM_EPSILON,
		(float) (rate / (1 - pow(ADAM_BETA1, t))), (float) sqrt(1 - pow(ADAM_BETA2, t))};
	AdamwRule	decayed = rule;

	decayed.keep = (float) (1 - rate * trainer->options.weight_decay);
	step_rows(trainer, 0, p->decayed_rows, &decayed);
	step_rows(trainer, p->decayed_rows, p->rows - p->decayed_rows, &rule);
	optimizer_clear_gradients(trainer);
	lora_parameters_publish(trainer);
}

void
optimizer_clear_gradients(Trainer *trainer)
{
	trainer->model->backend->ops->scale(trainer->model->backend, trainer->parameters.gradient,
										0.0f);
}
