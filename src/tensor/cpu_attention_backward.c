/*
 * cpu_attention_backward.c - from the gradient of an attention's result to those of queries,
 * keys and values.
 *
 * With P = softmax(scale q k^T) and dy the gradient of y = P v:
 *
 *	dv = P^T dy        dP = dy v^T
 *	dS = scale * P (dP - rowsum(P dP))
 *	dq = dS k          dk = dS^T q
 *
 * A task is one head of keys of one group. It turns the group's keys and values once, then
 * walks over blocks of queries: their P is computed anew from q and k, which is cheaper than
 * keeping it from the forward pass, so only BLOCK_QUERIES rows of P and dP exist at a time.
 * dk and dv add up in the order of heads and blocks.
 */
#include "cpu_backend.h"

#include <string.h>

/* Queries whose rows of P are in memory at a time; a multiple of every tile_rows. */
#define BLOCK_QUERIES 48

typedef struct AttentionBackwardJob
{
	CpuBackend *cpu;
	const AttentionGradient *gradient;
	size_t		thread_floats;	/* of scratch */
} AttentionBackwardJob;

/* One head of keys of one group, with its scratch. */
typedef struct HeadWork
{
	const AttentionBackwardJob *job;
	const int32_t *group;
	int			kv_head;
	int			keys;
	size_t		key_stride;		/* floats between rows of turned keys, of P and of dP */
	float	   *turned_keys;	/* [D, keys] */
	float	   *turned_values;
	float	   *p;				/* [BLOCK_QUERIES, keys] */
	float	   *dp;
} HeadWork;

/* Floats of a row that holds one number for each key: whole cache lines. */
static size_t
padded(int keys)
{
	return ((size_t) keys + 15) / 16 * 16;
}

static size_t
thread_floats(int keys, int head_size)
{
	return padded(keys) * (2 * (size_t) head_size + 2 * BLOCK_QUERIES);
}

size_t
cpu_attention_backward_size(Backend *backend, int keys, int head_size)
{
	CpuBackend *cpu = (CpuBackend *) backend;

	return (size_t) thread_pool_threads(cpu->pool) * thread_floats(keys, head_size) *
		sizeof(float);
}

/* One row of a head: D floats. */
static float *
head_row(Tensor tensor, int row, int head, int head_size)
{
	return cpu_row(tensor, row) + head * head_size;
}

/* sums [rows, columns] = or += a b, by tiles of rows. */
static void
multiply_rows(const Kernels *kernels, int rows, StridedProduct product)
{
	const float *a = product.a;
	float	   *sums = product.sums;

	for (int r = 0; r < rows; r += product.rows)
	{
		product.rows = rows - r < kernels->tile_rows ? rows - r : kernels->tile_rows;
		product.a = a + (size_t) r * product.a_row;
		product.sums = sums + (size_t) r * product.sums_row;
		kernels->multiply_strided(&product);
	}
}

/*
 * The last key, plus one, that a block's rows see; and rows beyond a row's own span made zero
 * by the callers below.
 */
static int
block_end(const int32_t *spans, int rows)
{
	int			end = 0;

	for (int r = 0; r < rows; r++)
	{
		const int32_t *span = spans + r * ATTENTION_SPAN_FIELDS;
		int			here = span[SPAN_COUNT] > 0 ? span[SPAN_FIRST] + span[SPAN_COUNT] : 0;

		end = here > end ? here : end;
	}
	return end;
}

/* From scores and dP to P and dS, for the keys that each row sees; zero for the others. */
static void
soften_rows(const HeadWork *work, const int32_t *spans, int rows, int end)
{
	const Kernels *kernels = work->job->cpu->kernels;
	float		plan_scale = work->job->gradient->plan->scale;

	for (int r = 0; r < rows; r++)
	{
		const int32_t *span = spans + r * ATTENTION_SPAN_FIELDS;
		float		scale = span[SPAN_UNIFORM] ? 0.0f : plan_scale;
		int			first = span[SPAN_COUNT] > 0 ? span[SPAN_FIRST] : 0;
		int			seen = span[SPAN_COUNT];
		float	   *p = work->p + (size_t) r * work->key_stride;
		float	   *dp = work->dp + (size_t) r * work->key_stride;

		if (seen > 0)
		{
			kernels->softmax(seen, scale, p + first);
			kernels->softmax_backward(seen, scale, p + first, dp + first);
		}
		for (int part = 0; part < 2; part++)
		{
			int			from = part == 0 ? 0 : first + seen;
			int			count = part == 0 ? first : end - from;

			memset(p + from, 0, (size_t) count * sizeof(float));
			memset(dp + from, 0, (size_t) count * sizeof(float));
		}
	}
}

/* P, dP and dS of a block of queries. */
static void
block_scores(const HeadWork *work, int head, int row, int rows, int end)
{
	const AttentionGradient *g = work->job->gradient;
	const Kernels *kernels = work->job->cpu->kernels;
	StridedProduct product = {.columns = end,
							  .depth = g->head_size,
							  .first = true,
							  .a_depth = 1,
							  .b_depth = work->key_stride,
							  .sums_row = work->key_stride};

	product.a = head_row(g->q, row, head, g->head_size);
	product.a_row = (size_t) g->q.stride;
	product.b = work->turned_keys;
	product.sums = work->p;
	multiply_rows(kernels, rows, product);
	product.a = head_row(g->dy, row, head, g->head_size);
	product.a_row = (size_t) g->dy.stride;
	product.b = work->turned_values;
	product.sums = work->dp;
	multiply_rows(kernels, rows, product);
	soften_rows(work, (const int32_t *) g->plan->spans.data + row * ATTENTION_SPAN_FIELDS, rows,
				end);
}

/* sums of keys [end, D] += p^T of the block times rows [rows, D] of x: dk or dv. */
static void
add_to_keys(const HeadWork *work, const float *p, Tensor x, int head, int row, int rows, int end,
			Tensor sums)
{
	const AttentionGradient *g = work->job->gradient;
	StridedProduct product = {.columns = g->head_size,
							  .depth = rows,
							  .a = p,
							  .a_row = 1,
							  .a_depth = work->key_stride,
							  .b = head_row(x, row, head, g->head_size),
							  .b_depth = (size_t) x.stride,
							  .sums = head_row(sums, work->group[GROUP_FIRST_KEY], work->kv_head,
											   g->head_size),
							  .sums_row = (size_t) sums.stride};

	multiply_rows(work->job->cpu->kernels, end, product);
}

/* One block of queries of one head. */
static void
block_backward(const HeadWork *work, int head, int row, int rows)
{
	const AttentionGradient *g = work->job->gradient;
	const int32_t *spans = (const int32_t *) g->plan->spans.data + row * ATTENTION_SPAN_FIELDS;
	int			end = block_end(spans, rows);
	StridedProduct product = {.columns = g->head_size,
							  .depth = end,
							  .first = true,
							  .a = work->dp,
							  .a_row = work->key_stride,
							  .a_depth = 1,
							  .b = head_row(g->k, work->group[GROUP_FIRST_KEY], work->kv_head,
											g->head_size),
							  .b_depth = (size_t) g->k.stride,
							  .sums = head_row(g->dq, row, head, g->head_size),
							  .sums_row = (size_t) g->dq.stride};

	if (end > 0)
		block_scores(work, head, row, rows, end);
	multiply_rows(work->job->cpu->kernels, rows, product);
	if (g->dk.data == NULL || end == 0)
		return;
	add_to_keys(work, work->dp, g->q, head, row, rows, end, g->dk);
	add_to_keys(work, work->p, g->dy, head, row, rows, end, g->dv);
}

/* Turn the group's keys and values, and clear their gradients. */
static void
begin_head(HeadWork *work, float *scratch)
{
	const AttentionGradient *g = work->job->gradient;
	const Kernels *kernels = work->job->cpu->kernels;
	int			first = work->group[GROUP_FIRST_KEY];

	work->keys = work->group[GROUP_KEYS];
	work->key_stride = padded(work->keys);
	work->turned_keys = scratch;
	work->turned_values = work->turned_keys + work->key_stride * (size_t) g->head_size;
	work->p = work->turned_values + work->key_stride * (size_t) g->head_size;
	work->dp = work->p + work->key_stride * BLOCK_QUERIES;
	kernels->transpose(work->keys, g->head_size, head_row(g->k, first, work->kv_head,
														  g->head_size),
					   (size_t) g->k.stride, work->turned_keys, work->key_stride);
	kernels->transpose(work->keys, g->head_size, head_row(g->v, first, work->kv_head,
														  g->head_size),
					   (size_t) g->v.stride, work->turned_values, work->key_stride);
	for (int key = first; key < first + work->keys && g->dk.data != NULL; key++)
	{
		memset(head_row(g->dk, key, work->kv_head, g->head_size), 0,
			   (size_t) g->head_size * sizeof(float));
		memset(head_row(g->dv, key, work->kv_head, g->head_size), 0,
			   (size_t) g->head_size * sizeof(float));
	}
}

static void
attention_backward_task(void *argument, int task, int thread)
{
	AttentionBackwardJob *job = argument;
	const AttentionGradient *g = job->gradient;
	HeadWork	work = {.job = job, .kv_head = task % g->kv_heads};
	int			share = g->plan->heads / g->kv_heads;
	int			end;

	work.group = (const int32_t *) g->groups.data + task / g->kv_heads * ATTENTION_GROUP_FIELDS;
	begin_head(&work, (float *) g->scratch + (size_t) thread * job->thread_floats);
	end = work.group[GROUP_FIRST_ROW] + work.group[GROUP_ROWS];
	for (int head = work.kv_head * share; head < (work.kv_head + 1) * share; head++)
		for (int row = work.group[GROUP_FIRST_ROW]; row < end; row += BLOCK_QUERIES)
			block_backward(&work, head, row, end - row < BLOCK_QUERIES ? end - row
																	   : BLOCK_QUERIES);
}

void
cpu_attention_backward(Backend *backend, const AttentionGradient *gradient)
{
	AttentionBackwardJob job = {(CpuBackend *) backend, gradient, 0};
	const int32_t *groups = gradient->groups.data;
	double		work = 0;

	for (int i = 0; i < gradient->groups.rows; i++)
	{
		const int32_t *group = groups + i * ATTENTION_GROUP_FIELDS;
		size_t		need = thread_floats(group[GROUP_KEYS], gradient->head_size);

		job.thread_floats = need > job.thread_floats ? need : job.thread_floats;
		work += 5.0 * group[GROUP_ROWS] * group[GROUP_KEYS];
	}
	cpu_run(job.cpu, attention_backward_task, &job, gradient->groups.rows * gradient->kv_heads,
			work * gradient->q.columns);
}
