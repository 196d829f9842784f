/*
 * cpu_matmul.c - products with packed weights, see cpu_weight.c.
 *
 * A task is one panel for one block of rows. The block's sums stay in a small
 * buffer of the thread while the depth goes by in blocks that fit the cache; then
 * bias, activation, scale and residual are applied on the way out. The sum of an
 * output is one chain over its depth, whatever the blocks.
 *
 * For bf16 and quantised weights, the rows of x are rounded first, MATMUL_ROUNDED_ROWS at a time.
 */
#include "cpu_backend.h"

#include <stdlib.h>
#include <string.h>

/*
 * Steps of a block: 512 * 64 outputs * 4 bytes = 128 KB of a panel stay in the second-level cache.
 */
#define STEP_BLOCK 512

/*
 * Steps of a block of quantised weights, each QUANTIZED_BLOCK inputs: 8 * 34 * 64 = 17 KB stay in
 * the first-level cache, as so small a tile of rows goes over them often.
 */
#define QUANTIZED_STEP_BLOCK 8

/* With more rows than these the multiplications take longer than memory. */
#define PREFETCH_ROWS 48

/*
 * Up to so many rows a product of f32 or bf16 reads its weights as fast as memory gives them, and
 * the processor sees the stream; to ask for other lines would disturb it.
 */
#define STREAM_ROWS 24

/*
 * Where one tile of rows has all of them, weights of 4 bits are asked for evenly, so far ahead;
 * measured to be 3 to 6 % faster than a whole block at a time, which suits 8 bits.
 */
#define QUANTIZED_STREAM ((size_t) 8 * 1024)

/* One pass over rows of x. */
typedef struct MatmulJob
{
	CpuBackend *cpu;
	Tensor		y;
	Tensor		x;
	const Weight *weight;
	Epilogue	epilogue;
	int			row_blocks;
	int			block_rows;		/* in each of them, at most MATMUL_ROW_BLOCK */
	int			steps;			/* along the depth: words, or blocks of a quantised weight */
	size_t		step_bytes;		/* of a panel */
	int			step_block;		/* steps that stay in a cache while the rows go by */
	int			tile_rows;		/* that the kernels take at most */
} MatmulJob;

/* One panel of outputs for a block of rows. */
typedef struct MatmulBlock
{
	int			first_row;
	int			rows;
	int			tile_rows;		/* of each tile but the last */
	int			first_output;
	int			outputs;
	const uint8_t *weights;		/* [steps, panel] */
	float	   *sums;			/* [rows, panel] */
	const uint8_t *next_weights;	/* that this thread multiplies afterwards, probably */
} MatmulBlock;

/*
 * The same with quantised weights. The block of steps that comes next, here or in the panel behind,
 * is asked for by all tiles in turn, each its part: the processor itself doesn't look that far.
 */
static void
multiply_quantized(const MatmulJob *job, const MatmulBlock *block, int r, int rows, int step,
				   int steps)
{
	const Kernels *kernels = job->cpu->kernels;
	size_t		block_bytes = (size_t) steps * job->step_bytes;
	/* even, as two passes over a panel share them */
	int			lines = (int) (job->step_bytes * (size_t) rows /
							   ((size_t) block->rows * CACHE_LINE * 2) + 1) * 2;
	QuantizedProduct product = {
		.rows = rows,
		.blocks = steps,
		.first = step == 0,
		.x = (const QuantizedBlock *) job->cpu->rounded +
			(size_t) (block->first_row + r) * (size_t) job->steps + step,
		.x_stride = (size_t) job->steps,
		.weights = block->weights + (size_t) step * job->step_bytes,
		.sums = block->sums + (size_t) r * (size_t) kernels->panel};

	product.ahead = product.weights + block_bytes + block_bytes * (size_t) r / (size_t) block->rows;
	if (job->weight->type == TYPE_Q4 && block->rows <= rows)
		product.stream_ahead = QUANTIZED_STREAM;
	else
		product.ahead_lines = block->rows <= PREFETCH_ROWS ? lines : 0;
	if (job->weight->type == TYPE_Q8)
		kernels->multiply_panel_q8(&product);
	else
		kernels->multiply_panel_q4(&product);
}

/*
 * What the tile of rows from r on asks for: its part of the block of steps that comes next, here or
 * in the panel behind; past its end, weights that it reads anyway. NULL: nothing.
 */
static const uint8_t *
lines_ahead(const MatmulJob *job, const MatmulBlock *block, int r, int step, int steps)
{
	size_t		lines = (size_t) (r / block->tile_rows) * (size_t) (steps / STEPS_A_LINE);
	size_t		asked = lines * CACHE_LINE;
	bool		last = step + steps == job->steps;
	int			next = last ? 0 : step + steps;
	const uint8_t *weights = last ? block->next_weights : block->weights;
	int			left = job->steps - next;
	int			next_steps = left < job->step_block ? left : job->step_block;

	if (block->rows <= STREAM_ROWS)
		return NULL;
	if (asked >= (size_t) next_steps * job->step_bytes)
		return block->weights + (size_t) step * job->step_bytes;
	return weights + (size_t) next * job->step_bytes + asked;
}

/* Sums of rows [r, r + rows) of the block += `steps` steps from `step` on. */
static void
multiply_tile(const MatmulJob *job, const MatmulBlock *block, int r, int rows, int step, int steps)
{
	const Kernels *kernels = job->cpu->kernels;
	size_t		stride = cpu_rounded_stride(job->steps);
	int			row = block->first_row + r;
	size_t		at = (size_t) row * stride + (size_t) step;
	const uint8_t *weights = block->weights + (size_t) step * job->step_bytes;
	const uint8_t *ahead = lines_ahead(job, block, r, step, steps);
	float	   *sums = block->sums + (size_t) r * (size_t) kernels->panel;

	if (data_type_is_quantized(job->weight->type))
		multiply_quantized(job, block, r, rows, step, steps);
	else if (job->weight->type == TYPE_BF16)
		kernels->multiply_panel_bf16(rows, steps,
									 (const char *) job->cpu->rounded +
										 at * 2 * (size_t) kernels->rounded_size,
									 stride, weights, sums, step == 0, ahead);
	else
		kernels->multiply_panel(rows, block->outputs, steps, cpu_row(job->x, row) + step,
								(size_t) job->x.stride, (const float *) (const void *) weights,
								sums, step == 0, ahead);
}

/* Bias, activation, scale and residual, for rows whose sums are complete. */
static void
finish_rows(const MatmulJob *job, const MatmulBlock *block, int r, int rows)
{
	const Kernels *kernels = job->cpu->kernels;
	const Epilogue *epilogue = &job->epilogue;
	const float *bias = epilogue->bias == NULL ? NULL
		: cpu_row(*epilogue->bias, 0) + block->first_output;

	for (int end = r + rows; r < end; r++)
		kernels->finish_row(block->outputs, block->sums + r * kernels->panel, bias,
							epilogue->activation, epilogue->scale, epilogue->accumulate,
							cpu_row(job->y, block->first_row + r) + block->first_output);
}

static void
multiply_block(const MatmulJob *job, const MatmulBlock *block)
{
	for (int step = 0; step < job->steps; step += job->step_block)
	{
		bool		last = job->steps - step <= job->step_block;

		for (int r = 0, rows; r < block->rows; r += rows)
		{
			rows = block->rows - r < block->tile_rows ? block->rows - r : block->tile_rows;
			if (last)
				cpu_expect_rows(job->y, block->first_row + r, rows, block->first_output,
								block->outputs);
			multiply_tile(job, block, r, rows, step, last ? job->steps - step : job->step_block);
			if (last)
				finish_rows(job, block, r, rows);
		}
	}
}

static void
matmul_task(void *argument, int task, int thread)
{
	MatmulJob  *job = argument;
	int			panel = job->cpu->kernels->panel;
	size_t		panel_bytes = (size_t) job->steps * job->step_bytes;
	int			next = (task + thread_pool_threads(job->cpu->pool)) / job->row_blocks * panel;
	MatmulBlock block = {.first_row = task % job->row_blocks * job->block_rows,
						 .rows = job->block_rows,
						 .first_output = task / job->row_blocks * panel,
						 .outputs = panel};
	int			tiles;

	if (job->x.rows - block.first_row < block.rows)
		block.rows = job->x.rows - block.first_row;
	/* tiles of about the same size, rather than a small one at the end */
	tiles = (block.rows + job->tile_rows - 1) / job->tile_rows;
	block.tile_rows = (block.rows + tiles - 1) / tiles;
	if (job->weight->outputs - block.first_output < block.outputs)
		block.outputs = job->weight->outputs - block.first_output;
	if (next >= job->weight->outputs)
		next = block.first_output;
	block.weights = (const uint8_t *) job->weight->data +
		(size_t) (block.first_output / panel) * panel_bytes;
	block.next_weights = (const uint8_t *) job->weight->data +
		(size_t) (next / panel) * panel_bytes;
	block.sums = job->cpu->sums + (size_t) thread * MATMUL_ROW_BLOCK * MATMUL_MAX_PANEL;
	multiply_block(job, &block);
}

/* Round or quantise one row of x into the backend's buffer. */
static void
round_task(void *argument, int row, int thread)
{
	MatmulJob  *job = argument;
	const Kernels *kernels = job->cpu->kernels;

	if (job->weight->type == TYPE_BF16)
		kernels->round_row(job->weight->inputs, cpu_row(job->x, row),
						   (char *) job->cpu->rounded + (size_t) row *
							   cpu_rounded_stride(job->steps) * 2 * (size_t) kernels->rounded_size);
	else
		kernels->quantize_row(job->weight->type, job->weight->inputs, cpu_row(job->x, row),
							  (QuantizedBlock *) job->cpu->rounded +
								  (size_t) row * (size_t) job->steps);
}

/* Run tasks for as many rows as x has; unless in f32, at most MATMUL_ROUNDED_ROWS. */
static void
multiply_rows(MatmulJob *job)
{
	const Weight *weight = job->weight;
	int			panel = job->cpu->kernels->panel;
	int			panels = (weight->outputs + panel - 1) / panel;
	int			tiles = (job->x.rows + job->tile_rows - 1) / job->tile_rows;

	/* blocks of the same size, of whole tiles: no thread waits long for a large last one */
	job->row_blocks = (job->x.rows + MATMUL_ROW_BLOCK - 1) / MATMUL_ROW_BLOCK;
	job->block_rows = (tiles + job->row_blocks - 1) / job->row_blocks * job->tile_rows;
	if (weight->type != TYPE_F32)
		cpu_run(job->cpu, round_task, job, job->x.rows, (double) job->x.rows * weight->inputs);
	cpu_run(job->cpu, matmul_task, job, panels * job->row_blocks,
			(double) job->x.rows * weight->outputs * weight->inputs);
}

void
cpu_matmul(Backend *backend, Tensor y, Tensor x, const Weight *weight, Epilogue epilogue)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	const Kernels *kernels = cpu->kernels;
	bool		quantized = data_type_is_quantized(weight->type);
	int			passes = weight->type == TYPE_F32 ? 1
		: (x.rows + MATMUL_ROUNDED_ROWS - 1) / MATMUL_ROUNDED_ROWS;
	int			pass = passes > 0 ? (x.rows + passes - 1) / passes : 1;
	MatmulJob	job = {
		.cpu = cpu,
		.weight = weight,
		.epilogue = epilogue,
		.steps = quantized ? quantized_blocks(weight->inputs)
						   : (int) cpu_weight_steps(weight->type, weight->inputs),
		.step_bytes = quantized ? cpu_quantized_block_bytes(weight->type, kernels->panel)
								: (size_t) kernels->panel * sizeof(uint32_t),
		.step_block = quantized ? QUANTIZED_STEP_BLOCK : STEP_BLOCK,
		.tile_rows = quantized ? kernels->quantized_rows : kernels->tile_rows};

	for (int row = 0; row < x.rows; row += pass)
	{
		int			rows = x.rows - row < pass ? x.rows - row : pass;

		job.y = tensor_row_range(y, row, rows);
		job.x = tensor_row_range(x, row, rows);
		multiply_rows(&job);
	}
}

void
cpu_low_rank(Backend *backend, Tensor y, Tensor x, Tensor reduced, const LowRankGroup *groups,
			 int count)
{
	for (int i = 0; i < count; i++)
	{
		const LowRankGroup *group = &groups[i];
		Tensor		rows = tensor_row_range(reduced, group->first, group->count);
		Tensor		product = tensor_column_range(rows, 0, group->a->outputs);

		cpu_matmul(backend, product, tensor_row_range(x, group->first, group->count), group->a,
				   EPILOGUE_STORE);
		cpu_matmul(backend, tensor_row_range(y, group->first, group->count), product, group->b,
				   (Epilogue) {NULL, ACTIVATION_NONE, group->scale, true});
	}
}
