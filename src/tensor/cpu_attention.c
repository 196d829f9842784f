/*
 * cpu_attention.c - pages of keys and values, and attention over them.
 *
 * In memory: layer, page, head, and there the keys transposed [D, KV_PAGE_KEYS] and
 * the values [KV_PAGE_KEYS, D], so that both products of attention run over outputs.
 * The softmax runs along the pages with a running maximum; no matrix of scores is
 * stored. Pages begin at multiples of KV_PAGE_KEYS of the sequence, so the order
 * of the sums depends on positions only.
 */
#include "cpu_backend.h"

#include <stdint.h>
#include <string.h>

/* Floats of one head in one page. */
static size_t
head_floats(const KvPool *pool)
{
	return 2 * (size_t) KV_PAGE_KEYS * (size_t) pool->head_size;
}

/* Floats from one page to the next. */
static size_t
page_floats(const KvPool *pool)
{
	return head_floats(pool) * (size_t) pool->heads;
}

static float *
layer_data(const KvPool *pool, int layer)
{
	return (float *) pool->data + page_floats(pool) * (size_t) pool->pages * (size_t) layer;
}

bool
cpu_kv_create(Backend *backend, int layers, int pages, int heads, int head_size, KvPool *pool,
			  Status *status)
{
	pool->layers = layers;
	pool->pages = pages;
	pool->heads = heads;
	pool->head_size = head_size;
	pool->bytes = page_floats(pool) * sizeof(float) * (size_t) pages * (size_t) layers;
	return backend->ops->allocate(backend, pool->bytes, &pool->data, status);
}

void
cpu_kv_destroy(Backend *backend, KvPool *pool)
{
	backend->ops->release(backend, pool->data);
	pool->data = NULL;
}

typedef struct KvWriteJob
{
	const KvPool *pool;
	float	   *layer;
	Tensor		keys;
	Tensor		values;
	const int32_t *slots;
} KvWriteJob;

static void
kv_write_row(void *argument, int row, int thread)
{
	KvWriteJob *job = argument;
	int			size = job->pool->head_size;
	int			page = job->slots[row] / KV_PAGE_KEYS;
	int			place = job->slots[row] % KV_PAGE_KEYS;

	for (int h = 0; h < job->pool->heads; h++)
	{
		float	   *keys = job->layer + page_floats(job->pool) * (size_t) page +
						   head_floats(job->pool) * (size_t) h;
		float	   *values = keys + size * KV_PAGE_KEYS + place * size;
		const float *k = cpu_row(job->keys, row) + h * size;

		for (int d = 0; d < size; d++)
			keys[d * KV_PAGE_KEYS + place] = k[d];
		memcpy(values, cpu_row(job->values, row) + h * size, (size_t) size * sizeof(float));
	}
}

void
cpu_kv_write(Backend *backend, const KvPool *pool, int layer, Tensor keys, Tensor values,
			 Tensor slots)
{
	KvWriteJob	job = {pool, layer_data(pool, layer), keys, values, slots.data};

	cpu_run((CpuBackend *) backend, kv_write_row, &job, keys.rows, 2.0 * keys.rows * keys.columns);
}

void
cpu_kv_copy(Backend *backend, const KvPool *pool, int from, int to)
{
	size_t		page = page_floats(pool);

	for (int layer = 0; layer < pool->layers; layer++)
		memcpy(layer_data(pool, layer) + page * (size_t) to,
			   layer_data(pool, layer) + page * (size_t) from, page * sizeof(float));
}

typedef struct AttentionJob
{
	const Kernels *kernels;
	const KvPool *pool;
	const float *layer;
	Tensor		y;
	Tensor		q;
	const AttentionPlan *plan;
} AttentionJob;

/* Rows [row, row + rows) see keys of the same list: one head of them is a tile. */
static void
attend_rows(const AttentionJob *job, int row, int rows, int head)
{
	const KvPool *pool = job->pool;
	int			size = pool->head_size;
	int			kv_head = head / (job->plan->heads / pool->heads);
	const int32_t *spans = (const int32_t *) job->plan->spans.data + row * ATTENTION_SPAN_FIELDS;
	AttendTile	tile;

	tile.rows = rows;
	tile.head_size = size;
	tile.value_stride = size;
	tile.pages = (const int32_t *) job->plan->page_lists.data + spans[SPAN_LIST];
	tile.keys = job->layer + head_floats(pool) * (size_t) kv_head;
	tile.values = tile.keys + size * KV_PAGE_KEYS;
	tile.page_stride = page_floats(pool);
	for (int r = 0; r < rows; r++)
	{
		const int32_t *span = spans + r * ATTENTION_SPAN_FIELDS;

		tile.q[r] = cpu_row(job->q, row + r) + head * size;
		tile.y[r] = cpu_row(job->y, row + r) + head * size;
		tile.scale[r] = span[SPAN_UNIFORM] ? 0.0f : job->plan->scale;
		tile.first[r] = span[SPAN_FIRST];
		tile.end[r] = span[SPAN_FIRST] + span[SPAN_COUNT];
	}
	job->kernels->attend(&tile);
}

/* One head of ATTEND_MAX_ROWS rows, cut where the list of pages changes. */
static void
attention_task(void *argument, int task, int thread)
{
	AttentionJob *job = argument;
	int			head = task % job->plan->heads;
	int			row = task / job->plan->heads * ATTEND_MAX_ROWS;
	int			end = row + ATTEND_MAX_ROWS < job->q.rows ? row + ATTEND_MAX_ROWS : job->q.rows;
	const int32_t *spans = job->plan->spans.data;

	while (row < end)
	{
		int			rows = 1;

		while (row + rows < end && spans[(row + rows) * ATTENTION_SPAN_FIELDS + SPAN_LIST] ==
									   spans[row * ATTENTION_SPAN_FIELDS + SPAN_LIST])
			rows++;
		attend_rows(job, row, rows, head);
		row += rows;
	}
}

void
cpu_attention(Backend *backend, Tensor y, Tensor q, const KvPool *pool, int layer,
			  const AttentionPlan *plan)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	AttentionJob job = {cpu->kernels, pool, layer_data(pool, layer), y, q, plan};
	int			blocks = (q.rows + ATTEND_MAX_ROWS - 1) / ATTEND_MAX_ROWS;
	double		keys = 0;

	for (int r = 0; r < q.rows; r++)
		keys += ((const int32_t *) plan->spans.data)[r * ATTENTION_SPAN_FIELDS + SPAN_COUNT];
	cpu_run(cpu, attention_task, &job, blocks * plan->heads, 2 * keys * q.columns);
}
