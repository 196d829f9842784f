/*
 * cpu_choose.c - what is read out of rows of logits: a choice, the best tokens, scores of given
 * ones; see backend.h and sampling.h.
 */
#include "sampling.h"

#include <math.h>

#include "cpu_backend.h"

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
		int32_t		drawn = sampling_draw(logits, vocabulary, rule);

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
