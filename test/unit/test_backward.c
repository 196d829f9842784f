/*
 * test_backward.c - every gradient of the backend's table against finite differences.
 *
 * Each operation is written down here once more in double, as its formula stands in the
 * papers. With random dy the sum of dy * f(x) is a scalar whose derivative is
 * measured by central differences in double; the backend's gradient has to agree, for every
 * instruction set and over shapes that fill no vector, no tile and no panel. The
 * forward operation is held against the same formula, so that both are of one function.
 *
 * Results must not depend on threads or on how rows are cut into calls, bit by bit.
 */
#include "gradients.h"

/* ---- products ---- */

static void
matmul_formula(const Formula *f, double *y)
{
	const double *x = f->inputs[0];
	const double *w = f->inputs[1];

	for (int r = 0; r < f->rows; r++)
		for (int n = 0; n < f->other; n++)
		{
			y[r * f->other + n] = 0;
			for (int k = 0; k < f->columns; k++)
				y[r * f->other + n] += x[r * f->columns + k] * w[n * f->columns + k];
		}
}

/* Rows, outputs, inputs: around the tile's 4 and 6 rows, the panels' 8, 16, 64 and the blocks. */
static const int product_shapes[][3] = {{1, 1, 1},	 {3, 5, 7},	  {7, 17, 9}, {5, 64, 65},
										{13, 70, 33}, {6, 16, 64}, {25, 3, 130}};

#define PRODUCT_SHAPES ((int) (sizeof(product_shapes) / sizeof(product_shapes[0])))

static void
check_product(Backend *backend, const int shape[3])
{
	Tensor		x = random_tensor(shape[0], shape[2]);
	Tensor		w = random_tensor(shape[1], shape[2]);
	Tensor		dy = random_tensor(shape[0], shape[1]);
	Tensor		y = random_tensor(shape[0], shape[1]);
	Tensor		dx = random_tensor(shape[0], shape[2]);
	Tensor		dw = random_tensor(shape[1], shape[2]);
	double	   *dx_before = doubles(dx);
	double	   *dw_before = doubles(dw);
	Formula		formula = {matmul_formula, {doubles(x), doubles(w)}, shape[0] * shape[1],
						   shape[0],	   shape[2],			   shape[1],			  NULL};
	double	   *expected_y = take((size_t) formula.y_count * sizeof(double));
	double	   *expected_dx;
	double	   *expected_dw;
	Weight		weight = make_weight(backend, w);

	matmul_formula(&formula, expected_y);
	expected_dx = measure_gradient(&formula, doubles(dy), formula.inputs[0], shape[0] * shape[2]);
	expected_dw = measure_gradient(&formula, doubles(dy), formula.inputs[1], shape[1] * shape[2]);
	backend->ops->matmul(backend, y, x, &weight, EPILOGUE_STORE);
	near_doubles("y", y, expected_y);
	add_doubles(expected_dw, dw_before, shape[1] * shape[2]);
	backend->ops->add_product(backend, dw, dy, x);
	near_doubles("dw", dw, expected_dw);
	backend->ops->matmul_backward(backend, dx, dy, &weight, 1.0f, false);
	near_doubles("dx", dx, expected_dx);
	for (int i = 0; i < shape[0] * shape[2]; i++)
		expected_dx[i] = 0.5 * expected_dx[i] + dx_before[i];
	for (int r = 0; r < dx.rows; r++)
		for (int c = 0; c < dx.columns; c++)
			cpu_row(dx, r)[c] = (float) dx_before[r * dx.columns + c];
	backend->ops->matmul_backward(backend, dx, dy, &weight, 0.5f, true);
	near_doubles("dx, added", dx, expected_dx);
	backend->ops->weight_destroy(backend, &weight);
}

UNIT_TEST(gradients_of_products)
{
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		Backend    *backend = open_backend(set, 2);

		for (int i = 0; i < PRODUCT_SHAPES; i++)
			check_product(backend, product_shapes[i]);
		backend->ops->close(backend);
	}
	forget_all();
}

/* Shapes beyond one block of rows and outputs, against the sums in double. */
UNIT_TEST(gradients_of_large_products)
{
	const int	shapes[][3] = {{BACKWARD_ROW_BLOCK + 5, 40, 70}, {7, 2 * BACKWARD_STEPS + 9, 67}};
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
		for (int s = 0; s < 2; s++)
		{
			Backend    *backend = open_backend(set, 3);
			Tensor		w = random_tensor(shapes[s][1], shapes[s][2]);
			Tensor		dy = random_tensor(shapes[s][0], shapes[s][1]);
			Tensor		dx = random_tensor(shapes[s][0], shapes[s][2]);
			double	   *expected = take((size_t) (dx.rows * dx.columns) * sizeof(double));
			Weight		weight = make_weight(backend, w);

			for (int r = 0; r < dx.rows; r++)
				for (int n = 0; n < w.rows; n++)
					for (int k = 0; k < dx.columns; k++)
						expected[r * dx.columns + k] += (double) cpu_row(dy, r)[n] *
							(double) cpu_row(w, n)[k];
			backend->ops->matmul_backward(backend, dx, dy, &weight, 1.0f, false);
			near_doubles("dx", dx, expected);
			backend->ops->weight_destroy(backend, &weight);
			backend->ops->close(backend);
			forget_all();
		}
}

/* ---- products in bf16 ---- */

/* A bf16 weight made of a tensor [N, K]. */
static Weight
make_bf16_weight(Backend *backend, Tensor values)
{
	Tensor		dense = tensor_make(take((size_t) (values.rows * values.columns) * sizeof(float)),
									TYPE_F32, values.rows, values.columns);
	WeightPart	part = {.data = dense.data, .type = TYPE_F32, .outputs = values.rows};
	Weight		weight;
	Status		status;

	backend->ops->copy(backend, dense, values);
	if (!backend->ops->weight_create(backend, &part, 1, values.columns, TYPE_BF16, &weight,
									 &status))
		engine_bail("weight", &status);
	return weight;
}

/* A number as bf16 keeps it. */
static double
rounded(float value)
{
	uint16_t	half = bf16_from_f32(value);
	float		back;

	convert_to_f32(&half, TYPE_BF16, 1, &back);
	return (double) back;
}

/* before + factor * dy W in double, both operands rounded. */
static double *
bf16_gradient(Tensor dx, Tensor dy, Tensor w, double factor)
{
	double	   *expected = doubles(dx);

	for (int r = 0; r < dx.rows; r++)
		for (int n = 0; n < w.rows; n++)
			for (int k = 0; k < dx.columns; k++)
				expected[r * dx.columns + k] += factor * rounded(cpu_row(dy, r)[n]) *
					rounded(cpu_row(w, n)[k]);
	return expected;
}

/* Rows, outputs, inputs: odd ones, and beyond one block of rows and of outputs. */
static const int bf16_shapes[][3] = {{1, 1, 1},	  {3, 5, 7},   {7, 17, 9}, {13, 70, 33},
									 {6, 64, 64}, {9, 33, 65}, {BACKWARD_ROW_BLOCK + 5, 40, 71},
									 {7, 2 * BACKWARD_STEPS + 9, 67}};

/* All instruction sets, with any number of threads, give the bits of the first. */
UNIT_TEST(gradients_of_products_in_bf16)
{
	for (size_t s = 0; s < sizeof(bf16_shapes) / sizeof(bf16_shapes[0]); s++)
	{
		Tensor		w = random_tensor(bf16_shapes[s][1], bf16_shapes[s][2]);
		Tensor		dy = random_tensor(bf16_shapes[s][0], bf16_shapes[s][1]);
		Tensor		before = random_tensor(bf16_shapes[s][0], bf16_shapes[s][2]);
		Tensor		reference = {0};
		const char *set;

		FOR_EACH_INSTRUCTION_SET(set)
			for (int threads = 1; threads <= 3; threads++)
			{
				Backend    *backend = open_backend(set, threads);
				Weight		weight = make_bf16_weight(backend, w);
				Tensor		dx = copy_tensor(before);

				backend->ops->matmul_backward(backend, dx, dy, &weight, 0.5f, true);
				if (reference.data == NULL)
					near_doubles("dx in bf16", dx, bf16_gradient(before, dy, w, 0.5));
				else
					UNIT_CHECK(same_bits(reference, dx));
				reference = dx;
				backend->ops->weight_destroy(backend, &weight);
				backend->ops->close(backend);
			}
	}
	forget_all();
}

UNIT_TEST(a_weight_takes_new_values)
{
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
		for (int i = 0; i < PRODUCT_SHAPES; i++)
		{
			Backend    *backend = open_backend(set, 2);
			Tensor		w = random_tensor(product_shapes[i][1], product_shapes[i][2]);
			Tensor		turned = random_tensor(w.columns, w.rows);
			Weight		fresh = make_weight(backend, w);
			Weight		updated = make_weight(backend, random_tensor(w.rows, w.columns));

			for (int r = 0; r < w.rows; r++)
				for (int c = 0; c < w.columns; c++)
					cpu_row(turned, c)[r] = cpu_row(w, r)[c];
			for (int transposed = 0; transposed < 2; transposed++)
			{
				backend->ops->weight_update(backend, &updated, transposed ? turned : w, transposed);
				UNIT_CHECK(memcmp(fresh.data, updated.data, fresh.bytes) == 0);
				backend->ops->weight_update(backend, &updated, random_tensor(w.rows, w.columns),
											false);
			}
			backend->ops->weight_destroy(backend, &fresh);
			backend->ops->weight_destroy(backend, &updated);
			backend->ops->close(backend);
		}
	forget_all();
}

/* ---- norms ---- */

static void
layer_norm_formula(const Formula *f, double *y)
{
	for (int r = 0; r < f->rows; r++)
	{
		const double *x = f->inputs[0] + r * f->columns;
		double		mean = 0;
		double		variance = 0;

		for (int i = 0; i < f->columns; i++)
			mean += x[i] / f->columns;
		for (int i = 0; i < f->columns; i++)
			variance += (x[i] - mean) * (x[i] - mean) / f->columns;
		for (int i = 0; i < f->columns; i++)
			y[r * f->columns + i] = (x[i] - mean) / sqrt(variance + 1e-5) * f->inputs[1][i] +
				f->inputs[2][i];
	}
}

static void
rms_norm_formula(const Formula *f, double *y)
{
	for (int r = 0; r < f->rows; r++)
	{
		const double *x = f->inputs[0] + r * f->columns;
		double		square = 0;

		for (int i = 0; i < f->columns; i++)
			square += x[i] * x[i] / f->columns;
		for (int i = 0; i < f->columns; i++)
			y[r * f->columns + i] = x[i] / sqrt(square + 1e-6) * f->inputs[1][i];
	}
}

static void
check_norm(Backend *backend, bool layer, int rows, int columns)
{
	Tensor		x = random_tensor(rows, columns);
	Tensor		weight = random_tensor(1, columns);
	Tensor		bias = random_tensor(1, columns);
	Tensor		dy = random_tensor(rows, columns);
	Tensor		y = random_tensor(rows, columns);
	Tensor		dx = random_tensor(rows, columns);
	Formula		formula = {layer ? layer_norm_formula : rms_norm_formula,
						   {doubles(x), doubles(weight), doubles(bias)},
						   rows * columns,
						   rows,
						   columns,
						   0,
						   NULL};
	double	   *expected_y = take((size_t) formula.y_count * sizeof(double));
	double	   *expected_dx = measure_gradient(&formula, doubles(dy), formula.inputs[0],
											   rows * columns);

	formula.compute(&formula, expected_y);
	add_doubles(expected_dx, doubles(dx), rows * columns);
	if (layer)
	{
		backend->ops->layer_norm(backend, y, x, weight, bias, 1e-5f);
		backend->ops->layer_norm_backward(backend, dx, dy, x, weight, 1e-5f);
	}
	else
	{
		backend->ops->rms_norm(backend, y, x, weight, 1e-6f);
		backend->ops->rms_norm_backward(backend, dx, dy, x, weight, 1e-6f);
	}
	near_doubles("norm", y, expected_y);
	near_doubles("norm's gradient", dx, expected_dx);
}

UNIT_TEST(gradients_of_norms)
{
	const int	columns[] = {2, 5, 16, 33, 96, 131};
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		Backend    *backend = open_backend(set, 2);

		for (int i = 0; i < 6; i++)
			for (int layer = 0; layer < 2; layer++)
				check_norm(backend, layer, 3, columns[i]);
		backend->ops->close(backend);
		forget_all();
	}
}

/* ---- activations and rotary positions ---- */

static void
gelu_formula(const Formula *f, double *y)
{
	for (int i = 0; i < f->y_count; i++)
		y[i] = f->inputs[0][i] * 0.5 * erfc(-f->inputs[0][i] / sqrt(2.0));
}

static void
swiglu_formula(const Formula *f, double *y)
{
	for (int r = 0; r < f->rows; r++)
		for (int i = 0; i < f->columns; i++)
		{
			double		gate = f->inputs[0][r * 2 * f->columns + i];
			double		up = f->inputs[0][r * 2 * f->columns + f->columns + i];

			y[r * f->columns + i] = gate / (1 + exp(-gate)) * up;
		}
}

/* Angles, one of each row and pair, stand in extra. */
static void
rotary_formula(const Formula *f, double *y)
{
	const double *angles = f->extra;
	int			half = f->columns / f->other / 2;

	for (int r = 0; r < f->rows; r++)
		for (int h = 0; h < f->other; h++)
			for (int i = 0; i < half; i++)
			{
				int			a = r * f->columns + h * 2 * half + i;
				double		angle = angles[r * half + i];

				y[a] = f->inputs[0][a] * cos(angle) - f->inputs[0][a + half] * sin(angle);
				y[a + half] = f->inputs[0][a + half] * cos(angle) + f->inputs[0][a] * sin(angle);
			}
}

static void
check_activations(Backend *backend, int rows, int columns)
{
	Tensor		x = wide_tensor(rows, columns);
	Tensor		gate_up = wide_tensor(rows, 2 * columns);
	Tensor		dy = random_tensor(rows, columns);
	Tensor		dx = copy_tensor(dy);
	Tensor		d_gate_up = random_tensor(rows, 2 * columns);
	Formula		gelu = {gelu_formula, {doubles(x)}, rows * columns, rows, columns, 0, NULL};
	Formula		swiglu = {swiglu_formula, {doubles(gate_up)}, rows * columns, rows, columns, 0,
						  NULL};

	backend->ops->activate_backward(backend, dx, x, ACTIVATION_GELU);
	near_doubles("gelu's gradient", dx,
				 measure_gradient(&gelu, doubles(dy), gelu.inputs[0], rows * columns));
	backend->ops->swiglu_backward(backend, d_gate_up, dy, gate_up);
	near_doubles("swiglu's gradient", d_gate_up,
				 measure_gradient(&swiglu, doubles(dy), swiglu.inputs[0], 2 * rows * columns));
}

UNIT_TEST(gradients_of_activations)
{
	const int	columns[] = {1, 7, 16, 37, 80};
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		Backend    *backend = open_backend(set, 2);

		for (int i = 0; i < 5; i++)
			check_activations(backend, 4, columns[i]);
		backend->ops->close(backend);
		forget_all();
	}
}

UNIT_TEST(gradients_of_rotary_positions)
{
	Backend    *backend = open_backend("portable", 2);

	for (int half = 1; half < 6; half++)
	{
		int			heads = 3;
		int			rows = 4;
		Tensor		table = random_tensor(8, 2 * half);
		Tensor		positions = integers(1, rows);
		double	   *angles = take((size_t) (rows * half) * sizeof(double));
		Tensor		dy = random_tensor(rows, heads * 2 * half);
		Tensor		dx = copy_tensor(dy);
		Formula		formula = {rotary_formula,
							   {doubles(random_tensor(rows, dy.columns))},
							   rows * dy.columns,
							   rows,
							   dy.columns,
							   heads,
							   angles};

		for (int r = 0; r < rows; r++)
		{
			int			position = (r * 3 + 1) % 8;

			((int32_t *) positions.data)[r] = position;
			for (int i = 0; i < half; i++)
			{
				angles[r * half + i] = position * 0.7 + i;
				cpu_row(table, position)[i] = (float) cos(angles[r * half + i]);
				cpu_row(table, position)[half + i] = (float) sin(angles[r * half + i]);
			}
		}
		backend->ops->rotary_backward(backend, dx, heads, positions, table);
		near_doubles("rotary's gradient", dx,
					 measure_gradient(&formula, doubles(dy), formula.inputs[0],
									  rows * dy.columns));
	}
	backend->ops->close(backend);
	forget_all();
}

/* ---- loss ---- */

static void
cross_entropy_formula(const Formula *f, double *y)
{
	const int32_t *targets = f->extra;

	for (int r = 0; r < f->rows; r++)
	{
		const double *x = f->inputs[0] + r * f->columns;
		double		sum = 0;

		for (int i = 0; i < f->columns; i++)
			sum += exp(x[i]);
		y[r] = log(sum) - x[targets[r]];
	}
}

UNIT_TEST(gradients_of_cross_entropy)
{
	const int	columns[] = {2, 16, 37, 603};
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		Backend    *backend = open_backend(set, 2);

		for (int i = 0; i < 4; i++)
		{
			Tensor		logits = wide_tensor(5, columns[i]);
			Tensor		targets = integers(1, 5);
			Tensor		weights = random_tensor(1, 5);
			Tensor		losses = random_tensor(1, 5);
			Formula		formula = {cross_entropy_formula, {doubles(logits)}, 5, 5, columns[i], 0,
								   targets.data};
			double		expected[5];

			for (int r = 0; r < 5; r++)
				((int32_t *) targets.data)[r] = (r * 7) % columns[i];
			formula.compute(&formula, expected);
			backend->ops->cross_entropy(backend, logits, losses, targets, weights);
			near_doubles("loss", losses, expected);
			near_doubles("logits' gradient", logits,
						 measure_gradient(&formula, doubles(weights), formula.inputs[0],
										  5 * columns[i]));
		}
		backend->ops->close(backend);
		forget_all();
	}
}

/* ---- the rest of the table ---- */

UNIT_TEST(rows_are_copied_scaled_and_scattered)
{
	Backend    *backend = open_backend("auto", 2);
	Tensor		x = random_tensor(3, 11);
	Tensor		y = random_tensor(3, 11);
	Tensor		spread = random_tensor(6, 11);
	Tensor		before = copy_tensor(spread);
	Tensor		index = integers(1, 3);

	memcpy(index.data, ((int32_t[]) {4, 0, 5}), 3 * sizeof(int32_t));
	backend->ops->copy(backend, y, x);
	UNIT_CHECK(same_bits(x, y));
	backend->ops->scatter(backend, spread, x, index);
	UNIT_CHECK(same_bits(tensor_row_range(spread, 4, 1), tensor_row_range(x, 0, 1)));
	UNIT_CHECK(same_bits(tensor_row_range(spread, 0, 1), tensor_row_range(x, 1, 1)));
	UNIT_CHECK(same_bits(tensor_row_range(spread, 5, 1), tensor_row_range(x, 2, 1)));
	UNIT_CHECK(same_bits(tensor_row_range(spread, 1, 3), tensor_row_range(before, 1, 3)));
	backend->ops->scale(backend, y, 0.5f);
	for (int i = 0; i < 11; i++)
		UNIT_CHECK(cpu_row(y, 2)[i] == 0.5f * cpu_row(x, 2)[i]);
	cpu_row(y, 1)[3] = NAN;
	backend->ops->scale(backend, y, 0.0f);
	UNIT_CHECK(cpu_row(y, 1)[3] == 0.0f);
	backend->ops->close(backend);
	forget_all();
}

UNIT_TEST(square_sums_of_rows)
{
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		Backend    *backend = open_backend(set, 2);
		Tensor		x = random_tensor(3, 75);
		Tensor		sums = random_tensor(1, 3);

		backend->ops->square_sums(backend, sums, x);
		for (int r = 0; r < 3; r++)
		{
			double		expected = 0;

			for (int i = 0; i < 75; i++)
				expected += (double) cpu_row(x, r)[i] * (double) cpu_row(x, r)[i];
			UNIT_NEAR(cpu_row(sums, 0)[r], expected, 1e-4);
		}
		backend->ops->close(backend);
		forget_all();
	}
}

/* Three steps against the paper's formulas in double. */
UNIT_TEST(adamw_follows_its_paper)
{
	Backend    *backend = open_backend("auto", 2);
	Tensor		value = random_tensor(2, 9);
	Tensor		gradient = random_tensor(2, 9);
	Tensor		mean = random_tensor(2, 9);
	Tensor		square = random_tensor(2, 9);
	double	   *v = doubles(value);
	double	   *g = doubles(gradient);
	double		m[18] = {0};
	double		s[18] = {0};

	backend->ops->scale(backend, mean, 0.0f);
	backend->ops->scale(backend, square, 0.0f);
	for (int t = 1; t <= 3; t++)
	{
		double		rate = 0.01 * t;
		AdamwRule	rule = {(float) (1 - rate * 0.1), 0.9f, 0.999f, 1e-8f,
							(float) (rate / (1 - pow(0.9, t))), (float) sqrt(1 - pow(0.999, t))};

		backend->ops->adamw(backend, value, gradient, mean, square, &rule);
		for (int i = 0; i < 18; i++)
		{
			m[i] = 0.9 * m[i] + 0.1 * g[i];
			s[i] = 0.999 * s[i] + 0.001 * g[i] * g[i];
			v[i] -= rate * 0.1 * v[i];
			v[i] -= rate * (m[i] / (1 - pow(0.9, t))) /
				(sqrt(s[i] / (1 - pow(0.999, t))) + 1e-8);
		}
		near_doubles("value", value, v);
	}
	backend->ops->close(backend);
	forget_all();
}

/* ---- bits ---- */

UNIT_TEST(rows_of_a_weights_gradient_may_come_in_pieces)
{
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		Backend    *backend = open_backend(set, 2);
		Tensor		a = random_tensor(101, 13);
		Tensor		b = random_tensor(101, 75);
		Tensor		whole = random_tensor(13, 75);
		Tensor		pieces = copy_tensor(whole);

		backend->ops->add_product(backend, whole, a, b);
		for (int row = 0; row < 101; row += 17)
		{
			int			count = 101 - row < 17 ? 101 - row : 17;

			backend->ops->add_product(backend, pieces, tensor_row_range(a, row, count),
									  tensor_row_range(b, row, count));
		}
		UNIT_CHECK(same_bits(whole, pieces));
		backend->ops->close(backend);
		forget_all();
	}
}

/* Few outputs, as LoRA's ranks are, go another way than many: every bit is the same. */
UNIT_TEST(narrow_products_have_the_bits_of_wide_ones)
{
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		Backend    *backend = open_backend(set, 2);
		Tensor		x = random_tensor(29, 67);
		Tensor		w = random_tensor(70, 67);
		Tensor		wide = random_tensor(29, 70);
		Tensor		narrow = random_tensor(29, 70);
		Weight		whole = make_weight(backend, w);

		backend->ops->matmul(backend, wide, x, &whole, EPILOGUE_STORE);
		for (int outputs = 1; outputs <= 17; outputs += 4)
		{
			Weight		part = make_weight(backend, tensor_row_range(w, 0, outputs));

			backend->ops->matmul(backend, tensor_column_range(narrow, 0, outputs), x, &part,
								 EPILOGUE_STORE);
			for (int r = 0; r < x.rows; r++)
				UNIT_CHECK(memcmp(cpu_row(narrow, r), cpu_row(wide, r),
								  (size_t) outputs * sizeof(float)) == 0);
			backend->ops->weight_destroy(backend, &part);
		}
		backend->ops->weight_destroy(backend, &whole);
		backend->ops->close(backend);
	}
	forget_all();
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
