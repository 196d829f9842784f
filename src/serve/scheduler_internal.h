/*
 * scheduler_internal.h - what the files of the scheduler share.
 *
 *	scheduler.c			lists, admission, forming the batch
 *	scheduler_choose.c	what comes out of a step: tokens and scores
 *	scheduler_beams.c	the same for generations with beams
 */
#ifndef MMGPT_SCHEDULER_INTERNAL_H
#define MMGPT_SCHEDULER_INTERNAL_H

#include "beam_search.h"
#include "media_cache.h"
#include "prefix_cache.h"
#include "scheduler.h"

/* How the tokens of one batch item belong to a generation. */
typedef struct StepPart
{
	Generation *generation;
	int			beam;			/* whose tokens these are; -1: the generation's own */
	int			first_row;		/* of its logits */
	int			rows;
} StepPart;

struct Scheduler
{
	Model	   *model;
	const Tokenizer *tokenizer;
	int			max_running;
	int			max_tokens;		/* of a step */
	int			max_logits;
	int			max_images;
	Generation *waiting;		/* oldest first */
	Generation **waiting_end;
	Generation **running;		/* [max_running] */
	int			running_count;
	int			promised;		/* pages that running beams may still take by forking */
	int			turn;			/* whose prompt goes first in the next step */
	MediaCache *media_cache;
	PrefixCache *prefix_cache;
	uint32_t   *ordinary;		/* bits [V]: tokens that an answer may hold */
	Arena	   *scratch;		/* reset in every step */
	SchedulerCounters counters;

	/* one step */
	StepItem   *items;			/* [max_running + max_logits]: a beam is an item too */
	StepPart   *parts;
	int32_t    *ids;			/* [max_tokens] */
	int			item_count;
	int			token_count;
	int			logit_count;
	ChoiceRule *rules;			/* [max_logits] */
	Choice	   *choices;
};

/* ---- scheduler.c ---- */

/* Take a generation out of the running ones and tell its owner. */
extern void finish_running(Scheduler *scheduler, Generation *generation, Finish how);

/* Tokens that a sequence of the generation can grow to; the last chosen one is never fed. */
extern int	largest_length(const Generation *generation);

/* Put count tokens from place `first` of a text into the batch, with logits for the last ones. */
extern void add_tokens(Scheduler *scheduler, Generation *generation, int beam, int first,
					   int count, int logits);

/* ---- scheduler_choose.c ---- */

/* Choose and score for all rows of the step. */
extern bool choose_all(Scheduler *scheduler, Status *status);

/* Hand each generation what came out for it. */
extern void deliver(Scheduler *scheduler);

/*
 * A chosen <image> changes what earlier tokens attend to: open a sequence anew for the prompt and
 * count tokens, none of them computed.
 */
extern bool reopen_with_mark(Scheduler *scheduler, Generation *generation, const int32_t *tokens,
							 int count, Sequence **sequence);

/* Set the tokens that no_repeat_ngram_size forbids after a text. */
extern void ban_ngrams(Scheduler *scheduler, const Generation *generation, const int32_t *tokens,
					   int count, ChoiceRule *rule);

/* ---- scheduler_beams.c ---- */

/* Pages that the generation's sequences can take beside the first one. */
extern int	beams_extra_pages(const Scheduler *scheduler, const Generation *generation);

/* Whether the prompt was read and the beams are running. */
extern bool beams_running(const Generation *generation);

/* Put all beams into the batch, if there is room for all. */
extern void beams_add(Scheduler *scheduler, Generation *generation);

/* Take a step of the search from the logits beginning at a row. */
extern void beams_advance(Scheduler *scheduler, Generation *generation, int first_row);

/* Close the sequences of all beams. */
extern void beams_close(Scheduler *scheduler, Generation *generation);

#endif
