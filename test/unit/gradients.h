/*
 * gradients.h - gradients of operations against finite differences of their formulas in double.
 *
 * With random dy the sum of dy * f(x) is a scalar, whose derivative is measured by central
 * differences; a gradient by the backend has to agree.
 */
#ifndef MMGPT_GRADIENTS_H
#define MMGPT_GRADIENTS_H

#include "backend.h"
#include "cpu_backend.h"
#include "engine.h"

#define FOR_EACH_INSTRUCTION_SET(name) \
	for (int set_ = 0; ((name) = kernels_available(set_)) != NULL; set_++)

/* Of f32 results against double, relative to the largest value of the tensor. */
#define GRADIENT_TOLERANCE 2e-5
#define DIFFERENCE_STEP 1e-5

/* ---- memory: everything of one test is freed at its end ---- */

static void *blocks[4096];
static int	block_count;

static UNIT_UNUSED void *
take(size_t bytes)
{
	void	   *block = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);

	if (block == NULL || block_count == 4096)
		engine_bail("memory", NULL);
	memset(block, 0, bytes);
	blocks[block_count++] = block;
	return block;
}

static UNIT_UNUSED void
forget_all(void)
{
	while (block_count > 0)
		free(blocks[--block_count]);
}

/* ---- random tensors ---- */

static uint64_t random_state = 1;

static UNIT_UNUSED double
random_number(void)
{
	random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (double) (random_state >> 33) / (double) (UINT64_C(1) << 30) - 1.0;
}

/* f32 [rows, columns] of numbers in [-1, 1), with unused floats between its rows. */
static UNIT_UNUSED Tensor
random_tensor(int rows, int columns)
{
	Tensor		tensor = tensor_make(NULL, TYPE_F32, rows, columns);
	float	   *data;

	tensor.stride = columns + 3;
	data = take((size_t) rows * (size_t) tensor.stride * sizeof(float));
	for (int i = 0; i < rows * tensor.stride; i++)
		data[i] = (float) random_number();
	tensor.data = data;
	return tensor;
}

static UNIT_UNUSED Tensor
integers(int rows, int columns)
{
	return tensor_make(take((size_t) rows * (size_t) columns * sizeof(int32_t)), TYPE_I32, rows,
					   columns);
}

/* A copy in double [rows, columns], dense. */
static UNIT_UNUSED double *
doubles(Tensor tensor)
{
	double	   *copy = take((size_t) tensor.rows * (size_t) tensor.columns * sizeof(double));

	for (int r = 0; r < tensor.rows; r++)
		for (int c = 0; c < tensor.columns; c++)
			copy[r * tensor.columns + c] = (double) cpu_row(tensor, r)[c];
	return copy;
}

static UNIT_UNUSED Tensor
copy_tensor(Tensor tensor)
{
	size_t		bytes = (size_t) tensor.rows * (size_t) tensor.stride * sizeof(float);
	Tensor		copy = tensor;

	copy.data = take(bytes);
	memcpy(copy.data, tensor.data, bytes);
	return copy;
}

static UNIT_UNUSED bool
same_bits(Tensor a, Tensor b)
{
	for (int r = 0; r < a.rows; r++)
		if (memcmp(cpu_row(a, r), cpu_row(b, r), (size_t) a.columns * sizeof(float)) != 0)
			return false;
	return true;
}

/* Check a tensor against doubles, relative to the largest of them. */
static UNIT_UNUSED bool
near_doubles(const char *what, Tensor actual, const double *expected)
{
	double		largest = 1e-3;
	double		worst = 0;

	for (int i = 0; i < actual.rows * actual.columns; i++)
		largest = fabs(expected[i]) > largest ? fabs(expected[i]) : largest;
	for (int r = 0; r < actual.rows; r++)
		for (int c = 0; c < actual.columns; c++)
		{
			double		difference = fabs((double) cpu_row(actual, r)[c] -
										  expected[r * actual.columns + c]);

			worst = difference > worst || isnan(difference) ? difference : worst;
		}
	if (worst <= GRADIENT_TOLERANCE * largest)
		return true;
	return UNIT_FAIL("%s [%d, %d] is off by %g, largest value %g", what, actual.rows,
					 actual.columns, worst, largest);
}

/* ---- finite differences ---- */

/* What an operation computes: y [y_count] from its inputs, in double. */
typedef struct Formula
{
	void		(*compute) (const struct Formula *formula, double *y);
	double	   *inputs[4];
	int			y_count;
	int			rows;
	int			columns;
	int			other;			/* outputs of a product, heads, ... */
	const void *extra;
} Formula;

/* Derivative of sum(dy * y) for each of count numbers at x, one of the formula's inputs. */
static UNIT_UNUSED double *
measure_gradient(const Formula *formula, const double *dy, double *x, int count)
{
	double	   *gradient = take((size_t) count * sizeof(double));
	double	   *high = take((size_t) formula->y_count * sizeof(double));
	double	   *low = take((size_t) formula->y_count * sizeof(double));

	for (int i = 0; i < count; i++)
	{
		double		middle = x[i];

		x[i] = middle + DIFFERENCE_STEP;
		formula->compute(formula, high);
		x[i] = middle - DIFFERENCE_STEP;
		formula->compute(formula, low);
		x[i] = middle;
		for (int j = 0; j < formula->y_count; j++)
			gradient[i] += dy[j] * (high[j] - low[j]) / (2 * DIFFERENCE_STEP);
	}
	return gradient;
}

/* gradient += what a tensor held before. */
static UNIT_UNUSED void
add_doubles(double *gradient, const double *before, int count)
{
	for (int i = 0; i < count; i++)
		gradient[i] += before[i];
}

static UNIT_UNUSED Backend *
open_backend(const char *set, int threads)
{
	Status		status;
	Backend    *backend = backend_open_cpu(&(CpuOptions){threads, set}, &status);

	if (backend == NULL)
		engine_bail(set, &status);
	return backend;
}

/* A weight made of a tensor [N, K]. */
static UNIT_UNUSED Weight
make_weight(Backend *backend, Tensor values)
{
	Tensor		dense = tensor_make(take((size_t) (values.rows * values.columns) * sizeof(float)),
									TYPE_F32, values.rows, values.columns);
	WeightPart	part = {.data = dense.data, .type = TYPE_F32, .outputs = values.rows};
	Weight		weight;
	Status		status;

	backend->ops->copy(backend, dense, values);
	if (!backend->ops->weight_create(backend, &part, 1, values.columns, TYPE_F32, &weight, &status))
		engine_bail("weight", &status);
	return weight;
}

/* A tensor with larger numbers, so that both tails of an activation are met. */
static UNIT_UNUSED Tensor
wide_tensor(int rows, int columns)
{
	Tensor		tensor = random_tensor(rows, columns);

	for (int r = 0; r < rows; r++)
		for (int c = 0; c < columns; c++)
			cpu_row(tensor, r)[c] *= 6.0f;
	return tensor;
}

#endif
