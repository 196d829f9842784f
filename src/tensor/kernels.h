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

#include "backend.h"
#include "quantize.h"
#include "status.h"

/* Rows of queries that share one walk over the keys; a multiple of the lanes of every vector. */
#define ATTEND_MAX_ROWS 16
/* Floats of scratch that they need. */
#define ATTEND_SCRATCH(head_size) (ATTEND_MAX_ROWS * (((size_t) (head_size) + 31) / 32 * 32))

/*
 * Queries of one head and one list of pages, see backend.h. Keys and values are words of 32 bits:
 * an f32, or two bf16 that follow one another in the depth of the product, the first in the low
 * half.
 */
typedef struct AttendTile
{
	int			rows;						/* 1 .. ATTEND_MAX_ROWS */
	int			head_size;					/* D */
	const float *q[ATTEND_MAX_ROWS];		/* [D] */
	float	   *y[ATTEND_MAX_ROWS];			/* [D] */
	float		scale[ATTEND_MAX_ROWS];		/* of the scores; 0 makes them equal */
	int			first[ATTEND_MAX_ROWS];		/* keys [first, end) of the list are seen */
	int			end[ATTEND_MAX_ROWS];
	const int32_t *pages;					/* the list */
	/* of page 0, this head: [D, KV_PAGE_KEYS]; bf16: [pairs of D, KV_PAGE_KEYS], 0 past an odd D */
	const float *keys;
	/* of page 0, this head: [KV_PAGE_KEYS, D]; bf16: [pairs of keys, D] */
	const float *values;
	size_t		page_stride;				/* words from page to page */
	void	   *scratch;					/* ATTEND_SCRATCH floats, for queries */
} AttendTile;

/* sums [rows, columns] = or += a [rows, depth] b [depth, columns], all where they lie. */
typedef struct StridedProduct
{
	int			rows;			/* 1 .. tile_rows */
	int			columns;
	int			depth;
	bool		first;			/* begin at zero instead of at sums */
	const float *a;
	size_t		a_row;			/* floats from row to row, and from depth to depth */
	size_t		a_depth;
	const float *b;				/* rows of columns floats */
	size_t		b_depth;
	float	   *sums;
	size_t		sums_row;
} StridedProduct;

/* QUANTIZED_BLOCK elements of a row of x: scale * values, values in -127 .. 127. */
typedef struct QuantizedBlock
{
	int8_t		values[QUANTIZED_BLOCK];
	float		scale;			/* NaN: one of them is not finite */
	int32_t		begin;			/* what a sum of products with packed codes begins with */
} QuantizedBlock;

/* Bytes of a cache line, as far apart as lines are asked for. */
#define CACHE_LINE 64
/* multiply_panel and multiply_panel_bf16 ask for a line in so many steps. */
#define STEPS_A_LINE 4

/* sums [rows, panel] = or += x [rows, blocks] * a panel of quantised weights. */
typedef struct QuantizedProduct
{
	int			rows;			/* 1 .. quantized_rows */
	int			blocks;
	bool		first;			/* begin at zero instead of at sums */
	const QuantizedBlock *x;
	size_t		x_stride;		/* blocks from row to row */
	const uint8_t *weights;		/* packed as kernels_quantized.h says */
	float	   *sums;
	const uint8_t *ahead;		/* will be read soon: for each block so many lines are asked for */
	int			ahead_lines;
	/* 4 bits, weights that go by once: how far ahead they are asked for, evenly; 0: not at all */
	size_t		stream_ahead;
} QuantizedProduct;

typedef struct Kernels
{
	const char *name;
	int			panel;			/* outputs side by side in packed weights */
	int			tile_rows;		/* rows that multiply_panel takes at most */
	int			quantized_rows;	/* rows that multiply_panel_q8 and _q4 take at most */
	int			rounded_size;	/* bytes of an element as round_row leaves it */

	/*
	 * sums [rows, panel] = or += x [rows, depth] * weights [depth, panel], of which the first
	 * `columns` are wanted. Each output is one chain of fused (portable: separate) multiply-adds in
	 * order of depth, continued from sums when first is false. The lines from `ahead` on, which
	 * will be read soon, are asked for, one in STEPS_A_LINE steps: memory comes while there is much
	 * to compute, and not many lines at once, which would wait for one another. NULL: none.
	 */
	void		(*multiply_panel) (int rows, int columns, int depth, const float *x,
						   size_t x_stride, const float *weights, float *sums, bool first,
						   const void *ahead);
	/*
	 * x [count] rounded to bf16, to nearest even, in the form that multiply_panel_bf16 reads; a
	 * zero is appended to an odd count. Numbers below 2^-126 become zero.
	 */
	void		(*round_row) (int count, const float *x, void *rounded);
	/* x [count] rounded in the same way, as bf16. */
	void		(*convert_bf16) (int count, const float *x, uint16_t *to);
	/*
	 * sums [rows, panel] = or += x [rows, pairs of depth] * weights [pairs of depth, panel, 2].
	 * x as made by round_row, x_stride pairs from row to row; weights bf16. Of a pair the second
	 * product is added first. All instruction sets give the same bits, unless a product or a sum
	 * lies below 2^-126, which avx512bf16 takes as zero.
	 */
	void		(*multiply_panel_bf16) (int rows, int pairs, const void *x, size_t x_stride,
								const void *weights, float *sums, bool first,
								const void *ahead);
	/*
	 * x [count] quantised to 8 bits in blocks, zeros behind the last: with d = (largest magnitude)
	 * / 127 the values are x * (127 / largest magnitude), rounded to nearest even.
	 */
	void		(*quantize_row) (DataType type, int count, const float *x,
						   QuantizedBlock *blocks);
	/*
	 * Each output is a chain over the blocks in order: sum = sum + (the sum of the products of a
	 * block's integers, exact) * (scale of weights * scale of x), every operation rounded to f32.
	 * All instruction sets give the same bits.
	 */
	void		(*multiply_panel_q8) (const QuantizedProduct *product);
	void		(*multiply_panel_q4) (const QuantizedProduct *product);
	/* y [count] = [y +] scale * activation(sums + bias); bias NULL: none. */
	void		(*finish_row) (int count, const float *sums, const float *bias,
					   Activation activation, float scale, bool accumulate, float *y);
	/* y[i] = x[i] normalised; see backend.h. y may be x. */
	void		(*layer_norm) (int columns, const float *x, const float *weight, const float *bias,
					   float epsilon, float *y);
	void		(*rms_norm) (int columns, const float *x, const float *weight, float epsilon, float *y);
	/* In place over count elements. */
	void		(*quick_gelu) (int count, float *x);
	void		(*gelu) (int count, float *x);
	/*
	 * Turn pairs head[i], head[half + i] by the angles of these cosines and sines; back when
	 * direction is -1 instead of 1.
	 */
	void		(*rotate) (int half, float direction, const float *cosines, const float *sines,
				   float *head);
	/* y = silu(gate) * up. */
	void		(*swiglu) (int count, const float *gate, const float *up, float *y);
	/* softmax(scale q k^T) v for the tile; a row that sees no key gives zero. */
	void		(*attend) (const AttendTile *tile);
	/*
	 * The same over bf16 keys and values: q and the weights exp(score - largest) are rounded to
	 * bf16, scores, softmax and sums are f32.
	 */
	void		(*attend_bf16) (const AttendTile *tile);

	/* ---- training: kernels_backward_template.h ---- */

	/* One chain of multiply-adds in order of depth for each of sums. */
	void		(*multiply_strided) (const StridedProduct *product);
	/* to [columns, rows] = the transpose of from [rows, columns]. */
	void		(*transpose) (int rows, int columns, const float *from, size_t from_stride,
					  float *to, size_t to_stride);
	/*
	 * Turn bf16 weights: from [steps, panel] words, each two inputs of an output, to [panel / 2,
	 * panel], each two outputs of an input. steps at most panel / 2; inputs past them are zero.
	 */
	void		(*transpose_pairs) (int steps, const uint32_t *from, uint32_t *to);
	/*
	 * The same from a panel of quantised weights, rounded to bf16: 2 * steps inputs from `first` on,
	 * a multiple of the panel.
	 */
	void		(*turn_quantized) (DataType type, int first, int steps, const uint8_t *panel,
						   uint32_t *to);
	/* dx += gradient of the norm at x for dy. */
	void		(*layer_norm_backward) (int columns, const float *x, const float *weight,
							   float epsilon, const float *dy, float *dx);
	void		(*rms_norm_backward) (int columns, const float *x, const float *weight, float epsilon,
							 const float *dy, float *dx);
	/* dx = gelu'(x) * dx. */
	void		(*gelu_backward) (int count, const float *x, float *dx);
	/* d_gate, d_up for dy at gate, up. */
	void		(*swiglu_backward) (int count, const float *gate, const float *up, const float *dy,
						   float *d_gate, float *d_up);
	/* x = softmax(scale * x). */
	void		(*softmax) (int count, float scale, float *x);
	/* dp = scale * p * (dp - sum of p * dp): from softmax's result to its scaled scores. */
	void		(*softmax_backward) (int count, float scale, const float *p, float *dp);
	/* Returns -log softmax(x)[target]; x = weight * (softmax(x) - target). */
	float		(*cross_entropy) (int count, int target, float weight, float *x);
	float		(*square_sum) (int count, const float *x);
	/* A step of AdamW; see backend.h. */
	void		(*adamw) (int count, const AdamwRule *rule, const float *gradient, float *value,
				  float *mean, float *square);
} Kernels;

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512vnni;
extern const Kernels kernels_avx512bf16;
#endif

/*
 * The kernels of this name, or the best of this machine for NULL and "auto".
 * NULL and STATUS_NOT_SUPPORTED when the processor or the operating system lacks it.
 */
extern const Kernels *kernels_select(const char *name, Status *status);

/* Name of the i-th set that this machine can run; NULL past the last. */
extern const char *kernels_available(int i);

#endif
