/*
 * attention.h - what the files of attention share: pages of keys and values, as kernels see them.
 *
 * In memory: layer, page, head, and there the keys as vectors of 16 bytes [vectors of D][keys of
 * the page], so that the lanes of a warp, a key each, read whole lines; then the values [keys][D],
 * where D is filled up to whole vectors with zeros.
 */
#ifndef MMGPT_CUDA_ATTENTION_H
#define MMGPT_CUDA_ATTENTION_H

#include "cuda_backend.h"

/* Widest head. */
#define MOST_HEAD_SIZE 256
#define VECTOR_BYTES 16

/* A layer of a pool, as kernels take it. */
template <typename Element>
struct Pages
{
	static const int vector = VECTOR_BYTES / static_cast<int>(sizeof(Element));

	Element    *data;
	int			heads;
	int			head_size;
	int			vectors;		/* of a key, and of a value */

	/* Keys of one head in one page. */
	__device__ Element *
	keys(int page, int head) const
	{
		return data + (static_cast<int64_t>(page) * heads + head) * 2 * KV_PAGE_KEYS * vectors *
			vector;
	}

	__device__ Element *
	values(int page, int head) const
	{
		return keys(page, head) + KV_PAGE_KEYS * vectors * vector;
	}
};

/* Vectors that hold a head. */
static inline int
head_vectors(DataType type, int head_size)
{
	int			vector = VECTOR_BYTES / static_cast<int>(data_type_size(type));

	return (head_size + vector - 1) / vector;
}

/* Bytes of one page of one layer. */
static inline size_t
page_bytes(DataType type, int heads, int head_size)
{
	return static_cast<size_t>(heads) * 2 * KV_PAGE_KEYS *
		static_cast<size_t>(head_vectors(type, head_size)) * VECTOR_BYTES;
}

template <typename Element>
static Pages<Element>
pages_of(const KvPool *pool, int layer)
{
	size_t		bytes = page_bytes(pool->type, pool->heads, pool->head_size) *
		static_cast<size_t>(pool->pages) * static_cast<size_t>(layer);

	return Pages<Element>{reinterpret_cast<Element *>(static_cast<char *>(pool->data) + bytes),
						  pool->heads, pool->head_size,
						  head_vectors(pool->type, pool->head_size)};
}

typedef struct AttentionArguments
{
	Rows		y;
	Rows		q;
	const int32_t *lists;
	const int32_t *spans;		/* [R, ATTENTION_SPAN_FIELDS] */
	int			heads;
	int			group;			/* heads of queries to one of keys */
	float		scale;
} AttentionArguments;

/* The span of a row. */
__device__ static inline const int32_t *
row_span(const AttentionArguments *p, int row)
{
	return p->spans + static_cast<int64_t>(row) * ATTENTION_SPAN_FIELDS;
}

/*
 * Whether a tile of rows begins with this one: tiles are rows that follow one another and see keys
 * of the same list, cut at multiples of `most` rows.
 */
__device__ static inline bool
begins_tile(const AttentionArguments *p, int row, int most)
{
	return row % most == 0 || row_span(p, row - 1)[SPAN_LIST] != row_span(p, row)[SPAN_LIST];
}

/* attention_mma.cu: attention over a layer of a bf16 pool. most_keys as in AttentionPlan. */
extern void cuda_attention_bf16(CudaBackend *cuda, const AttentionArguments *p,
								Pages<uint16_t> pages, int most_keys);

#endif
