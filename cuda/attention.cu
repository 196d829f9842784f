/*
 * attention.cu - pages of keys and values, and attention over them, for one new token as for a
 * prompt, over its own sequence or over the latents of pictures.
 *
 * In memory: layer, page, head, and there the keys as vectors of 16 bytes [vectors of D][keys of
 * the page], so that the lanes of a warp, a key each, read whole lines; then the values [keys][D],
 * whose lanes are elements of D.
 *
 * A block is one head of up to TILE_ROWS rows that see keys of the same list. It walks the keys
 * KEY_BLOCK at a time with a running softmax: scores, a thread a key; weights; values, a thread an
 * element. Blocks of keys begin at multiples of KEY_BLOCK of the sequence, and each row's sums go
 * in the order of its own keys: what a row computes does not depend on its company.
 */
#include "cuda_backend.h"

#define TILE_ROWS 8
#define KEY_BLOCK ROW_THREADS
/* Widest head. */
#define MOST_HEAD_SIZE 256
#define VECTOR_BYTES 16

/* ---- pages ---- */

static size_t
element_bytes(DataType type)
{
	return type == TYPE_BF16 ? sizeof(uint16_t) : sizeof(float);
}

/* Elements of a key, with zeros behind an odd end. */
__host__ __device__ static inline int
padded_size(int head_size, int vector)
{
	return (head_size + vector - 1) / vector * vector;
}

/* Bytes of one page of one layer. */
static size_t
page_bytes(DataType type, int heads, int head_size)
{
	size_t		size = element_bytes(type);
	int			padded = padded_size(head_size, static_cast<int>(VECTOR_BYTES / size));

	return static_cast<size_t>(heads) * KV_PAGE_KEYS * static_cast<size_t>(padded + head_size) *
		size;
}

size_t
cuda_kv_page_size(DataType type, int layers, int heads, int head_size)
{
	return static_cast<size_t>(layers) * page_bytes(type, heads, head_size);
}

bool
cuda_kv_create(Backend *backend, DataType type, int layers, int pages, int heads, int head_size,
			   KvPool *pool, Status *status)
{
	if (head_size > MOST_HEAD_SIZE)
		return status_set(status, STATUS_NOT_SUPPORTED,
						  "heads of %d elements are not supported on CUDA devices, at most %d are",
						  head_size, MOST_HEAD_SIZE);
	pool->type = type;
	pool->layers = layers;
	pool->pages = pages;
	pool->heads = heads;
	pool->head_size = head_size;
	pool->bytes = cuda_kv_page_size(type, layers, heads, head_size) * static_cast<size_t>(pages);
	return cuda_allocate(backend, pool->bytes, &pool->data, status);
}

void
cuda_kv_destroy(Backend *backend, KvPool *pool)
{
	cuda_release(backend, pool->data);
	pool->data = nullptr;
}

/* A layer of a pool, as kernels take it. */
template <typename Element>
struct Pages
{
	static const int vector = VECTOR_BYTES / static_cast<int>(sizeof(Element));

	Element    *data;
	int			heads;
	int			head_size;

	__device__ int
	padded(void) const
	{
		return padded_size(head_size, vector);
	}

	/* Keys of one head in one page. */
	__device__ Element *
	keys(int page, int head) const
	{
		return data + (static_cast<int64_t>(page) * heads + head) * KV_PAGE_KEYS *
			(padded() + head_size);
	}

	__device__ Element *
	values(int page, int head) const
	{
		return keys(page, head) + KV_PAGE_KEYS * padded();
	}
};

template <typename Element>
static Pages<Element>
pages_of(const KvPool *pool, int layer)
{
	size_t		bytes = page_bytes(pool->type, pool->heads, pool->head_size) *
		static_cast<size_t>(pool->pages) * static_cast<size_t>(layer);

	return Pages<Element>{reinterpret_cast<Element *>(static_cast<char *>(pool->data) + bytes),
						  pool->heads, pool->head_size};
}

__device__ static inline void
store_element(float *to, float value)
{
	*to = value;
}

__device__ static inline void
store_element(uint16_t *to, float value)
{
	*to = round_to_bf16(value);
}

__device__ static inline float
load_element(const float *from)
{
	return *from;
}

__device__ static inline float
load_element(const uint16_t *from)
{
	return bf16_value(*from);
}

/* A thread is one element of one row's keys and values. */
template <typename Element>
__global__ static void
write_kernel(Pages<Element> pages, Rows keys, Rows values, const int32_t *slots)
{
	const int	vector = Pages<Element>::vector;
	int			column = own_column();
	int			size = pages.head_size;
	int			head = column / size;
	int			d = column % size;
	int64_t		row = blockIdx.y;
	int			page;
	int			place;
	Element    *to;

	if (column >= pages.heads * size)
		return;
	page = slots[row] / KV_PAGE_KEYS;
	place = slots[row] % KV_PAGE_KEYS;
	to = pages.keys(page, head) + place * vector;
	store_element(to + d / vector * KV_PAGE_KEYS * vector + d % vector, keys.row(row)[column]);
	for (int i = d + 1; d == size - 1 && i < pages.padded(); i++)
		store_element(to + i / vector * KV_PAGE_KEYS * vector + i % vector, 0.0f);
	store_element(pages.values(page, head) + place * size + d, values.row(row)[column]);
}

void
cuda_kv_write(Backend *backend, const KvPool *pool, int layer, Tensor keys, Tensor values,
			  Tensor slots)
{
	CudaBackend *cuda = cuda_use(backend);
	const int32_t *places = static_cast<const int32_t *>(slots.data);

	for_row_ranges(keys.rows, [&](int first, int rows) {
		dim3		grid = element_grid(pool->heads * pool->head_size, rows);
		Rows		k = cuda_rows(tensor_row_range(keys, first, rows));
		Rows		v = cuda_rows(tensor_row_range(values, first, rows));

		if (pool->type == TYPE_BF16)
			LAUNCH(write_kernel<uint16_t>, grid, ROW_THREADS, 0, cuda->stream,
				   pages_of<uint16_t>(pool, layer), k, v, places + first);
		else
			LAUNCH(write_kernel<float>, grid, ROW_THREADS, 0, cuda->stream,
				   pages_of<float>(pool, layer), k, v, places + first);
	});
}

void
cuda_kv_copy(Backend *backend, const KvPool *pool, int from, int to)
{
	CudaBackend *cuda = cuda_use(backend);
	size_t		page = page_bytes(pool->type, pool->heads, pool->head_size);
	size_t		layer = page * static_cast<size_t>(pool->pages);
	char	   *data = static_cast<char *>(pool->data);

	cuda_note(cuda, cudaMemcpy2DAsync(data + page * static_cast<size_t>(to), layer,
									  data + page * static_cast<size_t>(from), layer, page,
									  static_cast<size_t>(pool->layers), cudaMemcpyDeviceToDevice,
									  cuda->stream));
}

/* ---- attention ---- */

typedef struct AttentionArguments
{
	Rows		y;
	Rows		q;
	const int32_t *lists;
	const int32_t *spans;		/* [R, ATTENTION_SPAN_FIELDS] */
	int			group;			/* heads of queries to one of keys */
	float		scale;
} AttentionArguments;

/* The elements of a vector of keys. */
__device__ static inline void
unpack(uint4 word, float (&k)[4])
{
	k[0] = __uint_as_float(word.x);
	k[1] = __uint_as_float(word.y);
	k[2] = __uint_as_float(word.z);
	k[3] = __uint_as_float(word.w);
}

__device__ static inline void
unpack(uint4 word, float (&k)[8])
{
	k[0] = low_bf16(word.x);
	k[1] = high_bf16(word.x);
	k[2] = low_bf16(word.y);
	k[3] = high_bf16(word.y);
	k[4] = low_bf16(word.z);
	k[5] = high_bf16(word.z);
	k[6] = low_bf16(word.w);
	k[7] = high_bf16(word.w);
}

/* A number as the format takes it. */
template <typename Element>
__device__ static inline float
as_element(float value)
{
	Element		element;

	store_element(&element, value);
	return load_element(&element);
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
	const int32_t *spans = p->spans + static_cast<int64_t>(row) * ATTENTION_SPAN_FIELDS;
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
template <typename Element>
__device__ static inline void
score_key(const Pages<Element> &pages, const int32_t *list, int kv_head, int key, const float *q,
		  float (&score)[TILE_ROWS])
{
	const int	vector = Pages<Element>::vector;
	const uint4 *keys = reinterpret_cast<const uint4 *>(pages.keys(list[key / KV_PAGE_KEYS],
																   kv_head)) + key % KV_PAGE_KEYS;

	for (int v = 0; v < pages.padded() / vector; v++)
	{
		float		k[vector];

		unpack(keys[v * KV_PAGE_KEYS], k);
#pragma unroll
		for (int r = 0; r < TILE_ROWS; r++)
#pragma unroll
			for (int i = 0; i < vector; i++)
				score[r] = fmaf(q[r * MOST_HEAD_SIZE + v * vector + i], k[i], score[r]);
	}
}

/* acc[r][part] += weights[r] times the values of keys [from, to) of the block from `begin` on. */
template <typename Element, int PARTS>
__device__ static inline void
add_values(const Pages<Element> &pages, const int32_t *list, int kv_head, int begin, int from,
		   int to, const float *weights, float (&acc)[TILE_ROWS][PARTS])
{
	for (int key = from; key < to; key++)
	{
		const Element *values = pages.values(list[key / KV_PAGE_KEYS], kv_head) +
			key % KV_PAGE_KEYS * pages.head_size;

#pragma unroll
		for (int part = 0; part < PARTS; part++)
		{
			int			d = part * ROW_THREADS + static_cast<int>(threadIdx.x);
			float		value = d < pages.head_size ? load_element(values + d) : 0.0f;

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
template <typename Element, int PARTS>
__global__ static void __launch_bounds__(ROW_THREADS)
attention_kernel(AttentionArguments p, Pages<Element> pages)
{
	SHARED(float, q, TILE_ROWS * MOST_HEAD_SIZE);
	SHARED(float, weights, TILE_ROWS * KEY_BLOCK);
	SHARED(float, scratch, TILE_ROWS * ROW_WARPS);
	int			row = static_cast<int>(blockIdx.x);
	int			head = static_cast<int>(blockIdx.y);
	int			thread = static_cast<int>(threadIdx.x);
	int			size = pages.head_size;
	const int32_t *list = p.lists + p.spans[static_cast<int64_t>(row) * ATTENTION_SPAN_FIELDS +
											SPAN_LIST];
	TileSpans	tile;
	float		largest[TILE_ROWS];
	float		sum[TILE_ROWS] = {};	/* of the weights, of this thread's keys */
	float		acc[TILE_ROWS][PARTS] = {};

	/* a row that follows another of its tile is done by the block of the first */
	if (row % TILE_ROWS != 0 &&
		p.spans[static_cast<int64_t>(row - 1) * ATTENTION_SPAN_FIELDS + SPAN_LIST] ==
			p.spans[static_cast<int64_t>(row) * ATTENTION_SPAN_FIELDS + SPAN_LIST])
		return;
	tile = read_spans(&p, row);
#pragma unroll
	for (int r = 0; r < TILE_ROWS; r++)
	{
		largest[r] = -FLT_MAX;
		for (int d = thread; d < pages.padded(); d += ROW_THREADS)
			q[r * MOST_HEAD_SIZE + d] = r < tile.rows && d < size
				? as_element<Element>(p.q.row(row + r)[head * size + d]) : 0.0f;
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
			weights[r * KEY_BLOCK + thread] = as_element<Element>(weight);
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
				p.y.row(row + r)[head * size + d] = total > 0.0f ? acc[r][part] / total : 0.0f;
		}
	}
}

template <typename Element>
static void
launch_attention(CudaBackend *cuda, const AttentionArguments *p, Pages<Element> pages, int heads)
{
	dim3		grid(static_cast<unsigned>(p->q.rows), static_cast<unsigned>(heads));

	if (pages.head_size <= ROW_THREADS)
		LAUNCH((attention_kernel<Element, 1>), grid, ROW_THREADS, 0, cuda->stream, *p, pages);
	else
		LAUNCH((attention_kernel<Element, 2>), grid, ROW_THREADS, 0, cuda->stream, *p, pages);
}

void
cuda_attention(Backend *backend, Tensor y, Tensor q, const KvPool *pool, int layer,
			   const AttentionPlan *plan)
{
	CudaBackend *cuda = cuda_use(backend);
	AttentionArguments p = {cuda_rows(y), cuda_rows(q),
							static_cast<const int32_t *>(plan->page_lists.data),
							static_cast<const int32_t *>(plan->spans.data),
							plan->heads / pool->heads, plan->scale};

	if (q.rows == 0)
		return;
	if (pool->type == TYPE_BF16)
		launch_attention(cuda, &p, pages_of<uint16_t>(pool, layer), plan->heads);
	else
		launch_attention(cuda, &p, pages_of<float>(pool, layer), plan->heads);
}
