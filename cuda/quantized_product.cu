/*
 * quantized_product.cu - y [R, N] = x [R, K] W^T with weights in 8 or 4 bits, by tensor cores.
 *
 * x is quantised as MODEL.md, section 10 says. One instruction multiplies 16 outputs by 8 rows over
 * 32 inputs, which is one block of both, and gives its integers exactly; they are scaled by both
 * scales of the block and added up in f32.
 *
 * The order of a sum depends on the depth alone. Depth is walked in steps of 128 inputs, and its
 * steps are cut into segments. A segment is one chain of multiply-adds over its blocks that begins
 * with zero, and the segments are added in their order. Two kernels keep it:
 *
 *	few rows	where reading the weights is all that takes time: a warp for each segment, so that
 *				enough is being read at once; every weight goes from memory to the one lane that
 *				needs it. The warps' sums are added in shared memory.
 *	tiles		where many rows share the weights: a block's tiles of weights and x are copied to
 *				shared memory while the warps multiply those before them, one segment after another.
 */
#include "mma.h"
#include "product.h"

/* Outputs and rows of one instruction. */
#define MMA_OUTPUTS 16
#define MMA_ROWS 8

#define STEP_BLOCKS (QUANTIZED_STEP / QUANTIZED_BLOCK)
/* Vectors of 16 bytes of a step of a row of x. */
#define X_VECTORS (QUANTIZED_STEP / 16)
/* A segment has two steps at least. */
#define MOST_SEGMENTS 8

#define INFINITE_MAGNITUDE 0x7F800000u

/*
 * The bits of 1.5 * 2^23. An integer below 2^22 in magnitude that is added to them gives the bits
 * of that number plus the integer: so sums that begin here are floats when one subtraction more is
 * done, which costs less than the conversion.
 */
#define FLOAT_START 0x4B400000
#define FLOAT_START_VALUE 12582912.0f

typedef struct QuantizedProduct
{
	const uint4 *x;				/* codes [R, steps, X_VECTORS] */
	const uint4 *x_scales;		/* f32 of the blocks of a step [R, steps] */
	const uint4 *weights;		/* codes [N, steps, Format::vectors] */
	const uint2 *scales;		/* bf16 of the blocks of a step [N, steps] */
	int			steps;
	int			segments;
	ProductTarget target;
} QuantizedProduct;

/* ---- formats: the operands of an instruction in vectors of codes, see weight.cu ---- */

/* One of a vector's words; i is a constant where this is used. */
__device__ static inline uint32_t
word_of(uint4 vector, int i)
{
	return i == 0 ? vector.x : i == 1 ? vector.y : i == 2 ? vector.z : vector.w;
}

struct FormatQ8
{
	static const int vectors = 8;	/* of a step of an output */
	static const int lane_vectors = 2;	/* of those, a lane's */

	/* A lane's eight inputs of a block of its vectors. */
	__device__ static void
	unpack(const uint4 *codes, int block, uint32_t *first, uint32_t *second)
	{
		*first = word_of(codes[block / 2], block % 2 * 2);
		*second = word_of(codes[block / 2], block % 2 * 2 + 1);
	}
};

/* Codes have 8 added to them; what is multiplied is 16 times the code, see quantize_kernel. */
struct FormatQ4
{
	static const int vectors = 4;
	static const int lane_vectors = 1;

	__device__ static void
	unpack(const uint4 *codes, int block, uint32_t *first, uint32_t *second)
	{
		uint32_t	word = word_of(codes[0], block) ^ 0x88888888u;

		*first = word << 4 & 0xF0F0F0F0u;
		*second = word & 0xF0F0F0F0u;
	}
};

/* ---- what a lane needs of a step ---- */

/* Of TILES * 16 outputs those that lane / 4 is the number of, and those 8 behind it. */
template <typename Format, int TILES>
struct WeightStep
{
	uint4		codes[TILES][2][Format::lane_vectors];
	uint2		scales[TILES][2];	/* bf16 of four blocks */
};

/* Of eight rows: codes of row lane / 4, scales of rows lane % 4 * 2 and the next. */
typedef struct XStep
{
	uint4		codes[2];
	uint4		scales[2];		/* f32 of four blocks */
} XStep;

/* The scale of one block; block is a constant where these are used. */
__device__ static inline float
block_scale(uint2 scales, int block)
{
	uint32_t	pair = block < 2 ? scales.x : scales.y;

	return block % 2 == 0 ? low_bf16(pair) : high_bf16(pair);
}

__device__ static inline float
block_scale(uint4 scales, int block)
{
	return __uint_as_float(word_of(scales, block));
}

/* sum + the integer that was summed up from FLOAT_START * scale. */
__device__ static inline float
add_scaled(float sum, int32_t bits, float scale)
{
	return fmaf(__uint_as_float(static_cast<uint32_t>(bits)) - FLOAT_START_VALUE, scale, sum);
}

/* Add a step to sums [TILES][4] of eight rows, laid out as the instruction gives them. */
template <typename Format, int TILES>
__device__ static inline void
add_step(float (*sums)[4], const WeightStep<Format, TILES> *w, const XStep *x)
{
	const int32_t start[4] = {FLOAT_START, FLOAT_START, FLOAT_START, FLOAT_START};

#pragma unroll
	for (int b = 0; b < STEP_BLOCKS; b++)
	{
		const uint32_t x_codes[2] = {word_of(x->codes[b / 2], b % 2 * 2),
									 word_of(x->codes[b / 2], b % 2 * 2 + 1)};
		float		x_scales[2] = {block_scale(x->scales[0], b), block_scale(x->scales[1], b)};

#pragma unroll
		for (int tile = 0; tile < TILES; tile++)
		{
			uint32_t	codes[4];
			int32_t		products[4];

			Format::unpack(w->codes[tile][0], b, &codes[0], &codes[2]);
			Format::unpack(w->codes[tile][1], b, &codes[1], &codes[3]);
			mma_s8(products, codes, x_codes, start);
#pragma unroll
			for (int i = 0; i < 4; i++)
				sums[tile][i] = add_scaled(sums[tile][i], products[i],
										   block_scale(w->scales[tile][i / 2], b) *
											   x_scales[i % 2]);
		}
	}
}

/* The step that a segment begins with. */
__device__ static inline int
segment_start(const QuantizedProduct *p, int segment)
{
	return segment * p->steps / p->segments;
}

/* ---- few rows ---- */

/* Rows and outputs past the last are those of the last. */
template <typename Format, int TILES>
__device__ static inline void
read_weights(const QuantizedProduct *p, int first_output, int step, WeightStep<Format, TILES> *w)
{
	int			lane = static_cast<int>(threadIdx.x % WARP);

#pragma unroll
	for (int i = 0; i < TILES * 2; i++)
	{
		int			output = min(first_output + i * MMA_OUTPUTS / 2 + lane / 4,
								 p->target.y.columns - 1);
		int64_t		place = static_cast<int64_t>(output) * p->steps + step;

#pragma unroll
		for (int v = 0; v < Format::lane_vectors; v++)
			w->codes[i / 2][i % 2][v] = p->weights[place * Format::vectors + v * 4 + lane % 4];
		w->scales[i / 2][i % 2] = p->scales[place];
	}
}

__device__ static inline void
read_x(const QuantizedProduct *p, int first_row, int step, XStep *x)
{
	int			lane = static_cast<int>(threadIdx.x % WARP);
	int			last = p->target.y.rows - 1;
	int64_t		row = min(first_row + lane / 4, last);

#pragma unroll
	for (int i = 0; i < 2; i++)
	{
		int64_t		scale_row = min(first_row + lane % 4 * 2 + i, last);

		x->codes[i] = p->x[(row * p->steps + step) * X_VECTORS + i * 4 + lane % 4];
		x->scales[i] = p->x_scales[scale_row * p->steps + step];
	}
}

/*
 * Sums of eight rows of each segment's warp, [row][output]; STRIDE such that four rows of eight
 * outputs lie in different banks.
 */
template <int TILES>
struct SegmentSums
{
	static const int outputs = TILES * MMA_OUTPUTS;
	static const int stride = outputs + 4;
	static const int size = MMA_ROWS * stride;
};

template <int TILES>
__device__ static inline void
put_sums(float *part, const float (*sums)[4])
{
	int			lane = static_cast<int>(threadIdx.x % WARP);

#pragma unroll
	for (int tile = 0; tile < TILES; tile++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			part[(lane % 4 * 2 + i % 2) * SegmentSums<TILES>::stride + tile * MMA_OUTPUTS +
				 i / 2 * 8 + lane / 4] = sums[tile][i];
}

/* Add up the segments of eight rows and store them. */
template <int TILES>
__device__ static inline void
store_segments(const QuantizedProduct *p, const float *parts, int first_row, int first_output)
{
	typedef SegmentSums<TILES> Sums;

	for (int i = static_cast<int>(threadIdx.x); i < MMA_ROWS * Sums::outputs;
		 i += static_cast<int>(blockDim.x))
	{
		int			row = i / Sums::outputs;
		int			output = i % Sums::outputs;
		float		sum = 0;

		for (int segment = 0; segment < p->segments; segment++)
			sum += parts[segment * Sums::size + row * Sums::stride + output];
		store_sum(&p->target, first_row + row, first_output + output, sum);
	}
}

/*
 * A block has TILES * 16 outputs and at most ROW_TILES * 8 rows, and a warp for each segment. While
 * there are registers for it, the next weights are on their way when those before are multiplied.
 */
template <typename Format, int TILES, int ROW_TILES>
__global__ static void __launch_bounds__(MOST_SEGMENTS * WARP, ROW_TILES > 2 ? 1 : 2)
few_rows_kernel(QuantizedProduct p)
{
	SHARED(float, parts, MOST_SEGMENTS * SegmentSums<TILES>::size);
	int			segment = static_cast<int>(threadIdx.x / WARP);
	int			first_output = static_cast<int>(blockIdx.x) * TILES * MMA_OUTPUTS;
	int			end = segment_start(&p, segment + 1);
	const bool	ahead = ROW_TILES <= 4;
	float		sums[ROW_TILES][TILES][4] = {};
	WeightStep<Format, TILES> w;
	WeightStep<Format, TILES> next;

	if (ahead)
		read_weights(&p, first_output, segment_start(&p, segment), &next);
	for (int step = segment_start(&p, segment); step < end; step++)
	{
		if (ahead)
			w = next;
		if (!ahead || step + 1 < end)
			read_weights(&p, first_output, step + ahead, ahead ? &next : &w);
#pragma unroll
		for (int tile = 0; tile < ROW_TILES; tile++)
		{
			XStep		x;

			read_x(&p, tile * MMA_ROWS, step, &x);
			add_step(sums[tile], &w, &x);
		}
	}
#pragma unroll
	for (int tile = 0; tile < ROW_TILES; tile++)
	{
		put_sums<TILES>(parts + segment * SegmentSums<TILES>::size, sums[tile]);
		__syncthreads();
		store_segments<TILES>(&p, parts, tile * MMA_ROWS, first_output);
		__syncthreads();
	}
}

template <typename Format, int TILES, int ROW_TILES>
static void
launch_few_rows(CudaBackend *cuda, const QuantizedProduct *p)
{
	LAUNCH((few_rows_kernel<Format, TILES, ROW_TILES>),
		   blocks_for(p->target.y.columns, TILES * MMA_OUTPUTS), p->segments * WARP, 0,
		   cuda->stream, *p);
}

/* ---- tiles ---- */

/* Tiles of 16 outputs in a warp's part of a block's tile. */
#define WARP_TILES 2

/*
 * The tile of a block of threads, of which a warp has 32 outputs and 64 rows in the largest and 32
 * rows in the others, and the shared memory for one step of it, in vectors of 16 bytes. The largest
 * does enough in a step to hide the time of a copy, the others copy two steps ahead.
 */
template <typename Format, int OUTPUTS, int ROWS>
struct Tile
{
	static const int outputs = OUTPUTS;
	static const int rows = ROWS;
	static const int row_tiles = ROWS == 128 ? 8 : 4;	/* a warp's, of 8 rows */
	static const int row_warps = ROWS / (row_tiles * MMA_ROWS);
	static const int warps = row_warps * OUTPUTS / (WARP_TILES * MMA_OUTPUTS);
	static const int threads = warps * WARP;
	static const int stages = ROWS == 128 ? 2 : 3;
	/* where the parts of a step begin */
	static const int x = 0;
	static const int x_scales = rows * X_VECTORS;
	static const int weights = x_scales + rows;
	static const int scales = weights + outputs * Format::vectors;
	static const int size = scales + outputs / 2;
	static const int bytes = stages * size * 16;
};

/*
 * Where a vector of a row lies in shared memory. Eight lanes read four vectors each of two rows at
 * once: where a row is all banks, the halves of every other row change places.
 */
template <int VECTORS>
__device__ static inline int
shared_place(int row, int vector)
{
	return row * VECTORS + (VECTORS == 8 ? vector ^ row % 2 * 4 : vector);
}

/* Start to copy a step of the block's tile; what lies past the last row and output is the last. */
template <typename Format, typename T>
__device__ static inline void
copy_step(const QuantizedProduct *p, int first_output, int first_row, int step, uint4 *stage)
{
	uint2	   *scales = reinterpret_cast<uint2 *>(stage + T::scales);
	int			thread = static_cast<int>(threadIdx.x);

#pragma unroll
	for (int i = thread; i < T::rows * X_VECTORS; i += T::threads)
	{
		int64_t		row = min(first_row + i / X_VECTORS, p->target.y.rows - 1);

		copy_async(stage, T::x + shared_place<X_VECTORS>(i / X_VECTORS, i % X_VECTORS),
				   &p->x[(row * p->steps + step) * X_VECTORS + i % X_VECTORS], true);
	}
#pragma unroll
	for (int i = thread; i < T::outputs * Format::vectors; i += T::threads)
	{
		int64_t		output = min(first_output + i / Format::vectors, p->target.y.columns - 1);

		copy_async(stage, T::weights + shared_place<Format::vectors>(i / Format::vectors,
																	 i % Format::vectors),
				   &p->weights[(output * p->steps + step) * Format::vectors + i % Format::vectors],
				   true);
	}
	for (int i = thread; i < T::rows; i += T::threads)
	{
		int64_t		row = min(first_row + i, p->target.y.rows - 1);

		copy_async(stage, T::x_scales + i, &p->x_scales[row * p->steps + step], true);
	}
	for (int i = thread; i < T::outputs; i += T::threads)
	{
		int64_t		output = min(first_output + i, p->target.y.columns - 1);

		copy_async(scales + i, &p->scales[output * p->steps + step]);
	}
}

/* Add a step that lies in shared memory; the warp's first output and row in the tile. */
template <typename Format, typename T>
__device__ static inline void
add_shared_step(float (*sums)[WARP_TILES][4], const uint4 *stage, int first_output, int first_row)
{
	int			lane = static_cast<int>(threadIdx.x % WARP);
	const uint2 *scales = reinterpret_cast<const uint2 *>(stage + T::scales);
	WeightStep<Format, WARP_TILES> w;

#pragma unroll
	for (int i = 0; i < WARP_TILES * 2; i++)
	{
		int			output = first_output + i * MMA_OUTPUTS / 2 + lane / 4;

#pragma unroll
		for (int v = 0; v < Format::lane_vectors; v++)
			w.codes[i / 2][i % 2][v] =
				stage[T::weights + shared_place<Format::vectors>(output, v * 4 + lane % 4)];
		w.scales[i / 2][i % 2] = scales[output];
	}
#pragma unroll
	for (int tile = 0; tile < T::row_tiles; tile++)
	{
		int			row = first_row + tile * MMA_ROWS;
		XStep		x;

#pragma unroll
		for (int i = 0; i < 2; i++)
		{
			x.codes[i] = stage[T::x + shared_place<X_VECTORS>(row + lane / 4, i * 4 + lane % 4)];
			x.scales[i] = stage[T::x_scales + row + lane % 4 * 2 + i];
		}
		add_step(sums[tile], &w, &x);
	}
}

/* Add what a segment summed up to the totals, and begin anew. */
template <typename T>
__device__ static inline void
end_segment(float (*totals)[WARP_TILES][4], float (*sums)[WARP_TILES][4])
{
#pragma unroll
	for (int row = 0; row < T::row_tiles; row++)
#pragma unroll
		for (int tile = 0; tile < WARP_TILES; tile++)
#pragma unroll
			for (int i = 0; i < 4; i++)
			{
				totals[row][tile][i] += sums[row][tile][i];
				sums[row][tile][i] = 0;
			}
}

template <typename T>
__device__ static inline void
store_tile(const ProductTarget *target, const float (*sums)[WARP_TILES][4], int first_output,
		   int first_row)
{
	int			lane = static_cast<int>(threadIdx.x % WARP);

#pragma unroll
	for (int row = 0; row < T::row_tiles; row++)
#pragma unroll
		for (int tile = 0; tile < WARP_TILES; tile++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				store_sum(target, first_row + row * MMA_ROWS + lane % 4 * 2 + i % 2,
						  first_output + tile * MMA_OUTPUTS + i / 2 * 8 + lane / 4,
						  sums[row][tile][i]);
}

/* Eight warps have a multiprocessor's registers. */
template <typename Format, int OUTPUTS, int ROWS>
__global__ static void
__launch_bounds__(Tile<Format, OUTPUTS, ROWS>::threads, 8 / Tile<Format, OUTPUTS, ROWS>::warps)
tile_kernel(QuantizedProduct p)
{
	typedef Tile<Format, OUTPUTS, ROWS> T;
	DYNAMIC_SHARED(uint4, memory);
	int			warp = static_cast<int>(threadIdx.x / WARP);
	int			warp_output = warp / T::row_warps * WARP_TILES * MMA_OUTPUTS;
	int			warp_row = warp % T::row_warps * T::row_tiles * MMA_ROWS;
	int			first_output = static_cast<int>(blockIdx.y) * T::outputs;
	int			first_row = static_cast<int>(blockIdx.x) * T::rows;
	int			segment = 0;
	float		totals[T::row_tiles][WARP_TILES][4] = {};
	float		sums[T::row_tiles][WARP_TILES][4] = {};

	for (int step = 0; step < T::stages - 1; step++)
	{
		if (step < p.steps)
			copy_step<Format, T>(&p, first_output, first_row, step, memory + step * T::size);
		close_copies();
	}
	for (int step = 0; step < p.steps; step++)
	{
		int			ahead = step + T::stages - 1;

		wait_for_groups<T::stages - 2>();
		/* also nobody reads the step before any more, whose place is written now */
		__syncthreads();
		if (ahead < p.steps)
			copy_step<Format, T>(&p, first_output, first_row, ahead,
								 memory + ahead % T::stages * T::size);
		close_copies();
		add_shared_step<Format, T>(sums, memory + step % T::stages * T::size, warp_output,
								   warp_row);
		if (step + 1 == segment_start(&p, segment + 1))
		{
			end_segment<T>(totals, sums);
			segment++;
		}
	}
	store_tile<T>(&p.target, totals, first_output + warp_output, first_row + warp_row);
}

template <typename Format, int OUTPUTS, int ROWS>
static void
launch_tiles(CudaBackend *cuda, const QuantizedProduct *p)
{
	typedef Tile<Format, OUTPUTS, ROWS> T;

	LAUNCH((tile_kernel<Format, OUTPUTS, ROWS>),
		   dim3(blocks_for(p->target.y.rows, T::rows), blocks_for(p->target.y.columns, T::outputs)),
		   T::threads, T::bytes, cuda->stream, *p);
}

/* Let a kernel have more shared memory than kernels have unasked. */
template <typename Format, int OUTPUTS, int ROWS>
static bool
allow_tiles(CudaBackend *cuda)
{
	void		(*kernel) (QuantizedProduct) = tile_kernel<Format, OUTPUTS, ROWS>;

	return cuda_note(cuda, cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
												cudaFuncAttributeMaxDynamicSharedMemorySize,
												Tile<Format, OUTPUTS, ROWS>::bytes));
}

/* ---- the product ---- */

/* Whether so large tiles are enough to keep three of four multiprocessors at work. */
static bool
are_enough_tiles(const CudaBackend *cuda, const QuantizedProduct *p, int outputs, int rows)
{
	int64_t		tiles = static_cast<int64_t>(blocks_for(p->target.y.columns, outputs)) *
		blocks_for(p->target.y.rows, rows);

	return 4 * tiles >= 3 * cuda->multiprocessors;
}

/* Every kernel gives the same bits. */
template <typename Format>
static void
launch_product(CudaBackend *cuda, const QuantizedProduct *p)
{
	int			rows = p->target.y.rows;

	if (rows <= MMA_ROWS)
		launch_few_rows<Format, 1, 1>(cuda, p);
	else if (rows <= 2 * MMA_ROWS)
		launch_few_rows<Format, 1, 2>(cuda, p);
	else if (rows > 64 && are_enough_tiles(cuda, p, 128, 128))
		launch_tiles<Format, 128, 128>(cuda, p);
	else if (are_enough_tiles(cuda, p, 128, 64))
		launch_tiles<Format, 128, 64>(cuda, p);
	else if (rows <= 4 * MMA_ROWS)
		launch_few_rows<Format, 2, 4>(cuda, p);
	else if (rows <= 8 * MMA_ROWS)
		launch_few_rows<Format, 2, 8>(cuda, p);
	else
		launch_tiles<Format, 64, 64>(cuda, p);
}

bool
cuda_quantized_begin(CudaBackend *cuda, Status *status)
{
	return (allow_tiles<FormatQ8, 128, 128>(cuda) && allow_tiles<FormatQ8, 128, 64>(cuda) &&
			allow_tiles<FormatQ8, 64, 64>(cuda) && allow_tiles<FormatQ4, 128, 128>(cuda) &&
			allow_tiles<FormatQ4, 128, 64>(cuda) && allow_tiles<FormatQ4, 64, 64>(cuda)) ||
		status_set(status, STATUS_NOT_SUPPORTED,
				   "CUDA device %d has too little shared memory for products: %s", cuda->device,
				   cudaGetErrorString(cuda->error));
}

/* x in 8 bits, a warp for a block of 32 numbers. A scale is that of a code times code_unit. */
__global__ static void
quantize_kernel(int8_t *to, float *scales, int64_t stride, Rows x, float code_unit)
{
	int			lane = static_cast<int>(threadIdx.x % WARP);
	int			block = static_cast<int>(blockIdx.x * STEP_BLOCKS + threadIdx.x / WARP);
	int64_t		row = blockIdx.y;
	int			column = block * QUANTIZED_BLOCK + lane;
	float		value = column < x.columns ? x.row(row)[column] : 0.0f;
	uint32_t	magnitude = __float_as_uint(value) & 0x7FFFFFFFu;
	uint32_t	largest = magnitude;
	int			code = 0;

	for (int distance = WARP / 2; distance > 0; distance /= 2)
		largest = max(largest, __shfl_xor_sync(FULL_MASK, largest, distance));
	if (largest >= QUANTIZED_SMALLEST && largest < INFINITE_MAGNITUDE)
		code = static_cast<int>(rintf(value * (127.0f / __uint_as_float(largest))));
	to[row * stride + place_of_q8(column)] = static_cast<int8_t>(code);
	if (lane == 0)
		scales[row * (stride / QUANTIZED_BLOCK) + block] =
			largest < QUANTIZED_SMALLEST ? 0.0f
			: largest >= INFINITE_MAGNITUDE ? __uint_as_float(0x7FC00000u)
			: __uint_as_float(largest) / 127.0f / code_unit;
}

/* Quantise x into scratch memory: codes, and the scales behind them. False: no memory. */
static bool
quantize_rows(CudaBackend *cuda, Tensor x, int64_t stride, float code_unit, QuantizedProduct *p)
{
	size_t		codes = static_cast<size_t>(x.rows * stride);
	int8_t	   *to = static_cast<int8_t *>(cuda_scratch(
		cuda, &cuda->rounded, codes + codes / QUANTIZED_BLOCK * sizeof(float)));
	float	   *scales = reinterpret_cast<float *>(to + codes);

	if (to == nullptr)
		return false;
	/* a block of threads takes a step */
	LAUNCH(quantize_kernel, dim3(static_cast<unsigned>(p->steps), static_cast<unsigned>(x.rows)),
		   STEP_BLOCKS * WARP, 0, cuda->stream, to, scales, stride, cuda_rows(x), code_unit);
	p->x = reinterpret_cast<const uint4 *>(to);
	p->x_scales = reinterpret_cast<const uint4 *>(scales);
	return true;
}

void
cuda_quantized_product(CudaBackend *cuda, Tensor y, Tensor x, const Weight *weight,
					   const Epilogue *epilogue)
{
	const CudaWeight *on_device = static_cast<const CudaWeight *>(weight->data);
	QuantizedProduct p = {};

	p.weights = static_cast<const uint4 *>(on_device->values);
	p.scales = reinterpret_cast<const uint2 *>(on_device->scales);
	p.steps = static_cast<int>(on_device->stride / QUANTIZED_STEP);
	p.segments = p.steps < 4 ? 1 : p.steps / 2 < MOST_SEGMENTS ? p.steps / 2 : MOST_SEGMENTS;
	p.target = product_target(y, epilogue);
	if (!quantize_rows(cuda, x, on_device->stride, weight->type == TYPE_Q4 ? 16.0f : 1.0f, &p))
		return;
	if (weight->type == TYPE_Q8)
		launch_product<FormatQ8>(cuda, &p);
	else
		launch_product<FormatQ4>(cuda, &p);
}
