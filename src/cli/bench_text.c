/*
 * bench_text.c - how many tokens a second are read of prompts, and how many are generated, for some
 * sequences at once. Tokens are arbitrary, which takes the same time as any others; no picture.
 */
#include <stdio.h>

#include "cli_bench.h"
#include "clock.h"

/* Sequences that go on together. */
typedef struct TextBatch
{
	Model	   *model;
	int			count;
	int32_t    *ids;			/* of the longest prompt; the same for all */
	Sequence   *sequences[BENCH_MAX_BATCH];
} TextBatch;

static bool
open_sequences(TextBatch *batch, int prompt, int tokens, Status *status)
{
	for (int i = 0; i < batch->count; i++)
	{
		batch->sequences[i] = sequence_open(batch->model, NULL, NULL, batch->ids, prompt, status);
		if (batch->sequences[i] == NULL ||
			!sequence_reserve(batch->model, batch->sequences[i], tokens, status))
			return false;
	}
	return true;
}

static void
close_sequences(TextBatch *batch)
{
	for (int i = 0; i < batch->count; i++)
	{
		if (batch->sequences[i] != NULL)
			sequence_close(batch->model, batch->sequences[i]);
		batch->sequences[i] = NULL;
	}
}

/* Read the prompts, one after another in steps as large as the model takes. */
static bool
read_prompts(TextBatch *batch, int tokens, Status *status)
{
	int			most;
	int			logits;
	int			images;

	model_step_limits(batch->model, &most, &logits, &images);
	for (int i = 0; i < batch->count; i++)
		for (int at = 0; at < tokens; at += most)
		{
			int			count = tokens - at < most ? tokens - at : most;
			StepItem	item = {batch->sequences[i], batch->ids + at, count, at + count == tokens};

			if (!model_step(batch->model, &item, 1, status))
				return false;
		}
	return true;
}

/* One token more for each sequence: computed and chosen. */
static bool
generate_step(TextBatch *batch, int position, Status *status)
{
	StepItem	items[BENCH_MAX_BATCH];
	ChoiceRule	rules[BENCH_MAX_BATCH] = {{0}};
	Choice		choices[BENCH_MAX_BATCH];

	for (int i = 0; i < batch->count; i++)
		items[i] = (StepItem) {batch->sequences[i], batch->ids + position, 1, 1};
	return model_step(batch->model, items, batch->count, status) &&
		model_choose(batch->model, batch->count, rules, choices, status);
}

/*
 * One run: prompts of so many tokens, or, if any are to be generated, so many tokens after prompts;
 * the seconds it took.
 */
static bool
run_once(TextBatch *batch, int prompt, int generate, double *seconds, Status *status)
{
	bool		good = open_sequences(batch, prompt, prompt + generate, status);
	uint64_t	begin = clock_now_ns();

	good = good && read_prompts(batch, prompt, status);
	if (generate > 0)
		begin = clock_now_ns();
	for (int i = 0; i < generate && good; i++)
		good = generate_step(batch, prompt + i, status);
	*seconds = (double) (clock_now_ns() - begin) * 1e-9;
	close_sequences(batch);
	return good;
}

static bool
measure(TextBatch *batch, int prompt, int generate, double enough, BenchRuns *runs, Status *status)
{
	double		seconds;

	*runs = (BenchRuns) {.count = 0};
	if (!run_once(batch, prompt, generate, &seconds, status))
		return false;
	do
	{
		if (!run_once(batch, prompt, generate, &seconds, status))
			return false;
	} while (bench_runs_add(runs, seconds, enough));
	bench_runs_sort(runs);
	return true;
}

/* Measure prompts or generation for one batch size, print it and note it. */
static bool
measure_and_tell(TextBatch *batch, const BenchOptions *options, int prompt, int generate,
				 bool quiet, json_t *results, Status *status)
{
	static BenchRuns runs;
	const char *what = generate > 0 ? "generate" : "prompt";
	int			tokens = generate > 0 ? generate : prompt;
	double		best;
	double		median;

	if (!measure(batch, prompt, generate, options->seconds, &runs, status))
		return false;
	best = batch->count * tokens / runs.seconds[0];
	median = batch->count * tokens / runs.seconds[runs.count / 2];
	if (!quiet)
		printf("%-9s batch %-3d %6d %6d %14.2f %10.2f\n", what, batch->count, tokens, runs.count,
			   best, median);
	json_array_append_new(results, json_pack("{s:s, s:i, s:i, s:i, s:i, s:{s:f, s:f}, s:I}", "what",
											 what, "batch", batch->count, "depth",
											 generate > 0 ? prompt : 0, "tokens", tokens, "runs",
											 runs.count, "tokens_per_second", "best", best,
											 "median", median, "peak_memory",
											 (json_int_t) bench_peak_memory()));
	return true;
}

int
bench_text_tokens(const BenchOptions *options)
{
	int			generated = options->generate > 0 ? options->depth + options->generate : 0;
	int			tokens = options->prompt > generated ? options->prompt : generated;

	return (tokens + KV_PAGE_KEYS - 1) / KV_PAGE_KEYS * KV_PAGE_KEYS;
}

bool
bench_text(CliModel *opened, const BenchOptions *options, bool quiet, json_t *results,
		   Status *status)
{
	static TextBatch batch;
	int			most = bench_text_tokens(options);
	int			vocabulary = model_config(opened->model)->decoder.base_vocabulary;

	batch.model = opened->model;
	batch.ids = arena_take_array(opened->arena, (size_t) most, sizeof(int32_t));
	if (batch.ids == NULL)
		return status_out_of_memory(status, (size_t) most * sizeof(int32_t));
	for (int i = 0; i < most; i++)
		batch.ids[i] = 3 + i * 7919 % (vocabulary - 3);
	if (!quiet)
		printf("%-9s %-9s %6s %6s %14s %10s\n", "text", "", "tokens", "runs", "tokens/s best",
			   "median");
	for (int i = 0; i < options->batch_count; i++)
	{
		batch.count = options->batches[i];
		if ((options->prompt > 0 &&
			 !measure_and_tell(&batch, options, options->prompt, 0, quiet, results, status)) ||
			(options->generate > 0 &&
			 !measure_and_tell(&batch, options, options->depth, options->generate, quiet, results,
							   status)))
			return false;
	}
	return true;
}
