/*
 * sql_job.c - functions that begin fine-tuning jobs and change them: finetune, wait, cancel,
 * resume, job_delete.
 *
 * What they change is part of the transaction: a job's worker waits for its end.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "adapter_store.h"
#include "arguments.h"
#include "clock.h"
#include "job_options.h"
#include "job_table.h"
#include "job_worker.h"
#include "pg_compat.h"
#include "row_source.h"
#include "supervisor_control.h"

#define POLL_MS 200
#define BAR_WIDTH 20
#define LONGEST_TEXT 256		/* of a notice */
#define NS_PER_MS UINT64CONST(1000000)
#define NOTICE_NS (1000 * NS_PER_MS)	/* between two notices */
#define INTERRUPTED_NS (10 * 1000 * NS_PER_MS)	/* a job may get a new worker so long */

SQL_FUNCTION(mmgpt_finetune);
SQL_FUNCTION(mmgpt_wait);
SQL_FUNCTION(mmgpt_cancel);
SQL_FUNCTION(mmgpt_resume);
SQL_FUNCTION(mmgpt_job_delete);

/* ---- finetune ---- */

/* Tell what else could have been meant by an option that the engine does not know. */
static void
tell_own_options(void *argument)
{
	errcontext("options of the training; of the job are columns, key, image_rules, "
			   "initial_adapter, replace, checkpoint_seconds");
}

/*
 * Let the engine check the options of the training, by encoding a row with them: they are the first
 * thing that it looks at.
 */
static void
check_training(const JobOptions *options)
{
	ErrorContextCallback context = {error_context_stack, tell_own_options, NULL};
	EngineRequest request;
	EngineAnswer answer;

	if (options->training == NULL)
		return;
	error_context_stack = &context;
	request_begin(&request, WIRE_KIND_TRAIN_ENCODE);
	request_add_uncounted_json(&request, WIRE_FIELD_OPTIONS, options->training);
	request_add_bytes(&request, WIRE_FIELD_PROMPT, "?", 1);
	request_add_bytes(&request, WIRE_FIELD_RESPONSE, "!", 1);
	engine_ask(&request, &answer);
	error_context_stack = context.previous;
}

/* The name of the adapter to be: the table's, where none is given. */
static const char *
adapter_argument(FunctionCallInfo fcinfo, const char *table)
{
	const char *name = PG_ARGISNULL(1) ? table : text_to_cstring(PG_GETARG_TEXT_PP(1));

	adapter_check_name(name);
	return name;
}

/* Raise an error unless the role that the worker would connect as may log in. */
static void
check_login(Oid role, const char *hint)
{
	const char *name = GetUserNameFromId(role, true);

	if (!job_worker_can_login(role))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 name == NULL ?
				 errmsg("role of OID %u, as which the job's worker would log in, was dropped", role) :
				 errmsg("role \"%s\" may not log in, as the job's worker would", name),
				 errhint("%s", hint)));
}

/*
 * Raise an error where somebody's function is called on behalf of another role, by ANALYZE, REINDEX
 * or REFRESH MATERIALIZED VIEW, which must leave nothing behind: a worker would.
 */
static void
check_not_restricted(const char *function)
{
	if (InSecurityRestrictedOperation())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot call %s within security-restricted operation", function)));
}

/* Raise an error for a table that the worker, which is a session of its own, can't read. */
static void
check_not_temporary(const NewJob *job)
{
	if (get_rel_persistence(job->table) == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is temporary, and the job's worker has a session of its own",
						job->table_name),
				 errhint("Copy it into a table that is not, for instance an unlogged one.")));
}

/* Check all that can be known before the job runs. */
static void
check_job(const NewJob *job)
{
	JobOptions	options;
	RowSource	source;
	AdapterRow	initial;

	check_not_temporary(job);
	job_options_read(job->options, &options);
	row_source_make(job->table, &options, &source);
	row_source_check(&source);
	check_login(GetSessionUserId(),
				"Log in as a role with the attribute LOGIN, and use SET ROLE.");
	adapter_check_free(job->adapter, options.replace,
					   "Give another name, or the option \"replace\": true.");
	if (options.initial_adapter != NULL)
		adapter_find(options.initial_adapter, "The option \"initial_adapter\" names it.",
					 &initial);
	check_training(&options);
}

/* Register the worker of a job, or raise an error. */
static void
start_worker(int64 id, Oid login)
{
	if (!job_worker_register(id, login))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("could not start a worker for the job: all background workers are in use"),
				 errhint("Increase max_worker_processes, or wait until other jobs are done.")));
}

/* Raise the error for an adapter that another job makes. */
static void
raise_busy(const char *adapter)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("adapter \"%s\" is being made by another job", adapter),
			 errhint("Wait for that job, or cancel it with mmgpt_cancel().")));
}

/* mmgpt_finetune(table, adapter, options) -> bigint, the job */
Datum
mmgpt_finetune(PG_FUNCTION_ARGS)
{
	NewJob		job = {0};
	int64		id;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("table to train on must not be null")));
	PreventCommandIfReadOnly("mmgpt_finetune()");
	check_not_restricted("mmgpt_finetune()");
	job.table = PG_GETARG_OID(0);
	job.table_name = get_rel_name(job.table);
	if (job.table_name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table of OID %u does not exist", job.table)));
	job.adapter = adapter_argument(fcinfo, job.table_name);
	job.options = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2);
	check_job(&job);
	if (!job_insert(&job, &id))
		raise_busy(job.adapter);
	start_worker(id, GetSessionUserId());
	PG_RETURN_INT64(id);
}

/* ---- jobs that are there ---- */

/* Find a job that the caller may see and change. */
static int64
find_own(FunctionCallInfo fcinfo, bool lock, JobView *view)
{
	int64		id;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("job must not be null")));
	id = PG_GETARG_INT64(0);
	if (!job_find(id, lock, view) || !has_privs_of_role(GetUserId(), view->owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job %lld does not exist", (long long) id),
				 errhint("The view mmgpt_jobs shows those that are yours.")));
	return id;
}

static bool
is_state(const JobView *view, const char *state)
{
	return strcmp(view->state, state) == 0;
}

/* Whether a job has a worker, or is about to get one. */
static bool
is_active(const JobView *view)
{
	return is_state(view, "queued") || is_state(view, "preparing") || is_state(view, "running");
}

/* mmgpt_cancel(job) -> boolean */
Datum
mmgpt_cancel(PG_FUNCTION_ARGS)
{
	JobView		view;
	int64		id;

	PreventCommandIfReadOnly("mmgpt_cancel()");
	id = find_own(fcinfo, true, &view);
	PG_RETURN_BOOL(job_request_cancel(id));
}

/* mmgpt_resume(job) */
Datum
mmgpt_resume(PG_FUNCTION_ARGS)
{
	JobView		view;
	int64		id;

	PreventCommandIfReadOnly("mmgpt_resume()");
	check_not_restricted("mmgpt_resume()");
	id = find_own(fcinfo, true, &view);
	if (is_state(&view, "done"))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job %lld is done", (long long) id)));
	if (is_active(&view) && (job_has_worker(id) || !is_state(&view, "queued")))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("job %lld is running", (long long) id)));
	if (job_find_active(view.adapter, id))
		raise_busy(view.adapter);
	check_login(view.login, "Let it log in again, or begin a new job.");
	job_requeue(id);
	start_worker(id, view.login);
	PG_RETURN_VOID();
}

/* mmgpt_job_delete(job) */
Datum
mmgpt_job_delete(PG_FUNCTION_ARGS)
{
	JobView		view;
	int64		id;

	PreventCommandIfReadOnly("mmgpt_job_delete()");
	id = find_own(fcinfo, true, &view);
	if (is_active(&view))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("job %lld is not over", (long long) id),
				 errhint("Cancel it with mmgpt_cancel() first.")));
	job_delete(id);
	PG_RETURN_VOID();
}

/* ---- wait ---- */

/* Show how far a job is, where that has changed. */
static void
show_progress(int64 id, const JobView *view, char shown[LONGEST_TEXT])
{
	int			filled = view->steps > 0 ? (int) ((int64) BAR_WIDTH * view->step / view->steps) : 0;
	char		bar[BAR_WIDTH + 1];
	char		text[LONGEST_TEXT];

	memset(bar, '.', BAR_WIDTH);
	memset(bar, '#', Min(filled, BAR_WIDTH));
	bar[BAR_WIDTH] = '\0';
	if (is_state(view, "running"))
		snprintf(text, sizeof(text), "[%s] step %d of %d%s%s", bar, view->step, view->steps,
				 view->progress[0] != '\0' ? ", " : "", view->progress);
	else
		strlcpy(text, view->state, sizeof(text));
	if (strcmp(text, shown) == 0)
		return;
	strlcpy(shown, text, LONGEST_TEXT);
	ereport(NOTICE, (errmsg_internal("job %lld: %s", (long long) id, text)));
}

/* Raise the error that a job failed with. */
static void
raise_failure(int64 id, const JobView *view)
{
	const char *code = view->error_code;

	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4])),
			 errmsg("job %lld failed: %s", (long long) id, view->error),
			 view->error_detail != NULL ? errdetail("%s", view->error_detail) : 0,
			 view->error_hint != NULL ? errhint("%s", view->error_hint) : 0));
}

/*
 * mmgpt_wait(job) -> text, the state at its end. An interrupted job may be about to get a new
 * worker, after a restart of the server: it is waited for a while.
 */
Datum
mmgpt_wait(PG_FUNCTION_ARGS)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "mmgpt wait",
												  ALLOCSET_SMALL_SIZES);
	uint64		noticed = 0;
	uint64		interrupted = 0;
	char		shown[LONGEST_TEXT] = "";
	JobView		view;

	for (;;)
	{
		uint64		now = clock_now_ns();
		MemoryContext previous = MemoryContextSwitchTo(context);
		int64		id = find_own(fcinfo, false, &view);

		if (TransactionIdIsCurrentTransactionId(view.changed_by) && is_active(&view))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("job %lld cannot be waited for in the transaction that began it",
							(long long) id),
					 errhint("It begins when the transaction commits.")));
		if (is_state(&view, "failed"))
			raise_failure(id, &view);
		interrupted = !is_state(&view, "interrupted") ? 0 : interrupted == 0 ? now : interrupted;
		if (!is_active(&view) && (interrupted == 0 || now - interrupted > INTERRUPTED_NS))
		{
			MemoryContextSwitchTo(previous);
			PG_RETURN_TEXT_P(cstring_to_text(view.state));
		}
		if (now - noticed >= NOTICE_NS)
		{
			show_progress(id, &view, shown);
			noticed = now;
		}
		MemoryContextSwitchTo(previous);
		MemoryContextReset(context);
		supervisor_pause(POLL_MS);
	}
}
