/*
 * rows.cu - operations that take each element on its own: look-ups, copies, activations, rotary
 * positions, and pictures cut into patches; with the gradients of those that have one.
 */
#include "cuda_backend.h"

#include <cuda_fp16.h>

/* ---- look-ups and copies ---- */

/* The i-th number, or i itself where there is no list. */
__device__ static inline int64_t
listed(const int32_t *list, int64_t i)
{
	return list == nullptr ? i : list[i];
}

void
cuda_embed(Backend *backend, Tensor y, Tensor table, Tensor ids)
{
	Rows		to = cuda_rows(y);
	const void *values = table.data;
	DataType	type = table.type;
	int64_t		stride = table.stride;
	const int32_t *index = static_cast<const int32_t *>(ids.data);

	for_each_element(cuda_use(backend), y.rows, y.columns,
					 [=] __device__ (int64_t row, int column) {
		int64_t		at = index[row] * stride + column;

		to.row(row)[column] = type == TYPE_F32 ? static_cast<const float *>(values)[at]
			: type == TYPE_F16 ? __half2float(static_cast<const __half *>(values)[at])
			: bf16_value(static_cast<const uint16_t *>(values)[at]);
	});
}

/* to's row = from's row, for so many; to_index and from_index say which, NULL: the same number. */
static void
copy_rows(Backend *backend, Tensor to, const int32_t *to_index, Tensor from,
		  const int32_t *from_index, int count)
{
	Rows		y = cuda_rows(to);
	Rows		x = cuda_rows(from);

	for_each_element(cuda_use(backend), count, to.columns,
					 [=] __device__ (int64_t row, int column) {
		y.row(listed(to_index, row))[column] = x.row(listed(from_index, row))[column];
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

void
cuda_scale(Backend *backend, Tensor x, float factor)
{
	Rows		rows = cuda_rows(x);

	for_each_element(cuda_use(backend), x.rows, x.columns,
					 [=] __device__ (int64_t row, int column) {
		float	   *at = rows.row(row) + column;

		/* 0 clears whatever x held */
		*at = factor == 0.0f ? 0.0f : factor * *at;
	});
}

/* ---- activations ---- */

void
cuda_activate(Backend *backend, Tensor x, Activation activation)
{
	Rows		rows = cuda_rows(x);
	int			which = static_cast<int>(activation);

	for_each_element(cuda_use(backend), x.rows, x.columns,
					 [=] __device__ (int64_t row, int column) {
		float	   *at = rows.row(row) + column;

		*at = activate_value(which, *at);
	});
}

/* d/dx x Phi(x) = Phi(x) + x phi(x); 0.3989.. is (2 pi)^-1/2. */
void
cuda_activate_backward(Backend *backend, Tensor dx, Tensor x, Activation activation)
{
	Rows		gradient = cuda_rows(dx);
	Rows		rows = cuda_rows(x);

	if (activation != ACTIVATION_GELU)
		return;
	for_each_element(cuda_use(backend), x.rows, x.columns,
					 [=] __device__ (int64_t row, int column) {
		float		value = rows.row(row)[column];

		gradient.row(row)[column] *= normal_distribution(value) +
			value * 0.398942280401432678f * expf(-0.5f * value * value);
	});
}

/* y = silu(gate) * up, gate and up side by side. */
void
cuda_swiglu(Backend *backend, Tensor y, Tensor gate_up)
{
	Rows		to = cuda_rows(y);
	Rows		from = cuda_rows(gate_up);

	for_each_element(cuda_use(backend), y.rows, y.columns,
					 [=] __device__ (int64_t row, int column) {
		const float *gate = from.row(row) + column;

		to.row(row)[column] = gate[0] * sigmoid(gate[0]) * gate[to.columns];
	});
}

/* y = g s(g) u: dy/du = g s, dy/dg = u s (1 + g (1 - s)). */
void
cuda_swiglu_backward(Backend *backend, Tensor d_gate_up, Tensor dy, Tensor gate_up)
{
	Rows		to = cuda_rows(d_gate_up);
	Rows		gradients = cuda_rows(dy);
	Rows		from = cuda_rows(gate_up);

	for_each_element(cuda_use(backend), dy.rows, dy.columns,
					 [=] __device__ (int64_t row, int column) {
		const float *gate = from.row(row) + column;
		float	   *d_gate = to.row(row) + column;
		float		gradient = gradients.row(row)[column];
		float		s = sigmoid(gate[0]);

		d_gate[gradients.columns] = gradient * gate[0] * s;
		d_gate[0] = gradient * gate[gradients.columns] * s * fmaf(gate[0], 1.0f - s, 1.0f);
	});
}

/* ---- rotary positions ---- */

/* A thread turns one pair; pairs of all heads side by side. direction -1 turns back. */
static void
rotate(Backend *backend, Tensor x, int heads, Tensor positions, Tensor table, float direction)
{
	Rows		rows = cuda_rows(x);
	Rows		angles_of = cuda_rows(table);
	const int32_t *index = static_cast<const int32_t *>(positions.data);
	int			half = table.columns / 2;

	for_each_element(cuda_use(backend), x.rows, heads * half,
					 [=] __device__ (int64_t row, int pair) {
		const float *angles = angles_of.row(index[row]);
		float	   *head = rows.row(row) + pair / half * 2 * half;
		int			i = pair % half;
		float		a = head[i];
		float		b = head[half + i];
		float		sine = direction * angles[half + i];

		head[i] = a * angles[i] - b * sine;
		head[half + i] = b * angles[i] + a * sine;
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
void
cuda_vision_tokens(Backend *backend, Tensor y, Tensor patches, Tensor class_token,
				   Tensor positions)
{
	Rows		to = cuda_rows(y);
	Rows		embedded = cuda_rows(patches);
	Rows		places = cuda_rows(positions);
	const float *first = static_cast<const float *>(class_token.data);

	for_each_element(cuda_use(backend), y.rows, y.columns,
					 [=] __device__ (int64_t row, int column) {
		int64_t		image = row / places.rows;
		int64_t		place = row % places.rows;
		const float *from = place == 0 ? first : embedded.row(row - image - 1);

		to.row(row)[column] = from[column] + places.row(place)[column];
	});
}
