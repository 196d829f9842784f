/*
 * cpu_matmul.c - products with packed weights.
 *
 * A weight matrix [N, K] is cut into panels of as many outputs as the kernels
 * take side by side, each stored step by step of the depth, so that a product reads it as one
 * stream:
 *
 *	panel 0: w[0..P)[step 0], w[0..P)[step 1], ...   panel 1: ...
 *
 * A step is a word of 32 bits for each output: an f32, or two bf16 of neighbouring depths.
 *
 * A task is one panel for one block of rows. The block's sums stay in a small
 * buffer of the thread while the depth goes by in blocks that fit the cache; then
 * bias, activation, scale and residual are applied on the way out. The sum of an
 * output is one chain over its depth, whatever the blocks.
 *
 * For bf16, the rows of x are rounded first, MATMUL_ROUNDED_ROWS at a time.
 */
#include "cpu_backend.h"

#include <stdlib.h>
#include <string.h>

/*
 * Steps of a block: 512 * 64 outputs * 4 bytes = 128 KB of a panel stay in the second-level cache.
 */
#define STEP_BLOCK 512

/* Depths that are packed at once; even. */
#define PACK_DEPTH 256

typedef struct PackJob
{
	const WeightPart *parts;
	int			count;
	int			inputs;
	const Kernels *kernels;
	DataType	format;
	uint32_t   *packed;
} PackJob;

/* The part that holds an output, and the output's row in it; NULL past the last. */
static const WeightPart *
find_part(const PackJob *job, int output, int *row)
{
	for (int i = 0; i < job->count; i++)
	{
		if (output < job->parts[i].outputs)
		{
			*row = output;
			return &job->parts[i];
		}
		output -= job->parts[i].outputs;
	}
	return NULL;
}

/*
 * Depths [k, k + length) of an output as f32, length at most PACK_DEPTH; zero past the last
 * output. One more element is zero, for the pair of an odd last depth.
 */
static void
read_depths(const PackJob *job, int output, int k, int length, float *values)
{
	int			row = 0;
	const WeightPart *part = find_part(job, output, &row);
	size_t		first = (size_t) row * (size_t) job->inputs + (size_t) k;

	values[length] = 0.0f;
	if (part == NULL)
		memset(values, 0, (size_t) length * sizeof(float));
	else
		convert_to_f32((const char *) part->data + first * data_type_size(part->type), part->type,
					   (size_t) length, values);
}

/* Pack one panel: transpose its rows, converted to the format; outputs past the last are zero. */
static void
pack_panel(void *argument, int task, int thread)
{
	PackJob    *job = argument;
	size_t		panel = (size_t) job->kernels->panel;
	size_t		steps = cpu_weight_steps(job->format, job->inputs);
	uint32_t   *packed = job->packed + (size_t) task * steps * panel;
	float		values[PACK_DEPTH + 1];
	uint32_t	words[PACK_DEPTH + 1];

	for (int k = 0; k < job->inputs; k += PACK_DEPTH)
	{
		int			length = job->inputs - k < PACK_DEPTH ? job->inputs - k : PACK_DEPTH;
		uint32_t   *block = packed + cpu_weight_steps(job->format, k) * panel;
		size_t		steps_here = cpu_weight_steps(job->format, length);

		for (size_t p = 0; p < panel; p++)
		{
			read_depths(job, task * job->kernels->panel + (int) p, k, length, values);
			if (job->format == TYPE_BF16)
				job->kernels->convert_bf16(length + 1, values, (uint16_t *) words);
			else
				memcpy(words, values, (size_t) length * sizeof(float));
			for (size_t i = 0; i < steps_here; i++)
				block[i * panel + p] = words[i];
		}
	}
}

bool
cpu_weight_create(Backend *backend, const WeightPart *parts, int count, int inputs, DataType format,
				  Weight *weight, Status *status)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	int			panel = cpu->kernels->panel;
	size_t		steps = cpu_weight_steps(format, inputs);
	size_t		longest;
	int			outputs = 0;
	int			panels;
	PackJob		job = {parts, count, inputs, cpu->kernels, format, NULL};

	if (format != TYPE_F32 && format != TYPE_BF16)
		return status_set(status, STATUS_NOT_SUPPORTED, "weights in %s are not supported",
						  data_type_name(format));
	for (int i = 0; i < count; i++)
		outputs += parts[i].outputs;
	/* for x and, in training, for dy; what is never used never becomes resident */
	longest = outputs > inputs ? cpu_weight_steps(format, outputs) : steps;
	if (format == TYPE_BF16 &&
		!cpu_grow(backend, &cpu->rounded, &cpu->rounded_size,
				  MATMUL_ROUNDED_ROWS * 2 * longest * (size_t) cpu->kernels->rounded_size, status))
		return false;
	panels = (outputs + panel - 1) / panel;
	weight->outputs = outputs;
	weight->inputs = inputs;
	weight->type = format;
	weight->bytes = (size_t) panels * (size_t) panel * steps * sizeof(uint32_t);
	if (!backend->ops->allocate(backend, weight->bytes, &weight->data, status))
		return false;
	job.packed = weight->data;
	cpu_run(cpu, pack_panel, &job, panels, (double) outputs * inputs);
	return true;
}

void
cpu_weight_destroy(Backend *backend, Weight *weight)
{
	backend->ops->release(backend, weight->data);
	weight->data = NULL;
}

/* One pass over rows of x. */
typedef struct MatmulJob
{
	CpuBackend *cpu;
	Tensor		y;
	Tensor		x;
	const Weight *weight;
	Epilogue	epilogue;
	int			row_blocks;
	int			steps;			/* along the depth */
} MatmulJob;

/* One panel of outputs for a block of rows. */
typedef struct MatmulBlock
{
	int			first_row;
	int			rows;
	int			first_output;
	int			outputs;
	const uint32_t *weights;	/* [steps, panel] */
	float	   *sums;			/* [rows, panel] */
} MatmulBlock;

/* Sums of rows [r, r + rows) of the block += `steps` steps from `step` on. */
static void
multiply_tile(const MatmulJob *job, const MatmulBlock *block, int r, int rows, int step, int steps)
{
	const Kernels *kernels = job->cpu->kernels;
	const char *rounded = job->cpu->rounded;
	size_t		stride = (size_t) job->steps;
	int			row = block->first_row + r;
	const uint32_t *weights = block->weights + (size_t) step * (size_t) kernels->panel;
	float	   *sums = block->sums + (size_t) r * (size_t) kernels->panel;

	if (job->weight->type == TYPE_BF16)
		kernels->multiply_panel_bf16(rows, steps,
									 rounded + ((size_t) row * stride + (size_t) step) * 2 *
										 (size_t) kernels->rounded_size,
									 stride, weights, sums, step == 0);
	else
		kernels->multiply_panel(rows, block->outputs, steps, cpu_row(job->x, row) + step,
								(size_t) job->x.stride, (const float *) weights, sums, step == 0);
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
	int			tile = job->cpu->kernels->tile_rows;

	for (int step = 0; step < job->steps; step += STEP_BLOCK)
	{
		bool		last = job->steps - step <= STEP_BLOCK;

		for (int r = 0; r < block->rows; r += tile)
		{
			int			rows = block->rows - r < tile ? block->rows - r : tile;

			multiply_tile(job, block, r, rows, step, last ? job->steps - step : STEP_BLOCK);
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
	MatmulBlock block = {.first_row = task % job->row_blocks * MATMUL_ROW_BLOCK,
						 .rows = MATMUL_ROW_BLOCK,
						 .first_output = task / job->row_blocks * panel,
						 .outputs = panel};

	if (job->x.rows - block.first_row < block.rows)
		block.rows = job->x.rows - block.first_row;
	if (job->weight->outputs - block.first_output < block.outputs)
		block.outputs = job->weight->outputs - block.first_output;
	block.weights = (const uint32_t *) job->weight->data +
		(size_t) block.first_output * (size_t) job->steps;
	block.sums = job->cpu->sums + (size_t) thread * MATMUL_ROW_BLOCK * MATMUL_MAX_PANEL;
	multiply_block(job, &block);
}

/* Round one row of x into the backend's buffer. */
static void
round_task(void *argument, int row, int thread)
{
	MatmulJob  *job = argument;
	const Kernels *kernels = job->cpu->kernels;

	kernels->round_row(job->weight->inputs, cpu_row(job->x, row),
					   (char *) job->cpu->rounded +
						   (size_t) row * (size_t) job->steps * 2 * (size_t) kernels->rounded_size);
}

/* Run tasks for as many rows as x has; in bf16 at most MATMUL_ROUNDED_ROWS. */
static void
multiply_rows(MatmulJob *job)
{
	const Weight *weight = job->weight;
	int			panel = job->cpu->kernels->panel;
	int			panels = (weight->outputs + panel - 1) / panel;

	job->row_blocks = (job->x.rows + MATMUL_ROW_BLOCK - 1) / MATMUL_ROW_BLOCK;
	if (weight->type == TYPE_BF16)
		cpu_run(job->cpu, round_task, job, job->x.rows, (double) job->x.rows * weight->inputs);
	cpu_run(job->cpu, matmul_task, job, panels * job->row_blocks,
			(double) job->x.rows * weight->outputs * weight->inputs);
}

void
cpu_matmul(Backend *backend, Tensor y, Tensor x, const Weight *weight, Epilogue epilogue)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	int			pass = weight->type == TYPE_BF16 ? MATMUL_ROUNDED_ROWS : x.rows;
	MatmulJob	job = {.cpu = cpu, .weight = weight, .epilogue = epilogue,
		.steps = (int) cpu_weight_steps(weight->type, weight->inputs)};

	for (int row = 0; row < x.rows; row += pass)
	{
		int			rows = x.rows - row < pass ? x.rows - row : pass;

		job.y = tensor_row_range(y, row, rows);
		job.x = tensor_row_range(x, row, rows);
		multiply_rows(&job);
	}
}
