/*
 * test_cuda_rows.c - the CUDA library's operations on rows, forward and backward, loss and AdamW,
 * against the portable kernels.
 */
#include "cuda_pair.h"

/* Of sums in another order, and of another exp. */
#define TOLERANCE 1e-5

static const int sizes[][2] = {{1, 1}, {3, 7}, {2, 33}, {5, 130}, {4, 257}};

#define FOR_EACH_SIZE(rows, columns) \
	for (int size_ = 0, rows, columns; size_ < 5 && \
		 (rows = sizes[size_][0], columns = sizes[size_][1], true); size_++)

/* Host and device tensors of one operation; every operation of the table writes the first one. */
typedef struct Operands
{
	Backend    *backend;
	Tensor		t[5];
	Tensor		weight;			/* [1, columns] */
	Tensor		bias;
	Tensor		index;			/* i32 [1, rows] */
	Tensor		table;			/* [positions, head size] */
	AdamwRule	rule;
} Operands;

typedef void (*Operation) (const BackendOps *ops, Operands *o);

static void
run_layer_norm(const BackendOps *ops, Operands *o)
{
	ops->layer_norm(o->backend, o->t[0], o->t[1], o->weight, o->bias, 1e-5f);
}

static void
run_rms_norm(const BackendOps *ops, Operands *o)
{
	ops->rms_norm(o->backend, o->t[0], o->t[1], o->weight, 1e-6f);
}

static void
run_norms_in_place(const BackendOps *ops, Operands *o)
{
	ops->layer_norm(o->backend, o->t[0], o->t[0], o->weight, o->bias, 1e-5f);
	ops->rms_norm(o->backend, o->t[0], o->t[0], o->weight, 1e-6f);
}

static void
run_quick_gelu(const BackendOps *ops, Operands *o)
{
	ops->activate(o->backend, o->t[0], ACTIVATION_QUICK_GELU);
}

static void
run_gelu(const BackendOps *ops, Operands *o)
{
	ops->activate(o->backend, o->t[0], ACTIVATION_GELU);
}

static void
run_copy(const BackendOps *ops, Operands *o)
{
	ops->copy(o->backend, o->t[0], o->t[1]);
	ops->scale(o->backend, o->t[0], 0.3f);
}

static void
run_clear(const BackendOps *ops, Operands *o)
{
	ops->scale(o->backend, o->t[0], 0.0f);
}

static void
run_gather(const BackendOps *ops, Operands *o)
{
	ops->gather(o->backend, o->t[0], o->t[1], o->index);
}

static void
run_scatter(const BackendOps *ops, Operands *o)
{
	ops->scatter(o->backend, o->t[0], o->t[1], o->index);
}

static void
run_layer_norm_backward(const BackendOps *ops, Operands *o)
{
	ops->layer_norm_backward(o->backend, o->t[0], o->t[1], o->t[2], o->weight, 1e-5f);
}

static void
run_rms_norm_backward(const BackendOps *ops, Operands *o)
{
	ops->rms_norm_backward(o->backend, o->t[0], o->t[1], o->t[2], o->weight, 1e-6f);
}

static void
run_gelu_backward(const BackendOps *ops, Operands *o)
{
	ops->activate_backward(o->backend, o->t[0], o->t[1], ACTIVATION_GELU);
}

static void
run_adamw(const BackendOps *ops, Operands *o)
{
	ops->adamw(o->backend, o->t[0], o->t[1], o->t[2], o->t[3], &o->rule);
}

static const struct
{
	const char *name;
	Operation	run;
}			operations[] = {
	{"layer_norm", run_layer_norm}, {"rms_norm", run_rms_norm}, {"in place", run_norms_in_place},
	{"quick_gelu", run_quick_gelu}, {"gelu", run_gelu}, {"copy, scale", run_copy},
	{"clear", run_clear}, {"gather", run_gather}, {"scatter", run_scatter},
	{"layer_norm_backward", run_layer_norm_backward}, {"rms_norm_backward", run_rms_norm_backward},
	{"gelu_backward", run_gelu_backward}, {"adamw", run_adamw},
};

/* Rows in another order, each once. */
static Tensor
permutation(int count)
{
	Tensor		index = integers(1, count);

	for (int i = 0; i < count; i++)
		((int32_t *) index.data)[i] = (i + 1) % count;
	return index;
}

static Operands
host_operands(Pair *pair, int rows, int columns)
{
	Operands	o = {.backend = pair->cpu, .index = permutation(rows),
					 .rule = {0.99f, 0.9f, 0.999f, 1e-8f, 1e-3f, 0.5f}};

	for (int i = 0; i < 5; i++)
		o.t[i] = wide_tensor(rows, columns);
	for (int r = 0; r < rows; r++)	/* AdamW's mean square */
		for (int c = 0; c < columns; c++)
			cpu_row(o.t[3], r)[c] = fabsf(cpu_row(o.t[3], r)[c]);
	o.weight = random_tensor(1, columns);
	o.bias = random_tensor(1, columns);
	return o;
}

static Operands
device_operands(Pair *pair, const Operands *host)
{
	Operands	o = *host;

	o.backend = pair->cuda;
	for (int i = 0; i < 5; i++)
		o.t[i] = to_device(pair, host->t[i]);
	o.weight = to_device(pair, host->weight);
	o.bias = to_device(pair, host->bias);
	o.index = to_device(pair, host->index);
	return o;
}

UNIT_TEST(operations_on_rows_match)
{
	FOR_EACH_SIZE(rows, columns)
		for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++)
		{
			Pair		pair;
			Operands	host;
			Operands	device;

			if (!pair_open(&pair))
				UNIT_SKIP(CUDA_SKIPPED);
			host = host_operands(&pair, rows, columns);
			device = device_operands(&pair, &host);
			operations[i].run(pair.cpu->ops, &host);
			operations[i].run(pair.cuda->ops, &device);
			for (int t = 0; t < 4; t++)
				same_result(&pair, operations[i].name, device.t[t], host.t[t], TOLERANCE);
			pair_close(&pair);
		}
}

UNIT_TEST(swiglu_and_its_gradient_match)
{
	FOR_EACH_SIZE(rows, columns)
	{
		Tensor		y;
		Tensor		gate_up;
		Tensor		gradient;
		Tensor		device[3];
		Pair		pair;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		y = random_tensor(rows, columns);
		gate_up = wide_tensor(rows, 2 * columns);
		gradient = random_tensor(rows, 2 * columns);
		device[0] = to_device(&pair, y);
		device[1] = to_device(&pair, gate_up);
		device[2] = to_device(&pair, gradient);
		pair.cpu->ops->swiglu_backward(pair.cpu, gradient, y, gate_up);
		pair.cuda->ops->swiglu_backward(pair.cuda, device[2], device[0], device[1]);
		pair.cpu->ops->swiglu(pair.cpu, y, gate_up);
		pair.cuda->ops->swiglu(pair.cuda, device[0], device[1]);
		same_result(&pair, "swiglu", device[0], y, TOLERANCE);
		same_result(&pair, "swiglu_backward", device[2], gradient, TOLERANCE);
		pair_close(&pair);
	}
}

UNIT_TEST(rotary_turns_and_turns_back)
{
	enum {HEADS = 3, SIZE = 10, ROWS = 5, POSITIONS = 9};
	Tensor		x;
	Tensor		before;
	Tensor		positions;
	Tensor		table;
	Tensor		device[3];
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	x = random_tensor(ROWS, HEADS * SIZE);
	before = copy_tensor(x);
	positions = integers(1, ROWS);
	table = tensor_make(take(POSITIONS * SIZE * sizeof(float)), TYPE_F32, POSITIONS, SIZE);
	for (int i = 0; i < POSITIONS * SIZE; i++)
		((float *) table.data)[i] = i % SIZE < SIZE / 2 ? cosf((float) i)
			: sinf((float) (i - SIZE / 2));
	for (int i = 0; i < ROWS; i++)
		((int32_t *) positions.data)[i] = (i * 4) % POSITIONS;
	device[0] = to_device(&pair, x);
	device[1] = to_device(&pair, positions);
	device[2] = to_device(&pair, table);
	pair.cpu->ops->rotary(pair.cpu, x, HEADS, positions, table);
	pair.cuda->ops->rotary(pair.cuda, device[0], HEADS, device[1], device[2]);
	same_result(&pair, "rotary", device[0], x, TOLERANCE);
	pair.cuda->ops->rotary_backward(pair.cuda, device[0], HEADS, device[1], device[2]);
	same_result(&pair, "turned back", device[0], before, TOLERANCE);
	pair_close(&pair);
}

UNIT_TEST(embeddings_of_every_type_match)
{
	static const DataType types[] = {TYPE_F32, TYPE_BF16, TYPE_F16};

	for (int i = 0; i < 3; i++)
	{
		Tensor		table = tensor_make(NULL, types[i], 6, 35);
		Tensor		y;
		Tensor		ids;
		Tensor		device[2];
		Pair		pair;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		table.data = take(6 * 35 * sizeof(float));
		for (int j = 0; j < 6 * 35; j++)
			if (types[i] == TYPE_F32)
				((float *) table.data)[j] = (float) random_number();
			else				/* no infinities in either: bits of the exponent are mixed */
				((uint16_t *) table.data)[j] = (uint16_t) (0x2000 + j * 61);
		ids = permutation(6);
		y = random_tensor(6, 35);
		device[0] = to_device(&pair, table);
		device[1] = to_device(&pair, y);
		pair.cpu->ops->embed(pair.cpu, y, table, ids);
		pair.cuda->ops->embed(pair.cuda, device[1], device[0], to_device(&pair, ids));
		same_result(&pair, "embed", device[1], y, 0);
		pair_close(&pair);
	}
}

UNIT_TEST(pictures_are_cut_alike)
{
	enum {SIDE = 12, PATCH = 4, PATCHES = 9, IMAGES = 2, WIDTH = 21};
	static const float mean[3] = {0.5f, 0.4f, 0.3f};
	static const float deviation[3] = {0.2f, 0.3f, 0.25f};

	for (int bytes = 0; bytes < 2; bytes++)
	{
		Tensor		pixels = tensor_make(NULL, bytes ? TYPE_U8 : TYPE_F32, IMAGES, 3 * SIDE * SIDE);
		Tensor		t[5];
		Tensor		device[5];
		Pair		pair;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		pixels.data = take(IMAGES * 3 * SIDE * SIDE * sizeof(float));
		for (int i = 0; i < IMAGES * 3 * SIDE * SIDE; i++)
			if (bytes)
				((uint8_t *) pixels.data)[i] = (uint8_t) (i * 7);
			else
				((float *) pixels.data)[i] = (float) random_number();
		t[0] = random_tensor(IMAGES * PATCHES, 3 * PATCH * PATCH);
		t[1] = random_tensor(IMAGES * (PATCHES + 1), WIDTH);
		t[2] = random_tensor(IMAGES * PATCHES, WIDTH);
		t[3] = random_tensor(1, WIDTH);
		t[4] = random_tensor(PATCHES + 1, WIDTH);
		for (int i = 0; i < 5; i++)
			device[i] = to_device(&pair, t[i]);
		pair.cpu->ops->patches(pair.cpu, t[0], pixels, SIDE, PATCH, mean, deviation);
		pair.cuda->ops->patches(pair.cuda, device[0], to_device(&pair, pixels), SIDE, PATCH, mean,
								deviation);
		same_result(&pair, "patches", device[0], t[0], TOLERANCE);
		pair.cpu->ops->vision_tokens(pair.cpu, t[1], t[2], t[3], t[4]);
		pair.cuda->ops->vision_tokens(pair.cuda, device[1], device[2], device[3], device[4]);
		same_result(&pair, "vision_tokens", device[1], t[1], 0);
		pair_close(&pair);
	}
}

UNIT_TEST(loss_and_norm_match)
{
	FOR_EACH_SIZE(rows, columns)
	{
		Tensor		logits;
		Tensor		losses;
		Tensor		sums;
		Tensor		targets;
		Tensor		weights;
		Tensor		device[3];
		Pair		pair;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		logits = wide_tensor(rows, columns);
		losses = random_tensor(1, rows);
		sums = random_tensor(1, rows);
		targets = integers(1, rows);
		weights = random_tensor(1, rows);
		for (int i = 0; i < rows; i++)
			((int32_t *) targets.data)[i] = i * 5 % columns;
		device[0] = to_device(&pair, logits);
		device[1] = to_device(&pair, losses);
		device[2] = to_device(&pair, sums);
		pair.cpu->ops->square_sums(pair.cpu, sums, logits);
		pair.cuda->ops->square_sums(pair.cuda, device[2], device[0]);
		same_result(&pair, "square_sums", device[2], sums, TOLERANCE);
		pair.cpu->ops->cross_entropy(pair.cpu, logits, losses, targets, weights);
		pair.cuda->ops->cross_entropy(pair.cuda, device[0], device[1], to_device(&pair, targets),
									  to_device(&pair, weights));
		same_result(&pair, "losses", device[1], losses, TOLERANCE);
		same_result(&pair, "gradient of the loss", device[0], logits, TOLERANCE);
		pair_close(&pair);
	}
}

UNIT_TEST(uploads_larger_than_the_staging_buffer_arrive_whole)
{
	size_t		bytes = ((size_t) 20 << 20) + 12345;
	uint8_t    *from;
	uint8_t    *to;
	void	   *device;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	from = malloc(bytes);
	to = malloc(bytes);
	for (size_t i = 0; i < bytes; i++)
		from[i] = (uint8_t) (i * 31 >> 7);
	device = device_memory(&pair, bytes);
	pair.cuda->ops->upload(pair.cuda, device, from, bytes);
	pair.cuda->ops->download(pair.cuda, to, device, bytes);
	UNIT_CHECK(memcmp(from, to, bytes) == 0);
	free(from);
	free(to);
	pair_close(&pair);
}

UNIT_TEST(room_shrinks_with_what_is_taken)
{
	size_t		before;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	before = pair.cuda->ops->memory_room(pair.cuda);
	device_memory(&pair, (size_t) 256 << 20);
	UNIT_CHECK(before > (size_t) 256 << 20);
	UNIT_CHECK(pair.cuda->ops->memory_room(pair.cuda) < before - ((size_t) 128 << 20));
	UNIT_EQUAL_INT(pair.cpu->ops->memory_room(pair.cpu), 0);
	pair_close(&pair);
}

UNIT_TEST(memory_that_is_not_there_is_refused_with_numbers)
{
	void	   *address;
	Status		status;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	UNIT_CHECK(!pair.cuda->ops->allocate(pair.cuda, (size_t) 1 << 46, &address, &status));
	UNIT_EQUAL_INT(status.code, STATUS_OUT_OF_MEMORY);
	UNIT_CONTAINS(status.message, "67108865 MB");
	UNIT_CONTAINS(status.detail, " MB are free.");
	UNIT_CHECK(device_is_well(&pair));
	pair_close(&pair);
}

/* x = 2 x unless the backend runs its record of that. */
static bool
run_step(Pair *pair, Tensor x, int key)
{
	if (pair->cuda->ops->step_begin(pair->cuda, &key, sizeof(key)))
		return true;
	pair->cuda->ops->scale(pair->cuda, x, 2.0f);
	pair->cuda->ops->step_end(pair->cuda);
	return false;
}

UNIT_TEST(a_step_that_comes_again_runs_from_its_record)
{
	float		one = 1.0f;
	float		value;
	Tensor		x = tensor_make(NULL, TYPE_F32, 1, 1);
	void	   *other;
	Status		status;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	x.data = device_memory(&pair, sizeof(float));
	for (int i = 0; i < 4; i++)
	{
		/* every time from what was uploaded before it */
		one = (float) (i + 1);
		pair.cuda->ops->upload(pair.cuda, x.data, &one, sizeof(one));
		UNIT_EQUAL_INT(run_step(&pair, x, 5), i >= 2);
		pair.cuda->ops->download(pair.cuda, &value, x.data, sizeof(value));
		UNIT_NEAR(value, 2.0f * one, 0);
	}
	UNIT_CHECK(!run_step(&pair, x, 6));
	/* memory that is given back may be what a record uses */
	if (!pair.cuda->ops->allocate(pair.cuda, 64, &other, &status))
		engine_bail("memory", &status);
	UNIT_CHECK(run_step(&pair, x, 5));
	pair.cuda->ops->release(pair.cuda, other);
	UNIT_CHECK(!run_step(&pair, x, 5));
	UNIT_CHECK(device_is_well(&pair));
	pair_close(&pair);
}

/* An operation that the device refuses is missing in a record, which must not run for it. */
UNIT_TEST(a_step_that_fails_is_told_every_time)
{
	int			key = 7;
	AttentionPlan plan = {.spans = tensor_make(NULL, TYPE_I32, 1, ATTENTION_SPAN_FIELDS),
						  .heads = 70000, .scale = 1.0f};	/* a grid's second dimension ends before */
	Tensor		x = tensor_make(NULL, TYPE_F32, 1, 70000);
	AttentionGradient refused = {.plan = &plan, .kv_heads = 70000, .head_size = 1, .q = x, .k = x,
								 .v = x, .dy = x, .dq = x};
	Status		status;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	for (int i = 0; i < 4; i++)
	{
		if (!pair.cuda->ops->step_begin(pair.cuda, &key, sizeof(key)))
		{
			pair.cuda->ops->attention_backward(pair.cuda, &refused);
			pair.cuda->ops->step_end(pair.cuda);
		}
		UNIT_CHECK(!pair.cuda->ops->synchronize(pair.cuda, &status));
		UNIT_EQUAL_INT(status.code, STATUS_INTERNAL);
		UNIT_CHECK(pair.cuda->ops->alive(pair.cuda));
	}
	pair_close(&pair);
}

/* The last test: the device that it leaves behind is of no use. */
UNIT_TEST(a_device_that_fails_is_lost_for_good)
{
	Tensor		x;
	Status		status;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	if (strstr(getenv("MMGPT_CUDA_LIBRARY"), "cuda_on_host") == NULL)
	{
		pair_close(&pair);
		UNIT_SKIP("a real device is not broken on purpose");
	}
	x = to_device(&pair, random_tensor(2, 3));
	pair.cuda->ops->scale(pair.cuda, x, 2.0f);
	UNIT_CHECK(device_is_well(&pair));
	setenv("CUDA_ON_HOST_FAILS_AT", "1", 1);
	pair.cuda->ops->scale(pair.cuda, x, 2.0f);
	UNIT_CHECK(pair.cuda->ops->alive(pair.cuda));
	UNIT_CHECK(!pair.cuda->ops->synchronize(pair.cuda, &status));
	UNIT_EQUAL_INT(status.code, STATUS_INTERNAL);
	UNIT_CHECK(!pair.cuda->ops->alive(pair.cuda));
	UNIT_CHECK(!pair.cuda->ops->synchronize(pair.cuda, &status));
	pair_close(&pair);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
