/*
 * bench_vision.c - how many pictures a second are encoded. They are noise, which takes the same
 * time as any other.
 */
#include <stdio.h>

#include "cli_bench.h"
#include "clock.h"

/* Encode batch pictures once; the seconds it took. */
static bool
encode_once(Model *model, const Picture *pictures, int batch, double *seconds, Status *status)
{
	uint64_t	begin = clock_now_ns();
	Adapter    *adapter = NULL;
	Media	   *media;

	if (!model_encode_images(model, 1, &batch, &adapter, pictures, &media, status))
		return false;
	*seconds = (double) (clock_now_ns() - begin) * 1e-9;
	media_release(model, media);
	return true;
}

static bool
measure_batch(Model *model, const Picture *pictures, int batch, double enough, BenchRuns *runs,
			  Status *status)
{
	double		seconds;

	*runs = (BenchRuns) {.count = 0};
	if (!encode_once(model, pictures, batch, &seconds, status))
		return false;
	do
	{
		if (!encode_once(model, pictures, batch, &seconds, status))
			return false;
	} while (bench_runs_add(runs, seconds, enough));
	bench_runs_sort(runs);
	return true;
}

static bool
make_pictures(CliModel *opened, int count, Picture **pictures, Status *status)
{
	*pictures = arena_take_array(opened->arena, (size_t) count, sizeof(Picture));
	if (*pictures == NULL)
		return status_out_of_memory(status, (size_t) count * sizeof(Picture));
	for (int i = 0; i < count; i++)
		if (!bench_draw_picture(model_config(opened->model)->vision.image_size, (uint32_t) i + 1,
								opened->arena, &(*pictures)[i], status))
			return false;
	return true;
}

bool
bench_vision(CliModel *opened, const BenchOptions *options, bool quiet, json_t *results,
			 Status *status)
{
	static BenchRuns runs;
	int			most = 1;
	Picture    *pictures;

	for (int i = 0; i < options->batch_count; i++)
		most = options->batches[i] > most ? options->batches[i] : most;
	if (!make_pictures(opened, most, &pictures, status))
		return false;
	if (!quiet)
		printf("%-9s %6s %14s %10s\n", "vision", "runs", "images/s best", "median");
	for (int i = 0; i < options->batch_count; i++)
	{
		int			batch = options->batches[i];
		double		best;
		double		median;

		if (!measure_batch(opened->model, pictures, batch, options->seconds, &runs, status))
			return false;
		best = batch / runs.seconds[0];
		median = batch / runs.seconds[runs.count / 2];
		if (!quiet)
			printf("batch %-3d %6d %14.2f %10.2f\n", batch, runs.count, best, median);
		json_array_append_new(results, json_pack("{s:i, s:i, s:{s:f, s:f}}", "batch", batch,
												 "runs", runs.count, "images_per_second", "best",
												 best, "median", median));
	}
	return true;
}
