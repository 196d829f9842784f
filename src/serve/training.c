/*
 * training.c - see training.h.
 *
 * One function for each kind of request, which does a slice of its work and says whether the
 * request is complete. What only reads or writes bytes was done, or is going to be done, by a
 * preparer (request_training.h).
 */
#include "training.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "machine.h"

/* Steps that one answer tells about, at most. */
#define MAX_REPORTED_STEPS 10000

void
training_begin(Training *training, Model *model, int share, TrainingDone done, void *argument)
{
	memset(training, 0, sizeof(*training));
	training->model = model;
	training->usual_share = share;
	training->done = done;
	training->argument = argument;
	training->end = &training->first;
	status_clear(&training->failure);
}

void
training_take(Training *training, Request *request)
{
	request->next = NULL;
	*training->end = request;
	training->end = &request->next;
}

bool
training_has_work(const Training *training)
{
	return training->first != NULL;
}

/* Take the oldest request out and hand it back. */
static void
hand_back(Training *training)
{
	Request    *request = training->first;

	training->first = request->next;
	if (training->first == NULL)
		training->end = &training->first;
	json_decref(training->steps);
	training->steps = NULL;
	training->stepping = false;
	training->done(request, training->argument);
}

static void
close_trainer(Training *training)
{
	uint64_t	slices = training->counters.slices;

	trainer_free(training->trainer);
	training->trainer = NULL;
	training->started = false;
	status_clear(&training->failure);
	training->counters = (TrainingCounters) {.slices = slices};
}

void
training_abandon(Training *training)
{
	while (training->first != NULL)
		hand_back(training);
	close_trainer(training);
}

/* ---- answers ---- */

/* A number of an answer; null where there is none. */
static json_t *
number_json(double value)
{
	return isfinite(value) ? json_real(value) : json_null();
}

/* Answer with a JSON object, which is given away. */
static void
answer_json(Request *request, json_t *root)
{
	char	   *text = root == NULL ? NULL : json_dumps(root, JSON_COMPACT);

	if (text == NULL)
		status_out_of_memory(&request->status, 0);
	else if (request_begin_answer(request, strlen(text) + WIRE_REQUEST_OVERHEAD))
		wire_write_bytes(&request->answer, WIRE_FIELD_JSON, text, strlen(text));
	free(text);
	json_decref(root);
}

/* ---- TRAIN_OPEN ---- */

/* Bytes that a training may take: what was set aside, or what the machine has. */
static size_t
memory_limit(const Training *training)
{
	ModelDescription description;

	model_describe(training->model, &description);
	return description.training_bytes > 0 ? description.training_bytes : machine_spare_memory();
}

static bool
refuse_memory(const Training *training, size_t bytes, const char *what, Status *status)
{
	if (training->limit == 0 || bytes <= training->limit)
		return false;
	status_set(status, STATUS_OUT_OF_MEMORY,
			   "training needs %zu MB of memory for %s and may take %zu MB", (bytes >> 20) + 1,
			   what, training->limit >> 20);
	return !status_hint(status, "Raise mmgpt.memory_limit, or train less at once.");
}

static void
answer_open(const Training *training, Request *request)
{
	AdapterShape shape;

	trainer_adapter_shape(training->trainer, &shape);
	answer_json(request,
				json_pack("{s:s, s:i, s:f, s:o, s:i}", "model", model_digest(training->model),
						  "rank", shape.r, "alpha", shape.alpha, "targets",
						  request_target_names(shape.targets), "pixels",
						  model_config(training->model)->vision.image_size));
}

static bool
work_open(Training *training, Request *request)
{
	TrainPlan  *plan = request->train;
	const AdapterSource *initial = plan->has_initial ? &plan->initial : NULL;

	if (training->trainer != NULL)
		return !status_set(&request->status, STATUS_INTERNAL, "another training is open");
	training->limit = memory_limit(training);
	if (!trainer_measure(training->model, &plan->options, initial, &training->parameters,
						 &request->status) ||
		refuse_memory(training, training->parameters, "adapter and optimizer", &request->status))
		return true;
	training->trainer = trainer_create(training->model, &plan->options, initial,
									   &request->status);
	if (training->trainer == NULL)
		return true;
	trainer_shorten_slices(training->trainer);
	training->counters.open = true;
	training->counters.share = training->usual_share;
	answer_open(training, request);
	return true;
}

/* ---- TRAIN_ROW, TRAIN_START ---- */

static bool
work_row(Training *training, Request *request)
{
	TrainingRow row = {0};
	Picture		picture;

	if (training->started)
		status_set(&request->status, STATUS_PROTOCOL, "a row for a training that has begun");
	else if (request_read_row(request, model_config(training->model), &row, &picture) &&
			 !refuse_memory(training, training->parameters + request->payload_size +
							trainer_rows_bytes(training->trainer), "adapter and rows",
							&request->status) &&
			 trainer_add_row(training->trainer, &row, &request->status))
		request_begin_answer(request, WIRE_REQUEST_OVERHEAD);
	return true;
}

static void
answer_start(const Training *training, Request *request)
{
	TrainerMemory memory;
	TrainerReport report;

	trainer_memory(training->trainer, &memory);
	trainer_report(training->trainer, &report);
	answer_json(
		request,
		json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:{s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:i}}",
				  "rows_image", report.rows_image, "rows_language", report.rows_language,
				  "rows_validation", report.rows_validation, "pictures", report.pictures,
				  "micro_steps", report.micro_steps, "micro_step", report.micro_step, "memory",
				  "rows", (json_int_t) memory.rows, "pictures", (json_int_t) memory.pictures,
				  "parameters", (json_int_t) memory.parameters, "activations",
				  (json_int_t) memory.activations, "scratch", (json_int_t) memory.scratch, "total",
				  (json_int_t) memory.total, "pass_tokens", memory.pass_tokens, "trained_layers",
				  memory.trained_layers, "kept_layers", memory.kept_layers));
}

static bool
work_start(Training *training, Request *request)
{
	const TrainPlan *plan = request->train;

	if (training->started)
		return !status_set(&request->status, STATUS_PROTOCOL, "a training was started twice");
	training->started = true;
	if (trainer_start(training->trainer, training->limit, &request->status) &&
		(plan->checkpoint == NULL ||
		 trainer_resume(training->trainer, plan->checkpoint, plan->checkpoint_size,
						&request->status)))
		answer_start(training, request);
	else
		training->failure = request->status;
	return true;
}

/* ---- TRAIN_STEP ---- */

/* What the micro step gave that is just done. */
static json_t *
step_json(const TrainerReport *report)
{
	json_t	   *step = json_pack("{s:i, s:o, s:o, s:o, s:o}", "step", report->micro_step,
								 "loss_vision", number_json(report->loss_image), "loss_language",
								 number_json(report->loss_language), "grad_norm",
								 number_json(report->gradient_norm), "learning_rate",
								 number_json(report->learning_rate));

	if (report->validated)
	{
		json_object_set_new(step, "validation_loss_vision",
							number_json(report->validation_image));
		json_object_set_new(step, "validation_loss_language",
							number_json(report->validation_language));
	}
	return step;
}

static void
answer_step(Training *training, Request *request, const TrainerReport *report, bool done)
{
	json_t	   *steps = training->steps;

	training->steps = NULL;
	answer_json(request,
				json_pack("{s:b, s:b, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:f, s:o}", "done", done,
						  "early", report->stopped, "best_micro_step", report->best_micro_step,
						  "pictures", report->pictures, "pictures_encoded",
						  report->pictures_encoded, "micro_step", report->micro_step,
						  "micro_steps", report->micro_steps, "optimizer_steps",
						  report->optimizer_steps, "tokens", (json_int_t) report->tokens,
						  "seconds", (double) training->counters.compute_ns * 1e-9, "steps",
						  steps));
}

/* Whether the answer is due: the time is up, and the training at rest. */
static bool
step_is_over(const Training *training, const Request *request, const TrainerReport *report)
{
	uint64_t	budget = wire_get_u32(&request->fields, WIRE_FIELD_BUDGET_MS, 0);

	if (!trainer_at_rest(training->trainer))
		return false;
	if (json_array_size(training->steps) >= MAX_REPORTED_STEPS)
		return true;
	/* the next slice tells that it is done */
	return report->micro_step < report->micro_steps && !report->stopped &&
		clock_now_ns() - training->step_begin_ns >= budget * UINT64_C(1000000);
}

static bool
work_step(Training *training, Request *request)
{
	uint32_t	share = wire_get_u32(&request->fields, WIRE_FIELD_TRAINING_SHARE,
									 (uint32_t) training->counters.share);
	TrainerEvent event;
	TrainerReport report;

	if (!training->started)
		return !status_set(&request->status, STATUS_PROTOCOL,
						   "a step of a training that was not started");
	if (share < 1 || share > 99)
		return !status_set(&request->status, STATUS_PROTOCOL,
						   "a training's share of %u percent, not of 1 to 99", share);
	training->counters.share = (int) share;
	if (!training->stepping)
	{
		training->stepping = true;
		training->step_begin_ns = clock_now_ns();
		training->steps = json_array();
	}
	if (!trainer_step_slice(training->trainer, &event, &request->status))
	{
		training->failure = request->status;
		return true;
	}
	if (event == TRAINER_WORKING && !trainer_at_rest(training->trainer))
		return false;
	trainer_report(training->trainer, &report);
	if (event == TRAINER_STEPPED)
		json_array_append_new(training->steps, step_json(&report));
	training->counters.micro_step = report.micro_step;
	training->counters.micro_steps = report.micro_steps;
	training->counters.tokens = report.tokens;
	if (event != TRAINER_DONE && !step_is_over(training, request, &report))
		return false;
	answer_step(training, request, &report, event == TRAINER_DONE);
	return true;
}

/* ---- TRAIN_SAVE, TRAIN_ADAPTER, TRAIN_CLOSE ---- */

/* The plan of a request that was not prepared. */
static TrainPlan *
take_plan(Request *request)
{
	request->train = arena_take(request->arena, sizeof(TrainPlan));
	if (request->train == NULL)
		status_out_of_memory(&request->status, sizeof(TrainPlan));
	return request->train;
}

static bool
work_save(Training *training, Request *request)
{
	TrainPlan  *plan = take_plan(request);

	if (plan == NULL)
		return true;
	if (!training->started || !trainer_at_rest(training->trainer))
		return !status_set(&request->status, STATUS_PROTOCOL,
						   training->started ? "a checkpoint in the middle of a micro step"
											 : "a checkpoint of a training that was not started");
	plan->unsealed = trainer_copy(training->trainer, request->arena, &plan->checkpoint,
								  &plan->checkpoint_size, &request->status);
	return true;
}

static bool
work_adapter(Training *training, Request *request)
{
	TrainPlan  *plan = take_plan(request);

	if (plan != NULL)
		plan->unsealed = trainer_make_adapter(training->trainer, request->arena, &plan->files,
											  &request->status);
	return true;
}

static bool
work_close(Training *training, Request *request)
{
	close_trainer(training);
	request_begin_answer(request, WIRE_REQUEST_OVERHEAD);
	return true;
}

/* ---- slices ---- */

/* Work on the oldest request; true when it is complete. */
static bool
work(Training *training, Request *request)
{
	static bool (*const functions[]) (Training *training, Request *request) = {
		[WIRE_KIND_TRAIN_OPEN] = work_open,
		[WIRE_KIND_TRAIN_ROW] = work_row,
		[WIRE_KIND_TRAIN_START] = work_start,
		[WIRE_KIND_TRAIN_STEP] = work_step,
		[WIRE_KIND_TRAIN_SAVE] = work_save,
		[WIRE_KIND_TRAIN_ADAPTER] = work_adapter,
		[WIRE_KIND_TRAIN_CLOSE] = work_close,
	};

	if (atomic_load(&request->cancelled))
		return true;
	if (training->trainer == NULL && request->kind != WIRE_KIND_TRAIN_OPEN)
		return !status_set(&request->status, STATUS_PROTOCOL,
						   "a request of a training on a connection that has none open");
	if (!status_good(&training->failure) && request->kind != WIRE_KIND_TRAIN_CLOSE)
	{
		request->status = training->failure;
		return true;
	}
	return functions[request->kind](training, request);
}

uint64_t
training_slice(Training *training)
{
	uint64_t	begin = clock_now_ns();
	bool		complete = work(training, training->first);
	uint64_t	took = clock_now_ns() - begin;

	training->counters.slices++;
	if (training->trainer != NULL)
		training->counters.compute_ns += took;
	if (complete)
		hand_back(training);
	return took;
}
