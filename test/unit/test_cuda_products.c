/*
 * test_cuda_products.c - products of the CUDA library against the portable kernels, over odd shapes,
 * in every format of weights, with every epilogue; and their gradients.
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
	{70, 24, 40},
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

/* Where sums may have any order, bf16 has two ways and quantised weights are turned into bf16. */
UNIT_TEST(products_in_any_order_match)
{
	static const Shape any[] = {{1, 33, 40}, {8, 21, 70}, {9, 20, 65}, {64, 17, 40}, {70, 9, 33}};

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
			/* x in 8 bits, as the processor takes it, differs from x in bf16 */
			same_result(&pair, data_type_name(formats[f]), device, y,
						f > 1 && any[i].rows >= 64 ? 2e-2 : TOLERANCE);
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

UNIT_TEST(stored_codes_are_taken_over)
{
	for (DataType type = TYPE_Q8; type <= TYPE_Q4; type++)
	{
		enum {OUTPUTS = 9, INPUTS = 77};
		Shape		shape = {3, OUTPUTS, INPUTS};
		size_t		row = (size_t) quantized_row_bytes(type, INPUTS);
		size_t		scale_count = (size_t) quantized_blocks(INPUTS);
		uint8_t    *codes;
		uint16_t   *scales;
		Parts		parts = {.count = 1};
		WeightPair	weight;
		Pair		pair;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		codes = take(OUTPUTS * row);
		scales = take(OUTPUTS * scale_count * sizeof(uint16_t));
		for (int r = 0; r < OUTPUTS; r++)
			if (!quantize_values(type, INPUTS, random_tensor(1, INPUTS).data,
								 codes + (size_t) r * row, scales + (size_t) r * scale_count))
				engine_bail("codes", NULL);
		parts.parts[0] = (WeightPart) {.data = codes, .type = type, .outputs = OUTPUTS,
									   .scales = scales};
		weight = (WeightPair) {create_weight(pair.cpu, &parts, INPUTS, type),
							   create_weight(pair.cuda, &parts, INPUTS, type)};
		check_product(&pair, &shape, &weight, EPILOGUE_STORE);
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
