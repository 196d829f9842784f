/*
 * matmul.cu - y [R, N] = x [R, K] W^T with weights of every format.
 *
 * bf16 weights go through cuBLASLt; so do, where sums may have any order, quantised ones that many
 * rows are multiplied with. For the others, and then for bf16 with few rows, a warp computes a tile
 * of outputs and rows: its lanes walk the inputs side by side, each with a vector of 16 bytes of
 * every output's weights, so that weights are read once, in whole lines; then the lanes' sums are
 * added up, always in the same tree. With one row, where reading the weights is all that takes
 * time, a warp has one output.
 *
 * The sum of an element is a chain in each lane and the tree over the lanes: a function of its row
 * and its output, whatever the tile.
 *
 * x is quantised for 8-bit and 4-bit weights as MODEL.md, section 10 says; integer products of a
 * vector are exact. (The processor adds whole blocks in their order, the device's lanes each their
 * own: the bits differ between devices, by rounding.)
 */
#include "cuda_backend.h"

/* Rows that are rounded or quantised before they are multiplied; the next ones follow. */
#define PASS_ROWS 8192

/*
 * Where sums may have any order: rows up to which a kernel of our own reads bf16 weights, and from
 * which on quantised ones are worth turning into bf16.
 */
#define FEW_ROWS 8
#define MANY_ROWS 64

#define WARPS 4
#define TILE_ROWS 8
#define TILE_OUTPUTS 4
/* x of so small a block counts as zero: 2^-100, see MODEL.md. */
#define SMALLEST_MAGNITUDE 0x0D800000u
#define INFINITE_MAGNITUDE 0x7F800000u

/* Of a block of a row of x: scale * code. */
typedef struct BlockScale
{
	float		scale;			/* NaN: a number of the block is not finite */
	int			sum;			/* of the codes */
} BlockScale;

typedef struct ProductArguments
{
	const uint4 *x;				/* [R, x_vectors] */
	int64_t		x_vectors;
	const BlockScale *x_scales;	/* [R, blocks] */
	const uint4 *weights;		/* [N, vectors] */
	const uint16_t *scales;		/* [N, blocks] */
	int			vectors;
	int			blocks;
	Rows		y;
	const float *bias;			/* [N], or NULL */
	int			activation;
	float		scale;
	bool		accumulate;
} ProductArguments;

__device__ static inline float
finish_value(float sum, float bias, int activation, float scale)
{
	return scale * activate_value(activation, sum + bias);
}

/* ---- formats: what a vector of weights adds to a sum ---- */

/* Four inputs. */
struct FormatF32
{
	static const int x_vectors = 1;	/* of x, to one of weights */

	__device__ static float
	add(float sum, uint4 w, const uint4 *x, const ProductArguments *p, int row, int output,
		int vector)
	{
		sum = fmaf(__uint_as_float(w.x), __uint_as_float(x[0].x), sum);
		sum = fmaf(__uint_as_float(w.y), __uint_as_float(x[0].y), sum);
		sum = fmaf(__uint_as_float(w.z), __uint_as_float(x[0].z), sum);
		return fmaf(__uint_as_float(w.w), __uint_as_float(x[0].w), sum);
	}
};

/* Eight inputs, each in half a word. */
struct FormatBf16
{
	static const int x_vectors = 1;

	__device__ static float
	add_pair(float sum, uint32_t w, uint32_t x)
	{
		return fmaf(low_bf16(w), low_bf16(x), fmaf(high_bf16(w), high_bf16(x), sum));
	}

	__device__ static float
	add(float sum, uint4 w, const uint4 *x, const ProductArguments *p, int row, int output,
		int vector)
	{
		return add_pair(add_pair(add_pair(add_pair(sum, w.x, x[0].x), w.y, x[0].y), w.z, x[0].z),
						w.w, x[0].w);
	}
};

/* Both scales of a block. */
__device__ static inline float
block_scale(const ProductArguments *p, int row, int output, int block)
{
	return bf16_value(p->scales[static_cast<int64_t>(output) * p->blocks + block]) *
		p->x_scales[static_cast<int64_t>(row) * p->blocks + block].scale;
}

/* Sixteen inputs: half a block. */
struct FormatQ8
{
	static const int x_vectors = 1;

	__device__ static float
	add(float sum, uint4 w, const uint4 *x, const ProductArguments *p, int row, int output,
		int vector)
	{
		int			dot = __dp4a(static_cast<int>(w.x), static_cast<int>(x[0].x), 0);

		dot = __dp4a(static_cast<int>(w.y), static_cast<int>(x[0].y), dot);
		dot = __dp4a(static_cast<int>(w.z), static_cast<int>(x[0].z), dot);
		dot = __dp4a(static_cast<int>(w.w), static_cast<int>(x[0].w), dot);
		return fmaf(static_cast<float>(dot), block_scale(p, row, output, vector / 2), sum);
	}
};

/* The codes of one word with those of eight inputs of x. */
__device__ static inline int
dot_q4(uint32_t w, uint32_t x_low, uint32_t x_high, int dot)
{
	dot = __dp4a(static_cast<int>(w & 0x0F0F0F0Fu), static_cast<int>(x_low), dot);
	return __dp4a(static_cast<int>(w >> 4 & 0x0F0F0F0Fu), static_cast<int>(x_high), dot);
}

/* Thirty-two inputs: a block. */
struct FormatQ4
{
	static const int x_vectors = 2;

	__device__ static float
	add(float sum, uint4 w, const uint4 *x, const ProductArguments *p, int row, int output,
		int vector)
	{
		/* codes are stored with 8 added */
		int			dot = -8 * p->x_scales[static_cast<int64_t>(row) * p->blocks + vector].sum;

		dot = dot_q4(w.x, x[0].x, x[0].y, dot);
		dot = dot_q4(w.y, x[0].z, x[0].w, dot);
		dot = dot_q4(w.z, x[1].x, x[1].y, dot);
		dot = dot_q4(w.w, x[1].z, x[1].w, dot);
		return fmaf(static_cast<float>(dot), block_scale(p, row, output, vector), sum);
	}
};

/* ---- the tile of a warp ---- */

__device__ static inline void
store_value(const ProductArguments *p, int row, int output, float sum)
{
	float	   *y = p->y.row(row) + output;
	float		value = finish_value(sum, p->bias == nullptr ? 0.0f : p->bias[output],
									 p->activation, p->scale);

	*y = p->accumulate ? *y + value : value;
}

/* ROWS * OUTPUTS is 1 or 32. Rows and outputs past the last are those of the last, not stored. */
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

	for (int v = lane; v < p.vectors; v += WARP)
	{
		uint4		w[OUTPUTS];

#pragma unroll
		for (int o = 0; o < OUTPUTS; o++)
			w[o] = p.weights[static_cast<int64_t>(min(first_output + o, p.y.columns - 1)) *
							 p.vectors + v];
#pragma unroll
		for (int r = 0; r < ROWS; r++)
		{
			int			row = min(first_row + r, p.y.rows - 1);
			uint4		x[Format::x_vectors];

#pragma unroll
			for (int i = 0; i < Format::x_vectors; i++)
				x[i] = p.x[row * p.x_vectors + v * Format::x_vectors + i];
#pragma unroll
			for (int o = 0; o < OUTPUTS; o++)
				sums[r * OUTPUTS + o] = Format::add(sums[r * OUTPUTS + o], w[o], x, &p, row,
													min(first_output + o, p.y.columns - 1), v);
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
	if (first_row < p.y.rows && first_output < p.y.columns)
		store_value(&p, first_row, first_output, sum);
}

template <typename Format>
static void
launch_product(CudaBackend *cuda, const ProductArguments *p)
{
	if (p->y.rows == 1)
		LAUNCH((product_kernel<Format, 1, 1>), blocks_for(p->y.columns, WARPS), WARPS * WARP, 0,
			   cuda->stream, *p);
	else
		LAUNCH((product_kernel<Format, TILE_ROWS, TILE_OUTPUTS>),
			   dim3(blocks_for(p->y.columns, WARPS * TILE_OUTPUTS),
					blocks_for(p->y.rows, TILE_ROWS)),
			   WARPS * WARP, 0, cuda->stream, *p);
}

/* ---- x ---- */

/* to [R, stride] = x, zeros behind its columns. */
__global__ static void
pad_kernel(float *to, int64_t stride, Rows x)
{
	int64_t		column = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
	int64_t		row = blockIdx.y;

	if (column < stride)
		to[row * stride + column] = column < x.columns ? x.row(row)[column] : 0.0f;
}

/* The same rounded to bf16. */
__global__ static void
round_kernel(uint16_t *to, int64_t stride, Rows x)
{
	int64_t		column = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
	int64_t		row = blockIdx.y;

	if (column < stride)
		to[row * stride + column] = column < x.columns ? round_to_bf16(x.row(row)[column]) : 0;
}

/* The same in 8 bits: a warp is a block of 32 numbers. */
__global__ static void
quantize_kernel(int8_t *to, BlockScale *scales, int blocks, Rows x)
{
	int			lane = static_cast<int>(threadIdx.x % WARP);
	int			block = static_cast<int>(blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP);
	int64_t		row = blockIdx.y;
	int			column = block * QUANTIZED_BLOCK + lane;
	float		value = column < x.columns ? x.row(row)[column] : 0.0f;
	uint32_t	magnitude = __float_as_uint(value) & 0x7FFFFFFFu;
	uint32_t	largest = magnitude;
	int			code = 0;
	int			sum;

	if (block >= blocks)
		return;
	for (int distance = WARP / 2; distance > 0; distance /= 2)
		largest = max(largest, __shfl_xor_sync(FULL_MASK, largest, distance));
	if (largest >= SMALLEST_MAGNITUDE && largest < INFINITE_MAGNITUDE)
		code = static_cast<int>(rintf(value * (127.0f / __uint_as_float(largest))));
	to[(row * blocks + block) * QUANTIZED_BLOCK + lane] = static_cast<int8_t>(code);
	sum = code;
	for (int distance = WARP / 2; distance > 0; distance /= 2)
		sum += __shfl_xor_sync(FULL_MASK, sum, distance);
	if (lane > 0)
		return;
	scales[row * blocks + block].sum = sum;
	scales[row * blocks + block].scale = largest < SMALLEST_MAGNITUDE ? 0.0f
		: largest >= INFINITE_MAGNITUDE ? __uint_as_float(0x7FC00000u)
		: __uint_as_float(largest) / 127.0f;
}

uint16_t *
cuda_round_rows(CudaBackend *cuda, Tensor x, int64_t stride)
{
	uint16_t   *rounded = static_cast<uint16_t *>(cuda_scratch(
		cuda, &cuda->rounded, static_cast<size_t>(x.rows * stride) * sizeof(uint16_t)));

	if (rounded != nullptr)
		LAUNCH(round_kernel, dim3(blocks_for(stride, ROW_THREADS), static_cast<unsigned>(x.rows)),
			   ROW_THREADS, 0, cuda->stream, rounded, stride, cuda_rows(x));
	return rounded;
}

/* x as f32 vectors: itself where it lies well, else a copy. */
static const void *
pad_rows(CudaBackend *cuda, Tensor x, int64_t stride, int64_t *x_stride)
{
	float	   *padded;

	*x_stride = x.stride;
	if (reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 4 == 0 && x.columns == stride)
		return x.data;
	*x_stride = stride;
	padded = static_cast<float *>(cuda_scratch(
		cuda, &cuda->rounded, static_cast<size_t>(x.rows * stride) * sizeof(float)));
	if (padded != nullptr)
		LAUNCH(pad_kernel, dim3(blocks_for(stride, ROW_THREADS), static_cast<unsigned>(x.rows)),
			   ROW_THREADS, 0, cuda->stream, padded, stride, cuda_rows(x));
	return padded;
}

/* x in 8 bits; scales behind the codes. */
static const void *
quantize_rows(CudaBackend *cuda, Tensor x, int64_t stride, const BlockScale **scales)
{
	int			blocks = static_cast<int>(stride / QUANTIZED_BLOCK);
	size_t		codes = static_cast<size_t>(x.rows * stride);
	int8_t	   *quantized = static_cast<int8_t *>(cuda_scratch(
		cuda, &cuda->rounded,
		codes + static_cast<size_t>(x.rows) * static_cast<size_t>(blocks) * sizeof(BlockScale)));
	BlockScale *to_scales = reinterpret_cast<BlockScale *>(quantized + codes);

	if (quantized != nullptr)
		LAUNCH(quantize_kernel, dim3(blocks_for(blocks, ROW_WARPS), static_cast<unsigned>(x.rows)),
			   ROW_THREADS, 0, cuda->stream, quantized, to_scales, blocks, cuda_rows(x));
	*scales = to_scales;
	return quantized;
}

/* ---- bf16 ---- */

/* y = [y +] scale * activation(sums + bias); sums may be y. A thread is an element. */
__global__ static void
finish_kernel(Rows y, Rows sums, const float *bias, int activation, float scale, bool accumulate)
{
	int			column = own_column();
	int64_t		row = blockIdx.y;
	float		value;

	if (column >= y.columns)
		return;
	value = finish_value(sums.row(row)[column], bias == nullptr ? 0.0f : bias[column], activation,
						 scale);
	y.row(row)[column] = accumulate ? y.row(row)[column] + value : value;
}

/* y += scale * bias. */
__global__ static void
add_bias_kernel(Rows y, const float *bias, float scale)
{
	int			column = own_column();

	if (column < y.columns)
		y.row(blockIdx.y)[column] += scale * bias[column];
}

/* One product by cuBLASLt, of all outputs, or of some at a time with quantised weights. */
static void
multiply_by_cublas(CudaBackend *cuda, CublasProduct *product, const Weight *weight)
{
	const CudaWeight *on_device = static_cast<const CudaWeight *>(weight->data);
	int			part = weight->type == TYPE_BF16 ? weight->outputs : DEQUANTIZED_OUTPUTS;
	Tensor		y = product->y;

	product->x_stride = on_device->stride;
	product->a_stride = on_device->stride;
	product->a_transposed = true;
	product->depth = static_cast<int>(on_device->stride);
	product->algorithm = &on_device->forward;
	for (int first = 0; first < weight->outputs; first += part)
	{
		int			count = weight->outputs - first < part ? weight->outputs - first : part;

		product->y = tensor_column_range(y, first, count);
		product->a = weight->type == TYPE_BF16 ? static_cast<const uint16_t *>(on_device->values)
			: cuda_weight_as_bf16(cuda, weight, first, count);
		if (product->a != nullptr)
			cublas_multiply(cuda, product);
	}
}

/*
 * cuBLASLt scales and adds by itself; bias and activation are one pass more. Only where an
 * activation is added to y do the sums need memory of their own.
 */
static void
multiply_bf16(CudaBackend *cuda, Tensor y, Tensor x, const Weight *weight, const Epilogue *epilogue)
{
	const CudaWeight *on_device = static_cast<const CudaWeight *>(weight->data);
	const float *bias = epilogue->bias == nullptr ? nullptr
		: static_cast<const float *>(epilogue->bias->data);
	bool		active = epilogue->activation != ACTIVATION_NONE;
	bool		finished = bias == nullptr && !active;
	bool		added = epilogue->accumulate && !active;
	CublasProduct product = {};
	Tensor		sums;

	product.x = cuda_round_rows(cuda, x, on_device->stride);
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
	multiply_by_cublas(cuda, &product, weight);
	if (added && bias != nullptr)
		LAUNCH(add_bias_kernel, element_grid(y.columns, y.rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(y), bias, epilogue->scale);
	else if (!finished && !added)
		LAUNCH(finish_kernel, element_grid(y.columns, y.rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(y), cuda_rows(sums), bias, static_cast<int>(epilogue->activation),
			   epilogue->scale, epilogue->accumulate);
}

/* By kernels of our own. */
static void
multiply_own(CudaBackend *cuda, Tensor y, Tensor x, const Weight *weight, const Epilogue *epilogue)
{
	const CudaWeight *on_device = static_cast<const CudaWeight *>(weight->data);
	int64_t		stride = on_device->stride;
	int64_t		x_stride;
	ProductArguments p = {};

	p.blocks = static_cast<int>(stride / QUANTIZED_BLOCK);
	p.weights = static_cast<const uint4 *>(on_device->values);
	p.scales = on_device->scales;
	p.y = cuda_rows(y);
	p.bias = epilogue->bias == nullptr ? nullptr : static_cast<const float *>(epilogue->bias->data);
	p.activation = static_cast<int>(epilogue->activation);
	p.scale = epilogue->scale;
	p.accumulate = epilogue->accumulate;
	if (weight->type == TYPE_F32)
	{
		p.x = static_cast<const uint4 *>(pad_rows(cuda, x, stride, &x_stride));
		p.x_vectors = x_stride / 4;
		p.vectors = static_cast<int>(stride / 4);
	}
	else if (weight->type == TYPE_BF16)
	{
		p.x = reinterpret_cast<const uint4 *>(cuda_round_rows(cuda, x, stride));
		p.x_vectors = stride / 8;
		p.vectors = static_cast<int>(stride / 8);
	}
	else
	{
		p.x = static_cast<const uint4 *>(quantize_rows(cuda, x, stride, &p.x_scales));
		p.x_vectors = stride / 16;
		p.vectors = static_cast<int>(stride / (weight->type == TYPE_Q8 ? 16 : 32));
	}
	if (p.x == nullptr)
		return;
	if (weight->type == TYPE_F32)
		launch_product<FormatF32>(cuda, &p);
	else if (weight->type == TYPE_BF16)
		launch_product<FormatBf16>(cuda, &p);
	else if (weight->type == TYPE_Q8)
		launch_product<FormatQ8>(cuda, &p);
	else
		launch_product<FormatQ4>(cuda, &p);
}

/* Whether a product is cuBLASLt's; with sums in one order that depends on the weight alone. */
static bool
is_for_cublas(const CudaBackend *cuda, const Weight *weight, int rows)
{
	if (weight->type == TYPE_BF16)
		return !cuda->any_order || rows > FEW_ROWS;
	return weight->type != TYPE_F32 && cuda->any_order && rows >= MANY_ROWS;
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

		if (is_for_cublas(cuda, weight, x.rows))
			multiply_bf16(cuda, y_part, x_part, weight, &epilogue);
		else
			multiply_own(cuda, y_part, x_part, weight, &epilogue);
	}
}
