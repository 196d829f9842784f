/*
 * step_budget.c - see step_budget.h.
 */
#include "step_budget.h"

/* A new measurement counts for so much of a mean. */
#define NEW_PART 0.25
/* Steps with prompts after which one without refreshes what answers take. */
#define MOST_MIXED 16

static void
measure(double *mean, double value)
{
	*mean = *mean == 0 ? value : *mean + NEW_PART * (value - *mean);
}

int
budget_prompt_tokens(const StepBudget *budget, int most)
{
	double		tokens = STEP_BUDGET_LEAST;

	if (budget->fixed > 0)
		return budget->fixed < most ? budget->fixed : most;
	if (budget->answers_ns == 0 || budget->mixed >= MOST_MIXED)
		return 0;
	if (budget->token_ns > 0)
		tokens = STEP_BUDGET_STEPS * budget->answers_ns / budget->token_ns;
	if (tokens < STEP_BUDGET_LEAST)
		tokens = STEP_BUDGET_LEAST;
	return tokens < most ? (int) tokens : most;
}

int
budget_pictures(const StepBudget *budget, int most)
{
	double		pictures = 1;

	if (budget->picture_ns > 0)
		pictures = STEP_BUDGET_STEPS * budget->answers_ns / budget->picture_ns;
	if (pictures < 1)
		pictures = 1;
	return pictures < most ? (int) pictures : most;
}

void
budget_count_step(StepBudget *budget, int prompt_tokens, bool answering, uint64_t nanoseconds)
{
	double		rest = (double) nanoseconds - (answering ? budget->answers_ns : 0);

	if (prompt_tokens == 0)
	{
		measure(&budget->answers_ns, (double) nanoseconds);
		budget->mixed = 0;
		return;
	}
	budget->mixed += answering;
	/* a few tokens say more about the clock than about themselves */
	if (prompt_tokens >= STEP_BUDGET_LEAST && rest > 0)
		measure(&budget->token_ns, rest / prompt_tokens);
}

void
budget_count_pictures(StepBudget *budget, int pictures, uint64_t nanoseconds)
{
	if (pictures > 0)
		measure(&budget->picture_ns, (double) nanoseconds / pictures);
}
