/*
 * test_bf16.c - models that compute in bf16, and how far they are from f32.
 *
 *	golden cases	the original's f32 logits within what 8 bits of fraction allow, with and
 *					without an adapter
 *	files			f16, bf16 and mixed ones; what "as stored" means; half the memory
 *
 * Single operations are in test_bf16_kernels.c. That answers do not depend on their company is
 * tested in test_invariance.c, for both formats.
 */
#include "golden_cases.h"

/* Bounds of bf16 against the original's f32 logits. */
#define LARGEST_DIFFERENCE 0.25
#define LARGEST_RMS 0.05

/* ---- golden cases ---- */

/* How far logits are from the golden ones. */
typedef struct Distance
{
	double		largest;
	double		squares;
	size_t		count;
	int			compared;		/* rows whose best token is clear in f32 */
	int			other;			/* of them, those with another best token */
} Distance;

static int
best_token(const float *logits, int vocabulary, float *margin)
{
	int			best = 0;
	int			second = -1;

	for (int i = 1; i < vocabulary; i++)
		if (logits[i] > logits[best])
		{
			second = best;
			best = i;
		}
		else if (second < 0 || logits[i] > logits[second])
			second = i;
	*margin = logits[best] - logits[second];
	return best;
}

static void
add_row(Distance *distance, const float *actual, const float *expected, int vocabulary)
{
	float		margin;
	float		ignored;
	int			best = best_token(expected, vocabulary, &margin);

	for (int i = 0; i < vocabulary; i++)
	{
		double		difference = fabs((double) actual[i] - (double) expected[i]);

		if (isnan(difference) || difference > distance->largest)
			distance->largest = isnan(difference) ? INFINITY : difference;
		distance->squares += difference * difference;
	}
	distance->count += (size_t) vocabulary;
	if (margin <= LARGEST_DIFFERENCE)
		return;
	distance->compared++;
	distance->other += best_token(actual, vocabulary, &ignored) != best;
}

/* Check one case; returns how many of its rows have a clear best token. */
static int
check_case(const ForwardCases *cases, EnginePair *pair, const json_t *item, const char *set)
{
	const char *name = case_name(item);
	int			vocabulary = pair->modes[0].config->decoder.vocabulary;
	const float *expected = golden_values(&cases->tensors, name, ".logits", NULL);
	int			rows;
	const int32_t *positions = golden_values(&cases->tensors, name, ".positions", &rows);
	int			count;
	float	   *logits = case_forward(cases, pair, item, NULL, &count);
	Distance	distance = {0};
	double		rms;

	for (int i = 0; i < rows; i++)
		add_row(&distance, logits + (size_t) positions[i] * (size_t) vocabulary,
				expected + (size_t) i * (size_t) vocabulary, vocabulary);
	rms = sqrt(distance.squares / (double) distance.count);
	if (!(distance.largest <= LARGEST_DIFFERENCE) || !(rms <= LARGEST_RMS) || distance.other > 0)
		UNIT_FAIL("%s, %s: largest difference %.3f, rms %.4f, %d of %d other best tokens", set,
				  name, distance.largest, rms, distance.other, distance.compared);
	UNIT_CHECK(distance.largest > 1e-3);	/* it was not f32 that ran */
	free(logits);
	return distance.compared;
}

UNIT_TEST(forward_cases_are_near_the_golden_logits)
{
	ForwardCases cases = open_cases();
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		EnginePair	pair = {{engine_open_format(MODEL_A, set, 2, 0, WEIGHTS_BF16),
							 engine_open_format(MODEL_A, set, 2, 1, WEIGHTS_BF16)}};
		int			compared = 0;

		for (size_t i = 0; i < json_array_size(cases.list); i++)
			compared += check_case(&cases, &pair, json_array_get(cases.list, i), set);
		UNIT_CHECK(compared > 20);
		close_pair(&pair);
	}
	close_cases(&cases);
}

/* An adapter keeps working on rounded base weights. */
UNIT_TEST(an_adapter_does_in_bf16_what_it_does_in_f32)
{
	ForwardCases cases = open_cases();
	GoldenFile	expected = golden_open(MODEL_A "/lora_forward_expected.safetensors");
	char		directory[] = "/tmp/mmgpt-adapter-XXXXXX";
	json_t	   *names = json_object_get(cases.root, "lora_forward");
	EnginePair	pair = {{engine_open_format(MODEL_A, NULL, 2, 0, WEIGHTS_BF16),
						 engine_open_format(MODEL_A, NULL, 2, 1, WEIGHTS_BF16)}};
	int			vocabulary = pair.modes[0].config->decoder.vocabulary;
	Adapter    *adapters[2];

	engine_make_adapter(directory);
	for (int i = 0; i < 2; i++)
		adapters[i] = adapter_open(pair.modes[i].model, directory, &pair.modes[i].status);
	UNIT_CHECK(json_array_size(names) > 0);
	for (size_t i = 0; i < json_array_size(names); i++)
	{
		const char *name = json_string_value(json_array_get(names, i));
		int			values;
		const float *last = golden_values(&expected, name, ".logits_last4", &values);
		int			count;
		float	   *logits = case_forward(&cases, &pair, find_case(&cases, name), adapters,
										  &count);

		UNIT_NEAR_ALL(logits + count * vocabulary - values, last, (size_t) values,
					  LARGEST_DIFFERENCE);
		free(logits);
	}
	for (int i = 0; i < 2; i++)
		adapter_close(pair.modes[i].model, adapters[i]);
	close_pair(&pair);
	engine_remove_adapter(directory);
	golden_close(&expected);
	close_cases(&cases);
}

/* ---- files ---- */

/* An f32 as f16, to nearest even. */
static uint16_t
f16_from_f32(float value)
{
	double		magnitude = fabs((double) value);
	int			exponent = magnitude < ldexp(1.0, -14) ? -14 : ilogb(magnitude);
	int			fraction = (int) rint(ldexp(magnitude, 10 - exponent));

	/* a subnormal has no leading 1; a fraction that was rounded up to 2 raises the exponent */
	return (uint16_t) ((signbit(value) ? 0x8000 : 0) | (((exponent + 14) << 10) + fraction));
}

/* Is this tensor of a product, and not a vector or a table that is looked up or added? */
static bool
is_weight(const char *name, const json_t *shape)
{
	return json_array_size(shape) >= 2 && strstr(name, "embed") == NULL &&
		strstr(name, "latents") == NULL;
}

/*
 * Make a copy of model-a whose tensors are stored in a type, the weights of products alone or all.
 * directory is a template of mkdtemp.
 */
static void
make_model(char *directory, DataType type, bool weights_only)
{
	GoldenFile	original = golden_open(MODEL_A "/model.safetensors");
	json_t	   *header = json_object();
	size_t		size = 0;
	char	   *data = calloc(1, 5000000);
	char		path[256];
	char	   *text;
	const char *name;
	json_t	   *entry;
	uint64_t	length;
	FILE	   *file;

	json_object_foreach(original.header, name, entry)
	{
		json_t	   *shape = json_object_get(entry, "shape");
		bool		narrow = type != TYPE_F32 && (!weights_only || is_weight(name, shape));
		size_t		begin = size;
		const float *values;
		int			count;

		if (strcmp(name, "__metadata__") == 0)
			continue;
		values = golden_values(&original, name, "", &count);
		for (int i = 0; i < count; i++)
		{
			uint16_t	half = type == TYPE_F16 ? f16_from_f32(values[i])
												: bf16_from_f32(values[i]);

			memcpy(data + size, narrow ? (void *) &half : (void *) &values[i], narrow ? 2 : 4);
			size += narrow ? 2 : 4;
		}
		json_object_set_new(header, name,
							json_pack("{s:s, s:O, s:[I, I]}", "dtype",
									  !narrow ? "F32" : type == TYPE_F16 ? "F16" : "BF16", "shape",
									  shape, "data_offsets", (json_int_t) begin,
									  (json_int_t) size));
	}
	if (mkdtemp(directory) == NULL)
		engine_bail(directory, NULL);
	text = json_dumps(header, JSON_COMPACT);
	length = strlen(text);
	snprintf(path, sizeof(path), "%s/model.safetensors", directory);
	file = fopen(path, "wb");
	if (file == NULL || fwrite(&length, sizeof(length), 1, file) != 1 ||
		fwrite(text, 1, length, file) != length || fwrite(data, 1, size, file) != size ||
		fclose(file) != 0)
		engine_bail(path, NULL);
	for (int i = 0; i < 2; i++)
	{
		const char *other = i == 0 ? "config.json" : "tokenizer.model";
		char		from[256];
		char	   *whole;

		snprintf(from, sizeof(from), MODEL_A "/%s", other);
		snprintf(path, sizeof(path), "%s/%s", directory, other);
		whole = realpath(from, NULL);
		if (whole == NULL || symlink(whole, path) != 0)
			engine_bail(path, NULL);
		free(whole);
	}
	free(text);
	free(data);
	json_decref(header);
	golden_close(&original);
}

UNIT_TEST(files_compute_as_they_are_stored)
{
	static const struct
	{
		DataType	stored;
		bool		weights_only;
		DataType	computed;
		double		tolerance;	/* of f32 arithmetic on these files, from the original */
	} cases[] = {
		{TYPE_F32, false, TYPE_F32, 2e-4},
		{TYPE_F16, false, TYPE_BF16, 0.02},
		{TYPE_BF16, false, TYPE_BF16, 0.25},
		{TYPE_F16, true, TYPE_BF16, 0.02},
	};
	ForwardCases golden = open_cases();
	int			count;
	DataType	computed;
	float	   *exact = case_logits(&golden, MODEL_A, WEIGHTS_F32, &count, NULL, &computed);

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		char		directory[] = "/tmp/mmgpt-model-XXXXXX";
		float	   *stored;
		float	   *wide;

		make_model(directory, cases[i].stored, cases[i].weights_only);
		stored = case_logits(&golden, directory, WEIGHTS_STORED, &count, NULL, &computed);
		UNIT_EQUAL_INT(computed, cases[i].computed);
		UNIT_NEAR_ALL(stored, exact, (size_t) count, LARGEST_DIFFERENCE);
		wide = case_logits(&golden, directory, WEIGHTS_F32, &count, NULL, &computed);
		UNIT_EQUAL_INT(computed, TYPE_F32);
		UNIT_NEAR_ALL(wide, exact, (size_t) count, cases[i].tolerance);
		free(stored);
		free(wide);
		engine_remove_model(directory);
	}
	free(exact);
	close_cases(&golden);
}

/* Rounding when the file was written and rounding when it is loaded are the same. */
UNIT_TEST(a_bf16_file_and_a_rounded_f32_file_give_the_same_bits)
{
	ForwardCases golden = open_cases();
	char		directory[] = "/tmp/mmgpt-model-XXXXXX";
	int			count;
	DataType	computed;
	float	   *loaded;
	float	   *rounded = case_logits(&golden, MODEL_A, WEIGHTS_BF16, &count, NULL, &computed);

	UNIT_EQUAL_INT(computed, TYPE_BF16);
	make_model(directory, TYPE_BF16, true);
	loaded = case_logits(&golden, directory, WEIGHTS_STORED, &count, NULL, &computed);
	UNIT_EQUAL_INT(computed, TYPE_BF16);
	UNIT_CHECK(memcmp(loaded, rounded, (size_t) count * sizeof(float)) == 0);
	free(loaded);
	free(rounded);
	engine_remove_model(directory);
	close_cases(&golden);
}

UNIT_TEST(bf16_halves_weights_and_keys_and_values)
{
	size_t		bytes[2][3];

	for (int i = 0; i < 2; i++)
	{
		Engine		engine = engine_open_format(MODEL_A, NULL, 1, -1,
												i == 0 ? WEIGHTS_F32 : WEIGHTS_BF16);
		ModelDescription description;

		model_describe(engine.model, &description);
		bytes[i][0] = description.cache_bytes / (size_t) description.cache_pages;
		bytes[i][1] = description.media_bytes / (size_t) description.media_pictures;
		bytes[i][2] = description.weight_bytes;
		engine_close(&engine);
	}
	UNIT_EQUAL_INT(bytes[1][0] * 2, bytes[0][0]);
	UNIT_EQUAL_INT(bytes[1][1] * 2, bytes[0][1]);
	/* vectors and embedding stay as they are stored */
	UNIT_CHECK(bytes[1][2] < bytes[0][2] * 2 / 3);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
