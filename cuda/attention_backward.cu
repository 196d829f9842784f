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
 * Two kernels. The first has a block for each query and head: it walks the query's keys once for
 * the numbers of its row of P (largest score, sum, rowsum), which it keeps, and once more for dq.
 * The second has a block for each key and head of keys: from those numbers it computes its column of P
 * and dS anew, some queries at a time, and sums dk and dv over heads and queries in their order. P
 * itself is never stored, so the length of a sequence has no limit.
 *
 * Groups lie on the device: every block looks up its own.
 */
#include "cuda_backend.h"

#define MOST_HEAD_SIZE 256
#define PARTS (MOST_HEAD_SIZE / ROW_THREADS)

/* What is kept of a row of P. */
typedef struct SoftmaxRow
{
	float		largest;		/* scaled score */
	float		inverse_sum;
	float		mean;			/* sum of P dP */
	int			first;			/* keys [first, end) are seen, counted from the group's first */
	int			end;
	float		scale;
} SoftmaxRow;

typedef struct GradientArguments
{
	Rows		q;
	Rows		k;
	Rows		v;
	Rows		dy;
	Rows		dq;
	Rows		dk;
	Rows		dv;
	const int32_t *spans;
	const int32_t *groups;		/* [G, ATTENTION_GROUP_FIELDS] */
	int			group_count;
	int			heads;
	int			kv_heads;
	int			head_size;
	float		scale;
	SoftmaxRow *rows;			/* [R, heads] */
} GradientArguments;

__device__ static inline float
dot_head(const float *a, const float *b, int size)
{
	float		sum = 0;

	for (int d = 0; d < size; d++)
		sum = fmaf(a[d], b[d], sum);
	return sum;
}

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

/* Query blockIdx.x, head blockIdx.y. */
__global__ static void __launch_bounds__(ROW_THREADS)
query_kernel(GradientArguments p)
{
	SHARED(float, scratch, ROW_WARPS);
	SHARED(float, gradients, ROW_THREADS);
	int			thread = static_cast<int>(threadIdx.x);
	int64_t		row = blockIdx.x;
	int			head = static_cast<int>(blockIdx.y);
	int			size = p.head_size;
	int			kv_column = head / (p.heads / p.kv_heads) * size;
	const int32_t *group = find_group(&p, GROUP_FIRST_ROW, GROUP_ROWS,
									  static_cast<int>(blockIdx.x));
	const int32_t *span = p.spans + row * ATTENTION_SPAN_FIELDS;
	float		scale = span[SPAN_UNIFORM] ? 0.0f : p.scale;
	const float *q = p.q.row(row) + head * size;
	const float *dy = p.dy.row(row) + head * size;
	RunningSums sums = {-FLT_MAX, 0.0f, 0.0f};
	float		dq[PARTS] = {};
	int64_t		first_key;
	int			seen = span[SPAN_COUNT];
	float		largest;
	float		shrink;

	if (group == nullptr)
		return;
	first_key = group[GROUP_FIRST_KEY] + span[SPAN_FIRST];
	for (int j = thread; j < seen; j += ROW_THREADS)
		add_score(&sums, scale * dot_head(q, p.k.row(first_key + j) + kv_column, size),
				  dot_head(dy, p.v.row(first_key + j) + kv_column, size));
	largest = block_largest(sums.largest, scratch);
	shrink = expf(sums.largest - largest);
	sums.sum = block_sum(sums.sum * shrink, scratch);
	sums.mean = block_sum(sums.mean * shrink, scratch) / sums.sum;
	for (int begin = 0; begin < seen; begin += ROW_THREADS)
	{
		int			j = begin + thread;
		int			count = min(ROW_THREADS, seen - begin);

		if (j < seen)
		{
			float		score = scale * dot_head(q, p.k.row(first_key + j) + kv_column, size);
			float		dp = dot_head(dy, p.v.row(first_key + j) + kv_column, size);

			gradients[thread] = scale * (expf(score - largest) / sums.sum) * (dp - sums.mean);
		}
		__syncthreads();
#pragma unroll
		for (int part = 0; part < PARTS; part++)
		{
			int			d = part * ROW_THREADS + thread;

			for (int i = 0; d < size && i < count; i++)
				dq[part] = fmaf(gradients[i], p.k.row(first_key + begin + i)[kv_column + d],
								dq[part]);
		}
		__syncthreads();
	}
#pragma unroll
	for (int part = 0; part < PARTS; part++)
		if (part * ROW_THREADS + thread < size)
			p.dq.row(row)[head * size + part * ROW_THREADS + thread] = dq[part];
	if (thread == 0)
		p.rows[row * p.heads + head] = SoftmaxRow{largest, seen > 0 ? 1.0f / sums.sum : 0.0f,
												  sums.mean, span[SPAN_FIRST],
												  span[SPAN_FIRST] + seen, scale};
}

/* P and dS of one key with ROW_THREADS queries of a head, a thread each; zero where not seen. */
__device__ static inline void
column_weights(const GradientArguments *p, const int32_t *group, int64_t row, int head, int key,
			   int kv_column, float *weights, float *gradients)
{
	int			thread = static_cast<int>(threadIdx.x);
	int			size = p->head_size;
	float		weight = 0;
	float		gradient = 0;

	if (row < group[GROUP_FIRST_ROW] + group[GROUP_ROWS])
	{
		SoftmaxRow	kept = p->rows[row * p->heads + head];

		int			place = key - group[GROUP_FIRST_KEY];

		if (place >= kept.first && place < kept.end)
		{
			float		score = dot_head(p->q.row(row) + head * size,
										 p->k.row(key) + kv_column, size);
			float		dp = dot_head(p->dy.row(row) + head * size,
									  p->v.row(key) + kv_column, size);

			weight = expf(kept.scale * score - kept.largest) * kept.inverse_sum;
			gradient = kept.scale * weight * (dp - kept.mean);
		}
	}
	weights[thread] = weight;
	gradients[thread] = gradient;
}

/* Key blockIdx.x, head of keys blockIdx.y. */
__global__ static void __launch_bounds__(ROW_THREADS)
key_kernel(GradientArguments p)
{
	SHARED(float, weights, ROW_THREADS);
	SHARED(float, gradients, ROW_THREADS);
	int			thread = static_cast<int>(threadIdx.x);
	int			key = static_cast<int>(blockIdx.x);
	const int32_t *group = find_group(&p, GROUP_FIRST_KEY, GROUP_KEYS, key);
	int			end_row;
	int			kv_head = static_cast<int>(blockIdx.y);
	int			share = p.heads / p.kv_heads;
	int			size = p.head_size;
	float		dk[PARTS] = {};
	float		dv[PARTS] = {};

	if (group == nullptr)
		return;
	end_row = group[GROUP_FIRST_ROW] + group[GROUP_ROWS];
	for (int head = kv_head * share; head < (kv_head + 1) * share; head++)
		for (int row = group[GROUP_FIRST_ROW]; row < end_row; row += ROW_THREADS)
		{
			int			count = min(ROW_THREADS, end_row - row);

			column_weights(&p, group, row + thread, head, key, kv_head * size, weights,
						   gradients);
			__syncthreads();
#pragma unroll
			for (int part = 0; part < PARTS; part++)
			{
				int			d = part * ROW_THREADS + thread;

				for (int i = 0; d < size && i < count; i++)
				{
					dk[part] = fmaf(gradients[i], p.q.row(row + i)[head * size + d], dk[part]);
					dv[part] = fmaf(weights[i], p.dy.row(row + i)[head * size + d], dv[part]);
				}
			}
			__syncthreads();
		}
#pragma unroll
	for (int part = 0; part < PARTS; part++)
	{
		int			d = part * ROW_THREADS + thread;

		if (d < size)
		{
			p.dk.row(key)[kv_head * size + d] = dk[part];
			p.dv.row(key)[kv_head * size + d] = dv[part];
		}
	}
}

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

	p.rows = static_cast<SoftmaxRow *>(cuda_scratch(
		cuda, &cuda->statistics, static_cast<size_t>(g->q.rows) *
			static_cast<size_t>(plan->heads) * sizeof(SoftmaxRow)));
	if (p.rows == nullptr || g->q.rows == 0)
		return;
	LAUNCH(query_kernel, dim3(static_cast<unsigned>(g->q.rows),
							  static_cast<unsigned>(plan->heads)), ROW_THREADS, 0, cuda->stream, p);
	if (g->dk.data != nullptr && g->k.rows > 0)
		LAUNCH(key_kernel, dim3(static_cast<unsigned>(g->k.rows),
								static_cast<unsigned>(g->kv_heads)), ROW_THREADS, 0, cuda->stream,
			   p);
}
