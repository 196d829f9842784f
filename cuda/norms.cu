/*
 * norms.cu - layer norm and RMS norm, forward and backward: a block for each row.
 *
 * Both are y = (x - mean) * scale * weight [+ bias] with scale = 1 / sqrt(mean((x - mean)^2) +
 * epsilon); RMS norm takes 0 for the mean, and has no bias.
 */
#include "cuda_backend.h"

/* What a norm makes of a row: (x - mean) * scale. */
typedef struct RowScale
{
	float		mean;
	float		scale;
} RowScale;

/* scratch [ROW_WARPS] is shared. */
template <bool CENTRED>
__device__ static inline RowScale
measure_row(const float *row, int columns, float epsilon, float *scratch)
{
	float		count = static_cast<float>(columns);
	float		sum = 0;
	float		squares = 0;
	float		mean = 0;

	if constexpr (CENTRED)
	{
		for (int i = static_cast<int>(threadIdx.x); i < columns; i += ROW_THREADS)
			sum += row[i];
		mean = block_sum(sum, scratch) / count;
	}
	for (int i = static_cast<int>(threadIdx.x); i < columns; i += ROW_THREADS)
		squares = fmaf(row[i] - mean, row[i] - mean, squares);
	return RowScale{mean, 1.0f / sqrtf(block_sum(squares, scratch) / count + epsilon)};
}

template <bool CENTRED>
__global__ static void __launch_bounds__(ROW_THREADS)
norm_kernel(Rows y, Rows x, const float *weight, const float *bias, float epsilon)
{
	SHARED(float, scratch, ROW_WARPS);
	const float *row = x.row(blockIdx.x);
	float	   *to = y.row(blockIdx.x);
	RowScale	norm = measure_row<CENTRED>(row, x.columns, epsilon, scratch);

	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
	{
		float		value = (row[i] - norm.mean) * norm.scale * weight[i];

		to[i] = CENTRED ? value + bias[i] : value;
	}
}

void
cuda_layer_norm(Backend *backend, Tensor y, Tensor x, Tensor weight, Tensor bias, float epsilon)
{
	CudaBackend *cuda = cuda_use(backend);

	if (x.rows > 0)
		LAUNCH(norm_kernel<true>, static_cast<unsigned>(x.rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(y), cuda_rows(x), static_cast<const float *>(weight.data),
			   static_cast<const float *>(bias.data), epsilon);
}

void
cuda_rms_norm(Backend *backend, Tensor y, Tensor x, Tensor weight, float epsilon)
{
	CudaBackend *cuda = cuda_use(backend);

	if (x.rows > 0)
		LAUNCH(norm_kernel<false>, static_cast<unsigned>(x.rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(y), cuda_rows(x), static_cast<const float *>(weight.data),
			   static_cast<const float *>(nullptr), epsilon);
}

/*
 * With n = (x - mean) s and g = dy w: dx += s (g - mean(g) - n mean(g n)); of RMS norm, without
 * mean(g).
 */
template <bool CENTRED>
__global__ static void __launch_bounds__(ROW_THREADS)
norm_backward_kernel(Rows dx, Rows dy, Rows x, const float *weight, float epsilon)
{
	SHARED(float, scratch, ROW_WARPS);
	const float *row = x.row(blockIdx.x);
	const float *gradient = dy.row(blockIdx.x);
	float	   *to = dx.row(blockIdx.x);
	float		count = static_cast<float>(x.columns);
	RowScale	norm = measure_row<CENTRED>(row, x.columns, epsilon, scratch);
	float		g = 0;
	float		gn = 0;

	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
	{
		g += gradient[i] * weight[i];
		gn = fmaf(gradient[i] * weight[i], row[i] - norm.mean, gn);
	}
	g = CENTRED ? block_sum(g, scratch) / count : 0.0f;
	gn = block_sum(gn, scratch) * norm.scale / count;
	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
		to[i] += norm.scale * (gradient[i] * weight[i] - g -
							   (row[i] - norm.mean) * norm.scale * gn);
}

template <bool CENTRED>
static void
go_back(Backend *backend, Tensor dx, Tensor dy, Tensor x, Tensor weight, float epsilon)
{
	CudaBackend *cuda = cuda_use(backend);

	if (x.rows > 0)
		LAUNCH(norm_backward_kernel<CENTRED>, static_cast<unsigned>(x.rows), ROW_THREADS, 0,
			   cuda->stream, cuda_rows(dx), cuda_rows(dy), cuda_rows(x),
			   static_cast<const float *>(weight.data), epsilon);
}

void
cuda_layer_norm_backward(Backend *backend, Tensor dx, Tensor dy, Tensor x, Tensor weight,
						 float epsilon)
{
	go_back<true>(backend, dx, dy, x, weight, epsilon);
}

void
cuda_rms_norm_backward(Backend *backend, Tensor dx, Tensor dy, Tensor x, Tensor weight,
					   float epsilon)
{
	go_back<false>(backend, dx, dy, x, weight, epsilon);
}
