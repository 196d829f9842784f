/*
 * job_worker.h - the background worker that runs one fine-tuning job.
 */
#ifndef MMGPT_JOB_WORKER_H
#define MMGPT_JOB_WORKER_H

#include "postgres.h"

#include "engine_line.h"
#include "job_options.h"
#include "job_table.h"

#define JOB_WORKER_TYPE "mmgpt job" /* backend_type in pg_stat_activity */

/* A job in its worker. */
typedef struct Job
{
	int64		id;
	Oid			tables;			/* tables_identity(): another one is another extension */
	Oid			login;			/* the role that the worker is connected as */
	JobPlan		plan;
	JobOptions	options;
	bool		working;		/* a transaction is open, */
	MemoryContext context;		/* begun in this memory context */
	EngineLine	line;
	uint64		checkpoint_time;	/* clock_now_ns() of the last one, or of the start */
	int			losses;			/* of the engine since the last checkpoint */
} Job;

/*
 * Register a worker for a job, which begins when the current transaction has committed and leaves
 * if the job is not there then. login: the role to connect as. False when max_worker_processes
 * leaves no room.
 */
extern bool job_worker_register(int64 id, Oid login);

/* Whether a role is there and may log in, as a worker does. */
extern bool job_worker_can_login(Oid role);

/*
 * Begin and end a transaction of the worker, under the rights of the job's owner. What is
 * allocated between is gone at its end, and the memory context is that of before.
 */
extern void job_work_begin(Job *job);
extern void job_work_end(Job *job);

/*
 * Do what others wish: raises an error when the job is cancelled or its owner is gone, and ends the
 * process when the job or the extension is. In a transaction or outside.
 */
extern void job_look_around(Job *job);

/* Tell pg_stat_activity what the worker does. */
extern void job_report(const Job *job, const char *format,...) pg_attribute_printf(2, 3);

/* In job_prepare.c: read the table's rows and keep what the engine makes of them. */
extern void job_prepare(Job *job);

/* In job_training.c: train, whatever happens to the engine, and store the adapter. */
extern void job_train(Job *job);

#endif
