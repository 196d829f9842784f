/*
 * scheduler.h - continuous batching: all generations advance together.
 *
 * Each step forms one ragged batch: the next token of every running answer, then pieces of
 * the prompts that still have to be read, as far as the step has room: all of it where no answer
 * is running, and otherwise little enough that each next token comes in time. Sessions take turns,
 * in reading prompts as in being admitted. A generation is admitted when its pages are free, and
 * waits otherwise; one that could never fit fails.
 *
 * The scheduler has no threads and no locks: whoever calls scheduler_step owns it. The
 * server calls it from one thread, the command line from its only one.
 */
#ifndef MMGPT_SCHEDULER_H
#define MMGPT_SCHEDULER_H

#include <stdint.h>

#include "generation.h"
#include "model.h"
#include "tokenizer.h"

typedef struct Scheduler Scheduler;

typedef struct SchedulerOptions
{
	int			max_running;	/* generations at once; 0: 64 */
	/* tokens of prompts in a step beside running answers; 0: by measurement, see step_budget.h */
	int			prompt_chunk;
} SchedulerOptions;

/* Sums since the scheduler was made. */
typedef struct SchedulerCounters
{
	uint64_t	steps;					/* calls of model_step */
	/* generations that took part in a step, summed over steps */
	uint64_t	rows;
	uint64_t	tokens;					/* tokens computed, prompts and answers */
	uint64_t	prompt_tokens;			/* of these, of prompts and scored continuations */
	uint64_t	new_tokens;				/* chosen */
	uint64_t	prompt_tokens_reused;	/* of prompts, whose keys and values were there already */
	uint64_t	images_encoded;
	uint64_t	images_found;			/* requests whose picture was encoded already */
	int			running;				/* now */
	int			waiting;				/* now, for room */
} SchedulerCounters;

extern Scheduler *scheduler_create(Model *model, const Tokenizer *tokenizer,
								   const SchedulerOptions *options, Status *status);
extern void scheduler_free(Scheduler *scheduler);

/*
 * Append a generation that generation_begin made. Its finished function is called in a later step.
 */
extern void scheduler_submit(Scheduler *scheduler, Generation *generation);

/*
 * Give back what the pictures of a request hold on the device. When no generation uses them any
 * more.
 */
extern void scheduler_release_pictures(Scheduler *scheduler, PictureSet *pictures);

/* Whether there is something to do. */
extern bool scheduler_has_work(const Scheduler *scheduler);

/* Do one step. False when there was nothing to do. */
extern bool scheduler_step(Scheduler *scheduler);

extern void scheduler_counters(const Scheduler *scheduler, SchedulerCounters *counters);

/* Pages that a generation needs at most, and all that there are. */
extern int	scheduler_pages(const Scheduler *scheduler);

#endif
