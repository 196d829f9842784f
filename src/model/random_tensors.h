/*
 * random_tensors.h - tensors of noise in the place of a file's, for measuring models of any shape.
 */
#ifndef MMGPT_RANDOM_TENSORS_H
#define MMGPT_RANDOM_TENSORS_H

#include "arena.h"
#include "safetensors.h"
#include "status.h"

typedef struct RandomTensors RandomTensors;

/* None yet; NULL when memory is out. The arena holds what describes them. */
extern RandomTensors *random_tensors_create(Arena *arena);

/*
 * A bf16 tensor of this name and shape. Matrices are uniform with a deviation that keeps the size
 * of what goes through them, the weights of norms are about one. tensor_release_pages gives its
 * memory back.
 */
extern StoredTensor *random_tensors_draw(RandomTensors *tensors, const char *name, int dimensions,
										 const int *shape, Status *status);
extern void random_tensors_free(RandomTensors *tensors);

#endif
