/*
 * cuda_pair.h - the CUDA library beside the processor, for tests that hold one against the other.
 *
 * MMGPT_CUDA_LIBRARY names the library: build/mmgpt_cuda.so where there is a GPU, or the same
 * sources compiled for the host (make cuda-on-host). Without it the tests are skipped.
 */
#ifndef MMGPT_CUDA_PAIR_H
#define MMGPT_CUDA_PAIR_H

#include "gradients.h"

#define CUDA_SKIPPED "MMGPT_CUDA_LIBRARY names no CUDA library"

/* The device; NULL where the tests are skipped. */
static UNIT_UNUSED Backend *
open_cuda_with(bool any_order)
{
	DeviceOptions options = {.device = "cuda", .any_order = any_order};
	Backend    *backend;
	Status		status;

	if (getenv("MMGPT_CUDA_LIBRARY") == NULL)
		return NULL;
	if (!backend_open_cuda(&options, &backend, &status))
		engine_bail("cuda", &status);
	return backend;
}

static UNIT_UNUSED Backend *
open_cuda(void)
{
	return open_cuda_with(false);
}

/* The definition: portable kernels, and the device. */
typedef struct Pair
{
	Backend    *cpu;
	Backend    *cuda;
	void	   *device[256];	/* memory of the device, freed at the end */
	int			count;
} Pair;

static UNIT_UNUSED bool
pair_open_with(Pair *pair, bool any_order)
{
	memset(pair, 0, sizeof(*pair));
	pair->cuda = open_cuda_with(any_order);
	if (pair->cuda != NULL)
		pair->cpu = open_backend("portable", 1);
	return pair->cuda != NULL;
}

static UNIT_UNUSED bool
pair_open(Pair *pair)
{
	return pair_open_with(pair, false);
}

static UNIT_UNUSED void
pair_close(Pair *pair)
{
	while (pair->count > 0)
		pair->cuda->ops->release(pair->cuda, pair->device[--pair->count]);
	pair->cpu->ops->close(pair->cpu);
	pair->cuda->ops->close(pair->cuda);
	forget_all();
}

static size_t
tensor_bytes(Tensor tensor)
{
	/* nothing lies behind the last row's columns, so that a kernel that goes on is found out */
	return ((size_t) (tensor.rows - 1) * (size_t) tensor.stride + (size_t) tensor.columns) *
		data_type_size(tensor.type);
}

static UNIT_UNUSED void *
device_memory(Pair *pair, size_t bytes)
{
	Status		status;

	if (pair->count == 256 || !pair->cuda->ops->allocate(pair->cuda, bytes,
														 &pair->device[pair->count], &status))
		engine_bail("device memory", &status);
	return pair->device[pair->count++];
}

/* A copy of a host tensor on the device. */
static UNIT_UNUSED Tensor
to_device(Pair *pair, Tensor host)
{
	Tensor		tensor = host;

	tensor.data = device_memory(pair, tensor_bytes(host));
	pair->cuda->ops->upload(pair->cuda, tensor.data, host.data, tensor_bytes(host));
	return tensor;
}

/* A copy of a device's tensor in host memory. */
static UNIT_UNUSED Tensor
to_host(Pair *pair, Tensor device)
{
	Tensor		tensor = device;

	tensor.data = take(tensor_bytes(device));
	pair->cuda->ops->download(pair->cuda, tensor.data, device.data, tensor_bytes(device));
	return tensor;
}

/* Wait, and check that nothing went wrong on the device. */
static UNIT_UNUSED bool
device_is_well(Pair *pair)
{
	Status		status;

	return pair->cuda->ops->synchronize(pair->cuda, &status) || UNIT_FAIL("%s", status.message);
}

/* Compare f32 results, relative to the largest. */
static UNIT_UNUSED bool
same_result(Pair *pair, const char *what, Tensor device, Tensor host, double tolerance)
{
	Tensor		actual = to_host(pair, device);
	double		largest = 1e-3;
	double		worst = 0;
	int			at[2] = {0, 0};

	for (int r = 0; r < host.rows; r++)
		for (int c = 0; c < host.columns; c++)
		{
			double		expected = (double) cpu_row(host, r)[c];
			double		difference = fabs((double) cpu_row(actual, r)[c] - expected);

			largest = fabs(expected) > largest ? fabs(expected) : largest;
			if (difference > worst || isnan(difference))
			{
				worst = isnan(difference) ? INFINITY : difference;
				at[0] = r;
				at[1] = c;
			}
		}
	if (!device_is_well(pair))
		return false;
	return worst <= tolerance * largest ||
		UNIT_FAIL("%s [%d, %d] at %d, %d is %.9g, not %.9g", what, host.rows, host.columns, at[0],
				  at[1], (double) cpu_row(actual, at[0])[at[1]],
				  (double) cpu_row(host, at[0])[at[1]]);
}

/* Check that some rows of a device's tensor have the bits of another's, from its first row on. */
static UNIT_UNUSED bool
same_rows(Pair *pair, const char *what, Tensor all, int first, Tensor alone)
{
	Tensor		some = to_host(pair, tensor_row_range(all, first, alone.rows));
	Tensor		other = to_host(pair, alone);

	for (int r = 0; r < alone.rows; r++)
		if (memcmp(cpu_row(some, r), cpu_row(other, r),
				   (size_t) alone.columns * sizeof(float)) != 0)
			return UNIT_FAIL("%s: row %d has other bits in other company", what, first + r);
	return true;
}

#endif
