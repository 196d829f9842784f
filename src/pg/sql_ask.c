/*
 * sql_ask.c - the functions that answer with text: chat, chat_turn, generate,
 * caption, ask.
 *
 * None is STRICT: an absent image means a language-only question for chat,
 * chat_turn and generate and NULL for the others; options may always be absent.
 */
#include "postgres.h"

#include "arguments.h"
#include "pg_compat.h"
#include "results.h"

SQL_FUNCTION(mmgpt_chat);
SQL_FUNCTION(mmgpt_chat_turn);
SQL_FUNCTION(mmgpt_generate);
SQL_FUNCTION(mmgpt_caption);
SQL_FUNCTION(mmgpt_ask);

/* The JSON argument at a position, or NULL. */
static Jsonb *
json_argument(FunctionCallInfo fcinfo, int position)
{
	return PG_ARGISNULL(position) ? NULL : PG_GETARG_JSONB_P(position);
}

/*
 * Ask with the arguments at the given positions (history: -1 for none); image,
 * history and options may be NULL.
 */
static void
ask(FunctionCallInfo fcinfo, WireKind kind, int image, int history, int prompt, int options,
	EngineAnswer *answer)
{
	EngineRequest request;

	request_begin(&request, kind);
	request_add_text(&request, WIRE_FIELD_PROMPT, PG_GETARG_TEXT_PP(prompt));
	if (history >= 0 && !PG_ARGISNULL(history))
		request_add_json(&request, WIRE_FIELD_HISTORY, PG_GETARG_JSONB_P(history));
	request_add_options(&request, json_argument(fcinfo, options));
	if (!PG_ARGISNULL(image))
		request_set_image(&request, PG_GETARG_DATUM(image));
	engine_ask(&request, answer);
}

/* mmgpt_chat(image, history, prompt, options) -> text */
Datum
mmgpt_chat(PG_FUNCTION_ARGS)
{
	EngineAnswer answer;

	if (PG_ARGISNULL(2))
		PG_RETURN_NULL();
	ask(fcinfo, WIRE_KIND_CHAT, 0, 1, 2, 3, &answer);
	return result_text(&answer);
}

/* mmgpt_chat_turn(image, history, prompt, options) -> jsonb */
Datum
mmgpt_chat_turn(PG_FUNCTION_ARGS)
{
	EngineAnswer answer;

	if (PG_ARGISNULL(2))
		PG_RETURN_NULL();
	ask(fcinfo, WIRE_KIND_CHAT_TURN, 0, 1, 2, 3, &answer);
	return result_jsonb(&answer);
}

/* mmgpt_generate(prompt, image, options) -> text */
Datum
mmgpt_generate(PG_FUNCTION_ARGS)
{
	EngineAnswer answer;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	ask(fcinfo, WIRE_KIND_CHAT, 1, -1, 0, 2, &answer);
	return result_text(&answer);
}

/* mmgpt_caption(image, detail, options) -> text */
Datum
mmgpt_caption(PG_FUNCTION_ARGS)
{
	EngineAnswer answer;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	ask(fcinfo, WIRE_KIND_CAPTION, 0, -1, 1, 2, &answer);
	return result_text(&answer);
}

/* mmgpt_ask(image, question, options) -> text */
Datum
mmgpt_ask(PG_FUNCTION_ARGS)
{
	EngineAnswer answer;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	ask(fcinfo, WIRE_KIND_CHAT, 0, -1, 1, 2, &answer);
	return result_text(&answer);
}
