/*
 * backward.cu - gradients of products and of rows, the loss, and AdamW.
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

#define PASS_ROWS 8192

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

/* ---- norms: a block for each row ---- */

/* With n = (x - mean) s and g = dy w: dx += s (g - mean(g) - n mean(g n)). */
__global__ static void __launch_bounds__(ROW_THREADS)
layer_norm_backward_kernel(Rows dx, Rows dy, Rows x, const float *weight, float epsilon)
{
	SHARED(float, scratch, ROW_WARPS);
	const float *row = x.row(blockIdx.x);
	const float *gradient = dy.row(blockIdx.x);
	float	   *to = dx.row(blockIdx.x);
	float		count = static_cast<float>(x.columns);
	float		sum = 0;
	float		squares = 0;
	float		g = 0;
	float		gn = 0;
	float		mean;
	float		scale;

	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
		sum += row[i];
	mean = block_sum(sum, scratch) / count;
	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
	{
		squares = fmaf(row[i] - mean, row[i] - mean, squares);
		g += gradient[i] * weight[i];
		gn = fmaf(gradient[i] * weight[i], row[i] - mean, gn);
	}
	scale = 1.0f / sqrtf(block_sum(squares, scratch) / count + epsilon);
	g = block_sum(g, scratch) / count;
	gn = block_sum(gn, scratch) * scale / count;
	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
		to[i] += scale * (gradient[i] * weight[i] - g - (row[i] - mean) * scale * gn);
}

void
cuda_layer_norm_backward(Backend *backend, Tensor dx, Tensor dy, Tensor x, Tensor weight,
						 float epsilon)
{
	CudaBackend *cuda = cuda_use(backend);

	if (x.rows > 0)
		LAUNCH(layer_norm_backward_kernel, static_cast<unsigned>(x.rows), ROW_THREADS, 0,
			   cuda->stream, cuda_rows(dx), cuda_rows(dy), cuda_rows(x),
			   static_cast<const float *>(weight.data), epsilon);
}

/* With s = 1 / rms(x) and g = dy w: dx += s (g - x s^2 mean(g x)). */
__global__ static void __launch_bounds__(ROW_THREADS)
rms_norm_backward_kernel(Rows dx, Rows dy, Rows x, const float *weight, float epsilon)
{
	SHARED(float, scratch, ROW_WARPS);
	const float *row = x.row(blockIdx.x);
	const float *gradient = dy.row(blockIdx.x);
	float	   *to = dx.row(blockIdx.x);
	float		count = static_cast<float>(x.columns);
	float		squares = 0;
	float		gx = 0;
	float		scale;

	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
	{
		squares = fmaf(row[i], row[i], squares);
		gx = fmaf(gradient[i] * weight[i], row[i], gx);
	}
	scale = 1.0f / sqrtf(block_sum(squares, scratch) / count + epsilon);
	gx = block_sum(gx, scratch) / count * scale * scale;
	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
		to[i] += scale * (gradient[i] * weight[i] - row[i] * gx);
}

void
cuda_rms_norm_backward(Backend *backend, Tensor dx, Tensor dy, Tensor x, Tensor weight,
					   float epsilon)
{
	CudaBackend *cuda = cuda_use(backend);

	if (x.rows > 0)
		LAUNCH(rms_norm_backward_kernel, static_cast<unsigned>(x.rows), ROW_THREADS, 0,
			   cuda->stream, cuda_rows(dx), cuda_rows(dy), cuda_rows(x),
			   static_cast<const float *>(weight.data), epsilon);
}

/* ---- activations ---- */

/* d/dx x Phi(x) = Phi(x) + x phi(x); 0.3989.. is (2 pi)^-1/2. */
__global__ static void
gelu_backward_kernel(Rows dx, Rows x)
{
	int			column = own_column();
	float		value;

	if (column >= x.columns)
		return;
	value = x.row(blockIdx.y)[column];
	dx.row(blockIdx.y)[column] *= normal_distribution(value) +
		value * 0.398942280401432678f * expf(-0.5f * value * value);
}

void
cuda_activate_backward(Backend *backend, Tensor dx, Tensor x, Activation activation)
{
	CudaBackend *cuda = cuda_use(backend);

	if (activation != ACTIVATION_GELU)
		return;
	for_row_ranges(x.rows, [&](int first, int rows) {
		LAUNCH(gelu_backward_kernel, element_grid(x.columns, rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(tensor_row_range(dx, first, rows)),
			   cuda_rows(tensor_row_range(x, first, rows)));
	});
}

/* y = g s(g) u: dy/du = g s, dy/dg = u s (1 + g (1 - s)). */
__global__ static void
swiglu_backward_kernel(Rows d_gate_up, Rows dy, Rows gate_up)
{
	int			column = own_column();
	int			width = dy.columns;
	const float *gate = gate_up.row(blockIdx.y) + column;
	float	   *to = d_gate_up.row(blockIdx.y) + column;
	float		gradient;
	float		s;

	if (column >= width)
		return;
	gradient = dy.row(blockIdx.y)[column];
	s = sigmoid(gate[0]);
	to[width] = gradient * gate[0] * s;
	to[0] = gradient * gate[width] * s * fmaf(gate[0], 1.0f - s, 1.0f);
}

void
cuda_swiglu_backward(Backend *backend, Tensor d_gate_up, Tensor dy, Tensor gate_up)
{
	CudaBackend *cuda = cuda_use(backend);

	for_row_ranges(dy.rows, [&](int first, int rows) {
		LAUNCH(swiglu_backward_kernel, element_grid(dy.columns, rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(tensor_row_range(d_gate_up, first, rows)),
			   cuda_rows(tensor_row_range(dy, first, rows)),
			   cuda_rows(tensor_row_range(gate_up, first, rows)));
	});
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

__global__ static void
adamw_kernel(Rows values, Rows gradient, Rows mean, Rows square, AdamwRule rule)
{
	int			column = own_column();
	int64_t		row = blockIdx.y;
	float		g;
	float		m;
	float		s;

	if (column >= values.columns)
		return;
	g = gradient.row(row)[column];
	m = mean.row(row)[column];
	m = m + (1.0f - rule.beta1) * (g - m);
	s = rule.beta2 * square.row(row)[column] + (1.0f - rule.beta2) * g * g;
	mean.row(row)[column] = m;
	square.row(row)[column] = s;
	values.row(row)[column] = values.row(row)[column] * rule.keep -
		rule.step_size * m / (sqrtf(s) / rule.correction + rule.epsilon);
}

void
cuda_adamw(Backend *backend, Tensor values, Tensor gradient, Tensor mean, Tensor square,
		   const AdamwRule *rule)
{
	CudaBackend *cuda = cuda_use(backend);

	for_row_ranges(values.rows, [&](int first, int rows) {
		LAUNCH(adamw_kernel, element_grid(values.columns, rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(tensor_row_range(values, first, rows)),
			   cuda_rows(tensor_row_range(gradient, first, rows)),
			   cuda_rows(tensor_row_range(mean, first, rows)),
			   cuda_rows(tensor_row_range(square, first, rows)), *rule);
	});
}
