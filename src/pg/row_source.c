/*
 * row_source.c - see row_source.h.
 */
#include "row_source.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "extension_tables.h"
#include "pg_compat.h"

/* Raise an error unless the relation is something that rows can be read from. */
static void
check_kind(Relation relation)
{
	switch (relation->rd_rel->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
		case RELKIND_VIEW:
		case RELKIND_MATVIEW:
		case RELKIND_FOREIGN_TABLE:
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("\"%s\" is not a table or view", RelationGetRelationName(relation))));
}

/* Raise an error unless a column's type is one of those that fit. */
static void
check_type(Relation relation, RowColumn column, AttrNumber number)
{
	Oid			type = getBaseType(TupleDescAttr(RelationGetDescr(relation), number - 1)->atttypid);
	const char *name = NameStr(TupleDescAttr(RelationGetDescr(relation), number - 1)->attname);
	const char *wanted;
	char		category;
	bool		preferred;

	if (column == COLUMN_IMAGE && type != BYTEAOID)
		wanted = "bytea";
	else if (column == COLUMN_CONVERSATION && type != JSONBOID && type != JSONOID)
		wanted = "jsonb";
	else if (column == COLUMN_IMAGE || column == COLUMN_CONVERSATION)
		return;
	else
	{
		get_type_category_preferred(type, &category, &preferred);
		if (category == TYPCATEGORY_STRING)
			return;
		wanted = "text";
	}
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("column \"%s\" of table \"%s\" must be of type %s, not %s", name,
					RelationGetRelationName(relation), wanted, format_type_be(type)),
			 errhint("Name another with the option \"columns\", or make a view.")));
}

/* The number of a column; InvalidAttrNumber, or an error where it must be there. */
static AttrNumber
column_number(Relation relation, const char *name, const char *option)
{
	AttrNumber	number = get_attnum(RelationGetRelid(relation), name);

	if (number <= 0 && option != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist", name,
						RelationGetRelationName(relation)),
				 errdetail("The option \"%s\" names it.", option)));
	return number > 0 ? number : InvalidAttrNumber;
}

/* Find the columns; NULL in names where there is none. */
static void
find_columns(Relation relation, const JobOptions *options, const char *names[ROW_COLUMNS])
{
	for (int i = 0; i < ROW_COLUMNS; i++)
	{
		const char *name = options->columns[i] != NULL ? options->columns[i] : row_column_names[i];
		AttrNumber	number = options->unused[i] ? InvalidAttrNumber :
			column_number(relation, name, options->columns[i] != NULL ? "columns" : NULL);

		names[i] = number == InvalidAttrNumber ? NULL : name;
		if (names[i] != NULL)
			check_type(relation, (RowColumn) i, number);
	}
	if (names[COLUMN_CONVERSATION] == NULL &&
		(names[COLUMN_INSTRUCTION] == NULL || names[COLUMN_RESPONSE] == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("table \"%s\" has no columns to train on",
						RelationGetRelationName(relation)),
				 errdetail("It needs \"instruction\" and \"response\", or \"conversation\"."),
				 errhint("Name columns with the option \"columns\", or make a view.")));
}

/* The columns of the primary key, or NIL. */
static List *
primary_key(Relation relation)
{
	List	   *key = NIL;
	ListCell   *cell;

	foreach(cell, RelationGetIndexList(relation))
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));
		Form_pg_index index;

		if (!HeapTupleIsValid(tuple))
			continue;
		index = (Form_pg_index) GETSTRUCT(tuple);
		for (int i = 0; index->indisprimary && i < index->indnkeyatts; i++)
			key = lappend(key, get_attname(RelationGetRelid(relation), index->indkey.values[i],
										   false));
		ReleaseSysCache(tuple);
	}
	return key;
}

/* The columns that name a row, or NIL. */
static List *
find_key(Relation relation, const JobOptions *options)
{
	ListCell   *cell;

	foreach(cell, options->key)
		(void) column_number(relation, lfirst(cell), "key");
	return options->key != NIL ? options->key : primary_key(relation);
}

/* Whether rows have a place that they are found at: tables and partitions do. */
static bool
has_places(Relation relation)
{
	return relation->rd_rel->relkind == RELKIND_RELATION ||
		relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ||
		relation->rd_rel->relkind == RELKIND_MATVIEW;
}

/* Append the columns of a key, each quoted and with something behind it. */
static void
append_key(StringInfo query, List *key, const char *behind)
{
	ListCell   *cell;

	foreach(cell, key)
		appendStringInfo(query, "%st.%s%s", cell == list_head(key) ? "" : ", ",
						 quote_identifier(lfirst(cell)), behind);
}

static void
append_columns(StringInfo query, const char *const names[ROW_COLUMNS])
{
	for (int i = 0; i < ROW_COLUMNS; i++)
	{
		const char *type = i == COLUMN_IMAGE ? "bytea" : "text";

		if (names[i] == NULL)
			appendStringInfo(query, ", NULL::pg_catalog.%s", type);
		else
			appendStringInfo(query, ", t.%s::pg_catalog.%s", quote_identifier(names[i]), type);
	}
}

void
row_source_make(Oid table, const JobOptions *options, RowSource *source)
{
	Relation	relation = try_relation_open(table, AccessShareLock);
	const char *names[ROW_COLUMNS];
	StringInfoData query;
	List	   *key;

	if (relation == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the table to train on, of OID %u, does not exist", table)));
	check_kind(relation);
	find_columns(relation, options, names);
	key = find_key(relation, options);
	source->name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
											  RelationGetRelationName(relation));
	initStringInfo(&query);
	appendStringInfoString(&query, "SELECT ");
	if (key != NIL)
	{
		appendStringInfoString(&query, "pg_catalog.concat_ws(', ', ");
		append_key(&query, key, "::pg_catalog.text");
		appendStringInfoChar(&query, ')');
	}
	else
		appendStringInfoString(&query, has_places(relation) ? "t.ctid::pg_catalog.text" :
							   "NULL::pg_catalog.text");
	append_columns(&query, names);
	appendStringInfo(&query, " FROM %s t", source->name);
	if (key != NIL)
	{
		appendStringInfoString(&query, " ORDER BY ");
		append_key(&query, key, "");
	}
	else if (has_places(relation))
		appendStringInfoString(&query, " ORDER BY t.tableoid, t.ctid");
	source->query = query.data;
	source->dialogues = names[COLUMN_INSTRUCTION] == NULL || names[COLUMN_RESPONSE] == NULL;
	/* locked until the transaction ends: under these names the query must find what was checked */
	relation_close(relation, NoLock);
}

void
row_source_check(const RowSource *source)
{
	tables_connect();
	if (SPI_execute(psprintf("%s LIMIT 0", source->query), true, 0) != SPI_OK_SELECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("SPI_execute failed")));
	SPI_finish();
}
