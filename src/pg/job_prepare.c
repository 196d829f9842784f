/*
 * job_prepare.c - read the rows of a job's table, once.
 *
 * One transaction reads all rows in one snapshot, under the rights of the job's owner, and keeps
 * what the engine makes of them. When it has committed, the table is not needed any more: a
 * training that goes on after a crash trains with the same rows, whatever became of the table.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "adapter_table.h"
#include "job_worker.h"
#include "row_stream.h"

#define REPORT_ROWS 100

typedef struct Preparation
{
	Job		   *job;
	int64		used;
	int64		unusable;
} Preparation;

/* Keep a row. */
static void
take_row(void *argument, StreamRow *row)
{
	Preparation *preparation = argument;
	Job		   *job = preparation->job;
	const WireFields *fields = &row->answer.fields;

	if (row->number % REPORT_ROWS == 0)
		job_report(job, "reading the rows, %lld so far", (long long) row->number);
	if (row->reason != NULL && job->options.fail_unusable)
		row_stream_raise_unusable(row);
	if (row->reason != NULL)
	{
		job_insert_unusable(job->id, row->number, row->key, row->reason);
		preparation->unusable++;
		return;
	}
	if (!wire_has(fields, WIRE_FIELD_TOKENS) || !wire_has(fields, WIRE_FIELD_TARGETS) ||
		fields->length[WIRE_FIELD_TOKENS] != fields->length[WIRE_FIELD_TARGETS])
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("the mmgpt engine made no row of row %lld",
							   (long long) row->number)));
	job_insert_row(job->id, row->number, fields->bytes[WIRE_FIELD_TOKENS],
				   fields->bytes[WIRE_FIELD_TARGETS], fields->length[WIRE_FIELD_TOKENS],
				   fields->bytes[WIRE_FIELD_PIXELS], fields->length[WIRE_FIELD_PIXELS]);
	preparation->used++;
}

static void
look_around(void *argument)
{
	Preparation *preparation = argument;

	job_look_around(preparation->job);
}

/* The digest of the adapter to go on from, which must be the same when it is sent; or NULL. */
static const char *
find_initial(const Job *job)
{
	AdapterRow	row;

	if (job->options.initial_adapter == NULL)
		return NULL;
	adapter_find(job->options.initial_adapter, "The option \"initial_adapter\" names it.", &row);
	return row.digest;
}

/* Read the rows, in a transaction. */
static void
read_rows(Job *job, Preparation *preparation)
{
	RowStream	stream = {.options = &job->options,.argument = preparation,.take = take_row,
		.check = look_around};
	RowSource	source;

	row_source_make(job->plan.table, &job->options, &source);
	stream.source = &source;
	PG_TRY();
	{
		row_stream_run(&stream);
	}
	PG_FINALLY();
	{
		row_stream_end(&stream);
	}
	PG_END_TRY();
}

void
job_prepare(Job *job)
{
	Preparation preparation = {.job = job};
	MemoryContext context = CurrentMemoryContext;
	const char *digest;

	job_report(job, "reading the rows");
	job_work_begin(job);
	job_set_state(job->id, "preparing");
	digest = find_initial(job);
	if (digest != NULL)
		job->plan.initial_digest = MemoryContextStrdup(context, digest);
	job_begin_rows(job->id, digest);
	job_work_end(job);

	/* which does not change the job before its end, or nobody else could cancel it meanwhile */
	job_work_begin(job);
	read_rows(job, &preparation);
	job_end_rows(job->id, preparation.used, preparation.unusable);
	job_work_end(job);
	if (preparation.used == 0 && preparation.unusable == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("table \"%s\" has no row that the job may see", job->plan.table_name),
				 errhint("Rows are read when the job begins, with its owner's rights.")));
	if (preparation.used == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no row of table \"%s\" can be used", job->plan.table_name),
				 errdetail("It has %lld rows.", (long long) preparation.unusable),
				 errhint("The view mmgpt_job_unusable_rows tells why.")));
}
