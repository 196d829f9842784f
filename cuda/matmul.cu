/*
 * matmul.cu - y [R, N] = x [R, K] W^T with weights of every format.
 *
 * bf16 weights go through cuBLASLt; those in 8 and 4 bits have kernels of their own
 * (quantized_product.cu). For f32, and where sums may have any order for bf16 with few rows, a warp
 * computes a tile of outputs and rows: its lanes walk the inputs side by side, each with a vector
 * of 16 bytes of every output's weights, so that weights are read once, in whole lines; then the
 * lanes' sums are added up, always in the same tree. With one row, where reading the weights is all
 * that takes time, a warp has one output.
 *
 * The sum of an element is a chain in each lane and the tree over the lanes: a function of its row
 * and its output, whatever the tile.
 */
#include "product.h"

/* Rows up to which a kernel of our own reads bf16 weights, where sums may have any order. */
#define FEW_ROWS 8

#define WARPS 4
#define TILE_ROWS 8
#define TILE_OUTPUTS 4

typedef struct ProductArguments
{
	const uint4 *x;				/* [R, x_vectors] */
	int64_t		x_vectors;
	const uint4 *weights;		/* [N, vectors] */
	int			vectors;
	ProductTarget target;
} ProductArguments;

/* ---- formats: what a vector of weights adds to a sum ---- */

/* Four inputs. */
struct FormatF32
{
	__device__ static float
	add(float sum, uint4 w, uint4 x)
	{
		sum = fmaf(__uint_as_float(w.x), __uint_as_float(x.x), sum);
		sum = fmaf(__uint_as_float(w.y), __uint_as_float(x.y), sum);
		sum = fmaf(__uint_as_float(w.z), __uint_as_float(x.z), sum);
		return fmaf(__uint_as_float(w.w), __uint_as_float(x.w), sum);
	}
};

/* Eight inputs, each in half a word. */
struct FormatBf16
{
	__device__ static float
	add_pair(float sum, uint32_t w, uint32_t x)
	{
		return fmaf(low_bf16(w), low_bf16(x), fmaf(high_bf16(w), high_bf16(x), sum));
	}

	__device__ static float
	add(float sum, uint4 w, uint4 x)
	{
		return add_pair(add_pair(add_pair(add_pair(sum, w.x, x.x), w.y, x.y), w.z, x.z), w.w, x.w);
	}
};

/* ---- the tile of a warp ---- */

/* A vector of some outputs' weights. */
template <int OUTPUTS>
__device__ static inline void
read_weights(const ProductArguments *p, int first_output, int vector, uint4 *w)
{
#pragma unroll
	for (int o = 0; o < OUTPUTS; o++)
	{
		int64_t		output = min(first_output + o, p->target.y.columns - 1);

		w[o] = p->weights[output * p->vectors + vector];
	}
}

/*
 * ROWS * OUTPUTS is 1 or 32. Rows and outputs past the last are those of the last, not stored. The
 * next weights are on their way while those before them are multiplied.
 */
template <typename Format, int ROWS, int OUTPUTS>
__global__ static void __launch_bounds__(WARPS * WARP)
product_kernel(ProductArguments p)
{
	int			lane = static_cast<int>(threadIdx.x % WARP);
	int			warp = static_cast<int>(threadIdx.x / WARP);
	int			first_output = (static_cast<int>(blockIdx.x) * WARPS + warp) * OUTPUTS;
	int			first_row = static_cast<int>(blockIdx.y) * ROWS;
	float		sums[ROWS * OUTPUTS] = {};
	float		sum;
	uint4		next[OUTPUTS];

	read_weights<OUTPUTS>(&p, first_output, min(lane, p.vectors - 1), next);
	for (int v = lane; v < p.vectors; v += WARP)
	{
		uint4		w[OUTPUTS];

#pragma unroll
		for (int o = 0; o < OUTPUTS; o++)
			w[o] = next[o];
		if (v + WARP < p.vectors)
			read_weights<OUTPUTS>(&p, first_output, v + WARP, next);
#pragma unroll
		for (int r = 0; r < ROWS; r++)
		{
			int			row = min(first_row + r, p.target.y.rows - 1);
			uint4		x = p.x[row * p.x_vectors + v];

#pragma unroll
			for (int o = 0; o < OUTPUTS; o++)
				sums[r * OUTPUTS + o] = Format::add(sums[r * OUTPUTS + o], w[o], x);
		}
	}
	if constexpr (ROWS * OUTPUTS == 1)
	{
		sum = warp_sum(sums[0]);
		if (lane > 0)
			return;
	}
	else
	{
		halve_sums<WARP / 2>(sums);
		sum = sums[0];
		first_row += lane / OUTPUTS;
		first_output += lane % OUTPUTS;
	}
	store_sum(&p.target, first_row, first_output, sum);
}

template <typename Format>
static void
launch_product(CudaBackend *cuda, const ProductArguments *p)
{
	int			rows = p->target.y.rows;
	int			outputs = p->target.y.columns;

	if (rows == 1)
		LAUNCH((product_kernel<Format, 1, 1>), blocks_for(outputs, WARPS), WARPS * WARP, 0,
			   cuda->stream, *p);
	else
		LAUNCH((product_kernel<Format, TILE_ROWS, TILE_OUTPUTS>),
			   dim3(blocks_for(outputs, WARPS * TILE_OUTPUTS), blocks_for(rows, TILE_ROWS)),
			   WARPS * WARP, 0, cuda->stream, *p);
}

/* ---- x ---- */

uint16_t *
cuda_round_rows(CudaBackend *cuda, Tensor x, int64_t stride)
{
	Rows		from = cuda_rows(x);
	uint16_t   *rounded = static_cast<uint16_t *>(cuda_scratch(
		cuda, &cuda->rounded, static_cast<size_t>(x.rows * stride) * sizeof(uint16_t)));

	if (rounded == nullptr)
		return nullptr;
	for_each_element(cuda, x.rows, static_cast<int>(stride),
					 [=] __device__ (int64_t row, int column) {
		rounded[row * stride + column] =
			column < from.columns ? round_to_bf16(from.row(row)[column]) : 0;
	});
	return rounded;
}

/* x as f32 vectors: itself where it lies well, else a copy. */
static const void *
pad_rows(CudaBackend *cuda, Tensor x, int64_t stride, int64_t *x_stride)
{
	Rows		from = cuda_rows(x);
	float	   *padded;

	*x_stride = x.stride;
	if (reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 4 == 0 && x.columns == stride)
		return x.data;
	*x_stride = stride;
	padded = static_cast<float *>(cuda_scratch(
		cuda, &cuda->rounded, static_cast<size_t>(x.rows * stride) * sizeof(float)));
	if (padded == nullptr)
		return nullptr;
	for_each_element(cuda, x.rows, static_cast<int>(stride),
					 [=] __device__ (int64_t row, int column) {
		padded[row * stride + column] = column < from.columns ? from.row(row)[column] : 0.0f;
	});
	return padded;
}

/* ---- bf16 ---- */

/* Store sums as target says; they may be its y. */
static void
finish_sums(CudaBackend *cuda, ProductTarget target, Tensor sums)
{
	Rows		from = cuda_rows(sums);

	for_each_element(cuda, from.rows, from.columns, [=] __device__ (int64_t row, int column) {
		store_sum(&target, static_cast<int>(row), column, from.row(row)[column]);
	});
}

/* y += scale * bias. */
static void
add_bias(CudaBackend *cuda, ProductTarget target)
{
	for_each_element(cuda, target.y.rows, target.y.columns,
					 [=] __device__ (int64_t row, int column) {
		target.y.row(row)[column] += target.scale * target.bias[column];
	});
}

/*
 * cuBLASLt scales and adds by itself; bias and activation are one pass more. Only where an
 * activation is added to y do the sums need memory of their own.
 */
static void
multiply_bf16(CudaBackend *cuda, Tensor y, Tensor x, const Weight *weight, const Epilogue *epilogue)
{
	const CudaWeight *on_device = static_cast<const CudaWeight *>(weight->data);
	ProductTarget target = product_target(y, epilogue);
	bool		active = epilogue->activation != ACTIVATION_NONE;
	bool		finished = target.bias == nullptr && !active;
	bool		added = epilogue->accumulate && !active;
	CublasProduct product = {};
	Tensor		sums;

	product.x = cuda_round_rows(cuda, x, on_device->stride);
	product.x_stride = on_device->stride;
	product.a = static_cast<const uint16_t *>(on_device->values);
	product.a_stride = on_device->stride;
	product.a_transposed = true;
	product.depth = static_cast<int>(on_device->stride);
	product.algorithm = &on_device->forward;
	product.factor = finished || added ? epilogue->scale : 1.0f;
	product.beta = added ? 1.0f : 0.0f;
	product.y = y;
	if (epilogue->accumulate && active)
		product.y = tensor_make(cuda_scratch(cuda, &cuda->sums,
											 static_cast<size_t>(y.rows) *
												 static_cast<size_t>(y.columns) * sizeof(float)),
								TYPE_F32, y.rows, y.columns);
	sums = product.y;
	if (product.x == nullptr || sums.data == nullptr)
		return;
	cublas_multiply(cuda, &product);
	if (added && target.bias != nullptr)
		add_bias(cuda, target);
	else if (!finished && !added)
		finish_sums(cuda, target, sums);
}

/* By kernels of our own, with weights in f32 or bf16. */
static void
multiply_own(CudaBackend *cuda, Tensor y, Tensor x, const Weight *weight, const Epilogue *epilogue)
{
	const CudaWeight *on_device = static_cast<const CudaWeight *>(weight->data);
	int64_t		stride = on_device->stride;
	int64_t		x_stride = stride;
	int			per_vector = weight->type == TYPE_F32 ? 4 : 8;
	ProductArguments p = {};

	p.x = static_cast<const uint4 *>(weight->type == TYPE_F32 ? pad_rows(cuda, x, stride, &x_stride)
									 : cuda_round_rows(cuda, x, stride));
	p.x_vectors = x_stride / per_vector;
	p.weights = static_cast<const uint4 *>(on_device->values);
	p.vectors = static_cast<int>(stride / per_vector);
	p.target = product_target(y, epilogue);
	if (p.x == nullptr)
		return;
	if (weight->type == TYPE_F32)
		launch_product<FormatF32>(cuda, &p);
	else
		launch_product<FormatBf16>(cuda, &p);
}

void
cuda_matmul(Backend *backend, Tensor y, Tensor x, const Weight *weight, Epilogue epilogue)
{
	CudaBackend *cuda = cuda_use(backend);

	for (int first = 0; first < x.rows; first += PASS_ROWS)
	{
		int			rows = x.rows - first < PASS_ROWS ? x.rows - first : PASS_ROWS;
		Tensor		y_part = tensor_row_range(y, first, rows);
		Tensor		x_part = tensor_row_range(x, first, rows);

		if (data_type_is_quantized(weight->type))
			cuda_quantized_product(cuda, y_part, x_part, weight, &epilogue);
		else if (weight->type == TYPE_BF16 && !(cuda->any_order && x.rows <= FEW_ROWS))
			multiply_bf16(cuda, y_part, x_part, weight, &epilogue);
		else
			multiply_own(cuda, y_part, x_part, weight, &epilogue);
	}
}
