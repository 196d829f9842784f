/*
 * test_train_bits.c - what must not change a training's result by a bit: threads, memory,
 * checkpoints; and what is refused: too little memory, wrong checkpoints.
 */
#include "train_cases.h"

/* A training with shuffling, accumulation and rows held out: everything that has state. */
static TrainOptions
lively_options(const TrainRun *run)
{
	TrainOptions options = run_options(run);

	options.shuffle = true;
	options.seed = 5;
	options.batch_size = 2;
	options.accumulation = 3;
	options.micro_steps = 8;
	options.validation = 0.25;
	return options;
}

/* Train to the end; the adapter lies in the engine's arena. */
static AdapterFiles
train_whole(Engine *engine, Trainer *trainer)
{
	AdapterFiles files;

	while (trainer_run_to(engine, trainer, TRAINER_STEPPED))
		;
	files = trainer_adapter(engine, trainer);
	trainer_free(trainer);
	return files;
}

UNIT_TEST(threads_change_no_bit)
{
	TrainRun	run = run_open("with_mlp_targets");
	TrainOptions options = lively_options(&run);
	static const WeightFormat formats[] = {WEIGHTS_F32, WEIGHTS_BF16, WEIGHTS_Q8, WEIGHTS_Q4};
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		for (int format = 0; format < 4; format++)
		{
			Engine		engines[3];
			AdapterFiles files[3];

			for (int i = 0; i < 3; i++)
			{
				engines[i] = engine_open_format(MODEL_A, set, i + 1, 0, formats[format]);
				files[i] = train_whole(&engines[i],
									   run_trainer(&engines[i], &run, &options, &no_limit));
				UNIT_CHECK(same_adapters(&files[0], &files[i]));
			}
			for (int i = 0; i < 3; i++)
				engine_close(&engines[i]);
		}
	}
	run_close(&run);
}

/* Less memory means smaller passes and layers computed anew, never other results. */
UNIT_TEST(memory_changes_no_bit)
{
	TrainRun	run = run_open("with_mlp_targets");
	TrainOptions options = lively_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Trainer    *roomy = run_trainer(&engine, &run, &options, &no_limit);
	TrainerMemory memory;
	AdapterFiles expected;
	int			plans = 0;
	int			kept = 1;

	trainer_memory(roomy, &memory);
	UNIT_EQUAL_INT(memory.kept_layers, 4);
	expected = train_whole(&engine, roomy);
	while (kept > 0)
	{
		size_t		limit = memory.total - 1;
		Trainer    *tight = run_trainer(&engine, &run, &options, &limit);
		AdapterFiles files;

		trainer_memory(tight, &memory);
		UNIT_CHECK(memory.total <= limit);
		kept = memory.kept_layers;
		UNIT_CHECK(plans == 0 ? kept == 4 : kept == 3 - plans);
		files = train_whole(&engine, tight);
		UNIT_CHECK(same_adapters(&expected, &files));
		plans++;
	}
	/* passes of a single row; then 2, 1, 0 layers kept, as the place to compute others costs one */
	UNIT_EQUAL_INT(plans, 4);
	engine_close(&engine);
	run_close(&run);
}

UNIT_TEST(a_training_that_cannot_fit_is_refused_with_the_numbers)
{
	TrainRun	run = run_open("upstream_targets");
	TrainOptions options = run_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Trainer    *trainer = run_trainer(&engine, &run, &options, NULL);

	UNIT_CHECK(!trainer_start(trainer, (size_t) 1 << 20, &engine.status));
	UNIT_EQUAL_INT(engine.status.code, STATUS_OUT_OF_MEMORY);
	UNIT_CONTAINS(engine.status.message, "may take 1 MB");
	UNIT_CONTAINS(engine.status.detail, "MB for activations of");
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

/* A copy of what trainer_save gives. */
static uint8_t *
save_state(Engine *engine, const Trainer *trainer, size_t *size)
{
	uint8_t    *bytes;

	if (!trainer_save(trainer, engine->arena, &bytes, size, &engine->status))
		engine_bail("checkpoint", &engine->status);
	return bytes;
}

UNIT_TEST(a_training_goes_on_from_any_checkpoint)
{
	TrainRun	run = run_open("with_mlp_targets");
	TrainOptions options = lively_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	AdapterFiles expected = train_whole(&engine, run_trainer(&engine, &run, &options, &no_limit));
	Trainer    *trainer = run_trainer(&engine, &run, &options, &no_limit);

	for (int step = 0; step < options.micro_steps; step++)
	{
		size_t		size;
		uint8_t    *bytes = save_state(&engine, trainer, &size);
		Trainer    *again = run_trainer(&engine, &run, &options, &no_limit);
		TrainerReport report;
		AdapterFiles files;

		if (!trainer_restore(again, bytes, size, &engine.status))
			engine_bail("restore", &engine.status);
		trainer_report(again, &report);
		UNIT_EQUAL_INT(report.micro_step, step);
		files = train_whole(&engine, again);
		UNIT_CHECK(same_adapters(&expected, &files));
		trainer_run_to(&engine, trainer, TRAINER_STEPPED);
	}
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

/* Try to restore bytes into a fresh trainer; the message has to hold a part. */
static void
check_restore_fails(Engine *engine, const TrainRun *run, const TrainOptions *options,
					const uint8_t *bytes, size_t size, const char *part)
{
	Trainer    *trainer = run_trainer(engine, run, options, &no_limit);

	UNIT_CHECK(!trainer_restore(trainer, bytes, size, &engine->status));
	UNIT_EQUAL_INT(engine->status.code, STATUS_INVALID_ARGUMENT);
	UNIT_CONTAINS(engine->status.message, part);
	trainer_free(trainer);
}

UNIT_TEST(wrong_checkpoints_are_refused)
{
	TrainRun	run = run_open("unclipped");
	TrainOptions options = run_options(&run);
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Trainer    *trainer = run_trainer(&engine, &run, &options, &no_limit);
	uint8_t    *bytes;
	uint8_t    *middle;
	size_t		size;

	trainer_run_to(&engine, trainer, TRAINER_STEPPED);
	bytes = save_state(&engine, trainer, &size);
	trainer_run_to(&engine, trainer, TRAINER_GRADIENTS);
	UNIT_CHECK(!trainer_save(trainer, engine.arena, &middle, &size, &engine.status));
	UNIT_CONTAINS(engine.status.message, "in the middle of a micro step");
	UNIT_CHECK(!trainer_restore(trainer, bytes, size, &engine.status));
	check_restore_fails(&engine, &run, &options, bytes, size - 1, "damaged");
	check_restore_fails(&engine, &run, &options, bytes, 3, "damaged");
	options.targets = 1u << LORA_Q_PROJ;
	check_restore_fails(&engine, &run, &options, bytes, size, "does not belong");
	options = run_options(&run);
	options.seed = 9;
	check_restore_fails(&engine, &run, &options, bytes, size, "another training");
	bytes[size / 2] ^= 1;
	check_restore_fails(&engine, &run, &options, bytes, size, "damaged");
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
