/*
 * sql_model.c - the functions about images, tokens and the engine itself, which
 * need no answer of the model.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"

#include "arguments.h"
#include "pg_compat.h"
#include "results.h"
#include "settings.h"
#include "status_to_sqlstate.h"
#include "supervisor_control.h"

SQL_FUNCTION(mmgpt_image_info);
SQL_FUNCTION(mmgpt_token_count);
SQL_FUNCTION(mmgpt_status);
SQL_FUNCTION(mmgpt_version);
SQL_FUNCTION(mmgpt_restart);

/* mmgpt_image_info(image) -> jsonb */
Datum
mmgpt_image_info(PG_FUNCTION_ARGS)
{
	EngineRequest request;
	EngineAnswer answer;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	request_begin(&request, WIRE_KIND_IMAGE_INFO);
	wire_write_u64(&request.writer, WIRE_FIELD_MAX_PIXELS, (uint64_t) setting_max_image_pixels);
	request_set_image(&request, PG_GETARG_DATUM(0));
	engine_ask(&request, &answer);
	return result_jsonb(&answer);
}

/* mmgpt_token_count(text) -> integer */
Datum
mmgpt_token_count(PG_FUNCTION_ARGS)
{
	EngineRequest request;
	EngineAnswer answer;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	request_begin(&request, WIRE_KIND_TOKEN_COUNT);
	request_add_text(&request, WIRE_FIELD_PROMPT, PG_GETARG_TEXT_PP(0));
	engine_ask(&request, &answer);
	return result_integer(&answer);
}

/* What the supervisor knows and the engine does not: {"supervisor_pid", "restarts"}. */
static Datum
supervisor_report(void)
{
	SupervisorState state;
	char	   *report;

	if (!supervisor_file_read(&state))
		report = "{}";
	else
		report = psprintf("{\"supervisor_pid\": %d, \"restarts\": %d}",
						  state.supervisor, state.restarts);
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(report));
}

/* True for who may read settings that only superusers see; the model's directory is one. */
static bool
may_see_model(void)
{
	return superuser() || has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_SETTINGS);
}

/*
 * Whether the supervisor looks after an engine of the list: while the configuration changes it may
 * not yet, or not any more, and nobody would answer at its socket.
 */
static bool
engine_is_there(int engine)
{
	EngineBoard board;

	return engine == 0 || !supervisor_file_read_board(&board) ||
		board.slots[engine].state != ENGINE_NONE;
}

/* What is told about an engine that refuses to tell anything. */
static Datum
refusal_report(const Status *status)
{
	const char *reason = status->detail[0] != '\0' ? status->detail : status->message;
	StringInfoData report;

	initStringInfo(&report);
	appendStringInfoString(&report, "{\"state\": \"failed\", \"failure\": ");
	escape_json(&report, result_text_to_server(reason, strlen(reason)));
	appendStringInfoChar(&report, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(report.data));
}

/*
 * What one engine tells, without what the caller may not see. Of several, one that does not start
 * keeps nobody from what the others tell.
 */
static Datum
engine_report(int engine, int engines)
{
	EngineRequest request;
	EngineAnswer answer;
	Status		status;
	Datum		report;

	if (!engine_is_there(engine))
		return DirectFunctionCall1(jsonb_in, CStringGetDatum("{\"state\": \"loading\"}"));
	request_begin(&request, WIRE_KIND_STATUS);
	if (!engine_ask_one(&request, &answer, engine, &status))
	{
		if (engines == 1)
			status_raise(&status);
		return refusal_report(&status);
	}
	report = result_jsonb(&answer);
	if (may_see_model())
		return report;
	return DirectFunctionCall2(jsonb_delete, report, CStringGetTextDatum("model"));
}

/* mmgpt_status() -> jsonb: of the engine, or {"engines": [...]}; and what the supervisor knows */
Datum
mmgpt_status(PG_FUNCTION_ARGS)
{
	int			engines = setting_engines();
	StringInfoData list;

	if (engines == 1)
		return DirectFunctionCall2(jsonb_concat, engine_report(0, 1), supervisor_report());
	initStringInfo(&list);
	for (int i = 0; i < engines; i++)
		appendStringInfo(&list, "%s%s", i == 0 ? "{\"engines\": [" : ", ",
						 DatumGetCString(DirectFunctionCall1(jsonb_out,
															 engine_report(i, engines))));
	appendStringInfoString(&list, "]}");
	return DirectFunctionCall2(jsonb_concat,
							   DirectFunctionCall1(jsonb_in, CStringGetDatum(list.data)),
							   supervisor_report());
}

/* mmgpt_version() -> text */
Datum
mmgpt_version(PG_FUNCTION_ARGS)
{
	EngineRequest request;
	EngineAnswer answer;

	request_begin(&request, WIRE_KIND_VERSION);
	engine_ask(&request, &answer);
	return result_text(&answer);
}

/*
 * mmgpt_restart() -> boolean: true when all new engines have loaded their model. Where
 * one cannot load it, the error says why; the new engines run all the same.
 */
Datum
mmgpt_restart(PG_FUNCTION_ARGS)
{
	int			engines = setting_engines();

	engine_disconnect();
	supervisor_restart_engine();
	for (int i = 0; i < engines; i++)
	{
		EngineRequest request;
		EngineAnswer answer;
		Status		status;

		if (!engine_is_there(i))
			continue;
		/* counting the tokens of nothing waits until the model is loaded */
		request_begin(&request, WIRE_KIND_TOKEN_COUNT);
		request_add_text(&request, WIRE_FIELD_PROMPT, cstring_to_text(""));
		if (!engine_ask_one(&request, &answer, i, &status))
			status_raise(&status);
	}
	PG_RETURN_BOOL(true);
}
