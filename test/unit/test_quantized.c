/*
 * test_quantized.c - models in 8 and 4 bits.
 *
 *	golden cases	how far logits are from the original's f32, as KL divergence
 *	files			what `quantize` writes gives the bits of quantising while loading; memory;
 *					damaged files are refused by the tensor's name
 *
 * Single operations are in test_quantized_kernels.c, the company of answers in test_invariance.c,
 * training in test_train.c and test_train_bits.c.
 */
#include "golden_cases.h"

#define MATRIX "lang_encoder.model.layers.1.decoder_layer.self_attn.q_proj.weight"

static const WeightFormat formats[] = {WEIGHTS_Q8, WEIGHTS_Q4};
static const DataType types[] = {TYPE_Q8, TYPE_Q4};

/* ---- golden cases ---- */

static double
log_sum(const float *logits, int vocabulary)
{
	double		sum = 0;

	for (int i = 0; i < vocabulary; i++)
		sum += exp(logits[i]);
	return log(sum);
}

/* KL divergence of softmax(actual) from softmax(expected). */
static double
divergence(const float *expected, const float *actual, int vocabulary)
{
	double		expected_sum = log_sum(expected, vocabulary);
	double		actual_sum = log_sum(actual, vocabulary);
	double		result = 0;

	for (int i = 0; i < vocabulary; i++)
		result += exp(expected[i] - expected_sum) *
			((expected[i] - expected_sum) - (actual[i] - actual_sum));
	return result;
}

/* Mean over the rows of all golden cases. */
static double
mean_divergence(const ForwardCases *cases, EnginePair *pair)
{
	int			vocabulary = pair->modes[0].config->decoder.vocabulary;
	double		sum = 0;
	int			compared = 0;

	for (size_t c = 0; c < json_array_size(cases->list); c++)
	{
		const json_t *item = json_array_get(cases->list, c);
		const float *expected = golden_values(&cases->tensors, case_name(item), ".logits", NULL);
		int			rows;
		const int32_t *positions = golden_values(&cases->tensors, case_name(item), ".positions",
												 &rows);
		int			count;
		float	   *logits = case_forward(cases, pair, item, NULL, &count);

		for (int i = 0; i < rows; i++)
			sum += divergence(expected + (size_t) i * (size_t) vocabulary,
							  logits + (size_t) positions[i] * (size_t) vocabulary, vocabulary);
		compared += rows;
		free(logits);
	}
	UNIT_CHECK(compared > 20);
	return sum / compared;
}

UNIT_TEST(golden_cases_diverge_little)
{
	/* in nats; model-a is narrow and its weights are random, which is hard on 4 bits */
	static const double largest[] = {6e-3, 0.5};
	ForwardCases cases = open_cases();
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
		for (int f = 0; f < 2; f++)
		{
			EnginePair	pair = {{engine_open_format(MODEL_A, set, 2, 0, formats[f]),
								 engine_open_format(MODEL_A, set, 2, 1, formats[f])}};
			double		mean = mean_divergence(&cases, &pair);

			printf("# %s %s: mean KL divergence %.2e\n", set, data_type_name(types[f]), mean);
			UNIT_CHECK(mean > 1e-9);	/* it was not f32 that ran */
			UNIT_CHECK(mean <= largest[f]);
			close_pair(&pair);
		}
	close_cases(&cases);
}

/* ---- files ---- */

/* Quantise model-a into a new directory; a template of mkdtemp. */
static void
quantize_model(char *directory, WeightFormat format, int threads)
{
	QuantizeOptions options = {.format = format, .threads = threads};
	Status		status;

	status_clear(&status);
	if (mkdtemp(directory) == NULL || !model_quantize(MODEL_A, directory, &options, &status))
		engine_bail(directory, &status);
}

UNIT_TEST(a_quantised_file_gives_the_bits_of_quantising_while_loading)
{
	ForwardCases golden = open_cases();

	for (int f = 0; f < 2; f++)
	{
		char		directory[] = "/tmp/mmgpt-model-XXXXXX";
		ModelDescription described[3];
		DataType	computed;
		int			count;
		float	   *loaded = case_logits(&golden, MODEL_A, formats[f], &count, &described[0],
										  &computed);
		float	   *stored;
		float	   *wide;

		UNIT_EQUAL_INT(computed, types[f]);
		quantize_model(directory, formats[f], f + 1);
		stored = case_logits(&golden, directory, WEIGHTS_STORED, &count, &described[1],
							  &computed);
		UNIT_EQUAL_INT(computed, types[f]);
		UNIT_CHECK(memcmp(loaded, stored, (size_t) count * sizeof(float)) == 0);
		UNIT_CHECK(described[0].weight_bytes == described[1].weight_bytes);
		/* the same weights in f32: what is left is the rounding of the other operand */
		wide = case_logits(&golden, directory, WEIGHTS_F32, &count, &described[2], &computed);
		UNIT_EQUAL_INT(computed, TYPE_F32);
		UNIT_NEAR_ALL(wide, stored, (size_t) count, 0.5);
		UNIT_CHECK(described[1].weight_bytes < described[2].weight_bytes / 2);
		free(loaded);
		free(stored);
		free(wide);
		engine_remove_model(directory);
	}
	close_cases(&golden);
}

UNIT_TEST(a_model_is_not_overwritten_nor_quantised_twice)
{
	char		directory[] = "/tmp/mmgpt-model-XXXXXX";
	QuantizeOptions options = {.format = WEIGHTS_Q4};
	Status		status;

	quantize_model(directory, WEIGHTS_Q8, 1);
	status_clear(&status);
	UNIT_CHECK(!model_quantize(MODEL_A, directory, &options, &status));
	UNIT_CONTAINS(status.message, "exists");
	status_clear(&status);
	UNIT_CHECK(!model_quantize(directory, "/nonexistent/directory", &options, &status));
	UNIT_CONTAINS(status.message, "quantised already");
	status_clear(&status);
	UNIT_CHECK(!model_quantize(MODEL_A, "/nonexistent/directory", &options, &status));
	UNIT_CONTAINS(status.message, "/nonexistent/directory");
	engine_remove_model(directory);
}

/* ---- damaged files ---- */

/* Write the file again with another header. */
static void
write_file(const char *path, const GoldenFile *file, size_t data_size)
{
	char	   *text = json_dumps(file->header, JSON_COMPACT);
	uint64_t	length = strlen(text);
	FILE	   *out = fopen(path, "wb");

	if (out == NULL || fwrite(&length, sizeof(length), 1, out) != 1 ||
		fwrite(text, 1, length, out) != length || fwrite(file->data, 1, data_size, out) != data_size ||
		fclose(out) != 0)
		engine_bail(path, NULL);
	free(text);
}

/* Open the directory; all parts have to be in the message. */
static void
check_refused(const char *directory, const char *name, const char *why)
{
	CpuOptions	cpu = {1, NULL};
	ModelOptions options = {.attend_previous = -1, .media_bytes = 1, .max_images = 1};
	Status		status;
	Backend    *backend;
	Model	   *model;

	status_clear(&status);
	backend = backend_open_cpu(&cpu, &status);
	if (backend == NULL)
		engine_bail("backend", &status);
	model = model_open(directory, backend, &options, &status);
	if (UNIT_CHECK(model == NULL))
	{
		UNIT_EQUAL_INT(status.code, STATUS_INVALID_MODEL);
		UNIT_CONTAINS(status.message, name);
		UNIT_CONTAINS(status.message, why);
	}
	model_close(model);
	backend->ops->close(backend);
}

UNIT_TEST(damaged_files_are_refused_by_the_tensors_name)
{
	enum {SCALES_GONE, SCALES_NOT_FINITE, SCALES_OF_F16, CODES_TOO_SHORT, VECTOR_OF_CODES, DAMAGES};
	static const char *const expected[DAMAGES][2] = {
		{MATRIX "_scale", "missing"}, {MATRIX "_scale", "not finite"}, {MATRIX "_scale", "BF16"},
		{MATRIX, "shape"}, {"lang_encoder.model.norm.weight", "quantised"}};

	for (int damage = 0; damage < DAMAGES; damage++)
	{
		char		directory[] = "/tmp/mmgpt-model-XXXXXX";
		char		path[256];
		size_t		size;
		char	   *bytes;
		GoldenFile	file;
		json_t	   *codes;
		json_t	   *scales;

		quantize_model(directory, WEIGHTS_Q4, 1);
		snprintf(path, sizeof(path), "%s/model.safetensors", directory);
		bytes = unit_read_file(path, &size);
		file = golden_parse(bytes, path);
		size -= (size_t) (file.data - bytes);
		codes = json_object_get(file.header, MATRIX);
		scales = json_object_get(file.header, MATRIX "_scale");
		if (damage == SCALES_NOT_FINITE)
			memset((char *) golden_values(&file, MATRIX, "_scale", NULL), 0xFF, 2);
		if (damage == SCALES_OF_F16)
			json_object_set_new(scales, "dtype", json_string("F16"));
		if (damage == CODES_TOO_SHORT)
		{
			json_t	   *shape = json_object_get(codes, "shape");
			json_int_t	columns = json_integer_value(json_array_get(shape, 1));

			/* as many bytes in another form */
			json_array_set_new(shape, 1, json_integer(columns / 2));
			json_array_set_new(shape, 0, json_integer(
				2 * json_integer_value(json_array_get(shape, 0))));
		}
		if (damage == VECTOR_OF_CODES)
		{
			json_t	   *norm = json_object_get(file.header, "lang_encoder.model.norm.weight");
			json_t	   *shape = json_object_get(norm, "shape");

			json_object_set_new(norm, "dtype", json_string("I8"));
			json_array_set_new(shape, 0, json_integer(
				4 * json_integer_value(json_array_get(shape, 0))));
		}
		if (damage == SCALES_GONE)
			json_object_del(file.header, MATRIX "_scale");
		write_file(path, &file, size);
		check_refused(directory, damage == SCALES_GONE ? "_scale" : expected[damage][0],
					  expected[damage][1]);
		golden_close(&file);
		engine_remove_model(directory);
	}
}

/* Quantising, by command or while loading, refuses numbers that are not finite. */
UNIT_TEST(a_number_that_is_not_finite_names_its_tensor)
{
	char		directory[] = "/tmp/mmgpt-model-XXXXXX";
	char		output[] = "/tmp/mmgpt-model-XXXXXX";
	CpuOptions	cpu = {1, NULL};
	ModelOptions options = {.weights = WEIGHTS_Q8, .attend_previous = -1, .media_bytes = 1,
							.max_images = 1};
	QuantizeOptions quantize = {.format = WEIGHTS_Q4};
	char		path[256];
	size_t		size;
	char	   *bytes;
	GoldenFile	file;
	Status		status;
	Backend    *backend;

	quantize_model(directory, WEIGHTS_Q8, 1);	/* for the other files */
	snprintf(path, sizeof(path), "%s/model.safetensors", directory);
	bytes = unit_read_file(MODEL_A "/model.safetensors", &size);
	file = golden_parse(bytes, path);
	memset((char *) golden_values(&file, MATRIX, "", NULL), 0xFF, 4);
	write_file(path, &file, size - (size_t) (file.data - bytes));
	status_clear(&status);
	backend = backend_open_cpu(&cpu, &status);
	UNIT_CHECK(model_open(directory, backend, &options, &status) == NULL);
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_MODEL);
	UNIT_CONTAINS(status.message, MATRIX);
	backend->ops->close(backend);
	status_clear(&status);
	if (mkdtemp(output) == NULL)
		engine_bail(output, NULL);
	UNIT_CHECK(!model_quantize(directory, output, &quantize, &status));
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_MODEL);
	UNIT_CONTAINS(status.message, MATRIX);
	snprintf(path, sizeof(path), "%s/model.safetensors", output);
	UNIT_CHECK(access(path, F_OK) != 0);
	golden_close(&file);
	engine_remove_model(directory);
	engine_remove_model(output);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
