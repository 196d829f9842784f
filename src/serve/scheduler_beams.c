/*
 * scheduler_beams.c - generations with beams: one sequence for each beam, forked where two
 * beams continue the same one; see beam_search.h.
 *
 * The prompt is read by the generation's own sequence, which then becomes the first beam's.
 * After each step of the search a beam takes over the sequence of the beam that it
 * continues; the second and later children fork it, sharing its full pages, and
 * sequences without children are closed first, so never more than `width` are open.
 */
#include <math.h>
#include <stdlib.h>

#include "sampling.h"
#include "scheduler_internal.h"

int
beams_extra_pages(const Scheduler *scheduler, const Generation *generation)
{
	int			all = model_pages_for(scheduler->model, largest_length(generation));
	int			shared = generation->prompt_count / KV_PAGE_KEYS;

	return generation->search == NULL ? 0 : (generation->search->width - 1) * (all - shared);
}

bool
beams_running(const Generation *generation)
{
	return generation->search != NULL && generation->search->beams[0].sequence != NULL;
}

/* Tokens that a beam has yet to give to the model. */
static int
beam_left(const Generation *generation, const Beam *beam)
{
	return generation->prompt_count + beam->count - beam->fed;
}

/* Put tokens of all beams but their last ones into the batch, as far as there is room. */
static void
read_beams(Scheduler *scheduler, Generation *generation)
{
	BeamSearch *search = generation->search;

	for (int i = 0; i < search->beam_count; i++)
	{
		int			room = scheduler->max_tokens - scheduler->token_count;
		int			left = beam_left(generation, &search->beams[i]) - 1;
		int			count = left < room ? left : room;

		if (count > 0)
			add_tokens(scheduler, generation, i, search->beams[i].fed, count, 0);
	}
}

/*
 * Beams go on together. What no step could take at once is read in pieces first, of one search in a
 * step.
 */
void
beams_add(Scheduler *scheduler, Generation *generation)
{
	BeamSearch *search = generation->search;
	int			tokens = 0;

	for (int i = 0; i < search->beam_count; i++)
		tokens += beam_left(generation, &search->beams[i]);
	if (tokens > scheduler->max_tokens && scheduler->token_count == 0)
		read_beams(scheduler, generation);
	if (tokens > scheduler->max_tokens - scheduler->token_count ||
		search->beam_count > scheduler->max_logits - scheduler->logit_count)
		return;					/* all or none; its turn comes */
	for (int i = 0; i < search->beam_count; i++)
		add_tokens(scheduler, generation, i, search->beams[i].fed,
				   beam_left(generation, &search->beams[i]), 1);
}

static void
close_sequences(Scheduler *scheduler, Beam *beams, int width)
{
	for (int i = 0; i < width; i++)
	{
		sequence_close(scheduler->model, beams[i].sequence);
		beams[i].sequence = NULL;
	}
}

void
beams_close(Scheduler *scheduler, Generation *generation)
{
	if (generation->search == NULL)
		return;
	close_sequences(scheduler, generation->search->beams, generation->search->width);
	close_sequences(scheduler, generation->search->next, generation->search->width);
}

/* ---- candidates ---- */

static int
compare_candidates(const void *a, const void *b)
{
	const BeamCandidate *x = a;
	const BeamCandidate *y = b;

	if (x->score != y->score)
		return x->score > y->score ? -1 : 1;
	if (x->beam != y->beam)
		return x->beam - y->beam;
	return (x->token > y->token) - (x->token < y->token);
}

/* The rule of each beam's row. */
static ChoiceRule *
beam_rules(Scheduler *scheduler, const Generation *generation)
{
	const BeamSearch *search = generation->search;
	ChoiceRule *rules = arena_take_array(scheduler->scratch, (size_t) search->beam_count,
										 sizeof(ChoiceRule));

	for (int i = 0; rules != NULL && i < search->beam_count; i++)
	{
		rules[i] = generation->rule;
		rules[i].allowed = generation->allow_special ? NULL : scheduler->ordinary;
		rules[i].least_kept = 2;	/* Hugging Face's minimum with beams */
		ban_ngrams(scheduler, generation, search->beams[i].tokens, search->beams[i].count,
				   &rules[i]);
	}
	return rules;
}

/* The 2 width best continuations of all beams. Returns how many there are, -1 after a failure. */
static int
best_candidates(Scheduler *scheduler, Generation *generation, int first_row,
				BeamCandidate *candidates)
{
	const BeamSearch *search = generation->search;
	int			wanted = 2 * search->width;
	ChoiceRule *rules = beam_rules(scheduler, generation);
	Choice	   *choices = arena_take_array(scheduler->scratch,
										   (size_t) (search->beam_count * wanted), sizeof(Choice));
	int			count = 0;

	if (rules == NULL || choices == NULL)
	{
		status_out_of_memory(&generation->status, (size_t) wanted * sizeof(Choice));
		return -1;
	}
	if (!model_best(scheduler->model, first_row, search->beam_count, rules, wanted, choices,
					&generation->status))
		return -1;
	for (int i = 0; i < search->beam_count * wanted; i++)
		if (choices[i].token >= 0)
			candidates[count++] = (BeamCandidate) {
				.beam = i / wanted, .token = choices[i].token,
				.score = search->beams[i / wanted].sum + (double) choices[i].log_probability,
				.log_probability = choices[i].log_probability
			};
	qsort(candidates, (size_t) count, sizeof(BeamCandidate), compare_candidates);
	return count < wanted ? count : wanted;
}

/*
 * Turn a row of logits into log-probabilities with the beam's sum added, which is what Hugging
 * Face's beam sampling applies temperature, top_k and top_p to.
 */
static void
add_sum(const ChoiceRule *rule, double sum, int vocabulary, float *row)
{
	double		largest = -INFINITY;
	double		total = 0;

	for (int i = 0; i < vocabulary; i++)
		if (sampling_allowed(rule, i) && row[i] > largest)
			largest = row[i];
	for (int i = 0; i < vocabulary; i++)
		if (sampling_allowed(rule, i))
			total += exp(row[i] - largest);
	for (int i = 0; i < vocabulary; i++)
		row[i] = (float) (row[i] - largest - log(total) + sum);
}

/* Draw `wanted` of the candidates without putting them back; weights are exp(score). */
static int
draw_candidates(const Generation *generation, BeamCandidate *candidates, int count, int wanted)
{
	uint64_t	counter = (uint64_t) generation->search->beams[0].count * 2 * OPTIONS_MAX_BEAMS;
	int			drawn = 0;

	qsort(candidates, (size_t) count, sizeof(BeamCandidate), compare_candidates);
	while (drawn < wanted && drawn < count)
	{
		double		total = 0;
		double		place;
		int			i = drawn;
		BeamCandidate taken;

		for (int j = drawn; j < count; j++)
			total += exp(candidates[j].score - candidates[drawn].score);
		place = sampling_random(generation->rule.seed, counter++) * total;
		while (i < count - 1 && place >= exp(candidates[i].score - candidates[drawn].score))
			place -= exp(candidates[i++].score - candidates[drawn].score);
		taken = candidates[i];
		for (; i > drawn; i--)
			candidates[i] = candidates[i - 1];
		candidates[drawn++] = taken;
	}
	qsort(candidates, (size_t) drawn, sizeof(BeamCandidate), compare_candidates);
	return drawn;
}

/* 2 width continuations drawn from what temperature, top_k and top_p leave of all beams. */
static int
sampled_candidates(Scheduler *scheduler, Generation *generation, int first_row,
				   BeamCandidate *candidates)
{
	const BeamSearch *search = generation->search;
	int			vocabulary = model_config(scheduler->model)->decoder.vocabulary;
	int			rows = first_row + search->beam_count;
	size_t		size = (size_t) vocabulary;
	ChoiceRule *rules = beam_rules(scheduler, generation);
	float	   *logits = arena_take_array(scheduler->scratch, (size_t) rows * size, sizeof(float));
	SamplingCandidate *kept = arena_take_array(scheduler->scratch, size, sizeof(*kept));
	int			count = 0;

	if (rules == NULL || logits == NULL || kept == NULL)
	{
		status_out_of_memory(&generation->status, (size_t) rows * size * sizeof(float));
		return -1;
	}
	if (!model_read_logits(scheduler->model, rows, logits, &generation->status))
		return -1;
	for (int i = 0; i < search->beam_count; i++)
	{
		float	   *row = logits + (size_t) (first_row + i) * size;
		int			left;

		add_sum(&rules[i], search->beams[i].sum, vocabulary, row);
		left = sampling_distribution(row, vocabulary, &rules[i], kept);
		for (int j = 0; j < left; j++)
			candidates[count++] = (BeamCandidate) {
				.beam = i, .token = kept[j].token, .score = (double) kept[j].logit,
				.log_probability = row[kept[j].token] - (float) search->beams[i].sum
			};
	}
	return draw_candidates(generation, candidates, count, 2 * search->width);
}

/* Note which candidates complete a stop: the text of an answer ends with them. */
static void
mark_stops(Scheduler *scheduler, const Generation *generation, BeamCandidate *candidates, int count)
{
	for (int i = 0; i < count && !generation->allow_special; i++)
	{
		const Beam *parent = &generation->search->beams[candidates[i].beam];

		if (candidates[i].token == generation->eos)
			continue;
		parent->tokens[parent->count] = candidates[i].token;	/* there is room, as it goes on */
		candidates[i].stops = generation_stops(generation, parent->tokens, parent->count + 1,
											   scheduler->tokenizer, scheduler->scratch);
	}
}

/* ---- one step of the search ---- */

/* Beams that continue old beam p, from new beam `first` on. */
static int
children_of(const BeamSearch *search, int p, int first)
{
	int			count = 0;

	for (int i = first; i < search->beam_count; i++)
		count += search->parent[i] == p;
	return count;
}

/* Give each new beam the sequence of the one it continues, or a fork of it. */
static bool
hand_on_sequences(Scheduler *scheduler, Generation *generation)
{
	BeamSearch *search = generation->search;
	int32_t		mark = model_config(scheduler->model)->image;

	for (int p = 0; p < search->width; p++)
		if (search->next[p].sequence != NULL && children_of(search, p, 0) == 0)
		{
			sequence_close(scheduler->model, search->next[p].sequence);
			search->next[p].sequence = NULL;
		}
	for (int i = 0; i < search->beam_count; i++)
	{
		Beam	   *beam = &search->beams[i];
		Beam	   *parent = &search->next[search->parent[i]];

		beam->fed = parent->fed;
		if (children_of(search, search->parent[i], i + 1) == 0)
		{
			beam->sequence = parent->sequence;
			parent->sequence = NULL;
		}
		else
			beam->sequence = sequence_fork(scheduler->model, parent->sequence, &generation->status);
		if (beam->sequence == NULL ||
			!sequence_reserve(scheduler->model, beam->sequence, largest_length(generation),
							  &generation->status))
			return false;
		if (beam->tokens[beam->count - 1] != mark)
			continue;
		beam->fed = 0;
		if (!reopen_with_mark(scheduler, generation, beam->tokens, beam->count, &beam->sequence))
			return false;
	}
	return true;
}

/* The search is over: the best answer becomes the generation's. */
static void
take_best(Scheduler *scheduler, Generation *generation)
{
	BeamSearch *search = generation->search;
	const Hypothesis *best = search->finished;

	if (!beam_search_finish(search, &generation->status))
	{
		finish_running(scheduler, generation, FINISH_FAILED);
		return;
	}
	generation->count = best->count + (best->finish == FINISH_EOS ? 1 : 0);
	for (int i = 0; i < generation->count; i++)
	{
		generation->tokens[i] = best->tokens[i];
		generation->log_probabilities[i] = best->log_probabilities[i];
	}
	scheduler->counters.new_tokens += (uint64_t) generation->count;
	finish_running(scheduler, generation, best->finish);
}

void
beams_advance(Scheduler *scheduler, Generation *generation, int first_row)
{
	BeamSearch *search = generation->search;
	int			vocabulary = model_config(scheduler->model)->decoder.vocabulary;
	size_t		room = (size_t) search->beam_count * (size_t) vocabulary;
	BeamCandidate *candidates;
	int			count = -1;

	if (!beams_running(generation))
	{
		search->beams[0].sequence = generation->sequence;
		search->beams[0].fed = generation->fed;
		generation->sequence = NULL;
	}
	candidates = arena_take_array(scheduler->scratch, room, sizeof(BeamCandidate));
	if (candidates == NULL)
		status_out_of_memory(&generation->status, room * sizeof(BeamCandidate));
	else if (generation->rule.temperature > 0)
		count = sampled_candidates(scheduler, generation, first_row, candidates);
	else
		count = best_candidates(scheduler, generation, first_row, candidates);
	mark_stops(scheduler, generation, candidates, count);
	if (count < 1 || !beam_search_take(search, candidates, count, &generation->status))
		finish_running(scheduler, generation, FINISH_FAILED);
	else if (search->done || search->beams[0].count >= search->max_tokens)
		take_best(scheduler, generation);
	else if (!hand_on_sequences(scheduler, generation))
		finish_running(scheduler, generation, FINISH_FAILED);
}
