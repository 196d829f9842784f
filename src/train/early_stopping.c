/*
 * early_stopping.c - end a training when rows that it does not train on stop to get better.
 *
 * What is compared is the training's own objective over the rows held out: the mean loss of rows
 * with pictures and that of language-only rows, added. The values of the best validation are kept,
 * and are the result, whether the training was stopped or came to its end.
 */
#include <math.h>

#include "trainer_internal.h"

/* The objective over the rows held out. */
static double
validation_loss(const TrainerReport *report)
{
	return (isnan(report->validation_image) ? 0 : report->validation_image) +
		(isnan(report->validation_language) ? 0 : report->validation_language);
}

void
early_stopping_judge(Trainer *trainer)
{
	EarlyStopping *state = &trainer->early;
	LoraParameters *p = &trainer->parameters;
	double		loss = validation_loss(&trainer->report);

	if (trainer->options.early_stopping == 0)
		return;
	if (state->best_micro_step == 0 || loss < state->best_loss)
	{
		trainer->model->backend->ops->copy(trainer->model->backend, p->best, p->values);
		state->best_micro_step = trainer->micro_step;
		state->best_loss = loss;
		state->without = 0;
		return;
	}
	state->without++;
	state->stopped = state->without >= trainer->options.early_stopping;
}

void
early_stopping_finish(Trainer *trainer)
{
	LoraParameters *p = &trainer->parameters;
	int			best = trainer->early.best_micro_step;

	if (best == 0 || best == trainer->micro_step)
		return;
	trainer->model->backend->ops->copy(trainer->model->backend, p->values, p->best);
	lora_parameters_publish(trainer);
}
