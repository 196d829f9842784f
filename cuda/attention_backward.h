/*
 * attention_backward.h - what the two ways to the gradient of attention share.
 */
#ifndef MMGPT_CUDA_ATTENTION_BACKWARD_H
#define MMGPT_CUDA_ATTENTION_BACKWARD_H

#include "cuda_backend.h"

/* What is kept of a row of P. */
typedef struct SoftmaxRow
{
	float		largest;		/* scaled score */
	float		inverse_sum;
	float		mean;			/* sum of P dP */
	int			first;			/* keys [first, end) are seen */
	int			end;
	float		scale;
} SoftmaxRow;

typedef struct GradientArguments
{
	Rows		q;
	Rows		k;
	Rows		v;
	Rows		dy;
	Rows		dq;
	Rows		dk;
	Rows		dv;
	const int32_t *spans;
	const int32_t *groups;		/* [G, ATTENTION_GROUP_FIELDS] */
	int			group_count;
	int			heads;
	int			kv_heads;
	int			head_size;
	float		scale;
	SoftmaxRow *rows;			/* [R, heads] */
} GradientArguments;

__device__ static inline bool
is_seen(const SoftmaxRow &row, int64_t key)
{
	return key >= row.first && key < row.end;
}

/*
 * attention_backward_mma.cu: the gradient on tensor cores, of heads of at most MOST_MMA_HEAD elements;
 * p->rows has room.
 */
#define MOST_MMA_HEAD 128
extern void cuda_attention_backward_bf16(CudaBackend *cuda, const GradientArguments *p);

#endif
