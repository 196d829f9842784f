/*
 * attention.cu - attention over pages in f32, for one new token as for a prompt, over its own
 * sequence or over the latents of pictures; attention_mma.cu has those in bf16.
 *
 * A block is one head of up to TILE_ROWS rows that see keys of the same list. It walks the keys
 * KEY_BLOCK at a time with a running softmax: scores, a thread a key; weights; values, a thread an
 * element. Blocks of keys begin at multiples of KEY_BLOCK of the sequence, and each row's sums go
 * in the order of its own keys: what a row computes does not depend on its company.
 */
#include "attention.h"

#define TILE_ROWS 8
#define KEY_BLOCK ROW_THREADS
/* Elements of a vector of keys. */
#define VECTOR (VECTOR_BYTES / static_cast<int>(sizeof(float)))

/* The elements of a vector of keys. */
__device__ static inline void
unpack(uint4 word, float (&k)[VECTOR])
{
	k[0] = __uint_as_float(word.x);
	k[1] = __uint_as_float(word.y);
	k[2] = __uint_as_float(word.z);
	k[3] = __uint_as_float(word.w);
}

/* Which keys the rows of a tile see. */
typedef struct TileSpans
{
	int			rows;
	int			low[TILE_ROWS];
	int			high[TILE_ROWS];
	float		scale[TILE_ROWS];
	int			first;			/* that any of them sees */
	int			end;
} TileSpans;

/* Rows [row, ..) with the same list, up to a multiple of TILE_ROWS. */
__device__ static inline TileSpans
read_spans(const AttentionArguments *p, int row)
{
	const int32_t *spans = row_span(p, row);
	int			list = spans[SPAN_LIST];
	TileSpans	tile = {};

#pragma unroll
	for (int r = 0; r < TILE_ROWS; r++)
	{
		bool		here = tile.rows == r && row + r < p->q.rows &&
			(r == 0 || (row + r) % TILE_ROWS != 0) &&
			spans[r * ATTENTION_SPAN_FIELDS + SPAN_LIST] == list;
		int			count = here ? spans[r * ATTENTION_SPAN_FIELDS + SPAN_COUNT] : 0;

		tile.low[r] = here ? spans[r * ATTENTION_SPAN_FIELDS + SPAN_FIRST] : 0;
		tile.high[r] = tile.low[r] + count;
		tile.scale[r] = here && spans[r * ATTENTION_SPAN_FIELDS + SPAN_UNIFORM] ? 0.0f : p->scale;
		tile.rows += here;
		if (count > 0)
		{
			tile.first = tile.end == 0 ? tile.low[r] : min(tile.first, tile.low[r]);
			tile.end = max(tile.end, tile.high[r]);
		}
	}
	return tile;
}

/* score[r] = q[r] k for the thread's key. */
__device__ static inline void
score_key(const Pages<float> &pages, const int32_t *list, int kv_head, int key, const float *q,
		  float (&score)[TILE_ROWS])
{
	const uint4 *keys = reinterpret_cast<const uint4 *>(pages.keys(list[key / KV_PAGE_KEYS],
																   kv_head)) + key % KV_PAGE_KEYS;

	for (int v = 0; v < pages.vectors; v++)
	{
		float		k[VECTOR];

		unpack(keys[v * KV_PAGE_KEYS], k);
#pragma unroll
		for (int r = 0; r < TILE_ROWS; r++)
#pragma unroll
			for (int i = 0; i < VECTOR; i++)
				score[r] = fmaf(q[r * MOST_HEAD_SIZE + v * VECTOR + i], k[i], score[r]);
	}
}

/* acc[r][part] += weights[r] times the values of keys [from, to) of the block from `begin` on. */
template <int PARTS>
__device__ static inline void
add_values(const Pages<float> &pages, const int32_t *list, int kv_head, int begin, int from,
		   int to, const float *weights, float (&acc)[TILE_ROWS][PARTS])
{
	for (int key = from; key < to; key++)
	{
		const float *values = pages.values(list[key / KV_PAGE_KEYS], kv_head) +
			key % KV_PAGE_KEYS * pages.vectors * VECTOR;

#pragma unroll
		for (int part = 0; part < PARTS; part++)
		{
			int			d = part * ROW_THREADS + static_cast<int>(threadIdx.x);
			float		value = d < pages.head_size ? values[d] : 0.0f;

#pragma unroll
			for (int r = 0; r < TILE_ROWS; r++)
			{
				float		weight = weights[r * KEY_BLOCK + key - begin];

				/* what a row does not see is not multiplied, not even by zero */
				if (weight != 0.0f)
					acc[r][part] = fmaf(weight, value, acc[r][part]);
			}
		}
	}
}

/* PARTS: elements of D for each thread. */
template <int PARTS>
__global__ static void __launch_bounds__(ROW_THREADS)
attention_kernel(AttentionArguments p, Pages<float> pages)
{
	SHARED(float, q, TILE_ROWS * MOST_HEAD_SIZE);
	SHARED(float, weights, TILE_ROWS * KEY_BLOCK);
	SHARED(float, scratch, TILE_ROWS * ROW_WARPS);
	int			row = static_cast<int>(blockIdx.x);
	int			head = static_cast<int>(blockIdx.y);
	int			thread = static_cast<int>(threadIdx.x);
	int			size = pages.head_size;
	const int32_t *list = p.lists + row_span(&p, row)[SPAN_LIST];
	TileSpans	tile;
	float		largest[TILE_ROWS];
	float		sum[TILE_ROWS] = {};	/* of the weights, of this thread's keys */
	float		acc[TILE_ROWS][PARTS] = {};

	/* a row that follows another of its tile is done by the block of the first */
	if (!begins_tile(&p, row, TILE_ROWS))
		return;
	tile = read_spans(&p, row);
#pragma unroll
	for (int r = 0; r < TILE_ROWS; r++)
	{
		largest[r] = -FLT_MAX;
		for (int d = thread; d < pages.vectors * VECTOR; d += ROW_THREADS)
			q[r * MOST_HEAD_SIZE + d] = r < tile.rows && d < size
				? p.q.row(row + r)[head * size + d] : 0.0f;
	}
	__syncthreads();
	for (int begin = tile.first / KEY_BLOCK * KEY_BLOCK; begin < tile.end; begin += KEY_BLOCK)
	{
		int			key = begin + thread;
		float		score[TILE_ROWS] = {};
		float		shrink[TILE_ROWS];

		if (key >= tile.first && key < tile.end)
			score_key(pages, list, head / p.group, key, q, score);
#pragma unroll
		for (int r = 0; r < TILE_ROWS; r++)
		{
			float		here;

			score[r] = key >= tile.low[r] && key < tile.high[r] ? score[r] * tile.scale[r]
				: -INFINITY;
			here = warp_largest(score[r]);
			if (thread % WARP == 0)
				scratch[r * ROW_WARPS + thread / WARP] = here;
		}
		__syncthreads();
#pragma unroll
		for (int r = 0; r < TILE_ROWS; r++)
		{
			float		before = largest[r];
			float		weight;

			for (int i = 0; i < ROW_WARPS; i++)
				largest[r] = fmaxf(largest[r], scratch[r * ROW_WARPS + i]);
			shrink[r] = expf(before - largest[r]);
			weight = expf(score[r] - largest[r]);
			sum[r] = sum[r] * shrink[r] + weight;
			weights[r * KEY_BLOCK + thread] = weight;
#pragma unroll
			for (int part = 0; part < PARTS; part++)
				acc[r][part] *= shrink[r];
		}
		__syncthreads();
		add_values(pages, list, head / p.group, begin, max(begin, tile.first),
				   min(begin + KEY_BLOCK, tile.end), weights, acc);
		__syncthreads();
	}
#pragma unroll
	for (int r = 0; r < TILE_ROWS; r++)
	{
		float		here = warp_sum(sum[r]);

		if (thread % WARP == 0)
			scratch[r * ROW_WARPS + thread / WARP] = here;
	}
	__syncthreads();
#pragma unroll
	for (int r = 0; r < TILE_ROWS; r++)
	{
		float		total = 0;

		for (int i = 0; i < ROW_WARPS; i++)
			total += scratch[r * ROW_WARPS + i];
#pragma unroll
		for (int part = 0; part < PARTS; part++)
		{
			int			d = part * ROW_THREADS + thread;

			if (r < tile.rows && d < size)
				p.y.row(row + r)[head * size + d] = total == 0.0f ? 0.0f : acc[r][part] / total;
		}
	}
}

static void
attend_f32(CudaBackend *cuda, const AttentionArguments *p, Pages<float> pages)
{
	dim3		grid(static_cast<unsigned>(p->q.rows), static_cast<unsigned>(p->heads));

	if (pages.head_size <= ROW_THREADS)
		LAUNCH(attention_kernel<1>, grid, ROW_THREADS, 0, cuda->stream, *p, pages);
	else
		LAUNCH(attention_kernel<2>, grid, ROW_THREADS, 0, cuda->stream, *p, pages);
}

void
cuda_attention(Backend *backend, Tensor y, Tensor q, const KvPool *pool, int layer,
			   const AttentionPlan *plan)
{
	CudaBackend *cuda = cuda_use(backend);
	AttentionArguments p = {cuda_rows(y), cuda_rows(q),
							static_cast<const int32_t *>(plan->page_lists.data),
							static_cast<const int32_t *>(plan->spans.data),
							plan->heads, plan->heads / pool->heads, plan->scale};

	if (q.rows == 0)
		return;
	if (pool->type == TYPE_BF16)
		cuda_attention_bf16(cuda, &p, pages_of<uint16_t>(pool, layer), plan->most_keys);
	else
		attend_f32(cuda, &p, pages_of<float>(pool, layer));
}
