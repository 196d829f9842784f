/*
 * attention_backward_mma.cu - the gradient of attention on tensor cores, where keys are kept in bf16.
 *
 * What is computed, and by which two kernels, stands in attention_backward.cu (see also Dao,
 * FlashAttention-2, arXiv 2307.08691, algorithm 2). Here all factors of products are rounded to bf16:
 * queries, keys, values and dy on their way to shared memory, P and dS between the products. Sums
 * and softmax are f32.
 *
 * A tile is up to TILE_ROWS rows, or keys, of one group, WARP_ROWS of each warp. The first kernel has
 * the queries of a tile and walks the keys, KEY_BLOCK at a time; the second has keys and walks the
 * queries, QUERY_BLOCK at a time. Tiles and blocks begin at multiples of their sizes in the group, so
 * results do not depend on other groups.
 */
#include "attention_backward.h"
#include "attention_tiles.h"

#include <limits.h>

#define KEY_BLOCK 32
#define QUERY_BLOCK 16

/* Some of the rows, or keys, of a group. */
typedef struct GroupTile
{
	const int32_t *group;
	int			first;
	int			count;			/* 0: there is no such tile */
} GroupTile;

/* The tile of that number, as those of all groups follow one another. */
__device__ static inline GroupTile
find_tile(const GradientArguments *p, int first_field, int count_field, int number)
{
	for (int i = 0; i < p->group_count; i++)
	{
		const int32_t *group = p->groups + i * ATTENTION_GROUP_FIELDS;
		int			count = group[count_field];
		int			tiles = (count + TILE_ROWS - 1) / TILE_ROWS;

		if (number < tiles)
			return GroupTile{group, group[first_field] + number * TILE_ROWS,
							 min(TILE_ROWS, count - number * TILE_ROWS)};
		number -= tiles;
	}
	return GroupTile{nullptr, 0, 0};
}

/* ROWS rows of a head to shared memory; zeros from row `count` on. */
template <int HEAD, int ROWS>
__device__ static inline void
load_rows(uint4 *to, const Rows &x, int first, int count, int column, int size)
{
	const int	words = HEAD / 2;

#pragma unroll 4
	for (int i = static_cast<int>(threadIdx.x); i < ROWS * words; i += ROW_THREADS)
	{
		int			row = i / words;
		int			d = i % words * 2;
		const float *from = x.row(first + row) + column + d;
		uint32_t	low = row < count && d < size ? round_to_bf16(from[0]) : 0;
		uint32_t	high = row < count && d + 1 < size ? round_to_bf16(from[1]) : 0;

		reinterpret_cast<uint32_t *>(to + row * HeadRows<HEAD>::stride)[i % words] =
			low | high << 16;
	}
}

/* The operands a of the warp's rows of a tile; the block's shared memory is free again then. */
template <int HEAD>
__device__ static inline void
take_operands(uint4 *rows, const Rows &x, const GroupTile &tile, int column, int size,
			  uint32_t (&a)[HEAD / MMA_DEPTH][4])
{
	int			warp = static_cast<int>(threadIdx.x) / WARP;

	load_rows<HEAD, TILE_ROWS>(rows, x, tile.first, tile.count, column, size);
	__syncthreads();
#pragma unroll
	for (int step = 0; step < HEAD / MMA_DEPTH; step++)
		load_matrices(sixteen_rows<HEAD>(rows + warp * WARP_ROWS * HeadRows<HEAD>::stride), step * 2,
					  a[step]);
	__syncthreads();
}

/* s = a x^T, where a is 16 rows in shared memory too. */
template <int HEAD, int TILES>
__device__ static inline void
multiply_shared(const uint4 *a, const uint4 *x, float (&s)[TILES][4])
{
	clear(s);
#pragma unroll
	for (int step = 0; step < HEAD / MMA_DEPTH; step += 2)
	{
		uint32_t	first[4];
		uint32_t	second[4];

		load_matrices(sixteen_rows<HEAD>(a), step * 2, first);
		load_matrices(sixteen_rows<HEAD>(a), step * 2 + 2, second);
		add_two_steps<HEAD>(first, second, eight_rows<HEAD>(x), step, s);
	}
}

/* The lane's two rows of the warp's sums to a tile's rows. */
template <int HEAD>
__device__ static inline void
store_sums(const Rows &to, const GroupTile &tile, int column, int size,
		   const float (&acc)[HEAD / MMA_COLUMNS][4])
{
	int			warp = static_cast<int>(threadIdx.x) / WARP;
	int			first = lane_column_of(0, 0);
	int			left = size - first;

#pragma unroll
	for (int i = 0; i < 2; i++)
	{
		int			row = warp * WARP_ROWS + lane_row_of(2 * i);
		float	   *values = to.row(tile.first + row) + column + first;

		if (row >= tile.count)
			continue;
#pragma unroll
		for (int n = 0; n < HEAD / MMA_COLUMNS; n++)
#pragma unroll
			for (int j = 0; j < 2; j++)
				if (n * MMA_COLUMNS + j < left)
					values[n * MMA_COLUMNS + j] = acc[n][2 * i + j];
	}
}

/* ---- the gradient of queries ---- */

/* What a row of a tile sees; nothing behind the last. */
__device__ static inline SoftmaxRow
read_row(const GradientArguments *p, const GroupTile &tile, int row)
{
	const int32_t *span = p->spans + static_cast<int64_t>(tile.first + row) * ATTENTION_SPAN_FIELDS;
	SoftmaxRow	result = {};

	result.largest = LOWEST_SCORE;
	if (row >= tile.count)
		return result;
	result.first = tile.group[GROUP_FIRST_KEY] + span[SPAN_FIRST];
	result.end = result.first + span[SPAN_COUNT];
	result.scale = span[SPAN_UNIFORM] ? 0.0f : p->scale;
	return result;
}

/* The blocks of keys [*first, *end) that any row of the tile sees. */
__device__ static inline void
find_keys(const GradientArguments *p, const GroupTile &tile, int *first, int *end)
{
	int			begin = tile.group[GROUP_FIRST_KEY];
	int			low = INT_MAX;
	int			high = 0;

	for (int r = lane_of_warp(); r < tile.count; r += WARP)
	{
		SoftmaxRow	row = read_row(p, tile, r);

		if (row.first < row.end)
		{
			low = min(low, row.first);
			high = max(high, row.end);
		}
	}
	low = warp_smallest(low);
	*end = -warp_smallest(-high);
	*first = *end == 0 ? 0 : begin + (low - begin) / KEY_BLOCK * KEY_BLOCK;
}

/*
 * Scores q k^T and dP = dy v^T of KEY_BLOCK keys, which are left in shared memory, values behind
 * them; the caller has a barrier behind what it does with them.
 */
template <int HEAD>
__device__ static inline void
multiply_keys(const GradientArguments *p, int key, int end, int column,
			  const uint32_t (&q)[HEAD / MMA_DEPTH][4], const uint32_t (&dy)[HEAD / MMA_DEPTH][4],
			  uint4 *rows, float (&s)[KEY_BLOCK / MMA_COLUMNS][4],
			  float (&dp)[KEY_BLOCK / MMA_COLUMNS][4])
{
	uint4	   *values = rows + KEY_BLOCK * HeadRows<HEAD>::stride;

	load_rows<HEAD, KEY_BLOCK>(rows, p->k, key, end - key, column, p->head_size);
	load_rows<HEAD, KEY_BLOCK>(values, p->v, key, end - key, column, p->head_size);
	__syncthreads();
	multiply_rows<HEAD>(q, rows, s);
	multiply_rows<HEAD>(dy, values, dp);
}

/*
 * Add a block of keys to the numbers of the lane's rows: inverse_sum and mean are sums of the lane's
 * own keys, of weights exp(score - largest) and of those times dP.
 */
__device__ static inline void
add_scores(int key, const float (&s)[KEY_BLOCK / MMA_COLUMNS][4],
		   const float (&dp)[KEY_BLOCK / MMA_COLUMNS][4], SoftmaxRow (&rows)[2])
{
#pragma unroll
	for (int i = 0; i < 2; i++)
	{
		SoftmaxRow *row = &rows[i];
		float		largest = row->largest;
		float		shrink;

#pragma unroll
		for (int n = 0; n < KEY_BLOCK / MMA_COLUMNS; n++)
#pragma unroll
			for (int j = 2 * i; j < 2 * i + 2; j++)
				if (is_seen(*row, key + lane_column_of(n, j)))
					largest = fmaxf(largest, row->scale * s[n][j]);
		largest = row_largest(largest);
		shrink = power_of_two((row->largest - largest) * LOG2_E);
		row->largest = largest;
		row->inverse_sum *= shrink;
		row->mean *= shrink;
#pragma unroll
		for (int n = 0; n < KEY_BLOCK / MMA_COLUMNS; n++)
#pragma unroll
			for (int j = 2 * i; j < 2 * i + 2; j++)
				if (is_seen(*row, key + lane_column_of(n, j)))
				{
					float		weight = power_of_two((row->scale * s[n][j] - largest) * LOG2_E);

					row->inverse_sum += weight;
					row->mean = fmaf(weight, dp[n][j], row->mean);
				}
	}
}

/* P of a score. */
__device__ static inline float
weight_of(const SoftmaxRow &row, float score)
{
	return power_of_two((row.scale * score - row.largest) * LOG2_E) * row.inverse_sum;
}

/* dS of a score. */
__device__ static inline float
score_gradient(const SoftmaxRow &row, float weight, float dp)
{
	return row.scale * weight * (dp - row.mean);
}

/* A tile of queries, blockIdx.x, of head blockIdx.y. */
template <int HEAD>
__global__ static void __launch_bounds__(ROW_THREADS, BLOCKS_AT_ONCE)
query_mma_kernel(GradientArguments p)
{
	SHARED(uint4, shared, TILE_ROWS * HeadRows<HEAD>::stride);
	int			warp = static_cast<int>(threadIdx.x) / WARP;
	int			head = static_cast<int>(blockIdx.y);
	int			size = p.head_size;
	int			kv_column = head / (p.heads / p.kv_heads) * size;
	GroupTile	tile = find_tile(&p, GROUP_FIRST_ROW, GROUP_ROWS, static_cast<int>(blockIdx.x));
	SoftmaxRow	rows[2];
	uint32_t	q[HEAD / MMA_DEPTH][4];
	uint32_t	dy[HEAD / MMA_DEPTH][4];
	float		s[KEY_BLOCK / MMA_COLUMNS][4];
	float		dp[KEY_BLOCK / MMA_COLUMNS][4];
	float		dq[HEAD / MMA_COLUMNS][4] = {};
	int			first;
	int			end;

	if (tile.count == 0)
		return;
	take_operands<HEAD>(shared, p.q, tile, head * size, size, q);
	take_operands<HEAD>(shared, p.dy, tile, head * size, size, dy);
#pragma unroll
	for (int i = 0; i < 2; i++)
		rows[i] = read_row(&p, tile, warp * WARP_ROWS + lane_row_of(2 * i));
	find_keys(&p, tile, &first, &end);
	for (int key = first; key < end; key += KEY_BLOCK)
	{
		multiply_keys<HEAD>(&p, key, end, kv_column, q, dy, shared, s, dp);
		add_scores(key, s, dp, rows);
		__syncthreads();
	}
#pragma unroll
	for (int i = 0; i < 2; i++)
	{
		int			row = warp * WARP_ROWS + lane_row_of(2 * i);
		float		sum = row_sum(rows[i].inverse_sum);

		rows[i].inverse_sum = sum > 0.0f ? 1.0f / sum : 0.0f;
		rows[i].mean = row_sum(rows[i].mean) * rows[i].inverse_sum;
		if (row < tile.count && lane_of_warp() % 4 == 0)
			p.rows[static_cast<int64_t>(tile.first + row) * p.heads + head] = rows[i];
	}
	for (int key = first; key < end; key += KEY_BLOCK)
	{
		multiply_keys<HEAD>(&p, key, end, kv_column, q, dy, shared, s, dp);
#pragma unroll
		for (int n = 0; n < KEY_BLOCK / MMA_COLUMNS; n++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				s[n][i] = is_seen(rows[i / 2], key + lane_column_of(n, i))
					? score_gradient(rows[i / 2], weight_of(rows[i / 2], s[n][i]), dp[n][i]) : 0.0f;
		add_weighted_rows<HEAD>(s, shared, dq);
		__syncthreads();
	}
	store_sums<HEAD>(p.dq, tile, head * size, size, dq);
}

/* ---- the gradients of keys and values ---- */

/* Whether any of a block's queries sees any key of a tile. */
__device__ static inline bool
any_seen(const SoftmaxRow *rows, const GroupTile &tile)
{
	bool		any = false;

	for (int r = 0; r < QUERY_BLOCK; r++)
		any = any || (rows[r].first < rows[r].end && rows[r].first < tile.first + tile.count &&
					  rows[r].end > tile.first);
	return any;
}

/* A tile of keys, blockIdx.x, of head of keys blockIdx.y. */
template <int HEAD>
__global__ static void __launch_bounds__(ROW_THREADS, BLOCKS_AT_ONCE)
key_mma_kernel(GradientArguments p)
{
	SHARED(uint4, keys, TILE_ROWS * HeadRows<HEAD>::stride);
	SHARED(uint4, values, TILE_ROWS * HeadRows<HEAD>::stride);
	SHARED(uint4, queries, QUERY_BLOCK * HeadRows<HEAD>::stride);
	SHARED(uint4, gradients, QUERY_BLOCK * HeadRows<HEAD>::stride);
	SHARED(SoftmaxRow, rows, QUERY_BLOCK);
	int			thread = static_cast<int>(threadIdx.x);
	int			own = thread / WARP * WARP_ROWS;	/* the warp's keys */
	int			share = p.heads / p.kv_heads;
	int			size = p.head_size;
	int			kv_column = static_cast<int>(blockIdx.y) * size;
	GroupTile	tile = find_tile(&p, GROUP_FIRST_KEY, GROUP_KEYS, static_cast<int>(blockIdx.x));
	float		dk[HEAD / MMA_COLUMNS][4] = {};
	float		dv[HEAD / MMA_COLUMNS][4] = {};
	int			first;
	int			blocks;

	if (tile.count == 0)
		return;
	first = tile.group[GROUP_FIRST_ROW];
	blocks = (tile.group[GROUP_ROWS] + QUERY_BLOCK - 1) / QUERY_BLOCK;
	load_rows<HEAD, TILE_ROWS>(keys, p.k, tile.first, tile.count, kv_column, size);
	load_rows<HEAD, TILE_ROWS>(values, p.v, tile.first, tile.count, kv_column, size);
	for (int i = 0; i < share * blocks; i++)
	{
		int			head = static_cast<int>(blockIdx.y) * share + i / blocks;
		int			row = first + i % blocks * QUERY_BLOCK;
		int			count = first + tile.group[GROUP_ROWS] - row;
		float		s[QUERY_BLOCK / MMA_COLUMNS][4];
		float		dp[QUERY_BLOCK / MMA_COLUMNS][4];

		__syncthreads();
		if (thread < QUERY_BLOCK)
			rows[thread] = thread < count
				? p.rows[static_cast<int64_t>(row + thread) * p.heads + head] : SoftmaxRow{};
		__syncthreads();
		if (!any_seen(rows, tile))
			continue;
		load_rows<HEAD, QUERY_BLOCK>(queries, p.q, row, count, head * size, size);
		load_rows<HEAD, QUERY_BLOCK>(gradients, p.dy, row, count, head * size, size);
		__syncthreads();
		multiply_shared<HEAD>(keys + own * HeadRows<HEAD>::stride, queries, s);
		multiply_shared<HEAD>(values + own * HeadRows<HEAD>::stride, gradients, dp);
#pragma unroll
		for (int n = 0; n < QUERY_BLOCK / MMA_COLUMNS; n++)
#pragma unroll
			for (int j = 0; j < 4; j++)
			{
				const SoftmaxRow &query = rows[lane_column_of(n, j)];
				int			key = tile.first + own + lane_row_of(j);

				s[n][j] = is_seen(query, key) ? weight_of(query, s[n][j]) : 0.0f;
				dp[n][j] = s[n][j] == 0.0f ? 0.0f : score_gradient(query, s[n][j], dp[n][j]);
			}
		add_weighted_rows<HEAD>(s, gradients, dv);
		add_weighted_rows<HEAD>(dp, queries, dk);
	}
	store_sums<HEAD>(p.dk, tile, kv_column, size, dk);
	store_sums<HEAD>(p.dv, tile, kv_column, size, dv);
}

/* ---- the host's side ---- */

template <int HEAD>
static void
launch(CudaBackend *cuda, const GradientArguments &p)
{
	/* each group may begin a tile of its own */
	unsigned	groups = static_cast<unsigned>(p.group_count);
	dim3		queries(blocks_for(p.q.rows, TILE_ROWS) + groups, static_cast<unsigned>(p.heads));
	dim3		keys(blocks_for(p.k.rows, TILE_ROWS) + groups, static_cast<unsigned>(p.kv_heads));

	LAUNCH(query_mma_kernel<HEAD>, queries, ROW_THREADS, 0, cuda->stream, p);
	if (p.dk.data != nullptr && p.k.rows > 0)
		LAUNCH(key_mma_kernel<HEAD>, keys, ROW_THREADS, 0, cuda->stream, p);
}

void
cuda_attention_backward_bf16(CudaBackend *cuda, const GradientArguments *p)
{
	if (p->head_size <= 64)
		launch<64>(cuda, *p);
	else
		launch<MOST_MMA_HEAD>(cuda, *p);
}
