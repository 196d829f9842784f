/*
 * beam_search.c - see beam_search.h.
 */
#include "beam_search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Beams with room for all tokens that they can get. */
static Beam *
take_beams(BeamSearch *search)
{
	Beam	   *beams = arena_take_array(search->arena, (size_t) search->width, sizeof(Beam));

	for (int i = 0; beams != NULL && i < search->width; i++)
	{
		beams[i].tokens = arena_take_array(search->arena, (size_t) search->max_tokens,
										   sizeof(int32_t));
		beams[i].log_probabilities = arena_take_array(search->arena, (size_t) search->max_tokens,
													  sizeof(float));
		if (beams[i].tokens == NULL || beams[i].log_probabilities == NULL)
			return NULL;
	}
	return beams;
}

bool
beam_search_begin(BeamSearch *search, const RequestOptions *options, int prompt_count,
				  int max_tokens, int32_t eos, Arena *arena, Status *status)
{
	memset(search, 0, sizeof(*search));
	search->width = options->num_beams;
	search->prompt_count = prompt_count;
	search->max_tokens = max_tokens;
	search->eos = eos;
	search->length_penalty = options->length_penalty;
	search->early_stopping = options->early_stopping;
	search->arena = arena;
	search->beam_count = 1;
	search->beams = take_beams(search);
	search->next = take_beams(search);
	search->finished = arena_take_array(arena, (size_t) search->width + 1, sizeof(Hypothesis));
	if (search->beams != NULL && search->next != NULL && search->finished != NULL)
		return true;
	return status_out_of_memory(status, (size_t) search->width * (size_t) max_tokens * 8);
}

static double
score_of(const BeamSearch *search, double sum, int count)
{
	return sum / pow(search->prompt_count + count, search->length_penalty);
}

static int
worst_finished(const BeamSearch *search)
{
	int			worst = 0;

	for (int i = 1; i < search->finished_count; i++)
		if (search->finished[i].score < search->finished[worst].score)
			worst = i;
	return worst;
}

/* Copy a beam and, where there is one, its last token into a finished answer. */
static bool
copy_answer(BeamSearch *search, const Beam *beam, const BeamCandidate *last, Hypothesis *answer,
			Status *status)
{
	size_t		room = (size_t) beam->count + 1;
	size_t		count = (size_t) beam->count;

	answer->tokens = arena_take_array(search->arena, room, sizeof(int32_t));
	answer->log_probabilities = arena_take_array(search->arena, room, sizeof(float));
	if (answer->tokens == NULL || answer->log_probabilities == NULL)
		return status_out_of_memory(status, room * sizeof(int32_t));
	memcpy(answer->tokens, beam->tokens, count * sizeof(int32_t));
	memcpy(answer->log_probabilities, beam->log_probabilities, count * sizeof(float));
	if (last == NULL)
		return true;
	answer->tokens[count] = last->token;
	answer->log_probabilities[count] = last->log_probability;
	return true;
}

/*
 * Keep a beam that is finished, last being the token that ends it (NULL: the length does), if it is
 * among the best `width`.
 */
static bool
add_finished(BeamSearch *search, const Beam *beam, const BeamCandidate *last, Finish finish,
			 Status *status)
{
	int			count = beam->count + (finish == FINISH_STOP ? 1 : 0);
	double		score = score_of(search, last == NULL ? beam->sum : last->score, count);
	Hypothesis *place = &search->finished[search->finished_count];

	if (search->finished_count == search->width)
	{
		place = &search->finished[worst_finished(search)];
		if (score <= place->score)
			return true;
	}
	else
		search->finished_count++;
	place->count = count;
	place->finish = finish;
	place->score = score;
	return copy_answer(search, beam, last, place, status);
}

/* Whether no running beam can become better than the worst finished answer. */
static bool
is_done(const BeamSearch *search, double best_sum, int count)
{
	if (search->finished_count < search->width)
		return false;
	return search->early_stopping ||
		search->finished[worst_finished(search)].score >= score_of(search, best_sum, count);
}

bool
beam_search_take(BeamSearch *search, const BeamCandidate *candidates, int count, Status *status)
{
	int			length = search->beams[0].count + 1;
	Beam	   *old = search->beams;
	int			kept = 0;

	for (int rank = 0; rank < count && kept < search->width; rank++)
	{
		const BeamCandidate *candidate = &candidates[rank];
		const Beam *parent = &old[candidate->beam];
		Beam	   *beam = &search->next[kept];

		if (candidate->token == search->eos || candidate->stops)
		{
			Finish		finish = candidate->stops ? FINISH_STOP : FINISH_EOS;

			if (rank < search->width && !add_finished(search, parent, candidate, finish, status))
				return false;
			continue;
		}
		memcpy(beam->tokens, parent->tokens, (size_t) parent->count * sizeof(int32_t));
		memcpy(beam->log_probabilities, parent->log_probabilities,
			   (size_t) parent->count * sizeof(float));
		beam->tokens[parent->count] = candidate->token;
		beam->log_probabilities[parent->count] = candidate->log_probability;
		beam->count = length;
		beam->sum = candidate->score;
		search->parent[kept++] = candidate->beam;
	}
	search->done = kept == 0 || is_done(search, candidates[0].score, length);
	search->beams = search->next;
	search->next = old;
	search->beam_count = kept;
	return true;
}

static int
compare_hypotheses(const void *a, const void *b)
{
	const Hypothesis *x = a;
	const Hypothesis *y = b;

	return (x->score < y->score) - (x->score > y->score);
}

bool
beam_search_finish(BeamSearch *search, Status *status)
{
	for (int i = 0; !search->done && i < search->beam_count; i++)
		if (!add_finished(search, &search->beams[i], NULL, FINISH_LENGTH, status))
			return false;
	qsort(search->finished, (size_t) search->finished_count, sizeof(Hypothesis),
		  compare_hypotheses);
	return true;
}

/* The token at a place of prompt and answer together. */
static int32_t
token_at(const int32_t *prompt, int prompt_count, const int32_t *tokens, int place)
{
	return place < prompt_count ? prompt[place] : tokens[place - prompt_count];
}

int
ngram_banned(const int32_t *prompt, int prompt_count, const int32_t *tokens, int count, int n,
			 int32_t *banned)
{
	int			length = prompt_count + count;
	int			found = 0;

	for (int begin = 0; begin + n <= length; begin++)
	{
		bool		same = true;

		for (int i = 0; same && i < n - 1; i++)
			same = token_at(prompt, prompt_count, tokens, begin + i) ==
				token_at(prompt, prompt_count, tokens, length - n + 1 + i);
		if (same)
			banned[found++] = token_at(prompt, prompt_count, tokens, begin + n - 1);
	}
	return found;
}
