/*
 * cpu_rows.c - operations that take each row on its own: look-ups, norms,
 * activations, rotary positions, and pictures cut into patches.
 */
#include "cpu_backend.h"

#include <string.h>

/* Cost of an element of a norm or an activation in multiply-adds, roughly; only for cpu_run. */
#define ROW_WORK 4.0

typedef struct RowJob
{
	const Kernels *kernels;
	Tensor		y;
	Tensor		x;
	Tensor		weight;
	Tensor		bias;
	const int32_t *index;
	float		epsilon;
	int			heads;
	Activation	activation;
} RowJob;

static void
run_rows(Backend *backend, TaskFunction function, RowJob *job, double work_per_element)
{
	CpuBackend *cpu = (CpuBackend *) backend;

	job->kernels = cpu->kernels;
	cpu_run(cpu, function, job, job->y.rows, work_per_element * job->y.rows * job->y.columns);
}

static void
embed_row(void *argument, int row, int thread)
{
	RowJob	   *job = argument;
	size_t		size = data_type_size(job->x.type);
	const char *from = (const char *) job->x.data +
					   (size_t) job->index[row] * (size_t) job->x.stride * size;

	convert_to_f32(from, job->x.type, (size_t) job->y.columns, cpu_row(job->y, row));
}

void
cpu_embed(Backend *backend, Tensor y, Tensor table, Tensor ids)
{
	RowJob		job = {.y = y, .x = table, .index = ids.data};

	run_rows(backend, embed_row, &job, 1);
}

static void
gather_row(void *argument, int row, int thread)
{
	RowJob	   *job = argument;

	memcpy(cpu_row(job->y, row), cpu_row(job->x, job->index[row]),
		   (size_t) job->y.columns * sizeof(float));
}

void
cpu_gather(Backend *backend, Tensor y, Tensor x, Tensor index)
{
	RowJob		job = {.y = y, .x = x, .index = index.data};

	run_rows(backend, gather_row, &job, 1);
}

static void
layer_norm_row(void *argument, int row, int thread)
{
	RowJob	   *job = argument;

	job->kernels->layer_norm(job->y.columns, cpu_row(job->x, row), job->weight.data, job->bias.data,
							 job->epsilon, cpu_row(job->y, row));
}

void
cpu_layer_norm(Backend *backend, Tensor y, Tensor x, Tensor weight, Tensor bias, float epsilon)
{
	RowJob		job = {.y = y, .x = x, .weight = weight, .bias = bias, .epsilon = epsilon};

	run_rows(backend, layer_norm_row, &job, ROW_WORK);
}

static void
rms_norm_row(void *argument, int row, int thread)
{
	RowJob	   *job = argument;

	job->kernels->rms_norm(job->y.columns, cpu_row(job->x, row), job->weight.data, job->epsilon,
						   cpu_row(job->y, row));
}

void
cpu_rms_norm(Backend *backend, Tensor y, Tensor x, Tensor weight, float epsilon)
{
	RowJob		job = {.y = y, .x = x, .weight = weight, .epsilon = epsilon};

	run_rows(backend, rms_norm_row, &job, ROW_WORK);
}

static void
activate_row(void *argument, int row, int thread)
{
	RowJob	   *job = argument;

	if (job->activation == ACTIVATION_QUICK_GELU)
		job->kernels->quick_gelu(job->y.columns, cpu_row(job->y, row));
	else if (job->activation == ACTIVATION_GELU)
		job->kernels->gelu(job->y.columns, cpu_row(job->y, row));
}

void
cpu_activate(Backend *backend, Tensor x, Activation activation)
{
	RowJob		job = {.y = x, .activation = activation};

	run_rows(backend, activate_row, &job, ROW_WORK);
}

static void
swiglu_row(void *argument, int row, int thread)
{
	RowJob	   *job = argument;
	const float *gate = cpu_row(job->x, row);

	job->kernels->swiglu(job->y.columns, gate, gate + job->y.columns, cpu_row(job->y, row));
}

void
cpu_swiglu(Backend *backend, Tensor y, Tensor gate_up)
{
	RowJob		job = {.y = y, .x = gate_up};

	run_rows(backend, swiglu_row, &job, ROW_WORK);
}

static void
rotary_row(void *argument, int row, int thread)
{
	RowJob	   *job = argument;
	int			half = job->x.columns / 2;
	const float *cosine = cpu_row(job->x, job->index[row]);
	const float *sine = cosine + half;

	for (int h = 0; h < job->heads; h++)
		job->kernels->rotate(half, 1.0f, cosine, sine, cpu_row(job->y, row) + h * 2 * half);
}

void
cpu_rotary(Backend *backend, Tensor x, int heads, Tensor positions, Tensor table)
{
	RowJob		job = {.y = x, .x = table, .index = positions.data, .heads = heads};

	run_rows(backend, rotary_row, &job, 2);
}

typedef struct PatchJob
{
	Tensor		y;
	Tensor		pixels;
	int			image_size;
	int			patch_size;
	const float *mean;
	const float *deviation;
} PatchJob;

/* One element of the normalised image, whichever way the pixels are stored. */
static inline float
patch_pixel(const PatchJob *job, int image, int channel, int row, int column)
{
	size_t		size = (size_t) job->image_size;
	size_t		place = (size_t) row * size + (size_t) column;

	if (job->pixels.type == TYPE_U8)
	{
		const uint8_t *pixel = (const uint8_t *) job->pixels.data +
							   (size_t) image * (size_t) job->pixels.stride + place * 3;

		return ((float) pixel[channel] / 255.0f - job->mean[channel]) / job->deviation[channel];
	}
	return cpu_row(job->pixels, image)[(size_t) channel * size * size + place];
}

static void
patch_task(void *argument, int task, int thread)
{
	PatchJob   *job = argument;
	int			patch = job->patch_size;
	int			across = job->image_size / patch;
	int			image = task / (across * across);
	int			top = task % (across * across) / across * patch;
	int			left = task % across * patch;
	float	   *y = cpu_row(job->y, task);

	for (int channel = 0; channel < 3; channel++)
		for (int row = 0; row < patch; row++)
			for (int column = 0; column < patch; column++)
				*y++ = patch_pixel(job, image, channel, top + row, left + column);
}

void
cpu_patches(Backend *backend, Tensor y, Tensor pixels, int image_size, int patch_size,
			const float mean[3], const float deviation[3])
{
	PatchJob	job = {y, pixels, image_size, patch_size, mean, deviation};

	cpu_run((CpuBackend *) backend, patch_task, &job, y.rows, (double) y.rows * y.columns);
}

static void
vision_token_row(void *argument, int row, int thread)
{
	RowJob	   *job = argument;
	int			tokens = job->bias.rows;	/* 1 + patches of an image */
	int			place = row % tokens;
	const float *from = place == 0 ? job->weight.data
								   : cpu_row(job->x, row / tokens * (tokens - 1) + place - 1);
	const float *position = cpu_row(job->bias, place);
	float	   *y = cpu_row(job->y, row);

	for (int i = 0; i < job->y.columns; i++)
		y[i] = from[i] + position[i];
}

void
cpu_vision_tokens(Backend *backend, Tensor y, Tensor patches, Tensor class_token, Tensor positions)
{
	RowJob		job = {.y = y, .x = patches, .weight = class_token, .bias = positions};

	run_rows(backend, vision_token_row, &job, 1);
}
