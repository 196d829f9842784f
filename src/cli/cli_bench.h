/*
 * cli_bench.h - what the measurements of the command bench share.
 *
 * A measurement is a warm-up and then runs until its time is over; the fastest and the median run
 * are told.
 */
#ifndef MMGPT_CLI_BENCH_H
#define MMGPT_CLI_BENCH_H

#include <jansson.h>

#include "cli_common.h"
#include "train_options.h"

#define BENCH_MAX_BATCHES 16
#define BENCH_MAX_BATCH 256
#define BENCH_MAX_RUNS 1000
#define BENCH_LEAST_RUNS 3

typedef struct BenchOptions
{
	bool		vision;
	bool		train;
	int			prompt;			/* tokens of a prompt to read; 0: not measured */
	int			generate;		/* tokens to generate; 0: not measured */
	int			depth;			/* tokens that a sequence has before that */
	int			batches[BENCH_MAX_BATCHES];
	int			batch_count;
	double		seconds;		/* for each batch size */
	int			tokens;			/* of a training row */
	bool		picture;		/* a training row has one */
	TrainOptions training;
} BenchOptions;

/* How long the runs of one measurement took. */
typedef struct BenchRuns
{
	double		seconds[BENCH_MAX_RUNS];
	int			count;
	double		total;
} BenchRuns;

/* Note a run; false when there have been enough for so many seconds. */
extern bool bench_runs_add(BenchRuns *runs, double seconds, double enough);
/* Sort the runs: afterwards the fastest is the first, and the median in the middle. */
extern void bench_runs_sort(BenchRuns *runs);
/* Most memory that this process has had, in bytes. */
extern size_t bench_peak_memory(void);
/* A picture of noise that is the same in every run, uint8 [S, S, 3] in the arena. */
extern bool bench_draw_picture(int image_size, uint32_t seed, Arena *arena, Picture *picture,
							   Status *status);

/* A shape by its name (7b, 1b), or from a file in config.json's form. */
extern bool bench_shape_read(const char *name, Arena *arena, ModelConfig *config, Status *status);

/*
 * Measure, and append one object for each batch size to an array: of prompts read and tokens
 * generated, of pictures encoded, and of training. Rows of a table are printed while it goes on, unless quiet.
 */
extern bool bench_text(CliModel *opened, const BenchOptions *options, bool quiet, json_t *results,
					   Status *status);
/* Tokens that a sequence of bench_text needs pages for; 0: no text is measured. */
extern int	bench_text_tokens(const BenchOptions *options);
extern bool bench_vision(CliModel *opened, const BenchOptions *options, bool quiet,
						 json_t *results, Status *status);
extern bool bench_train(CliModel *opened, const BenchOptions *options, bool quiet,
						json_t *results, Status *status);

#endif
