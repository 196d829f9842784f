/*
 * job_options.h - the options of mmgpt_finetune and mmgpt_evaluate.
 *
 * Some are of the database: which columns hold what, where checkpoints go. They are read here. All
 * others are of the training, and go to the engine as they are, which knows and checks them.
 */
#ifndef MMGPT_JOB_OPTIONS_H
#define MMGPT_JOB_OPTIONS_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/jsonb.h"

/* What a table to train on may have in a column. */
typedef enum RowColumn
{
	COLUMN_IMAGE,
	COLUMN_INSTRUCTION,
	COLUMN_INPUT,
	COLUMN_RESPONSE,
	COLUMN_CONVERSATION,
	ROW_COLUMNS
} RowColumn;

/* The name of each: of the column where the option "columns" names no other. */
extern const char *const row_column_names[ROW_COLUMNS];

typedef struct JobOptions
{
	const char *columns[ROW_COLUMNS];	/* names; NULL: the usual one, where the table has it */
	bool		unused[ROW_COLUMNS];	/* the column is not read, though it may be there */
	List	   *key;			/* of char *: columns that name a row; NIL: the primary key */
	const char *image_rules;	/* display or original */
	const char *initial_adapter;	/* NULL: begin anew */
	bool		replace;		/* an adapter of that name */
	int			checkpoint_seconds; /* at least so long between two checkpoints */
	bool		fail_unusable;	/* the first unusable row ends the job */
	Jsonb	   *training;		/* all others; NULL: none */
} JobOptions;

/*
 * Read options (NULL: none); texts are of the current memory context. 22023 names what is wrong:
 * no object, a value of another type or out of range.
 */
extern void job_options_read(Jsonb *json, JobOptions *options);

/* The same for mmgpt_evaluate, which trains nothing: an option that is of no use is an error. */
extern void job_options_read_evaluation(Jsonb *json, JobOptions *options);

#endif
