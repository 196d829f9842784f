/*
 * scheduler_scores.c - generations that score continuations: one sequence for each branch, forked
 * from the prompt's; see scoring.h.
 *
 * Branches are opened and completed in order. Those that are open go into the batch as far as it
 * has room, so a step computes many of them together, and what does not fit waits for the next
 * one. A sum is made of the same log-probabilities in the same order however the tokens were
 * cut into steps.
 */
#include "scheduler_internal.h"

/* Pages that one branch takes beside the full ones of the prompt. */
static int
branch_pages(const Scheduler *scheduler, const Generation *generation)
{
	int			longest = generation->prompt_count + generation->scoring->longest;

	return model_pages_for(scheduler->model, longest) - generation->prompt_count / KV_PAGE_KEYS;
}

/* Branches that are open at once: as many as all pages allow, at least one. */
static int
most_open(const Scheduler *scheduler, const Generation *generation)
{
	int			prompt = model_pages_for(scheduler->model, generation->prompt_count);
	int			fit = (scheduler_pages(scheduler) - prompt) / branch_pages(scheduler, generation);
	int			most = generation->scoring->branch_count;

	if (most > SCORING_MAX_OPEN)
		most = SCORING_MAX_OPEN;
	if (most > fit)
		most = fit;
	return most > 1 ? most : 1;
}

int
scores_extra_pages(const Scheduler *scheduler, const Generation *generation)
{
	if (generation->scoring == NULL || generation->scoring->branch_count == 0)
		return 0;
	return most_open(scheduler, generation) * branch_pages(scheduler, generation);
}

bool
scores_running(const Generation *generation)
{
	return generation->scoring != NULL && generation->fed == generation->prompt_count;
}

/* Give a branch its sequence. */
static bool
open_branch(Scheduler *scheduler, Generation *generation, Branch *branch)
{
	int			length = generation->prompt_count + branch_tokens(generation->scoring, branch);

	branch->sequence = sequence_fork(scheduler->model, generation->sequence, &generation->status);
	return branch->sequence != NULL &&
		sequence_reserve(scheduler->model, branch->sequence, length, &generation->status);
}

static bool
open_branches(Scheduler *scheduler, Generation *generation)
{
	Scoring    *scoring = generation->scoring;
	int			last;

	if (scoring->done == scoring->branch_count)
		return true;
	last = scoring->done + most_open(scheduler, generation);
	for (int i = scoring->done; i < last && i < scoring->branch_count; i++)
		if (scoring->branches[i].sequence == NULL &&
			!open_branch(scheduler, generation, &scoring->branches[i]))
			return false;
	return true;
}

void
scores_open(Scheduler *scheduler)
{
	for (int i = scheduler->running_count - 1; i >= 0; i--)
	{
		Generation *generation = scheduler->running[i];

		if (scores_running(generation) && !open_branches(scheduler, generation))
			finish_running(scheduler, generation, FINISH_FAILED);
	}
}

int
scores_left(const Generation *generation)
{
	const Scoring *scoring = generation->scoring;
	int			left = 0;

	for (int i = scoring->done; i < scoring->branch_count; i++)
	{
		if (scoring->branches[i].sequence == NULL)
			break;
		left += branch_tokens(scoring, &scoring->branches[i]) - scoring->branches[i].fed;
	}
	return left;
}

void
scores_add(Scheduler *scheduler, Generation *generation, int room)
{
	const Scoring *scoring = generation->scoring;

	for (int i = scoring->done; i < scoring->branch_count; i++)
	{
		const Branch *branch = &scoring->branches[i];
		int			left = branch_tokens(scoring, branch) - branch->fed;
		int			count = left < room ? left : room;
		int			surplus = branch_logits(scoring, branch, count) + scheduler->logit_count -
			scheduler->max_logits;

		if (surplus > 0)
			count -= surplus;
		if (branch->sequence == NULL || count < 1)
			return;
		add_tokens(scheduler, generation, i, generation->prompt_count + branch->fed, count,
				   branch_logits(scoring, branch, count));
		room -= count;
		if (count < left)
			return;
	}
}

/* ---- sums ---- */

/* Continuations that count the same log-probability. */
typedef struct ScoreUsers
{
	Continuation *first;
	int			count;
} ScoreUsers;

/* Log-probabilities that a step reads. */
typedef struct ScoreList
{
	ScoreTarget *targets;
	ScoreUsers *users;
	float	   *values;
	int			count;
} ScoreList;

static void
add_target(ScoreList *list, int row, int place, Continuation *first, int count)
{
	int32_t		token = first->targets != NULL ? first->targets[place] : first->ids[place];

	if (token < 0)
		return;
	list->targets[list->count] = (ScoreTarget) {row, token};
	list->users[list->count++] = (ScoreUsers) {first, count};
}

/* What the logits behind the prompt tell: all first tokens that count. */
static void
add_first_tokens(ScoreList *list, const StepPart *part)
{
	Scoring    *scoring = part->generation->scoring;

	for (int i = 0; i < scoring->count; i++)
		if (scoring->continuations[i].scored == scoring->continuations[i].count)
			add_target(list, part->first_row, 0, &scoring->continuations[i], 1);
}

/* What the rows of a branch tell: tokens that its continuations share, and the last of each. */
static void
add_branch_tokens(ScoreList *list, const StepPart *part)
{
	Scoring    *scoring = part->generation->scoring;
	const Branch *branch = &scoring->branches[part->branch];
	Continuation *first = &scoring->continuations[branch->first];

	for (int i = 0; i < part->rows; i++)
	{
		int			place = branch->fed - part->rows + i + 1;

		if (place < first->count - 1)
			add_target(list, part->first_row + i, place, first, branch->count);
		else
			for (int j = 0; j < branch->count; j++)
				add_target(list, part->first_row + i, place, &first[j], 1);
	}
}

/* Log-probabilities that a part reads, at most. */
static int
count_targets(const StepPart *part)
{
	const Scoring *scoring = part->generation->scoring;

	if (scoring == NULL || part->rows == 0)
		return 0;
	return part->branch < 0 ? scoring->count
							: part->rows + scoring->branches[part->branch].count;
}

/* All that this step's rows tell about continuations. */
static bool
list_targets(Scheduler *scheduler, ScoreList *list, Status *status)
{
	size_t		most = 0;

	for (int i = 0; i < scheduler->item_count; i++)
		most += (size_t) count_targets(&scheduler->parts[i]);
	*list = (ScoreList) {NULL};
	if (most == 0)
		return true;
	list->targets = arena_take_array(scheduler->scratch, most, sizeof(ScoreTarget));
	list->users = arena_take_array(scheduler->scratch, most, sizeof(ScoreUsers));
	list->values = arena_take_array(scheduler->scratch, most, sizeof(float));
	if (list->targets == NULL || list->users == NULL || list->values == NULL)
		return status_out_of_memory(status, most * sizeof(ScoreUsers));
	for (int i = 0; i < scheduler->item_count; i++)
	{
		const StepPart *part = &scheduler->parts[i];

		if (count_targets(part) == 0)
			continue;
		if (part->branch < 0)
			add_first_tokens(list, part);
		else
			add_branch_tokens(list, part);
	}
	return true;
}

bool
scores_take(Scheduler *scheduler, Status *status)
{
	ScoreList	list;

	if (!list_targets(scheduler, &list, status) ||
		!model_score(scheduler->model, list.targets, list.count, list.values, status))
		return false;
	for (int i = 0; i < list.count; i++)
		for (int j = 0; j < list.users[i].count; j++)
		{
			Continuation *user = &list.users[i].first[j];

			user->sum += (double) list.values[i];
			/* rows that nothing is compared with have no choice, and nobody reads this */
			user->best = user->best &&
				scheduler->choices[list.targets[i].row].token == list.targets[i].token;
		}
	return true;
}

/* ---- closing ---- */

static void
close_branch(Scheduler *scheduler, Branch *branch)
{
	sequence_close(scheduler->model, branch->sequence);
	branch->sequence = NULL;
}

void
scores_close(Scheduler *scheduler, Generation *generation)
{
	for (int i = 0; generation->scoring != NULL && i < generation->scoring->branch_count; i++)
		close_branch(scheduler, &generation->scoring->branches[i]);
}

void
scores_advance(Scheduler *scheduler, Generation *generation)
{
	Scoring    *scoring = generation->scoring;

	while (scoring->done < scoring->branch_count)
	{
		Branch	   *branch = &scoring->branches[scoring->done];

		if (branch->fed < branch_tokens(scoring, branch))
			return;
		close_branch(scheduler, branch);
		scoring->done++;
	}
	if (scores_running(generation))
		finish_running(scheduler, generation, FINISH_SCORED);
}
