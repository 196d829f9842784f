/*
 * test_bf16_kernels.c - the products and the attention of bf16, operation by operation.
 *
 *	rounding		every instruction set rounds as bf16_from_f32 does, which is checked alone
 *	products		to the last bit what kernels.h and MODEL.md define, by a loop written here
 *	attention		against a loop in double, in both formats, with memory that holds NaN
 *					wherever no key was written
 */
#include "golden_cases.h"

static uint64_t random_state;

/* A random number of [0, 2^32). */
static uint32_t
random_bits(void)
{
	random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t) (random_state >> 32);
}

/* Uniform in [-1, 1) times 2^e with e in [-spread, spread]. */
static float
random_value(int spread)
{
	float		value = (float) ((double) random_bits() / 2147483648.0 - 1.0);
	int			exponent = (int) (random_bits() % (2u * (unsigned) spread + 1u)) - spread;

	return ldexpf(value, exponent);
}

static float *
random_values(size_t count, int spread)
{
	float	   *values = malloc((count > 0 ? count : 1) * sizeof(float));

	if (values == NULL)
		engine_bail("values", NULL);
	for (size_t i = 0; i < count; i++)
		values[i] = random_value(spread);
	return values;
}

static float
float_from_bits(uint32_t bits)
{
	float		value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static float
float_from_bf16(uint16_t half)
{
	return float_from_bits((uint32_t) half << 16);
}

static Backend *
open_backend(const char *set, int threads)
{
	CpuOptions	options = {threads, set};
	Status		status;
	Backend    *backend = backend_open_cpu(&options, &status);

	if (backend == NULL)
		engine_bail(set, &status);
	return backend;
}

/* ---- rounding ---- */

UNIT_TEST(rounding_is_to_nearest_even)
{
	static const struct
	{
		uint32_t	bits;
		uint16_t	rounded;
	} cases[] = {
		{0x3F800000, 0x3F80}, {0x3F807FFF, 0x3F80}, {0x3F808000, 0x3F80},	/* a tie to even */
		{0x3F808001, 0x3F81}, {0x3F818000, 0x3F82}, {0xBF818000, 0xBF82},
		{0x7F7FFFFF, 0x7F80},		/* past the largest: infinity */
		{0x7F800000, 0x7F80}, {0xFF800000, 0xFF80},
		{0x00800000, 0x0080},
		{0x007FFFFF, 0x0000}, {0x80000001, 0x8000},		/* below 2^-126: zero */
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		if (bf16_from_f32(float_from_bits(cases[i].bits)) != cases[i].rounded)
			UNIT_FAIL("%08x is rounded to %04x, not %04x", (unsigned) cases[i].bits,
					  (unsigned) bf16_from_f32(float_from_bits(cases[i].bits)),
					  (unsigned) cases[i].rounded);
	UNIT_CHECK(isnan(float_from_bf16(bf16_from_f32(float_from_bits(0x7F800001)))));
}

/* All kernels round the same way, over bit patterns of every exponent, odd counts included. */
UNIT_TEST(every_instruction_set_rounds_alike)
{
	enum {COUNT = 4099, STEP = 1047559};	/* 4099 * 1047559 is close to 2^32 */
	static float values[COUNT];
	static uint16_t halves[COUNT + 1];
	static char rounded[(COUNT + 1) * sizeof(float)];
	const char *set;

	for (size_t i = 0; i < COUNT; i++)
		values[i] = float_from_bits((uint32_t) (i * STEP + i % 7));
	FOR_EACH_INSTRUCTION_SET(set)
	{
		Status		status;
		const Kernels *kernels = kernels_select(set, &status);

		kernels->convert_bf16(COUNT, values, halves);
		kernels->round_row(COUNT, values, rounded);
		for (size_t i = 0; i < COUNT; i++)
		{
			uint16_t	expected = bf16_from_f32(values[i]);
			const char *at = rounded + i * (size_t) kernels->rounded_size;
			uint16_t	kept;

			/* kept as bf16, or as an f32 whose upper half it is */
			memcpy(&kept, at + kernels->rounded_size - 2, sizeof(kept));
			if (halves[i] != expected || kept != expected)
				UNIT_FAIL("%s: %a is rounded to %04x and %04x, not %04x", set, (double) values[i],
						  (unsigned) halves[i], (unsigned) kept, (unsigned) expected);
		}
	}
}

/* ---- products ---- */

typedef struct Shape
{
	int			rows;
	int			outputs;
	int			inputs;
} Shape;

/* One element of a product by the definition: pairs in order, of each the odd depth first. */
static float
defined_product(const float *x, const float *w, int inputs)
{
	float		sum = 0.0f;

	for (int k = 0; k < inputs; k += 2)
	{
		if (k + 1 < inputs)
			sum += float_from_bf16(bf16_from_f32(x[k + 1])) *
				float_from_bf16(bf16_from_f32(w[k + 1]));
		sum += float_from_bf16(bf16_from_f32(x[k])) * float_from_bf16(bf16_from_f32(w[k]));
	}
	return sum;
}

/* y = x w^T on a backend of this instruction set, [rows, outputs] on the heap. */
static float *
multiply(const char *set, Shape shape, const float *x, const float *w)
{
	Backend    *backend = open_backend(set, 2);
	WeightPart	part = {.data = w, .type = TYPE_F32, .outputs = shape.outputs};
	float	   *y = calloc((size_t) shape.rows * (size_t) shape.outputs, sizeof(float));
	Weight		weight;
	Status		status;

	if (y == NULL || !backend->ops->weight_create(backend, &part, 1, shape.inputs, TYPE_BF16,
												  &weight, &status))
		engine_bail("weight", NULL);
	backend->ops->matmul(backend, tensor_make(y, TYPE_F32, shape.rows, shape.outputs),
						 tensor_make((void *) x, TYPE_F32, shape.rows, shape.inputs), &weight,
						 EPILOGUE_STORE);
	backend->ops->weight_destroy(backend, &weight);
	backend->ops->close(backend);
	return y;
}

UNIT_TEST(products_are_as_defined_to_the_last_bit)
{
	static const Shape shapes[] = {{1, 1, 1}, {1, 70, 37}, {2, 16, 2}, {7, 65, 300},
								   {13, 64, 1111}, {97, 129, 1030}, {400, 40, 66}};
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
		for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
		{
			Shape		shape = shapes[s];
			float	   *x = random_values((size_t) shape.rows * (size_t) shape.inputs, 12);
			float	   *w = random_values((size_t) shape.outputs * (size_t) shape.inputs, 12);
			float	   *y = multiply(set, shape, x, w);
			int			wrong = 0;

			for (int i = 0; i < shape.rows * shape.outputs; i++)
			{
				float		expected = defined_product(x + i / shape.outputs * shape.inputs,
													   w + i % shape.outputs * shape.inputs,
													   shape.inputs);

				wrong += memcmp(&y[i], &expected, sizeof(float)) != 0;
			}
			if (wrong > 0)
				UNIT_FAIL("%s, [%d, %d] x [%d]: %d elements differ", set, shape.rows, shape.outputs,
						  shape.inputs, wrong);
			free(x);
			free(w);
			free(y);
		}
}

/* Below 2^-126 instruction sets may take zero for what others keep: never more than that apart. */
UNIT_TEST(tiny_products_differ_by_less_than_the_smallest_normal_number)
{
	Shape		shape = {3, 64, 64};
	float	   *x = random_values((size_t) shape.rows * (size_t) shape.inputs, 2);
	float	   *w = random_values((size_t) shape.outputs * (size_t) shape.inputs, 2);
	const char *set;

	for (int i = 0; i < shape.rows * shape.inputs; i++)
		x[i] = ldexpf(x[i], -63);
	for (int i = 0; i < shape.outputs * shape.inputs; i++)
		w[i] = ldexpf(w[i], -64);
	FOR_EACH_INSTRUCTION_SET(set)
	{
		float	   *y = multiply(set, shape, x, w);

		for (int i = 0; i < shape.rows * shape.outputs; i++)
			UNIT_NEAR(y[i], defined_product(x + i / shape.outputs * shape.inputs,
											w + i % shape.outputs * shape.inputs, shape.inputs),
					  shape.inputs * ldexp(1.0, -126));
		free(y);
	}
	free(x);
	free(w);
}

/* ---- attention ---- */

enum {LISTED_PAGES = 10, POOL_PAGES = 16, ATTENTION_ROWS = 41};

/* Queries with keys of one list, and where each row looks. */
typedef struct AttentionCase
{
	int			heads;
	int			kv_heads;
	int			head_size;
	DataType	type;
	int			written;		/* keys */
	float	   *q;				/* [ATTENTION_ROWS, heads * head_size] */
	float	   *keys;			/* [written, kv_heads * head_size] */
	float	   *values;
	int32_t		pages[LISTED_PAGES];
	int32_t		spans[ATTENTION_ROWS * ATTENTION_SPAN_FIELDS];
} AttentionCase;

static void
make_attention(AttentionCase *attention, int heads, int kv_heads, int head_size, DataType type)
{
	size_t		key = (size_t) kv_heads * (size_t) head_size;

	*attention = (AttentionCase) {heads, kv_heads, head_size, type, LISTED_PAGES * KV_PAGE_KEYS - 7,
		NULL, NULL, NULL, {0}, {0}};
	attention->q = random_values(ATTENTION_ROWS * (size_t) heads * (size_t) head_size, 1);
	attention->keys = random_values((size_t) attention->written * key, 1);
	attention->values = random_values((size_t) attention->written * key, 0);
	for (int i = 0; i < LISTED_PAGES; i++)
		attention->pages[i] = (i * 7 + 3) % POOL_PAGES;
	for (int r = 0; r < ATTENTION_ROWS; r++)
	{
		int32_t    *span = attention->spans + r * ATTENTION_SPAN_FIELDS;
		/* causal rows, then rows that see all, then spans of any kind, the empty one included */
		int			first = r < 30 ? 0 : (int) (random_bits() % (unsigned) attention->written);
		int			end = r < 20 ? 120 + r : attention->written;

		span[SPAN_FIRST] = first;
		span[SPAN_COUNT] = r < 30 ? end - first : (int) (random_bits() % (unsigned) (end - first));
	}
	attention->spans[40 * ATTENTION_SPAN_FIELDS + SPAN_COUNT] = 0;
}

static void
free_attention(AttentionCase *attention)
{
	free(attention->q);
	free(attention->keys);
	free(attention->values);
}

/* The case's attention, several rows at once or each alone, [ATTENTION_ROWS, heads * D]. */
static float *
attend(const AttentionCase *attention, const char *set, int at_once)
{
	Backend    *backend = open_backend(set, 2);
	int			width = attention->heads * attention->head_size;
	int			key = attention->kv_heads * attention->head_size;
	int32_t    *slots = malloc((size_t) attention->written * sizeof(int32_t));
	float	   *y = calloc((size_t) ATTENTION_ROWS * (size_t) width, sizeof(float));
	KvPool		pool;
	Status		status;

	if (slots == NULL || y == NULL ||
		!backend->ops->kv_create(backend, attention->type, 1, POOL_PAGES, attention->kv_heads,
								 attention->head_size, &pool, &status))
		engine_bail("pool", NULL);
	memset(pool.data, 0xFF, pool.bytes);	/* NaN, in both formats */
	for (int i = 0; i < attention->written; i++)
		slots[i] = attention->pages[i / KV_PAGE_KEYS] * KV_PAGE_KEYS + i % KV_PAGE_KEYS;
	backend->ops->kv_write(backend, &pool, 0,
						   tensor_make(attention->keys, TYPE_F32, attention->written, key),
						   tensor_make(attention->values, TYPE_F32, attention->written, key),
						   tensor_make(slots, TYPE_I32, 1, attention->written));
	for (int row = 0; row < ATTENTION_ROWS; row += at_once)
	{
		int			rows = ATTENTION_ROWS - row < at_once ? ATTENTION_ROWS - row : at_once;
		AttentionPlan plan = {tensor_make((void *) attention->pages, TYPE_I32, 1, LISTED_PAGES),
			tensor_make((void *) (attention->spans + row * ATTENTION_SPAN_FIELDS), TYPE_I32, rows,
						ATTENTION_SPAN_FIELDS), attention->heads, 0.25f, attention->written};

		backend->ops->attention(backend, tensor_make(y + row * width, TYPE_F32, rows, width),
								tensor_make(attention->q + row * width, TYPE_F32, rows, width),
								&pool, 0, &plan);
	}
	backend->ops->kv_destroy(backend, &pool);
	backend->ops->close(backend);
	free(slots);
	return y;
}

/* What enters a product in the case's format. */
static double
operand(const AttentionCase *attention, float value)
{
	return attention->type == TYPE_BF16 ? float_from_bf16(bf16_from_f32(value)) : value;
}

/* One element of the result in double, with the weights of the softmax not rounded. */
static double
attended_element(const AttentionCase *attention, int row, int head, int d)
{
	int			size = attention->head_size;
	int			kv_head = head / (attention->heads / attention->kv_heads);
	const int32_t *span = attention->spans + row * ATTENTION_SPAN_FIELDS;
	const float *q = attention->q + (row * attention->heads + head) * size;
	double		sum = 0;
	double		weights = 0;

	for (int j = span[SPAN_FIRST]; j < span[SPAN_FIRST] + span[SPAN_COUNT]; j++)
	{
		int			at = (j * attention->kv_heads + kv_head) * size;
		double		score = 0;

		for (int i = 0; i < size; i++)
			score += operand(attention, q[i]) * operand(attention, attention->keys[at + i]);
		weights += exp(0.25 * score);
		sum += exp(0.25 * score) * operand(attention, attention->values[at + d]);
	}
	return weights > 0 ? sum / weights : 0;
}

/* Weights in 8 bits of fraction: half a unit of values of at most 1. f32 has its usual error. */
static void
check_attention(const AttentionCase *attention, const float *y, const char *set)
{
	double		tolerance = attention->type == TYPE_BF16 ? 1.0 / 256 : 2e-6;
	int			width = attention->heads * attention->head_size;
	double		worst = 0;

	for (int i = 0; i < ATTENTION_ROWS * width; i++)
	{
		double		difference = fabs(y[i] - attended_element(attention, i / width,
															  i % width / attention->head_size,
															  i % attention->head_size));

		if (isnan(difference) || difference > worst)
			worst = isnan(difference) ? INFINITY : difference;
	}
	if (worst > tolerance)
		UNIT_FAIL("%s, head size %d, %s: differs by %g", set, attention->head_size,
				  data_type_name(attention->type), worst);
}

UNIT_TEST(attention_is_right_whatever_unwritten_memory_holds)
{
	static const int shapes[][3] = {{2, 1, 5}, {4, 4, 16}, {2, 2, 64}, {3, 1, 87}};
	static const DataType types[] = {TYPE_F32, TYPE_BF16};
	const char *set;

	for (int s = 0; s < 4; s++)
		for (int t = 0; t < 2; t++)
		{
			AttentionCase attention;

			make_attention(&attention, shapes[s][0], shapes[s][1], shapes[s][2], types[t]);
			FOR_EACH_INSTRUCTION_SET(set)
			{
				float	   *together = attend(&attention, set, ATTENTION_ROWS);
				float	   *alone = attend(&attention, set, 1);

				check_attention(&attention, together, set);
				if (memcmp(together, alone, (size_t) ATTENTION_ROWS * (size_t) attention.heads *
						   (size_t) attention.head_size * sizeof(float)) != 0)
					UNIT_FAIL("%s, head size %d, %s: rows alone give other bits", set,
							  attention.head_size, data_type_name(attention.type));
				free(together);
				free(alone);
			}
			free_attention(&attention);
		}
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
