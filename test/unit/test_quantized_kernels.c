/*
 * test_quantized_kernels.c - weights in 8 and 4 bits, operation by operation.
 *
 *	codes			how far a weight is from what its code stands for; blocks of zeros, numbers
 *					that are not finite
 *	products		to the last bit what kernels.h and MODEL.md define, by a loop written here, on
 *					every instruction set, for rows together and alone
 *	gradients		against a loop in double over the dequantised weights
 */
#include "golden_cases.h"
#include "quantize.h"

static uint64_t random_state;

static uint32_t
random_bits(void)
{
	random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t) (random_state >> 32);
}

/* Uniform in [-1, 1) times 2^e with e in [-spread, spread]. */
static float *
random_values(size_t count, int spread)
{
	float	   *values = malloc((count > 0 ? count : 1) * sizeof(float));

	if (values == NULL)
		engine_bail("values", NULL);
	for (size_t i = 0; i < count; i++)
	{
		float		value = (float) ((double) random_bits() / 2147483648.0 - 1.0);

		values[i] = ldexpf(value, (int) (random_bits() % (2u * (unsigned) spread + 1u)) - spread);
	}
	return values;
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

static const DataType formats[] = {TYPE_Q8, TYPE_Q4};

/* A matrix with its codes. */
typedef struct Matrix
{
	DataType	type;
	int			outputs;
	int			inputs;
	float	   *values;			/* [outputs, inputs] */
	uint8_t    *codes;
	uint16_t   *scales;
	float	   *dequantized;	/* what the codes stand for */
} Matrix;

static Matrix
make_matrix(DataType type, int outputs, int inputs, int spread)
{
	size_t		bytes = (size_t) quantized_row_bytes(type, inputs);
	size_t		blocks = (size_t) quantized_blocks(inputs);
	size_t		count = (size_t) outputs * (size_t) inputs;
	Matrix		matrix = {type, outputs, inputs, random_values(count, spread),
						  malloc((size_t) outputs * bytes), malloc((size_t) outputs * blocks * 2),
						  malloc(count * sizeof(float))};

	if (matrix.codes == NULL || matrix.scales == NULL || matrix.dequantized == NULL)
		engine_bail("matrix", NULL);
	for (size_t n = 0; n < (size_t) outputs; n++)
	{
		UNIT_CHECK(quantize_values(type, inputs, matrix.values + n * (size_t) inputs,
								   matrix.codes + n * bytes, matrix.scales + n * blocks));
		dequantize_values(type, inputs, matrix.codes + n * bytes, matrix.scales + n * blocks,
						  matrix.dequantized + n * (size_t) inputs);
	}
	return matrix;
}

static void
free_matrix(Matrix *matrix)
{
	free(matrix->values);
	free(matrix->codes);
	free(matrix->scales);
	free(matrix->dequantized);
}

/* ---- codes ---- */

/* No weight is further from its code than half a step, and in 4 bits the search pays. */
UNIT_TEST(codes_are_close_to_their_weights)
{
	Matrix		eight = make_matrix(TYPE_Q8, 64, 1000, 0);
	Matrix		four = make_matrix(TYPE_Q4, 64, 1000, 0);
	double		squares = 0;
	double		errors = 0;

	for (int i = 0; i < 64 * 1000; i++)
	{
		int			block = i / 1000 * 1000 + i % 1000 / 32 * 32;
		float		largest = 0;

		for (int j = block; j < block + 32 && j < (i / 1000 + 1) * 1000; j++)
			largest = fmaxf(largest, fabsf(eight.values[j]));
		/* a step is at most largest / 127 * (1 + 2^-7) */
		UNIT_NEAR(eight.dequantized[i], eight.values[i], largest / 127 * 0.5 * 1.008);
		squares += (double) four.values[i] * four.values[i];
		errors += pow((double) four.dequantized[i] - four.values[i], 2);
	}
	/* uniform numbers in 16 steps without a search: 1 / 16^2, and up to 10 % for block maxima */
	UNIT_CHECK(sqrt(errors / squares) < 0.065);
	free_matrix(&eight);
	free_matrix(&four);
}

UNIT_TEST(zeros_stay_zeros_and_what_is_not_finite_is_refused)
{
	float		values[40] = {0};
	uint8_t		codes[40];
	uint16_t	scales[2];

	for (int f = 0; f < 2; f++)
	{
		memset(values, 0, sizeof(values));
		values[39] = 1e-35f;
		UNIT_CHECK(quantize_values(formats[f], 40, values, codes, scales));
		UNIT_EQUAL_INT(scales[0], 0);
		UNIT_EQUAL_INT(scales[1], 0);
		dequantize_values(formats[f], 40, codes, scales, values);
		for (int i = 0; i < 40; i++)
			UNIT_CHECK(values[i] == 0);
		values[37] = INFINITY;
		UNIT_CHECK(!quantize_values(formats[f], 40, values, codes, scales));
		values[37] = NAN;
		UNIT_CHECK(!quantize_values(formats[f], 40, values, codes, scales));
	}
}

/* ---- products ---- */

typedef struct Shape
{
	int			rows;
	int			outputs;
	int			inputs;
} Shape;

static Weight
make_weight(Backend *backend, const Matrix *matrix, bool stored)
{
	WeightPart	part = {.data = stored ? (const void *) matrix->codes : matrix->values,
						.type = stored ? matrix->type : TYPE_F32,
						.outputs = matrix->outputs,
						.scales = matrix->scales};
	Weight		weight;
	Status		status;

	if (!backend->ops->weight_create(backend, &part, 1, matrix->inputs, matrix->type, &weight,
									 &status))
		engine_bail("weight", &status);
	return weight;
}

/* y = x w^T, so many rows in one call, [rows, outputs] on the heap. */
static float *
multiply(const char *set, int rows, int at_once, const float *x, const Matrix *matrix, bool stored)
{
	Backend    *backend = open_backend(set, 2);
	Weight		weight = make_weight(backend, matrix, stored);
	float	   *y = calloc((size_t) rows * (size_t) matrix->outputs, sizeof(float));

	if (y == NULL)
		engine_bail("y", NULL);
	for (int row = 0; row < rows; row += at_once)
	{
		int			count = rows - row < at_once ? rows - row : at_once;

		backend->ops->matmul(backend,
							 tensor_make(y + row * matrix->outputs, TYPE_F32, count,
										 matrix->outputs),
							 tensor_make((void *) (x + row * matrix->inputs), TYPE_F32, count,
										 matrix->inputs),
							 &weight, EPILOGUE_STORE);
	}
	backend->ops->weight_destroy(backend, &weight);
	backend->ops->close(backend);
	return y;
}

static float
scale_of(const Matrix *matrix, int output, int block)
{
	uint32_t	bits = (uint32_t) matrix->scales[output * quantized_blocks(matrix->inputs) + block]
		<< 16;
	float		scale;

	memcpy(&scale, &bits, sizeof(scale));
	return scale;
}

static int
code_of(const Matrix *matrix, int output, int input)
{
	const uint8_t *codes = matrix->codes +
		output * quantized_row_bytes(matrix->type, matrix->inputs);

	return matrix->type == TYPE_Q8 ? (int8_t) codes[input]
		: (codes[input / 2] >> input % 2 * 4 & 15) - 8;
}

/* One element of a product by the definition: blocks in order, three roundings for each. */
static float
defined_product(const Matrix *matrix, const float *x, int output)
{
	volatile float sum = 0;		/* volatile: no compiler fuses anything */

	for (int k = 0; k < matrix->inputs; k += 32)
	{
		int			length = matrix->inputs - k < 32 ? matrix->inputs - k : 32;
		float		largest = 0;
		int			integer = 0;
		volatile float scale;
		volatile float term;

		for (int i = k; i < k + length; i++)
			largest = fmaxf(largest, fabsf(x[i]));
		if (largest < 0x1p-100f)
			continue;
		for (int i = k; i < k + length; i++)
		{
			volatile float q = x[i] * (127.0f / largest);

			integer += (int) nearbyintf(q) * code_of(matrix, output, i);
		}
		scale = scale_of(matrix, output, k / 32) * (largest / 127.0f);
		term = (float) integer * scale;
		sum += term;
	}
	return sum;
}

static void
check_product(const char *set, Shape shape, DataType type)
{
	Matrix		matrix = make_matrix(type, shape.outputs, shape.inputs, 8);
	float	   *x = random_values((size_t) shape.rows * (size_t) shape.inputs, 12);
	float	   *y = multiply(set, shape.rows, shape.rows, x, &matrix, false);
	float	   *alone = multiply(set, shape.rows, 1, x, &matrix, true);
	int			wrong = 0;

	for (int i = 0; i < shape.rows * shape.outputs; i++)
	{
		float		expected = defined_product(&matrix, x + i / shape.outputs * shape.inputs,
											   i % shape.outputs);

		wrong += memcmp(&y[i], &expected, sizeof(float)) != 0 ||
			memcmp(&alone[i], &expected, sizeof(float)) != 0;
	}
	if (wrong > 0)
		UNIT_FAIL("%s, %s, [%d, %d] x [%d]: %d elements differ", set, data_type_name(type),
				  shape.rows, shape.outputs, shape.inputs, wrong);
	free(x);
	free(y);
	free(alone);
	free_matrix(&matrix);
}

UNIT_TEST(products_are_as_defined_to_the_last_bit_together_and_alone)
{
	static const Shape shapes[] = {{1, 1, 1}, {1, 70, 37}, {2, 16, 2}, {3, 8, 64}, {7, 65, 300},
								   {13, 64, 1111}, {97, 129, 261}, {400, 40, 66}};
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
		for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
			for (int f = 0; f < 2; f++)
				check_product(set, shapes[s], formats[f]);
}

/* The largest sums there can be: every code and every value at its end. */
UNIT_TEST(no_integer_sum_overflows)
{
	const char *set;

	for (int f = 0; f < 2; f++)
	{
		Matrix		matrix = make_matrix(formats[f], 64, 64, 0);
		float		x[64];

		for (int i = 0; i < 64; i++)
			x[i] = i < 32 ? 1.0f : -1.0f;
		for (int n = 0; n < 64; n++)	/* codes of the ends: in a file -128 may stand, too */
			memset(matrix.codes + n * quantized_row_bytes(formats[f], 64),
				   formats[f] == TYPE_Q8 ? (n % 2 ? 0x80 : 0x7F) : (n % 2 ? 0x00 : 0xFF),
				   (size_t) quantized_row_bytes(formats[f], 64));
		FOR_EACH_INSTRUCTION_SET(set)
		{
			float	   *y = multiply(set, 1, 1, x, &matrix, true);

			for (int n = 0; n < 64; n++)
				if (y[n] != defined_product(&matrix, x, n))
					UNIT_FAIL("%s: %g, not %g", set, (double) y[n],
							  (double) defined_product(&matrix, x, n));
			free(y);
		}
		free_matrix(&matrix);
	}
}

/* A row that is broken shows it, and its neighbours don't. */
UNIT_TEST(a_number_that_is_not_finite_makes_its_row_nan)
{
	Matrix		matrix = make_matrix(TYPE_Q4, 70, 96, 0);
	float	   *x = random_values(3 * 96, 0);
	const char *set;

	x[96 + 40] = INFINITY;
	FOR_EACH_INSTRUCTION_SET(set)
	{
		float	   *y = multiply(set, 3, 3, x, &matrix, true);

		for (int i = 0; i < 3 * 70; i++)
			UNIT_CHECK(isnan(y[i]) == (i / 70 == 1));
		free(y);
	}
	free(x);
	free_matrix(&matrix);
}

/* ---- gradients ---- */

/* dx = dy W with dy and the dequantised W rounded to bf16. */
UNIT_TEST(gradients_go_through_the_dequantised_weights)
{
	static const Shape shapes[] = {{1, 5, 3}, {5, 70, 101}, {9, 600, 64}, {13, 129, 161}};
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
		for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]) * 2; s++)
		{
			Shape		shape = shapes[s / 2];
			Matrix		matrix = make_matrix(formats[s % 2], shape.outputs, shape.inputs, 1);
			float	   *dy = random_values((size_t) shape.rows * (size_t) shape.outputs, 1);
			float	   *dx = calloc((size_t) shape.rows * (size_t) shape.inputs, sizeof(float));
			Backend    *backend = open_backend(set, 2);
			Weight		weight = make_weight(backend, &matrix, true);

			if (dx == NULL)
				engine_bail("dx", NULL);
			backend->ops->matmul_backward(backend,
										  tensor_make(dx, TYPE_F32, shape.rows, shape.inputs),
										  tensor_make(dy, TYPE_F32, shape.rows, shape.outputs),
										  &weight, 2.0f, false);
			for (int i = 0; i < shape.rows * shape.inputs; i++)
			{
				double		sum = 0;
				double		size = 0;

				for (int n = 0; n < shape.outputs; n++)
				{
					double		product = (double) dy[i / shape.inputs * shape.outputs + n] *
						matrix.dequantized[n * shape.inputs + i % shape.inputs];

					sum += 2 * product;
					size += 2 * fabs(product);
				}
				UNIT_NEAR(dx[i], sum, size / 128);	/* two operands of 8 bits of fraction */
			}
			backend->ops->weight_destroy(backend, &weight);
			backend->ops->close(backend);
			free(dy);
			free(dx);
			free_matrix(&matrix);
		}
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
