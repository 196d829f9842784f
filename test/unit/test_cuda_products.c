/*
 * test_cuda_products.c - products of the CUDA library against the portable kernels, over odd
 * shapes, in every format of weights, with every epilogue; and their gradients.
 *
 * A row's result must have the same bits alone as among others.
 */
#include "cuda_pair.h"
#include "quantize.h"

/* Of f32 sums in another order. */
#define TOLERANCE 1e-5

typedef struct Shape
{
	int			rows;
	int			outputs;
	int			inputs;
} Shape;

static const Shape shapes[] = {
	{1, 1, 1}, {1, 5, 7}, {2, 33, 40}, {9, 20, 65}, {13, 37, 96}, {1, 131, 200}, {17, 16, 130},
	{33, 20, 40}, {66, 37, 130}, {70, 24, 40},
};

#define FOR_EACH_SHAPE(shape) \
	for (const Shape *shape = shapes; shape < shapes + sizeof(shapes) / sizeof(shapes[0]); shape++)

static const DataType formats[] = {TYPE_F32, TYPE_BF16, TYPE_Q8, TYPE_Q4};

/* Two parts of a matrix on the host, the second one bf16. */
typedef struct Parts
{
	WeightPart	parts[2];
	int			count;
} Parts;

static Parts
random_parts(const Shape *shape)
{
	int			first = (shape->outputs + 1) / 2;
	Tensor		values = random_tensor(shape->outputs, shape->inputs);
	float	   *dense = take((size_t) (first * shape->inputs) * sizeof(float));
	uint16_t   *halves = take((size_t) (shape->outputs * shape->inputs) * sizeof(uint16_t));
	Parts		parts = {.count = shape->outputs > 1 ? 2 : 1};

	for (int r = 0; r < shape->outputs; r++)
		for (int c = 0; c < shape->inputs; c++)
			if (r < first)
				dense[r * shape->inputs + c] = cpu_row(values, r)[c];
			else
				halves[(r - first) * shape->inputs + c] = bf16_from_f32(cpu_row(values, r)[c]);
	parts.parts[0] = (WeightPart) {.data = dense, .type = TYPE_F32, .outputs = first};
	parts.parts[1] = (WeightPart) {.data = halves, .type = TYPE_BF16,
								   .outputs = shape->outputs - first};
	return parts;
}

static Weight
create_weight(Backend *backend, const Parts *parts, int inputs, DataType format)
{
	Weight		weight;
	Status		status;

	if (!backend->ops->weight_create(backend, parts->parts, parts->count, inputs, format, &weight,
									 &status))
		engine_bail("weight", &status);
	return weight;
}

/* One weight on both sides. */
typedef struct WeightPair
{
	Weight		cpu;
	Weight		cuda;
} WeightPair;

static WeightPair
create_pair(Pair *pair, const Shape *shape, DataType format)
{
	Parts		parts = random_parts(shape);

	return (WeightPair) {create_weight(pair->cpu, &parts, shape->inputs, format),
						 create_weight(pair->cuda, &parts, shape->inputs, format)};
}

static void
destroy_pair(Pair *pair, WeightPair *weight)
{
	pair->cpu->ops->weight_destroy(pair->cpu, &weight->cpu);
	pair->cuda->ops->weight_destroy(pair->cuda, &weight->cuda);
}

/* One product with one epilogue, and its last row alone. */
static void
check_product(Pair *pair, const Shape *shape, const WeightPair *weight, Epilogue epilogue)
{
	Tensor		x = random_tensor(shape->rows, shape->inputs);
	Tensor		y = random_tensor(shape->rows, shape->outputs);
	Tensor		x_device = to_device(pair, x);
	Tensor		y_device = to_device(pair, y);
	Tensor		alone = to_device(pair, tensor_row_range(y, shape->rows - 1, 1));
	Tensor		bias;
	Epilogue	on_device = epilogue;
	char		what[32];

	snprintf(what, sizeof(what), "%s product", data_type_name(weight->cpu.type));
	if (epilogue.bias != NULL)
	{
		bias = to_device(pair, *epilogue.bias);
		on_device.bias = &bias;
	}
	pair->cpu->ops->matmul(pair->cpu, y, x, &weight->cpu, epilogue);
	pair->cuda->ops->matmul(pair->cuda, y_device, x_device, &weight->cuda, on_device);
	pair->cuda->ops->matmul(pair->cuda, alone, tensor_row_range(x_device, shape->rows - 1, 1),
							&weight->cuda, on_device);
	same_result(pair, what, y_device, y, TOLERANCE);
	same_rows(pair, what, y_device, shape->rows - 1, alone);
}

UNIT_TEST(products_match_the_portable_ones)
{
	for (int f = 0; f < 4; f++)
		FOR_EACH_SHAPE(shape)
		{
			Pair		pair;
			WeightPair	weight;
			Tensor		bias;

			if (!pair_open(&pair))
				UNIT_SKIP(CUDA_SKIPPED);
			bias = random_tensor(1, shape->outputs);
			weight = create_pair(&pair, shape, formats[f]);
			check_product(&pair, shape, &weight, EPILOGUE_STORE);
			check_product(&pair, shape, &weight, EPILOGUE_ADD);
			check_product(&pair, shape, &weight, (Epilogue) {&bias, ACTIVATION_GELU, 1.0f, false});
			check_product(&pair, shape, &weight,
						  (Epilogue) {&bias, ACTIVATION_QUICK_GELU, 0.5f, true});
			check_product(&pair, shape, &weight, (Epilogue) {&bias, ACTIVATION_NONE, 0.7f, true});
			destroy_pair(&pair, &weight);
			pair_close(&pair);
		}
}

/* y may be some columns of a wider tensor, wherever they begin; the others stay as they were. */
UNIT_TEST(products_go_to_any_columns)
{
	static const int firsts[] = {0, 1, 4};

	for (int f = 0; f < 4; f++)
		for (int i = 0; i < 6; i++)
		{
			Shape		shape = {3, 16 + i / 3, 40};
			int			first = firsts[i % 3];
			Pair		pair;
			WeightPair	weight;
			Tensor		x;
			Tensor		y;
			Tensor		x_device;
			Tensor		y_device;

			if (!pair_open(&pair))
				UNIT_SKIP(CUDA_SKIPPED);
			weight = create_pair(&pair, &shape, formats[f]);
			x = random_tensor(shape.rows, shape.inputs);
			y = random_tensor(shape.rows, 24);
			x_device = to_device(&pair, x);
			y_device = to_device(&pair, y);
			pair.cpu->ops->matmul(pair.cpu, tensor_column_range(y, first, shape.outputs), x,
								  &weight.cpu, EPILOGUE_ADD);
			pair.cuda->ops->matmul(pair.cuda, tensor_column_range(y_device, first, shape.outputs),
								   x_device, &weight.cuda, EPILOGUE_ADD);
			same_result(&pair, data_type_name(formats[f]), y_device, y, TOLERANCE);
			destroy_pair(&pair, &weight);
			pair_close(&pair);
		}
}

/* Where sums may have any order, bf16 has two ways. */
UNIT_TEST(products_in_any_order_match)
{
	static const Shape any[] = {{1, 33, 40}, {8, 21, 70}, {9, 20, 65}, {64, 17, 40}, {70, 9, 333}};

	for (int f = 1; f < 4; f++)
		for (int i = 0; i < 5; i++)
		{
			Pair		pair;
			WeightPair	weight;
			Tensor		x;
			Tensor		y;
			Tensor		device;
			Tensor		bias;
			Tensor		bias_device;

			if (!pair_open_with(&pair, true))
				UNIT_SKIP(CUDA_SKIPPED);
			x = random_tensor(any[i].rows, any[i].inputs);
			y = random_tensor(any[i].rows, any[i].outputs);
			bias = random_tensor(1, any[i].outputs);
			device = to_device(&pair, y);
			bias_device = to_device(&pair, bias);
			weight = create_pair(&pair, &any[i], formats[f]);
			pair.cpu->ops->matmul(pair.cpu, y, x, &weight.cpu,
								  (Epilogue) {&bias, ACTIVATION_GELU, 0.5f, true});
			pair.cuda->ops->matmul(pair.cuda, device, to_device(&pair, x), &weight.cuda,
								   (Epilogue) {&bias_device, ACTIVATION_GELU, 0.5f, true});
			same_result(&pair, data_type_name(formats[f]), device, y, TOLERANCE);
			destroy_pair(&pair, &weight);
			pair_close(&pair);
		}
}

/* ---- low-rank products ---- */

enum
{
	GROUPS = 5,
	LOW_RANK_ROWS = 28,
	MOST_RANK = 36				/* a multiple of 4 */
};

/* Groups with ranks of their own; rows 11 and 12 have none. */
static const int group_ranks[GROUPS] = {4, 7, 1, MOST_RANK - 1, 16};
static const int group_firsts[GROUPS] = {0, 1, 13, 14, 22};
static const int group_rows[GROUPS] = {1, 10, 1, 8, 6};

/* The groups' matrices on both sides, and their products' operands. */
typedef struct LowRankCase
{
	WeightPair	a[GROUPS];
	WeightPair	b[GROUPS];
	LowRankGroup cpu[GROUPS];
	LowRankGroup cuda[GROUPS];
	Tensor		y;
	Tensor		x;
	Tensor		y_device;
	Tensor		x_device;
	Tensor		reduced;		/* on the device */
} LowRankCase;

static LowRankCase *
open_low_rank(Pair *pair, int outputs, int inputs)
{
	LowRankCase *c = take(sizeof(LowRankCase));

	for (int i = 0; i < GROUPS; i++)
	{
		c->a[i] = create_pair(pair, &(Shape) {0, group_ranks[i], inputs}, TYPE_F32);
		c->b[i] = create_pair(pair, &(Shape) {0, outputs, group_ranks[i]}, TYPE_F32);
		c->cpu[i] = (LowRankGroup) {group_firsts[i], group_rows[i], &c->a[i].cpu, &c->b[i].cpu,
									0.5f * (float) (i + 1)};
		c->cuda[i] = c->cpu[i];
		c->cuda[i].a = &c->a[i].cuda;
		c->cuda[i].b = &c->b[i].cuda;
	}
	c->y = random_tensor(LOW_RANK_ROWS, outputs);
	/* of 700 inputs, rows that are read by whole vectors */
	c->x = random_tensor(LOW_RANK_ROWS, inputs == 700 ? 701 : inputs);
	c->x.columns = inputs;
	c->y_device = to_device(pair, c->y);
	c->x_device = to_device(pair, c->x);
	c->reduced = tensor_make(NULL, TYPE_F32, LOW_RANK_ROWS, MOST_RANK);
	c->reduced.data = device_memory(pair, tensor_bytes(c->reduced));
	return c;
}

static void
close_low_rank(Pair *pair, LowRankCase *c)
{
	for (int i = 0; i < GROUPS; i++)
	{
		destroy_pair(pair, &c->a[i]);
		destroy_pair(pair, &c->b[i]);
	}
}

/* Rows [first, first + count) of a group, computed without all others. */
static void
check_rows_alone(Pair *pair, const LowRankCase *c, int group, int first, int count)
{
	Tensor		alone = to_device(pair, tensor_row_range(c->y, first, count));
	LowRankGroup only = c->cuda[group];

	only.first = 0;
	only.count = count;
	pair->cuda->ops->low_rank(pair->cuda, alone, tensor_row_range(c->x_device, first, count),
							  c->reduced, &only, 1);
	same_rows(pair, "low rank", c->y_device, first, alone);
}

UNIT_TEST(low_rank_products_of_several_adapters_match)
{
	static const int inputs[] = {5, 65, 96, 700};
	static const int outputs[] = {1, 37, 130, 260};

	for (int i = 0; i < 4; i++)
	{
		LowRankCase *c;
		Tensor		scratch;
		Tensor		before;
		Pair		pair;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		c = open_low_rank(&pair, outputs[i], inputs[i]);
		scratch = random_tensor(LOW_RANK_ROWS, MOST_RANK);
		before = copy_tensor(c->y);
		pair.cuda->ops->low_rank(pair.cuda, c->y_device, c->x_device, c->reduced, c->cuda, GROUPS);
		for (int g = 0; g < GROUPS; g++)
		{
			/* c->y still holds what y was: the processor's turn comes after */
			check_rows_alone(&pair, c, g, group_firsts[g], group_rows[g]);
			check_rows_alone(&pair, c, g, group_firsts[g] + group_rows[g] - 1, 1);
		}
		pair.cpu->ops->low_rank(pair.cpu, c->y, c->x, scratch, c->cpu, GROUPS);
		same_result(&pair, "low rank", c->y_device, c->y, TOLERANCE);
		same_rows(&pair, "rows without a group", c->y_device, 11,
				  to_device(&pair, tensor_row_range(before, 11, 2)));
		close_low_rank(&pair, c);
		pair_close(&pair);
	}
}

UNIT_TEST(as_many_adapters_as_a_call_may_have_match)
{
	enum {OUTPUTS = 33, INPUTS = 20};
	LowRankGroup groups[2][LOW_RANK_GROUPS];
	LowRankCase *c;
	Tensor		y;
	Tensor		x;
	Tensor		y_device;
	Tensor		reduced;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	c = open_low_rank(&pair, OUTPUTS, INPUTS);
	for (int i = 0; i < LOW_RANK_GROUPS; i++)
	{
		groups[0][i] = c->cpu[i % GROUPS];
		groups[1][i] = c->cuda[i % GROUPS];
		groups[0][i].first = groups[1][i].first = i;
		groups[0][i].count = groups[1][i].count = 1;
	}
	y = random_tensor(LOW_RANK_GROUPS, OUTPUTS);
	x = random_tensor(LOW_RANK_GROUPS, INPUTS);
	y_device = to_device(&pair, y);
	reduced = tensor_make(take(LOW_RANK_GROUPS * MOST_RANK * sizeof(float)), TYPE_F32,
						  LOW_RANK_GROUPS, MOST_RANK);
	pair.cuda->ops->low_rank(pair.cuda, y_device, to_device(&pair, x), to_device(&pair, reduced),
							 groups[1], LOW_RANK_GROUPS);
	pair.cpu->ops->low_rank(pair.cpu, y, x, reduced, groups[0], LOW_RANK_GROUPS);
	same_result(&pair, "low rank", y_device, y, TOLERANCE);
	close_low_rank(&pair, c);
	pair_close(&pair);
}

/* ---- weights in 8 and 4 bits ---- */

/* A random matrix as a file has it. */
static Parts
quantized_parts(const Shape *shape, DataType type)
{
	size_t		row = (size_t) quantized_row_bytes(type, shape->inputs);
	size_t		scale_count = (size_t) quantized_blocks(shape->inputs);
	size_t		outputs = (size_t) shape->outputs;
	uint8_t    *codes = take(outputs * row);
	uint16_t   *scales = take(outputs * scale_count * sizeof(uint16_t));
	Parts		parts = {.count = 1};

	for (size_t r = 0; r < outputs; r++)
		if (!quantize_values(type, shape->inputs, random_tensor(1, shape->inputs).data,
							 codes + r * row, scales + r * scale_count))
			engine_bail("codes", NULL);
	parts.parts[0] = (WeightPart) {.data = codes, .type = type, .outputs = shape->outputs,
								   .scales = scales};
	return parts;
}

UNIT_TEST(stored_codes_are_taken_over)
{
	for (DataType type = TYPE_Q8; type <= TYPE_Q4; type++)
	{
		Shape		shape = {3, 9, 77};
		Parts		parts;
		WeightPair	weight;
		Pair		pair;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		parts = quantized_parts(&shape, type);
		weight = (WeightPair) {create_weight(pair.cpu, &parts, shape.inputs, type),
							   create_weight(pair.cuda, &parts, shape.inputs, type)};
		check_product(&pair, &shape, &weight, EPILOGUE_STORE);
		destroy_pair(&pair, &weight);
		pair_close(&pair);
	}
}

/* A block of a row of x as MODEL.md, section 10 has it; its scale. */
static float
quantize_block(const float *x, int count, int *codes)
{
	float		largest = 0;

	memset(codes, 0, QUANTIZED_BLOCK * sizeof(int));
	for (int i = 0; i < count; i++)
	{
		if (!isfinite(x[i]))
			return NAN;
		largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
	}
	if (largest < 0x1p-100f)
		return 0;
	for (int i = 0; i < count; i++)
		codes[i] = (int) rintf(x[i] * (127.0f / largest));
	return largest / 127.0f;
}

static int
code_of(const WeightPart *part, int inputs, int output, int input)
{
	const uint8_t *row = (const uint8_t *) part->data +
		(size_t) output * (size_t) quantized_row_bytes(part->type, inputs);

	return part->type == TYPE_Q8 ? (int8_t) row[input] : (row[input / 2] >> input % 2 * 4 & 15) - 8;
}

/* What a block adds to a sum. */
static float
add_block(float sum, const float *x, const WeightPart *part, int inputs, int output, int block)
{
	const uint16_t *scales = part->scales;
	int			first = block * QUANTIZED_BLOCK;
	int			count = inputs - first < QUANTIZED_BLOCK ? inputs - first : QUANTIZED_BLOCK;
	int			codes[QUANTIZED_BLOCK];
	float		factor;
	int			product = 0;

	convert_to_f32(&scales[output * quantized_blocks(inputs) + block], TYPE_BF16, 1, &factor);
	factor *= quantize_block(x + first, count, codes);
	for (int i = 0; i < count; i++)
		product += codes[i] * code_of(part, inputs, output, first + i);
	return fmaf((float) product, factor, sum);
}

/* An element by the formula of MODEL.md, section 10, for CUDA devices. */
static float
defined_sum(const float *x, const WeightPart *part, int inputs, int output)
{
	int			count = quantized_blocks(inputs);
	int			steps = (count + 3) / 4;
	int			segments = steps < 4 ? 1 : steps < 16 ? steps / 2 : 8;
	float		total = 0;

	for (int segment = 0; segment < segments; segment++)
	{
		float		sum = 0;

		for (int b = segment * steps / segments * 4;
			 b < (segment + 1) * steps / segments * 4 && b < count; b++)
			sum = add_block(sum, x, part, inputs, output, b);
		total += sum;
	}
	return total;
}

/* Rows with blocks of zeros, tiny, huge and infinite numbers among them. */
static Tensor
uncommon_rows(int rows, int inputs)
{
	Tensor		x = random_tensor(rows, inputs);

	for (int r = 1; r < rows; r += 3)
		for (int c = 0; c < inputs; c++)
			cpu_row(x, r)[c] *= c % 96 < 32 ? 1e-32f : c % 96 < 64 ? 0.0f : 1e20f;
	for (int r = 2; r < rows; r += 4)
		cpu_row(x, r)[inputs / 2] = r % 8 == 2 ? INFINITY : NAN;
	return x;
}

/* Every element of y has the bits of the formula, or is no number where that is none. */
static bool
has_defined_bits(Pair *pair, Tensor device, Tensor x, const WeightPart *part)
{
	Tensor		y = to_host(pair, device);

	for (int r = 0; r < y.rows; r++)
		for (int n = 0; n < y.columns; n++)
		{
			float		expected = defined_sum(cpu_row(x, r), part, x.columns, n);
			float		actual = cpu_row(y, r)[n];

			if (isnan(expected) ? !isnan(actual) : memcmp(&expected, &actual, sizeof(float)) != 0)
				return UNIT_FAIL("%s: %d, %d of [%d, %d] by %d inputs is %.9g, not %.9g",
								 data_type_name(part->type), r, n, y.rows, y.columns, x.columns,
								 (double) actual, (double) expected);
		}
	return device_is_well(pair);
}

/* One segment and eight, of equal and unequal lengths; all kernels of the emulated device. */
UNIT_TEST(quantized_products_have_the_bits_of_their_definition)
{
	static const Shape defined[] = {
		{1, 17, 31}, {8, 16, 128}, {7, 35, 700}, {3, 18, 2200}, {14, 33, 513}, {31, 40, 1100},
		{33, 35, 290}, {66, 50, 550}, {66, 129, 260}, {18, 258, 140}, {130, 130, 400},
	};

	for (DataType type = TYPE_Q8; type <= TYPE_Q4; type++)
		for (int i = 0; i < (int) (sizeof(defined) / sizeof(defined[0])); i++)
		{
			const Shape *shape = &defined[i];
			Parts		parts;
			Weight		weight;
			Tensor		x;
			Tensor		y;
			Pair		pair;

			if (!pair_open(&pair))
				UNIT_SKIP(CUDA_SKIPPED);
			parts = quantized_parts(shape, type);
			weight = create_weight(pair.cuda, &parts, shape->inputs, type);
			x = uncommon_rows(shape->rows, shape->inputs);
			y = to_device(&pair, random_tensor(shape->rows, shape->outputs));
			pair.cuda->ops->matmul(pair.cuda, y, to_device(&pair, x), &weight, EPILOGUE_STORE);
			has_defined_bits(&pair, y, x, &parts.parts[0]);
			pair.cuda->ops->weight_destroy(pair.cuda, &weight);
			pair_close(&pair);
		}
}

/* The first rows alone, in numbers that are for different kernels. */
UNIT_TEST(quantized_products_are_the_same_in_any_company)
{
	static const int counts[] = {1, 8, 9, 17, 33, 65};
	static const Shape large[] = {{129, 100, 1300}, {130, 140, 520}};

	for (DataType type = TYPE_Q8; type <= TYPE_Q4; type++)
		for (int i = 0; i < 2; i++)
		{
			Pair		pair;
			WeightPair	weight;
			Tensor		x;
			Tensor		y;

			if (!pair_open(&pair))
				UNIT_SKIP(CUDA_SKIPPED);
			weight = create_pair(&pair, &large[i], type);
			x = to_device(&pair, random_tensor(large[i].rows, large[i].inputs));
			y = to_device(&pair, random_tensor(large[i].rows, large[i].outputs));
			pair.cuda->ops->matmul(pair.cuda, y, x, &weight.cuda, EPILOGUE_STORE);
			for (int c = 0; c < (int) (sizeof(counts) / sizeof(counts[0])); c++)
			{
				Tensor		some = to_device(&pair, random_tensor(counts[c], large[i].outputs));

				pair.cuda->ops->matmul(pair.cuda, some, tensor_row_range(x, 0, counts[c]),
									   &weight.cuda, EPILOGUE_STORE);
				same_rows(&pair, data_type_name(type), y, 0, some);
			}
			destroy_pair(&pair, &weight);
			pair_close(&pair);
		}
}

UNIT_TEST(a_number_that_is_not_finite_is_refused_by_name)
{
	float		values[40] = {[7] = INFINITY};
	WeightPart	part = {.data = values, .type = TYPE_F32, .outputs = 1, .name = "the.tensor"};
	Weight		weight;
	Status		status;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	UNIT_CHECK(!pair.cuda->ops->weight_create(pair.cuda, &part, 1, 40, TYPE_Q8, &weight, &status));
	UNIT_EQUAL_INT(status.code, STATUS_INVALID_MODEL);
	UNIT_CONTAINS(status.message, "the.tensor");
	pair_close(&pair);
}

UNIT_TEST(gradients_of_products_match)
{
	for (int f = 0; f < 4; f++)
		FOR_EACH_SHAPE(shape)
		{
			Pair		pair;
			WeightPair	weight;
			Tensor		dx;
			Tensor		dy;
			Tensor		dx_device;
			Tensor		dy_device;

			if (!pair_open(&pair))
				UNIT_SKIP(CUDA_SKIPPED);
			weight = create_pair(&pair, shape, formats[f]);
			dx = random_tensor(shape->rows, shape->inputs);
			dy = random_tensor(shape->rows, shape->outputs);
			dx_device = to_device(&pair, dx);
			dy_device = to_device(&pair, dy);
			for (int i = 0; i < 2; i++)
			{
				pair.cpu->ops->matmul_backward(pair.cpu, dx, dy, &weight.cpu, 0.6f, i == 0);
				pair.cuda->ops->matmul_backward(pair.cuda, dx_device, dy_device, &weight.cuda,
												0.6f, i == 0);
				same_result(&pair, "dx", dx_device, dx, TOLERANCE);
			}
			destroy_pair(&pair, &weight);
			pair_close(&pair);
		}
}

UNIT_TEST(gradients_of_weights_match_whatever_the_passes)
{
	FOR_EACH_SHAPE(shape)
	{
		Pair		pair;
		Tensor		a;
		Tensor		b;
		Tensor		sum;
		Tensor		device[4];
		int			half = shape->rows / 2;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		a = random_tensor(shape->rows, shape->outputs);
		b = random_tensor(shape->rows, shape->inputs);
		sum = random_tensor(shape->outputs, shape->inputs);
		device[0] = to_device(&pair, sum);
		device[1] = to_device(&pair, sum);
		device[2] = to_device(&pair, a);
		device[3] = to_device(&pair, b);
		pair.cpu->ops->add_product(pair.cpu, sum, a, b);
		pair.cuda->ops->add_product(pair.cuda, device[0], device[2], device[3]);
		same_result(&pair, "sum", device[0], sum, TOLERANCE);
		if (half > 0)
			pair.cuda->ops->add_product(pair.cuda, device[1], tensor_row_range(device[2], 0, half),
										tensor_row_range(device[3], 0, half));
		pair.cuda->ops->add_product(pair.cuda, device[1],
									tensor_row_range(device[2], half, shape->rows - half),
									tensor_row_range(device[3], half, shape->rows - half));
		same_rows(&pair, "sum in two passes", device[0], 0, device[1]);
		pair_close(&pair);
	}
}

UNIT_TEST(updated_weights_multiply_as_new_ones)
{
	for (int transposed = 0; transposed < 2; transposed++)
	{
		Shape		shape = {4, 19, 35};
		WeightPair	weight;
		Tensor		values;
		Pair		pair;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		weight = create_pair(&pair, &shape, TYPE_F32);
		values = transposed ? random_tensor(shape.inputs, shape.outputs)
			: random_tensor(shape.outputs, shape.inputs);
		pair.cpu->ops->weight_update(pair.cpu, &weight.cpu, values, transposed);
		pair.cuda->ops->weight_update(pair.cuda, &weight.cuda, to_device(&pair, values),
									  transposed);
		check_product(&pair, &shape, &weight, EPILOGUE_STORE);
		destroy_pair(&pair, &weight);
		pair_close(&pair);
	}
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
