/*
 * job_table.h - fine-tuning jobs in the tables of the extension.
 *
 * All queries run with the rights of the tables' owner (extension_tables.h); callers look at
 * rights first. Each sees what was committed before it.
 */
#ifndef MMGPT_JOB_TABLE_H
#define MMGPT_JOB_TABLE_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/jsonb.h"

/* Bytes of a piece of a checkpoint, but the last. */
#define JOB_PIECE_SIZE (1024 * 1024)

/* What a query asks of jobs that are not over, as the index mmgpt_job_active has it. */
#define JOB_NOT_OVER \
	"state OPERATOR(pg_catalog.=) ANY (ARRAY['queued', 'preparing', 'running'])"

/*
 * Run a query that gives nothing, with a job's number as $1; true when it changed a row. Of use to
 * the functions below, in two files.
 */
extern bool job_change(const char *text, int64 id);

/* A job to be made. */
typedef struct NewJob
{
	Oid			table;
	const char *table_name;
	const char *adapter;
	Jsonb	   *options;		/* NULL: none */
} NewJob;

/* Insert a job of the caller's; false where a job that is not over makes this adapter. */
extern bool job_insert(const NewJob *job, int64 *id);

/* A job as others see it. Texts are of the memory context of the call; NULL where there is none. */
typedef struct JobView
{
	Oid			owner;
	Oid			login;			/* whom its worker connects as */
	TransactionId changed_by;	/* the row's xmin */
	char	   *state;			/* of mmgpt_jobs */
	char	   *adapter;
	int			step;
	int			steps;			/* 0: not known yet */
	char	   *progress;		/* losses, speed and time left, as text; empty: nothing yet */
	char	   *error_code;
	char	   *error;
	char	   *error_detail;
	char	   *error_hint;
} JobView;

/* Find a job; false if there is none of this number. lock: until the end of the transaction. */
extern bool job_find(int64 id, bool lock, JobView *view);

/* Whether a job that is not over makes an adapter, other than this one. */
extern bool job_find_active(const char *adapter, int64 id);

/* Ask a job to end; one that has no worker is over at once. False: it is over already. */
extern bool job_request_cancel(int64 id);

/* Make a job that has no worker ready for a new one; how it ended is forgotten. */
extern void job_requeue(int64 id);

/* Delete a job with all that belongs to it. */
extern void job_delete(int64 id);

/* Drop rows, pictures and checkpoints of a job. */
extern void job_delete_rows(int64 id);

/* ---- for the worker ---- */

/* A job as its worker needs it. Texts are of the memory context of the call. */
typedef struct JobPlan
{
	Oid			table;
	char	   *table_name;
	char	   *adapter;
	Oid			owner;
	Jsonb	   *options;		/* NULL: none */
	bool		prepared;
	char	   *initial_digest; /* NULL: none, or not known yet */
	char	   *model;			/* digest of the model that it trains; NULL: not known yet */
} JobPlan;

/* Read a job; false if it is gone, or over. */
extern bool job_load(int64 id, JobPlan *plan);

typedef enum JobWish
{
	JOB_WISH_GO_ON,
	JOB_WISH_CANCEL,
	JOB_WISH_GONE				/* the job was deleted */
} JobWish;

/* What its owner wishes a job to do. */
extern JobWish job_wish(int64 id);

/* Set the state of a job that is not over; preparing sets the time of its start too. */
extern void job_set_state(int64 id, const char *state);

/* Begin to prepare: rows that are there are dropped. digest: of the initial adapter, or NULL. */
extern void job_begin_rows(int64 id, const char *digest);

/*
 * Insert a row: tokens and targets, each of size bytes; pixels may be NULL.
 */
extern void job_insert_row(int64 id, int64 number, const void *tokens, const void *targets,
						   size_t size, const void *pixels, size_t pixels_size);

extern void job_insert_unusable(int64 id, int64 number, const char *key, const char *reason);

/* All rows were read. Where none can be used, they will be read again. */
extern void job_end_rows(int64 id, int64 rows, int64 unusable);

/* Open a cursor over the rows in order: tokens, targets, pixels. SPI must be connected. */
extern struct PortalData *job_open_rows(int64 id);

/* Note the model that a training was opened with. */
extern void job_note_model(int64 id, const char *digest);

/* Note what TRAIN_START answered (jsonb): numbers of steps and pictures. */
extern void job_note_start(int64 id, Datum answer);

/* Note what TRAIN_STEP answered (jsonb): where the training is, and its steps. */
extern void job_note_steps(int64 id, Datum answer);

/* Insert a checkpoint of a step, and delete all but the last two. */
extern void job_insert_checkpoint(int64 id, int step, const uint8 *bytes, size_t size);

/*
 * Read the last checkpoint, of the memory context of the call; NULL: there is none. Its step goes
 * to *step.
 */
extern uint8 *job_read_checkpoint(int64 id, int *step, size_t *size);

extern void job_delete_checkpoint(int64 id, int step);

/*
 * Set the state of a job that is over: done, with the adapter's digest; failed, with the error;
 * cancelled.
 */
extern void job_finish(int64 id, const char *digest);
extern void job_fail(int64 id, const ErrorData *error);
extern void job_end_cancelled(int64 id);

/* A job that is not over, for who looks for those without a worker. */
typedef struct UnfinishedJob
{
	int64		id;
	Oid			login;
	bool		cancel;
} UnfinishedJob;

/* All jobs that are not over: a list of UnfinishedJob, in order of their numbers. */
extern List *job_list_unfinished(void);

/* ---- the worker's lock ---- */

/* Take the lock that says that a job has a worker, for the session's life; false: it has one. */
extern bool job_take_lock(int64 id);

/* Whether a job has a worker now. */
extern bool job_has_worker(int64 id);

#endif
