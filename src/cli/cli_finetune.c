/*
 * cli_finetune.c - train a LoRA adapter on the rows of a file.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli_common.h"
#include "clock.h"
#include "finetune_rows.h"
#include "machine.h"
#include "trainer.h"

/* Seconds between two lines of progress where standard error is no terminal. */
#define PROGRESS_SECONDS 10.0

typedef struct FinetuneJob
{
	CliModel	opened;
	Tokenizer  *tokenizer;
	ModelConfig config;
	TrainOptions options;
	RowFile		rows;
	Trainer    *trainer;
	FILE	   *log;
	double		begin;			/* seconds: the first micro step; 0: not yet */
	double		last_line;		/* ... the last line of progress */
} FinetuneJob;

static double
seconds_now(void)
{
	return (double) clock_now_ns() * 1e-9;
}

/* ---- memory ---- */

/* Bytes that training may take: --memory-limit, or what the machine has left. */
static bool
memory_limit(const CliArguments *arguments, size_t *limit, Status *status)
{
	long		megabytes;

	if (!cli_integer(arguments, "--memory-limit", 0, 1L << 40, -1, &megabytes, status))
		return false;
	*limit = megabytes >= 0 ? (size_t) megabytes << 20 : machine_spare_memory();
	return true;
}

/* ---- what is told while it runs ---- */

/* A number of a log line; null where there is none. */
static void
log_number(FILE *log, const char *key, double value)
{
	if (isnan(value))
		fprintf(log, ", \"%s\": null", key);
	else
		fprintf(log, ", \"%s\": %.9g", key, value);
}

/* One JSON line a micro step. */
static void
log_step(FILE *log, const TrainerReport *report)
{
	fprintf(log, "{\"step\": %d", report->micro_step);
	log_number(log, "loss_vision", report->loss_image);
	log_number(log, "loss_language", report->loss_language);
	log_number(log, "grad_norm", report->gradient_norm);
	log_number(log, "learning_rate", report->learning_rate);
	if (report->validated)
	{
		log_number(log, "validation_loss_vision", report->validation_image);
		log_number(log, "validation_loss_language", report->validation_language);
	}
	fputs("}\n", log);
	fflush(log);
}

static void
print_loss(const char *name, double value)
{
	if (!isnan(value))
		fprintf(stderr, ", %s %.4f", name, value);
}

/* One line of progress, which a terminal overwrites. */
static void
show_step(FinetuneJob *job, const TrainerReport *report)
{
	bool		terminal = isatty(STDERR_FILENO);
	bool		last = report->micro_step == report->micro_steps;
	double		now = seconds_now();
	double		elapsed = now - job->begin;

	if (!terminal && !last && !report->validated && now - job->last_line < PROGRESS_SECONDS)
		return;
	job->last_line = now;
	fprintf(stderr, "%smicro step %d/%d", terminal ? "\r" : "", report->micro_step,
			report->micro_steps);
	print_loss("loss with pictures", report->loss_image);
	print_loss("loss of language", report->loss_language);
	if (report->validated)
	{
		print_loss("held out with pictures", report->validation_image);
		print_loss("held out language", report->validation_language);
	}
	fprintf(stderr, ", %.0f tokens/s", (double) report->tokens / elapsed);
	fprintf(stderr, ", %.0f s left%s",
			elapsed / report->micro_step * (report->micro_steps - report->micro_step),
			terminal && !last && !report->validated ? "\033[K" : terminal ? "\033[K\n" : "\n");
}

/* Pictures that are encoded before the first micro step, now and then. */
static void
show_pictures(FinetuneJob *job, const TrainerReport *report)
{
	double		now = seconds_now();

	if (report->pictures_encoded == report->pictures)
		job->begin = job->last_line = now;
	else if (now - job->last_line >= PROGRESS_SECONDS)
	{
		job->last_line = now;
		fprintf(stderr, "pictures: %d of %d encoded\n", report->pictures_encoded,
				report->pictures);
	}
}

static void
show_plan(const FinetuneJob *job)
{
	TrainerMemory memory;
	TrainerReport report;
	AdapterShape shape;

	trainer_memory(job->trainer, &memory);
	trainer_report(job->trainer, &report);
	trainer_adapter_shape(job->trainer, &shape);
	fprintf(stderr,
			"rows: %d with pictures (%d distinct pictures), %d of language, %d held out, "
			"%d skipped\n",
			report.rows_image, report.pictures, report.rows_language, report.rows_validation,
			job->rows.unusable);
	fprintf(stderr, "adapter: r %d, alpha %g; %d micro steps\n", shape.r, shape.alpha,
			report.micro_steps);
	fprintf(stderr,
			"memory: %zu MB beside the model's, %zu MB of it activations of %d tokens; %d of %d "
			"layers are computed anew\n",
			(memory.total >> 20) + 1, (memory.activations >> 20) + 1, memory.pass_tokens,
			memory.trained_layers - memory.kept_layers, memory.trained_layers);
}

/* ---- the run ---- */

static bool
open_log(FinetuneJob *job, const char *path, Status *status)
{
	if (path == NULL)
		return true;
	job->log = fopen(path, "we");
	return job->log != NULL ||
		status_set(status, STATUS_IO, "could not create file \"%s\": %s", path, strerror(errno));
}

static bool
close_log(FinetuneJob *job, Status *status)
{
	bool		good = job->log == NULL || !ferror(job->log);

	if (job->log != NULL && fclose(job->log) != 0)
		good = false;
	job->log = NULL;
	return good || status_set(status, STATUS_IO, "could not write the log");
}

/* Everything that can be wrong in the arguments, before any weight is read. */
static bool
read_arguments(FinetuneJob *job, const CliArguments *arguments, Status *status)
{
	const char *options = cli_value(arguments, "--options");

	if (cli_value(arguments, "--data") == NULL || cli_value(arguments, "--adapter-out") == NULL)
		return status_set(status, STATUS_USAGE, "%s is missing",
						  cli_value(arguments, "--data") == NULL ? "--data FILE"
																 : "--adapter-out DIR");
	if (cli_value(arguments, "--adapter") != NULL)
	{
		status_set(status, STATUS_USAGE, "an adapter can't be trained on top of another");
		return status_hint(status, "Use --initial-adapter to go on training one.");
	}
	train_options_defaults(&job->options);
	job->tokenizer = cli_open_tokenizer(arguments->positional[0], job->opened.arena, &job->config,
										status);
	job->rows = (RowFile) {.path = cli_value(arguments, "--data"),
						   .tokenizer = job->tokenizer,
						   .config = &job->config};
	if (job->tokenizer == NULL || !cli_image_rules(arguments, &job->rows.rules, status) ||
		!train_options_read(options, options == NULL ? 0 : strlen(options), &job->options, status))
		return false;
	if (job->options.max_length > job->config.decoder.context)
		job->options.max_length = job->config.decoder.context;
	job->rows.max_length = job->options.max_length;
	job->rows.skip_unusable = job->options.skip_unusable;
	return true;
}

static bool
start_training(FinetuneJob *job, const CliArguments *arguments, Status *status)
{
	ModelOptions options = {.media_bytes = 1};	/* encoded pictures are kept by the trainer */
	AdapterSource initial = {.directory = cli_value(arguments, "--initial-adapter")};
	size_t		limit;

	if (!cli_open_model(arguments, arguments->positional[0], &options, &job->opened, status))
		return false;
	status_clear(status);
	job->trainer = trainer_create(job->opened.model, &job->options,
								  initial.directory == NULL ? NULL : &initial, status);
	if (job->trainer == NULL || !finetune_rows_read(&job->rows, job->trainer, status) ||
		!memory_limit(arguments, &limit, status))
		return false;
	if (job->rows.unusable > 0 && job->rows.unusable == job->rows.rows)
		return status_set(status, STATUS_INVALID_ARGUMENT, "none of the %d rows can be used",
						  job->rows.rows);
	return trainer_start(job->trainer, limit, status) &&
		adapter_files_prepare(cli_value(arguments, "--adapter-out"), status) &&
		open_log(job, cli_value(arguments, "--log"), status);
}

/* What early stopping did. */
static void
show_best(const FinetuneJob *job)
{
	TrainerReport report;

	trainer_report(job->trainer, &report);
	if (report.stopped)
		fprintf(stderr, "stopped early: %d validation%s without a better one\n",
				job->options.early_stopping, job->options.early_stopping == 1 ? "" : "s");
	if (report.best_micro_step > 0)
		fprintf(stderr, "the adapter is that of the best validation, after micro step %d\n",
				report.best_micro_step);
}

static bool
train(FinetuneJob *job, Status *status)
{
	TrainerEvent event = TRAINER_WORKING;
	TrainerReport report;

	job->last_line = seconds_now();
	while (event != TRAINER_DONE)
	{
		if (!trainer_step_slice(job->trainer, &event, status))
			return false;
		trainer_report(job->trainer, &report);
		if (job->begin == 0)
			show_pictures(job, &report);
		if (event != TRAINER_STEPPED)
			continue;
		if (job->log != NULL)
			log_step(job->log, &report);
		show_step(job, &report);
	}
	show_best(job);
	return close_log(job, status);
}

static bool
save_adapter(const FinetuneJob *job, const char *directory, Status *status)
{
	AdapterFiles files;

	return trainer_make_adapter(job->trainer, job->opened.arena, &files, status) &&
		adapter_files_save(&files, directory, status);
}

static bool
finetune(FinetuneJob *job, const CliArguments *arguments, Status *status)
{
	if (!read_arguments(job, arguments, status) || !start_training(job, arguments, status))
		return false;
	show_plan(job);
	return train(job, status) &&
		save_adapter(job, cli_value(arguments, "--adapter-out"), status);
}

int
cli_finetune(int argc, char **argv)
{
	static const char help[] =
		"Usage: mmgpt-engine finetune MODEL --data ROWS.jsonl --adapter-out DIR [OPTION]...\n\n"
		"Train a LoRA adapter and write it in PEFT's format. A line of ROWS.jsonl is\n"
		"  {\"image\": PATH or null, \"instruction\": TEXT, \"input\": TEXT, \"response\": TEXT}\n"
		"  {\"image\": PATH or null, \"conversation\": [{\"role\": \"user\", \"content\": TEXT}, "
		"...]}\n"
		"  {\"pixels\": PATH.npy, [PATH.npy, ...] or null, \"ids\": [...], \"labels\": [...]}\n"
		"Paths are relative to the file's folder.\n\nOptions:\n"
		"  --data FILE                the rows; - is standard input\n"
		"  --adapter-out DIR          where the adapter goes\n"
		"  --options JSON             r, alpha, target_modules, learning_rate, weight_decay,\n"
		"                             warmup_steps, schedule, clip, accumulation, batch_size,\n"
		"                             epochs or micro_steps, shuffle, seed, max_length,\n"
		"                             validation, early_stopping, unusable (skip or fail)\n"
		"  --initial-adapter DIR      go on training this adapter\n"
		"  --log FILE                 one JSON line a micro step: losses, grad_norm, "
		"learning_rate\n"
		"  --memory-limit MB          most memory beside the model's, 0 for any (default: what\n"
		"                             the machine has left)\n"
		"  --image-rules RULES        display or original (default: display)\n" CLI_COMPUTE_HELP;
	CliOption options[] = {CLI_MODEL_OPTIONS,
						   {.name = "--data", .has_value = true},
						   {.name = "--adapter-out", .has_value = true},
						   {.name = "--options", .has_value = true},
						   {.name = "--initial-adapter", .has_value = true},
						   {.name = "--log", .has_value = true},
						   {.name = "--memory-limit", .has_value = true},
						   {.name = "--image-rules", .has_value = true},
						   {.name = NULL}};
	CliArguments arguments = {.options = options};
	FinetuneJob job = {.opened = {0}};
	Status		status;
	int			result = 0;

	if (!cli_parse(argc, argv, &arguments, 1, help, &result))
		return result;
	status_clear(&status);
	job.opened.arena = arena_create();
	if (job.opened.arena == NULL)
		status_out_of_memory(&status, 0);
	if (job.opened.arena == NULL || !finetune(&job, &arguments, &status))
		result = cli_fail(&status);
	if (job.log != NULL)
		fclose(job.log);
	trainer_free(job.trainer);
	cli_close_model(&job.opened);
	tokenizer_close(job.tokenizer);
	return result;
}
