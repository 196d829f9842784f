/*
 * scheduler_choose.c - what comes out of a step: the next token of each answer; see
 * scheduler.h.
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
			 (generation_stops(generation, generation->tokens, generation->count,
							   scheduler->tokenizer, scheduler->scratch) ||
			  generation_has_enough(generation, scheduler->tokenizer, scheduler->scratch)))
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

bool
choose_all(Scheduler *scheduler, Status *status)
{
	bool		any = false;

	for (int i = 0; i < scheduler->item_count; i++)
	{
		const StepPart *part = &scheduler->parts[i];
		Generation *generation = part->generation;
		bool		chosen = generation->scoring == NULL ? generation->search == NULL
													 : generation->scoring->compared;

		for (int row = part->first_row; row < part->first_row + part->rows; row++)
		{
			scheduler->rules[row] = (ChoiceRule) {.skipped = true};
			if (chosen)
				scheduler->rules[row] = next_rule(scheduler, generation);
			any = any || chosen;
		}
	}
	if (any && !model_choose(scheduler->model, scheduler->logit_count, scheduler->rules,
							 scheduler->choices, status))
		return false;
	return scores_take(scheduler, status);
}

void
deliver(Scheduler *scheduler)
{
	for (int i = 0; i < scheduler->item_count; i++)
	{
		StepPart   *part = &scheduler->parts[i];

		/* a generation may be gone after its first part */
		if (!part->first)
			continue;
		if (part->generation->scoring != NULL)
			scores_advance(scheduler, part->generation);
		else if (part->rows == 0)
			continue;
		else if (part->generation->search != NULL)
			beams_advance(scheduler, part->generation, part->first_row);
		else
			take_token(scheduler, part->generation, scheduler->choices[part->first_row]);
	}
}
