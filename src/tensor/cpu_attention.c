/*
 * cpu_attention.c - pages of keys and values, and attention over them.
 *
 * In memory: layer, page, head, and there the keys transposed [D, KV_PAGE_KEYS] and
 * the values [KV_PAGE_KEYS, D], so that both products of attention run over outputs. In bf16 two
 * elements that follow one another in the depth of the product share a word of 32 bits: keys
 * [pairs of D, KV_PAGE_KEYS, 2], values [pairs of keys, D, 2].
 * The softmax runs along the pages with a running maximum; no matrix of scores is
 * stored. Pages begin at multiples of KV_PAGE_KEYS of the sequence, so the order
 * of the sums depends on positions only.
 */
#include "cpu_backend.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

/* Elements that are rounded at once; even. */
#define WRITE_BLOCK 256

/* Words of 32 bits of the keys of one head in one page. */
static size_t
key_words(DataType type, int head_size)
{
	int			steps = type == TYPE_BF16 ? (head_size + 1) / 2 : head_size;

	return (size_t) KV_PAGE_KEYS * (size_t) steps;
}

/* Words of one head in one page. */
static size_t
head_words(DataType type, int head_size)
{
	int			steps = type == TYPE_BF16 ? KV_PAGE_KEYS / 2 : KV_PAGE_KEYS;

	return key_words(type, head_size) + (size_t) steps * (size_t) head_size;
}

/* Words from one page to the next. */
static size_t
page_words(const KvPool *pool)
{
	return head_words(pool->type, pool->head_size) * (size_t) pool->heads;
}

static float *
layer_data(const KvPool *pool, int layer)
{
	return (float *) pool->data + page_words(pool) * (size_t) pool->pages * (size_t) layer;
}

size_t
cpu_kv_page_size(DataType type, int layers, int heads, int head_size)
{
	return head_words(type, head_size) * sizeof(float) * (size_t) layers * (size_t) heads;
}

bool
cpu_kv_create(Backend *backend, DataType type, int layers, int pages, int heads, int head_size,
			  KvPool *pool, Status *status)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	size_t		queries = (size_t) thread_pool_threads(cpu->pool) * ATTEND_SCRATCH(head_size) *
		sizeof(float);

	if (!cpu_grow(backend, &cpu->queries, &cpu->queries_size, queries, status))
		return false;
	pool->type = type;
	pool->layers = layers;
	pool->pages = pages;
	pool->heads = heads;
	pool->head_size = head_size;
	pool->bytes = cpu_kv_page_size(type, layers, heads, head_size) * (size_t) pages;
	if (!backend->ops->allocate(backend, pool->bytes, &pool->data, status))
		return false;
	/* only what answers use becomes resident */
	madvise(pool->data, pool->bytes, MADV_NOHUGEPAGE);
	return true;
}

void
cpu_kv_destroy(Backend *backend, KvPool *pool)
{
	backend->ops->release(backend, pool->data);
	pool->data = NULL;
}

typedef struct KvWriteJob
{
	const Kernels *kernels;
	const KvPool *pool;
	float	   *layer;
	Tensor		keys;
	Tensor		values;
	const int32_t *slots;
} KvWriteJob;

/* Put one head of a row into its page: the keys down a column, the values along a row. */
static void
write_f32(int size, int place, const float *k, const float *v, float *keys, float *values)
{
	for (int d = 0; d < size; d++)
		keys[d * KV_PAGE_KEYS + place] = k[d];
	memcpy(values + place * size, v, (size_t) size * sizeof(float));
}

/* The same, rounded to bf16; an odd head size is filled up with zero. */
static void
write_bf16(const Kernels *kernels, int size, int place, const float *k, const float *v,
		   uint32_t *keys, uint16_t *values)
{
	values += place / 2 * 2 * size + place % 2;
	for (int first = 0; first < size; first += WRITE_BLOCK)
	{
		int			count = size - first < WRITE_BLOCK ? size - first : WRITE_BLOCK;
		uint16_t	half[WRITE_BLOCK];
		uint32_t	pair[WRITE_BLOCK / 2];

		pair[(count - 1) / 2] = 0;
		kernels->convert_bf16(count, k + first, (uint16_t *) pair);
		for (int i = 0; i < (count + 1) / 2; i++)
			keys[(first / 2 + i) * KV_PAGE_KEYS + place] = pair[i];
		kernels->convert_bf16(count, v + first, half);
		for (int i = 0; i < count; i++)
			values[2 * (first + i)] = half[i];
	}
}

/* One head of a row; asks for the next head of it, which comes when all rows have had this one. */
static void
kv_write_head(const KvWriteJob *job, int row, int head)
{
	const KvPool *pool = job->pool;
	int			size = pool->head_size;
	int			page = job->slots[row] / KV_PAGE_KEYS;
	int			place = job->slots[row] % KV_PAGE_KEYS;
	float	   *keys = job->layer + page_words(pool) * (size_t) page +
					   head_words(pool->type, size) * (size_t) head;
	float	   *values = keys + key_words(pool->type, size);
	const float *k = cpu_row(job->keys, row) + head * size;
	const float *v = cpu_row(job->values, row) + head * size;

	for (int i = 0; i < size && head + 1 < pool->heads; i += CACHE_LINE / (int) sizeof(float))
	{
		__builtin_prefetch(k + size + i);
		__builtin_prefetch(v + size + i);
	}
	if (pool->type == TYPE_BF16)
		write_bf16(job->kernels, size, place, k, v, (uint32_t *) keys, (uint16_t *) values);
	else
		write_f32(size, place, k, v, keys, values);
}

/*
 * KV_PAGE_KEYS rows, head by head: as a rule they go to a page or two, which stay in the
 * first-level cache. No two rows write to the same place.
 */
static void
kv_write_task(void *argument, int task, int thread)
{
	KvWriteJob *job = argument;
	int			first = task * KV_PAGE_KEYS;
	int			end = first + KV_PAGE_KEYS < job->keys.rows ? first + KV_PAGE_KEYS : job->keys.rows;

	for (int head = 0; head < job->pool->heads; head++)
		for (int row = first; row < end; row++)
			kv_write_head(job, row, head);
}

void
cpu_kv_write(Backend *backend, const KvPool *pool, int layer, Tensor keys, Tensor values,
			 Tensor slots)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	KvWriteJob	job = {cpu->kernels, pool, layer_data(pool, layer), keys, values, slots.data};

	cpu_run(cpu, kv_write_task, &job, (keys.rows + KV_PAGE_KEYS - 1) / KV_PAGE_KEYS,
			2.0 * keys.rows * keys.columns);
}

void
cpu_kv_copy(Backend *backend, const KvPool *pool, int from, int to)
{
	size_t		page = page_words(pool);

	for (int layer = 0; layer < pool->layers; layer++)
		memcpy(layer_data(pool, layer) + page * (size_t) to,
			   layer_data(pool, layer) + page * (size_t) from, page * sizeof(float));
}

typedef struct AttentionJob
{
	CpuBackend *cpu;
	const KvPool *pool;
	const float *layer;
	Tensor		y;
	Tensor		q;
	const AttentionPlan *plan;
} AttentionJob;

/* Rows [row, row + rows) see keys of the same list: one head of them is a tile. */
static void
attend_rows(const AttentionJob *job, int row, int rows, int head, int thread)
{
	const KvPool *pool = job->pool;
	int			size = pool->head_size;
	int			kv_head = head / (job->plan->heads / pool->heads);
	const int32_t *spans = (const int32_t *) job->plan->spans.data + row * ATTENTION_SPAN_FIELDS;
	AttendTile	tile;

	tile.rows = rows;
	tile.head_size = size;
	tile.pages = (const int32_t *) job->plan->page_lists.data + spans[SPAN_LIST];
	tile.keys = job->layer + head_words(pool->type, size) * (size_t) kv_head;
	tile.values = tile.keys + key_words(pool->type, size);
	tile.page_stride = page_words(pool);
	tile.scratch = (float *) job->cpu->queries + (size_t) thread * ATTEND_SCRATCH(size);
	for (int r = 0; r < rows; r++)
	{
		const int32_t *span = spans + r * ATTENTION_SPAN_FIELDS;

		tile.q[r] = cpu_row(job->q, row + r) + head * size;
		tile.y[r] = cpu_row(job->y, row + r) + head * size;
		tile.scale[r] = span[SPAN_UNIFORM] ? 0.0f : job->plan->scale;
		tile.first[r] = span[SPAN_FIRST];
		tile.end[r] = span[SPAN_FIRST] + span[SPAN_COUNT];
	}
	if (pool->type == TYPE_BF16)
		job->cpu->kernels->attend_bf16(&tile);
	else
		job->cpu->kernels->attend(&tile);
}

/*
 * One head of ATTEND_MAX_ROWS rows, cut where the list of pages changes. Tasks of one head follow
 * one another, so that its keys and values stay in the cache.
 */
static void
attention_task(void *argument, int task, int thread)
{
	AttentionJob *job = argument;
	int			blocks = (job->q.rows + ATTEND_MAX_ROWS - 1) / ATTEND_MAX_ROWS;
	int			head = task / blocks;
	int			row = task % blocks * ATTEND_MAX_ROWS;
	int			end = row + ATTEND_MAX_ROWS < job->q.rows ? row + ATTEND_MAX_ROWS : job->q.rows;
	const int32_t *spans = job->plan->spans.data;

	while (row < end)
	{
		int			rows = 1;

		while (row + rows < end && spans[(row + rows) * ATTENTION_SPAN_FIELDS + SPAN_LIST] ==
									   spans[row * ATTENTION_SPAN_FIELDS + SPAN_LIST])
			rows++;
		attend_rows(job, row, rows, head, thread);
		row += rows;
	}
}

void
cpu_attention(Backend *backend, Tensor y, Tensor q, const KvPool *pool, int layer,
			  const AttentionPlan *plan)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	AttentionJob job = {cpu, pool, layer_data(pool, layer), y, q, plan};
	int			blocks = (q.rows + ATTEND_MAX_ROWS - 1) / ATTEND_MAX_ROWS;
	double		keys = 0;

	for (int r = 0; r < q.rows; r++)
		keys += ((const int32_t *) plan->spans.data)[r * ATTENTION_SPAN_FIELDS + SPAN_COUNT];
	cpu_run(cpu, attention_task, &job, blocks * plan->heads, 2 * keys * q.columns);
}
