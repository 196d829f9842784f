/*
 * adapter_files.h - an adapter as PEFT's two files: adapter_config.json and
 * adapter_model.safetensors, in memory or in a directory.
 */
#ifndef MMGPT_ADAPTER_FILES_H
#define MMGPT_ADAPTER_FILES_H

#include "arena.h"
#include "model_internal.h"
#include "status.h"

/* What an adapter consists of. */
typedef struct AdapterShape
{
	int			r;
	double		alpha;
	unsigned	targets;		/* bits 1 << LoraTarget */
} AdapterShape;

/* One matrix of an adapter: A [r, K], or B [N, r]. */
typedef struct AdapterMatrix
{
	int			layer;
	LoraTarget	target;
	bool		b;
	int			rows;
	int			columns;
} AdapterMatrix;

/* Where the files of an adapter are. */
typedef struct AdapterSource
{
	const char *directory;		/* NULL: in memory */
	AdapterContent content;		/* then: the caller's bytes */
} AdapterSource;

/* Gives or takes the values f32 [rows, columns] of one matrix. */
typedef void (*AdapterMatrixFunction) (void *argument, const AdapterMatrix *matrix, float *values);

/* The two files, in an arena. */
typedef struct AdapterFiles
{
	char	   *config;			/* JSON */
	size_t		config_size;
	uint8_t    *tensors;		/* safetensors */
	size_t		tensors_size;
} AdapterFiles;

/* Make the files of an adapter, whose values give fills in. */
extern bool adapter_files_make(const Model *model, const AdapterShape *shape,
							   AdapterMatrixFunction give, void *argument, Arena *arena,
							   AdapterFiles *files, Status *status);

/*
 * Make a directory for an adapter if it is not there, and see that it can be written to; for
 * finding out before the work is done.
 */
extern bool adapter_files_prepare(const char *directory, Status *status);

/*
 * Write the files to a directory, which is made if it is not there. Each is complete before it
 * takes the place of an older one.
 */
extern bool adapter_files_save(const AdapterFiles *files, const char *directory, Status *status);

/* What an adapter consists of: targets are those that any layer has. */
extern bool adapter_files_shape(const Model *model, const AdapterSource *source,
								AdapterShape *shape, Status *status);

/*
 * Hand every matrix of the shape to take, as f32. STATUS_INVALID_MODEL names a matrix that
 * the files lack, one that is of another rank, and a tensor that is not of the shape.
 */
extern bool adapter_files_read(const Model *model, const AdapterSource *source,
							   const AdapterShape *shape, AdapterMatrixFunction take,
							   void *argument, Status *status);

#endif
