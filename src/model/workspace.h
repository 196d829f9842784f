/*
 * workspace.h - device memory for the intermediate tensors of one step.
 *
 * One block, allocated when the model opens and handed out from its start in each
 * step, so that nothing is allocated while answers are computed. A workspace without
 * memory only measures: the same code that takes the tensors tells how much it needs.
 */
#ifndef MMGPT_WORKSPACE_H
#define MMGPT_WORKSPACE_H

#include "backend.h"

typedef struct Workspace
{
	char	   *base;			/* device address; NULL while measuring */
	size_t		size;
	size_t		used;
	size_t		peak;			/* largest used so far */
} Workspace;

#define WORKSPACE_ALIGNMENT ((size_t) 256)

/* Take a dense tensor. The size was measured before, so this always fits. */
static inline Tensor
workspace_take(Workspace *workspace, DataType type, int rows, int columns)
{
	size_t		bytes = (size_t) rows * (size_t) columns * data_type_size(type);
	Tensor		tensor = tensor_make(
		workspace->base == NULL ? NULL : workspace->base + workspace->used, type, rows, columns);

	workspace->used += (bytes + WORKSPACE_ALIGNMENT - 1) / WORKSPACE_ALIGNMENT *
					   WORKSPACE_ALIGNMENT;
	if (workspace->used > workspace->peak)
		workspace->peak = workspace->used;
	return tensor;
}

/* f32, the usual case. */
static inline Tensor
workspace_floats(Workspace *workspace, int rows, int columns)
{
	return workspace_take(workspace, TYPE_F32, rows, columns);
}

/* i32 [1, count] or, with columns, [count, columns]. */
static inline Tensor
workspace_integers(Workspace *workspace, int rows, int columns)
{
	return workspace_take(workspace, TYPE_I32, rows, columns);
}

#endif
