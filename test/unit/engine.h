/*
 * engine.h - an open model, and the golden data it is held against, for unit tests.
 *
 * Everything here ends the program when the test's own data is missing or the
 * model can't be opened: a test without its data proves nothing.
 */
#ifndef MMGPT_TEST_ENGINE_H
#define MMGPT_TEST_ENGINE_H

#include <jansson.h>
#include <unistd.h>

#include "generation.h"
#include "kernels.h"
#include "model.h"
#include "scheduler.h"
#include "unit.h"

#define MODEL_A "test/golden/model-a"
#define DEMO_MODEL "demo/model"

/* End the program with the failure's message. */
static UNIT_UNUSED void
engine_bail(const char *what, const Status *status)
{
	printf("Bail out! %s: %s\n", what, status == NULL ? "memory is out" : status->message);
	exit(2);
}

/* Read a JSON file. */
static UNIT_UNUSED json_t *
golden_json(const char *path)
{
	json_error_t error;
	json_t	   *root = json_load_file(path, JSON_ALLOW_NUL, &error);

	if (root == NULL)
	{
		printf("Bail out! %s: %s\n", path, error.text);
		exit(2);
	}
	return root;
}

/* A safetensors file of expected values, read whole; trusted, unlike what the engine reads. */
typedef struct GoldenFile
{
	char	   *bytes;
	json_t	   *header;
	const char *data;
} GoldenFile;

/* Takes bytes of the C heap over; name is for messages. */
static UNIT_UNUSED GoldenFile
golden_parse(char *bytes, const char *name)
{
	GoldenFile	file = {.bytes = bytes};
	uint64_t	length;
	json_error_t error;

	memcpy(&length, file.bytes, sizeof(length));
	file.header = json_loadb(file.bytes + sizeof(length), (size_t) length, 0, &error);
	file.data = file.bytes + sizeof(length) + length;
	if (file.header == NULL)
	{
		printf("Bail out! %s: %s\n", name, error.text);
		exit(2);
	}
	return file;
}

static UNIT_UNUSED GoldenFile
golden_open(const char *path)
{
	return golden_parse(unit_read_file(path, NULL), path);
}

static UNIT_UNUSED void
golden_close(GoldenFile *file)
{
	json_decref(file->header);
	free(file->bytes);
}

/* The values of "prefix" followed by "suffix" and, where count is not NULL, how many there are. */
static UNIT_UNUSED const void *
golden_values(const GoldenFile *file, const char *prefix, const char *suffix, int *count)
{
	char		name[256];
	json_t	   *offsets;

	snprintf(name, sizeof(name), "%s%s", prefix, suffix);
	offsets = json_object_get(json_object_get(file->header, name), "data_offsets");
	if (offsets == NULL)
	{
		printf("Bail out! no tensor %s\n", name);
		exit(2);
	}
	if (count != NULL)			/* all values are 4 bytes long */
		*count = (int) (json_integer_value(json_array_get(offsets, 1)) -
						json_integer_value(json_array_get(offsets, 0))) / 4;
	return file->data + json_integer_value(json_array_get(offsets, 0));
}

/* Ids of a JSON array, on the heap. */
static UNIT_UNUSED int32_t *
golden_ids(const json_t *array, int *count)
{
	int32_t    *ids = calloc(json_array_size(array) + 1, sizeof(int32_t));

	if (ids == NULL)
		engine_bail("ids", NULL);
	for (size_t i = 0; i < json_array_size(array); i++)
		ids[i] = (int32_t) json_integer_value(json_array_get(array, i));
	*count = (int) json_array_size(array);
	return ids;
}

/* A model on the kernels and threads that a test wants. */
typedef struct Engine
{
	Backend    *backend;
	Model	   *model;
	Tokenizer  *tokenizer;
	Arena	   *arena;
	const ModelConfig *config;
	Status		status;			/* of the last failure */
} Engine;

/* A model on a backend, which it takes over. */
static UNIT_UNUSED Engine
engine_open_with(const char *directory, Backend *backend, const ModelOptions *options)
{
	SpecialTokens special;
	Engine		engine = {.backend = backend};
	char		path[256];

	engine.arena = arena_create();
	engine.model = model_open(directory, engine.backend, options, &engine.status);
	if (engine.model == NULL)
		engine_bail(directory, &engine.status);
	engine.config = model_config(engine.model);
	special = (SpecialTokens) {engine.config->unk, engine.config->bos, engine.config->eos,
							   engine.config->endofchunk, engine.config->image, engine.config->pad};
	snprintf(path, sizeof(path), "%s/tokenizer.model", directory);
	engine.tokenizer = tokenizer_open(path, &special, engine.config->decoder.base_vocabulary,
									  &engine.status);
	if (engine.tokenizer == NULL)
		engine_bail(path, &engine.status);
	return engine;
}

/* attend_previous as in ModelOptions. */
static UNIT_UNUSED Engine
engine_open_on(const char *directory, Backend *backend, int attend_previous, WeightFormat weights)
{
	ModelOptions options = {.weights = weights,
							.attend_previous = attend_previous,
							.max_step_tokens = 512,
							.max_step_logits = 256,
							.max_images = 4};

	return engine_open_with(directory, backend, &options);
}

static UNIT_UNUSED Engine
engine_open_format(const char *directory, const char *instruction_set, int threads,
				   int attend_previous, WeightFormat weights)
{
	CpuOptions	cpu = {threads, instruction_set};
	Status		status;
	Backend    *backend = backend_open_cpu(&cpu, &status);

	if (backend == NULL)
		engine_bail(instruction_set, &status);
	return engine_open_on(directory, backend, attend_previous, weights);
}

/* In f32, as the golden data was computed. */
static UNIT_UNUSED Engine
engine_open(const char *directory, const char *instruction_set, int threads, int attend_previous)
{
	return engine_open_format(directory, instruction_set, threads, attend_previous, WEIGHTS_F32);
}

static UNIT_UNUSED void
engine_close(Engine *engine)
{
	tokenizer_close(engine->tokenizer);
	model_close(engine->model);
	engine->backend->ops->close(engine->backend);
	arena_free(engine->arena);
}

/*
 * Make a directory in PEFT's form around model-a's LoRA tensors. directory is a template of
 * mkdtemp.
 */
static UNIT_UNUSED void
engine_make_adapter(char *directory)
{
	json_t	   *config = golden_json(MODEL_A "/config.json");
	json_t	   *lora = json_object_get(config, "lora");
	json_t	   *adapter = json_pack(
		"{s:s, s:O, s:O, s:O}", "peft_type", "LORA", "r", json_object_get(lora, "r"), "lora_alpha",
		json_object_get(lora, "alpha"), "target_modules", json_object_get(lora, "target_modules"));
	char	   *tensors = realpath(MODEL_A "/lora_forward.safetensors", NULL);
	char		path[256];

	if (mkdtemp(directory) == NULL || tensors == NULL)
		engine_bail(directory, NULL);
	snprintf(path, sizeof(path), "%s/adapter_config.json", directory);
	if (json_dump_file(adapter, path, 0) != 0)
		engine_bail(path, NULL);
	snprintf(path, sizeof(path), "%s/adapter_model.safetensors", directory);
	if (symlink(tensors, path) != 0)
		engine_bail(path, NULL);
	free(tensors);
	json_decref(adapter);
	json_decref(config);
}

/* Remove a model's directory that a test made. */
static UNIT_UNUSED void
engine_remove_model(const char *directory)
{
	static const char *const names[] = {"config.json", "tokenizer.model", "model.safetensors"};
	char		path[256];

	for (int i = 0; i < 3; i++)
	{
		snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
		unlink(path);
	}
	rmdir(directory);
}

static UNIT_UNUSED void
engine_remove_adapter(const char *directory)
{
	char		path[256];

	snprintf(path, sizeof(path), "%s/adapter_config.json", directory);
	unlink(path);
	snprintf(path, sizeof(path), "%s/adapter_model.safetensors", directory);
	unlink(path);
	rmdir(directory);
}

/* Encode pictures for one request; NULL for none. */
static UNIT_UNUSED Media *
engine_encode(Engine *engine, const Picture *pictures, int count, Adapter *adapter)
{
	Media	   *media = NULL;

	if (count > 0 &&
		!model_encode_images(engine->model, 1, &count, &adapter, pictures, &media, &engine->status))
		engine_bail("pictures", &engine->status);
	return media;
}

/*
 * The logits of all ids, f32 [count, V] on the heap, computed in steps of at most `chunk`
 * tokens. chunk 1 is what decoding with the cache does.
 */
static UNIT_UNUSED float *
engine_forward(Engine *engine, const Picture *pictures, int picture_count, Adapter *adapter,
			   const int32_t *ids, int count, int chunk)
{
	size_t		vocabulary = (size_t) engine->config->decoder.vocabulary;
	float	   *logits = calloc((size_t) count * vocabulary, sizeof(float));
	Media	   *media = engine_encode(engine, pictures, picture_count, adapter);
	Sequence *sequence = sequence_open(engine->model, media, adapter, ids, count, &engine->status);

	if (logits == NULL || sequence == NULL ||
		!sequence_reserve(engine->model, sequence, count, &engine->status))
		engine_bail("sequence", &engine->status);
	for (int first = 0; first < count; first += chunk)
	{
		int			rows = count - first < chunk ? count - first : chunk;
		StepItem	item = {sequence, ids + first, rows, rows};

		if (!model_step(engine->model, &item, 1, &engine->status) ||
			!model_read_logits(engine->model, rows, logits + (size_t) first * vocabulary,
							   &engine->status))
			engine_bail("step", &engine->status);
	}
	sequence_close(engine->model, sequence);
	media_release(engine->model, media);
	return logits;
}

/* A generation for the scheduler: prompt copied, greedy unless options say otherwise. */
static UNIT_UNUSED Generation *
engine_generation(Engine *engine, const int32_t *ids, int count, PictureSet *set,
				  const RequestOptions *options)
{
	Generation *generation = arena_take(engine->arena, sizeof(Generation));
	int32_t    *prompt = arena_take_array(engine->arena, (size_t) count, sizeof(int32_t));

	if (generation == NULL || prompt == NULL)
		engine_bail("generation", NULL);
	memcpy(prompt, ids, (size_t) count * sizeof(int32_t));
	if (!generation_begin(generation, engine->arena, engine->config, prompt, count, set, options,
						  &engine->status))
		engine_bail("generation", &engine->status);
	if (set != NULL)
		generation->adapter = set->adapter;
	return generation;
}

/* Release the pictures of a finished generation, as others may wait for their room. */
static UNIT_UNUSED void
engine_finished(Generation *generation, void *argument)
{
	if (generation->pictures != NULL)
		scheduler_release_pictures(argument, generation->pictures);
}

/*
 * Let generations run together to their end, with so many tokens of prompts in a step beside
 * running answers. Each has pictures of its own.
 */
static UNIT_UNUSED void
engine_run_chunks(Engine *engine, Generation **generations, int count, int chunk,
				  SchedulerCounters *counters)
{
	Scheduler *scheduler = scheduler_create(engine->model, engine->tokenizer,
											&(SchedulerOptions){.prompt_chunk = chunk},
											&engine->status);

	if (scheduler == NULL)
		engine_bail("scheduler", &engine->status);
	for (int i = 0; i < count; i++)
	{
		generations[i]->finished = engine_finished;
		generations[i]->argument = scheduler;
		scheduler_submit(scheduler, generations[i]);
	}
	while (scheduler_step(scheduler))
		;
	if (counters != NULL)
		scheduler_counters(scheduler, counters);
	scheduler_free(scheduler);
}

/* The same with all tokens that a step has room for, so that steps can be counted. */
static UNIT_UNUSED void
engine_run(Engine *engine, Generation **generations, int count, SchedulerCounters *counters)
{
	engine_run_chunks(engine, generations, count, 512, counters);
}

#endif
