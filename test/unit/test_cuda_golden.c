/*
 * test_cuda_golden.c - whole models on the CUDA library: the original's logits, answers and training
 * runs, and the formats of weights against the processor's.
 *
 * Not all cases of test_golden.c and test_train.c: through the emulation each costs seconds, and what
 * differs between cases is model code that those tests hold already.
 */
#include "adapter_variants.h"
#include "cuda_pair.h"
#include "train_cases.h"

/* As test_golden.c and test_train.c. */
#define TENSOR_TOLERANCE 2e-4
#define TRAIN_TOLERANCE 1e-4
/* Micro steps that are compared: two optimizer steps. */
#define TRAIN_STEPS 3

/* The case's model on the device. */
static Engine
open_case(const json_t *item)
{
	return engine_open_on(MODEL_A, open_cuda(),
						  json_is_true(json_object_get(item, "attend_previous")), WEIGHTS_F32);
}

/* Logits of a case by an engine, f32 [*count, V] on the heap, in steps of chunk tokens. */
static float *
run_case(const ForwardCases *cases, Engine *engine, const char *name, Adapter *adapter, int chunk,
		 int *count)
{
	const json_t *item = find_case(cases, name);
	Picture		pictures[4];
	int			picture_count = case_pictures(cases, item, pictures);
	const int32_t *ids = golden_values(&cases->tensors, name, ".ids", count);

	return engine_forward(engine, pictures, picture_count, adapter, ids, *count, chunk);
}

/* Compare the stored rows of a case. */
static void
check_logits(const ForwardCases *cases, const char *name, const float *logits, int vocabulary)
{
	const float *expected = golden_values(&cases->tensors, name, ".logits", NULL);
	int			count;
	const int32_t *positions = golden_values(&cases->tensors, name, ".positions", &count);

	UNIT_CHECK(count > 0);
	for (int i = 0; i < count; i++)
		if (!UNIT_NEAR_ALL(logits + (size_t) positions[i] * (size_t) vocabulary,
						   expected + (size_t) i * (size_t) vocabulary, (size_t) vocabulary,
						   TENSOR_TOLERANCE))
			printf("# %s, position %d\n", name, (int) positions[i]);
}

/* One picture, several, none, in both media modes. */
UNIT_TEST(forward_cases_match)
{
	static const char *const names[] = {"vision_one_round", "two_images"};
	ForwardCases cases = open_cases();

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	for (size_t i = 0; i < json_array_size(cases.list); i++)
	{
		const json_t *item = json_array_get(cases.list, i);
		const char *name = case_name(item);
		Engine		engine;
		int			count;
		float	   *logits;

		/* all that are short, and both whose layers are stored */
		golden_values(&cases.tensors, name, ".ids", &count);
		if (count > 40 && strcmp(name, names[0]) != 0 && strcmp(name, names[1]) != 0)
			continue;
		engine = open_case(item);
		logits = run_case(&cases, &engine, name, NULL, 256, &count);
		check_logits(&cases, name, logits, engine.config->decoder.vocabulary);
		free(logits);
		engine_close(&engine);
	}
	close_cases(&cases);
}

/*
 * Steps of three tokens give the very bits of one step. From the third step on they run from a
 * record, see BackendOps.step_begin.
 */
UNIT_TEST(steps_of_any_size_give_the_same_bits)
{
	static const WeightFormat formats[] = {WEIGHTS_F32, WEIGHTS_BF16, WEIGHTS_Q8, WEIGHTS_Q4};
	ForwardCases cases = open_cases();

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	for (int i = 0; i < 4; i++)
	{
		Engine		engine = engine_open_on(MODEL_A, open_cuda(), 0, formats[i]);
		int			count;
		float	   *whole = run_case(&cases, &engine, "vision_one_round", NULL, 256, &count);
		float	   *pieces = run_case(&cases, &engine, "vision_one_round", NULL, 3, &count);

		if (memcmp(whole, pieces, (size_t) count *
				   (size_t) engine.config->decoder.vocabulary * sizeof(float)) != 0)
			UNIT_FAIL("%s: other bits", data_type_name(model_format(engine.model)));
		free(whole);
		free(pieces);
		engine_close(&engine);
	}
	close_cases(&cases);
}

UNIT_TEST(forward_with_lora_matches)
{
	ForwardCases cases = open_cases();
	GoldenFile	expected = golden_open(MODEL_A "/lora_forward_expected.safetensors");
	char		directory[] = "/tmp/mmgpt-adapter-XXXXXX";
	const char *name = json_string_value(json_array_get(json_object_get(cases.root, "lora_forward"),
														0));
	Engine		engine;
	Adapter    *adapter;
	int			values;
	int			count;
	const float *last = golden_values(&expected, name, ".logits_last4", &values);
	float	   *logits;

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	engine_make_adapter(directory);
	engine = open_case(find_case(&cases, name));
	adapter = adapter_open(engine.model, directory, &engine.status);
	if (adapter == NULL)
		engine_bail(directory, &engine.status);
	logits = run_case(&cases, &engine, name, adapter, 256, &count);
	UNIT_NEAR_ALL(logits + (size_t) count * (size_t) engine.config->decoder.vocabulary -
				  (size_t) values, last, (size_t) values, TENSOR_TOLERANCE);
	free(logits);
	adapter_close(engine.model, adapter);
	engine_close(&engine);
	engine_remove_adapter(directory);
	golden_close(&expected);
	close_cases(&cases);
}

UNIT_TEST(greedy_answers_match)
{
	ForwardCases cases = open_cases();
	json_t	   *generation = golden_json(MODEL_A "/generation.json");
	json_t	   *list = json_object_get(generation, "greedy");

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	for (size_t i = 0; i < 2 && i < json_array_size(list); i++)
	{
		const json_t *entry = json_array_get(list, i);
		const char *name = json_string_value(json_object_get(entry, "case"));
		const json_t *item = find_case(&cases, name);
		Engine		engine = open_case(entry);
		Picture		pictures[4];
		PictureSet	set = {.pictures = pictures, .count = case_pictures(&cases, item, pictures)};
		RequestOptions options;
		int			count;
		const int32_t *ids = golden_values(&cases.tensors, name, ".ids", &count);
		int			expected_count;
		int32_t    *expected = golden_ids(json_object_get(entry, "ids"), &expected_count);
		Generation *answer;

		request_options_defaults(&options);
		options.max_tokens = (int) json_integer_value(json_object_get(entry, "max_new_tokens"));
		options.eos_token_id = (int) json_integer_value(json_object_get(entry, "eos"));
		answer = engine_generation(&engine, ids, count, set.count > 0 ? &set : NULL, &options);
		answer->allow_special = true;
		engine_run(&engine, &answer, 1, NULL);
		if (answer->count != expected_count ||
			memcmp(answer->tokens, expected, (size_t) expected_count * sizeof(int32_t)) != 0)
			UNIT_FAIL("%s: other ids", name);
		free(expected);
		engine_close(&engine);
	}
	json_decref(generation);
	close_cases(&cases);
}

/* ---- adapters ---- */

/* None, all targets, and another scale without some of them. */
#define ADAPTERS 3
/* After the third token, steps run from a record. */
#define ADAPTED_TOKENS 5

static Generation *
ask_with(Engine *engine, const ForwardCases *cases, Adapter *adapter)
{
	/* as long as the generation */
	RequestOptions *options = arena_take(engine->arena, sizeof(RequestOptions));
	Generation *generation;
	int			count;
	const int32_t *ids = golden_values(&cases->tensors, "language_only", ".ids", &count);

	request_options_defaults(options);
	options->max_tokens = ADAPTED_TOKENS;
	options->adapter = adapter;
	generation = engine_generation(engine, ids, count, NULL, options);
	generation->adapter = adapter;
	generation->eos = -1;
	return generation;
}

UNIT_TEST(different_adapters_in_one_batch_change_no_bit)
{
	ForwardCases cases = open_cases();
	AdapterVariant variants[ADAPTERS];
	Adapter    *adapters[ADAPTERS] = {NULL};
	Generation *alone[ADAPTERS];
	Generation *together[2 * ADAPTERS];
	SchedulerCounters counters;
	Engine		engine;

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	engine = engine_open_on(MODEL_A, open_cuda(), 0, WEIGHTS_F32);
	variants[1] = variant_make(GOLDEN_ALPHA, NULL);
	variants[2] = variant_make(4 * GOLDEN_ALPHA, "k_proj");
	for (int i = 0; i < ADAPTERS; i++)
	{
		if (i > 0)
			adapters[i] = adapter_open_content(engine.model, &variants[i].content,
											   &engine.status);
		if (i > 0 && adapters[i] == NULL)
			engine_bail("adapter", &engine.status);
		alone[i] = ask_with(&engine, &cases, adapters[i]);
		engine_run(&engine, &alone[i], 1, NULL);
	}
	for (int i = 0; i < 2 * ADAPTERS; i++)
		together[i] = ask_with(&engine, &cases, adapters[i % ADAPTERS]);
	engine_run(&engine, together, 2 * ADAPTERS, &counters);
	UNIT_CHECK(counters.rows > 2 * counters.steps);
	for (int i = 0; i < 2 * ADAPTERS; i++)
	{
		const Generation *other = alone[i % ADAPTERS];

		UNIT_EQUAL_INT(together[i]->count, ADAPTED_TOKENS);
		UNIT_CHECK(memcmp(together[i]->tokens, other->tokens,
						  ADAPTED_TOKENS * sizeof(int32_t)) == 0);
		UNIT_CHECK(memcmp(together[i]->log_probabilities, other->log_probabilities,
						  ADAPTED_TOKENS * sizeof(float)) == 0);
	}
	/* and each adapter does something of its own */
	for (int i = 0; i < ADAPTERS; i++)
		UNIT_CHECK(alone[i]->log_probabilities[0] !=
				   alone[(i + 1) % ADAPTERS]->log_probabilities[0]);
	for (int i = 1; i < ADAPTERS; i++)
	{
		adapter_close(engine.model, adapters[i]);
		variant_free(&variants[i]);
	}
	engine_close(&engine);
	close_cases(&cases);
}

/* ---- formats ---- */

/* Root mean square of the difference of two cases' logits, relative to that of the second. */
static double
relative_difference(const float *a, const float *b, size_t count)
{
	double		squares = 0;
	double		difference = 0;

	for (size_t i = 0; i < count; i++)
	{
		squares += (double) b[i] * (double) b[i];
		difference += ((double) a[i] - (double) b[i]) * ((double) a[i] - (double) b[i]);
	}
	return sqrt(difference / squares);
}

/*
 * Formats but f32 have no golden data of their own: the processor's logits stand for it. After sums
 * in another order some operands are rounded to the other neighbour, and each such step goes on
 * through the layers; so the yardstick is what the format itself costs, against f32.
 */
UNIT_TEST(formats_of_weights_match_the_processor)
{
	static const WeightFormat formats[] = {WEIGHTS_F32, WEIGHTS_BF16, WEIGHTS_Q8, WEIGHTS_Q4};
	ForwardCases cases = open_cases();
	float	   *exact = NULL;

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	for (int i = 0; i < 4; i++)
	{
		Engine		cuda = engine_open_on(MODEL_A, open_cuda(), 0, formats[i]);
		Engine		cpu = engine_open_format(MODEL_A, "portable", 1, 0, formats[i]);
		int			count;
		float	   *actual = run_case(&cases, &cuda, "vision_one_round", NULL, 256, &count);
		float	   *expected = run_case(&cases, &cpu, "vision_one_round", NULL, 256, &count);
		size_t		values = (size_t) count * (size_t) cpu.config->decoder.vocabulary;
		double		off = relative_difference(actual, expected, values);
		double		cost = i == 0 ? 1e-5 : relative_difference(expected, exact, values);

		if (!(off <= cost))
			UNIT_FAIL("%s: the logits are off by %g of their size, the format by %g",
					  data_type_name(model_format(cpu.model)), off, cost);
		free(actual);
		if (i == 0)
			exact = expected;
		else
			free(expected);
		engine_close(&cuda);
		engine_close(&cpu);
	}
	free(exact);
	close_cases(&cases);
}

/* ---- training ---- */

static void
check_gradients(const TrainRun *run, const Trainer *trainer)
{
	float	   *values = malloc(sizeof(float) << 20);
	AdapterMatrix matrix;
	int			place = 0;

	while (each_matrix(trainer, &place, &matrix))
	{
		UNIT_CHECK(trainer_read_gradient(trainer, &matrix, values));
		if (!UNIT_NEAR_ALL(values, run_values(run, "grad_before_clip.micro0.", &matrix),
						   (size_t) matrix.rows * (size_t) matrix.columns, TRAIN_TOLERANCE))
			printf("# layer %d, %s, %c\n", matrix.layer, lora_target_path(matrix.target),
				   matrix.b ? 'B' : 'A');
	}
	free(values);
}

UNIT_TEST(training_follows_the_original)
{
	TrainRun	run = run_open("with_mlp_targets");
	TrainOptions options = run_options(&run);
	Engine		engine;
	Trainer    *trainer;
	TrainerReport report = {0};

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	engine = engine_open_on(MODEL_A, open_cuda(), 0, WEIGHTS_F32);
	trainer = run_trainer(&engine, &run, &options, &no_limit);
	for (int i = 0; i < TRAIN_STEPS; i++)
	{
		double		norm = run_listed(&run, "grad_norm_before_clip", i);

		if (!UNIT_CHECK(trainer_run_to(&engine, trainer, TRAINER_GRADIENTS)))
			break;
		if (i == 0)
			check_gradients(&run, trainer);
		if (!UNIT_CHECK(trainer_run_to(&engine, trainer, TRAINER_STEPPED)))
			break;
		trainer_report(trainer, &report);
		UNIT_NEAR(report.loss_image, run_listed(&run, "vision_loss", i), TRAIN_TOLERANCE);
		UNIT_NEAR(report.loss_language, run_listed(&run, "language_loss", i), TRAIN_TOLERANCE);
		UNIT_NEAR(report.gradient_norm, norm, TRAIN_TOLERANCE * norm);
	}
	UNIT_EQUAL_INT(report.micro_step, TRAIN_STEPS);
	trainer_free(trainer);
	engine_close(&engine);
	run_close(&run);
}

/* The last test: the device that it leaves behind is of no use. */
UNIT_TEST(nothing_is_chosen_from_what_a_failing_device_computed)
{
	ForwardCases cases = open_cases();
	ChoiceRule	rule = {.top_p = 1.0f};
	Choice		choice = {-1, 0.0f};
	float	   *logits;
	Engine		engine;
	int			count;

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		UNIT_SKIP(CUDA_SKIPPED);
	if (strstr(getenv("MMGPT_CUDA_LIBRARY"), "cuda_on_host") == NULL)
		UNIT_SKIP("a real device is not broken on purpose");
	engine = engine_open_on(MODEL_A, open_cuda(), 0, WEIGHTS_F32);
	logits = run_case(&cases, &engine, "vision_one_round", NULL, 256, &count);
	UNIT_CHECK(model_choose(engine.model, 1, &rule, &choice, &engine.status));
	UNIT_CHECK(choice.token >= 0);
	setenv("CUDA_ON_HOST_FAILS_AT", "1", 1);
	UNIT_CHECK(!model_choose(engine.model, 1, &rule, &choice, &engine.status));
	UNIT_EQUAL_INT(engine.status.code, STATUS_INTERNAL);
	free(logits);
	engine_close(&engine);
	close_cases(&cases);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
