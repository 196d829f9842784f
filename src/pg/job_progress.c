/*
 * job_progress.c - what a job's worker reads and writes; see job_table.h.
 *
 * What the engine answers is JSON that PostgreSQL takes apart, in the query that stores it.
 */
#include "job_table.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "digest.h"
#include "extension_tables.h"
#include "pg_compat.h"

/* As job_change, with a text or JSON as $2. */
static bool
change_job_with(const char *text, int64 id, Oid type, Datum value)
{
	Oid			types[2] = {INT8OID, type};
	Datum		values[2] = {Int64GetDatum(id), value};

	return tables_change(text, 2, types, values, DatumGetPointer(value) == NULL ? " n" : NULL);
}

static Datum
text_or_null(const char *text)
{
	return text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

/* Bytes as a bytea, copied. */
static Datum
bytes_datum(const void *bytes, size_t size)
{
	bytea	   *copy = palloc(size + VARHDRSZ);

	SET_VARSIZE(copy, size + VARHDRSZ);
	memcpy(VARDATA(copy), bytes, size);
	return PointerGetDatum(copy);
}

/* ---- the job ---- */

bool
job_load(int64 id, JobPlan *plan)
{
	MemoryContext context = CurrentMemoryContext;
	TablesAccess access;
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};
	bool		found;
	bool		is_null;
	Datum		options;

	tables_begin(&access);
	found = tables_run("SELECT table_id, table_name, adapter, owner::pg_catalog.oid, prepared,"
					   " initial_digest, options, model FROM %s.mmgpt_job"
					   " WHERE id OPERATOR(pg_catalog.=) $1 AND " JOB_NOT_OVER, 1, types, values,
					   NULL, false);
	if (found)
	{
		plan->table = DatumGetObjectId(tables_column(1));
		plan->table_name = tables_text_column(2, context);
		plan->adapter = tables_text_column(3, context);
		plan->owner = DatumGetObjectId(tables_column(4));
		plan->prepared = DatumGetBool(tables_column(5));
		plan->initial_digest = tables_text_column(6, context);
		options = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 7, &is_null);
		plan->model = tables_text_column(8, context);
		plan->options = NULL;
		if (!is_null)
		{
			MemoryContext previous = MemoryContextSwitchTo(context);

			plan->options = DatumGetJsonbPCopy(options);
			MemoryContextSwitchTo(previous);
		}
	}
	tables_end(&access);
	return found;
}

JobWish
job_wish(int64 id)
{
	TablesAccess access;
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};
	JobWish		wish = JOB_WISH_GONE;

	tables_begin(&access);
	if (tables_run("SELECT cancel FROM %s.mmgpt_job WHERE id OPERATOR(pg_catalog.=) $1", 1, types,
				   values, NULL, false))
		wish = DatumGetBool(tables_column(1)) ? JOB_WISH_CANCEL : JOB_WISH_GO_ON;
	tables_end(&access);
	return wish;
}

void
job_set_state(int64 id, const char *state)
{
	change_job_with("UPDATE %s.mmgpt_job SET state = $2,"
					" started = CASE WHEN $2 OPERATOR(pg_catalog.=) 'preparing'"
					" THEN pg_catalog.clock_timestamp() ELSE started END"
					" WHERE id OPERATOR(pg_catalog.=) $1", id, TEXTOID,
					CStringGetTextDatum(state));
}

void
job_finish(int64 id, const char *digest)
{
	job_delete_rows(id);
	change_job_with("UPDATE %s.mmgpt_job SET state = 'done', digest = $2,"
					" finished = pg_catalog.clock_timestamp()"
					" WHERE id OPERATOR(pg_catalog.=) $1", id, TEXTOID,
					CStringGetTextDatum(digest));
}

void
job_fail(int64 id, const ErrorData *error)
{
	Oid			types[5] = {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[5] = {Int64GetDatum(id),
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode)), text_or_null(error->message),
		text_or_null(error->detail), text_or_null(error->hint)};
	char		nulls[6] = "     ";

	for (int i = 2; i < 5; i++)
		nulls[i] = DatumGetPointer(values[i]) == NULL ? 'n' : ' ';
	tables_change("UPDATE %s.mmgpt_job SET state = 'failed', error_code = $2, error = $3,"
				  " error_detail = $4, error_hint = $5, finished = pg_catalog.clock_timestamp()"
				  " WHERE id OPERATOR(pg_catalog.=) $1", 5, types, values, nulls);
}

void
job_end_cancelled(int64 id)
{
	job_change("UPDATE %s.mmgpt_job SET state = 'cancelled',"
			   " finished = pg_catalog.clock_timestamp()"
			   " WHERE id OPERATOR(pg_catalog.=) $1", id);
}

List *
job_list_unfinished(void)
{
	MemoryContext context = CurrentMemoryContext;
	TablesAccess access;
	List	   *jobs = NIL;

	tables_begin(&access);
	(void) tables_run("SELECT id, login::pg_catalog.oid, cancel FROM %s.mmgpt_job"
					  " WHERE " JOB_NOT_OVER " ORDER BY id", 0, NULL, NULL, NULL,
					  false);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	description = SPI_tuptable->tupdesc;
		UnfinishedJob *job = MemoryContextAlloc(context, sizeof(UnfinishedJob));
		MemoryContext previous = MemoryContextSwitchTo(context);
		bool		is_null;

		job->id = DatumGetInt64(SPI_getbinval(tuple, description, 1, &is_null));
		job->login = DatumGetObjectId(SPI_getbinval(tuple, description, 2, &is_null));
		job->cancel = DatumGetBool(SPI_getbinval(tuple, description, 3, &is_null));
		jobs = lappend(jobs, job);
		MemoryContextSwitchTo(previous);
	}
	tables_end(&access);
	return jobs;
}

/* ---- rows ---- */

void
job_begin_rows(int64 id, const char *digest)
{
	job_delete_rows(id);
	job_change("DELETE FROM %s.mmgpt_job_unusable WHERE job OPERATOR(pg_catalog.=) $1", id);
	job_change("DELETE FROM %s.mmgpt_job_step WHERE job OPERATOR(pg_catalog.=) $1", id);
	change_job_with("UPDATE %s.mmgpt_job SET step = 0, initial_digest = $2"
					" WHERE id OPERATOR(pg_catalog.=) $1", id, TEXTOID, text_or_null(digest));
}

void
job_insert_row(int64 id, int64 number, const void *tokens, const void *targets, size_t size,
			   const void *pixels, size_t pixels_size)
{
	Oid			types[5] = {INT8OID, INT8OID, BYTEAOID, BYTEAOID, BYTEAOID};
	Datum		values[5] = {Int64GetDatum(id), Int64GetDatum(number), bytes_datum(tokens, size),
		bytes_datum(targets, size), (Datum) 0};
	DigestState state;
	uint8_t		digest[DIGEST_SIZE];

	if (pixels != NULL)
	{
		Oid			picture_types[3] = {INT8OID, BYTEAOID, BYTEAOID};
		Datum		picture[3] = {Int64GetDatum(id), (Datum) 0, bytes_datum(pixels, pixels_size)};

		digest_begin(&state);
		digest_add(&state, pixels, pixels_size);
		digest_end(&state, digest);
		picture[1] = values[4] = bytes_datum(digest, sizeof(digest));
		tables_change("INSERT INTO %s.mmgpt_job_picture VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
					  3, picture_types, picture, NULL);
	}
	tables_change("INSERT INTO %s.mmgpt_job_row VALUES ($1, $2, $3, $4, $5)", 5, types, values,
				  pixels == NULL ? "    n" : NULL);
}

void
job_insert_unusable(int64 id, int64 number, const char *key, const char *reason)
{
	Oid			types[4] = {INT8OID, INT8OID, TEXTOID, TEXTOID};
	Datum		values[4] = {Int64GetDatum(id), Int64GetDatum(number), text_or_null(key),
		CStringGetTextDatum(reason)};

	tables_change("INSERT INTO %s.mmgpt_job_unusable VALUES ($1, $2, $3, $4)", 4, types, values,
				  key == NULL ? "  n " : NULL);
}

void
job_end_rows(int64 id, int64 rows, int64 unusable)
{
	Oid			types[3] = {INT8OID, INT8OID, INT8OID};
	Datum		values[3] = {Int64GetDatum(id), Int64GetDatum(rows), Int64GetDatum(unusable)};

	tables_change("UPDATE %s.mmgpt_job SET prepared = $2 OPERATOR(pg_catalog.>) 0,"
				  " state = 'queued', rows = $2, unusable = $3"
				  " WHERE id OPERATOR(pg_catalog.=) $1", 3, types, values, NULL);
}

Portal
job_open_rows(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};
	const char *schema = tables_schema();

	return SPI_cursor_open_with_args(
		NULL, psprintf("SELECT r.tokens, r.targets, p.pixels FROM %s.mmgpt_job_row r"
					   " LEFT JOIN %s.mmgpt_job_picture p ON p.job OPERATOR(pg_catalog.=) r.job"
					   " AND p.digest OPERATOR(pg_catalog.=) r.picture"
					   " WHERE r.job OPERATOR(pg_catalog.=) $1 ORDER BY r.number", schema, schema),
		1, types, values, NULL, true, 0);
}

/* ---- steps ---- */

void
job_note_model(int64 id, const char *digest)
{
	change_job_with("UPDATE %s.mmgpt_job SET model = $2 WHERE id OPERATOR(pg_catalog.=) $1", id,
					TEXTOID, CStringGetTextDatum(digest));
}

void
job_note_start(int64 id, Datum answer)
{
	change_job_with("UPDATE %s.mmgpt_job SET state = 'running', steps = a.micro_steps,"
					" step = a.micro_step, pictures = a.pictures,"
					" run_started = NULL, run_step = NULL"
					" FROM pg_catalog.jsonb_to_record($2) AS a(micro_steps pg_catalog.int4,"
					" micro_step pg_catalog.int4, pictures pg_catalog.int4)"
					" WHERE id OPERATOR(pg_catalog.=) $1", id, JSONBOID, answer);
}

void
job_note_steps(int64 id, Datum answer)
{
	change_job_with("INSERT INTO %s.mmgpt_job_step AS o SELECT $1, s.* FROM"
					" pg_catalog.jsonb_to_recordset($2 OPERATOR(pg_catalog.->) 'steps') AS"
					" s(step pg_catalog.int4, loss_vision pg_catalog.float8,"
					" loss_language pg_catalog.float8, grad_norm pg_catalog.float8,"
					" learning_rate pg_catalog.float8, validation_loss_vision pg_catalog.float8,"
					" validation_loss_language pg_catalog.float8)"
					" ON CONFLICT (job, step) DO NOTHING", id, JSONBOID, answer);
	change_job_with("UPDATE %s.mmgpt_job SET step = a.micro_step, steps = a.micro_steps,"
					" optimizer_steps = a.optimizer_steps, tokens = a.tokens,"
					" seconds = a.seconds, pictures = a.pictures,"
					" pictures_encoded = a.pictures_encoded,"
					" run_started = coalesce(run_started, CASE WHEN a.micro_step"
					" OPERATOR(pg_catalog.>) 0 THEN pg_catalog.clock_timestamp() END),"
					" run_step = coalesce(run_step, CASE WHEN a.micro_step"
					" OPERATOR(pg_catalog.>) 0 THEN a.micro_step END)"
					" FROM pg_catalog.jsonb_to_record($2) AS a(micro_step pg_catalog.int4,"
					" micro_steps pg_catalog.int4, optimizer_steps pg_catalog.int4,"
					" tokens pg_catalog.int8, seconds pg_catalog.float8,"
					" pictures pg_catalog.int4, pictures_encoded pg_catalog.int4)"
					" WHERE id OPERATOR(pg_catalog.=) $1", id, JSONBOID, answer);
}

/* ---- checkpoints ---- */

void
job_insert_checkpoint(int64 id, int step, const uint8 *bytes, size_t size)
{
	Oid			types[4] = {INT8OID, INT4OID, INT4OID, BYTEAOID};
	Datum		values[4] = {Int64GetDatum(id), Int32GetDatum(step)};
	int			number = 0;

	job_delete_checkpoint(id, step);
	for (size_t at = 0; at < size; at += JOB_PIECE_SIZE)
	{
		values[2] = Int32GetDatum(number++);
		values[3] = bytes_datum(bytes + at, Min(size - at, JOB_PIECE_SIZE));
		tables_change("INSERT INTO %s.mmgpt_job_checkpoint VALUES ($1, $2, $3, $4)", 4, types,
					  values, NULL);
		pfree(DatumGetPointer(values[3]));
	}
	job_change("DELETE FROM %s.mmgpt_job_checkpoint WHERE job OPERATOR(pg_catalog.=) $1"
			   " AND step OPERATOR(pg_catalog.<) (SELECT pg_catalog.min(s.step) FROM"
			   " (SELECT DISTINCT step FROM %s.mmgpt_job_checkpoint"
			   " WHERE job OPERATOR(pg_catalog.=) $1 ORDER BY step DESC LIMIT 2) s)", id);
}

/* The step and size of the last checkpoint; false where there is none. */
static bool
find_checkpoint(int64 id, int *step, size_t *size)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};

	if (!tables_run("SELECT step, pg_catalog.sum(pg_catalog.octet_length(bytes))::pg_catalog.int8"
					" FROM %s.mmgpt_job_checkpoint WHERE job OPERATOR(pg_catalog.=) $1"
					" GROUP BY step ORDER BY step DESC LIMIT 1", 1, types, values, NULL, false))
		return false;
	*step = DatumGetInt32(tables_column(1));
	*size = (size_t) DatumGetInt64(tables_column(2));
	return true;
}

uint8 *
job_read_checkpoint(int64 id, int *step, size_t *size)
{
	MemoryContext context = CurrentMemoryContext;
	TablesAccess access;
	Oid			types[3] = {INT8OID, INT4OID, INT4OID};
	Datum		values[3] = {Int64GetDatum(id)};
	uint8	   *bytes = NULL;
	size_t		filled = 0;

	tables_begin(&access);
	if (find_checkpoint(id, step, size))
	{
		bytes = MemoryContextAllocHuge(context, *size);
		values[1] = Int32GetDatum(*step);
	}
	for (int number = 0; bytes != NULL && filled < *size; number++)
	{
		bytea	   *piece;

		values[2] = Int32GetDatum(number);
		if (!tables_run("SELECT bytes FROM %s.mmgpt_job_checkpoint"
						" WHERE job OPERATOR(pg_catalog.=) $1 AND step OPERATOR(pg_catalog.=) $2"
						" AND number OPERATOR(pg_catalog.=) $3", 3, types, values, NULL, false))
			ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
							errmsg("piece %d of a checkpoint of job %lld is missing", number,
								   (long long) id)));
		piece = DatumGetByteaPP(tables_column(1));
		memcpy(bytes + filled, VARDATA_ANY(piece),
			   Min(VARSIZE_ANY_EXHDR(piece), *size - filled));
		filled += VARSIZE_ANY_EXHDR(piece);
		SPI_freetuptable(SPI_tuptable);
	}
	tables_end(&access);
	return bytes;
}

void
job_delete_checkpoint(int64 id, int step)
{
	Oid			types[2] = {INT8OID, INT4OID};
	Datum		values[2] = {Int64GetDatum(id), Int32GetDatum(step)};

	tables_change("DELETE FROM %s.mmgpt_job_checkpoint WHERE job OPERATOR(pg_catalog.=) $1"
				  " AND step OPERATOR(pg_catalog.=) $2", 2, types, values, NULL);
}
