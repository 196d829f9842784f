/*
 * kv_pages.cu - pools of pages, and what is written to them.
 */
#include "attention.h"

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

__device__ static inline void
store_pair(float *key, float *value, float k, float v)
{
	*key = k;
	*value = v;
}

/*
 * A value that is infinite or no number would reach rows that do not see it, as zero times itself
 * (attention_mma.cu). In its place the key becomes NaN, which reaches whoever does see it.
 */
__device__ static inline void
store_pair(uint16_t *key, uint16_t *value, float k, float v)
{
	uint16_t	rounded = round_to_bf16(v);
	bool		finite = (rounded & 0x7F80) != 0x7F80;

	*key = finite ? round_to_bf16(k) : 0x7FC0;
	*value = finite ? rounded : 0;
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
	int			end = d == size - 1 ? pages.vectors * vector : d + 1;
	int64_t		row = blockIdx.y;
	int			place;
	Element    *key;
	Element    *value;

	if (column >= pages.heads * size)
		return;
	place = slots[row] % KV_PAGE_KEYS;
	key = pages.keys(slots[row] / KV_PAGE_KEYS, head) + place * vector;
	value = pages.values(slots[row] / KV_PAGE_KEYS, head) + place * pages.vectors * vector;
	/* the last element's thread also writes the zeros behind the head */
	for (int i = d; i < end; i++)
		store_pair(key + i / vector * KV_PAGE_KEYS * vector + i % vector, value + i,
				   i == d ? keys.row(row)[column] : 0.0f, i == d ? values.row(row)[column] : 0.0f);
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

	/* one by one, as cudaMemcpy2DAsync takes layers of at most 2 GB */
	for (int i = 0; i < pool->layers; i++)
	{
		char	   *pages = data + layer * static_cast<size_t>(i);

		cuda_note(cuda, cudaMemcpyAsync(pages + page * static_cast<size_t>(to),
										pages + page * static_cast<size_t>(from), page,
										cudaMemcpyDeviceToDevice, cuda->stream));
	}
}
