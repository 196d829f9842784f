/*
 * request_evaluate.c - how well the model knows the responses of a row that it might be trained
 * on: EVALUATE.
 *
 * The tokens in front of the first response are the prompt, all others one continuation whose
 * targets are scored (scoring.h), so the row is computed once, in the batches of all others.
 * Each target is also compared with the token that greedy decoding would choose there.
 */
#include "request_internal.h"

#include <string.h>

#include "request_training.h"
#include "scoring.h"

typedef struct Evaluation
{
	Continuation continuation;
	int			targets;		/* that are trained */
	Scoring		scoring;
	Generation	generation;
} Evaluation;

/* The places of the first and last trained target; false where there is none. */
static bool
find_targets(Request *request, const TrainingRow *row, const int32_t *targets, int *first,
			 int *last)
{
	*first = *last = 0;
	for (int i = row->count - 1; i > 0; i--)
		if (targets[i] >= 0)
		{
			*first = i;
			*last = *last == 0 ? i : *last;
		}
	return *first > 0 || status_set(&request->status, STATUS_INVALID_ARGUMENT,
									"no token of a response is left within %d tokens", row->count);
}

/* The targets that count: no <image> mark of a row with a picture is trained. */
static int32_t *
copy_targets(Request *request, const TrainingRow *row)
{
	int32_t    *targets = arena_take_array(request->arena, (size_t) row->count, sizeof(int32_t));

	if (targets == NULL)
	{
		status_out_of_memory(&request->status, (size_t) row->count * sizeof(int32_t));
		return NULL;
	}
	for (int i = 0; i < row->count; i++)
		targets[i] = row->picture_count > 0 && row->labels[i] == request->context->config->image
			? LABEL_NONE
			: row->labels[i];
	return targets;
}

/* What a picture is must be known before the first response, and all has to fit the context. */
static bool
check_tokens(Request *request, const TrainingRow *row, int first, int last)
{
	const ModelConfig *config = request->context->config;

	for (int i = first; i < last; i++)
		if (row->ids[i] == config->image)
			return status_set(&request->status, STATUS_INVALID_ARGUMENT,
							  "token %d of the row is an <image> mark behind its first response",
							  i + 1);
	return last <= config->decoder.context ||
		status_set(&request->status, STATUS_PROMPT_TOO_LONG,
				   "row of %d tokens does not fit the model's context of %d tokens", last,
				   config->decoder.context);
}

/* Split the row into the prompt and what is scored. */
static bool
plan(Request *request, const TrainingRow *row)
{
	Evaluation *evaluation = arena_take(request->arena, sizeof(Evaluation));
	int32_t    *targets = copy_targets(request, row);
	int			first;
	int			last;

	if (evaluation == NULL || targets == NULL)
		return status_out_of_memory(&request->status, sizeof(Evaluation));
	if (!find_targets(request, row, targets, &first, &last) ||
		!check_tokens(request, row, first, last))
		return false;
	token_list_begin(&request->ids, request->arena);
	for (int i = 0; i < first; i++)
		if (!token_list_add(&request->ids, row->ids[i], &request->status))
			return false;
	evaluation->continuation = (Continuation) {
		.ids = row->ids + first, .count = last + 1 - first, .scored = last + 1 - first,
		.targets = targets + first, .best = true
	};
	evaluation->targets = training_row_labels(targets, row->count);
	request->evaluation = evaluation;
	if (!scoring_begin(&evaluation->scoring, &evaluation->continuation, 1, request->arena,
					   &request->status))
		return false;
	evaluation->scoring.compared = true;
	return true;
}

bool
evaluate_prepare(Request *request)
{
	const ModelConfig *config = request->context->config;
	TrainingRow row = {0};

	if (!request_read_row(request, config, &row, &request->picture) ||
		!training_row_check(config, &row, &request->status) || !plan(request, &row))
		return false;
	request->options.max_tokens = 1;
	request->options.temperature = 0;
	request->options.num_beams = 1;
	request->options.no_repeat_ngram_size = 0;
	if (row.picture_count > 0)
		request_set_picture(request, config, request->picture.pixels);
	return true;
}

static void
evaluation_finished(Generation *generation, void *argument)
{
	Request    *request = argument;
	const Evaluation *evaluation = request->evaluation;

	if (generation->finish == FINISH_FAILED)
		request->status = generation->status;
	else if (generation->finish != FINISH_CANCELLED &&
			 request_begin_answer(request, WIRE_REQUEST_OVERHEAD))
	{
		wire_write_f64(&request->answer, WIRE_FIELD_REAL, -evaluation->continuation.sum);
		wire_write_i64(&request->answer, WIRE_FIELD_INTEGER, evaluation->targets);
		wire_write_u32(&request->answer, WIRE_FIELD_BOOLEAN, evaluation->continuation.best);
	}
	request_complete(request);
}

void
evaluate_submit(Request *request)
{
	Evaluation *evaluation = request->evaluation;

	request_submit_scoring(request, &evaluation->scoring, &evaluation->generation,
						   evaluation_finished);
}
