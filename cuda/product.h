/*
 * product.h - what kernels of products share: where a sum goes.
 */
#ifndef MMGPT_PRODUCT_H
#define MMGPT_PRODUCT_H

#include "cuda_backend.h"

/* y = [y +] scale * activation(sum + bias), see backend.h's Epilogue. */
typedef struct ProductTarget
{
	Rows		y;
	const float *bias;			/* [N], or NULL */
	int			activation;
	float		scale;
	bool		accumulate;
} ProductTarget;

static inline ProductTarget
product_target(Tensor y, const Epilogue *epilogue)
{
	ProductTarget target = {};

	target.y = cuda_rows(y);
	if (epilogue->bias != nullptr)
		target.bias = static_cast<const float *>(epilogue->bias->data);
	target.activation = static_cast<int>(epilogue->activation);
	target.scale = epilogue->scale;
	target.accumulate = epilogue->accumulate;
	return target;
}

/* Store a sum, unless its row or output lies past the last. */
__device__ static inline void
store_sum(const ProductTarget *target, int row, int output, float sum)
{
	float	   *y;
	float		value;

	if (row >= target->y.rows || output >= target->y.columns)
		return;
	y = target->y.row(row) + output;
	value = sum + (target->bias == nullptr ? 0.0f : target->bias[output]);
	value = target->scale * activate_value(target->activation, value);
	*y = target->accumulate ? *y + value : value;
}

#endif
