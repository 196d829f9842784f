/*
 * choose.h - what choose.cu and draw.cu share: rows of logits with masks, and what is found there.
 */
#ifndef MMGPT_CHOOSE_H
#define MMGPT_CHOOSE_H

#include "cuda_backend.h"

/* A token with its logit; token -1: none. */
typedef struct Candidate
{
	float		logit;
	int			token;
} Candidate;

/* Of one row. */
typedef struct RowStatistics
{
	Candidate	largest;		/* of those that count in the softmax */
	Candidate	choice;			/* of those that may be chosen; token 0 where there are none */
	float		log_sum;		/* logarithm of the sum of exp(logit) */
} RowStatistics;

/* Where a row's bits begin in the masks, in words; -1: every token. */
typedef struct RowMasks
{
	int			allowed;
	int			choosable;
} RowMasks;

__device__ static inline bool
has_token(const uint32_t *masks, int place, int token)
{
	return place < 0 || (masks[place + token / 32] >> token % 32 & 1u) != 0;
}

/* Device and host memory of one reading. */
typedef struct Reading
{
	CudaBackend *cuda;
	Tensor		logits;
	RowMasks   *rows;			/* host; NULL: no row has masks */
	uint32_t   *masks;			/* host */
	int			mask_words;		/* in all */
	char	   *device;			/* rows, masks, then results */
	RowMasks   *device_rows;
	uint32_t   *device_masks;
	char	   *results;		/* on the device */
} Reading;

/* What is to be drawn from one row. */
typedef struct DrawOrder
{
	uint64_t	random;			/* of 2^64 */
	uint64_t	top_p;			/* of 2^64; 0: all */
	uint32_t	top_k;			/* 0: all */
	uint32_t	least_kept;
	int32_t		row;
	float		temperature;
} DrawOrder;

/* draw.cu */
/* Bytes of the device that cuda_draw needs for these rows. */
extern size_t cuda_draw_size(Tensor logits, const ChoiceRule *rules);
/*
 * Draw a token for each row whose rule has a temperature: it becomes the choice of the row's
 * statistics, which are on the device, as memory is. orders [R] is memory of the host.
 */
extern void cuda_draw(const Reading *reading, const ChoiceRule *rules, DrawOrder *orders,
					  void *memory, RowStatistics *statistics);

#endif
