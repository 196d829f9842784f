/*
 * sql_filter.c - the functions that answer with a number or a truth value:
 * count, score, filter.
 *
 * All take (image, text, options) and give NULL where image or text is NULL.
 */
#include "postgres.h"

#include "arguments.h"
#include "pg_compat.h"
#include "results.h"

SQL_FUNCTION(mmgpt_count);
SQL_FUNCTION(mmgpt_score);
SQL_FUNCTION(mmgpt_filter);

/* Ask about an image; false, without asking, where image or text is NULL. */
static bool
ask_about_image(FunctionCallInfo fcinfo, WireKind kind, EngineAnswer *answer)
{
	EngineRequest request;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		return false;
	request_begin(&request, kind);
	request_add_text(&request, WIRE_FIELD_PROMPT, PG_GETARG_TEXT_PP(1));
	request_add_options(&request, PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2));
	request_set_image(&request, PG_GETARG_DATUM(0));
	engine_ask(&request, answer);
	return true;
}

/* mmgpt_count(image, what, options) -> integer */
Datum
mmgpt_count(PG_FUNCTION_ARGS)
{
	EngineAnswer answer;

	if (!ask_about_image(fcinfo, WIRE_KIND_COUNT, &answer))
		PG_RETURN_NULL();
	return result_integer(&answer);
}

/* mmgpt_score(image, condition, options) -> real */
Datum
mmgpt_score(PG_FUNCTION_ARGS)
{
	EngineAnswer answer;

	if (!ask_about_image(fcinfo, WIRE_KIND_SCORE, &answer))
		PG_RETURN_NULL();
	return result_real(&answer);
}

/* mmgpt_filter(image, condition, options) -> boolean */
Datum
mmgpt_filter(PG_FUNCTION_ARGS)
{
	EngineAnswer answer;

	if (!ask_about_image(fcinfo, WIRE_KIND_FILTER, &answer))
		PG_RETURN_NULL();
	return result_boolean(&answer);
}
