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

template <typename Element>
static void
write_rows(CudaBackend *cuda, Pages<Element> pages, Rows keys, Rows values, const int32_t *slots)
{
	for_each_element(cuda, keys.rows, pages.heads * pages.head_size,
					 [=] __device__ (int64_t row, int column) {
		const int	vector = Pages<Element>::vector;
		int			head = column / pages.head_size;
		int			d = column % pages.head_size;
		int			end = d == pages.head_size - 1 ? pages.vectors * vector : d + 1;
		int			page = slots[row] / KV_PAGE_KEYS;
		int			place = slots[row] % KV_PAGE_KEYS;
		Element    *key = pages.keys(page, head) + place * vector;
		Element    *value = pages.values(page, head) + place * pages.vectors * vector;

		/* the last element's thread also writes the zeros behind the head */
		for (int i = d; i < end; i++)
			store_pair(key + i / vector * KV_PAGE_KEYS * vector + i % vector, value + i,
					   i == d ? keys.row(row)[column] : 0.0f,
					   i == d ? values.row(row)[column] : 0.0f);
	});
}

void
cuda_kv_write(Backend *backend, const KvPool *pool, int layer, Tensor keys, Tensor values,
			  Tensor slots)
{
	CudaBackend *cuda = cuda_use(backend);
	const int32_t *places = static_cast<const int32_t *>(slots.data);

	if (pool->type == TYPE_BF16)
		write_rows(cuda, pages_of<uint16_t>(pool, layer), cuda_rows(keys), cuda_rows(values), places);
	else
		write_rows(cuda, pages_of<float>(pool, layer), cuda_rows(keys), cuda_rows(values), places);
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
