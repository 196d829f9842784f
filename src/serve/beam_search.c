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
		if (beams[i].tokens == NULL)
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

/* Keep a finished answer if it is among the best `width`. */
static bool
add_finished(BeamSearch *search, const Beam *beam, double sum, bool ended, Status *status)
{
	double		score = score_of(search, sum, beam->count);
	Hypothesis *place = &search->finished[search->finished_count];

	if (search->finished_count == search->width)
	{
		place = &search->finished[worst_finished(search)];
		if (score <= place->score)
			return true;
	}
	else
		search->finished_count++;
	place->tokens = arena_take_array(search->arena, (size_t) beam->count + 1, sizeof(int32_t));
	if (place->tokens == NULL)
		return status_out_of_memory(status, (size_t) beam->count * sizeof(int32_t));
	if (beam->count > 0)
		memcpy(place->tokens, beam->tokens, (size_t) beam->count * sizeof(int32_t));
	place->count = beam->count;
	place->ended = ended;
	place->score = score;
	return true;
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

		if (candidate->token == search->eos)
		{
			if (rank < search->width &&
				!add_finished(search, parent, candidate->score, true, status))
				return false;
			continue;
		}
		memcpy(beam->tokens, parent->tokens, (size_t) parent->count * sizeof(int32_t));
		beam->tokens[parent->count] = candidate->token;
		beam->count = length;
		beam->sum = candidate->score;
		search->parent[kept++] = candidate->beam;
	}
	search->done = kept < search->width || is_done(search, candidates[0].score, length);
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
		if (!add_finished(search, &search->beams[i], search->beams[i].sum, false, status))
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
