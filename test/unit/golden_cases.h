/*
 * golden_cases.h - the forward cases of test/golden/model-a, which other golden data refers to
 * by name, and a pair of engines to run them.
 */
#ifndef MMGPT_GOLDEN_CASES_H
#define MMGPT_GOLDEN_CASES_H

#include "engine.h"

/* Kernels of the machine, one after another: for (i = 0; (name = kernels_available(i)); i++) */
#define FOR_EACH_INSTRUCTION_SET(name) \
	for (int set_ = 0; ((name) = kernels_available(set_)) != NULL; set_++)

/* The forward cases with their file of tensors. */
typedef struct ForwardCases
{
	json_t	   *root;
	json_t	   *list;
	GoldenFile	tensors;
} ForwardCases;

static UNIT_UNUSED ForwardCases
open_cases(void)
{
	ForwardCases cases = {golden_json(MODEL_A "/cases.json"), NULL,
						  golden_open(MODEL_A "/forward.safetensors")};

	cases.list = json_object_get(cases.root, "forward");
	return cases;
}

static UNIT_UNUSED void
close_cases(ForwardCases *cases)
{
	json_decref(cases->root);
	golden_close(&cases->tensors);
}

static UNIT_UNUSED const char *
case_name(const json_t *item)
{
	return json_string_value(json_object_get(item, "name"));
}

static UNIT_UNUSED const json_t *
find_case(const ForwardCases *cases, const char *name)
{
	for (size_t i = 0; i < json_array_size(cases->list); i++)
		if (strcmp(case_name(json_array_get(cases->list, i)), name) == 0)
			return json_array_get(cases->list, i);
	printf("Bail out! no case %s\n", name);
	exit(2);
}

/* The normalised pictures of a case; returns how many. */
static UNIT_UNUSED int
case_pictures(const ForwardCases *cases, const json_t *item, Picture pictures[4])
{
	const json_t *names = json_object_get(item, "images");
	int			count = (int) json_array_size(names);

	for (int i = 0; i < count; i++)
		pictures[i] = (Picture){
			NULL, golden_values(&cases->tensors, "pixels.",
								json_string_value(json_array_get(names, (size_t) i)), NULL)};
	return count;
}

/* Two engines, one for each media mode. */
typedef struct EnginePair
{
	Engine		modes[2];
} EnginePair;

static UNIT_UNUSED EnginePair
open_pair(const char *instruction_set, int threads)
{
	return (EnginePair) {{engine_open(MODEL_A, instruction_set, threads, 0),
						  engine_open(MODEL_A, instruction_set, threads, 1)}};
}

static UNIT_UNUSED void
close_pair(EnginePair *pair)
{
	engine_close(&pair->modes[0]);
	engine_close(&pair->modes[1]);
}

static UNIT_UNUSED Engine *
case_engine(EnginePair *pair, const json_t *item)
{
	return &pair->modes[json_is_true(json_object_get(item, "attend_previous"))];
}

/* The logits of a case, f32 [*count, V] on the heap. */
static UNIT_UNUSED float *
case_forward(const ForwardCases *cases, EnginePair *pair, const json_t *item,
			 Adapter *const adapters[2], int *count)
{
	Engine	   *engine = case_engine(pair, item);
	Adapter    *adapter = adapters == NULL ? NULL : adapters[engine - pair->modes];
	Picture		pictures[4];
	int			picture_count = case_pictures(cases, item, pictures);
	const int32_t *ids = golden_values(&cases->tensors, case_name(item), ".ids", count);

	return engine_forward(engine, pictures, picture_count, adapter, ids, *count, 256);
}

/*
 * Logits of a case with one picture by a model in a directory, [*count * V] on the heap; what the
 * model is, where description is not NULL, and in which format it computed.
 */
static UNIT_UNUSED float *
case_logits(const ForwardCases *cases, const char *directory, WeightFormat format, int *count,
			ModelDescription *description, DataType *computed)
{
	Engine		engine = engine_open_format(directory, NULL, 2, 0, format);
	const json_t *item = find_case(cases, "vision_one_round");
	Picture		pictures[4];
	int			picture_count = case_pictures(cases, item, pictures);
	const int32_t *ids = golden_values(&cases->tensors, case_name(item), ".ids", count);
	float	   *logits = engine_forward(&engine, pictures, picture_count, NULL, ids, *count, 256);

	*count *= engine.config->decoder.vocabulary;
	*computed = model_format(engine.model);
	if (description != NULL)
		model_describe(engine.model, description);
	engine_close(&engine);
	return logits;
}

#endif
