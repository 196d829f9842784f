/*
 * step_budget.h - how much a step may do beside running answers, so that each next token comes in
 * time.
 *
 * Reading prompts and encoding pictures are bounded, while somebody's answer is running, by what
 * takes as long as STEP_BUDGET_STEPS steps that only advance answers. What a token of a prompt, a
 * picture and such a step take is measured as they go. How a prompt is cut changes no bit of any
 * result, so the clock may decide it.
 *
 * Only arithmetic: no clock, no threads.
 */
#ifndef MMGPT_STEP_BUDGET_H
#define MMGPT_STEP_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

/* What prompts, and what pictures, may add to a step, in steps of answers alone. */
#define STEP_BUDGET_STEPS 3
/* Tokens of prompts that a step takes in any case: fewer are hardly faster. */
#define STEP_BUDGET_LEAST 16

typedef struct StepBudget
{
	int			fixed;			/* tokens of prompts beside answers; 0: as measured */
	double		answers_ns;		/* of a step that only advances answers; 0: not known */
	double		token_ns;		/* that a token of a prompt adds; 0: not known */
	double		picture_ns;		/* of encoding one; 0: not known */
	int			mixed;			/* steps with prompts beside answers since one without */
} StepBudget;

/*
 * Tokens of prompts that go into a step beside running answers, `most` at most. 0: the step is to
 * show what answers alone take.
 */
extern int	budget_prompt_tokens(const StepBudget *budget, int most);

/* Pictures that are encoded at once beside running answers, 1 to `most`. */
extern int	budget_pictures(const StepBudget *budget, int most);

/* A step with so many tokens of prompts took so long; answering: it advanced answers too. */
extern void budget_count_step(StepBudget *budget, int prompt_tokens, bool answering,
							  uint64_t nanoseconds);

/* So many pictures took so long. */
extern void budget_count_pictures(StepBudget *budget, int pictures, uint64_t nanoseconds);

#endif
