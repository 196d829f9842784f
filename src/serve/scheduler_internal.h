/*
 * scheduler_internal.h - what the files of the scheduler share.
 *
 *	scheduler.c			lists, admission, steps
 *	scheduler_batch.c	which tokens a step computes
 *	scheduler_choose.c	what comes out of a step: tokens
 *	scheduler_beams.c	the same for generations with beams
 *	scheduler_scores.c	the same for generations that score continuations
 */
#ifndef MMGPT_SCHEDULER_INTERNAL_H
#define MMGPT_SCHEDULER_INTERNAL_H

#include "beam_search.h"
#include "media_cache.h"
#include "prefix_cache.h"
#include "scheduler.h"
#include "scoring.h"
#include "step_budget.h"

/* How the tokens of one batch item belong to a generation, whose items follow one another. */
typedef struct StepPart
{
	Generation *generation;
	bool		first;			/* of its generation in this step */
	int			branch;			/* beam or branch whose tokens these are; -1: its own */
	int			first_row;		/* of its logits */
	int			rows;
} StepPart;

/* What a session has to be read in the next step. */
typedef struct PromptClaim
{
	uint64_t	session;
	uint64_t	last_share;		/* step in which it was given some, or its newest one came */
	int			wanted;			/* tokens */
	int			given;
} PromptClaim;

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
	int			promised;		/* pages that beams and branches may still take by forking */
	uint32_t	turn;			/* whose answer goes first in the next step */
	StepBudget	budget;
	MediaCache *media_cache;
	PrefixCache *prefix_cache;
	uint32_t   *ordinary;		/* bits [V]: tokens that an answer may hold */
	Arena	   *scratch;		/* reset in every step */
	SchedulerCounters counters;

	/* one step */
	StepItem   *items;			/* [max_running + max_logits]: a beam or branch is one too */
	StepPart   *parts;
	int32_t    *ids;			/* [max_tokens] */
	int			item_count;
	int			token_count;
	int			logit_count;
	bool		answering;		/* tokens of answers are in it */
	int			answer_tokens;	/* these */
	bool		encoding;		/* pictures were encoded before it */
	PromptClaim *claims;		/* [max_running] */
	int			claim_count;
	ChoiceRule *rules;			/* [max_logits] */
	Choice	   *choices;
};

/* ---- scheduler.c ---- */

/* Take a generation out of the running ones and tell its owner. */
extern void finish_running(Scheduler *scheduler, Generation *generation, Finish how);

/* Tokens that a sequence of the generation can grow to; the last chosen one is never fed. */
extern int	largest_length(const Generation *generation);

/* ---- scheduler_batch.c ---- */

/* Next tokens of running answers first, then prompts and branches as far as there is room. */
extern void form_batch(Scheduler *scheduler);

/* Whether somebody waits for the generation's next token, one after another. */
extern bool is_answering(const Generation *generation);

/*
 * Put count tokens from place `first` of prompt and branch (-1: prompt and answer) into the batch,
 * with logits for the last ones.
 */
extern void add_tokens(Scheduler *scheduler, Generation *generation, int branch, int first,
					   int count, int logits);

/* ---- scheduler_choose.c ---- */

/* Choose and score for all rows of the step that ask for it. */
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

/* ---- scheduler_scores.c ---- */

/* Pages that the generation's branches can take beside the prompt. */
extern int	scores_extra_pages(const Scheduler *scheduler, const Generation *generation);

/* Whether the prompt was computed and branches are next. */
extern bool scores_running(const Generation *generation);

/* Fork sequences for the next branches of all generations that have come so far. */
extern void scores_open(Scheduler *scheduler);

/* Tokens of the open branches that were not computed yet. */
extern int	scores_left(const Generation *generation);

/* Put up to room tokens of the open branches into the batch. */
extern void scores_add(Scheduler *scheduler, Generation *generation, int room);

/* Add to the sums of all continuations what the step tells about them. */
extern bool scores_take(Scheduler *scheduler, Status *status);

/* Close the branches that are complete; finish the generation with the last one. */
extern void scores_advance(Scheduler *scheduler, Generation *generation);

/* Close the sequences of all branches. */
extern void scores_close(Scheduler *scheduler, Generation *generation);

#endif
