/*
 * test_early_stopping.c - a training that ends when its validations stop to get better, and what
 * it leaves.
 */
#include "train_cases.h"

#define MICRO_STEPS 24

/* Steps so large that rows which are held out get worse after a while. */
static TrainOptions
hasty_options(const TrainRun *run, int early_stopping)
{
	TrainOptions options = run_options(run);

	options.shuffle = true;
	options.seed = 5;
	options.batch_size = 2;
	options.accumulation = 1;
	options.learning_rate = 0.03;
	options.micro_steps = MICRO_STEPS;
	options.validation = 0.25;
	options.early_stopping = early_stopping;
	return options;
}

/* A training without early stopping: what it was after each validation. */
typedef struct Validations
{
	int			count;
	int			steps[MICRO_STEPS];
	double		losses[MICRO_STEPS];
	AdapterFiles files[MICRO_STEPS];
} Validations;

static Validations
watch_validations(Engine *engine, const TrainRun *run)
{
	TrainOptions options = hasty_options(run, 0);
	Trainer    *trainer = run_trainer(engine, run, &options, &no_limit);
	Validations seen = {0};

	while (trainer_run_to(engine, trainer, TRAINER_STEPPED))
	{
		TrainerReport report;

		trainer_report(trainer, &report);
		UNIT_EQUAL_INT(report.best_micro_step, 0);
		if (!report.validated)
			continue;
		seen.steps[seen.count] = report.micro_step;
		seen.losses[seen.count] = report.validation_image + report.validation_language;
		seen.files[seen.count++] = trainer_adapter(engine, trainer);
	}
	trainer_free(trainer);
	return seen;
}

/* Which of the validations ends a training, and which was the best until then. */
static int
find_end(const Validations *seen, int patience, int *best)
{
	*best = 0;
	for (int i = 1; i < seen->count; i++)
	{
		if (seen->losses[i] < seen->losses[*best])
			*best = i;
		else if (i - *best == patience)
			return i;
	}
	return seen->count - 1;
}

UNIT_TEST(the_best_validation_is_the_result)
{
	TrainRun	run = run_open("with_mlp_targets");
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Validations seen = watch_validations(&engine, &run);
	int			stopped = 0;

	UNIT_CHECK(seen.count > 4);
	for (int patience = 1; patience <= seen.count; patience++)
	{
		TrainOptions options = hasty_options(&run, patience);
		Trainer    *trainer = run_trainer(&engine, &run, &options, &no_limit);
		TrainerReport report;
		AdapterFiles files;
		int			best;
		int			end = find_end(&seen, patience, &best);

		while (trainer_run_to(&engine, trainer, TRAINER_STEPPED))
			;
		trainer_report(trainer, &report);
		UNIT_EQUAL_INT(report.micro_step, seen.steps[end]);
		UNIT_EQUAL_INT(report.best_micro_step, seen.steps[best]);
		UNIT_EQUAL_INT(report.stopped, end - best == patience);
		stopped += report.stopped;
		files = trainer_adapter(&engine, trainer);
		UNIT_CHECK(same_adapters(&files, &seen.files[best]));
		trainer_free(trainer);
	}
	/* both ways to end were seen */
	UNIT_CHECK(stopped > 0 && stopped < seen.count);
	engine_close(&engine);
	run_close(&run);
}

UNIT_TEST(a_training_with_early_stopping_goes_on_from_any_checkpoint)
{
	TrainRun	run = run_open("with_mlp_targets");
	TrainOptions options = hasty_options(&run, 2);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Trainer    *trainer = run_trainer(&engine, &run, &options, &no_limit);
	uint8_t    *bytes[MICRO_STEPS + 2];
	size_t		sizes[MICRO_STEPS + 2];
	AdapterFiles expected;
	int			count = 0;
	bool		more = true;

	while (more)
	{
		if (!trainer_save(trainer, engine.arena, &bytes[count], &sizes[count], &engine.status))
			engine_bail("checkpoint", &engine.status);
		count++;
		more = trainer_run_to(&engine, trainer, TRAINER_STEPPED);
	}
	/* the last one is of a training that is over, with its result */
	if (!trainer_save(trainer, engine.arena, &bytes[count], &sizes[count], &engine.status))
		engine_bail("checkpoint", &engine.status);
	count++;
	expected = trainer_adapter(&engine, trainer);
	trainer_free(trainer);
	for (int i = 0; i < count; i++)
	{
		AdapterFiles files;

		trainer = run_trainer(&engine, &run, &options, &no_limit);
		if (!trainer_restore(trainer, bytes[i], sizes[i], &engine.status))
			engine_bail("restore", &engine.status);
		while (trainer_run_to(&engine, trainer, TRAINER_STEPPED))
			;
		files = trainer_adapter(&engine, trainer);
		UNIT_CHECK(same_adapters(&expected, &files));
		trainer_free(trainer);
	}
	engine_close(&engine);
	run_close(&run);
}

UNIT_TEST(early_stopping_needs_rows_held_out)
{
	static const char alone[] = "{\"early_stopping\": 3}";
	static const char few[] = "{\"early_stopping\": 3, \"validation\": 0.01}";
	static const int32_t ids[] = {1, 5, 6, 7};
	TrainingRow row = {.ids = ids, .labels = ids, .count = 4};
	Engine		engine = engine_open(MODEL_A, "auto", 1, 0);
	TrainOptions options;
	Trainer    *trainer;

	train_options_defaults(&options);
	UNIT_EQUAL_INT(options.early_stopping, 0);
	UNIT_CHECK(!train_options_read(alone, strlen(alone), &options, &engine.status));
	UNIT_EQUAL_INT(engine.status.code, STATUS_INVALID_ARGUMENT);
	UNIT_CONTAINS(engine.status.message, "\"early_stopping\" needs rows that are held out");
	train_options_defaults(&options);
	UNIT_CHECK(train_options_read(few, strlen(few), &options, &engine.status));
	trainer = trainer_create(engine.model, &options, NULL, &engine.status);
	for (int i = 0; i < 10; i++)
		UNIT_CHECK(trainer_add_row(trainer, &row, &engine.status));
	UNIT_CHECK(!trainer_start(trainer, 0, &engine.status));
	UNIT_EQUAL_INT(engine.status.code, STATUS_INVALID_ARGUMENT);
	UNIT_CONTAINS(engine.status.message, "0.01 of 10 rows is none");
	trainer_free(trainer);
	engine_close(&engine);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
