/*
 * bench_train.c - how many tokens a second LoRA trains on.
 *
 * Rows are random tokens, all of them labels, so that the output matrix is used in full. A run is
 * a micro step with its optimizer step.
 */
#include <stdio.h>

#include "cli_bench.h"
#include "clock.h"
#include "trainer.h"

/* Micro steps before those that are measured: memory is touched for the first time. */
#define WARM_UPS 1

/* Rows of random tokens, one for each place of a batch. */
static bool
add_rows(CliModel *opened, Trainer *trainer, const BenchOptions *options, int batch,
		 Status *status)
{
	const ModelConfig *config = model_config(opened->model);
	int			count = options->tokens;
	int32_t    *ids = arena_take_array(opened->arena, (size_t) count, sizeof(int32_t));
	uint32_t	state = 1;
	Picture		picture = {0};

	if (ids == NULL)
		return status_out_of_memory(status, (size_t) count * sizeof(int32_t));
	for (int row = 0; row < batch; row++)
	{
		TrainingRow training = {.ids = ids, .labels = ids, .count = count};

		for (int i = 0; i < count; i++)
		{
			state = state * 1664525u + 1013904223u;
			ids[i] = (int32_t) ((state >> 8) % (uint32_t) config->decoder.base_vocabulary);
		}
		if (options->picture)
		{
			if (!bench_draw_picture(config->vision.image_size, (uint32_t) row + 1, opened->arena,
									&picture, status))
				return false;
			ids[0] = config->image;
			training.pictures = &picture;
			training.picture_count = 1;
		}
		if (!trainer_add_row(trainer, &training, status))
			return false;
	}
	return true;
}

/* Work until a micro step is done. */
static bool
train_step(Trainer *trainer, double *seconds, Status *status)
{
	uint64_t	begin = clock_now_ns();
	TrainerEvent event = TRAINER_WORKING;

	while (event != TRAINER_STEPPED)
		if (!trainer_step_slice(trainer, &event, status))
			return false;
	*seconds = (double) (clock_now_ns() - begin) * 1e-9;
	return true;
}

static bool
train_runs(CliModel *opened, Trainer *trainer, const BenchOptions *options, int batch,
		   BenchRuns *runs, Status *status)
{
	double		seconds;

	*runs = (BenchRuns) {.count = 0};
	if (!add_rows(opened, trainer, options, batch, status) || !trainer_start(trainer, 0, status))
		return false;
	for (int i = 0; i < WARM_UPS; i++)
		if (!train_step(trainer, &seconds, status))
			return false;
	do
	{
		if (!train_step(trainer, &seconds, status))
			return false;
	} while (bench_runs_add(runs, seconds, options->seconds));
	bench_runs_sort(runs);
	return true;
}

/* Parameters of the matrices that a token goes through. */
static double
product_parameters(const CliModel *opened, bool picture)
{
	const DecoderConfig *decoder = &model_config(opened->model)->decoder;
	ModelDescription description;
	double		parameters;

	model_describe(opened->model, &description);
	parameters = (double) description.parameters_decoder -
		(double) decoder->vocabulary * decoder->hidden;
	return parameters + (picture ? (double) description.parameters_cross_attention : 0);
}

static bool
measure_batch(CliModel *opened, const BenchOptions *options, int batch, BenchRuns *runs,
			  TrainerMemory *memory, Status *status)
{
	TrainOptions training = options->training;
	Trainer    *trainer;
	bool		good;

	training.batch_size = batch;
	training.max_length = options->tokens;
	training.micro_steps = WARM_UPS + BENCH_MAX_RUNS;
	training.schedule = SCHEDULE_CONSTANT;
	trainer = trainer_create(opened->model, &training, NULL, status);
	if (trainer == NULL)
		return false;
	good = train_runs(opened, trainer, options, batch, runs, status);
	trainer_memory(trainer, memory);
	trainer_free(trainer);
	return good;
}

bool
bench_train(CliModel *opened, const BenchOptions *options, bool quiet, json_t *results,
			Status *status)
{
	static BenchRuns runs;

	if (!quiet)
		printf("%-9s %6s %14s %10s %12s %10s %10s %12s\n", "training", "steps", "tokens/s best",
			   "median", "s/step best", "median", "GFLOP/s", "peak memory");
	for (int i = 0; i < options->batch_count; i++)
	{
		int			batch = options->batches[i];
		double		tokens = (double) batch * options->tokens;
		TrainerMemory memory;
		double		best;
		double		median;
		double		gflops;
		double		peak;

		if (!measure_batch(opened, options, batch, &runs, &memory, status))
			return false;
		best = runs.seconds[0];
		median = runs.seconds[runs.count / 2];
		peak = (double) bench_peak_memory();
		/* products with frozen weights, forward and back; LoRA's own and attention come on top */
		gflops = 4 * product_parameters(opened, options->picture) * tokens / median * 1e-9;
		if (!quiet)
			printf("batch %-3d %6d %14.1f %10.1f %12.3f %10.3f %10.0f %9.0f MB\n", batch,
				   runs.count, tokens / best, tokens / median, best, median, gflops,
				   peak / (1 << 20));
		json_array_append_new(
			results, json_pack("{s:i, s:i, s:i, s:{s:f, s:f}, s:{s:f, s:f}, s:f, s:I, s:I}",
							   "batch", batch, "tokens", options->tokens, "steps", runs.count,
							   "tokens_per_second", "best", tokens / best, "median",
							   tokens / median, "seconds_per_step", "best", best, "median", median,
							   "gflops", gflops, "training_memory", (json_int_t) memory.total,
							   "peak_memory", (json_int_t) peak));
	}
	return true;
}
