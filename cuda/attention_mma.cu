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
 * More than PIECE_KEYS keys are cut into pieces of so many, each of which has a block of its own for
 * each tile; a second kernel merges them in their order (Dao et al., Flash-Decoding, 2023). So a
 * single row with many keys fills the device too.
 *
 * What a row computes does not depend on its company. Blocks of keys, and pieces, begin at
 * multiples of their size in the sequence; an element of scores is one chain of mma_bf16 over the
 * head, one of the result a chain over the keys of each piece and then over the pieces, whichever
 * warp has it and wherever the row lies in the tile. Keys that a row does not see have weight zero
 * there, and add nothing: what pages hold is finite (kv_pages.cu). What no row of the tile sees is
 * not looked at.
 */
#include "attention.h"
#include "attention_tiles.h"

#include <limits.h>

/* Steps with more rows hold prompts; a block then looks for the beginnings of tiles at so many. */
#define PROMPT_ROWS 256
#define ROWS_LOOKED_AT 8
/* A multiple of all blocks of keys. */
#define PIECE_KEYS 512
/* For the sums of pieces, unless TILE_ROWS need more; further rows follow. */
#define PIECE_BYTES ((size_t) 64 << 20)

/* What follows from the size of heads, filled up with zeros to HEAD. */
template <int HEAD>
struct Blocks
{
	static const int keys = HEAD > 128 ? 32 : 64;
	/* of a tile; warps would have no room in registers for all columns of wide heads */
	static const int rows = HEAD > 128 ? WARP_ROWS : TILE_ROWS;
	static const int vectors = HeadRows<HEAD>::vectors;
	static const int stride = HeadRows<HEAD>::stride;
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

/* Where the sums of pieces go: the grid's third dimension. */
typedef struct Pieces
{
	int			count;			/* 0: keys are not cut, and sums are divided at once */
	float2	   *totals;			/* [count, R, heads]: largest score, sum of the weights */
	float	   *values;			/* [count, R, heads D]: sums of weights times values */
} Pieces;

/* Memory that a block shares. */
typedef struct Shared
{
	uint4	   *keys;			/* [keys, stride] */
	uint4	   *values;			/* [keys, stride] */
	float	   *scores;			/* [WARP_ROWS, score_stride] */
} Shared;

/* The two rows of a lane (lane_row), and what all rows of its warp see. */
typedef struct LaneRows
{
	int			low[2];			/* keys that it sees */
	int			high[2];
	float		largest[2];		/* score so far, not yet scaled */
	float		sum[2];			/* of the weights so far, of this lane's keys */
	int			end;			/* of the keys that any row of the warp sees */
	int			full_first;		/* that all see */
	int			full_end;
} LaneRows;

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

/* The lane's row i, 0 or 1, of the 16 that begin at `place` of the tile; -1: none. */
__device__ static inline int
lane_row(const Tile &tile, int place, int i)
{
	int			r = place + lane_row_of(2 * i);

	return r < tile.rows ? tile.row + r : -1;
}

/* The lane's rows of the 16 that begin at `place` of the tile. */
__device__ static inline LaneRows
read_rows(const AttentionArguments *p, const Tile &tile, int place)
{
	LaneRows	rows = {};
	int			full_end = INT_MAX;

#pragma unroll
	for (int i = 0; i < 2; i++)
	{
		int			row = lane_row(tile, place, i);

		rows.largest[i] = LOWEST_SCORE;
		if (row >= 0)
		{
			const int32_t *span = row_span(p, row);

			rows.low[i] = span[SPAN_FIRST];
			rows.high[i] = rows.low[i] + span[SPAN_COUNT];
			rows.full_first = max(rows.full_first, rows.low[i]);
			full_end = min(full_end, rows.high[i]);
			if (span[SPAN_COUNT] > 0)
				rows.end = max(rows.end, rows.high[i]);
		}
	}
	rows.end = -warp_smallest(-rows.end);
	rows.full_first = -warp_smallest(-rows.full_first);
	rows.full_end = warp_smallest(full_end);
	return rows;
}

/* The queries of the lane's rows as operands a; of a row whose scores count as equal: zeros. */
template <int HEAD>
__device__ static inline void
read_queries(const AttentionArguments *p, const Tile &tile, int place, int size,
			 uint32_t (&q)[HEAD / MMA_DEPTH][4])
{
	int			row[2];
	bool		uniform[2];

#pragma unroll
	for (int i = 0; i < 2; i++)
	{
		row[i] = lane_row(tile, place, i);
		uniform[i] = row[i] < 0 || row_span(p, row[i])[SPAN_UNIFORM] != 0;
	}
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
					: round_to_bf16(p->q.row(row[i])[tile.head * size + d + j]);
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
			int			key = begin + lane_column_of(n, i);

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
		largest = row_largest(largest);
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

/* acc = shrink acc + weights v, for the first 8 COLUMNS elements of the values in shared memory. */
template <int HEAD, int TILES, int COLUMNS>
__device__ static inline void
add_values(const float (&weights)[TILES][4], const float (&shrink)[2], const uint4 *values,
		   float (&acc)[COLUMNS][4])
{
#pragma unroll
	for (int n = 0; n < COLUMNS; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			acc[n][i] *= shrink[i / 2];
	add_weighted_rows<HEAD>(weights, values, acc);
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
				scores + lane_row_of(2 * i) * Blocks<HEAD>::score_stride + lane_column_of(n, 0));

			if (give)
				*two = make_float2(s[n][2 * i], s[n][2 * i + 1]);
			else
			{
				s[n][2 * i] = two->x;
				s[n][2 * i + 1] = two->y;
			}
		}
}

/* ---- results ---- */

/* Whether all keys of a row lie in the block's piece. */
__device__ static inline bool
is_whole(const Pieces &pieces, int low, int high)
{
	int			begin = static_cast<int>(blockIdx.z) * PIECE_KEYS;

	return pieces.count == 0 || (low < high && low >= begin && high <= begin + PIECE_KEYS);
}

/* 1 / the sum of the weights; nothing seen: zero. */
__device__ static inline float
inverse_sum(float sum)
{
	return sum == 0.0f ? 0.0f : 1.0f / sum;
}

/* The lane's rows to y or, if they have keys in other pieces, to those; columns from `column` on. */
template <int COLUMNS>
__device__ static inline void
store_rows(const AttentionArguments *p, const Pieces &pieces, const Tile &tile,
		   const LaneRows &rows, int place, int size, int column, const float (&acc)[COLUMNS][4])
{
	int			first = column + lane_column_of(0, 0);
	int			left = size - first;	/* columns */

#pragma unroll
	for (int i = 0; i < 2; i++)
	{
		bool		whole = is_whole(pieces, rows.low[i], rows.high[i]);
		int			row = lane_row(tile, place, i);
		int64_t		piece_row = static_cast<int64_t>(blockIdx.z) * p->q.rows + row;
		float	   *to = (whole ? p->y.row(row) : pieces.values + piece_row * p->q.columns) +
			tile.head * size + first;
		float		sum = row_sum(rows.sum[i]);
		float		factor;

		if (row < 0)
			continue;
		if (!whole && first == 0)
			pieces.totals[piece_row * p->heads + tile.head] = make_float2(rows.largest[i], sum);
		factor = whole ? inverse_sum(sum) : 1.0f;
#pragma unroll
		for (int n = 0; n < COLUMNS; n++)
#pragma unroll
			for (int j = 0; j < 2; j++)
				/* no negative zero, whose sign depends on what was added with weight zero */
				if (n * MMA_COLUMNS + j < left)
					to[n * MMA_COLUMNS + j] = fmaf(acc[n][2 * i + j], factor, 0.0f);
	}
}

/* SHARERS: warps that share their rows, 1 or all. */
template <int HEAD, int SHARERS>
__device__ static inline void
attend_tile(const AttentionArguments *p, const Pages<uint16_t> &pages, const Tile &tile,
			const Shared &shared, const Pieces &pieces)
{
	const int	keys = Blocks<HEAD>::keys;
	const int	tiles = keys / MMA_COLUMNS;
	const int	columns = HEAD / MMA_COLUMNS / SHARERS;
	int			warp = static_cast<int>(threadIdx.x) / WARP;
	int			share = SHARERS == 1 ? 0 : warp;
	int			place = SHARERS == 1 ? warp * WARP_ROWS : 0;
	LaneRows	rows = read_rows(p, tile, place);
	uint32_t	q[HEAD / MMA_DEPTH][4];
	float		acc[columns][4] = {};

	read_queries<HEAD>(p, tile, place, pages.head_size, q);
	if (tile.end > tile.first)
		ask_for_keys<HEAD>(pages, tile, tile.first / keys * keys, shared.keys);
	for (int begin = tile.first / keys * keys; begin < tile.end; begin += keys)
	{
		bool		seen = begin < rows.end;
		float		s[tiles][4];
		float		shrink[2];

		wait_for_copies();
		__syncthreads();
		ask_for_values<HEAD>(pages, tile, begin, shared.values);
		if (seen && SHARERS == 1)
			multiply_rows<HEAD>(q, shared.keys, s);
		else if (seen)
		{
			const int	own = keys / SHARERS;
			float		part[tiles / SHARERS][4];

			multiply_rows<HEAD>(q, shared.keys + share * own * Blocks<HEAD>::stride, part);
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
	store_rows(p, pieces, tile, rows, place, pages.head_size, share * columns * MMA_COLUMNS, acc);
}

template <int HEAD>
__global__ static void __launch_bounds__(ROW_THREADS, BLOCKS_AT_ONCE)
attention_mma_kernel(AttentionArguments p, Pages<uint16_t> pages, int rows_looked_at, Pieces pieces)
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

			if (pieces.count > 0)
			{
				tile.first = max(tile.first, static_cast<int>(blockIdx.z) * PIECE_KEYS);
				tile.end = min(tile.end, static_cast<int>(blockIdx.z + 1) * PIECE_KEYS);
				if (tile.first >= tile.end)
					continue;
			}
			if (tile.rows <= WARP_ROWS)
				attend_tile<HEAD, ROW_WARPS>(&p, pages, tile, shared, pieces);
			else if constexpr (Blocks<HEAD>::rows > WARP_ROWS)
				attend_tile<HEAD, 1>(&p, pages, tile, shared, pieces);
		}
}

/* y of the rows whose keys lie in several pieces, or that have none. */
static void
merge_pieces(CudaBackend *cuda, const AttentionArguments &p, const Pieces &pieces, int head_size)
{
	for_each_element(cuda, p.q.rows, p.q.columns, [=] __device__(int64_t row, int column) {
		const int32_t *span = row_span(&p, static_cast<int>(row));
		int			first = span[SPAN_FIRST] / PIECE_KEYS;
		int			last = (span[SPAN_FIRST] + span[SPAN_COUNT] - 1) / PIECE_KEYS;
		float		factor = p.scale * LOG2_E;
		float		largest = LOWEST_SCORE;
		float		sum = 0.0f;
		float		value = 0.0f;

		if (span[SPAN_COUNT] > 0 && first == last)
			return;
		for (int piece = first; span[SPAN_COUNT] > 0 && piece <= last; piece++)
		{
			int64_t		place = static_cast<int64_t>(piece) * p.q.rows + row;
			float2		total = pieces.totals[place * p.heads + column / head_size];
			float		both = fmaxf(largest, total.x);
			float		keep = power_of_two((largest - both) * factor);
			float		add = power_of_two((total.x - both) * factor);

			largest = both;
			sum = fmaf(sum, keep, total.y * add);
			value = fmaf(value, keep, pieces.values[place * p.q.columns + column] * add);
		}
		p.y.row(row)[column] = fmaf(value, inverse_sum(sum), 0.0f);
	});
}

/* Attend to as many rows as `pieces` has room for. */
template <int HEAD>
static void
attend(CudaBackend *cuda, const AttentionArguments &p, Pages<uint16_t> pages, const Pieces &pieces)
{
	int			rows_looked_at = p.q.rows > PROMPT_ROWS ? ROWS_LOOKED_AT : 1;
	dim3		grid(blocks_for(p.q.rows, rows_looked_at), static_cast<unsigned>(p.heads),
					 static_cast<unsigned>(pieces.count > 0 ? pieces.count : 1));

	LAUNCH(attention_mma_kernel<HEAD>, grid, ROW_THREADS, 0, cuda->stream, p, pages,
		   rows_looked_at, pieces);
	if (pieces.count > 0)
		merge_pieces(cuda, p, pieces, pages.head_size);
}

/* Some of the rows. */
static AttentionArguments
row_range(const AttentionArguments *p, int first, int rows)
{
	AttentionArguments part = *p;

	part.y.data = p->y.data + first * p->y.stride;
	part.y.rows = rows;
	part.q.data = p->q.data + first * p->q.stride;
	part.q.rows = rows;
	part.spans = p->spans + static_cast<int64_t>(first) * ATTENTION_SPAN_FIELDS;
	return part;
}

/* Room for the pieces of some rows, as many as fit into PIECE_BYTES; none if keys are not cut. */
static Pieces
take_pieces(CudaBackend *cuda, const AttentionArguments *p, int most_keys, int *rows)
{
	size_t		count = blocks_for(most_keys, PIECE_KEYS);
	size_t		totals = count * static_cast<size_t>(p->heads) * sizeof(float2);
	size_t		values = count * static_cast<size_t>(p->q.columns) * sizeof(float);
	int			room = static_cast<int>(PIECE_BYTES / (totals + values + 1));
	char	   *data;

	*rows = p->q.rows;
	if (count < 2)
		return Pieces();
	room = room < TILE_ROWS ? TILE_ROWS : room / TILE_ROWS * TILE_ROWS;
	*rows = *rows < room ? *rows : room;
	data = static_cast<char *>(cuda_scratch(cuda, &cuda->pieces, static_cast<size_t>(*rows) *
											(totals + values)));
	return Pieces{static_cast<int>(count), reinterpret_cast<float2 *>(data),
				  reinterpret_cast<float *>(data + static_cast<size_t>(*rows) * totals)};
}

void
cuda_attention_bf16(CudaBackend *cuda, const AttentionArguments *p, Pages<uint16_t> pages,
					int most_keys)
{
	int			at_once;
	Pieces		pieces = take_pieces(cuda, p, most_keys, &at_once);

	if (pieces.count > 0 && pieces.totals == nullptr)	/* no memory, which is remembered */
		return;
	for (int first = 0; first < p->q.rows; first += at_once)
	{
		int			rows = p->q.rows - first < at_once ? p->q.rows - first : at_once;

		if (pages.head_size <= 64)
			attend<64>(cuda, row_range(p, first, rows), pages, pieces);
		else if (pages.head_size <= 128)
			attend<128>(cuda, row_range(p, first, rows), pages, pieces);
		else
			attend<256>(cuda, row_range(p, first, rows), pages, pieces);
	}
}
