/*
 * npy.h - NumPy's .npy files, version 1.0: float32 and uint8 in C order.
 */
#ifndef MMGPT_NPY_H
#define MMGPT_NPY_H

#include "arena.h"
#include "status.h"
#include "tensor.h"

typedef struct NpyArray
{
	DataType	type;			/* TYPE_F32 or TYPE_U8 */
	int			dimensions;		/* 1 to 4 */
	int			shape[4];
	void	   *data;			/* in the arena */
} NpyArray;

/* Read a file; STATUS_INVALID_ARGUMENT names it when it holds something else. */
extern bool npy_read(const char *path, Arena *arena, NpyArray *array, Status *status);

/* Write an array to a file. */
extern bool npy_write(const char *path, const NpyArray *array, Status *status);

#endif
