/*
 * cpu_matmul.c - products with packed weights.
 *
 * A weight matrix [N, K] is cut into panels of as many outputs as the kernels
 * take side by side, each stored depth by depth, so that a product reads it as one
 * stream:
 *
 *	panel 0: w[0..P)[k = 0], w[0..P)[k = 1], ...   panel 1: ...
 *
 * A task is one panel for one block of rows. The block's sums stay in a small
 * buffer of the thread while the depth goes by in blocks that fit the cache; then
 * bias, activation, scale and residual are applied on the way out. The sum of an
 * output is one chain over its depth, whatever the blocks.
 */
#include "cpu_backend.h"

#include <stdlib.h>
#include <string.h>

/*
 * Depth of a block: 512 * 64 outputs * 4 bytes = 128 KB of a panel stay in the second-level cache.
 */
#define DEPTH_BLOCK 512

typedef struct PackJob
{
	const WeightPart *parts;
	int			count;
	int			inputs;
	int			panel;
	float	   *packed;
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

/* Pack one panel: transpose its rows, converted to f32; outputs past the last are zero. */
static void
pack_panel(void *argument, int task, int thread)
{
	PackJob    *job = argument;
	int			panel = job->panel;
	float	   *packed = job->packed + (size_t) task * (size_t) job->inputs * (size_t) panel;
	float		buffer[256];

	for (int p = 0; p < panel; p++)
	{
		int			row = 0;
		const WeightPart *part = find_part(job, task * panel + p, &row);

		for (int k = 0; k < job->inputs; k += 256)
		{
			int			length = job->inputs - k < 256 ? job->inputs - k : 256;

			if (part == NULL)
				memset(buffer, 0, sizeof(buffer));
			else
				convert_to_f32((const char *) part->data +
								   ((size_t) row * (size_t) job->inputs + (size_t) k) *
									   data_type_size(part->type),
							   part->type, (size_t) length, buffer);
			for (int i = 0; i < length; i++)
				packed[(size_t) (k + i) * (size_t) panel + (size_t) p] = buffer[i];
		}
	}
}

bool
cpu_weight_create(Backend *backend, const WeightPart *parts, int count, int inputs, DataType format,
				  Weight *weight, Status *status)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	int			panel = cpu->kernels->panel;
	int			outputs = 0;
	int			panels;
	PackJob		job = {parts, count, inputs, panel, NULL};

	if (format != TYPE_F32)
		return status_set(status, STATUS_NOT_SUPPORTED, "weights in %s are not supported",
						  data_type_name(format));
	for (int i = 0; i < count; i++)
		outputs += parts[i].outputs;
	panels = (outputs + panel - 1) / panel;
	weight->outputs = outputs;
	weight->inputs = inputs;
	weight->type = format;
	weight->bytes = (size_t) panels * (size_t) panel * (size_t) inputs * sizeof(float);
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

typedef struct MatmulJob
{
	CpuBackend *cpu;
	Tensor		y;
	Tensor		x;
	const Weight *weight;
	Epilogue	epilogue;
	int			row_blocks;
} MatmulJob;

/* sums [rows, panel] = x's rows times one panel. */
static void
multiply_block(const MatmulJob *job, int first_row, int rows, const float *panel_weights,
			   float *sums)
{
	const Kernels *kernels = job->cpu->kernels;
	int			depth = job->weight->inputs;

	for (int k = 0; k < depth; k += DEPTH_BLOCK)
	{
		int			part = depth - k < DEPTH_BLOCK ? depth - k : DEPTH_BLOCK;

		for (int r = 0; r < rows; r += kernels->tile_rows)
		{
			int			tile = rows - r < kernels->tile_rows ? rows - r : kernels->tile_rows;

			kernels->multiply_panel(tile, part, cpu_row(job->x, first_row + r) + k,
									(size_t) job->x.stride,
									panel_weights + (size_t) k * (size_t) kernels->panel,
									sums + (size_t) r * (size_t) kernels->panel, k == 0);
		}
	}
}

/* Bias, activation, scale and residual of one row of sums on its way to y. */
static void
finish_row(const MatmulJob *job, float *sums, int first_output, int outputs, float *y)
{
	const Epilogue *epilogue = &job->epilogue;

	if (epilogue->bias != NULL)
	{
		const float *bias = cpu_row(*epilogue->bias, 0) + first_output;

		for (int i = 0; i < outputs; i++)
			sums[i] += bias[i];
	}
	if (epilogue->activation == ACTIVATION_QUICK_GELU)
		job->cpu->kernels->quick_gelu(outputs, sums);
	else if (epilogue->activation == ACTIVATION_GELU)
		job->cpu->kernels->gelu(outputs, sums);
	if (epilogue->accumulate)
		for (int i = 0; i < outputs; i++)
			y[i] += epilogue->scale * sums[i];
	else
		for (int i = 0; i < outputs; i++)
			y[i] = epilogue->scale * sums[i];
}

static void
matmul_task(void *argument, int task, int thread)
{
	MatmulJob  *job = argument;
	int			panel = job->cpu->kernels->panel;
	int			first_output = task / job->row_blocks * panel;
	int			first_row = task % job->row_blocks * MATMUL_ROW_BLOCK;
	int			rows = job->x.rows - first_row < MATMUL_ROW_BLOCK ? job->x.rows - first_row
																  : MATMUL_ROW_BLOCK;
	int			outputs = job->weight->outputs - first_output < panel
							  ? job->weight->outputs - first_output
							  : panel;
	float	   *sums = job->cpu->sums + (size_t) thread * MATMUL_ROW_BLOCK * MATMUL_MAX_PANEL;
	const float *weights = (const float *) job->weight->data +
						   (size_t) first_output * (size_t) job->weight->inputs;

	multiply_block(job, first_row, rows, weights, sums);
	for (int r = 0; r < rows; r++)
		finish_row(job, sums + r * panel, first_output, outputs,
				   cpu_row(job->y, first_row + r) + first_output);
}

void
cpu_matmul(Backend *backend, Tensor y, Tensor x, const Weight *weight, Epilogue epilogue)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	int			panels = (weight->outputs + cpu->kernels->panel - 1) / cpu->kernels->panel;
	MatmulJob	job = {cpu,	   y,		 x,
					   weight, epilogue, (x.rows + MATMUL_ROW_BLOCK - 1) / MATMUL_ROW_BLOCK};

	cpu_run(cpu, matmul_task, &job, panels * job.row_blocks,
			(double) x.rows * weight->outputs * weight->inputs);
}
