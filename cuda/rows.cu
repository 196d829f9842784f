/*
 * rows.cu - operations that take each row on its own: look-ups, copies, norms, activations, rotary
 * positions, and pictures cut into patches.
 */
#include "cuda_backend.h"

#include <cuda_fp16.h>

/* ---- elements: a thread each, a row of blocks for each row ---- */

/* y's rows = the table's rows at ids, as f32. */
__global__ static void
embed_kernel(Rows y, const void *table, int type, int64_t stride, const int32_t *ids)
{
	int			column = own_column();
	int64_t		row = blockIdx.y;
	int64_t		at;

	if (column >= y.columns)
		return;
	at = ids[row] * stride + column;
	y.row(row)[column] = type == TYPE_F32 ? static_cast<const float *>(table)[at]
		: type == TYPE_F16 ? __half2float(static_cast<const __half *>(table)[at])
		: bf16_value(static_cast<const uint16_t *>(table)[at]);
}

void
cuda_embed(Backend *backend, Tensor y, Tensor table, Tensor ids)
{
	CudaBackend *cuda = cuda_use(backend);
	const int32_t *index = static_cast<const int32_t *>(ids.data);

	for_row_ranges(y.rows, [&](int first, int rows) {
		LAUNCH(embed_kernel, element_grid(y.columns, rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(tensor_row_range(y, first, rows)),
			   static_cast<const void *>(table.data), static_cast<int>(table.type),
			   static_cast<int64_t>(table.stride), index + first);
	});
}

/* to's row = from's row; from_index and to_index say which, NULL: the same number. */
__global__ static void
copy_kernel(Rows to, const int32_t *to_index, Rows from, const int32_t *from_index)
{
	int			column = own_column();
	int64_t		row = blockIdx.y;

	if (column < to.columns)
		to.row(to_index == nullptr ? row : to_index[row])[column] =
			from.row(from_index == nullptr ? row : from_index[row])[column];
}

static void
copy_rows(Backend *backend, Tensor to, const int32_t *to_index, Tensor from,
		  const int32_t *from_index, int count)
{
	CudaBackend *cuda = cuda_use(backend);

	for_row_ranges(count, [&](int first, int rows) {
		Tensor		to_part = to_index == nullptr ? tensor_row_range(to, first, rows) : to;
		Tensor		from_part = from_index == nullptr ? tensor_row_range(from, first, rows) : from;

		LAUNCH(copy_kernel, element_grid(to.columns, rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(to_part), to_index == nullptr ? nullptr : to_index + first,
			   cuda_rows(from_part), from_index == nullptr ? nullptr : from_index + first);
	});
}

void
cuda_gather(Backend *backend, Tensor y, Tensor x, Tensor index)
{
	copy_rows(backend, y, nullptr, x, static_cast<const int32_t *>(index.data), y.rows);
}

void
cuda_scatter(Backend *backend, Tensor y, Tensor x, Tensor index)
{
	copy_rows(backend, y, static_cast<const int32_t *>(index.data), x, nullptr, x.rows);
}

void
cuda_copy(Backend *backend, Tensor y, Tensor x)
{
	copy_rows(backend, y, nullptr, x, nullptr, x.rows);
}

/* x = factor * x; factor 0 clears whatever x held. */
__global__ static void
scale_kernel(Rows x, float factor)
{
	int			column = own_column();
	float	   *at = x.row(blockIdx.y) + column;

	if (column < x.columns)
		*at = factor == 0.0f ? 0.0f : factor * *at;
}

void
cuda_scale(Backend *backend, Tensor x, float factor)
{
	CudaBackend *cuda = cuda_use(backend);

	for_row_ranges(x.rows, [&](int first, int rows) {
		LAUNCH(scale_kernel, element_grid(x.columns, rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(tensor_row_range(x, first, rows)), factor);
	});
}

__global__ static void
activate_kernel(Rows x, int activation)
{
	int			column = own_column();
	float	   *at = x.row(blockIdx.y) + column;

	if (column < x.columns)
		*at = activate_value(activation, *at);
}

void
cuda_activate(Backend *backend, Tensor x, Activation activation)
{
	CudaBackend *cuda = cuda_use(backend);

	for_row_ranges(x.rows, [&](int first, int rows) {
		LAUNCH(activate_kernel, element_grid(x.columns, rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(tensor_row_range(x, first, rows)), static_cast<int>(activation));
	});
}

/* y = silu(gate) * up, gate and up side by side. */
__global__ static void
swiglu_kernel(Rows y, Rows gate_up)
{
	int			column = own_column();
	const float *gate = gate_up.row(blockIdx.y) + column;

	if (column < y.columns)
		y.row(blockIdx.y)[column] = gate[0] * sigmoid(gate[0]) * gate[y.columns];
}

void
cuda_swiglu(Backend *backend, Tensor y, Tensor gate_up)
{
	CudaBackend *cuda = cuda_use(backend);

	for_row_ranges(y.rows, [&](int first, int rows) {
		LAUNCH(swiglu_kernel, element_grid(y.columns, rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(tensor_row_range(y, first, rows)),
			   cuda_rows(tensor_row_range(gate_up, first, rows)));
	});
}

/* A thread turns one pair; pairs of all heads side by side. direction -1 turns back. */
__global__ static void
rotary_kernel(Rows x, int heads, const int32_t *positions, Rows table, float direction)
{
	int			half = table.columns / 2;
	int			pair = own_column();
	int			i = pair % half;
	int64_t		row = blockIdx.y;
	const float *angles = table.row(positions[row]);
	float	   *head = x.row(row) + pair / half * 2 * half;
	float		a;
	float		b;
	float		sine;

	if (pair >= heads * half)
		return;
	a = head[i];
	b = head[half + i];
	sine = direction * angles[half + i];
	head[i] = a * angles[i] - b * sine;
	head[half + i] = b * angles[i] + a * sine;
}

static void
rotate(Backend *backend, Tensor x, int heads, Tensor positions, Tensor table, float direction)
{
	CudaBackend *cuda = cuda_use(backend);
	const int32_t *index = static_cast<const int32_t *>(positions.data);

	for_row_ranges(x.rows, [&](int first, int rows) {
		LAUNCH(rotary_kernel, element_grid(heads * (table.columns / 2), rows), ROW_THREADS, 0,
			   cuda->stream, cuda_rows(tensor_row_range(x, first, rows)), heads, index + first,
			   cuda_rows(table), direction);
	});
}

void
cuda_rotary(Backend *backend, Tensor x, int heads, Tensor positions, Tensor table)
{
	rotate(backend, x, heads, positions, table, 1.0f);
}

void
cuda_rotary_backward(Backend *backend, Tensor dx, int heads, Tensor positions, Tensor table)
{
	rotate(backend, dx, heads, positions, table, -1.0f);
}

/* ---- norms: a block for each row ---- */

__global__ static void __launch_bounds__(ROW_THREADS)
layer_norm_kernel(Rows y, Rows x, const float *weight, const float *bias, float epsilon)
{
	SHARED(float, scratch, ROW_WARPS);
	const float *row = x.row(blockIdx.x);
	float	   *to = y.row(blockIdx.x);
	float		sum = 0;
	float		squares = 0;
	float		mean;
	float		scale;

	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
		sum += row[i];
	mean = block_sum(sum, scratch) / static_cast<float>(x.columns);
	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
		squares = fmaf(row[i] - mean, row[i] - mean, squares);
	scale = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(x.columns) + epsilon);
	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
		to[i] = (row[i] - mean) * scale * weight[i] + bias[i];
}

void
cuda_layer_norm(Backend *backend, Tensor y, Tensor x, Tensor weight, Tensor bias, float epsilon)
{
	CudaBackend *cuda = cuda_use(backend);

	if (x.rows > 0)
		LAUNCH(layer_norm_kernel, static_cast<unsigned>(x.rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(y), cuda_rows(x), static_cast<const float *>(weight.data),
			   static_cast<const float *>(bias.data), epsilon);
}

__global__ static void __launch_bounds__(ROW_THREADS)
rms_norm_kernel(Rows y, Rows x, const float *weight, float epsilon)
{
	SHARED(float, scratch, ROW_WARPS);
	const float *row = x.row(blockIdx.x);
	float	   *to = y.row(blockIdx.x);
	float		squares = 0;
	float		scale;

	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
		squares = fmaf(row[i], row[i], squares);
	scale = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(x.columns) + epsilon);
	for (int i = static_cast<int>(threadIdx.x); i < x.columns; i += ROW_THREADS)
		to[i] = row[i] * scale * weight[i];
}

void
cuda_rms_norm(Backend *backend, Tensor y, Tensor x, Tensor weight, float epsilon)
{
	CudaBackend *cuda = cuda_use(backend);

	if (x.rows > 0)
		LAUNCH(rms_norm_kernel, static_cast<unsigned>(x.rows), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(y), cuda_rows(x), static_cast<const float *>(weight.data), epsilon);
}

/* ---- pictures ---- */

typedef struct PatchArguments
{
	Rows		y;
	const void *pixels;
	int64_t		pixel_stride;	/* from picture to picture */
	bool		bytes;			/* u8 [S, S, 3], else f32 [3, S, S] */
	int			image_size;
	int			patch_size;
	float		mean[3];
	float		deviation[3];
} PatchArguments;

/* One of three; an index that the compiler does not know would put them all into local memory. */
__device__ static inline float
of_channel(const float *values, int channel)
{
	return channel == 0 ? values[0] : channel == 1 ? values[1] : values[2];
}

/* A block is a patch, its threads walk over [3, P, P]. */
__global__ static void
patch_kernel(PatchArguments p)
{
	int			across = p.image_size / p.patch_size;
	int			area = p.patch_size * p.patch_size;
	int			patch = static_cast<int>(blockIdx.x) % (across * across);
	int64_t		image = blockIdx.x / static_cast<unsigned>(across * across);
	float	   *y = p.y.row(blockIdx.x);

	for (int i = static_cast<int>(threadIdx.x); i < 3 * area; i += ROW_THREADS)
	{
		int			channel = i / area;
		int			row = patch / across * p.patch_size + i % area / p.patch_size;
		int			column = patch % across * p.patch_size + i % p.patch_size;
		int64_t		place = static_cast<int64_t>(row) * p.image_size + column;

		if (p.bytes)
		{
			const uint8_t *pixels = static_cast<const uint8_t *>(p.pixels) + image * p.pixel_stride;

			y[i] = (static_cast<float>(pixels[place * 3 + channel]) / 255.0f -
					of_channel(p.mean, channel)) / of_channel(p.deviation, channel);
		}
		else
			y[i] = (static_cast<const float *>(p.pixels) + image * p.pixel_stride)
				[static_cast<int64_t>(channel) * p.image_size * p.image_size + place];
	}
}

void
cuda_patches(Backend *backend, Tensor y, Tensor pixels, int image_size, int patch_size,
			 const float mean[3], const float deviation[3])
{
	CudaBackend *cuda = cuda_use(backend);
	PatchArguments p = {cuda_rows(y), pixels.data, pixels.stride, pixels.type == TYPE_U8,
						image_size, patch_size, {mean[0], mean[1], mean[2]},
						{deviation[0], deviation[1], deviation[2]}};

	if (y.rows > 0)
		LAUNCH(patch_kernel, static_cast<unsigned>(y.rows), ROW_THREADS, 0, cuda->stream, p);
}

/* y = class token or patch, plus position. */
__global__ static void
vision_tokens_kernel(Rows y, Rows patches, const float *class_token, Rows positions)
{
	int			column = own_column();
	int			tokens = positions.rows;
	int			place = static_cast<int>(blockIdx.y) % tokens;
	int			image = static_cast<int>(blockIdx.y) / tokens;
	const float *from = place == 0 ? class_token
		: patches.row(static_cast<int64_t>(image) * (tokens - 1) + place - 1);

	if (column < y.columns)
		y.row(blockIdx.y)[column] = from[column] + positions.row(place)[column];
}

void
cuda_vision_tokens(Backend *backend, Tensor y, Tensor patches, Tensor class_token,
				   Tensor positions)
{
	CudaBackend *cuda = cuda_use(backend);
	int			tokens = positions.rows;
	int			most = MOST_GRID_ROWS / tokens;	/* pictures of a launch */

	for (int first = 0; first < y.rows / tokens; first += most)
	{
		int			images = y.rows / tokens - first < most ? y.rows / tokens - first : most;

		LAUNCH(vision_tokens_kernel, element_grid(y.columns, images * tokens), ROW_THREADS, 0,
			   cuda->stream, cuda_rows(tensor_row_range(y, first * tokens, images * tokens)),
			   cuda_rows(tensor_row_range(patches, first * (tokens - 1), images * (tokens - 1))),
			   static_cast<const float *>(class_token.data), cuda_rows(positions));
	}
}
