/*
 * request_training.c - see request_training.h.
 */
#include "request_training.h"

#include <stdlib.h>
#include <string.h>

#include "request_internal.h"
#include "trainer.h"

bool
request_is_training(const Request *request)
{
	return request->kind >= WIRE_KIND_TRAIN_OPEN && request->kind <= WIRE_KIND_TRAIN_CLOSE;
}

/* ---- TRAIN_ENCODE ---- */

/* The options of the training that the request belongs to. */
static bool
read_options(Request *request, const ModelConfig *config, TrainOptions *options)
{
	TextPart	json = request_text_field(request, WIRE_FIELD_OPTIONS);

	train_options_defaults(options);
	if (!train_options_read(json.text, json.length, options, &request->status))
		return false;
	if (options->max_length > config->decoder.context)
		options->max_length = config->decoder.context;
	return true;
}

static bool
read_rules(Request *request, ImageRules *rules)
{
	TextPart	name = request_text_field(request, WIRE_FIELD_IMAGE_RULES);

	*rules = IMAGE_RULES_DISPLAY;
	if (name.text == NULL || (name.length == 7 && memcmp(name.text, "display", 7) == 0))
		return true;
	*rules = IMAGE_RULES_ORIGINAL;
	if (name.length == 8 && memcmp(name.text, "original", 8) == 0)
		return true;
	return status_set(&request->status, STATUS_INVALID_ARGUMENT,
					  "image rules must be \"display\" or \"original\", not \"%.*s\"",
					  (int) (name.length < 40 ? name.length : 40), name.text);
}

static void
write_row(Request *request, const TrainingRow *row, const uint8_t *pixels, size_t pixels_size)
{
	size_t		size = (size_t) row->count * sizeof(int32_t);

	if (!request_begin_answer(request, 2 * size + pixels_size + WIRE_REQUEST_OVERHEAD))
		return;
	wire_write_bytes(&request->answer, WIRE_FIELD_TOKENS, row->ids, size);
	wire_write_bytes(&request->answer, WIRE_FIELD_TARGETS, row->labels, size);
	if (pixels != NULL)
		wire_write_bytes(&request->answer, WIRE_FIELD_PIXELS, pixels, pixels_size);
}

void
request_encode_row(Request *request, const ModelContext *context)
{
	size_t		side = (size_t) context->config->vision.image_size;
	RowText		text = {
		.instruction = request_text_field(request, WIRE_FIELD_PROMPT),
		.input = request_text_field(request, WIRE_FIELD_INPUT),
		.response = request_text_field(request, WIRE_FIELD_RESPONSE),
		.conversation = request_text_field(request, WIRE_FIELD_CONVERSATION),
		.has_image = wire_has(&request->fields, WIRE_FIELD_IMAGE),
	};
	uint8_t    *pixels = NULL;
	TrainOptions options;
	TrainingRow row;
	ImageRules	rules;

	if (read_options(request, context->config, &options) && read_rules(request, &rules) &&
		training_row_encode(context->tokenizer, &context->prompt_template, &text,
							options.max_length, request->arena, &row, &request->status) &&
		(!text.has_image || request_read_pixels(request, context->config, rules, &pixels)))
		write_row(request, &row, pixels, side * side * 3);
}

/* ---- TRAIN_OPEN, TRAIN_START ---- */

static bool
prepare_open(Request *request, const ModelContext *context, TrainPlan *plan)
{
	AdapterContent *content = &plan->initial.content;
	AdapterDescription description;

	if (!read_options(request, context->config, &plan->options))
		return false;
	if (!wire_has(&request->fields, WIRE_FIELD_ADAPTER_CONFIG) &&
		!wire_has(&request->fields, WIRE_FIELD_ADAPTER_TENSORS))
		return true;
	plan->has_initial = true;
	if (!request_read_content(&request->fields, content, &request->status))
		return false;
	if (adapter_check_content(context->model, content, &description, &request->status))
		return true;
	if (request->status.code == STATUS_INVALID_MODEL)
		request->status.code = STATUS_INVALID_ADAPTER;
	return false;
}

static bool
prepare_start(Request *request, TrainPlan *plan)
{
	if (!wire_has(&request->fields, WIRE_FIELD_CHECKPOINT))
		return true;
	plan->checkpoint = (uint8_t *) request->fields.bytes[WIRE_FIELD_CHECKPOINT];
	plan->checkpoint_size = request->fields.length[WIRE_FIELD_CHECKPOINT];
	return checkpoint_verify(plan->checkpoint, plan->checkpoint_size, &request->status);
}

bool
request_prepare_training(Request *request, const ModelContext *context)
{
	TrainPlan  *plan = arena_take(request->arena, sizeof(TrainPlan));

	if (plan == NULL)
		return status_out_of_memory(&request->status, sizeof(TrainPlan));
	request->train = plan;
	return request->kind == WIRE_KIND_TRAIN_OPEN ? prepare_open(request, context, plan)
												 : prepare_start(request, plan);
}

/* ---- TRAIN_SAVE, TRAIN_ADAPTER ---- */

static void
seal_checkpoint(Request *request, const TrainPlan *plan)
{
	checkpoint_seal(plan->checkpoint, plan->checkpoint_size);
	if (request_begin_answer(request, plan->checkpoint_size + WIRE_REQUEST_OVERHEAD))
		wire_write_bytes(&request->answer, WIRE_FIELD_CHECKPOINT, plan->checkpoint,
						 plan->checkpoint_size);
}

static void
seal_adapter(Request *request, const ModelContext *context, const TrainPlan *plan)
{
	const AdapterFiles *files = &plan->files;
	AdapterContent content = {files->config, files->config_size, files->tensors,
							  files->tensors_size};
	char	   *text = request_describe_adapter(request, context, &content);

	if (text != NULL &&
		request_begin_answer(request, strlen(text) + files->config_size + files->tensors_size +
							 WIRE_REQUEST_OVERHEAD))
	{
		wire_write_bytes(&request->answer, WIRE_FIELD_JSON, text, strlen(text));
		wire_write_bytes(&request->answer, WIRE_FIELD_ADAPTER_CONFIG, files->config,
						 files->config_size);
		wire_write_bytes(&request->answer, WIRE_FIELD_ADAPTER_TENSORS, files->tensors,
						 files->tensors_size);
	}
	free(text);
}

void
request_seal_training(Request *request, const ModelContext *context)
{
	TrainPlan  *plan = request->train;

	plan->unsealed = false;
	if (request->kind == WIRE_KIND_TRAIN_SAVE)
		seal_checkpoint(request, plan);
	else
		seal_adapter(request, context, plan);
}

/* ---- rows ---- */

/* A field of 32-bit integers, copied to where it is aligned. */
static bool
read_integers(Request *request, WireField field, const char *name, const int32_t **values,
			  int *count)
{
	size_t		length = request->fields.length[field];
	int32_t    *copy;

	if (!wire_has(&request->fields, field) || length % sizeof(int32_t) != 0)
		return status_set(&request->status, STATUS_PROTOCOL,
						  "%s of a row are missing or no integers: %zu bytes", name, length);
	copy = arena_take(request->arena, length);
	if (copy == NULL)
		return status_out_of_memory(&request->status, length);
	memcpy(copy, request->fields.bytes[field], length);
	*values = copy;
	*count = (int) (length / sizeof(int32_t));
	return true;
}

bool
request_read_row(Request *request, const ModelConfig *config, TrainingRow *row, Picture *picture)
{
	size_t		side = (size_t) config->vision.image_size;
	size_t		pixels = request->fields.length[WIRE_FIELD_PIXELS];
	int			targets;

	if (!read_integers(request, WIRE_FIELD_TOKENS, "tokens", &row->ids, &row->count) ||
		!read_integers(request, WIRE_FIELD_TARGETS, "targets", &row->labels, &targets))
		return false;
	if (targets != row->count)
		return status_set(&request->status, STATUS_PROTOCOL, "a row of %d tokens has %d targets",
						  row->count, targets);
	row->pictures = picture;
	row->picture_count = wire_has(&request->fields, WIRE_FIELD_PIXELS) ? 1 : 0;
	*picture = (Picture) {request->fields.bytes[WIRE_FIELD_PIXELS], NULL};
	if (row->picture_count == 0 || pixels == side * side * 3)
		return true;
	return status_set(&request->status, STATUS_PROTOCOL,
					  "a picture has %zu bytes and not the model's %zu x %zu x 3", pixels, side,
					  side);
}
