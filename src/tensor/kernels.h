/*
 * kernels.h - the inner loops, one set for each instruction set.
 *
 * One table is chosen when the backend opens (kernels_select). All sets are made
 * from kernels_template.h; what differs is the vector type of simd in each
 * kernels_*.c and the shape of the product's tile. The portable set is the
 * definition and the others are tested against it.
 *
 * Every function computes each of its outputs in an order that depends on that
 * output's own inputs only: vector lanes run over outputs where there are many, and
 * where a sum runs over a row, element i always goes to lane i mod lanes.
 */
#ifndef MMGPT_KERNELS_H
#define MMGPT_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* Rows of queries that share one walk over the keys. */
#define ATTEND_MAX_ROWS 4

/* Queries of one head and one list of pages, see backend.h. */
typedef struct AttendTile
{
	int			rows;						/* 1 .. ATTEND_MAX_ROWS */
	int			head_size;					/* D */
	int			value_stride;				/* floats from one key's value to the next, >= D */
	const float *q[ATTEND_MAX_ROWS];		/* [D] */
	float	   *y[ATTEND_MAX_ROWS];			/* [D] */
	float		scale[ATTEND_MAX_ROWS];		/* of the scores; 0 makes them equal */
	int			first[ATTEND_MAX_ROWS];		/* keys [first, end) of the list are seen */
	int			end[ATTEND_MAX_ROWS];
	const int32_t *pages;					/* the list */
	const float *keys;						/* of page 0, this head: [D, KV_PAGE_KEYS] */
	const float *values;					/* of page 0, this head: [KV_PAGE_KEYS, value_stride] */
	size_t		page_stride;				/* floats from page to page */
} AttendTile;

typedef struct Kernels
{
	const char *name;
	int			panel;			/* outputs side by side in packed weights */
	int			tile_rows;		/* rows that multiply_panel takes at most */

	/*
	 * sums [rows, panel] = or += x [rows, depth] * weights [depth, panel]. Each
	 * output is one chain of fused (portable: separate) multiply-adds in order of depth,
	 * continued from sums when first is false.
	 */
	void		(*multiply_panel) (int rows, int depth, const float *x, size_t x_stride,
						   const float *weights, float *sums, bool first);
	/* y[i] = x[i] normalised; see backend.h. y may be x. */
	void		(*layer_norm) (int columns, const float *x, const float *weight, const float *bias,
					   float epsilon, float *y);
	void		(*rms_norm) (int columns, const float *x, const float *weight, float epsilon, float *y);
	/* In place over count elements. */
	void		(*quick_gelu) (int count, float *x);
	void		(*gelu) (int count, float *x);
	/* y = silu(gate) * up. */
	void		(*swiglu) (int count, const float *gate, const float *up, float *y);
	/* softmax(scale q k^T) v for the tile; a row that sees no key gives zero. */
	void		(*attend) (const AttendTile *tile);
} Kernels;

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

/*
 * The kernels of this name, or the best of this machine for NULL and "auto".
 * NULL and STATUS_NOT_SUPPORTED when the processor or the operating system lacks it.
 */
extern const Kernels *kernels_select(const char *name, Status *status);

/* Name of the i-th set that this machine can run; NULL past the last. */
extern const char *kernels_available(int i);

#endif
