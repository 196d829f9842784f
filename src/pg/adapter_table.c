/*
 * adapter_table.c - queries on the tables of adapters; see adapter_table.h.
 *
 * Queries that read run as the caller, with a plan that is kept for the session: one is made
 * for every row that is asked about with an adapter. Queries that write are few and are planned
 * each time (extension_tables.h).
 */
#include "adapter_table.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "extension_tables.h"
#include "pg_compat.h"

/* A query whose plan is kept; %s stands for the schema. */
typedef struct KeptQuery
{
	const char *text;
	int			arguments;
	Oid			types[2];
	SPIPlanPtr	plan;
} KeptQuery;

static KeptQuery find_query = {
	"SELECT id, bytes, digest, base_model, config FROM %s.mmgpt_adapter"
	" WHERE name OPERATOR(pg_catalog.=) $1", 1, {TEXTOID}, NULL
};
static KeptQuery piece_query = {
	"SELECT bytes FROM %s.mmgpt_adapter_piece"
	" WHERE adapter OPERATOR(pg_catalog.=) $1 AND number OPERATOR(pg_catalog.=) $2",
	2, {INT8OID, INT4OID}, NULL
};

/* Who called, while the owner of the tables works. */
static TablesAccess writing = {InvalidOid, 0};

static bool lookup(const char *name, bool lock, AdapterEntry *entry);

static void
drop_plan(KeptQuery *query)
{
	if (query->plan != NULL)
		SPI_freeplan(query->plan);
	query->plan = NULL;
}

/* Find the tables, and forget plans that were made for others. */
static void
find_tables(void)
{
	static uint64 known = 0;
	uint64		found = tables_find();

	if (found == known)
		return;
	drop_plan(&find_query);
	drop_plan(&piece_query);
	known = found;
}

/* ---- reading ---- */

/* Run a query whose plan is kept, for at most one row, between SPI_connect and SPI_finish. */
static bool
run_kept(KeptQuery *query, Datum *values)
{
	if (query->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(psprintf(query->text, tables_schema()), query->arguments,
									   query->types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("SPI_prepare failed")));
		query->plan = plan;
	}
	if (SPI_execute_plan(query->plan, values, NULL, true, 1) != SPI_OK_SELECT)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("SPI_execute_plan failed")));
	return SPI_processed > 0;
}

/* A column of variable length, copied to a memory context and decompressed. */
static void *
copy_column(int number, MemoryContext context)
{
	MemoryContext previous = MemoryContextSwitchTo(context);
	void	   *copy = PG_DETOAST_DATUM_COPY(tables_column(number));

	MemoryContextSwitchTo(previous);
	return copy;
}

/* Whether an adapter of this name is there, whoever may use it. */
static bool
adapter_exists(const char *name)
{
	AdapterEntry entry;
	bool		exists;

	adapter_write_begin();
	exists = lookup(name, false, &entry);
	adapter_write_end();
	return exists;
}

void
adapter_raise_missing(const char *name, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("adapter \"%s\" does not exist", name),
			 detail != NULL ? errdetail("%s", detail) : 0,
			 errhint("The view mmgpt_adapters shows those that you may use.")));
}

void
adapter_find(const char *name, const char *detail, AdapterRow *row)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[1] = {CStringGetTextDatum(name)};
	bool		found;

	find_tables();
	tables_connect();
	found = run_kept(&find_query, values);
	if (found)
	{
		row->id = DatumGetInt64(tables_column(1));
		row->bytes = DatumGetInt64(tables_column(2));
		row->digest = tables_text_column(3, context);
		row->base_model = tables_text_column(4, context);
		row->config = copy_column(5, context);
	}
	SPI_finish();
	if (found)
		return;
	if (!adapter_exists(name))
		adapter_raise_missing(name, detail);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for adapter \"%s\"", name),
			 detail != NULL ? errdetail("%s", detail) : 0,
			 errhint("Its owner can share it with mmgpt_adapter_grant().")));
}

bytea *
adapter_read_piece(int64 id, int number, size_t size)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[2] = {Int64GetDatum(id), Int32GetDatum(number)};
	bytea	   *piece = NULL;

	find_tables();
	tables_connect();
	if (run_kept(&piece_query, values))
		piece = copy_column(1, context);
	SPI_finish();
	if (piece == NULL || VARSIZE(piece) - VARHDRSZ != size)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("piece %d of an adapter is missing, or not of %zu bytes", number, size),
				 errhint("Import it again.")));
	return piece;
}

void
adapter_read_file(const AdapterRow *row, char *to)
{
	size_t		left = (size_t) row->bytes;

	for (int number = 0; left > 0; number++)
	{
		size_t		size = Min(left, ADAPTER_PIECE_SIZE);
		bytea	   *piece = adapter_read_piece(row->id, number, size);

		memcpy(to, VARDATA(piece), size);
		pfree(piece);
		to += size;
		left -= size;
	}
}

/* ---- writing ---- */

void
adapter_write_begin(void)
{
	tables_begin(&writing);
}

void
adapter_write_end(void)
{
	tables_end(&writing);
}

Oid
adapter_caller(void)
{
	return writing.caller;
}

/* Run a query, in whose text %s stands for the schema. */
static bool
run(const char *text, int arguments, Oid *types, Datum *values, bool read_only)
{
	return tables_run(text, arguments, types, values, NULL, read_only);
}

/* The adapter of a name, locked or not. */
static bool
lookup(const char *name, bool lock, AdapterEntry *entry)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(name)};

	if (!run(lock ? "SELECT id, owner FROM %s.mmgpt_adapter"
			 " WHERE name OPERATOR(pg_catalog.=) $1 FOR UPDATE" :
			 "SELECT id, owner FROM %s.mmgpt_adapter WHERE name OPERATOR(pg_catalog.=) $1",
			 1, types, values, !lock))
		return false;
	entry->id = DatumGetInt64(tables_column(1));
	entry->owner = DatumGetObjectId(tables_column(2));
	return true;
}

bool
adapter_lock(const char *name, AdapterEntry *entry)
{
	return lookup(name, true, entry);
}

bool
adapter_insert(const char *name, Datum description, int64 bytes, Jsonb *config, int64 *id)
{
	Oid			types[5] = {JSONBOID, TEXTOID, REGROLEOID, INT8OID, JSONBOID};
	Datum		values[5] = {description, CStringGetTextDatum(name),
		ObjectIdGetDatum(writing.caller), Int64GetDatum(bytes), JsonbPGetDatum(config)};

	if (!run("INSERT INTO %s.mmgpt_adapter (name, owner, bytes, config, digest, base_model,"
			 " parameters, rank, alpha, targets)"
			 " SELECT $2, $3, $4, $5, d.digest, d.base_model, d.parameters, d.rank, d.alpha,"
			 " d.targets"
			 " FROM pg_catalog.jsonb_to_record($1) AS d(digest pg_catalog.text,"
			 " base_model pg_catalog.text, parameters pg_catalog.int8, rank pg_catalog.int4,"
			 " alpha pg_catalog.float8, targets pg_catalog.text[])"
			 " ON CONFLICT (name) DO NOTHING RETURNING id", 5, types, values, false))
		return false;
	*id = DatumGetInt64(tables_column(1));
	return true;
}

void
adapter_update(int64 id, Datum description, int64 bytes, Jsonb *config)
{
	Oid			types[4] = {JSONBOID, INT8OID, INT8OID, JSONBOID};
	Datum		values[4] = {description, Int64GetDatum(id), Int64GetDatum(bytes),
		JsonbPGetDatum(config)};

	run("UPDATE %s.mmgpt_adapter SET bytes = $3, config = $4, created = pg_catalog.now(),"
		" digest = d.digest, base_model = d.base_model, parameters = d.parameters, rank = d.rank,"
		" alpha = d.alpha, targets = d.targets"
		" FROM pg_catalog.jsonb_to_record($1) AS d(digest pg_catalog.text,"
		" base_model pg_catalog.text, parameters pg_catalog.int8, rank pg_catalog.int4,"
		" alpha pg_catalog.float8, targets pg_catalog.text[])"
		" WHERE id OPERATOR(pg_catalog.=) $2", 4, types, values, false);
	run("DELETE FROM %s.mmgpt_adapter_piece WHERE adapter OPERATOR(pg_catalog.=) $1", 1, types + 1,
		values + 1, false);
}

void
adapter_insert_piece(int64 id, int number, bytea *piece)
{
	Oid			types[3] = {INT8OID, INT4OID, BYTEAOID};
	Datum		values[3] = {Int64GetDatum(id), Int32GetDatum(number), PointerGetDatum(piece)};

	run("INSERT INTO %s.mmgpt_adapter_piece VALUES ($1, $2, $3)", 3, types, values, false);
}

void
adapter_delete(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	run("DELETE FROM %s.mmgpt_adapter WHERE id OPERATOR(pg_catalog.=) $1", 1, types, values, false);
}

void
adapter_set_name(int64 id, const char *name)
{
	Oid			types[2] = {INT8OID, TEXTOID};
	Datum		values[2] = {Int64GetDatum(id), CStringGetTextDatum(name)};

	run("UPDATE %s.mmgpt_adapter SET name = $2 WHERE id OPERATOR(pg_catalog.=) $1", 2, types,
		values, false);
}

void
adapter_set_owner(int64 id, Oid owner)
{
	Oid			types[2] = {INT8OID, REGROLEOID};
	Datum		values[2] = {Int64GetDatum(id), ObjectIdGetDatum(owner)};

	run("UPDATE %s.mmgpt_adapter SET owner = $2 WHERE id OPERATOR(pg_catalog.=) $1", 2, types,
		values, false);
}

void
adapter_share(int64 id, Oid role, bool share)
{
	Oid			types[3] = {INT8OID, REGROLEOID, BOOLOID};
	Datum		values[3] = {Int64GetDatum(id), ObjectIdGetDatum(role), BoolGetDatum(share)};

	run("UPDATE %s.mmgpt_adapter SET shared_with = CASE WHEN $3"
		" THEN pg_catalog.array_append(pg_catalog.array_remove(shared_with, $2), $2)"
		" ELSE pg_catalog.array_remove(shared_with, $2) END"
		" WHERE id OPERATOR(pg_catalog.=) $1", 3, types, values, false);
}
