/*
 * attention_tiles.h - products of attention's tiles on tensor cores, forward and backward.
 *
 * Queries, keys, values and their gradients are rows of one head, filled up with zeros to HEAD
 * elements of bf16. In shared memory they are vectors of 16 bytes, from row to row HeadRows::stride
 * of them. A warp has WARP_ROWS rows of the left factor: as operands a of mma.h, or as what mma_bf16
 * leaves in c.
 */
#ifndef MMGPT_CUDA_ATTENTION_TILES_H
#define MMGPT_CUDA_ATTENTION_TILES_H

#include "mma.h"

/* Rows that mma_bf16 takes. */
#define WARP_ROWS 16
/* Columns of one mma_bf16, and its depth. */
#define MMA_COLUMNS 8
#define MMA_DEPTH 16

/* Rows of the largest tiles: those of a block's warps. */
#define TILE_ROWS (WARP_ROWS * ROW_WARPS)
/* Blocks that a multiprocessor has room for, at least: one computes while another waits. */
#define BLOCKS_AT_ONCE 2

#define LOG2_E 1.44269504088896341f
/* As good as none; times scale * log2(e) it is still finite. */
#define LOWEST_SCORE (-FLT_MAX / 2)

template <int HEAD>
struct HeadRows
{
	static const int vectors = HEAD / 8;
	/* odd, so that eight rows lie in different banks */
	static const int stride = vectors + 1;
};

__device__ static inline int
lane_of_warp(void)
{
	return static_cast<int>(threadIdx.x) % WARP;
}

__device__ static inline int
warp_smallest(int value)
{
	for (int distance = WARP / 2; distance > 0; distance /= 2)
		value = min(value, __shfl_xor_sync(FULL_MASK, value, distance));
	return value;
}

/* The sum, or the largest, of the four lanes that share a row of c; the same in each. */
__device__ static inline float
row_sum(float value)
{
	value += __shfl_xor_sync(FULL_MASK, value, 1);
	return value + __shfl_xor_sync(FULL_MASK, value, 2);
}

__device__ static inline float
row_largest(float value)
{
	value = fmaxf(value, __shfl_xor_sync(FULL_MASK, value, 1));
	return fmaxf(value, __shfl_xor_sync(FULL_MASK, value, 2));
}

/* Row, below 16, and column of element i of a lane's tile n of c. */
__device__ static inline int
lane_row_of(int i)
{
	return lane_of_warp() / 4 + i / 2 * 8;
}

__device__ static inline int
lane_column_of(int n, int i)
{
	return n * MMA_COLUMNS + lane_of_warp() % 4 * 2 + i % 2;
}

/* Where a lane reads 16 rows, two times 8 elements: the four matrices of an operand a. */
template <int HEAD>
__device__ static inline const uint4 *
sixteen_rows(const uint4 *x)
{
	return x + lane_of_warp() % 16 * HeadRows<HEAD>::stride + lane_of_warp() / 16;
}

/* Where a lane reads 8 rows, four times 8 elements: the matrices of the operands b of two steps. */
template <int HEAD>
__device__ static inline const uint4 *
eight_rows(const uint4 *x)
{
	return x + lane_of_warp() % 8 * HeadRows<HEAD>::stride + lane_of_warp() / 8;
}

template <int TILES>
__device__ static inline void
clear(float (&s)[TILES][4])
{
#pragma unroll
	for (int n = 0; n < TILES; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			s[n][i] = 0.0f;
}

/* s += a x^T over two steps of the depth; x as eight_rows gives it. */
template <int HEAD, int TILES>
__device__ static inline void
add_two_steps(const uint32_t (&first)[4], const uint32_t (&second)[4], const uint4 *x, int step,
			  float (&s)[TILES][4])
{
#pragma unroll
	for (int n = 0; n < TILES; n++)
	{
		uint32_t	b[4];

		load_matrices(x, n * MMA_COLUMNS * HeadRows<HEAD>::stride + step * 2, b);
		mma_bf16(s[n], first, b[0], b[1]);
		mma_bf16(s[n], second, b[2], b[3]);
	}
}

/* s = a x^T for the first 8 TILES rows x in shared memory. */
template <int HEAD, int TILES>
__device__ static inline void
multiply_rows(const uint32_t (&a)[HEAD / MMA_DEPTH][4], const uint4 *x, float (&s)[TILES][4])
{
	clear(s);
#pragma unroll
	for (int step = 0; step < HEAD / MMA_DEPTH; step += 2)
		add_two_steps<HEAD>(a[step], a[step + 1], eight_rows<HEAD>(x), step, s);
}

/*
 * acc += w x, for 8 TILES rows and the first 8 COLUMNS elements of x in shared memory. Weights come
 * as mma_bf16 leaves c, and are rounded; two neighbours of those are an a.
 */
template <int HEAD, int TILES, int COLUMNS>
__device__ static inline void
add_weighted_rows(const float (&w)[TILES][4], const uint4 *x, float (&acc)[COLUMNS][4])
{
	const uint4 *row = sixteen_rows<HEAD>(x);

#pragma unroll
	for (int tile = 0; tile < TILES; tile += 2)
	{
		uint32_t	a[4];

#pragma unroll
		for (int word = 0; word < 4; word++)
			a[word] = pack_bf16(w[tile + word / 2][word % 2 * 2],
								w[tile + word / 2][word % 2 * 2 + 1]);
#pragma unroll
		for (int n = 0; n < COLUMNS; n += 2)
		{
			uint32_t	b[4];

			load_matrices_transposed(row, tile * MMA_COLUMNS * HeadRows<HEAD>::stride + n, b);
			mma_bf16(acc[n], a, b[0], b[1]);
			mma_bf16(acc[n + 1], a, b[2], b[3]);
		}
	}
}

#endif
