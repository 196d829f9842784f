/*
 * sampling.h - from logits to a distribution, with Hugging Face's meaning of the
 * options: temperature, then top-k, then top-p.
 */
#ifndef MMGPT_SAMPLING_H
#define MMGPT_SAMPLING_H

#include "backend.h"

typedef struct SamplingCandidate
{
	float		logit;			/* after temperature */
	int32_t		token;
	double		probability;
} SamplingCandidate;

/*
 * Fill candidates (room for vocabulary of them) with the tokens that the rule leaves,
 * most likely first, ties by id; probabilities sum to 1. Returns how many there are. A logit that
 * is NaN counts as minus infinity.
 */
extern int	sampling_distribution(const float *logits, int vocabulary, const ChoiceRule *rule,
								  SamplingCandidate *candidates);

/*
 * The counter-th random number of a seed's sequence, uniform in [0, 1): SplitMix64
 * (Steele, Lea, Flood 2014), which gives any element without those before it.
 */
extern double sampling_random(uint64_t seed, uint64_t counter);

/*
 * Draw a token: the candidate in whose share of [0, 1) the rule's random number falls; the first
 * one where its logit is infinite. -1 where there are no candidates, and when memory is out.
 */
extern int32_t sampling_draw(const float *logits, int vocabulary, const ChoiceRule *rule);

/* Whether a token counts in the softmax. */
extern bool sampling_allowed(const ChoiceRule *rule, int32_t token);

/* Whether a token is on the rule's list of those that may not be chosen. */
extern bool sampling_banned(const ChoiceRule *rule, int32_t token);

#endif
