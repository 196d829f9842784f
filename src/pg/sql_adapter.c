/*
 * sql_adapter.c - functions that store adapters and change them: import, export, drop,
 * rename, grant, revoke, set_owner.
 *
 * What they do is part of the transaction: an adapter is there for others at COMMIT, and
 * gone after ROLLBACK. A caller's rights are looked at with the row locked, so that they hold
 * until the change is made.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "adapter_store.h"
#include "arguments.h"
#include "pg_compat.h"
#include "results.h"

SQL_FUNCTION(mmgpt_adapter_import);
SQL_FUNCTION(mmgpt_adapter_export);
SQL_FUNCTION(mmgpt_adapter_drop);
SQL_FUNCTION(mmgpt_adapter_rename);
SQL_FUNCTION(mmgpt_adapter_grant);
SQL_FUNCTION(mmgpt_adapter_revoke);
SQL_FUNCTION(mmgpt_adapter_set_owner);

/* Raise an error unless an argument is there. */
static void
check_present(FunctionCallInfo fcinfo, int position, const char *what)
{
	if (PG_ARGISNULL(position))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be null", what)));
}

/* The name of an adapter at a position. */
static char *
name_argument(FunctionCallInfo fcinfo, int position)
{
	check_present(fcinfo, position, "name of an adapter");
	return text_to_cstring(PG_GETARG_TEXT_PP(position));
}

/* A name that an adapter shall get. */
static char *
new_name_argument(FunctionCallInfo fcinfo, int position)
{
	char	   *name = name_argument(fcinfo, position);

	adapter_check_name(name);
	return name;
}

/* ---- import ---- */

/* Let the engine check the files; its description of them. */
static Datum
check_files(const AdapterFiles *files)
{
	EngineRequest request;
	EngineAnswer answer;

	request_begin(&request, WIRE_KIND_ADAPTER_CHECK);
	request_set_files(&request, files->tensors, files->length, files->config);
	engine_ask(&request, &answer);
	return result_jsonb(&answer);
}

/* mmgpt_adapter_import(name, tensors, config, replace) -> text, the digest */
Datum
mmgpt_adapter_import(PG_FUNCTION_ARGS)
{
	char	   *name = new_name_argument(fcinfo, 0);
	bool		replace = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	bytea	   *tensors;
	AdapterFiles files;

	check_present(fcinfo, 1, "adapter_model.safetensors");
	check_present(fcinfo, 2, "adapter_config.json");
	PreventCommandIfReadOnly("mmgpt_adapter_import()");
	tensors = PG_GETARG_BYTEA_PP(1);
	files.config = PG_GETARG_JSONB_P(2);
	files.tensors = VARDATA_ANY(tensors);
	files.length = VARSIZE_ANY_EXHDR(tensors);
	files.description = check_files(&files);
	adapter_store(name, &files, replace, "Drop it, or import with replace => true.");
	PG_RETURN_TEXT_P(cstring_to_text(result_json_field(files.description, "digest")));
}

/* ---- export ---- */

/* All pieces of an adapter as one value. */
static bytea *
join_pieces(const char *name, const AdapterRow *row)
{
	bytea	   *whole;

	if (row->bytes > (int64) (MaxAllocSize - VARHDRSZ))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("adapter \"%s\" of %lld bytes is too large for a value of type bytea", name,
						(long long) row->bytes),
				 errhint("Read its pieces from mmgpt_adapter_piece.")));
	whole = palloc((size_t) row->bytes + VARHDRSZ);
	SET_VARSIZE(whole, (size_t) row->bytes + VARHDRSZ);
	adapter_read_file(row, VARDATA(whole));
	return whole;
}

/* mmgpt_adapter_export(name) -> (tensors bytea, config jsonb) */
Datum
mmgpt_adapter_export(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo, 0);
	bool		nulls[2] = {false, false};
	AdapterRow	row;
	TupleDesc	description;
	Datum		values[2];

	if (get_call_result_type(fcinfo, NULL, &description) != TYPEFUNC_COMPOSITE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("mmgpt_adapter_export() is called where no record is accepted")));
	adapter_find(name, NULL, &row);
	values[0] = PointerGetDatum(join_pieces(name, &row));
	values[1] = JsonbPGetDatum(row.config);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(description), values, nulls)));
}

/* ---- changes ---- */

/* mmgpt_adapter_drop(name, if_exists) */
Datum
mmgpt_adapter_drop(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo, 0);
	bool		if_exists = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	AdapterEntry entry;
	bool		found;

	PreventCommandIfReadOnly("mmgpt_adapter_drop()");
	adapter_write_begin();
	found = adapter_lock(name, &entry);
	if (found)
	{
		adapter_check_owner(name, &entry);
		adapter_delete(entry.id);
	}
	adapter_write_end();
	if (!found && !if_exists)
		adapter_raise_missing(name, NULL);
	if (!found)
		ereport(NOTICE, (errmsg("adapter \"%s\" does not exist, skipping", name)));
	PG_RETURN_VOID();
}

/* mmgpt_adapter_rename(name, new_name) */
Datum
mmgpt_adapter_rename(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo, 0);
	char	   *new_name = new_name_argument(fcinfo, 1);
	AdapterEntry entry;
	AdapterEntry other;

	PreventCommandIfReadOnly("mmgpt_adapter_rename()");
	adapter_write_begin();
	adapter_lock_own(name, &entry);
	if (adapter_lock(new_name, &other))
		adapter_raise_duplicate(new_name, NULL);
	adapter_set_name(entry.id, new_name);
	adapter_write_end();
	PG_RETURN_VOID();
}

/* The role at a position; InvalidOid for public, where that is allowed. */
static Oid
role_argument(FunctionCallInfo fcinfo, int position, bool public_allowed)
{
	const char *role;

	check_present(fcinfo, position, "role");
	role = NameStr(*PG_GETARG_NAME(position));
	if (public_allowed && strcmp(role, "public") == 0)
		return InvalidOid;
	return get_role_oid(role, false);
}

/* Share an adapter with a role, or end that. */
static void
share(FunctionCallInfo fcinfo, bool with)
{
	char	   *name = name_argument(fcinfo, 0);
	Oid			role = role_argument(fcinfo, 1, true);
	AdapterEntry entry;

	PreventCommandIfReadOnly(with ? "mmgpt_adapter_grant()" : "mmgpt_adapter_revoke()");
	adapter_write_begin();
	adapter_lock_own(name, &entry);
	adapter_share(entry.id, role, with);
	adapter_write_end();
}

/* mmgpt_adapter_grant(name, role) */
Datum
mmgpt_adapter_grant(PG_FUNCTION_ARGS)
{
	share(fcinfo, true);
	PG_RETURN_VOID();
}

/* mmgpt_adapter_revoke(name, role) */
Datum
mmgpt_adapter_revoke(PG_FUNCTION_ARGS)
{
	share(fcinfo, false);
	PG_RETURN_VOID();
}

/* mmgpt_adapter_set_owner(name, role) */
Datum
mmgpt_adapter_set_owner(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo, 0);
	Oid			role = role_argument(fcinfo, 1, false);
	AdapterEntry entry;

	PreventCommandIfReadOnly("mmgpt_adapter_set_owner()");
	adapter_write_begin();
	adapter_lock_own(name, &entry);
	compat_check_can_become(adapter_caller(), role);
	adapter_set_owner(entry.id, role);
	adapter_write_end();
	PG_RETURN_VOID();
}
