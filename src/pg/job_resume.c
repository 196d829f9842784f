/*
 * job_resume.c - see job_resume.h.
 *
 * When the server stops or crashes, jobs lose their workers. The supervisor, which starts with the
 * server or with the first call, registers one worker that reads the list of databases, and this
 * one a worker for each database, one at a time, because a process can look into one only. There,
 * jobs that are not over and whose lock is free get a worker.
 */
#include "job_resume.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/snapmgr.h"

#include "extension_tables.h"
#include "job_table.h"
#include "job_worker.h"
#include "pg_compat.h"
#include "supervisor_control.h"
#include "worker.h"

#define RESUME_TYPE "mmgpt job resumer" /* backend_type in pg_stat_activity */
#define REGISTER_TRIES 10
#define REGISTER_AGAIN_MS 1000

extern EXPORTED void mmgpt_resume_main(Datum database);

bool
job_resume_register(Oid database, BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker;

	worker_describe(&worker, RESUME_TYPE, "mmgpt_resume_main");
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_notify_pid = handle == NULL ? 0 : MyProcPid;
	return RegisterDynamicBackgroundWorker(&worker, handle);
}

/* ---- all databases ---- */

/* The databases that can be connected to. */
static List *
list_databases(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *databases = NIL;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext previous = MemoryContextSwitchTo(context);

		if (database->datallowconn)
			databases = lappend_oid(databases, database->oid);
		MemoryContextSwitchTo(previous);
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return databases;
}

/* Have one database looked through, and wait until that is done; false where no worker is free. */
static bool
visit_database(Oid database)
{
	BackgroundWorkerHandle *handle;

	for (int i = 0; i < REGISTER_TRIES; i++)
	{
		if (job_resume_register(database, &handle))
		{
			(void) WaitForBackgroundWorkerShutdown(handle);
			return true;
		}
		supervisor_pause(REGISTER_AGAIN_MS);
	}
	ereport(WARNING,
			(errmsg("could not look for mmgpt jobs to go on with in database of OID %u", database),
			 errdetail("All background workers are in use."),
			 errhint("Increase max_worker_processes, and call mmgpt_resume().")));
	return false;
}

/* ---- one database ---- */

/* End a job that can have no worker. */
static void
fail_job(const UnfinishedJob *job)
{
	ErrorData	error = {.sqlerrcode = ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
		.message = psprintf("role of OID %u, which began the job, is gone or may not log in",
							job->login)};

	job_fail(job->id, &error);
}

/* Give a job a worker, unless it has one. */
static void
resume_job(const UnfinishedJob *job)
{
	if (job_has_worker(job->id))
		return;
	if (job->cancel)
		job_end_cancelled(job->id);
	else if (!job_worker_can_login(job->login))
		fail_job(job);
	else if (job_worker_register(job->id, job->login))
	{
		job_requeue(job->id);
		ereport(LOG, (errmsg("mmgpt job %lld goes on", (long long) job->id)));
	}
	else
		ereport(WARNING,
				(errmsg("mmgpt job %lld does not go on: all background workers are in use",
						(long long) job->id),
				 errhint("Increase max_worker_processes, and call mmgpt_resume(%lld).",
						 (long long) job->id)));
}

/* Give all jobs of this database workers. */
static void
resume_jobs(void)
{
	ListCell   *cell;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, "looking for mmgpt jobs to go on with");
	if (tables_exist())
		foreach(cell, job_list_unfinished())
			resume_job(lfirst(cell));
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* The entry point of the background worker. */
void
mmgpt_resume_main(Datum argument)
{
	Oid			database = DatumGetObjectId(argument);
	ListCell   *cell;

	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	if (OidIsValid(database))
	{
		BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
		resume_jobs();
	}
	else
	{
		BackgroundWorkerInitializeConnection(NULL, NULL, 0);
		foreach(cell, list_databases())
			if (!visit_database(lfirst_oid(cell)))
				break;
	}
	proc_exit(0);
}
