/*
 * job_training.c - train: the conversation of a job's worker with the engine.
 *
 * A training is opened (which may mean to wait for its turn), gets its rows and its last
 * checkpoint, works in slices of about a second, after each of which its steps are written down,
 * and at last gives its adapter. All of it is lost with the engine, and is then done again with
 * the next one, from the last checkpoint: the steps that come twice are the same, to the bit.
 * The adapter is stored in the transaction that ends the job.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "adapter_store.h"
#include "arguments.h"
#include "clock.h"
#include "extension_tables.h"
#include "job_worker.h"
#include "results.h"
#include "settings.h"
#include "status_to_sqlstate.h"

#define LOOK_MS 500				/* while waiting for an answer */
#define SLICE_MS 1000			/* of training, between two reports; */
#define LEAST_SLICE_MS 50		/* less where checkpoints come faster */
#define ROWS_IN_FLIGHT 32
#define LOSSES_ALLOWED 5		/* of the engine in a row, without a checkpoint between */
#define NS_PER_MS UINT64CONST(1000000)

/* ---- asking ---- */

/* Raise an error of the engine, whose text is converted, and that needs a transaction. */
static void
raise_failure(Job *job, const Status *failure)
{
	if (!job->working)
		job_work_begin(job);
	status_raise(failure);
}

/*
 * Wait for an answer to any request; false when the engine is lost. Raises the error that the
 * engine answers with, unless failure is there to take it: then false, with failure set.
 */
static bool
receive(Job *job, EngineAnswer *answer, Status *failure)
{
	Status		status;
	uint64_t	id;

	status_clear(&status);
	for (;;)
	{
		switch (engine_line_receive(&job->line, LOOK_MS, &id, answer, &status))
		{
			case LINE_ANSWER:
				return true;
			case LINE_LOST:
				return false;
			case LINE_NOTHING:
				job_look_around(job);
				break;
			case LINE_ERROR:
				if (failure == NULL)
					raise_failure(job, &status);
				*failure = status;
				return false;
		}
	}
}

/* Ask one thing and wait for the answer; as of receive. */
static bool
ask(Job *job, const EngineRequest *request, EngineAnswer *answer, Status *failure)
{
	(void) engine_line_send(&job->line, request);
	return receive(job, answer, failure);
}

static bool
ask_kind(Job *job, WireKind kind, EngineAnswer *answer)
{
	EngineRequest request;

	request_begin(&request, kind);
	return ask(job, &request, answer, NULL);
}

/* ---- opening ---- */

/* Read the adapter to go on from, which must be the one that the job began with. */
static void
add_initial(Job *job, EngineRequest *request)
{
	AdapterRow	row;
	char	   *tensors;

	adapter_find(job->options.initial_adapter, "The option \"initial_adapter\" names it.", &row);
	if (job->plan.initial_digest == NULL || strcmp(row.digest, job->plan.initial_digest) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("adapter \"%s\" has changed since the job began to train with it",
						job->options.initial_adapter),
				 errhint("Begin a new job.")));
	tensors = palloc_extended((size_t) row.bytes, MCXT_ALLOC_HUGE);
	adapter_read_file(&row, tensors);
	request_set_files(request, tensors, (size_t) row.bytes, row.config);
}

/* Raise an error unless the engine still has the model that the job trains for. */
static void
check_model(Job *job, const EngineAnswer *answer)
{
	char	   *model;

	job_work_begin(job);
	model = result_json_field(result_jsonb(answer), "model");
	if (job->plan.model == NULL)
	{
		job->plan.model = MemoryContextStrdup(TopMemoryContext, model);
		job_note_model(job->id, model);
	}
	else if (strcmp(job->plan.model, model) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the job trains an adapter for another model than the one that is loaded"),
				 errdetail("The job's model is %.16s, the loaded one %.16s.", job->plan.model,
						   model),
				 errhint("Load the model and call mmgpt_resume, or begin a new job.")));
	job_work_end(job);
}

/* Open the training; waits while another one is open. */
static bool
open_training(Job *job)
{
	MemoryContext context = CurrentMemoryContext;
	EngineRequest request;
	EngineAnswer answer;

	job_report(job, "waiting for its turn");
	job_work_begin(job);
	job_set_state(job->id, "queued");
	MemoryContextSwitchTo(context);
	request_begin(&request, WIRE_KIND_TRAIN_OPEN);
	request_add_uncounted_json(&request, WIRE_FIELD_OPTIONS, job->options.training);
	if (job->options.initial_adapter != NULL)
		add_initial(job, &request);
	job_work_end(job);
	if (!ask(job, &request, &answer, NULL))
		return false;
	check_model(job, &answer);
	return true;
}

/* ---- rows ---- */

/* The row that was fetched, as a request. */
static void
make_row(EngineRequest *request)
{
	bytea	   *tokens = DatumGetByteaPP(tables_column(1));
	bytea	   *targets = DatumGetByteaPP(tables_column(2));
	bool		is_null;
	Datum		pixels = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3, &is_null);

	request_begin(request, WIRE_KIND_TRAIN_ROW);
	request_add_bytes(request, WIRE_FIELD_TOKENS, VARDATA_ANY(tokens), VARSIZE_ANY_EXHDR(tokens));
	request_add_bytes(request, WIRE_FIELD_TARGETS, VARDATA_ANY(targets),
					  VARSIZE_ANY_EXHDR(targets));
	if (!is_null)
	{
		bytea	   *bytes = DatumGetByteaPP(pixels);

		request_set_tail(request, WIRE_FIELD_PIXELS, VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes));
	}
}

/* Send all rows; some are on their way at any time. */
static bool
send_all(Job *job, Portal portal)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "mmgpt row",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext previous = MemoryContextSwitchTo(context);
	int			in_flight = 0;
	bool		ended = false;
	bool		good = true;

	while (good && (!ended || in_flight > 0))
	{
		EngineRequest request;
		EngineAnswer answer;

		MemoryContextReset(context);
		if (!ended)
		{
			SPI_cursor_fetch(portal, true, 1);
			ended = SPI_processed == 0;
		}
		if (!ended)
		{
			make_row(&request);
			(void) engine_line_send(&job->line, &request);
			in_flight++;
		}
		if (SPI_tuptable != NULL)
			SPI_freetuptable(SPI_tuptable);
		if (in_flight >= ROWS_IN_FLIGHT || (ended && in_flight > 0))
		{
			good = receive(job, &answer, NULL);
			in_flight--;
		}
	}
	MemoryContextSwitchTo(previous);
	return good;
}

static bool
send_rows(Job *job)
{
	TablesAccess access;
	Portal		portal;
	bool		good;

	job_report(job, "sending the rows");
	job_work_begin(job);
	tables_begin(&access);
	portal = job_open_rows(job->id);
	good = send_all(job, portal);
	SPI_cursor_close(portal);
	tables_end(&access);
	job_work_end(job);
	return good;
}

/* ---- starting ---- */

/* Forget a checkpoint that the engine refuses; the one before, or the start, gives the same. */
static void
drop_checkpoint(Job *job, int step, const Status *failure)
{
	ereport(LOG,
			(errmsg("mmgpt job %lld goes back behind its checkpoint of step %d: %s",
					(long long) job->id, step, failure->message)));
	job_work_begin(job);
	job_delete_checkpoint(job->id, step);
	job_work_end(job);
	engine_line_close(&job->line);
}

/* Start the training, from its last checkpoint. */
static bool
start_training(Job *job)
{
	MemoryContext context = CurrentMemoryContext;
	EngineRequest request;
	EngineAnswer answer;
	Status		failure;
	int			step;
	size_t		size;
	uint8	   *checkpoint;

	status_clear(&failure);
	request_begin(&request, WIRE_KIND_TRAIN_START);
	job_work_begin(job);
	MemoryContextSwitchTo(context);
	checkpoint = job_read_checkpoint(job->id, &step, &size);
	job_work_end(job);
	if (checkpoint != NULL)
		request_set_tail(&request, WIRE_FIELD_CHECKPOINT, checkpoint, size);
	if (!ask(job, &request, &answer, &failure))
	{
		if (status_good(&failure))
			return false;
		if (checkpoint == NULL || failure.code != STATUS_INVALID_ARGUMENT)
			raise_failure(job, &failure);
		drop_checkpoint(job, step, &failure);
		return false;
	}
	job_work_begin(job);
	job_note_start(job->id, result_jsonb(&answer));
	job_work_end(job);
	job->checkpoint_time = clock_now_ns();
	return true;
}

/* ---- training ---- */

/* Work for a while and write down what came out. */
static bool
train_slice(Job *job, bool *done, int *step)
{
	int			most = Max(job->options.checkpoint_seconds * 1000, LEAST_SLICE_MS);
	EngineRequest request;
	EngineAnswer answer;
	Datum		json;

	request_begin(&request, WIRE_KIND_TRAIN_STEP);
	wire_write_u32(&request.writer, WIRE_FIELD_BUDGET_MS, (uint32_t) Min(most, SLICE_MS));
	wire_write_u32(&request.writer, WIRE_FIELD_TRAINING_SHARE, (uint32_t) setting_training_share);
	if (!ask(job, &request, &answer, NULL))
		return false;
	job_work_begin(job);
	json = result_jsonb(&answer);
	*done = strcmp(result_json_field(json, "done"), "true") == 0;
	*step = pg_strtoint32(result_json_field(json, "micro_step"));
	job_report(job, "step %d of %s", *step, result_json_field(json, "micro_steps"));
	job_look_around(job);
	job_note_steps(job->id, json);
	job_work_end(job);
	return true;
}

/* Save a checkpoint, if it is time for one. */
static bool
save_checkpoint(Job *job, int step)
{
	uint64		now = clock_now_ns();
	EngineAnswer answer;

	if (now - job->checkpoint_time < (uint64) job->options.checkpoint_seconds * 1000 * NS_PER_MS)
		return true;
	if (!ask_kind(job, WIRE_KIND_TRAIN_SAVE, &answer))
		return false;
	job_work_begin(job);
	job_insert_checkpoint(job->id, step, answer.fields.bytes[WIRE_FIELD_CHECKPOINT],
						  answer.fields.length[WIRE_FIELD_CHECKPOINT]);
	job_work_end(job);
	job->checkpoint_time = now;
	job->losses = 0;
	return true;
}

/* Take the steps, to the last one. */
static bool
take_steps(Job *job)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "mmgpt slice",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext previous = MemoryContextSwitchTo(context);
	bool		good = true;
	bool		done = false;
	int			saved = 0;
	int			step = 0;

	while (good && !done)
	{
		good = train_slice(job, &done, &step);
		if (good && !done && step > saved)
		{
			good = save_checkpoint(job, step);
			saved = step;
		}
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return good;
}

/* Have the engine check and describe the adapter with its config in the form that is stored. */
static bool
check_adapter(Job *job, const AdapterFiles *files, EngineAnswer *answer)
{
	MemoryContext context = CurrentMemoryContext;
	EngineRequest request;

	job_work_begin(job);		/* texts are converted only in a transaction */
	MemoryContextSwitchTo(context);
	request_begin(&request, WIRE_KIND_ADAPTER_CHECK);
	request_set_files(&request, files->tensors, files->length, files->config);
	job_work_end(job);
	return ask(job, &request, answer, NULL);
}

/* Take the adapter as it is now. */
static bool
take_adapter(Job *job, AdapterFiles *files, EngineAnswer *answer)
{
	const WireFields *fields = &answer->fields;
	MemoryContext context = CurrentMemoryContext;
	char	   *config;

	if (!ask_kind(job, WIRE_KIND_TRAIN_ADAPTER, answer))
		return false;
	job_work_begin(job);		/* as in check_adapter */
	MemoryContextSwitchTo(context);
	config = result_text_to_server((const char *) fields->bytes[WIRE_FIELD_ADAPTER_CONFIG],
								   fields->length[WIRE_FIELD_ADAPTER_CONFIG]);
	files->config = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(config)));
	job_work_end(job);
	files->tensors = (const char *) fields->bytes[WIRE_FIELD_ADAPTER_TENSORS];
	files->length = fields->length[WIRE_FIELD_ADAPTER_TENSORS];
	return true;
}

/* Store the adapter, and with it the end of the job. */
static bool
store_adapter(Job *job)
{
	EngineAnswer adapter;
	EngineAnswer description;
	AdapterFiles files;

	job_report(job, "storing adapter \"%s\"", job->plan.adapter);
	if (!take_adapter(job, &files, &adapter) || !check_adapter(job, &files, &description))
		return false;
	job_work_begin(job);
	job_look_around(job);
	files.description = result_jsonb(&description);
	adapter_store(job->plan.adapter, &files, job->options.replace,
				  "Drop or rename it, and call mmgpt_resume.");
	job_finish(job->id, result_json_field(files.description, "digest"));
	job_work_end(job);
	return true;
}

/* One attempt with one engine; false when it was lost. */
static bool
train_once(Job *job)
{
	return open_training(job) && send_rows(job) && start_training(job) && take_steps(job) &&
		store_adapter(job);
}

void
job_train(Job *job)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "mmgpt training",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext previous = MemoryContextSwitchTo(context);

	while (!train_once(job))
	{
		MemoryContextReset(context);
		engine_line_close(&job->line);
		if (++job->losses > LOSSES_ALLOWED)
			ereport(ERROR,
					(errcode(ERRCODE_SYSTEM_ERROR),
					 errmsg("the mmgpt engine ended %d times before the job came to its next "
							"checkpoint", job->losses),
					 errhint("The server's log says how the engine ended. mmgpt_resume lets the "
							 "job go on.")));
		job_look_around(job);
	}
	engine_line_close(&job->line);
	MemoryContextSwitchTo(previous);
}
