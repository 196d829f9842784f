/*
 * kernel.h - what every file with kernels includes: CUDA's language, or its emulation on the host
 * (test/cuda_on_host), and what is common to both.
 *
 * Rules that keep kernels runnable on both: launches by LAUNCH only, shared memory by SHARED and
 * DYNAMIC_SHARED only, blocks of whole warps, full masks; no thread returns before a barrier, only
 * whole warps before a shuffle. Sums have one fixed order that does not depend on the number of
 * rows; float atomics are not used.
 */
#ifndef MMGPT_KERNEL_H
#define MMGPT_KERNEL_H

#ifdef __CUDACC__
#include <cuda_runtime.h>

#define LAUNCH(kernel, grid, block, shared, stream, ...) \
	kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define SHARED(type, name, count) __shared__ type name[count]
#define DYNAMIC_SHARED(type, name) \
	extern __shared__ float4 dynamic_shared_memory[]; \
	type	   *name = reinterpret_cast<type *>(dynamic_shared_memory)
#else
#include "cuda_on_host.h"
#endif

#include <float.h>
#include <stdint.h>

#define WARP 32
#define FULL_MASK 0xFFFFFFFFu
/* Threads of a block where a row is summed by all of them. */
#define ROW_THREADS 128
#define ROW_WARPS (ROW_THREADS / WARP)

/* Largest second dimension of a grid. */
#define MOST_GRID_ROWS 65535

/* A matrix as kernels take it: f32 or, where it says so, another type. */
struct Rows
{
	float	   *data;
	int			rows;
	int			columns;
	int64_t		stride;			/* elements */

	__device__ float *
	row(int64_t r) const
	{
		return data + r * stride;
	}
};

/* Blocks of a grid for so many things. */
static inline unsigned
blocks_for(int64_t things, int per_block)
{
	return (unsigned) ((things + per_block - 1) / per_block);
}

/* The column of the running thread in a grid of elements. */
__device__ static inline int
own_column(void)
{
	return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

/* bf16 is kept as its 16 bits; rounding as in tensor.h: to nearest even, tiny numbers to zero. */
__device__ static inline uint16_t
round_to_bf16(float value)
{
	uint32_t	bits = __float_as_uint(value);
	uint32_t	magnitude = bits & 0x7FFFFFFFu;

	if (magnitude > 0x7F800000u)
		return (uint16_t) (bits >> 16 | 0x40);
	if (magnitude < 0x00800000u)
		return (uint16_t) (bits >> 16 & 0x8000);
	return (uint16_t) ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

__device__ static inline float
bf16_value(uint16_t bits)
{
	return __uint_as_float((uint32_t) bits << 16);
}

/* The two bf16 of a word. */
__device__ static inline float
low_bf16(uint32_t word)
{
	return __uint_as_float(word << 16);
}

__device__ static inline float
high_bf16(uint32_t word)
{
	return __uint_as_float(word & 0xFFFF0000u);
}

/* Sum over the warp, the same in every lane. */
__device__ static inline float
warp_sum(float value)
{
	for (int distance = WARP / 2; distance > 0; distance /= 2)
		value += __shfl_xor_sync(FULL_MASK, value, distance);
	return value;
}

__device__ static inline float
warp_largest(float value)
{
	for (int distance = WARP / 2; distance > 0; distance /= 2)
		value = fmaxf(value, __shfl_xor_sync(FULL_MASK, value, distance));
	return value;
}

/*
 * Add up 32 sums over the lanes: lane i gets sum i. At each step a lane keeps one half of its sums
 * and gives the other away, so it takes 31 exchanges instead of 160. Each sum is added in the tree
 * of warp_sum.
 */
template <int HALF>
__device__ static inline void
halve_sums(float *sums)
{
	bool		upper = (threadIdx.x & HALF) != 0;

#pragma unroll
	for (int i = 0; i < HALF; i++)
	{
		float		given = upper ? sums[i] : sums[i + HALF];
		float		kept = upper ? sums[i + HALF] : sums[i];

		sums[i] = kept + __shfl_xor_sync(FULL_MASK, given, HALF);
	}
	if constexpr (HALF > 1)
		halve_sums<HALF / 2>(sums);
}

/* The warps' results in the order of warps. */
template<typename Combine>
__device__ static inline float
block_combine(float value, float *scratch, Combine combine)
{
	__syncthreads();
	if (threadIdx.x % WARP == 0)
		scratch[threadIdx.x / WARP] = value;
	__syncthreads();
	value = scratch[0];
	for (int i = 1; i < ROW_WARPS; i++)
		value = combine(value, scratch[i]);
	return value;
}

/*
 * Sum and largest over a block of ROW_THREADS, the same in every thread. scratch [ROW_WARPS] is
 * shared; it may be used again at once.
 */
__device__ static inline float
block_sum(float value, float *scratch)
{
	return block_combine(warp_sum(value), scratch, [](float a, float b) { return a + b; });
}

__device__ static inline float
block_largest(float value, float *scratch)
{
	return block_combine(warp_largest(value), scratch, [](float a, float b) { return fmaxf(a, b); });
}

/* ---- activations; see backend.h ---- */

__device__ static inline float
sigmoid(float x)
{
	return 1.0f / (1.0f + expf(-x));
}

/* The constant is CLIP's. */
__device__ static inline float
quick_gelu(float x)
{
	return x * sigmoid(1.702f * x);
}

/* The distribution function of the standard normal distribution; 0.7071.. is 2^-1/2. */
__device__ static inline float
normal_distribution(float x)
{
	return 0.5f * erfcf(-0.707106781186547524f * x);
}

/* activation is one of backend.h's Activation. */
__device__ static inline float
activate_value(int activation, float x)
{
	if (activation == 1)
		return quick_gelu(x);
	if (activation == 2)
		return x * normal_distribution(x);
	return x;
}

#endif
