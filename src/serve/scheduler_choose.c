/*
 * scheduler_choose.c - what comes out of a step: the next token of each answer, and the
 * log-probabilities that scoring generations ask for; see scheduler.h.
 */
#include "scheduler_internal.h"

#include <string.h>

bool
reopen_with_mark(Scheduler *scheduler, Generation *generation, const int32_t *tokens, int count,
				 Sequence **sequence)
{
	int			prompt = generation->prompt_count;
	int			length = prompt + count;
	int32_t    *ids = arena_take_array(generation->arena, (size_t) length, sizeof(int32_t));
	Media	   *media = generation->pictures == NULL ? NULL : generation->pictures->media;

	if (ids == NULL)
		return status_out_of_memory(&generation->status, (size_t) length * sizeof(int32_t));
	memcpy(ids, generation->prompt, (size_t) prompt * sizeof(int32_t));
	memcpy(ids + prompt, tokens, (size_t) count * sizeof(int32_t));
	sequence_close(scheduler->model, *sequence);
	*sequence = sequence_open(scheduler->model, media, generation->adapter, ids, length,
							  &generation->status);
	return *sequence != NULL &&
		sequence_reserve(scheduler->model, *sequence, largest_length(generation),
						 &generation->status);
}

/* Take the token that was chosen; finish the generation if it was the last. */
static void
take_token(Scheduler *scheduler, Generation *generation, Choice choice)
{
	generation->tokens[generation->count] = choice.token;
	generation->log_probabilities[generation->count++] = choice.log_probability;
	scheduler->counters.new_tokens++;
	if (choice.token == generation->eos)
		finish_running(scheduler, generation, FINISH_EOS);
	else if (!generation->allow_special &&
			 generation_stops(generation, scheduler->tokenizer, scheduler->scratch))
		finish_running(scheduler, generation, FINISH_STOP);
	else if (generation->count >= generation->max_tokens)
		finish_running(scheduler, generation, FINISH_LENGTH);
	else if (choice.token == model_config(scheduler->model)->image)
	{
		generation->fed = 0;
		if (!reopen_with_mark(scheduler, generation, generation->tokens, generation->count,
							  &generation->sequence))
			finish_running(scheduler, generation, FINISH_FAILED);
	}
}

void
ban_ngrams(Scheduler *scheduler, const Generation *generation, const int32_t *tokens, int count,
		   ChoiceRule *rule)
{
	int			n = generation->options == NULL ? 0 : generation->options->no_repeat_ngram_size;
	int32_t    *banned;

	if (n == 0)
		return;
	banned = arena_take_array(scheduler->scratch, (size_t) (generation->prompt_count + count),
							  sizeof(int32_t));
	if (banned == NULL)
		return;
	rule->banned = banned;
	rule->banned_count = ngram_banned(generation->prompt, generation->prompt_count, tokens, count,
									  n, banned);
}

/* How the next token of a generation is chosen. */
static ChoiceRule
next_rule(Scheduler *scheduler, const Generation *generation)
{
	ChoiceRule	rule = generation->rule;

	rule.counter = (uint64_t) generation->count;
	rule.allowed = generation->allow_special ? NULL : scheduler->ordinary;
	if (generation->allowed_first != NULL)
		rule.allowed = generation->count == 0 ? generation->allowed_first
											  : generation->allowed_rest;
	ban_ngrams(scheduler, generation, generation->tokens, generation->count, &rule);
	return rule;
}

/* The rule of one row of logits. round numbers the alternatives of the last row. */
static ChoiceRule
row_rule(Scheduler *scheduler, const StepPart *part, int row, int round)
{
	Generation *generation = part->generation;
	ChoiceRule	rule = {.forced = 0, .allowed = NULL};

	if (generation->search != NULL)
		return rule;			/* beams choose for themselves */
	if (!generation->scoring)
		return next_rule(scheduler, generation);
	if (row < generation->chain_count)
		rule.forced = generation->prompt[generation->prompt_count - generation->chain_count + row];
	else
		rule.forced = generation->alternatives[round < generation->alternative_count ? round : 0];
	return rule;
}

/*
 * Choose for all rows; in later rounds only the further alternatives of scoring generations are
 * new.
 */
static bool
choose_round(Scheduler *scheduler, int round, Status *status)
{
	for (int i = 0; i < scheduler->item_count; i++)
		for (int row = 0; row < scheduler->parts[i].rows; row++)
			scheduler->rules[scheduler->parts[i].first_row + row] = row_rule(
				scheduler, &scheduler->parts[i], row, round);
	return model_choose(scheduler->model, scheduler->logit_count, scheduler->rules,
						scheduler->choices, status);
}

/* Note the log-probabilities of one round for a scoring generation. */
static void
take_scores(const Scheduler *scheduler, const StepPart *part, int round)
{
	Generation *generation = part->generation;

	for (int row = 0; row < part->rows; row++)
	{
		double		value = scheduler->choices[part->first_row + row].log_probability;

		if (row < generation->chain_count && round == 0)
			generation->chain += value;
		else if (row >= generation->chain_count && round < generation->alternative_count)
			generation->alternative[round] = value;
	}
}

/* Rounds that the scoring generations of this step need beyond the first. */
static int
further_rounds(const Scheduler *scheduler)
{
	int			rounds = 0;

	for (int i = 0; i < scheduler->item_count; i++)
	{
		const StepPart *part = &scheduler->parts[i];

		if (part->rows > 0 && part->generation->scoring &&
			part->generation->alternative_count - 1 > rounds)
			rounds = part->generation->alternative_count - 1;
	}
	return rounds;
}

static void
score_all(Scheduler *scheduler, int round)
{
	for (int i = 0; i < scheduler->item_count; i++)
		if (scheduler->parts[i].rows > 0 && scheduler->parts[i].generation->scoring)
			take_scores(scheduler, &scheduler->parts[i], round);
}

/* Scores need a choice for each alternative; the tokens of answers come from the first round. */
bool
choose_all(Scheduler *scheduler, Status *status)
{
	int			rounds = further_rounds(scheduler);

	for (int round = rounds; round >= 0; round--)
	{
		if (!choose_round(scheduler, round, status))
			return false;
		score_all(scheduler, round);
	}
	return true;
}

void
deliver(Scheduler *scheduler)
{
	for (int i = 0; i < scheduler->item_count; i++)
	{
		StepPart   *part = &scheduler->parts[i];

		if (part->rows == 0 || part->beam > 0)
			continue;			/* the first beam stands for all of its generation */
		if (part->generation->search != NULL)
			beams_advance(scheduler, part->generation, part->first_row);
		else if (part->generation->scoring)
			finish_running(scheduler, part->generation, FINISH_SCORED);
		else
			take_token(scheduler, part->generation, scheduler->choices[part->first_row]);
	}
}
