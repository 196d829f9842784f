/*
 * cpu_backward.c - gradients of products, and the rows of training.
 *
 * The gradient for a product's input, dx = dy W, reads the very same packed weights as
 * the product: blocks of them are transposed into a buffer of the thread, panel by
 * panel of dx, and multiplied by the forward kernel. A transposed block serves all
 * rows of a task, so with a few hundred rows turning it costs a few per cent (measured
 * in docs/performance.md), and no second copy of the weights is kept.
 *
 * The gradient of a weight, sum += a^T b, runs over the rows in their order, one chain
 * for each element, so that neither threads nor the cutting into calls change a bit.
 */
#include "cpu_backend.h"

#include <math.h>
#include <string.h>

/* Cost of an element of a norm or an activation in multiply-adds, roughly; only for cpu_run. */
#define ROW_WORK 8.0

/* Bytes of weights that a tile asks for while it multiplies BACKWARD_STEPS steps. */
#define PART_BYTES (BACKWARD_STEPS / STEPS_A_LINE * CACHE_LINE)

/* ---- dx = dy W ---- */

typedef struct MatmulBackwardJob
{
	CpuBackend *cpu;
	Tensor		dx;
	Tensor		dy;
	const Weight *weight;
	float		factor;
	bool		accumulate;
	int			row_blocks;
	int			block_rows;		/* in each of them, at most BACKWARD_ROW_BLOCK */
	int			steps;			/* along the outputs, which are summed over */
	int			depth;			/* outputs of BACKWARD_STEPS steps */
} MatmulBackwardJob;

/* What the product is computed in: of quantised weights the values are rounded to bf16. */
static DataType
backward_type(const Weight *weight)
{
	return weight->type == TYPE_F32 ? TYPE_F32 : TYPE_BF16;
}

/* A panel of quantised weights. */
static const uint8_t *
quantized_panel(const MatmulBackwardJob *job, int panel)
{
	return (const uint8_t *) job->weight->data + (size_t) panel *
		(size_t) quantized_blocks(job->weight->inputs) *
		cpu_quantized_block_bytes(job->weight->type, job->cpu->kernels->panel);
}

/*
 * Turn the weights of outputs [first_output, + job->depth) and inputs [first_input, + inputs)
 * into turned [steps along the outputs, panel].
 */
static void
turn_block(const MatmulBackwardJob *job, int first_output, int first_input, int inputs,
		   uint32_t *turned)
{
	const Kernels *kernels = job->cpu->kernels;
	DataType	type = backward_type(job->weight);
	size_t		panel = (size_t) kernels->panel;
	size_t		depth = cpu_weight_steps(type, job->weight->inputs);

	for (int n = first_output; n < first_output + job->depth && n < job->weight->outputs;
		 n += kernels->panel)
	{
		const uint32_t *from = (const uint32_t *) job->weight->data + (size_t) n * depth +
							   cpu_weight_steps(type, first_input) * panel;
		uint32_t   *to = turned + cpu_weight_steps(type, n - first_output) * panel;

		if (data_type_is_quantized(job->weight->type))
			kernels->turn_quantized(job->weight->type, first_input,
									(int) cpu_weight_steps(type, inputs),
									quantized_panel(job, n / kernels->panel), to);
		else if (type == TYPE_BF16)
			kernels->transpose_pairs((int) cpu_weight_steps(type, inputs), from, to);
		else
			kernels->transpose(inputs, kernels->panel, (const float *) (const void *) from, panel,
							   (float *) (void *) to, panel);
	}
}

/*
 * The weights that are turned next: of each panel of outputs a piece, some KB long, too short for
 * the processor to see a stream. Tiles ask for parts of PART_BYTES.
 */
typedef struct Pieces
{
	const char *first;			/* NULL: none */
	int			count;
	size_t		distance;		/* from one to the next */
	int			parts;			/* in each, at least one */
} Pieces;

/* Of outputs from first_output on and the panel of inputs; none past the last. */
static Pieces
next_pieces(const MatmulBackwardJob *job, int first_output, int first_input)
{
	const Weight *weight = job->weight;
	int			panel = job->cpu->kernels->panel;
	int			outputs = weight->outputs - first_output;
	size_t		row = (size_t) panel * sizeof(uint32_t);
	size_t		depth = cpu_weight_steps(weight->type, weight->inputs);
	size_t		bytes = cpu_weight_steps(weight->type, panel) * row;

	/* quantised weights are small, and come in pieces that are long enough to be seen */
	if (first_input >= weight->inputs || data_type_is_quantized(weight->type))
		return (Pieces) {.first = NULL};
	outputs = outputs < job->depth ? outputs : job->depth;
	return (Pieces) {
		.first = (const char *) weight->data + (size_t) first_output * depth * sizeof(uint32_t) +
			cpu_weight_steps(weight->type, first_input) * row,
		.count = (outputs + panel - 1) / panel,
		.distance = depth * row,
		.parts = bytes > PART_BYTES ? (int) (bytes / PART_BYTES) : 1};
}

/* Where the i-th part of the pieces begins; past the last, what is in the cache already. */
static const char *
piece_part(const Pieces *pieces, int i, const void *otherwise)
{
	int			piece = i / (pieces->parts > 0 ? pieces->parts : 1);

	if (pieces->first == NULL || piece >= pieces->count)
		return otherwise;
	return pieces->first + (size_t) piece * pieces->distance +
		(size_t) (i % pieces->parts) * PART_BYTES;
}

/* sums [rows, panel] += `steps` steps from `step` on of dy's rows times turned weights. */
static void
multiply_tile(const MatmulBackwardJob *job, int first_row, int rows, int inputs, int step,
			  int steps, const uint32_t *turned, float *sums, const void *ahead)
{
	const Kernels *kernels = job->cpu->kernels;
	const char *rounded = job->cpu->rounded;
	size_t		stride = cpu_rounded_stride(job->steps);

	if (backward_type(job->weight) == TYPE_BF16)
		kernels->multiply_panel_bf16(rows, steps,
									 rounded + ((size_t) first_row * stride + (size_t) step) * 2 *
										 (size_t) kernels->rounded_size,
									 stride, turned, sums, step == 0, ahead);
	else
		kernels->multiply_panel(rows, inputs, steps, cpu_row(job->dy, first_row) + step,
								(size_t) job->dy.stride, (const float *) (const void *) turned,
								sums, step == 0, ahead);
}

/*
 * dx of a block of rows and one panel of inputs: the weights are turned BACKWARD_STEPS steps at a
 * time, and while they are multiplied the next ones are on their way.
 */
typedef struct BackwardBlock
{
	int			first_row;
	int			rows;
	int			first_input;
	int			inputs;
	int			next_input;		/* of the block that this thread will turn afterwards, probably */
	uint32_t   *turned;			/* [BACKWARD_STEPS, panel] */
	float	   *sums;			/* [rows, panel] */
} BackwardBlock;

/* Factor and sum, for rows whose sums are complete. */
static void
finish_rows(const MatmulBackwardJob *job, const BackwardBlock *block, int r, int rows)
{
	const Kernels *kernels = job->cpu->kernels;

	for (int end = r + rows; r < end; r++)
		kernels->finish_row(block->inputs, block->sums + r * kernels->panel, NULL,
							ACTIVATION_NONE, job->factor, job->accumulate,
							cpu_row(job->dx, block->first_row + r) + block->first_input);
}

/* All rows times the turned weights of `steps` steps. */
static void
multiply_turned(const MatmulBackwardJob *job, const BackwardBlock *block, int step, int steps)
{
	const Kernels *kernels = job->cpu->kernels;
	int			tile = kernels->tile_rows;
	bool		last = step + steps == job->steps;
	Pieces		next = next_pieces(job, last ? 0 : (step / BACKWARD_STEPS + 1) * job->depth,
								   last ? block->next_input : block->first_input);

	for (int r = 0; r < block->rows; r += tile)
	{
		int			rows = block->rows - r < tile ? block->rows - r : tile;

		if (last)
			cpu_expect_rows(job->dx, block->first_row + r, rows, block->first_input, block->inputs);
		multiply_tile(job, block->first_row + r, rows, block->inputs, step, steps, block->turned,
					  block->sums + (size_t) r * (size_t) kernels->panel,
					  piece_part(&next, r / tile, block->turned));
		if (last)
			finish_rows(job, block, r, rows);
	}
}

static void
matmul_backward_task(void *argument, int task, int thread)
{
	MatmulBackwardJob *job = argument;
	int			panel = job->cpu->kernels->panel;
	float	   *scratch = job->cpu->backward + (size_t) thread * BACKWARD_SCRATCH;
	BackwardBlock block = {.first_row = task % job->row_blocks * job->block_rows,
						   .rows = job->block_rows,
						   .first_input = task / job->row_blocks * panel,
						   .inputs = panel,
						   .turned = (uint32_t *) (void *) scratch,
						   .sums = scratch + BACKWARD_STEPS * MATMUL_MAX_PANEL};

	if (job->dy.rows - block.first_row < block.rows)
		block.rows = job->dy.rows - block.first_row;
	if (job->weight->inputs - block.first_input < block.inputs)
		block.inputs = job->weight->inputs - block.first_input;
	block.next_input = block.first_input + panel * thread_pool_threads(job->cpu->pool);
	for (int step = 0; step < job->steps; step += BACKWARD_STEPS)
	{
		int			left = job->steps - step;

		turn_block(job, step / BACKWARD_STEPS * job->depth, block.first_input, block.inputs,
				   block.turned);
		multiply_turned(job, &block, step, left < BACKWARD_STEPS ? left : BACKWARD_STEPS);
	}
}

/* Round one row of dy into the backend's buffer. */
static void
round_task(void *argument, int row, int thread)
{
	MatmulBackwardJob *job = argument;
	const Kernels *kernels = job->cpu->kernels;

	kernels->round_row(job->weight->outputs, cpu_row(job->dy, row),
					   (char *) job->cpu->rounded +
						   (size_t) row * cpu_rounded_stride(job->steps) * 2 *
							   (size_t) kernels->rounded_size);
}

/* Run tasks for as many rows as dy has; in bf16 at most MATMUL_ROUNDED_ROWS. */
static void
multiply_backward(MatmulBackwardJob *job)
{
	const Weight *weight = job->weight;
	int			tile = job->cpu->kernels->tile_rows;
	int			panels = (weight->inputs + job->cpu->kernels->panel - 1) / job->cpu->kernels->panel;
	int			tiles = (job->dy.rows + tile - 1) / tile;

	/* blocks of the same size, of whole tiles: a small last one would pay for turning alone */
	job->row_blocks = (job->dy.rows + BACKWARD_ROW_BLOCK - 1) / BACKWARD_ROW_BLOCK;
	job->block_rows = (tiles + job->row_blocks - 1) / job->row_blocks * tile;
	if (backward_type(weight) == TYPE_BF16)
		cpu_run(job->cpu, round_task, job, job->dy.rows, (double) job->dy.rows * weight->outputs);
	cpu_run(job->cpu, matmul_backward_task, job, panels * job->row_blocks,
			(double) job->dy.rows * weight->outputs * weight->inputs);
}

void
cpu_matmul_backward(Backend *backend, Tensor dx, Tensor dy, const Weight *weight, float factor,
					bool accumulate)
{
	int			passes = backward_type(weight) == TYPE_BF16
							 ? (dy.rows + MATMUL_ROUNDED_ROWS - 1) / MATMUL_ROUNDED_ROWS
							 : 1;
	int			pass = passes > 0 ? (dy.rows + passes - 1) / passes : 0;
	DataType	type = backward_type(weight);
	MatmulBackwardJob job = {.cpu = (CpuBackend *) backend,
							 .weight = weight,
							 .factor = factor,
							 .accumulate = accumulate,
							 .steps = (int) cpu_weight_steps(type, weight->outputs),
							 .depth = BACKWARD_STEPS * (type == TYPE_BF16 ? 2 : 1)};

	for (int row = 0; row < dy.rows; row += pass)
	{
		int			rows = dy.rows - row < pass ? dy.rows - row : pass;

		job.dy = tensor_row_range(dy, row, rows);
		job.dx = tensor_row_range(dx, row, rows);
		multiply_backward(&job);
	}
}

/* ---- sum += a^T b ---- */

typedef struct AddProductJob
{
	const Kernels *kernels;
	Tensor		sum;
	Tensor		a;
	Tensor		b;
	int			row_blocks;		/* of sum */
	int			rows;			/* in each of them */
} AddProductJob;

static void
add_product_task(void *argument, int task, int thread)
{
	AddProductJob *job = argument;
	int			panel = job->kernels->panel;
	int			column = task / job->row_blocks * panel;
	int			first = task % job->row_blocks * job->rows;
	int			end = first + job->rows < job->sum.rows ? first + job->rows : job->sum.rows;
	StridedProduct product = {
		.columns = job->sum.columns - column < panel ? job->sum.columns - column : panel,
		.depth = job->a.rows,
		.a_row = 1,
		.a_depth = (size_t) job->a.stride,
		.b = cpu_row(job->b, 0) + column,
		.b_depth = (size_t) job->b.stride,
		.sums_row = (size_t) job->sum.stride};

	for (int row = first; row < end; row += product.rows)
	{
		product.rows = end - row < job->kernels->tile_rows ? end - row : job->kernels->tile_rows;
		product.a = cpu_row(job->a, 0) + row;
		product.sums = cpu_row(job->sum, row) + column;
		job->kernels->multiply_strided(&product);
	}
}

void
cpu_add_product(Backend *backend, Tensor sum, Tensor a, Tensor b)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	int			panels = (sum.columns + cpu->kernels->panel - 1) / cpu->kernels->panel;
	AddProductJob job = {cpu->kernels, sum, a, b, 1, 4 * cpu->kernels->tile_rows};

	job.row_blocks = (sum.rows + job.rows - 1) / job.rows;
	cpu_run(cpu, add_product_task, &job, panels * job.row_blocks,
			(double) a.rows * sum.rows * sum.columns);
}

/* ---- new values of a weight ---- */

typedef struct UpdateJob
{
	const Kernels *kernels;
	Weight	   *weight;
	Tensor		values;
	bool		transposed;
} UpdateJob;

static void
update_panel(void *argument, int task, int thread)
{
	UpdateJob  *job = argument;
	int			panel = job->kernels->panel;
	int			inputs = job->weight->inputs;
	int			first = task * panel;
	int			outputs = job->weight->outputs - first < panel ? job->weight->outputs - first
																: panel;
	float	   *packed = (float *) job->weight->data + (size_t) first * (size_t) inputs;

	if (!job->transposed)
	{
		job->kernels->transpose(outputs, inputs, cpu_row(job->values, first),
								(size_t) job->values.stride, packed, (size_t) panel);
		return;
	}
	for (int k = 0; k < inputs; k++)
		memcpy(packed + (size_t) k * (size_t) panel, cpu_row(job->values, k) + first,
			   (size_t) outputs * sizeof(float));
}

void
cpu_weight_update(Backend *backend, Weight *weight, Tensor values, bool transposed)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	UpdateJob	job = {cpu->kernels, weight, values, transposed};

	cpu_run(cpu, update_panel, &job, (weight->outputs + cpu->kernels->panel - 1) /
			cpu->kernels->panel, (double) weight->outputs * weight->inputs);
}

/* ---- rows ---- */

typedef struct BackwardRowJob
{
	const Kernels *kernels;
	Tensor		dx;
	Tensor		dy;
	Tensor		x;
	Tensor		weight;
	const int32_t *index;
	float		epsilon;
	float		factor;
	int			heads;
	float	   *losses;
	const float *weights;
} BackwardRowJob;

static void
run_rows(Backend *backend, TaskFunction function, BackwardRowJob *job, int rows, double work)
{
	CpuBackend *cpu = (CpuBackend *) backend;

	job->kernels = cpu->kernels;
	cpu_run(cpu, function, job, rows, work * rows);
}

static void
copy_row(void *argument, int row, int thread)
{
	BackwardRowJob *job = argument;

	memcpy(cpu_row(job->dx, row), cpu_row(job->x, row), (size_t) job->x.columns * sizeof(float));
}

void
cpu_copy_tensor(Backend *backend, Tensor y, Tensor x)
{
	BackwardRowJob job = {.dx = y, .x = x};

	run_rows(backend, copy_row, &job, x.rows, x.columns);
}

static void
scale_row(void *argument, int row, int thread)
{
	BackwardRowJob *job = argument;
	float	   *x = cpu_row(job->dx, row);

	if (job->factor == 0.0f)
		memset(x, 0, (size_t) job->dx.columns * sizeof(float));
	else
		for (int i = 0; i < job->dx.columns; i++)
			x[i] *= job->factor;
}

void
cpu_scale(Backend *backend, Tensor x, float factor)
{
	BackwardRowJob job = {.dx = x, .factor = factor};

	run_rows(backend, scale_row, &job, x.rows, x.columns);
}

static void
scatter_row(void *argument, int row, int thread)
{
	BackwardRowJob *job = argument;

	memcpy(cpu_row(job->dx, job->index[row]), cpu_row(job->x, row),
		   (size_t) job->x.columns * sizeof(float));
}

void
cpu_scatter(Backend *backend, Tensor y, Tensor x, Tensor index)
{
	BackwardRowJob job = {.dx = y, .x = x, .index = index.data};

	run_rows(backend, scatter_row, &job, x.rows, x.columns);
}

static void
layer_norm_backward_row(void *argument, int row, int thread)
{
	BackwardRowJob *job = argument;

	job->kernels->layer_norm_backward(job->x.columns, cpu_row(job->x, row), job->weight.data,
									  job->epsilon, cpu_row(job->dy, row), cpu_row(job->dx, row));
}

void
cpu_layer_norm_backward(Backend *backend, Tensor dx, Tensor dy, Tensor x, Tensor weight,
						float epsilon)
{
	BackwardRowJob job = {.dx = dx, .dy = dy, .x = x, .weight = weight, .epsilon = epsilon};

	run_rows(backend, layer_norm_backward_row, &job, x.rows, ROW_WORK * x.columns);
}

static void
rms_norm_backward_row(void *argument, int row, int thread)
{
	BackwardRowJob *job = argument;

	job->kernels->rms_norm_backward(job->x.columns, cpu_row(job->x, row), job->weight.data,
									job->epsilon, cpu_row(job->dy, row), cpu_row(job->dx, row));
}

void
cpu_rms_norm_backward(Backend *backend, Tensor dx, Tensor dy, Tensor x, Tensor weight,
					  float epsilon)
{
	BackwardRowJob job = {.dx = dx, .dy = dy, .x = x, .weight = weight, .epsilon = epsilon};

	run_rows(backend, rms_norm_backward_row, &job, x.rows, ROW_WORK * x.columns);
}

static void
gelu_backward_row(void *argument, int row, int thread)
{
	BackwardRowJob *job = argument;

	job->kernels->gelu_backward(job->x.columns, cpu_row(job->x, row), cpu_row(job->dx, row));
}

void
cpu_activate_backward(Backend *backend, Tensor dx, Tensor x, Activation activation)
{
	BackwardRowJob job = {.dx = dx, .x = x};

	if (activation == ACTIVATION_GELU)
		run_rows(backend, gelu_backward_row, &job, x.rows, ROW_WORK * x.columns);
}

static void
swiglu_backward_row(void *argument, int row, int thread)
{
	BackwardRowJob *job = argument;
	int			width = job->dy.columns;
	const float *gate = cpu_row(job->x, row);
	float	   *d_gate = cpu_row(job->dx, row);

	job->kernels->swiglu_backward(width, gate, gate + width, cpu_row(job->dy, row), d_gate,
								  d_gate + width);
}

void
cpu_swiglu_backward(Backend *backend, Tensor d_gate_up, Tensor dy, Tensor gate_up)
{
	BackwardRowJob job = {.dx = d_gate_up, .dy = dy, .x = gate_up};

	run_rows(backend, swiglu_backward_row, &job, dy.rows, ROW_WORK * dy.columns);
}

/* The transpose of a rotation is the rotation by the opposite angle. */
static void
rotary_backward_row(void *argument, int row, int thread)
{
	BackwardRowJob *job = argument;
	int			half = job->x.columns / 2;
	const float *cosine = cpu_row(job->x, job->index[row]);
	const float *sine = cosine + half;

	for (int h = 0; h < job->heads; h++)
		job->kernels->rotate(half, -1.0f, cosine, sine, cpu_row(job->dx, row) + h * 2 * half);
}

void
cpu_rotary_backward(Backend *backend, Tensor dx, int heads, Tensor positions, Tensor table)
{
	BackwardRowJob job = {.dx = dx, .x = table, .index = positions.data, .heads = heads};

	run_rows(backend, rotary_backward_row, &job, dx.rows, 2.0 * dx.columns);
}

static void
cross_entropy_row(void *argument, int row, int thread)
{
	BackwardRowJob *job = argument;

	job->losses[row] = job->kernels->cross_entropy(job->x.columns, job->index[row],
												   job->weights[row], cpu_row(job->x, row));
}

void
cpu_cross_entropy(Backend *backend, Tensor logits, Tensor losses, Tensor targets, Tensor weights)
{
	BackwardRowJob job = {.x = logits,
						  .losses = losses.data,
						  .index = targets.data,
						  .weights = weights.data};

	run_rows(backend, cross_entropy_row, &job, logits.rows, ROW_WORK * logits.columns);
}

static void
square_sum_row(void *argument, int row, int thread)
{
	BackwardRowJob *job = argument;

	job->losses[row] = job->kernels->square_sum(job->x.columns, cpu_row(job->x, row));
}

void
cpu_square_sums(Backend *backend, Tensor sums, Tensor x)
{
	BackwardRowJob job = {.x = x, .losses = sums.data};

	run_rows(backend, square_sum_row, &job, x.rows, x.columns);
}

/* ---- AdamW ---- */

typedef struct AdamwJob
{
	const Kernels *kernels;
	Tensor		values;
	Tensor		gradient;
	Tensor		mean;
	Tensor		square;
	const AdamwRule *rule;
} AdamwJob;

static void
adamw_row(void *argument, int row, int thread)
{
	AdamwJob   *job = argument;

	job->kernels->adamw(job->values.columns, job->rule, cpu_row(job->gradient, row),
						cpu_row(job->values, row), cpu_row(job->mean, row),
						cpu_row(job->square, row));
}

void
cpu_adamw(Backend *backend, Tensor values, Tensor gradient, Tensor mean, Tensor square,
		  const AdamwRule *rule)
{
	AdamwJob	job = {((CpuBackend *) backend)->kernels, values, gradient, mean, square, rule};

	cpu_run((CpuBackend *) backend, adamw_row, &job, values.rows,
			ROW_WORK * values.rows * values.columns);
}
