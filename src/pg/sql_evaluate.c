/*
 * sql_evaluate.c - how well the model knows the responses of a table: mmgpt_evaluate.
 *
 * The rows are read as a training reads them, in the caller's own session; each is encoded and
 * then evaluated, with others in the same batches.
 */
#include "postgres.h"

#include "funcapi.h"
#include "access/htup_details.h"
#include "utils/builtins.h"

#include "adapter_table.h"
#include "arguments.h"
#include "pg_compat.h"
#include "row_stream.h"
#include "settings.h"

SQL_FUNCTION(mmgpt_evaluate);

typedef struct Evaluation
{
	const JobOptions *options;
	const char *adapter;		/* NULL: none */
	const char *source;			/* of that name, for errors; NULL: the argument */
	AdapterRow	adapter_row;	/* what has that name */
	int64		rows;
	int64		unusable;
	int64		exact;			/* rows that the model would answer just so */
	int64		targets;		/* tokens of responses */
	double		sum;			/* of their -log p */
} Evaluation;

/* Make the request that evaluates a row from the answer that encoded it. */
static bool
evaluate_row(void *argument, StreamRow *row)
{
	Evaluation *evaluation = argument;
	EngineRequest *request = &row->request;
	WireFields *fields = &row->answer.fields;
	size_t		content = request->content;

	request_begin(request, WIRE_KIND_EVALUATE);
	request->content = content; /* as the stream counts it */
	request_add_bytes(request, WIRE_FIELD_TOKENS, fields->bytes[WIRE_FIELD_TOKENS],
					  fields->length[WIRE_FIELD_TOKENS]);
	request_add_bytes(request, WIRE_FIELD_TARGETS, fields->bytes[WIRE_FIELD_TARGETS],
					  fields->length[WIRE_FIELD_TARGETS]);
	if (evaluation->adapter != NULL)
		request_set_adapter(request, evaluation->adapter, &evaluation->adapter_row);
	if (wire_has(fields, WIRE_FIELD_PIXELS))
		request_set_tail(request, WIRE_FIELD_PIXELS, fields->bytes[WIRE_FIELD_PIXELS],
						 fields->length[WIRE_FIELD_PIXELS]);
	return true;
}

/* Count a row. */
static void
take_row(void *argument, StreamRow *row)
{
	Evaluation *evaluation = argument;
	const WireFields *fields = &row->answer.fields;

	if (row->reason != NULL && evaluation->options->fail_unusable)
		row_stream_raise_unusable(row);
	if (row->reason != NULL)
	{
		evaluation->unusable++;
		return;
	}
	evaluation->rows++;
	evaluation->sum += wire_get_f64(fields, WIRE_FIELD_REAL, 0);
	evaluation->targets += wire_get_i64(fields, WIRE_FIELD_INTEGER, 0);
	evaluation->exact += wire_get_u32(fields, WIRE_FIELD_BOOLEAN, 0) != 0;
}

/* Choose the adapter: the argument's, else that of the session. */
static void
choose_adapter(FunctionCallInfo fcinfo, Evaluation *evaluation)
{
	evaluation->adapter = PG_ARGISNULL(1) ? setting_adapter :
		text_to_cstring(PG_GETARG_TEXT_PP(1));
	evaluation->source = PG_ARGISNULL(1) ? "It is the value of the setting mmgpt.adapter." : NULL;
	if (evaluation->adapter[0] == '\0')
		evaluation->adapter = NULL;
}

/* Read all rows of the table. */
static void
evaluate_table(Oid table, Evaluation *evaluation)
{
	RowStream	stream = {.options = evaluation->options,.read_only = true,
		.argument = evaluation,.next_request = evaluate_row,.take = take_row};
	RowSource	source;

	row_source_make(table, evaluation->options, &source);
	stream.source = &source;
	if (evaluation->adapter != NULL)
	{
		adapter_find(evaluation->adapter, evaluation->source, &evaluation->adapter_row);
		stream.adapter = &evaluation->adapter_row;
	}
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

/* mmgpt_evaluate(table, adapter, options) -> (rows, unusable, loss, exact_match) */
Datum
mmgpt_evaluate(PG_FUNCTION_ARGS)
{
	Evaluation	evaluation = {0};
	JobOptions	options;
	TupleDesc	description;
	Datum		values[4];
	bool		nulls[4] = {false, false, false, false};

	if (get_call_result_type(fcinfo, NULL, &description) != TYPEFUNC_COMPOSITE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("mmgpt_evaluate() is called where no record is accepted")));
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("table must not be null")));
	job_options_read_evaluation(PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2), &options);
	evaluation.options = &options;
	choose_adapter(fcinfo, &evaluation);
	evaluate_table(PG_GETARG_OID(0), &evaluation);
	values[0] = Int64GetDatum(evaluation.rows);
	values[1] = Int64GetDatum(evaluation.unusable);
	nulls[2] = nulls[3] = evaluation.rows == 0;
	values[2] = Float8GetDatum(evaluation.sum / (double) Max(evaluation.targets, 1));
	values[3] = Float8GetDatum((double) evaluation.exact / (double) Max(evaluation.rows, 1));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(description), values, nulls)));
}
