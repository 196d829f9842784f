/*
 * scoring.c - see scoring.h.
 */
#include "scoring.h"

#include <string.h>

/* Whether both are computed by the same sequence. */
static bool
same_branch(const Continuation *a, const Continuation *b)
{
	return a->count == b->count && a->scored == b->scored &&
		memcmp(a->ids, b->ids, (size_t) (a->count - 1) * sizeof(int32_t)) == 0;
}

/* Put a continuation of several tokens into the last branch, or a new one. */
static void
add_to_branch(Scoring *scoring, int i)
{
	const Continuation *continuation = &scoring->continuations[i];
	Branch	   *last = scoring->branch_count == 0 ? NULL
												  : &scoring->branches[scoring->branch_count - 1];

	if (last != NULL && last->first + last->count == i &&
		same_branch(&scoring->continuations[last->first], continuation))
	{
		last->count++;
		return;
	}
	scoring->branches[scoring->branch_count++] = (Branch) {.first = i, .count = 1};
	if (continuation->count - 1 > scoring->longest)
		scoring->longest = continuation->count - 1;
}

bool
scoring_begin(Scoring *scoring, Continuation *continuations, int count, Arena *arena,
			  Status *status)
{
	memset(scoring, 0, sizeof(*scoring));
	scoring->continuations = continuations;
	scoring->count = count;
	scoring->branches = arena_take_array(arena, (size_t) count, sizeof(Branch));
	if (scoring->branches == NULL)
		return status_out_of_memory(status, (size_t) count * sizeof(Branch));
	for (int i = 0; i < count; i++)
	{
		Continuation *continuation = &continuations[i];

		if (continuation->count < 1 || continuation->scored < 1 ||
			continuation->scored > continuation->count)
			return status_set(status, STATUS_INTERNAL, "continuation %d of %d tokens, %d scored", i,
							  continuation->count, continuation->scored);
		continuation->sum = 0;
		scoring->after_prompt |= continuation->scored == continuation->count;
		if (continuation->count > 1)
			add_to_branch(scoring, i);
	}
	return true;
}

int
branch_tokens(const Scoring *scoring, const Branch *branch)
{
	return scoring->continuations[branch->first].count - 1;
}

int
branch_logits(const Scoring *scoring, const Branch *branch, int count)
{
	const Continuation *continuation = &scoring->continuations[branch->first];
	/* the logits of token i are of token i + 1 */
	int			without = continuation->count - 1 - continuation->scored;
	int			logits = count - (without > branch->fed ? without - branch->fed : 0);

	return logits > 0 ? logits : 0;
}
