/*
 * backward.cu - gradients of products, the loss, and AdamW.
 *
 * Sums over rows go in the rows' order, one chain for each element, as everywhere; so an adapter
 * does not depend on how its rows were cut into passes.
 */
#include "cuda_backend.h"

#define TILE_ROWS 8
/* Depths that a block keeps in shared memory. */
#define DEPTH_BLOCK ROW_THREADS
#define PRODUCT_DEPTH (ROW_THREADS / TILE_ROWS)

/* Blocks that a multiprocessor holds; the compiler may take registers accordingly. */
#define BACKWARD_BLOCKS 8

/* ---- dx = dy W ---- */

/* A thread is an input of TILE_ROWS rows; W [N, stride] is read as it lies. */
__global__ static void __launch_bounds__(ROW_THREADS, BACKWARD_BLOCKS)
product_backward_kernel(Rows dx, Rows dy, const float *weights, int64_t stride, float factor,
						bool accumulate)
{
	SHARED(float, shared_dy, TILE_ROWS * DEPTH_BLOCK);
	int			thread = static_cast<int>(threadIdx.x);
	int			input = own_column();
	int			first_row = static_cast<int>(blockIdx.y) * TILE_ROWS;
	float		sums[TILE_ROWS] = {};

	for (int first = 0; first < dy.columns; first += DEPTH_BLOCK)
	{
		int			count = min(DEPTH_BLOCK, dy.columns - first);

		for (int r = 0; r < TILE_ROWS; r++)
			shared_dy[r * DEPTH_BLOCK + thread] = first_row + r < dy.rows && thread < count
				? dy.row(first_row + r)[first + thread] : 0.0f;
		__syncthreads();
		for (int n = 0; n < count; n++)
		{
			float		w = input < dx.columns ? weights[(first + n) * stride + input] : 0.0f;

#pragma unroll
			for (int r = 0; r < TILE_ROWS; r++)
				sums[r] = fmaf(shared_dy[r * DEPTH_BLOCK + n], w, sums[r]);
		}
		__syncthreads();
	}
#pragma unroll
	for (int r = 0; r < TILE_ROWS; r++)
		if (first_row + r < dx.rows && input < dx.columns)
		{
			float	   *to = dx.row(first_row + r) + input;

			*to = accumulate ? *to + factor * sums[r] : factor * sums[r];
		}
}

static void
multiply_f32_backward(CudaBackend *cuda, Tensor dx, Tensor dy, const Weight *weight, float factor,
					  bool accumulate)
{
	const CudaWeight *on_device = static_cast<const CudaWeight *>(weight->data);

	LAUNCH(product_backward_kernel,
		   dim3(blocks_for(dx.columns, ROW_THREADS), blocks_for(dx.rows, TILE_ROWS)), ROW_THREADS,
		   0, cuda->stream, cuda_rows(dx), cuda_rows(dy),
		   static_cast<const float *>(on_device->values), on_device->stride, factor, accumulate);
}

/* A product of bf16; of a quantised weight some outputs at a time, in their order. */
static void
multiply_bf16_backward(CudaBackend *cuda, Tensor dx, Tensor dy, const Weight *weight, float factor,
					   bool accumulate)
{
	const CudaWeight *on_device = static_cast<const CudaWeight *>(weight->data);
	int64_t		dy_stride = product_size(weight->outputs);
	int			part = weight->type == TYPE_BF16 ? weight->outputs : DEQUANTIZED_OUTPUTS;
	CublasProduct product = {};
	const uint16_t *rounded = cuda_round_rows(cuda, dy, dy_stride);

	product.y = dx;
	product.x_stride = dy_stride;
	product.a_stride = on_device->stride;
	product.factor = factor;
	product.algorithm = &on_device->backward;
	for (int first = 0; rounded != nullptr && first < weight->outputs; first += part)
	{
		int			outputs = weight->outputs - first < part ? weight->outputs - first : part;

		product.depth = product_size(outputs);
		product.x = rounded + first;
		product.a = weight->type == TYPE_BF16 ? static_cast<const uint16_t *>(on_device->values)
			: cuda_weight_as_bf16(cuda, weight, first, outputs);
		product.beta = accumulate || first > 0 ? 1.0f : 0.0f;
		if (product.a != nullptr)
			cublas_multiply(cuda, &product);
	}
}

void
cuda_matmul_backward(Backend *backend, Tensor dx, Tensor dy, const Weight *weight, float factor,
					 bool accumulate)
{
	CudaBackend *cuda = cuda_use(backend);

	for (int first = 0; first < dy.rows; first += PASS_ROWS)
	{
		int			rows = dy.rows - first < PASS_ROWS ? dy.rows - first : PASS_ROWS;
		Tensor		dx_part = tensor_row_range(dx, first, rows);
		Tensor		dy_part = tensor_row_range(dy, first, rows);

		if (weight->type == TYPE_F32)
			multiply_f32_backward(cuda, dx_part, dy_part, weight, factor, accumulate);
		else
			multiply_bf16_backward(cuda, dx_part, dy_part, weight, factor, accumulate);
	}
}

/* ---- sum += a^T b ---- */

/* A thread is a column of TILE_ROWS rows of sum. */
__global__ static void __launch_bounds__(ROW_THREADS)
add_product_kernel(Rows sum, Rows a, Rows b)
{
	SHARED(float, shared_a, ROW_THREADS);	/* [PRODUCT_DEPTH, TILE_ROWS] */
	int			thread = static_cast<int>(threadIdx.x);
	int			column = own_column();
	int			first_row = static_cast<int>(blockIdx.y) * TILE_ROWS;
	float		sums[TILE_ROWS];

#pragma unroll
	for (int r = 0; r < TILE_ROWS; r++)
		sums[r] = first_row + r < sum.rows && column < sum.columns
			? sum.row(first_row + r)[column] : 0.0f;
	for (int first = 0; first < a.rows; first += PRODUCT_DEPTH)
	{
		int			count = min(PRODUCT_DEPTH, a.rows - first);
		int			depth = thread / TILE_ROWS;
		int			row = first_row + thread % TILE_ROWS;

		shared_a[thread] = depth < count && row < sum.rows ? a.row(first + depth)[row] : 0.0f;
		__syncthreads();
		for (int i = 0; i < count; i++)
		{
			float		value = column < sum.columns ? b.row(first + i)[column] : 0.0f;

#pragma unroll
			for (int r = 0; r < TILE_ROWS; r++)
				sums[r] = fmaf(shared_a[i * TILE_ROWS + r], value, sums[r]);
		}
		__syncthreads();
	}
#pragma unroll
	for (int r = 0; r < TILE_ROWS; r++)
		if (first_row + r < sum.rows && column < sum.columns)
			sum.row(first_row + r)[column] = sums[r];
}

void
cuda_add_product(Backend *backend, Tensor sum, Tensor a, Tensor b)
{
	CudaBackend *cuda = cuda_use(backend);
	int			most = MOST_GRID_ROWS * TILE_ROWS;

	for (int first = 0; first < sum.rows; first += most)
	{
		int			rows = sum.rows - first < most ? sum.rows - first : most;

		LAUNCH(add_product_kernel,
			   dim3(blocks_for(sum.columns, ROW_THREADS), blocks_for(rows, TILE_ROWS)),
			   ROW_THREADS, 0, cuda->stream, cuda_rows(tensor_row_range(sum, first, rows)),
			   cuda_rows(tensor_column_range(a, first, rows)), cuda_rows(b));
	}
}

/* ---- loss and optimizer ---- */

/* A block is a row; see backend.h. */
__global__ static void __launch_bounds__(ROW_THREADS)
cross_entropy_kernel(Rows logits, float *losses, const int32_t *targets, const float *weights)
{
	SHARED(float, scratch, ROW_WARPS);
	float	   *row = logits.row(blockIdx.x);
	int			target = targets[blockIdx.x];
	float		weight = weights[blockIdx.x];
	float		score = row[target];
	float		largest = -FLT_MAX;
	float		sum = 0;

	for (int i = static_cast<int>(threadIdx.x); i < logits.columns; i += ROW_THREADS)
		largest = fmaxf(largest, row[i]);
	largest = block_largest(largest, scratch);
	for (int i = static_cast<int>(threadIdx.x); i < logits.columns; i += ROW_THREADS)
		sum += expf(row[i] - largest);
	sum = block_sum(sum, scratch);
	for (int i = static_cast<int>(threadIdx.x); i < logits.columns; i += ROW_THREADS)
		row[i] = expf(row[i] - largest) * (weight / sum) - (i == target ? weight : 0.0f);
	if (threadIdx.x == 0)
		losses[blockIdx.x] = logf(sum) - (score - largest);
}

void
cuda_cross_entropy(Backend *backend, Tensor logits, Tensor losses, Tensor targets, Tensor weights)
{
	CudaBackend *cuda = cuda_use(backend);

	if (logits.rows > 0)
		LAUNCH(cross_entropy_kernel, static_cast<unsigned>(logits.rows), ROW_THREADS, 0,
			   cuda->stream, cuda_rows(logits), static_cast<float *>(losses.data),
			   static_cast<const int32_t *>(targets.data),
			   static_cast<const float *>(weights.data));
}

__global__ static void __launch_bounds__(ROW_THREADS)
square_sums_kernel(float *sums, Rows x)
{
	SHARED(float, scratch, ROW_WARPS);
	const float *row = x.row(blockIdx.x);
	float		sum = 0;

	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
		sum = fmaf(row[i], row[i], sum);
	sum = block_sum(sum, scratch);
	if (threadIdx.x == 0)
		sums[blockIdx.x] = sum;
}

void
cuda_square_sums(Backend *backend, Tensor sums, Tensor x)
{
	CudaBackend *cuda = cuda_use(backend);

	if (x.rows > 0)
		LAUNCH(square_sums_kernel, static_cast<unsigned>(x.rows), ROW_THREADS, 0, cuda->stream,
			   static_cast<float *>(sums.data), cuda_rows(x));
}

void
cuda_adamw(Backend *backend, Tensor values, Tensor gradient, Tensor mean, Tensor square,
		   const AdamwRule *rule)
{
	Rows		v = cuda_rows(values);
	Rows		gradients = cuda_rows(gradient);
	Rows		means = cuda_rows(mean);
	Rows		squares = cuda_rows(square);
	AdamwRule	r = *rule;

	for_each_element(cuda_use(backend), values.rows, values.columns,
					 [=] __device__ (int64_t row, int column) {
		float		g = gradients.row(row)[column];
		float		m = means.row(row)[column];
		float		s = r.beta2 * squares.row(row)[column] + (1.0f - r.beta2) * g * g;

		m = m + (1.0f - r.beta1) * (g - m);
		means.row(row)[column] = m;
		squares.row(row)[column] = s;
		v.row(row)[column] = v.row(row)[column] * r.keep -
			r.step_size * m / (sqrtf(s) / r.correction + r.epsilon);
	});
}
