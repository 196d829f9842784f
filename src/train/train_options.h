/*
 * train_options.h - how an adapter is trained: JSON in, checked numbers out.
 */
#ifndef MMGPT_TRAIN_OPTIONS_H
#define MMGPT_TRAIN_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* How the learning rate goes on after its linear warm-up. */
typedef enum TrainSchedule
{
	SCHEDULE_COSINE,			/* half a cosine down to 0 */
	SCHEDULE_LINEAR,			/* a line down to 0 */
	SCHEDULE_CONSTANT
} TrainSchedule;

typedef struct TrainOptions
{
	/* 0 where it was not given: the initial adapter's, else 16, 16 and the released set */
	int			r;				/* rank of the adapter */
	double		alpha;			/* the adapter counts alpha / r times */
	unsigned	targets;		/* bits 1 << LoraTarget */

	double		learning_rate;	/* at the end of the warm-up */
	double		weight_decay;	/* of the gated blocks' matrices */
	int			warmup_steps;	/* optimizer steps; the first has rate 0 */
	TrainSchedule schedule;
	double		clip;			/* largest norm of the gradients */
	int			accumulation;	/* micro steps of one optimizer step */
	int			batch_size;		/* rows of each kind in a micro step */
	int			epochs;			/* times that the longer of the two streams of rows passes by */
	int			micro_steps;	/* instead of epochs; 0: by epochs */
	bool		shuffle;
	uint64_t	seed;			/* of shuffling, of the first values and of the rows held out */
	int			max_length;		/* tokens of a row, cut there */
	double		validation;		/* share of rows that are held out and not trained on */
	/* validations without a better one that end the training; 0: off. Needs validation */
	int			early_stopping;
	bool		skip_unusable;	/* leave unusable rows out; false: the first one ends the run */
} TrainOptions;

extern void train_options_defaults(TrainOptions *options);

/*
 * Override options by a JSON object: the fields' names, target_modules for targets and
 * "unusable": "skip" or "fail". length 0: nothing. STATUS_INVALID_ARGUMENT names an
 * unknown key, or key, value and range; STATUS_INVALID_JSON when it is not a JSON object.
 */
extern bool train_options_read(const char *json, size_t length, TrainOptions *options,
							   Status *status);

#endif
