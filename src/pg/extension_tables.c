/*
 * extension_tables.c - see extension_tables.h.
 *
 * Where the tables are is looked up once, and forgotten when the definition of one of them changes.
 */
#include "extension_tables.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "pg_compat.h"

/* Where the tables are, while table is set. */
static char *schema = NULL;		/* quoted; of TopMemoryContext */
static Oid	table = InvalidOid;
static uint64 generation = 0;

/* A table changed: it may have moved, or have been dropped. */
static void
forget_schema(Datum argument, Oid relation)
{
	if (relation == InvalidOid || relation == table)
		table = InvalidOid;
}

/* The schema of the extension. */
static Oid
extension_schema(void)
{
	Relation	extensions = table_open(ExtensionRelationId, AccessShareLock);
	Oid			found = InvalidOid;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("mmgpt"));
	scan = systable_beginscan(extensions, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		found = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(extensions, AccessShareLock);
	return found;
}

bool
tables_exist(void)
{
	static bool registered = false;
	Oid			namespace;

	if (!registered)
		CacheRegisterRelcacheCallback(forget_schema, (Datum) 0);
	registered = true;
	if (OidIsValid(table))
		return true;
	generation++;
	namespace = extension_schema();
	table = OidIsValid(namespace) ? get_relname_relid("mmgpt_adapter", namespace) : InvalidOid;
	if (!OidIsValid(table))
		return false;
	if (schema != NULL)
		pfree(schema);
	schema = MemoryContextStrdup(TopMemoryContext,
								 quote_identifier(get_namespace_name(namespace)));
	return true;
}

uint64
tables_find(void)
{
	if (!tables_exist())
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"mmgpt\" is not installed in this database")));
	return generation;
}

const char *
tables_schema(void)
{
	return schema;
}

Oid
tables_identity(void)
{
	return table;
}

void
tables_connect(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("SPI_connect failed")));
}

/* The owner of the tables. */
static Oid
table_owner(void)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("cache lookup failed for relation %u", table)));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

void
tables_begin(TablesAccess *access)
{
	tables_find();
	tables_connect();
	GetUserIdAndSecContext(&access->caller, &access->context);
	SetUserIdAndSecContext(table_owner(),
						   access->context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
	access->settings = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

void
tables_end(const TablesAccess *access)
{
	AtEOXact_GUC(false, access->settings);
	SetUserIdAndSecContext(access->caller, access->context);
	SPI_finish();
}

bool
tables_run(const char *text, int arguments, const Oid *types, const Datum *values,
		   const char *nulls, bool read_only)
{
	const char *s = schema;
	SPIPlanPtr	plan = SPI_prepare(psprintf(text, s, s, s, s, s, s, s, s), arguments,
								   unconstify(Oid *, types));
	int			result;

	if (plan == NULL)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("SPI_prepare failed")));
	result = SPI_execute_plan(plan, unconstify(Datum *, values), nulls, read_only, 0);
	if (result < 0)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("SPI_execute_plan failed")));
	SPI_freeplan(plan);
	return SPI_processed > 0;
}

bool
tables_change(const char *text, int arguments, const Oid *types, const Datum *values,
			  const char *nulls)
{
	TablesAccess access;
	bool		changed;

	tables_begin(&access);
	changed = tables_run(text, arguments, types, values, nulls, false);
	tables_end(&access);
	return changed;
}

Datum
tables_column(int number)
{
	bool		is_null;

	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, number, &is_null);
}

char *
tables_text_column(int number, MemoryContext context)
{
	bool		is_null;
	Datum		value;

	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, number, &is_null);
	return is_null ? NULL : MemoryContextStrdup(context, TextDatumGetCString(value));
}
