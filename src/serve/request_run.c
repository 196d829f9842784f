/*
 * request_run.c - the tasks: what the scheduler is asked to do for each kind of request, and
 * what its results mean. Runs on the scheduler's thread.
 *
 *	chat, caption	one generation, its text
 *	count			a greedy generation up to its first number; if there is none, a second one in
 *					which only digits may be chosen
 *	the others		request_scores.c: log-probabilities of given answers
 */
#include <string.h>

#include "logprobs.h"
#include "request_internal.h"

/* Digits that an integer can have. */
#define COUNT_MAX_DIGITS 9

void
request_complete(Request *request)
{
	scheduler_release_pictures(request->scheduler, &request->pictures);
	request->done(request, request->argument);
}

static void
fail(Request *request, const Status *status)
{
	request->status = *status;
	request->answered = false;
	request_complete(request);
}

/* ---- answers of one generation ---- */

/* The history with the new turn, as JSON text. */
static char *
write_turn(Request *request, const Generation *generation, TextPart answer, size_t *length)
{
	json_t	   *logprobs = NULL;
	char	   *text;

	if (request->options.logprobs)
	{
		logprobs = logprobs_json(generation, request->context->tokenizer);
		if (logprobs == NULL)
		{
			status_out_of_memory(&request->status, (size_t) generation->count);
			return NULL;
		}
	}
	text = dialogue_write(&request->dialogue, answer, logprobs, request->arena, length,
						  &request->status);
	json_decref(logprobs);
	return text;
}

static bool
write_text_answer(Request *request, const Generation *generation)
{
	const char *finish = finish_name(generation->finish);
	WireField	field = WIRE_FIELD_TEXT;
	size_t		length;
	char	   *text = generation_text(generation, request->context->tokenizer, &length,
									   &request->status);

	if (text == NULL)
		return false;
	if (request->kind == WIRE_KIND_CHAT_TURN)
	{
		field = WIRE_FIELD_JSON;
		text = write_turn(request, generation, (TextPart) {text, length}, &length);
	}
	if (text == NULL || !request_begin_answer(request, length + WIRE_REQUEST_OVERHEAD))
		return false;
	wire_write_bytes(&request->answer, field, text, length);
	wire_write_bytes(&request->answer, WIRE_FIELD_FINISH, finish, strlen(finish));
	wire_write_u32(&request->answer, WIRE_FIELD_PROMPT_TOKENS, (uint32_t) generation->prompt_count);
	wire_write_u32(&request->answer, WIRE_FIELD_NEW_TOKENS, (uint32_t) generation->count);
	return true;
}

static void submit_generation(Request *request);

/* The number in an answer, or another try with digits only. */
static bool
write_count_answer(Request *request, const Generation *generation, bool *again)
{
	size_t		length;
	int			number;
	char	   *text = generation_text(generation, request->context->tokenizer, &length,
									   &request->status);

	*again = false;
	if (text == NULL)
		return false;
	if (!answer_find_number(text, length, &number))
	{
		*again = !request->counting_digits;
		if (*again)
			return true;
		return status_set(&request->status, STATUS_INTERNAL,
						  "the model gave no number that fits an integer");
	}
	if (!request_begin_answer(request, WIRE_REQUEST_OVERHEAD))
		return false;
	wire_write_i64(&request->answer, WIRE_FIELD_INTEGER, number);
	return true;
}

static void
generation_finished(Generation *generation, void *argument)
{
	Request    *request = argument;
	bool		again = false;
	bool		good;

	request->new_tokens += generation->count;
	if (generation->finish == FINISH_FAILED)
	{
		fail(request, &generation->status);
		return;
	}
	if (generation->finish == FINISH_CANCELLED)
	{
		request_complete(request);
		return;
	}
	if (request->kind == WIRE_KIND_COUNT)
		good = write_count_answer(request, generation, &again);
	else
		good = write_text_answer(request, generation);
	if (again)
	{
		request->counting_digits = true;
		submit_generation(request);
		return;
	}
	request->answered = good;
	request_complete(request);
}

/* Hand a generation of the request's prompt to the scheduler. */
static void
submit_generation(Request *request)
{
	Generation *generation = arena_take(request->arena, sizeof(Generation));
	RequestOptions *options = &request->options;

	if (request->counting_digits)
		options->max_tokens = COUNT_MAX_DIGITS;
	if (generation == NULL)
	{
		status_out_of_memory(&request->status, sizeof(Generation));
		request_complete(request);
		return;
	}
	if (!generation_begin(generation, request->arena, request->context->config, request->ids.ids,
						  request->ids.count,
						  request->pictures.count > 0 ? &request->pictures : NULL, options,
						  &request->status))
	{
		request_complete(request);
		return;
	}
	if (request->kind == WIRE_KIND_COUNT)
		generation->enough = answer_settles_number;
	if (request->counting_digits)
	{
		generation->allowed_first = request->context->digits_first;
		generation->allowed_rest = request->context->digits_rest;
	}
	generation->session = request->session;
	generation->owner = request->owner;
	generation->cancelled = &request->cancelled;
	generation->finished = generation_finished;
	generation->argument = request;
	scheduler_submit(request->scheduler, generation);
}

void
request_run(Request *request, Scheduler *scheduler, void (*done)(Request *request, void *argument),
			void *argument)
{
	request->scheduler = scheduler;
	request->done = done;
	request->argument = argument;
	request->prompt_tokens = request->ids.count;
	if (request->scores != NULL)
		scores_submit(request);
	else if (request->evaluation != NULL)
		evaluate_submit(request);
	else
		submit_generation(request);
}
