/*
 * cpu_choose.c - what is read out of rows of logits: a choice, the best tokens, scores of given
 * ones; see backend.h and sampling.h.
 */
#include "sampling.h"

#include <math.h>
#include <stdlib.h>

#include "cpu_backend.h"

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
			candidates[count].logit = logits[token] / rule->temperature;
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

/* The candidate in whose share of [0, 1) the random number falls. */
static int32_t
draw(const float *logits, int vocabulary, const ChoiceRule *rule)
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
	token = candidates[i].token;
	free(candidates);
	return token;
}

typedef struct ChooseJob
{
	Tensor		logits;
	const ChoiceRule *rules;
	Choice	   *choices;
} ChooseJob;

/* The most likely token of a row that counts in the softmax, and the logarithm of its sum. */
static int32_t
find_largest(const float *logits, int vocabulary, const ChoiceRule *rule, double *log_sum)
{
	int32_t		best = -1;
	double		sum = 0;

	for (int32_t token = 0; token < vocabulary; token++)
		if (sampling_allowed(rule, token) && (best < 0 || logits[token] > logits[best]))
			best = token;
	if (best < 0)
		best = 0;
	for (int32_t token = 0; token < vocabulary; token++)
		if (sampling_allowed(rule, token))
			sum += exp((double) logits[token] - (double) logits[best]);
	*log_sum = (double) logits[best] + log(sum);
	return best;
}

/* The most likely token that is neither outside of the softmax nor banned. */
static int32_t
find_choice(const float *logits, int vocabulary, const ChoiceRule *rule)
{
	int32_t		best = -1;

	for (int32_t token = 0; token < vocabulary; token++)
		if ((best < 0 || logits[token] > logits[best]) && sampling_allowed(rule, token) &&
			!sampling_banned(rule, token))
			best = token;
	return best < 0 ? 0 : best;
}

static void
choose_row(void *argument, int row, int thread)
{
	ChooseJob  *job = argument;
	const ChoiceRule *rule = &job->rules[row];
	const float *logits = cpu_row(job->logits, row);
	int			vocabulary = job->logits.columns;
	double		log_sum;
	int32_t		token;

	if (rule->skipped)
		return;
	token = find_largest(logits, vocabulary, rule, &log_sum);
	if (rule->temperature > 0.0f)
	{
		int32_t		drawn = draw(logits, vocabulary, rule);

		token = drawn >= 0 ? drawn : token;
	}
	else if (rule->banned_count > 0)
		token = find_choice(logits, vocabulary, rule);
	job->choices[row].token = token;
	job->choices[row].log_probability = (float) ((double) logits[token] - log_sum);
}

void
cpu_choose(Backend *backend, Tensor logits, const ChoiceRule *rules, Choice *choices)
{
	ChooseJob	job = {logits, rules, choices};

	cpu_run((CpuBackend *) backend, choose_row, &job, logits.rows,
			20.0 * logits.rows * logits.columns);
}

typedef struct BestJob
{
	Tensor		logits;
	const ChoiceRule *rules;
	int			count;
	Choice	   *choices;
} BestJob;

/* Put a token into the list of the best, which is sorted; the last one falls out. */
static void
insert_choice(Choice *choices, int count, int32_t token, float log_probability)
{
	int			place = count - 1;

	while (place > 0 && (choices[place - 1].token < 0 ||
						 choices[place - 1].log_probability < log_probability))
	{
		choices[place] = choices[place - 1];
		place--;
	}
	choices[place] = (Choice) {token, log_probability};
}

static void
best_row(void *argument, int row, int thread)
{
	BestJob    *job = argument;
	const ChoiceRule *rule = &job->rules[row];
	const float *logits = cpu_row(job->logits, row);
	Choice	   *choices = job->choices + (size_t) row * (size_t) job->count;
	Choice	   *last = &choices[job->count - 1];
	double		log_sum;

	find_largest(logits, job->logits.columns, rule, &log_sum);
	for (int i = 0; i < job->count; i++)
		choices[i] = (Choice) {-1, 0.0f};
	for (int32_t token = 0; token < job->logits.columns; token++)
	{
		float		value = (float) ((double) logits[token] - log_sum);

		if ((last->token < 0 || value > last->log_probability) && sampling_allowed(rule, token) &&
			!sampling_banned(rule, token))
			insert_choice(choices, job->count, token, value);
	}
}

void
cpu_best(Backend *backend, Tensor logits, const ChoiceRule *rules, int count, Choice *choices)
{
	BestJob		job = {logits, rules, count, choices};

	cpu_run((CpuBackend *) backend, best_row, &job, logits.rows,
			20.0 * logits.rows * logits.columns);
}

typedef struct ScoreJob
{
	Tensor		logits;
	const ScoreTarget *targets;
	int			count;
	float	   *log_probabilities;
} ScoreJob;

/* The first target at a row or behind it. */
static int
first_target(const ScoreJob *job, int row)
{
	int			low = 0;
	int			high = job->count;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (job->targets[middle].row < row)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void
score_row(void *argument, int row, int thread)
{
	static const ChoiceRule all = {.allowed = NULL};
	ScoreJob   *job = argument;
	const float *logits = cpu_row(job->logits, row);
	int			i = first_target(job, row);
	double		log_sum;

	if (i == job->count || job->targets[i].row != row)
		return;
	find_largest(logits, job->logits.columns, &all, &log_sum);
	for (; i < job->count && job->targets[i].row == row; i++)
		job->log_probabilities[i] = (float) ((double) logits[job->targets[i].token] - log_sum);
}

void
cpu_score(Backend *backend, Tensor logits, const ScoreTarget *targets, int count,
		  float *log_probabilities)
{
	ScoreJob	job = {logits, targets, count, log_probabilities};

	cpu_run((CpuBackend *) backend, score_row, &job, logits.rows,
			20.0 * logits.rows * logits.columns);
}
