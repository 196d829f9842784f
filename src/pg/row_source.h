/*
 * row_source.h - the query that reads the rows of a table to train on.
 */
#ifndef MMGPT_ROW_SOURCE_H
#define MMGPT_ROW_SOURCE_H

#include "postgres.h"

#include "job_options.h"

/* Columns of the query, counted from 1. */
#define SOURCE_KEY 1
#define SOURCE_COLUMN(column) (2 + (int) (column))

typedef struct RowSource
{
	char	   *name;			/* of the table, qualified and quoted */
	char	   *query;			/* gives the key as text and all columns, NULL for absent ones */
	bool		dialogues;		/* rows have nothing to train on but "conversation" */
} RowSource;

/*
 * Make the query for a table, view, materialized view or foreign table. Rows come by the key of the
 * options, else by the primary key, else by their place (ctid), else as a view gives them.
 * Errors: 42P01 no such table, 42809 not a table, 42703 no such column or none to train on, 42804 a
 * column of a type that does not fit.
 */
extern void row_source_make(Oid table, const JobOptions *options, RowSource *source);

/* Run the query for no row, which raises the errors that the caller's rights lead to. */
extern void row_source_check(const RowSource *source);

#endif
