/*
 * safetensors.h - the tensors of a directory's *.safetensors files, mapped into
 * memory and checked.
 *
 * A file is 8 bytes with the length of its header, the header (JSON: name -> type,
 * shape, byte range) and the data. Nothing of it is trusted: every range must lie in
 * the file and have exactly the size that type and shape ask for.
 */
#ifndef MMGPT_SAFETENSORS_H
#define MMGPT_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "digest.h"
#include "status.h"
#include "tensor.h"

#define SAFETENSORS_MAX_DIMENSIONS 4

typedef struct StoredTensor
{
	/* without "lang_encoder.", "base_model.model.", "decoder_layer." and ".default" */
	const char *name;
	const char *stored_name;	/* as in the file */
	const char *file;			/* path, for messages */
	DataType	type;			/* f32, f16, bf16; i8, u8: codes of a quantised matrix */
	int			dimensions;
	int			shape[SAFETENSORS_MAX_DIMENSIONS];
	const void *data;			/* in the mapping */
	size_t		bytes;
	bool		used;			/* asked for by tensor_store_find */
} StoredTensor;

typedef struct TensorStore TensorStore;

/*
 * Map the file `single` of a directory if it is there, as Hugging Face's loaders do with
 * model.safetensors, and otherwise all its *.safetensors files in the order of
 * their names. STATUS_INVALID_MODEL names file and tensor. The arena holds the store;
 * unmap with tensor_store_close.
 */
extern TensorStore *tensor_store_open(const char *directory, const char *single, Arena *arena,
									  Status *status);
extern void tensor_store_close(TensorStore *store);

/* The same for one file in memory, which must outlive the store; name stands in messages. */
extern TensorStore *tensor_store_open_bytes(const void *bytes, size_t size, const char *name,
											Arena *arena, Status *status);

/* Does it hold numbers, and not codes? */
static inline bool
stored_tensor_is_floating(const StoredTensor *tensor)
{
	return tensor->type == TYPE_F32 || tensor->type == TYPE_F16 || tensor->type == TYPE_BF16;
}

/* The tensor of this name, marked as used; NULL if there is none. */
extern StoredTensor *tensor_store_find(TensorStore *store, const char *name);

/* The first tensor that nobody asked for; NULL when all were used. */
extern const StoredTensor *tensor_store_unused(const TensorStore *store);

/* All tensors, for walking. */
extern int	tensor_store_count(const TensorStore *store);
extern StoredTensor *tensor_store_at(const TensorStore *store, int i);

/*
 * Give back the memory of a tensor's pages, which would be read from the file again. Loading
 * does so tensor by tensor, so that no second copy of the model is ever in memory.
 */
extern void tensor_release_pages(const StoredTensor *tensor);

/* Bytes of all tensors. */
extern size_t tensor_store_bytes(const TensorStore *store);

/* Add what identifies the files to a digest: header, size and samples of the data. */
extern void tensor_store_digest(const TensorStore *store, DigestState *digest);

#endif
