/*
 * sampling.c - see sampling.h. The definition of a draw, and the processor's way to it: it sorts.
 */
#include "sampling.h"

#include <math.h>
#include <stdlib.h>

bool
sampling_allowed(const ChoiceRule *rule, int32_t token)
{
	return rule->allowed == NULL || (rule->allowed[token / 32] >> (token % 32) & 1u) != 0;
}

bool
sampling_banned(const ChoiceRule *rule, int32_t token)
{
	for (int i = 0; i < rule->banned_count; i++)
		if (rule->banned[i] == token)
			return true;
	return false;
}

double
sampling_random(uint64_t seed, uint64_t counter)
{
	uint64_t	z = seed + (counter + 1) * 0x9E3779B97F4A7C15u;

	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
	z ^= z >> 31;
	return (double) (z >> 11) * 0x1.0p-53;
}

static int
compare_candidates(const void *a, const void *b)
{
	const SamplingCandidate *x = a;
	const SamplingCandidate *y = b;

	if (x->logit != y->logit)
		return x->logit > y->logit ? -1 : 1;
	return x->token < y->token ? -1 : x->token > y->token;
}

/* Give each candidate its share of the softmax. */
static void
set_probabilities(SamplingCandidate *candidates, int count)
{
	double		sum = 0;

	for (int i = 0; i < count; i++)
	{
		candidates[i].probability = exp((double) candidates[i].logit -
										(double) candidates[0].logit);
		sum += candidates[i].probability;
	}
	for (int i = 0; i < count; i++)
		candidates[i].probability /= sum;
}

int
sampling_distribution(const float *logits, int vocabulary, const ChoiceRule *rule,
					  SamplingCandidate *candidates)
{
	int			least = rule->least_kept > 0 ? rule->least_kept : 1;
	int			top_k = rule->top_k > least ? rule->top_k : least;
	int			count = 0;
	double		before = 0;
	int			kept = 0;

	for (int32_t token = 0; token < vocabulary; token++)
		if (sampling_allowed(rule, token) && !sampling_banned(rule, token))
		{
			float		scaled = logits[token] / rule->temperature;

			candidates[count].logit = isnan(scaled) ? -INFINITY : scaled;
			candidates[count++].token = token;
		}
	qsort(candidates, (size_t) count, sizeof(SamplingCandidate), compare_candidates);
	if (rule->top_k > 0 && top_k < count)
	{
		int			all = count;
		float		last = candidates[top_k - 1].logit;

		for (count = top_k; count < all && candidates[count].logit == last; count++)
			;					/* ties with the k-th stay, as in the original */
	}
	set_probabilities(candidates, count);
	if (rule->top_p >= 1.0f)
		return count;
	/* The smallest set of the most likely tokens whose probabilities reach top_p. */
	while (kept < count && (kept < least || before < (double) rule->top_p))
		before += candidates[kept++].probability;
	set_probabilities(candidates, kept);
	return kept;
}

int32_t
sampling_draw(const float *logits, int vocabulary, const ChoiceRule *rule)
{
	SamplingCandidate *candidates = malloc((size_t) vocabulary * sizeof(SamplingCandidate));
	double		random = sampling_random(rule->seed, rule->counter);
	int32_t		token;
	int			count;
	int			i = 0;

	if (candidates == NULL)
		return -1;
	count = sampling_distribution(logits, vocabulary, rule, candidates);
	while (i < count - 1 && random >= candidates[i].probability)
		random -= candidates[i++].probability;
	token = count > 0 ? candidates[i].token : -1;
	free(candidates);
	return token;
}
