/*
 * scoring.h - continuations of one prompt whose log-probabilities are wanted.
 *
 * The prompt is computed once. Its last row of logits gives the log-probability of every first
 * token; what follows is computed by one sequence for each continuation, forked from the prompt's,
 * whose pages they all share, and as many of them as a step has room for go into one batch. A
 * continuation's last token is never computed, only looked up, so those that differ in
 * nothing else share a sequence: a branch. This file plans; scheduler_scores.c computes.
 */
#ifndef MMGPT_SCORING_H
#define MMGPT_SCORING_H

#include <stdbool.h>
#include <stdint.h>

#include "arena.h"
#include "model.h"
#include "status.h"

/* Branches of one scoring that have a sequence at the same time, at most. */
#define SCORING_MAX_OPEN 32

/* One way to go on after the prompt. */
typedef struct Continuation
{
	const int32_t *ids;			/* [count] */
	int			count;			/* 1 or more */
	/* the log-probabilities of the last `scored` of them are wanted, 1 .. count */
	int			scored;
	/*
	 * [count] tokens to be scored instead of the ids that are computed, negative: none there; NULL:
	 * the ids. Only where no other continuation begins alike
	 */
	const int32_t *targets;
	double		sum;			/* of these log-probabilities */
	bool		best;			/* no scored token was other than the best; see compared */
} Continuation;

/* Continuations of the same length and scored tokens that differ in the last token only. */
typedef struct Branch
{
	int			first;			/* its first continuation; the others follow it */
	int			count;
	Sequence   *sequence;		/* the scheduler's; NULL before and after */
	int			fed;			/* of its tokens but the last, given to the model */
} Branch;

typedef struct Scoring
{
	Continuation *continuations;
	int			count;
	Branch	   *branches;		/* of continuations of more than one token */
	int			branch_count;
	int			longest;		/* tokens of a branch that are computed, at most */
	int			done;			/* branches that are complete; they complete in order */
	bool		after_prompt;	/* some first token counts: the prompt's last logits are wanted */
	bool		compared;		/* scored tokens are compared with those of greedy decoding */
} Scoring;

/*
 * Plan the scoring of continuations, whose sums become 0. They and their ids are not copied.
 */
extern bool scoring_begin(Scoring *scoring, Continuation *continuations, int count, Arena *arena,
						  Status *status);

/* Tokens of a branch that are computed: all but the last. */
extern int	branch_tokens(const Scoring *scoring, const Branch *branch);

/*
 * How many of a branch's next `count` computed tokens have logits that are wanted; they are the
 * last ones.
 */
extern int	branch_logits(const Scoring *scoring, const Branch *branch, int count);

#endif
