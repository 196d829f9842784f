/*
 * attention_backward.cu - from the gradient of an attention's result to those of queries, keys and
 * values.
 *
 * With P = softmax(scale q k^T) and dy the gradient of y = P v:
 *
 *	dv = P^T dy        dP = dy v^T
 *	dS = scale * P (dP - rowsum(P dP))
 *	dq = dS k          dk = dS^T q
 *
 * Here all of it is f32; attention_backward_mma.cu is the same on tensor cores.
 *
 * Two kernels. In the first a block has TILE queries of a head: it walks the keys that any of them
 * sees for the numbers of their rows of P (largest score, sum, rowsum), which it keeps, and then
 * again for dq. In the second a block has TILE keys of a head of keys: from those numbers it
 * computes its columns of P and dS anew, TILE queries at a time, for dk and dv. P itself is never
 * stored, so the length of a sequence has no limit. Operands go through shared memory, DEPTH
 * elements of a head at a time.
 *
 * Every sum is a chain in the order of elements, keys or heads and queries, and what a query does
 * not see adds nothing: results do not depend on where tiles begin, nor on what else is in them.
 * Groups lie on the device: every block looks up its own.
 */
#include "attention_backward.h"

#define TILE 32					/* queries, and keys, of a tile */
#define DEPTH 32				/* elements of a head at a time */
#define PITCH (DEPTH + 4)		/* of operands in shared memory: whole vectors, all banks */
#define TILE_PITCH (TILE + 1)	/* the same of a tile of P or dS */
/* Elements of a head that one block sums gradients of; more are other blocks'. */
#define DEPTHS 4
#define PART (DEPTHS * DEPTH)
/* Of a tile's products a thread has queries r and r + HALF, keys c, c + LANES, ... */
#define HALF (TILE / 2)
#define LANES (ROW_THREADS / HALF)
#define KEYS (TILE / LANES)
/* Blocks for keys that a multiprocessor holds: their gradients take more than 128 registers. */
#define KEY_BLOCKS 3
/* Threads that share the walk over a row of P. */
#define WALKERS (ROW_THREADS / TILE)

/* The group whose rows, or keys, hold a number; NULL: none. */
__device__ static inline const int32_t *
find_group(const GradientArguments *p, int first_field, int count_field, int number)
{
	for (int i = 0; i < p->group_count; i++)
	{
		const int32_t *group = p->groups + i * ATTENTION_GROUP_FIELDS;

		if (number >= group[first_field] && number < group[first_field] + group[count_field])
			return group;
	}
	return nullptr;
}

/* ---- products of a tile ---- */

/* Elements [d, d + DEPTH) of a head of rows [first, first + TILE); zeros beyond the last. */
__device__ static inline void
load_tile(float *tile, const Rows &rows, int64_t first, int column, int d, int size)
{
	for (int i = static_cast<int>(threadIdx.x); i < TILE * DEPTH; i += ROW_THREADS)
	{
		int			row = i / DEPTH;
		int			element = d + i % DEPTH;

		tile[row * PITCH + i % DEPTH] = first + row < rows.rows && element < size
			? rows.row(first + row)[column + element] : 0.0f;
	}
}

__device__ static inline float4
vector_of(const float *tile, int row, int d)
{
	return *reinterpret_cast<const float4 *>(tile + row * PITCH + d);
}

__device__ static inline float
add_dot(float sum, float4 a, float4 b)
{
	return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/* Where a tile's operands are: rows of queries, or of keys, of one head. */
typedef struct Place
{
	int64_t		row;
	int			q_column;
	int64_t		key;
	int			kv_column;
} Place;

/* sums = the thread's part of a b^T; a and b in shared memory are free again at the end. */
__device__ static inline void
multiply_tile(const Rows &queries, const Rows &keys, const Place *place, int size, float *a,
			  float *b, float (&sums)[2][KEYS])
{
	int			row = static_cast<int>(threadIdx.x) / LANES;
	int			key = static_cast<int>(threadIdx.x) % LANES;

#pragma unroll
	for (int i = 0; i < KEYS; i++)
		sums[0][i] = sums[1][i] = 0.0f;
	for (int d = 0; d < size; d += DEPTH)
	{
		load_tile(a, queries, place->row, place->q_column, d, size);
		load_tile(b, keys, place->key, place->kv_column, d, size);
		__syncthreads();
#pragma unroll 2				/* all of them would take more registers than there are */
		for (int j = 0; j < DEPTH; j += 4)
		{
			float4		above = vector_of(a, row, j);
			float4		below = vector_of(a, row + HALF, j);

#pragma unroll
			for (int i = 0; i < KEYS; i++)
			{
				float4		other = vector_of(b, key + i * LANES, j);

				sums[0][i] = add_dot(sums[0][i], above, other);
				sums[1][i] = add_dot(sums[1][i], below, other);
			}
		}
		__syncthreads();
	}
}

/* P of a score that is seen. */
__device__ static inline float
weight_of(const SoftmaxRow &row, float score)
{
	return expf(row.scale * score - row.largest) * row.inverse_sum;
}

/* Whether any of a tile's rows sees any key of [first, first + TILE). */
__device__ static inline bool
any_seen(const SoftmaxRow *rows, int64_t first)
{
	bool		any = false;

	for (int r = 0; r < TILE; r++)
		any = any || (rows[r].first < rows[r].end && rows[r].first < first + TILE &&
					  rows[r].end > first);
	return any;
}

/*
 * Add w x, x [TILE, DEPTH], to a thread's sums: rows r and r + HALF, four elements each. The step of
 * w's rows and that of what is summed over tell whether w is meant as it is or transposed.
 */
__device__ static inline void
add_tile(const float *w, int step, int sum_step, const float *x, float (&acc)[2][4])
{
	int			row = static_cast<int>(threadIdx.x) / LANES;
	int			d = static_cast<int>(threadIdx.x) % LANES * 4;

#pragma unroll 4
	for (int i = 0; i < TILE; i++)
	{
		float4		value = vector_of(x, i, d);
		float		above = w[row * step + i * sum_step];
		float		below = w[(row + HALF) * step + i * sum_step];

		acc[0][0] = fmaf(above, value.x, acc[0][0]);
		acc[0][1] = fmaf(above, value.y, acc[0][1]);
		acc[0][2] = fmaf(above, value.z, acc[0][2]);
		acc[0][3] = fmaf(above, value.w, acc[0][3]);
		acc[1][0] = fmaf(below, value.x, acc[1][0]);
		acc[1][1] = fmaf(below, value.y, acc[1][1]);
		acc[1][2] = fmaf(below, value.z, acc[1][2]);
		acc[1][3] = fmaf(below, value.w, acc[1][3]);
	}
}

/* Store a thread's sums in those rows [first, ..) that belong to a group. */
__device__ static inline void
store_sums(const GradientArguments *p, const Rows &to, int64_t first, int first_field,
		   int count_field, int column, const float (&acc)[DEPTHS][2][4])
{
	int			lane = static_cast<int>(threadIdx.x) % LANES;

#pragma unroll
	for (int half = 0; half < 2; half++)
	{
		int64_t		row = first + static_cast<int>(threadIdx.x) / LANES + half * HALF;

		if (row >= to.rows ||
			find_group(p, first_field, count_field, static_cast<int>(row)) == nullptr)
			continue;
#pragma unroll
		for (int part = 0; part < DEPTHS; part++)
#pragma unroll
			for (int i = 0; i < 4; i++)
			{
				int			d = static_cast<int>(blockIdx.z) * PART + part * DEPTH + lane * 4 + i;

				if (d < p->head_size)
					to.row(row)[column + d] = acc[part][half][i];
			}
	}
}

/* ---- the gradient of queries ---- */

/* The sums of a row of P that a thread has so far, relative to its largest score. */
typedef struct RunningSums
{
	float		largest;
	float		sum;			/* of exp(score - largest) */
	float		mean;			/* of the same times dP */
} RunningSums;

__device__ static inline void
add_score(RunningSums *sums, float score, float dp)
{
	float		before = sums->largest;
	float		shrink;
	float		weight;

	sums->largest = fmaxf(before, score);
	shrink = expf(before - sums->largest);
	weight = expf(score - sums->largest);
	sums->sum = sums->sum * shrink + weight;
	sums->mean = fmaf(weight, dp, sums->mean * shrink);
}

/* Add those keys of a tile that are the thread's: every WALKERS-th that its row sees. */
__device__ static inline void
walk_tile(const SoftmaxRow *row, int64_t key, const float *scores, const float *dps,
		  RunningSums *sums)
{
	int			own = static_cast<int>(threadIdx.x) / WALKERS * TILE_PITCH;
	int			walker = static_cast<int>(threadIdx.x) % WALKERS;

	for (int j = 0; j < TILE; j++)
		if (is_seen(*row, key + j) &&
			static_cast<int>(key + j - row->first) % WALKERS == walker)
			add_score(sums, row->scale * scores[own + j], dps[own + j]);
}

/* The row's numbers from its threads' sums. */
__device__ static inline void
finish_row(RunningSums sums, SoftmaxRow *row)
{
	float		largest = sums.largest;
	float		shrink;

	for (int distance = 1; distance < WALKERS; distance *= 2)
		largest = fmaxf(largest, __shfl_xor_sync(FULL_MASK, largest, distance));
	shrink = expf(sums.largest - largest);
	sums.sum *= shrink;
	sums.mean *= shrink;
	for (int distance = 1; distance < WALKERS; distance *= 2)
	{
		sums.sum += __shfl_xor_sync(FULL_MASK, sums.sum, distance);
		sums.mean += __shfl_xor_sync(FULL_MASK, sums.mean, distance);
	}
	if (static_cast<int>(threadIdx.x) % WALKERS != 0)
		return;
	row->largest = largest;
	row->inverse_sum = sums.sum > 0.0f ? 1.0f / sums.sum : 0.0f;
	row->mean = sums.mean * row->inverse_sum;
}

/* What a row sees, by its span; nothing where it belongs to no group. */
__device__ static inline SoftmaxRow
read_row(const GradientArguments *p, int64_t row)
{
	const int32_t *group = row >= p->q.rows ? nullptr
		: find_group(p, GROUP_FIRST_ROW, GROUP_ROWS, static_cast<int>(row));
	const int32_t *span = p->spans + row * ATTENTION_SPAN_FIELDS;
	SoftmaxRow	result = {};

	if (group == nullptr)
		return result;
	result.first = group[GROUP_FIRST_KEY] + span[SPAN_FIRST];
	result.end = result.first + span[SPAN_COUNT];
	result.scale = span[SPAN_UNIFORM] ? 0.0f : p->scale;
	return result;
}

/* The keys that any row of a tile sees: [*first, *end). */
__device__ static inline void
find_keys(const SoftmaxRow *rows, int *first, int *end)
{
	*first = 0;
	*end = 0;
	for (int r = 0; r < TILE; r++)
		if (rows[r].first < rows[r].end)
		{
			*first = *end == 0 ? rows[r].first : min(*first, rows[r].first);
			*end = max(*end, rows[r].end);
		}
}

/* Queries from blockIdx.x * TILE on, head blockIdx.y, elements from blockIdx.z * PART on. */
__global__ static void __launch_bounds__(ROW_THREADS)
query_kernel(GradientArguments p)
{
	SHARED(float4, a_memory, TILE * PITCH / 4);
	SHARED(float4, b_memory, TILE * PITCH / 4);
	SHARED(float, scores, TILE * TILE_PITCH);
	SHARED(float, dps, TILE * TILE_PITCH);
	SHARED(SoftmaxRow, rows, TILE);
	float	   *a = reinterpret_cast<float *>(a_memory);
	float	   *b = reinterpret_cast<float *>(b_memory);
	int			thread = static_cast<int>(threadIdx.x);
	int			head = static_cast<int>(blockIdx.y);
	int			size = p.head_size;
	Place		place = {static_cast<int64_t>(blockIdx.x) * TILE, head * size, 0,
						 head / (p.heads / p.kv_heads) * size};
	int			own = thread / LANES * TILE_PITCH + thread % LANES;
	SoftmaxRow *walked = &rows[thread / WALKERS];
	RunningSums sums = {-FLT_MAX, 0.0f, 0.0f};
	float		s[2][KEYS];
	float		dp[2][KEYS];
	float		dq[DEPTHS][2][4] = {};
	int			first;
	int			end;

	if (thread < TILE)
		rows[thread] = read_row(&p, place.row + thread);
	__syncthreads();
	find_keys(rows, &first, &end);
	for (place.key = first; place.key < end; place.key += TILE)
	{
		multiply_tile(p.q, p.k, &place, size, a, b, s);
		multiply_tile(p.dy, p.v, &place, size, a, b, dp);
#pragma unroll
		for (int i = 0; i < 2 * KEYS; i++)
		{
			int			at = own + i / KEYS * HALF * TILE_PITCH + i % KEYS * LANES;

			scores[at] = s[i / KEYS][i % KEYS];
			dps[at] = dp[i / KEYS][i % KEYS];
		}
		__syncthreads();
		walk_tile(walked, place.key, scores, dps, &sums);
		__syncthreads();
	}
	finish_row(sums, walked);
	__syncthreads();
	if (thread < TILE && place.row + thread < p.q.rows && blockIdx.z == 0)
		p.rows[(place.row + thread) * p.heads + head] = rows[thread];
	for (place.key = first; place.key < end; place.key += TILE)
	{
		multiply_tile(p.q, p.k, &place, size, a, b, s);
		multiply_tile(p.dy, p.v, &place, size, a, b, dp);
#pragma unroll
		for (int i = 0; i < 2 * KEYS; i++)
		{
			const SoftmaxRow &row = rows[thread / LANES + i / KEYS * HALF];
			int			key = thread % LANES + i % KEYS * LANES;

			scores[own + i / KEYS * HALF * TILE_PITCH + i % KEYS * LANES] =
				is_seen(row, place.key + key)
				? row.scale * weight_of(row, s[i / KEYS][i % KEYS]) *
				(dp[i / KEYS][i % KEYS] - row.mean) : 0.0f;
		}
#pragma unroll
		for (int part = 0; part < DEPTHS; part++)
		{
			int			d = static_cast<int>(blockIdx.z) * PART + part * DEPTH;

			if (d >= size)
				continue;
			load_tile(b, p.k, place.key, place.kv_column, d, size);
			__syncthreads();
			add_tile(scores, TILE_PITCH, 1, b, dq[part]);
			__syncthreads();
		}
	}
	store_sums(&p, p.dq, place.row, GROUP_FIRST_ROW, GROUP_ROWS, place.q_column, dq);
}

/* ---- the gradients of keys and values ---- */

/* The rows of groups that have any key of [first, first + TILE): [*row, *end). */
__device__ static inline void
find_rows(const GradientArguments *p, int first, int *row, int *end)
{
	*row = 0;
	*end = 0;
	for (int i = 0; i < p->group_count; i++)
	{
		const int32_t *group = p->groups + i * ATTENTION_GROUP_FIELDS;

		if (group[GROUP_FIRST_KEY] < first + TILE && group[GROUP_ROWS] > 0 &&
			group[GROUP_FIRST_KEY] + group[GROUP_KEYS] > first)
		{
			*row = *end == 0 ? group[GROUP_FIRST_ROW] : min(*row, group[GROUP_FIRST_ROW]);
			*end = max(*end, group[GROUP_FIRST_ROW] + group[GROUP_ROWS]);
		}
	}
}

/* Keys from blockIdx.x * TILE on, head of keys blockIdx.y, elements from blockIdx.z * PART on. */
__global__ static void __launch_bounds__(ROW_THREADS, KEY_BLOCKS)
key_kernel(GradientArguments p)
{
	SHARED(float4, a_memory, TILE * PITCH / 4);
	SHARED(float4, b_memory, TILE * PITCH / 4);
	SHARED(float, weights, TILE * TILE_PITCH);
	SHARED(float, gradients, TILE * TILE_PITCH);
	SHARED(SoftmaxRow, rows, TILE);
	float	   *a = reinterpret_cast<float *>(a_memory);
	float	   *b = reinterpret_cast<float *>(b_memory);
	int			thread = static_cast<int>(threadIdx.x);
	int			share = p.heads / p.kv_heads;
	int			size = p.head_size;
	Place		place = {0, 0, static_cast<int64_t>(blockIdx.x) * TILE,
						 static_cast<int>(blockIdx.y) * size};
	int			own = thread / LANES * TILE_PITCH + thread % LANES;
	float		s[2][KEYS];
	float		dp[2][KEYS];
	float		dk[DEPTHS][2][4] = {};
	float		dv[DEPTHS][2][4] = {};
	int			first;
	int			end;

	find_rows(&p, static_cast<int>(place.key), &first, &end);
	for (int i = 0; i < share; i++)
		for (place.row = first; place.row < end; place.row += TILE)
		{
			int			head = static_cast<int>(blockIdx.y) * share + i;

			place.q_column = head * size;
			if (thread < TILE)
				rows[thread] = place.row + thread < end
					? p.rows[(place.row + thread) * p.heads + head] : SoftmaxRow{};
			__syncthreads();
			if (any_seen(rows, place.key))
			{
				multiply_tile(p.q, p.k, &place, size, a, b, s);
				multiply_tile(p.dy, p.v, &place, size, a, b, dp);
#pragma unroll
				for (int j = 0; j < 2 * KEYS; j++)
				{
					const SoftmaxRow &row = rows[thread / LANES + j / KEYS * HALF];
					int			at = own + j / KEYS * HALF * TILE_PITCH + j % KEYS * LANES;
					float		weight = is_seen(row, place.key + thread % LANES + j % KEYS * LANES)
						? weight_of(row, s[j / KEYS][j % KEYS]) : 0.0f;

					weights[at] = weight;
					gradients[at] = weight == 0.0f ? 0.0f
						: row.scale * weight * (dp[j / KEYS][j % KEYS] - row.mean);
				}
#pragma unroll
				for (int part = 0; part < DEPTHS; part++)
				{
					int			d = static_cast<int>(blockIdx.z) * PART + part * DEPTH;

					if (d >= size)
						continue;
					load_tile(a, p.q, place.row, place.q_column, d, size);
					load_tile(b, p.dy, place.row, place.q_column, d, size);
					__syncthreads();
					add_tile(gradients, 1, TILE_PITCH, a, dk[part]);
					add_tile(weights, 1, TILE_PITCH, b, dv[part]);
					__syncthreads();
				}
			}
			__syncthreads();
		}
	store_sums(&p, p.dk, place.key, GROUP_FIRST_KEY, GROUP_KEYS, place.kv_column, dk);
	store_sums(&p, p.dv, place.key, GROUP_FIRST_KEY, GROUP_KEYS, place.kv_column, dv);
}

/* ---- the host's side ---- */

/* All scratch is the backend's own; a size of nothing could not be allocated. */
size_t
cuda_attention_backward_size(Backend *backend, int keys, int head_size)
{
	return sizeof(SoftmaxRow);
}

void
cuda_attention_backward(Backend *backend, const AttentionGradient *g)
{
	CudaBackend *cuda = cuda_use(backend);
	const AttentionPlan *plan = g->plan;
	GradientArguments p = {cuda_rows(g->q), cuda_rows(g->k), cuda_rows(g->v), cuda_rows(g->dy),
						   cuda_rows(g->dq), cuda_rows(g->dk), cuda_rows(g->dv),
						   static_cast<const int32_t *>(plan->spans.data),
						   static_cast<const int32_t *>(g->groups.data), g->groups.rows,
						   plan->heads, g->kv_heads, g->head_size, plan->scale, nullptr};
	unsigned	parts = blocks_for(g->head_size, PART);

	if (g->q.rows == 0)
		return;
	p.rows = static_cast<SoftmaxRow *>(cuda_scratch(
		cuda, &cuda->statistics, static_cast<size_t>(g->q.rows) *
			static_cast<size_t>(plan->heads) * sizeof(SoftmaxRow)));
	if (p.rows == nullptr)
		return;
	if (g->type == TYPE_BF16 && g->head_size <= MOST_MMA_HEAD)
	{
		cuda_attention_backward_bf16(cuda, &p);
		return;
	}
	LAUNCH(query_kernel, dim3(blocks_for(g->q.rows, TILE), static_cast<unsigned>(plan->heads),
							  parts), ROW_THREADS, 0, cuda->stream, p);
	if (g->dk.data != nullptr && g->k.rows > 0)
		LAUNCH(key_kernel, dim3(blocks_for(g->k.rows, TILE), static_cast<unsigned>(g->kv_heads),
								parts), ROW_THREADS, 0, cuda->stream, p);
}
