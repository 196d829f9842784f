/*
 * mma_on_host.h - what cuda/mma.h is on the host: exchanges within a warp, see mma_on_host.cpp.
 *
 * Memory is read and written here, in code that is compiled with the kernels, so that the checkers
 * of addresses and races see it.
 */
#ifndef MMGPT_MMA_ON_HOST_H
#define MMGPT_MMA_ON_HOST_H

#include "cuda_on_host.h"

extern void host_mma_bf16(float *c, const uint32_t *a, uint32_t b_upper, uint32_t b_lower);
extern void host_mma_s8(int32_t *d, const uint32_t *a, const uint32_t *b, const int32_t *c);

/* Give the words of a row to the warp; those of the lane in the four matrices. */
extern void host_give_row(uint32_t x, uint32_t y, uint32_t z, uint32_t w, bool transposed,
						  uint32_t *to);

/* Word by word: the checker of races is not told when a structure is read to be passed on. */
static inline void
host_load_matrices(const uint4 *row, bool transposed, uint32_t *to)
{
	host_give_row(row->x, row->y, row->z, row->w, transposed, to);
}

/* A copy of 8 or 16 bytes; from NULL: zeros. */
typedef struct HostCopy
{
	void	   *to;
	const void *from;
	size_t		bytes;
	unsigned	group;			/* of the thread */
} HostCopy;

/* Remember a copy of the running thread. */
extern void host_copy_later(void *to, const void *from, size_t bytes);
/* Copies from now on are of the next group. */
extern void host_close_copies(void);
/* Take the oldest that is remembered, and not of the newest groups; false: there is none. */
extern bool host_next_copy(HostCopy *copy, int newest);
/* In place of a number of groups: also what is in none. */
#define HOST_ALL_COPIES (-1)

template <typename T>
static inline void
host_copy_vector(const HostCopy *copy)
{
	*(T *) copy->to = copy->from == NULL ? T{} : *(const T *) copy->from;
}

/* As late as a device may copy, so that who reads without waiting finds nothing. */
static inline void
host_copy_now(int newest)
{
	HostCopy	copy;

	while (host_next_copy(&copy, newest))
		if (copy.bytes == sizeof(uint4))
			host_copy_vector<uint4>(&copy);
		else
			host_copy_vector<uint2>(&copy);
}

#endif
