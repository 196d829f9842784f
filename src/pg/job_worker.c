/*
 * job_worker.c - see job_worker.h.
 *
 * mmgpt_finetune() inserts the job and registers the worker in one transaction. The worker waits
 * for the end of that transaction: if it was rolled back, the job is not there, and the worker
 * leaves. It is connected as the role that had logged in, and works with the rights of the job's
 * owner as REFRESH MATERIALIZED VIEW does: row-level security is the owner's, and what a view or a
 * policy runs there can neither become anybody else nor leave anything to be done later, such as a
 * deferred trigger, which would have the rights of who had logged in.
 *
 * As long as it lives it holds a lock (job_take_lock); so who looks at a job knows whether it has a
 * worker. The postmaster never restarts it. A job whose worker is gone without having said how it
 * ended goes on in another one, when somebody asks for that (mmgpt_resume) or the server was
 * started again (job_resume.c).
 *
 * An error ends the job, whose state tells it. It is also in the server's log.
 */
#include "job_worker.h"

#include <stdarg.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "clock.h"
#include "extension_tables.h"
#include "pg_compat.h"
#include "supervisor_control.h"
#include "worker.h"

#define LOCK_TRIES 20
#define LOCK_TRY_MS 100

/* What a worker is told, in bgw_extra. */
typedef struct JobOrder
{
	int64		id;
	Oid			database;
	Oid			login;
	TransactionId transaction;	/* that made the job, or has it resumed */
} JobOrder;

StaticAssertDecl(sizeof(JobOrder) <= BGW_EXTRALEN, "a job's order fits a background worker");

extern EXPORTED void mmgpt_job_main(Datum argument);

bool
job_worker_register(int64 id, Oid login)
{
	BackgroundWorker worker;
	JobOrder	order = {id, MyDatabaseId, login, GetTopTransactionId()};

	worker_describe(&worker, JOB_WORKER_TYPE, "mmgpt_job_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, "%s %lld", JOB_WORKER_TYPE, (long long) id);
	memcpy(worker.bgw_extra, &order, sizeof(order));
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

bool
job_worker_can_login(Oid role)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		can = HeapTupleIsValid(tuple) &&
		((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return can;
}

void
job_report(const Job *job, const char *format,...)
{
	char		text[256];
	int			used = snprintf(text, sizeof(text), "mmgpt job %lld: ", (long long) job->id);
	va_list		arguments;

	va_start(arguments, format);
	vsnprintf(text + used, sizeof(text) - (size_t) used, format, arguments);
	va_end(arguments);
	pgstat_report_activity(STATE_RUNNING, text);
}

void
job_work_begin(Job *job)
{
	job->context = CurrentMemoryContext;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (OidIsValid(job->plan.owner))
		SetUserIdAndSecContext(job->plan.owner,
							   SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
	job->working = true;
}

void
job_work_end(Job *job)
{
	SetUserIdAndSecContext(job->login, 0);
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(true);
	MemoryContextSwitchTo(job->context);
	job->working = false;
}

/* Leave: there is nobody left to tell. */
static void
leave(const Job *job, const char *reason)
{
	ereport(LOG, (errmsg("mmgpt job %lld ends: %s", (long long) job->id, reason)));
	proc_exit(0);
}

/* In a transaction: look for the job and its owner. */
static void
check_job(Job *job)
{
	if (!tables_exist() || tables_identity() != job->tables)
		leave(job, "the extension was dropped");
	switch (job_wish(job->id))
	{
		case JOB_WISH_GO_ON:
			break;
		case JOB_WISH_CANCEL:
			ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED), errmsg("the job was cancelled")));
			break;
		case JOB_WISH_GONE:
			leave(job, "it was deleted");
	}
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(job->plan.owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the job's owner, role of OID %u, was dropped", job->plan.owner)));
}

void
job_look_around(Job *job)
{
	bool		working = job->working;

	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending && !working)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	if (!working)
		job_work_begin(job);
	check_job(job);
	if (!working)
		job_work_end(job);
}

/* Take the lock of the job. Others may hold it for an instant to see whether there is a worker. */
static bool
take_lock(const Job *job)
{
	for (int i = 0; i < LOCK_TRIES; i++)
	{
		if (job_take_lock(job->id))
			return true;
		supervisor_pause(LOCK_TRY_MS);
	}
	return false;
}

/* Wait until the job is there, and read it; false when it is not. */
static bool
begin_job(Job *job, TransactionId transaction)
{
	MemoryContext context = CurrentMemoryContext;
	bool		found;

	StartTransactionCommand();
	if (!take_lock(job))
		leave(job, "another worker runs it");
	job_report(job, "waiting for the transaction that began it");
	XactLockTableWait(transaction, NULL, NULL, XLTW_None);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);

	job_work_begin(job);
	if (!tables_exist())
		return false;
	job->tables = tables_identity();
	MemoryContextSwitchTo(context);
	found = job_load(job->id, &job->plan);
	if (found)
		job_options_read(job->plan.options, &job->options);
	job_work_end(job);
	return found;
}

/* Write down how the job ended by an error. */
static void
record_failure(Job *job, const ErrorData *error)
{
	bool		cancelled = error->sqlerrcode == ERRCODE_QUERY_CANCELED;

	job->plan.owner = InvalidOid;	/* who may be gone */
	job_work_begin(job);
	if (!tables_exist() || tables_identity() != job->tables)
		leave(job, "the extension was dropped");
	if (cancelled)
		job_end_cancelled(job->id);
	else
		job_fail(job->id, error);
	job_work_end(job);
	ereport(LOG, (errmsg("mmgpt job %lld %s: %s", (long long) job->id,
						 cancelled ? "ends" : "failed", error->message)));
}

/* Run a job; whatever goes wrong becomes its state. */
static void
run_job(Job *job)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		job_look_around(job);
		if (!job->plan.prepared)
			job_prepare(job);
		job_train(job);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(context);
		job->working = false;
		engine_line_close(&job->line);
		record_failure(job, error);
	}
	PG_END_TRY();
}

/*
 * What a role has set for its sessions in general must not end a job: a worker writes, looks at
 * what others have committed meanwhile, and may take long.
 */
static void
override_settings(void)
{
	SetConfigOption("default_transaction_read_only", "off", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed", PGC_USERSET,
					PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "0", PGC_USERSET, PGC_S_OVERRIDE);
#if PG_VERSION_NUM >= 170000
	SetConfigOption("transaction_timeout", "0", PGC_USERSET, PGC_S_OVERRIDE);
#endif
}

/* The entry point of the background worker. */
void
mmgpt_job_main(Datum argument)
{
	static Job	job;
	JobOrder	order;

	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, StatementCancelHandler);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(order.database, order.login, 0);
	SetConfigOption("application_name", MyBgworkerEntry->bgw_name, PGC_USERSET, PGC_S_SESSION);
	override_settings();

	CurrentMemoryContext = AllocSetContextCreate(TopMemoryContext, "mmgpt job",
												 ALLOCSET_DEFAULT_SIZES);
	job.id = order.id;
	job.login = order.login;
	engine_line_begin(&job.line, NULL);
	if (begin_job(&job, order.transaction))
		run_job(&job);
	proc_exit(0);
}
