/*
 * lora.cu - low-rank products of several adapters in one batch: y += scale * B (A x), where each
 * group of rows has its own A [r, K] and B [N, r].
 *
 * Two launches, however many groups there are: one for A x, a block for a tile of rows of one group
 * and some rows of A, and one for B (A x), a thread for an output of such a tile. Ranks may differ.
 * The groups are arguments of the kernels, so a record of a step (step_record.cu) holds them.
 *
 * An element of A x is a chain in each thread of a block, the tree over the lanes of a warp, and the
 * warps in their order; one of B (A x) is a chain along the rank. That is a function of the row and
 * its adapter, whatever the tile and the other groups.
 */
#include "cuda_backend.h"

#define TILE_ROWS 8
#define TILE_OUTPUTS 4

/* A group as the kernels take it. */
typedef struct Part
{
	const float *a;				/* [rank, a_stride] */
	const float *b;				/* [N, b_stride] */
	int			b_stride;
	int			rank;
	int			first_row;
	int			rows;
	int			first_tile;		/* of all groups' tiles of rows */
	float		scale;
} Part;

typedef struct LowRankArguments
{
	Rows		y;				/* [R, N] */
	Rows		x;				/* [R, K] */
	Rows		reduced;		/* [R, at least each b_stride] */
	int64_t		a_stride;
	bool		aligned;		/* x's rows are whole vectors of 16 bytes */
	int			count;
	Part		parts[LOW_RANK_GROUPS];
} LowRankArguments;

static_assert(sizeof(LowRankArguments) <= 4096, "what a kernel may be given by value");

/* The rows of a block. */
typedef struct RowTile
{
	const Part *part;
	int			first;
	int			rows;			/* at most TILE_ROWS */
} RowTile;

__device__ static inline RowTile
find_tile(const LowRankArguments *p, int tile)
{
	int			i = 0;
	RowTile		found;

	while (i + 1 < p->count && p->parts[i + 1].first_tile <= tile)
		i++;
	found.part = &p->parts[i];
	tile -= found.part->first_tile;
	found.first = found.part->first_row + tile * TILE_ROWS;
	found.rows = min(found.part->rows - tile * TILE_ROWS, TILE_ROWS);
	return found;
}

/* Four numbers of a row of x, zeros behind its columns. */
__device__ static inline float4
load_inputs(const LowRankArguments *p, int row, int vector)
{
	const float *x = p->x.row(row) + 4 * vector;
	int			left = p->x.columns - 4 * vector;

	if (p->aligned)
		return *reinterpret_cast<const float4 *>(x);
	return make_float4(x[0], left > 1 ? x[1] : 0.0f, left > 2 ? x[2] : 0.0f,
					   left > 3 ? x[3] : 0.0f);
}

__device__ static inline float
add_vector(float sum, float4 a, float4 b)
{
	return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/* reduced = A x, with zeros behind the rank up to whole vectors. */
__global__ static void __launch_bounds__(ROW_THREADS)
reduce_kernel(const __grid_constant__ LowRankArguments p)
{
	SHARED(float, of_warps, ROW_WARPS * WARP);
	RowTile		tile = find_tile(&p, static_cast<int>(blockIdx.x));
	int			first_output = static_cast<int>(blockIdx.y) * TILE_OUTPUTS;
	int			last_output = tile.part->rank - 1;
	float		sums[TILE_ROWS * TILE_OUTPUTS] = {};
	int			row = static_cast<int>(threadIdx.x) / TILE_OUTPUTS;
	int			output = first_output + static_cast<int>(threadIdx.x) % TILE_OUTPUTS;

	if (first_output > last_output)
		return;					/* the whole block */
	for (int v = static_cast<int>(threadIdx.x); v < p.a_stride / 4; v += ROW_THREADS)
	{
		float4		a[TILE_OUTPUTS];

#pragma unroll
		for (int o = 0; o < TILE_OUTPUTS; o++)
			a[o] = reinterpret_cast<const float4 *>(
				tile.part->a + min(first_output + o, last_output) * p.a_stride)[v];
#pragma unroll
		for (int r = 0; r < TILE_ROWS; r++)
			if (r < tile.rows)
			{
				float4		x = load_inputs(&p, tile.first + r, v);

#pragma unroll
				for (int o = 0; o < TILE_OUTPUTS; o++)
					sums[r * TILE_OUTPUTS + o] = add_vector(sums[r * TILE_OUTPUTS + o], a[o], x);
			}
	}
	halve_sums<WARP / 2>(sums);
	of_warps[threadIdx.x] = sums[0];
	__syncthreads();
	if (threadIdx.x >= WARP || row >= tile.rows)
		return;
	for (int warp = 1; warp < ROW_WARPS; warp++)
		sums[0] += of_warps[warp * WARP + threadIdx.x];
	p.reduced.row(tile.first + row)[output] = output <= last_output ? sums[0] : 0.0f;
}

/* y += scale * B reduced. */
__global__ static void __launch_bounds__(ROW_THREADS)
expand_kernel(const __grid_constant__ LowRankArguments p)
{
	RowTile		tile = find_tile(&p, static_cast<int>(blockIdx.x));
	int			column = static_cast<int>(blockIdx.y * ROW_THREADS + threadIdx.x);
	const float *b = tile.part->b + static_cast<int64_t>(column) * tile.part->b_stride;
	float		sums[TILE_ROWS] = {};

	if (column >= p.y.columns)
		return;
	for (int j = 0; j < tile.part->b_stride; j += 4)
	{
		float4		w = *reinterpret_cast<const float4 *>(b + j);

#pragma unroll
		for (int r = 0; r < TILE_ROWS; r++)
			if (r < tile.rows)
				sums[r] = add_vector(sums[r], w, *reinterpret_cast<const float4 *>(
					p.reduced.row(tile.first + r) + j));
	}
#pragma unroll
	for (int r = 0; r < TILE_ROWS; r++)
		if (r < tile.rows)
			p.y.row(tile.first + r)[column] += tile.part->scale * sums[r];
}

void
cuda_low_rank(Backend *backend, Tensor y, Tensor x, Tensor reduced, const LowRankGroup *groups,
			  int count)
{
	CudaBackend *cuda = cuda_use(backend);
	LowRankArguments p = {};
	unsigned	tiles = 0;
	int			largest_rank = 0;

	p.y = cuda_rows(y);
	p.x = cuda_rows(x);
	p.reduced = cuda_rows(reduced);
	p.a_stride = static_cast<const CudaWeight *>(groups[0].a->data)->stride;
	p.aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 4 == 0 &&
		x.columns % 4 == 0;
	p.count = count;
	for (int i = 0; i < count; i++)
	{
		const LowRankGroup *group = &groups[i];
		const CudaWeight *a = static_cast<const CudaWeight *>(group->a->data);
		const CudaWeight *b = static_cast<const CudaWeight *>(group->b->data);

		p.parts[i] = Part{static_cast<const float *>(a->values),
			static_cast<const float *>(b->values), static_cast<int>(b->stride), group->a->outputs,
			group->first, group->count, static_cast<int>(tiles), group->scale};
		tiles += blocks_for(group->count, TILE_ROWS);
		largest_rank = max(largest_rank, group->a->outputs);
	}
	LAUNCH(reduce_kernel, dim3(tiles, blocks_for(largest_rank, TILE_OUTPUTS)), ROW_THREADS, 0,
		   cuda->stream, p);
	LAUNCH(expand_kernel, dim3(tiles, blocks_for(y.columns, ROW_THREADS)), ROW_THREADS, 0,
		   cuda->stream, p);
}
