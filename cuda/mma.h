/*
 * mma.h - tensor cores and what feeds them: instructions that C++ has no words for, as PTX under
 * nvcc (sm_80 and later) and as calls of the emulation on the host (test/cuda_on_host).
 *
 * All but copies, pack_bf16 and power_of_two are done by whole warps. A matrix lies over the lanes
 * of a warp as PTX's manual tells for mma.m16n8k16 and, of bytes, m16n8k32; with g = lane / 4 and
 * t = lane % 4 a lane has
 *
 *	a [16, 16]	four words: rows g, g + 8, g, g + 8; columns 2t, 2t + 1 of the left half of the
 *				matrix in the first two, of the right half in the others
 *	b [16, 8]	two words: rows 2t, 2t + 1 of the upper and of the lower half; column g
 *	c [16, 8]	four f32: row g, columns 2t, 2t + 1; row g + 8, the same columns
 *
 * where a word is two bf16, the first in its lower half; and for bytes, of which a word is four,
 * the first the lowest
 *
 *	a [16, 32]	four words: rows g, g + 8, g, g + 8; columns 4t .. 4t + 3 of the left half of the
 *				matrix in the first two, of the right half in the others
 *	b [32, 8]	two words: rows 4t .. 4t + 3 of the upper and of the lower half; column g
 *	c, d [16, 8] as above, of integers
 */
#ifndef MMGPT_MMA_H
#define MMGPT_MMA_H

#include "kernel.h"

#ifndef __CUDACC__
#include "mma_on_host.h"
#endif

/*
 * c += a b. Products are exact and sums f32, in an order that is the device's own; it is the same
 * for all rows and columns, and an element depends on its row of a and its column of b only.
 */
__device__ static inline void
mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b_upper, uint32_t b_lower)
{
#ifdef __CUDACC__
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
				 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
				 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
				 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_upper), "r"(b_lower));
#else
	host_mma_bf16(c, a, b_upper, b_lower);
#endif
}

/* d = a b + c, of signed bytes, summed in 32 bits: exactly. */
__device__ static inline void
mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const int32_t (&c)[4])
{
#ifdef __CUDACC__
	asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
		"{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
		: "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
		: "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),
		  "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
#else
	host_mma_s8(d, a, b, c);
#endif
}

#ifdef __CUDACC__
/* Offsets are added in shared memory's own 32 bits, so that constant ones cost no register. */
__device__ static inline unsigned
shared_address(const uint4 *base, int offset)
{
	return static_cast<unsigned>(__cvta_generic_to_shared(base)) +
		static_cast<unsigned>(offset) * static_cast<unsigned>(sizeof(uint4));
}
#endif

/*
 * Four matrices [8, 8] of 16-bit elements from shared memory: lane 8 m + r gives the place of row r
 * of matrix m, 16 bytes at base + offset; word m of a lane is row g, columns 2t, 2t + 1 of that
 * matrix.
 */
__device__ static inline void
load_matrices(const uint4 *base, int offset, uint32_t (&to)[4])
{
#ifdef __CUDACC__
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
				 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
				 : "r"(shared_address(base, offset))
				 : "memory");
#else
	host_load_matrices(base + offset, false, to);
#endif
}

/* The same, but word m of a lane is rows 2t, 2t + 1, column g of matrix m. */
__device__ static inline void
load_matrices_transposed(const uint4 *base, int offset, uint32_t (&to)[4])
{
#ifdef __CUDACC__
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
				 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
				 : "r"(shared_address(base, offset))
				 : "memory");
#else
	host_load_matrices(base + offset, true, to);
#endif
}

/*
 * Begin to copy 16 bytes from global to shared memory at base + offset, or to fill them with zeros
 * where from is not to be looked at. They are there when this thread has waited; others see them
 * after a barrier.
 */
__device__ static inline void
copy_async(uint4 *base, int offset, const uint4 *from, bool look)
{
#ifdef __CUDACC__
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
				 :
				 : "r"(shared_address(base, offset)), "l"(__cvta_generic_to_global(from)),
				   "r"(look ? 16 : 0)
				 : "memory");
#else
	host_copy_later(base + offset, look ? from : NULL, sizeof(*from));
#endif
}

/* The same for 8 bytes. */
__device__ static inline void
copy_async(uint2 *to, const uint2 *from)
{
#ifdef __CUDACC__
	asm volatile("cp.async.ca.shared.global [%0], [%1], 8;"
				 :
				 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
				   "l"(__cvta_generic_to_global(from))
				 : "memory");
#else
	host_copy_later(to, from, sizeof(*from));
#endif
}

/* Wait for all copies that this thread began. */
__device__ static inline void
wait_for_copies(void)
{
#ifdef __CUDACC__
	asm volatile("cp.async.wait_all;" : : : "memory");
#else
	host_copy_now(HOST_ALL_COPIES);
#endif
}

/* Make a group of the copies that this thread began since the last one; it may be empty. */
__device__ static inline void
close_copies(void)
{
#ifdef __CUDACC__
	asm volatile("cp.async.commit_group;" : : : "memory");
#else
	host_close_copies();
#endif
}

/* Wait for all groups of this thread but the NEWEST ones. */
template <int NEWEST>
__device__ static inline void
wait_for_groups(void)
{
#ifdef __CUDACC__
	asm volatile("cp.async.wait_group %0;" : : "n"(NEWEST) : "memory");
#else
	host_copy_now(NEWEST);
#endif
}

/* Two numbers of which none is subnormal, rounded to bf16, to nearest even. */
__device__ static inline uint32_t
pack_bf16(float lower, float upper)
{
#ifdef __CUDACC__
	uint32_t	word;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(upper), "f"(lower));
	return word;
#else
	return static_cast<uint32_t>(round_to_bf16(lower)) |
		static_cast<uint32_t>(round_to_bf16(upper)) << 16;
#endif
}

/* 2^x, with an error of 2^-22; exactly 1 at 0; zero below 2^-126. */
__device__ static inline float
power_of_two(float x)
{
#ifdef __CUDACC__
	float		y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
#else
	return x < -126.0f ? 0.0f : exp2f(x);
#endif
}

#endif
