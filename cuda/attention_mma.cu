/*
 * attention_mma.cu - attention over pages in bf16, on tensor cores: softmax(scale q k^T) v, a block
 * of keys at a time, with a running maximum and no matrix of scores (Dao et al., FlashAttention,
 * arXiv 2205.14135).
 *
 * A block of threads takes a tile: one head of up to 64 rows that follow one another and see keys
 * of the same list. Keys and values go to shared memory: values come while scores are computed, the
 * next keys while values are added. A warp has WARP_ROWS rows of the tile. Where the tile has no
 * more than that, which is decoding, all warps have those rows: each computes the scores of a part
 * of the keys, shows them to the others, and adds up a part of the columns.
 *
 * What a row computes does not depend on its company. Blocks of keys begin at multiples of their
 * size in the sequence; an element of scores is one chain of mma_bf16 over the head, one of the
 * result a chain over the keys, whichever warp has it and wherever the row lies in the tile. Keys
 * that a row does not see have weight zero there, and add nothing: what pages hold is finite
 * (kv_pages.cu). What no row of the tile sees is not looked at.
 */
#include "attention.h"
#include "mma.h"

#include <limits.h>

/* Rows that mma_bf16 takes. */
#define WARP_ROWS 16
/* Keys, and columns of values, of one mma_bf16; and its depth. */
#define MMA_COLUMNS 8
#define MMA_DEPTH 16
/* bf16 in 16 bytes. */
#define VECTOR 8
/* Steps with more rows hold prompts; a block then looks for the beginnings of tiles at so many. */
#define PROMPT_ROWS 256
#define ROWS_LOOKED_AT 8
/* Blocks that a multiprocessor has room for, at least: one computes while another waits. */
#define BLOCKS_AT_ONCE 2
/* Times scale * log2(e) it is still finite. */
#define LOWEST_SCORE (-FLT_MAX / 2)
#define LOG2_E 1.44269504088896341f

/* What follows from the size of heads, filled up with zeros to HEAD. */
template <int HEAD>
struct Blocks
{
	static const int keys = HEAD > 128 ? 32 : 64;
	/* of a tile; warps would have no room in registers for all columns of wide heads */
	static const int rows = HEAD > 128 ? WARP_ROWS : WARP_ROWS * ROW_WARPS;
	static const int vectors = HEAD / VECTOR;
	/* from key to key in shared memory; odd, so that eight keys lie in different banks */
	static const int stride = vectors + 1;
	/* of scores in shared memory, from row to row */
	static const int score_stride = keys + 8;
};

typedef struct Tile
{
	int			row;
	int			rows;
	int			first;			/* key that any row sees */
	int			end;
	const int32_t *list;
	int			head;
	int			kv_head;
} Tile;

/* Memory that a block shares. */
typedef struct Shared
{
	uint4	   *keys;			/* [keys, stride] */
	uint4	   *values;			/* [keys, stride] */
	float	   *scores;			/* [WARP_ROWS, score_stride] */
} Shared;

/* The two rows of a lane, lane / 4 and 8 more, and what all rows of its warp see. */
typedef struct LaneRows
{
	int			row[2];			/* -1: none */
	int			low[2];			/* keys that it sees */
	int			high[2];
	float		largest[2];		/* score so far, not yet scaled */
	float		sum[2];			/* of the weights so far, of this lane's keys */
	int			first;			/* key that any row of the warp sees */
	int			end;
	int			full_first;		/* that all see */
	int			full_end;
} LaneRows;

__device__ static inline int
warp_smallest(int value)
{
	for (int distance = WARP / 2; distance > 0; distance /= 2)
		value = min(value, __shfl_xor_sync(FULL_MASK, value, distance));
	return value;
}

__device__ static inline int
lane_of_warp(void)
{
	return static_cast<int>(threadIdx.x) % WARP;
}

/* The tile of at most so many rows that begins with a row; all threads read all of it. */
__device__ static inline Tile
read_tile(const AttentionArguments *p, int most, int row, int head)
{
	int			list = row_span(p, row)[SPAN_LIST];
	int			rows = min(most - row % most, p->q.rows - row);
	int			first = INT_MAX;
	int			end = 0;

	for (int r = lane_of_warp(); r < rows; r += WARP)
		if (row_span(p, row + r)[SPAN_LIST] != list)
			rows = min(rows, r);
	rows = warp_smallest(rows);
	for (int r = lane_of_warp(); r < rows; r += WARP)
	{
		const int32_t *span = row_span(p, row + r);

		if (span[SPAN_COUNT] > 0)
		{
			first = min(first, span[SPAN_FIRST]);
			end = max(end, span[SPAN_FIRST] + span[SPAN_COUNT]);
		}
	}
	return Tile{row, rows, warp_smallest(first), -warp_smallest(-end), p->lists + list, head,
				head / p->group};
}

/* The lane's rows of the 16 that begin at `place` of the tile. */
__device__ static inline LaneRows
read_rows(const AttentionArguments *p, const Tile &tile, int place)
{
	LaneRows	rows = {};
	int			first = INT_MAX;
	int			full_end = INT_MAX;

#pragma unroll
	for (int i = 0; i < 2; i++)
	{
		int			r = place + lane_of_warp() / 4 + 8 * i;

		rows.row[i] = -1;
		rows.largest[i] = LOWEST_SCORE;
		if (r < tile.rows)
		{
			const int32_t *span = row_span(p, tile.row + r);

			rows.row[i] = tile.row + r;
			rows.low[i] = span[SPAN_FIRST];
			rows.high[i] = rows.low[i] + span[SPAN_COUNT];
			rows.full_first = max(rows.full_first, rows.low[i]);
			full_end = min(full_end, rows.high[i]);
			if (span[SPAN_COUNT] > 0)
			{
				first = min(first, rows.low[i]);
				rows.end = max(rows.end, rows.high[i]);
			}
		}
	}
	rows.first = warp_smallest(first);
	rows.end = -warp_smallest(-rows.end);
	rows.full_first = -warp_smallest(-rows.full_first);
	rows.full_end = warp_smallest(full_end);
	return rows;
}

/* The queries of the lane's rows as operands a; of a row whose scores count as equal: zeros. */
template <int HEAD>
__device__ static inline void
read_queries(const AttentionArguments *p, const Tile &tile, const LaneRows &rows, int size,
			 uint32_t (&q)[HEAD / MMA_DEPTH][4])
{
	bool		uniform[2];

#pragma unroll
	for (int i = 0; i < 2; i++)
		uniform[i] = rows.row[i] < 0 || row_span(p, rows.row[i])[SPAN_UNIFORM] != 0;
#pragma unroll
	for (int step = 0; step < HEAD / MMA_DEPTH; step++)
#pragma unroll
		for (int word = 0; word < 4; word++)
		{
			int			i = word % 2;
			int			d = step * MMA_DEPTH + word / 2 * 8 + lane_of_warp() % 4 * 2;
			uint32_t	half[2];

#pragma unroll
			for (int j = 0; j < 2; j++)
				half[j] = uniform[i] || d + j >= size ? 0
					: round_to_bf16(p->q.row(rows.row[i])[tile.head * size + d + j]);
			q[step][word] = half[0] | half[1] << 16;
		}
}

/* ---- blocks of keys ---- */

/* Whether any row of the tile may see a key. */
__device__ static inline bool
is_seen(const Tile &tile, int key)
{
	return key >= tile.first && key < tile.end;
}

/* Ask for the keys from begin on; lanes are keys, as in the pages. What no row sees is zero. */
template <int HEAD>
__device__ static inline void
ask_for_keys(const Pages<uint16_t> &pages, const Tile &tile, int begin, uint4 *to)
{
	const int	keys = Blocks<HEAD>::keys;
	int			thread = static_cast<int>(threadIdx.x);
	int			place = thread % keys;
	int			key = begin + place;
	int			page = is_seen(tile, key) ? tile.list[key / KV_PAGE_KEYS] : 0;
	const uint4 *from = reinterpret_cast<const uint4 *>(pages.keys(page, tile.kv_head)) +
		key % KV_PAGE_KEYS;

#pragma unroll
	for (int i = 0; i < keys * Blocks<HEAD>::vectors / ROW_THREADS; i++)
	{
		int			vector = i * (ROW_THREADS / keys) + thread / keys;

		copy_async(to + place * Blocks<HEAD>::stride + thread / keys, i * (ROW_THREADS / keys),
				   from + vector * KV_PAGE_KEYS,
				   is_seen(tile, key) && vector < pages.vectors);
	}
}

/* Ask for their values; lanes are vectors of a value. */
template <int HEAD>
__device__ static inline void
ask_for_values(const Pages<uint16_t> &pages, const Tile &tile, int begin, uint4 *to)
{
	const int	vectors = Blocks<HEAD>::vectors;
	int			thread = static_cast<int>(threadIdx.x);
	int			vector = thread % vectors;

#pragma unroll
	for (int i = 0; i < Blocks<HEAD>::keys * vectors / ROW_THREADS; i++)
	{
		int			place = i * (ROW_THREADS / vectors) + thread / vectors;
		int			key = begin + place;
		int			page = is_seen(tile, key) ? tile.list[key / KV_PAGE_KEYS] : 0;
		const uint4 *from = reinterpret_cast<const uint4 *>(pages.values(page, tile.kv_head)) +
			key % KV_PAGE_KEYS * pages.vectors + vector;

		copy_async(to + thread / vectors * Blocks<HEAD>::stride + vector,
				   i * (ROW_THREADS / vectors) * Blocks<HEAD>::stride, from,
				   is_seen(tile, key) && vector < pages.vectors);
	}
}

/* s = q k^T for the first 8 TILES keys of those in shared memory. */
template <int HEAD, int TILES>
__device__ static inline void
score_keys(const uint32_t (&q)[HEAD / MMA_DEPTH][4], const uint4 *keys, float (&s)[TILES][4])
{
	/* a lane's row of the four matrices of two steps: eight keys, 8 elements each */
	const uint4 *row = keys + lane_of_warp() % 8 * Blocks<HEAD>::stride + lane_of_warp() / 8;

#pragma unroll
	for (int n = 0; n < TILES; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			s[n][i] = 0.0f;
#pragma unroll
	for (int step = 0; step < HEAD / MMA_DEPTH; step += 2)
#pragma unroll
		for (int n = 0; n < TILES; n++)
		{
			uint32_t	k[4];

			load_matrices(row, n * MMA_COLUMNS * Blocks<HEAD>::stride + step * 2, k);
			mma_bf16(s[n], q[step], k[0], k[1]);
			mma_bf16(s[n], q[step + 1], k[2], k[3]);
		}
}

/* Take out the keys that the lane's rows do not see. */
template <int TILES>
__device__ static inline void
mask_scores(const LaneRows &rows, int begin, float (&s)[TILES][4])
{
#pragma unroll
	for (int n = 0; n < TILES; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
		{
			int			key = begin + n * MMA_COLUMNS + lane_of_warp() % 4 * 2 + i % 2;

			if (key < rows.low[i / 2] || key >= rows.high[i / 2])
				s[n][i] = -INFINITY;
		}
}

/*
 * Scores become weights, exp(scale (score - largest so far)), as powers of two with
 * factor = scale log2(e); shrink is what earlier sums are worth then: exactly 1 where the largest
 * is as before.
 */
template <int TILES>
__device__ static inline void
soften(float factor, LaneRows *rows, float (&s)[TILES][4], float (&shrink)[2])
{
#pragma unroll
	for (int i = 0; i < 2; i++)
	{
		float		largest = rows->largest[i];
		float		base;
		float		sum = 0.0f;

#pragma unroll
		for (int n = 0; n < TILES; n++)
			largest = fmaxf(largest, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
		/* the four lanes that share the row */
		largest = fmaxf(largest, __shfl_xor_sync(FULL_MASK, largest, 1));
		largest = fmaxf(largest, __shfl_xor_sync(FULL_MASK, largest, 2));
		shrink[i] = power_of_two((rows->largest[i] - largest) * factor);
		base = largest * factor;
#pragma unroll
		for (int n = 0; n < TILES; n++)
#pragma unroll
			for (int j = 2 * i; j < 2 * i + 2; j++)
			{
				s[n][j] = power_of_two(fmaf(s[n][j], factor, -base));
				sum += s[n][j];
			}
		rows->largest[i] = largest;
		rows->sum[i] = fmaf(rows->sum[i], shrink[i], sum);
	}
}

/*
 * acc = shrink acc + weights v, for the first 8 COLUMNS elements of the values in shared memory.
 * Weights come as mma_bf16 leaves c; two neighbours of those are an a.
 */
template <int HEAD, int TILES, int COLUMNS>
__device__ static inline void
add_values(const float (&weights)[TILES][4], const float (&shrink)[2], const uint4 *values,
		   float (&acc)[COLUMNS][4])
{
	/* a lane's row of the four matrices: 16 keys, two times 8 elements */
	const uint4 *row = values + lane_of_warp() % 16 * Blocks<HEAD>::stride + lane_of_warp() / 16;

#pragma unroll
	for (int n = 0; n < COLUMNS; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			acc[n][i] *= shrink[i / 2];
#pragma unroll
	for (int tile = 0; tile < TILES; tile += 2)
	{
		uint32_t	p[4];

#pragma unroll
		for (int word = 0; word < 4; word++)
			p[word] = pack_bf16(weights[tile + word / 2][word % 2 * 2],
								weights[tile + word / 2][word % 2 * 2 + 1]);
#pragma unroll
		for (int n = 0; n < COLUMNS; n += 2)
		{
			uint32_t	v[4];

			load_matrices_transposed(row, tile * MMA_COLUMNS * Blocks<HEAD>::stride + n, v);
			mma_bf16(acc[n], p, v[0], v[1]);
			mma_bf16(acc[n + 1], p, v[2], v[3]);
		}
	}
}

/* Scores of a lane's rows to shared memory or, with `give` false, from there. */
template <int HEAD, int TILES>
__device__ static inline void
exchange_scores(float *scores, bool give, float (&s)[TILES][4])
{
#pragma unroll
	for (int n = 0; n < TILES; n++)
#pragma unroll
		for (int i = 0; i < 2; i++)
		{
			float2	   *two = reinterpret_cast<float2 *>(
				scores + (lane_of_warp() / 4 + 8 * i) * Blocks<HEAD>::score_stride +
				n * MMA_COLUMNS + lane_of_warp() % 4 * 2);

			if (give)
				*two = make_float2(s[n][2 * i], s[n][2 * i + 1]);
			else
			{
				s[n][2 * i] = two->x;
				s[n][2 * i + 1] = two->y;
			}
		}
}

/* Divide by the sums of the weights; columns from `column` on. */
template <int COLUMNS>
__device__ static inline void
store_rows(const AttentionArguments *p, const Tile &tile, const LaneRows &rows, int size,
		   int column, const float (&acc)[COLUMNS][4])
{
#pragma unroll
	for (int i = 0; i < 2; i++)
	{
		float		sum = rows.sum[i];
		float		inverse;

		sum += __shfl_xor_sync(FULL_MASK, sum, 1);
		sum += __shfl_xor_sync(FULL_MASK, sum, 2);
		inverse = sum == 0.0f ? 0.0f : 1.0f / sum;	/* nothing seen: zero */
#pragma unroll
		for (int n = 0; n < COLUMNS; n++)
#pragma unroll
			for (int j = 0; j < 2; j++)
			{
				int			d = column + n * MMA_COLUMNS + lane_of_warp() % 4 * 2 + j;

				/* no negative zero, whose sign depends on what was added with weight zero */
				if (rows.row[i] >= 0 && d < size)
					p->y.row(rows.row[i])[tile.head * size + d] =
						fmaf(acc[n][2 * i + j], inverse, 0.0f);
			}
	}
}

/* SHARERS: warps that share their rows, 1 or all. */
template <int HEAD, int SHARERS>
__device__ static inline void
attend_tile(const AttentionArguments *p, const Pages<uint16_t> &pages, const Tile &tile,
			const Shared &shared)
{
	const int	keys = Blocks<HEAD>::keys;
	const int	tiles = keys / MMA_COLUMNS;
	const int	columns = HEAD / MMA_COLUMNS / SHARERS;
	int			warp = static_cast<int>(threadIdx.x) / WARP;
	int			share = SHARERS == 1 ? 0 : warp;
	LaneRows	rows = read_rows(p, tile, SHARERS == 1 ? warp * WARP_ROWS : 0);
	uint32_t	q[HEAD / MMA_DEPTH][4];
	float		acc[columns][4] = {};

	read_queries<HEAD>(p, tile, rows, pages.head_size, q);
	if (tile.end > 0)
		ask_for_keys<HEAD>(pages, tile, tile.first / keys * keys, shared.keys);
	for (int begin = tile.first / keys * keys; begin < tile.end; begin += keys)
	{
		bool		seen = begin < rows.end && begin + keys > rows.first;
		float		s[tiles][4];
		float		shrink[2];

		wait_for_copies();
		__syncthreads();
		ask_for_values<HEAD>(pages, tile, begin, shared.values);
		if (seen && SHARERS == 1)
			score_keys<HEAD>(q, shared.keys, s);
		else if (seen)
		{
			const int	own = keys / SHARERS;
			float		part[tiles / SHARERS][4];

			score_keys<HEAD>(q, shared.keys + share * own * Blocks<HEAD>::stride, part);
			exchange_scores<HEAD>(shared.scores + share * own, true, part);
		}
		wait_for_copies();
		__syncthreads();
		if (begin + keys < tile.end)
			ask_for_keys<HEAD>(pages, tile, begin + keys, shared.keys);
		if (!seen)
			continue;
		if (SHARERS > 1)
			exchange_scores<HEAD>(shared.scores, false, s);
		if (begin < rows.full_first || begin + keys > rows.full_end)
			mask_scores(rows, begin, s);
		soften(p->scale * LOG2_E, &rows, s, shrink);
		add_values<HEAD>(s, shrink, shared.values + share * columns, acc);
	}
	store_rows(p, tile, rows, pages.head_size, share * columns * MMA_COLUMNS, acc);
}

template <int HEAD>
__global__ static void __launch_bounds__(ROW_THREADS, BLOCKS_AT_ONCE)
attention_mma_kernel(AttentionArguments p, Pages<uint16_t> pages, int rows_looked_at)
{
	SHARED(uint4, keys, Blocks<HEAD>::keys * Blocks<HEAD>::stride);
	SHARED(uint4, values, Blocks<HEAD>::keys * Blocks<HEAD>::stride);
	SHARED(float2, scores, WARP_ROWS * Blocks<HEAD>::score_stride / 2);
	Shared		shared = {keys, values, reinterpret_cast<float *>(scores)};
	/* the last rows of a prompt see most keys, so they come first */
	int			first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * rows_looked_at;

	for (int row = first; row < min(first + rows_looked_at, p.q.rows); row++)
		if (begins_tile(&p, row, Blocks<HEAD>::rows))
		{
			Tile		tile = read_tile(&p, Blocks<HEAD>::rows, row, static_cast<int>(blockIdx.y));

			if (tile.rows <= WARP_ROWS)
				attend_tile<HEAD, ROW_WARPS>(&p, pages, tile, shared);
			else if constexpr (Blocks<HEAD>::rows > WARP_ROWS)
				attend_tile<HEAD, 1>(&p, pages, tile, shared);
		}
}

void
cuda_attention_bf16(CudaBackend *cuda, const AttentionArguments *p, Pages<uint16_t> pages)
{
	int			rows_looked_at = p->q.rows > PROMPT_ROWS ? ROWS_LOOKED_AT : 1;
	dim3		grid(blocks_for(p->q.rows, rows_looked_at), static_cast<unsigned>(p->heads));

	if (pages.head_size <= 64)
		LAUNCH(attention_mma_kernel<64>, grid, ROW_THREADS, 0, cuda->stream, *p, pages,
			   rows_looked_at);
	else if (pages.head_size <= 128)
		LAUNCH(attention_mma_kernel<128>, grid, ROW_THREADS, 0, cuda->stream, *p, pages,
			   rows_looked_at);
	else
		LAUNCH(attention_mma_kernel<256>, grid, ROW_THREADS, 0, cuda->stream, *p, pages,
			   rows_looked_at);
}
