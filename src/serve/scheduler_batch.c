/*
 * scheduler_batch.c - which tokens a step computes; see scheduler.h.
 *
 * The next token of every running answer goes first, then prompts and continuations that are
 * scored, as far as there is room. Beside running answers that room is bounded (step_budget.h). It
 * is shared among the sessions that have something to be read, in turns: who waited longest for
 * one goes first, so a session with many long prompts takes nothing from another one's share.
 */
#include "scheduler_internal.h"

/* Tokens of prompts that a session gets at least, where it gets any in a step. */
#define LEAST_SHARE STEP_BUDGET_LEAST

/* What follows the prompt in a beam or branch, and the sequence that computes it. */
static const int32_t *
branch_ids(const Generation *generation, int branch, Sequence **sequence)
{
	const Scoring *scoring = generation->scoring;

	if (scoring == NULL)
	{
		*sequence = generation->search->beams[branch].sequence;
		return generation->search->beams[branch].tokens;
	}
	*sequence = scoring->branches[branch].sequence;
	return scoring->continuations[scoring->branches[branch].first].ids;
}

void
add_tokens(Scheduler *scheduler, Generation *generation, int branch, int first, int count,
		   int logits)
{
	Sequence   *sequence = generation->sequence;
	const int32_t *tokens = branch < 0 ? generation->tokens
									   : branch_ids(generation, branch, &sequence);
	int32_t    *ids = scheduler->ids + scheduler->token_count;
	int			n = scheduler->item_count;

	for (int i = 0; i < count; i++)
	{
		int			place = first + i - generation->prompt_count;

		ids[i] = place < 0 ? generation->prompt[first + i] : tokens[place];
	}
	scheduler->items[n] = (StepItem) {sequence, ids, count, logits};
	scheduler->parts[n] = (StepPart) {
		generation, n == 0 || scheduler->parts[n - 1].generation != generation, branch,
		scheduler->logit_count, logits
	};
	scheduler->item_count++;
	scheduler->token_count += count;
	scheduler->logit_count += logits;
}

/* Put up to room tokens of a generation into the batch. */
static void
add_item(Scheduler *scheduler, Generation *generation, int room)
{
	int			left = generation_length(generation) - generation->fed;
	int			count = left < room ? left : room;
	bool		wanted = generation->scoring == NULL || generation->scoring->after_prompt;
	int			logits = count == left && wanted ? 1 : 0;

	if (count < 1 || scheduler->logit_count + logits > scheduler->max_logits)
		return;
	add_tokens(scheduler, generation, -1, generation->fed, count, logits);
}

/* ---- whose prompts ---- */

/* Tokens that are to be read, which nobody waits for one by one: of a prompt, or of branches. */
static int
tokens_to_read(const Generation *generation)
{
	int			left = generation_length(generation) - generation->fed;

	if (scores_running(generation))
		return scores_left(generation);
	return beams_running(generation) || left == 1 ? 0 : left;
}

/* The claim of the generation's session; NULL: it has none. */
static PromptClaim *
find_claim(Scheduler *scheduler, const Generation *generation)
{
	for (int i = 0; i < scheduler->claim_count; i++)
		if (scheduler->claims[i].session == generation->session)
			return &scheduler->claims[i];
	return NULL;
}

/* Add to the claim of a generation's session, which may be new. */
static void
add_claim(Scheduler *scheduler, const Generation *generation, int tokens)
{
	PromptClaim *claim = find_claim(scheduler, generation);

	if (claim == NULL)
	{
		claim = &scheduler->claims[scheduler->claim_count++];
		*claim = (PromptClaim) {.session = generation->session};
	}
	claim->wanted += tokens;
}

/* List what each session has to be read, who waited longest for a share first. */
static void
list_claims(Scheduler *scheduler)
{
	scheduler->claim_count = 0;
	for (int i = 0; i < scheduler->running_count; i++)
	{
		int			tokens = tokens_to_read(scheduler->running[i]);

		if (tokens > 0)
			add_claim(scheduler, scheduler->running[i], tokens);
	}
	for (int i = 0; i < scheduler->running_count; i++)
	{
		PromptClaim *claim = find_claim(scheduler, scheduler->running[i]);

		if (claim != NULL && scheduler->running[i]->last_share > claim->last_share)
			claim->last_share = scheduler->running[i]->last_share;
	}
	for (int i = 1; i < scheduler->claim_count; i++)
	{
		PromptClaim claim = scheduler->claims[i];
		int			j = i;

		for (; j > 0 && scheduler->claims[j - 1].last_share > claim.last_share; j--)
			scheduler->claims[j] = scheduler->claims[j - 1];
		scheduler->claims[j] = claim;
	}
}

/* Give the claims equal shares of the room, and what some leave to others, in their order. */
static void
share_room(Scheduler *scheduler, int room)
{
	int			share = scheduler->claim_count > 0 ? room / scheduler->claim_count : 0;

	if (share < LEAST_SHARE)
		share = LEAST_SHARE;
	for (int round = 0; round < 2; round++)
		for (int i = 0; i < scheduler->claim_count; i++)
		{
			PromptClaim *claim = &scheduler->claims[i];
			int			more = claim->wanted - claim->given;

			if (round == 0 && more > share)
				more = share;
			if (more > room)
				more = room;
			claim->given += more;
			room -= more;
		}
}

/* Read prompts and branches, each session within what it was given, oldest first. */
static void
add_prompts(Scheduler *scheduler)
{
	for (int i = 0; i < scheduler->running_count; i++)
	{
		Generation *generation = scheduler->running[i];
		PromptClaim *claim = find_claim(scheduler, generation);
		int			before = scheduler->token_count;

		if (claim == NULL || claim->given == 0)
			continue;
		generation->last_share = scheduler->counters.steps + 1;
		if (scores_running(generation))
			scores_add(scheduler, generation, claim->given);
		else if (tokens_to_read(generation) > 0)
			add_item(scheduler, generation, claim->given);
		claim->given -= scheduler->token_count - before;
	}
}

/* ---- the batch ---- */

bool
is_answering(const Generation *generation)
{
	return beams_running(generation) ||
		(!scores_running(generation) && generation_length(generation) - generation->fed == 1);
}

/* Tokens of prompts that the step may take, after those of answers. */
static int
prompt_room(const Scheduler *scheduler)
{
	int			room = scheduler->max_tokens - scheduler->token_count;

	if (!scheduler->answering)
		return room;
	room = budget_prompt_tokens(&scheduler->budget, room);
	return scheduler->encoding && room > STEP_BUDGET_LEAST ? STEP_BUDGET_LEAST : room;
}

void
form_batch(Scheduler *scheduler)
{
	int			count = scheduler->running_count;

	scheduler->item_count = 0;
	scheduler->token_count = 0;
	scheduler->logit_count = 0;
	for (int i = 0; i < count; i++)
	{
		uint32_t	place = (scheduler->turn + (uint32_t) i) % (uint32_t) count;
		Generation *generation = scheduler->running[place];

		if (beams_running(generation))
			beams_add(scheduler, generation);
		else if (is_answering(generation))
			add_item(scheduler, generation, scheduler->max_tokens - scheduler->token_count);
	}
	scheduler->turn++;
	scheduler->answering = scheduler->item_count > 0;
	scheduler->answer_tokens = scheduler->token_count;
	list_claims(scheduler);
	share_room(scheduler, prompt_room(scheduler));
	add_prompts(scheduler);
}
