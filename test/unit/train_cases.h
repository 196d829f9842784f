/*
 * train_cases.h - the original's training runs of test/golden/model-a, as trainers.
 */
#ifndef MMGPT_TRAIN_CASES_H
#define MMGPT_TRAIN_CASES_H

#include "golden_cases.h"
#include "trainer_internal.h"

/* For run_trainer. */
static UNIT_UNUSED const size_t no_limit = 0;

/* One run of training.json with its tensors. */
typedef struct TrainRun
{
	json_t	   *root;
	const json_t *record;
	const char *name;
	GoldenFile	tensors;
	GoldenFile	pixels;			/* forward.safetensors */
} TrainRun;

static UNIT_UNUSED TrainRun
run_open(const char *name)
{
	TrainRun	run = {.root = golden_json(MODEL_A "/training.json"), .name = name};
	char		path[256];

	for (size_t i = 0; i < json_array_size(run.root); i++)
	{
		const json_t *record = json_array_get(run.root, i);

		if (strcmp(json_string_value(json_object_get(record, "name")), name) == 0)
			run.record = record;
	}
	snprintf(path, sizeof(path), MODEL_A "/train.%s.safetensors", name);
	run.tensors = golden_open(path);
	run.pixels = golden_open(MODEL_A "/forward.safetensors");
	if (run.record == NULL)
		engine_bail(name, NULL);
	return run;
}

static UNIT_UNUSED void
run_close(TrainRun *run)
{
	golden_close(&run->tensors);
	golden_close(&run->pixels);
	json_decref(run->root);
}

static UNIT_UNUSED double
run_number(const TrainRun *run, const char *key)
{
	return json_number_value(json_object_get(run->record, key));
}

/* The i-th number of a list of the record. */
static UNIT_UNUSED double
run_listed(const TrainRun *run, const char *key, int i)
{
	return json_number_value(json_array_get(json_object_get(run->record, key), (size_t) i));
}

/* A run's options. */
static UNIT_UNUSED TrainOptions
run_options(const TrainRun *run)
{
	TrainOptions options;
	Status		status;
	json_t	   *json = json_pack("{s:O, s:b}", "target_modules",
								 json_object_get(run->record, "targets"), "shuffle", false);
	static const char *const keys[][2] = {
		{"r", "r"},
		{"alpha", "alpha"},
		{"learning_rate", "lr"},
		{"weight_decay", "weight_decay"},
		{"warmup_steps", "warmup_steps"},
		{"schedule", "lr_scheduler"},
		{"clip", "clip"},
		{"accumulation", "accumulation"},
		{"batch_size", "batch_size"},
		{"micro_steps", "micro"},
	};
	char	   *text;

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		json_object_set(json, keys[i][0], json_object_get(run->record, keys[i][1]));
	text = json_dumps(json, 0);
	train_options_defaults(&options);
	if (!train_options_read(text, strlen(text), &options, &status))
		engine_bail("options", &status);
	free(text);
	json_decref(json);
	return options;
}

/* The original's name of a matrix, behind a prefix like "init.". */
static UNIT_UNUSED const float *
run_values(const TrainRun *run, const char *prefix, const AdapterMatrix *matrix)
{
	char		name[LORA_NAME_SIZE + 64];

	snprintf(name, sizeof(name),
			 "lang_encoder.base_model.model.model.layers.%d.%s%s.lora_%c.default.weight",
			 matrix->layer, matrix->target < LORA_TO_Q ? "decoder_layer." : "",
			 lora_target_path(matrix->target), matrix->b ? 'B' : 'A');
	return golden_values(&run->tensors, prefix, name, NULL);
}

static UNIT_UNUSED void
give_initial(void *argument, const AdapterMatrix *matrix, float *values)
{
	memcpy(values, run_values(argument, "init.", matrix),
		   (size_t) matrix->rows * (size_t) matrix->columns * sizeof(float));
}

/* Write an adapter to a directory that a template of mkdtemp names. */
static UNIT_UNUSED void
save_adapter(Engine *engine, const AdapterShape *shape, AdapterMatrixFunction give,
			 const void *argument, char *directory)
{
	AdapterFiles files;

	if (mkdtemp(directory) == NULL ||
		!adapter_files_make(engine->model, shape, give, (void *) argument, engine->arena, &files,
							&engine->status) ||
		!adapter_files_save(&files, directory, &engine->status))
		engine_bail(directory, &engine->status);
}

/* The pictures of the i-th row of a batch. */
static UNIT_UNUSED const float *
batch_picture(const TrainRun *run, const char *batch, int i)
{
	const json_t *images = json_object_get(
		json_object_get(run->record, "images_of_vision_batch"), batch);
	char		name[32];

	snprintf(name, sizeof(name), "%s", json_string_value(json_array_get(images, (size_t) i)));
	*strrchr(name, '.') = '\0';
	return golden_values(&run->pixels, "pixels.", name, NULL);
}

/* Give the rows of one batch to the trainer, without their padding. */
static UNIT_UNUSED void
add_batch(Engine *engine, Trainer *trainer, const TrainRun *run, const char *batch, bool images)
{
	int			total;
	int			rows = (int) run_number(run, "batch_size");
	const int32_t *ids = golden_values(&run->tensors, batch, ".input_ids", &total);
	const int32_t *labels = golden_values(&run->tensors, batch, ".labels", NULL);
	const int32_t *mask = golden_values(&run->tensors, batch, ".attention_mask", NULL);
	int			width = total / rows;

	for (int i = 0; i < rows; i++)
	{
		Picture		picture = {NULL, images ? batch_picture(run, batch, i) : NULL};
		TrainingRow row = {ids + i * width, labels + i * width, 0, &picture, images ? 1 : 0};

		while (row.count < width && mask[i * width + row.count] != 0)
			row.count++;
		if (!trainer_add_row(trainer, &row, &engine->status))
			engine_bail(batch, &engine->status);
	}
}

/* Give the distinct batches of one kind to the trainer, in the order of their first use. */
static UNIT_UNUSED void
add_batches(Engine *engine, Trainer *trainer, const TrainRun *run, const char *key, bool images)
{
	const json_t *list = json_object_get(run->record, key);

	for (size_t i = 0; i < json_array_size(list); i++)
	{
		const char *batch = json_string_value(json_array_get(list, i));
		bool		seen = false;

		for (size_t j = 0; j < i; j++)
			seen = seen || strcmp(batch, json_string_value(json_array_get(list, j))) == 0;
		if (!seen)
			add_batch(engine, trainer, run, batch, images);
	}
}

/* A trainer with a run's rows and first values; limit as for trainer_start, NULL: not started. */
static UNIT_UNUSED Trainer *
run_trainer(Engine *engine, const TrainRun *run, const TrainOptions *options, const size_t *limit)
{
	char		directory[] = "/tmp/mmgpt-train-XXXXXX";
	AdapterShape shape = {options->r, options->alpha, options->targets};
	AdapterSource initial = {.directory = directory};
	Trainer    *trainer;

	save_adapter(engine, &shape, give_initial, run, directory);
	trainer = trainer_create(engine->model, options, &initial, &engine->status);
	engine_remove_adapter(directory);
	if (trainer == NULL)
		engine_bail(run->name, &engine->status);
	add_batches(engine, trainer, run, "vision_batches", true);
	add_batches(engine, trainer, run, "language_batches", false);
	if (limit != NULL && !trainer_start(trainer, *limit, &engine->status))
		engine_bail("start", &engine->status);
	return trainer;
}

/* Go on to the next event of this kind; false if the training ended or failed before. */
static UNIT_UNUSED bool
trainer_run_to(Engine *engine, Trainer *trainer, TrainerEvent wanted)
{
	TrainerEvent event;

	do
		if (!trainer_step_slice(trainer, &event, &engine->status))
			return UNIT_FAIL("%s", engine->status.message);
	while (event != wanted && event != TRAINER_DONE);
	return event == wanted;
}

/* The tensors' file of the adapter as it is now, in the engine's arena. */
static UNIT_UNUSED AdapterFiles
trainer_adapter(Engine *engine, const Trainer *trainer)
{
	AdapterFiles files;

	if (!trainer_make_adapter(trainer, engine->arena, &files, &engine->status))
		engine_bail("adapter", &engine->status);
	return files;
}

static UNIT_UNUSED bool
same_adapters(const AdapterFiles *a, const AdapterFiles *b)
{
	return a->tensors_size == b->tensors_size &&
		memcmp(a->tensors, b->tensors, a->tensors_size) == 0;
}

/* All matrices of a trainer, one after another; false past the last. */
static UNIT_UNUSED bool
each_matrix(const Trainer *trainer, int *place, AdapterMatrix *matrix)
{
	for (; *place < trainer->model->config.decoder.layers * LORA_TARGETS * 2; ++*place)
	{
		int			outputs;
		int			inputs;

		matrix->layer = *place / 2 / LORA_TARGETS;
		matrix->target = (LoraTarget) (*place / 2 % LORA_TARGETS);
		matrix->b = *place % 2 == 1;
		if (!lora_trains(trainer, matrix->layer, matrix->target))
			continue;
		lora_target_shape(&trainer->model->config, matrix->target, &outputs, &inputs);
		matrix->rows = matrix->b ? outputs : trainer->parameters.shape.r;
		matrix->columns = matrix->b ? trainer->parameters.shape.r : inputs;
		++*place;
		return true;
	}
	return false;
}

#endif
