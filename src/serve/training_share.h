/*
 * training_share.h - whose turn it is on the model's thread: the training's or the requests'.
 *
 * Requests have a credit of time. It fills while the training computes, by (100 - share) / share
 * of the time that the training took, and what requests compute is taken off it. While there is
 * credit, requests go first. So a session that asks now and then finds credit and is answered
 * almost as on an idle engine, and those who ask without pause get 100 - share percent of the time.
 * At most a second is saved up (or what one slice earned, with a small share), or a training would
 * stand still for long after a quiet time; what requests owe is not bounded, as one step of a large
 * model may take seconds.
 *
 * The training also stands still while a request is read and prepared, or its answer sent: its
 * cores are free for that, and no slice is under way when the request is ready. It does so for a
 * twentieth of its time at most, which is much for those who ask now and then. Those who ask without
 * pause use less than their share, as nothing of them is computed between two requests; so credit
 * would not bound this, and the training would lose the time in between as well.
 *
 * Only arithmetic: no clock, no threads.
 */
#ifndef MMGPT_TRAINING_SHARE_H
#define MMGPT_TRAINING_SHARE_H

#include <stdbool.h>
#include <stdint.h>

/* mmgpt.training_share, where nothing else was said. */
#define TRAINING_SHARE_DEFAULT 50

typedef struct TrainingShare
{
	int			percent;		/* of the time for the training when both have work, 1 .. 99 */
	double		credit_ns;		/* of requests; negative: they had more than their share */
	double		patience_ns;	/* that is left of the training's */
} TrainingShare;

extern void share_begin(TrainingShare *share, int percent);

/* Whether requests have the next turn, where both have work. */
extern bool share_requests_first(const TrainingShare *share);

/*
 * For how many nanoseconds the training may stand still for requests that are still being prepared;
 * 0: it goes on.
 */
extern uint64_t share_patience(const TrainingShare *share);

/* The training stood still for so long. */
extern void share_count_patience(TrainingShare *share, uint64_t nanoseconds);

/* The training computed for so long. */
extern void share_count_training(TrainingShare *share, uint64_t nanoseconds);

/* Requests computed for so long, while the training had work. */
extern void share_count_requests(TrainingShare *share, uint64_t nanoseconds);

#endif
