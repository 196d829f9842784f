/*
 * extension_tables.h - queries on the extension's own tables.
 *
 * The tables lie in the schema of the extension, which can move. Callers may not write them; the
 * functions of the extension do so with the rights of their owner, after the caller's own were
 * looked at. Names in queries are qualified, also of operators; what can't be (nullif looks for an
 * operator of its own) is found in pg_catalog, the search_path while the owner works. So nobody's
 * search_path leads these rights to functions of their own.
 */
#ifndef MMGPT_EXTENSION_TABLES_H
#define MMGPT_EXTENSION_TABLES_H

#include "postgres.h"

/* Who called, while the owner of the tables works. */
typedef struct TablesAccess
{
	Oid			caller;
	int			context;		/* security context of the caller */
	int			settings;		/* nest level of those that hold meanwhile */
} TablesAccess;

/*
 * Find the tables; 42704 where the extension is not installed. Returns a number that changes when
 * they were found anew: plans and oids kept from before are of no use then.
 */
extern uint64 tables_find(void);

/* The same without an error: false where the extension is not installed. */
extern bool tables_exist(void);

/* The schema as it is written in a query, until the next tables_find. */
extern const char *tables_schema(void);

/* Oid of a table that a DROP EXTENSION takes away; valid after tables_find. */
extern Oid	tables_identity(void);

/* Connect to SPI, or raise an error. */
extern void tables_connect(void);

/*
 * Begin and end work with the rights of the tables' owner, connected to SPI, and search_path at
 * pg_catalog. They may be nested; an error between them ends it too.
 */
extern void tables_begin(TablesAccess *access);
extern void tables_end(const TablesAccess *access);

/*
 * Run a query, in whose text every %s stands for the schema, at most 8 of them. True when it gave
 * or changed a row; the first ones are in SPI_tuptable. read_only: it sees what the statement of
 * the caller sees; otherwise it sees all that was committed before.
 */
extern bool tables_run(const char *text, int arguments, const Oid *types, const Datum *values,
					   const char *nulls, bool read_only);

/* The same between tables_begin and tables_end of its own, for queries that give nothing. */
extern bool tables_change(const char *text, int arguments, const Oid *types, const Datum *values,
						  const char *nulls);

/* A column, counted from 1, of the first row that a query gave, which is not NULL. */
extern Datum tables_column(int number);

/* The same, which may be NULL, as text of a memory context: NULL for NULL. */
extern char *tables_text_column(int number, MemoryContext context);

#endif
