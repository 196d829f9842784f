/*
 * job_table.c - what others than a job's worker do with jobs; see job_table.h.
 */
#include "job_table.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "extension_tables.h"
#include "pg_compat.h"

/*
 * The fourth part of the tag of our advisory locks, shown as objsubid in pg_locks, where the view
 * mmgpt_jobs looks for it. Those of SQL functions have 1 and 2 there.
 */
#define JOB_LOCK_CLASS 28013

static void
set_lock_tag(LOCKTAG *tag, int64 id)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) (id >> 32), (uint32) id, JOB_LOCK_CLASS);
}

bool
job_take_lock(int64 id)
{
	LOCKTAG		tag;

	set_lock_tag(&tag, id);
	return LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

bool
job_has_worker(int64 id)
{
	LOCKTAG		tag;

	set_lock_tag(&tag, id);
	if (LockAcquire(&tag, ShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	LockRelease(&tag, ShareLock, false);
	return false;
}

bool
job_change(const char *text, int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	return tables_change(text, 1, types, values, NULL);
}

bool
job_insert(const NewJob *job, int64 *id)
{
	TablesAccess access;
	Oid			types[6] = {OIDOID, TEXTOID, TEXTOID, OIDOID, OIDOID, JSONBOID};
	Datum		values[6] = {ObjectIdGetDatum(job->table), CStringGetTextDatum(job->table_name),
		CStringGetTextDatum(job->adapter), ObjectIdGetDatum(GetUserId()),
		ObjectIdGetDatum(GetSessionUserId()),
		job->options == NULL ? (Datum) 0 : JsonbPGetDatum(job->options)};
	const char *nulls = job->options == NULL ? "     n" : NULL;
	bool		inserted;

	tables_begin(&access);
	inserted = tables_run("INSERT INTO %s.mmgpt_job"
						  " (table_id, table_name, adapter, owner, login, options)"
						  " VALUES ($1, $2, $3, $4, $5, $6)"
						  " ON CONFLICT (adapter) WHERE " JOB_NOT_OVER
						  " DO NOTHING RETURNING id", 6, types, values, nulls, false);
	if (inserted)
		*id = DatumGetInt64(tables_column(1));
	tables_end(&access);
	return inserted;
}

/* Read what others see of a job, in a query's first row. */
static void
read_view(JobView *view, MemoryContext context)
{
	bool		is_null;

	view->owner = DatumGetObjectId(tables_column(1));
	view->state = tables_text_column(2, context);
	view->adapter = tables_text_column(3, context);
	view->step = DatumGetInt32(tables_column(4));
	view->steps = DatumGetInt32(tables_column(5));
	view->progress = tables_text_column(6, context);
	view->error_code = tables_text_column(7, context);
	view->error = tables_text_column(8, context);
	view->error_detail = tables_text_column(9, context);
	view->error_hint = tables_text_column(10, context);
	view->changed_by = DatumGetTransactionId(SPI_getbinval(SPI_tuptable->vals[0],
														   SPI_tuptable->tupdesc, 11, &is_null));
	view->login = DatumGetObjectId(tables_column(12));
}

#define VIEW_QUERY \
	"SELECT j.owner::pg_catalog.oid, v.state, j.adapter, j.step, coalesce(j.steps, 0)," \
	" pg_catalog.concat_ws(', '," \
	"  'loss ' || nullif(pg_catalog.concat_ws(' and '," \
	"   pg_catalog.round(v.loss_vision::pg_catalog.numeric, 3)::pg_catalog.text || ' (pictures)'," \
	"   pg_catalog.round(v.loss_language::pg_catalog.numeric, 3)::pg_catalog.text" \
	"   || ' (language)'), '')," \
	"  pg_catalog.round(v.tokens_per_second::pg_catalog.numeric)::pg_catalog.text" \
	"   || ' tokens/s'," \
	"  pg_catalog.date_trunc('second', v.time_left)::pg_catalog.text || ' left')," \
	" j.error_code, j.error, j.error_detail, j.error_hint, j.xmin," \
	" j.login::pg_catalog.oid" \
	" FROM %s.mmgpt_job j JOIN %s.mmgpt_jobs v ON v.id OPERATOR(pg_catalog.=) j.id" \
	" WHERE j.id OPERATOR(pg_catalog.=) $1"

bool
job_find(int64 id, bool lock, JobView *view)
{
	MemoryContext context = CurrentMemoryContext;
	TablesAccess access;
	SPIPlanPtr	plan;
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};
	bool		found;

	tables_begin(&access);
	/* a worker that inserts rows has locked the key of its job */
	if (lock)
		(void) tables_run("SELECT FROM %s.mmgpt_job WHERE id OPERATOR(pg_catalog.=) $1"
						  " FOR NO KEY UPDATE", 1, types, values, NULL, false);
	plan = SPI_prepare(psprintf(VIEW_QUERY, tables_schema(), tables_schema()), 1, types);
	/* the newest state, also where the transaction has one snapshot for all */
	if (plan == NULL || SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(),
											 InvalidSnapshot, true, false, 1) < 0)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("SPI_execute_snapshot failed")));
	found = SPI_processed > 0;
	if (found)
		read_view(view, context);
	tables_end(&access);
	return found;
}

bool
job_find_active(const char *adapter, int64 id)
{
	TablesAccess access;
	Oid			types[2] = {TEXTOID, INT8OID};
	Datum		values[2] = {CStringGetTextDatum(adapter), Int64GetDatum(id)};
	bool		found;

	tables_begin(&access);
	found = tables_run("SELECT FROM %s.mmgpt_job WHERE adapter OPERATOR(pg_catalog.=) $1"
					   " AND id OPERATOR(pg_catalog.<>) $2 AND " JOB_NOT_OVER, 2, types, values,
					   NULL, false);
	tables_end(&access);
	return found;
}

bool
job_request_cancel(int64 id)
{
	if (job_has_worker(id))
		return job_change("UPDATE %s.mmgpt_job SET cancel = true"
						  " WHERE id OPERATOR(pg_catalog.=) $1 AND " JOB_NOT_OVER, id);
	return job_change("UPDATE %s.mmgpt_job SET cancel = true, state = 'cancelled',"
					  " finished = pg_catalog.clock_timestamp()"
					  " WHERE id OPERATOR(pg_catalog.=) $1 AND " JOB_NOT_OVER, id);
}

void
job_requeue(int64 id)
{
	job_change("UPDATE %s.mmgpt_job SET state = 'queued', cancel = false, finished = NULL,"
			   " queued = pg_catalog.clock_timestamp(),"
			   " restarts = restarts OPERATOR(pg_catalog.+) 1,"
			   " error_code = NULL, error = NULL, error_detail = NULL, error_hint = NULL"
			   " WHERE id OPERATOR(pg_catalog.=) $1", id);
}

void
job_delete(int64 id)
{
	job_change("DELETE FROM %s.mmgpt_job WHERE id OPERATOR(pg_catalog.=) $1", id);
}

void
job_delete_rows(int64 id)
{
	job_change("DELETE FROM %s.mmgpt_job_row WHERE job OPERATOR(pg_catalog.=) $1", id);
	job_change("DELETE FROM %s.mmgpt_job_picture WHERE job OPERATOR(pg_catalog.=) $1", id);
	job_change("DELETE FROM %s.mmgpt_job_checkpoint WHERE job OPERATOR(pg_catalog.=) $1", id);
}
