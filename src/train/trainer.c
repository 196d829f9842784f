/*
 * trainer.c - the life of a training, as a machine whose every step is a slice of work.
 *
 *	ADDING -> PICTURES -> BEGIN -> PASS -> FORWARD (a layer) ... -> HEAD -> BACKWARD (a layer) ...
 *						   ^	   ^						   |			   |
 *						   |	   +---- more passes ----------+---------------+
 *						   +------------ CLIP (and optimizer) -----------------+
 *
 * A validation goes through PASS, FORWARD and HEAD with the rows held out, and then back to
 * BEGIN. Each phase has one function, which does its slice and names the next phase.
 */
#include "trainer.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer_internal.h"

/* What the released model was trained with (its configs/lora_config.py). */
#define DEFAULT_R 16
#define DEFAULT_ALPHA 16
#define DEFAULT_TARGETS \
	(1u << LORA_Q_PROJ | 1u << LORA_K_PROJ | 1u << LORA_V_PROJ | 1u << LORA_O_PROJ | \
	 1u << LORA_TO_Q | 1u << LORA_TO_KV | 1u << LORA_TO_OUT | 1u << LORA_FF_1 | 1u << LORA_FF_3)

/* Pictures that are encoded in a slice, at most. */
#define MAX_SLICE_PICTURES 16

/* ---- beginning ---- */

/* Rank, alpha and targets: as given, as the initial adapter has them, or the defaults. */
static bool
settle_shape(Trainer *trainer, const AdapterSource *initial_adapter, Status *status)
{
	AdapterShape *shape = &trainer->parameters.shape;
	const TrainOptions *options = &trainer->options;
	AdapterShape given = {options->r, options->alpha, options->targets};

	*shape = (AdapterShape) {DEFAULT_R, DEFAULT_ALPHA, DEFAULT_TARGETS};
	if (initial_adapter == NULL)
	{
		shape->r = given.r > 0 ? given.r : shape->r;
		shape->alpha = given.alpha > 0 ? given.alpha : shape->alpha;
		shape->targets = given.targets != 0 ? given.targets : shape->targets;
		return true;
	}
	if (!adapter_files_shape(trainer->model, initial_adapter, shape, status))
		return false;
	if ((given.r == 0 || given.r == shape->r) &&
		(given.alpha <= 0 || given.alpha == shape->alpha) &&
		(given.targets == 0 || given.targets == shape->targets))
		return true;
	status_set(status, STATUS_INVALID_ARGUMENT, "option \"%s\" differs from the initial adapter's",
			   given.r != 0 && given.r != shape->r ? "r"
			   : given.alpha > 0 && given.alpha != shape->alpha ? "alpha" : "target_modules");
	return status_hint(status, "Leave it out to go on with the adapter as it is.");
}

/* The stage that a target belongs to. */
static int
target_stage(LoraTarget target)
{
	if (target >= LORA_FF_1)
		return STAGE_GATED_FF;
	if (target >= LORA_TO_Q)
		return STAGE_GATED_ATTENTION;
	return target <= LORA_O_PROJ ? STAGE_ATTENTION : STAGE_MLP;
}

/* Where the ways back end. */
static void
find_first_stages(Trainer *trainer)
{
	trainer->first_stage = NO_STAGE;
	trainer->first_language_stage = NO_STAGE;
	for (int layer = 0; layer < trainer->model->config.decoder.layers; layer++)
		for (int target = 0; target < LORA_TARGETS; target++)
		{
			int			stage = layer * LAYER_STAGES + target_stage((LoraTarget) target);

			if (!lora_trains(trainer, layer, (LoraTarget) target))
				continue;
			if (stage < trainer->first_stage)
				trainer->first_stage = stage;
			if (target < LORA_TO_Q && stage < trainer->first_language_stage)
				trainer->first_language_stage = stage;
		}
}

bool
trainer_measure(Model *model, const TrainOptions *options, const AdapterSource *initial_adapter,
				size_t *bytes, Status *status)
{
	Trainer		trainer = {.model = model, .options = *options};
	bool		good = row_store_begin(&trainer.store, status) &&
		settle_shape(&trainer, initial_adapter, status) &&
		lora_parameters_lay_out(&trainer, status);

	*bytes = good ? lora_parameters_bytes(&trainer) : 0;
	row_store_free(&trainer.store);
	return good;
}

Trainer *
trainer_create(Model *model, const TrainOptions *options, const AdapterSource *initial_adapter,
			   Status *status)
{
	Trainer    *trainer = calloc(1, sizeof(Trainer));

	if (trainer == NULL)
	{
		status_out_of_memory(status, sizeof(Trainer));
		return NULL;
	}
	trainer->model = model;
	trainer->options = *options;
	trainer->slice_pictures = model->options.max_images < MAX_SLICE_PICTURES
		? model->options.max_images
		: MAX_SLICE_PICTURES;
	if (trainer->options.max_length > model->config.decoder.context)
		trainer->options.max_length = model->config.decoder.context;
	if (row_store_begin(&trainer->store, status) &&
		settle_shape(trainer, initial_adapter, status) &&
		lora_parameters_lay_out(trainer, status) &&
		lora_parameters_begin(trainer, initial_adapter, status))
	{
		find_first_stages(trainer);
		return trainer;
	}
	trainer_free(trainer);
	return NULL;
}

void
trainer_free(Trainer *trainer)
{
	if (trainer == NULL)
		return;
	lora_parameters_free(trainer);
	train_memory_free(trainer);
	row_store_free(&trainer->store);
	free(trainer);
}

bool
trainer_add_row(Trainer *trainer, const TrainingRow *row, Status *status)
{
	if (trainer->phase != PHASE_ADDING)
		return status_set(status, STATUS_INTERNAL, "a row for a training that has begun");
	return row_store_add(&trainer->store, &trainer->model->config, row,
						 trainer->options.max_length, status);
}

size_t
trainer_rows_bytes(const Trainer *trainer)
{
	return trainer->store.bytes;
}

/* Rows of the encoder that keep all cores busy; more of them in a slice hardly make it faster. */
#define SHORT_SLICE_ROWS 256

void
trainer_shorten_slices(Trainer *trainer)
{
	int			rows = 1 + vision_patches(&trainer->model->config.vision);
	int			most = rows < SHORT_SLICE_ROWS ? SHORT_SLICE_ROWS / rows : 1;

	if (most < trainer->slice_pictures)
		trainer->slice_pictures = most;
}

/* How many micro steps an epoch and the whole training have. */
static void
count_steps(Trainer *trainer)
{
	const TrainOptions *options = &trainer->options;
	int64_t		steps = 0;

	for (int kind = 0; kind < ROW_KINDS; kind++)
	{
		const RowStream *stream = &trainer->store.streams[kind];
		int			batch = row_stream_batch(stream, options);
		int64_t		here = batch > 0 ? (stream->trained_count + batch - 1) / batch : 0;

		steps = here > steps ? here : steps;
	}
	trainer->epoch_steps = (int) steps;
	steps *= options->epochs;
	trainer->micro_steps = options->micro_steps > 0 ? options->micro_steps
		: steps < INT_MAX ? (int) steps : INT_MAX;
	trainer->optimizer_total = trainer->micro_steps / options->accumulation;
}

/* Early stopping has nothing to go by where too few rows round to none. */
static bool
check_validation(const Trainer *trainer, Status *status)
{
	const RowStore *store = &trainer->store;

	if (trainer->options.early_stopping == 0 || store->streams[ROWS_IMAGE].held_out_count > 0 ||
		store->streams[ROWS_LANGUAGE].held_out_count > 0)
		return true;
	status_set(status, STATUS_INVALID_ARGUMENT,
			   "early stopping needs rows that are held out, and %g of %d row%s is none",
			   trainer->options.validation, store->count, store->count == 1 ? "" : "s");
	return status_hint(status, "Raise \"validation\", or leave \"early_stopping\" out.");
}

bool
trainer_start(Trainer *trainer, size_t limit, Status *status)
{
	TrainerReport *report = &trainer->report;

	if (trainer->phase != PHASE_ADDING)
		return status_set(status, STATUS_INTERNAL, "a training was started twice");
	if (!row_store_finish(&trainer->store, &trainer->options, status) ||
		!check_validation(trainer, status))
		return false;
	count_steps(trainer);
	if (!train_memory_take(trainer, limit, status))
		return false;
	report->pictures = trainer->store.picture_count;
	report->rows_image = trainer->store.streams[ROWS_IMAGE].trained_count;
	report->rows_language = trainer->store.streams[ROWS_LANGUAGE].trained_count;
	report->rows_validation = trainer->store.streams[ROWS_IMAGE].held_out_count +
		trainer->store.streams[ROWS_LANGUAGE].held_out_count;
	report->micro_steps = trainer->micro_steps;
	trainer->phase = PHASE_PICTURES;
	return true;
}

void
trainer_memory(const Trainer *trainer, TrainerMemory *memory)
{
	*memory = trainer->memory;
}

/* ---- batches ---- */

/* Put rows of one kind into the batch, and count their labels. */
static void
add_to_batch(Trainer *trainer, RowKind kind, int row)
{
	trainer->batch[trainer->batch_count++] = (BatchRow) {row, kind};
	trainer->label_counts[kind] += trainer->store.rows[row].trained;
}

static void
clear_batch(Trainer *trainer)
{
	trainer->batch_count = 0;
	trainer->next_sequence = 0;
	for (int kind = 0; kind < ROW_KINDS; kind++)
	{
		trainer->label_counts[kind] = 0;
		trainer->loss_sums[kind] = 0;
	}
}

/* The rows of the next micro step. */
static void
form_batch(Trainer *trainer)
{
	clear_batch(trainer);
	for (int kind = 0; kind < ROW_KINDS; kind++)
	{
		RowStream  *stream = &trainer->store.streams[kind];
		int			batch = row_stream_batch(stream, &trainer->options);
		int64_t		first = (int64_t) trainer->micro_step * batch;

		for (int i = 0; i < batch; i++)
			add_to_batch(trainer, (RowKind) kind,
						 row_stream_at(stream, &trainer->options, (RowKind) kind, first + i));
	}
}

/* The rows that were held out. */
static void
form_validation(Trainer *trainer)
{
	clear_batch(trainer);
	for (int kind = 0; kind < ROW_KINDS; kind++)
		for (int i = 0; i < trainer->store.streams[kind].held_out_count; i++)
			add_to_batch(trainer, (RowKind) kind, trainer->store.streams[kind].held_out[i]);
}

/* Mean loss over the labels of a kind. */
static double
mean_loss(const Trainer *trainer, RowKind kind)
{
	return trainer->label_counts[kind] > 0
		? trainer->loss_sums[kind] / trainer->label_counts[kind]
		: NAN;
}

/* ---- slices ---- */

/* Nothing is left to train. */
static bool
is_finished(const Trainer *trainer)
{
	return trainer->micro_step == trainer->micro_steps || trainer->early.stopped;
}

/* Encode the next pictures; each is encoded once in a training. */
static bool
slice_pictures(Trainer *trainer, TrainerEvent *event, Status *status)
{
	int			most = trainer->slice_pictures;
	int			latents = trainer->model->config.resampler.latents;
	int			first = trainer->next_picture;
	int			count = trainer->store.picture_count - first;
	Picture		pictures[MAX_SLICE_PICTURES];

	count = is_finished(trainer) ? 0 : count < most ? count : most;
	for (int i = 0; i < count; i++)
		pictures[i] = trainer->store.pictures[first + i].picture;
	if (count > 0 &&
		!model_encode_latents(trainer->model, pictures, count,
							  tensor_row_range(trainer->latents, first * latents, count * latents),
							  status))
		return false;
	for (int i = 0; i < count; i++)
		stored_picture_forget(&trainer->store.pictures[first + i]);
	trainer->next_picture += count;
	trainer->report.pictures_encoded = trainer->next_picture;
	if (trainer->next_picture == trainer->store.picture_count || is_finished(trainer))
		trainer->phase = PHASE_BEGIN;
	return true;
}

static bool
slice_begin(Trainer *trainer, TrainerEvent *event, Status *status)
{
	if (is_finished(trainer))
	{
		early_stopping_finish(trainer);
		trainer->phase = PHASE_DONE;
		*event = TRAINER_DONE;
		return true;
	}
	trainer->report.validated = false;
	form_batch(trainer);
	trainer->phase = PHASE_PASS;
	return true;
}

static bool
slice_pass(Trainer *trainer, TrainerEvent *event, Status *status)
{
	const BatchRow *next = trainer->batch + trainer->next_sequence;
	int			count = pass_count_sequences(trainer, next,
											 trainer->batch_count - trainer->next_sequence);

	pass_begin(trainer, next, count);
	trainer->next_sequence += count;
	trainer->layer = 0;
	trainer->layer_in_shared = -1;
	trainer->phase = PHASE_FORWARD;
	return true;
}

/* The place where the input of a layer that is computed anew is kept. */
static Tensor *
layer_start(Trainer *trainer, int layer)
{
	int			index = layer - trainer->first_stage / LAYER_STAGES;

	return index >= 0 && !layer_is_kept(trainer, layer) ? &trainer->tensors.starts[index] : NULL;
}

static bool
slice_forward(Trainer *trainer, TrainerEvent *event, Status *status)
{
	Tensor	   *start = layer_start(trainer, trainer->layer);

	if (start != NULL)
		trainer->model->backend->ops->copy(trainer->model->backend, *start, trainer->tensors.t.x);
	layer_forward(trainer, trainer->layer);
	if (++trainer->layer == trainer->model->config.decoder.layers)
		trainer->phase = PHASE_HEAD;
	return true;
}

/* Losses of a validation, and back to training. */
static void
finish_validation(Trainer *trainer, TrainerEvent *event)
{
	trainer->report.validated = true;
	trainer->report.validation_image = mean_loss(trainer, ROWS_IMAGE);
	trainer->report.validation_language = mean_loss(trainer, ROWS_LANGUAGE);
	early_stopping_judge(trainer);
	trainer->validating = false;
	trainer->phase = PHASE_BEGIN;
	*event = TRAINER_STEPPED;
}

/* A pass is through; on to the next, or to the end of the batch. */
static void
finish_pass(Trainer *trainer, TrainerEvent *event)
{
	if (!trainer->validating)
		trainer->tokens += (uint64_t) trainer->pass.rows;
	if (trainer->next_sequence < trainer->batch_count)
		trainer->phase = PHASE_PASS;
	else if (trainer->validating)
		finish_validation(trainer, event);
	else
	{
		trainer->report.loss_image = mean_loss(trainer, ROWS_IMAGE);
		trainer->report.loss_language = mean_loss(trainer, ROWS_LANGUAGE);
		trainer->phase = PHASE_CLIP;
		*event = TRAINER_GRADIENTS;
	}
}

static bool
slice_head(Trainer *trainer, TrainerEvent *event, Status *status)
{
	bool		backward = !trainer->validating && trainer->pass.first_stage != NO_STAGE;

	if (!head_forward(trainer, backward, status))
		return false;
	trainer->layer = trainer->model->config.decoder.layers - 1;
	trainer->phase = PHASE_BACKWARD;
	if (!backward)
		finish_pass(trainer, event);
	return true;
}

/*
 * A layer back; one whose activations are gone is computed anew in a slice of its own before it.
 */
static bool
slice_backward(Trainer *trainer, TrainerEvent *event, Status *status)
{
	Tensor	   *start = layer_start(trainer, trainer->layer);

	if (start != NULL && trainer->layer_in_shared != trainer->layer)
	{
		trainer->model->backend->ops->copy(trainer->model->backend, trainer->tensors.t.x, *start);
		layer_forward(trainer, trainer->layer);
		return true;
	}
	layer_backward(trainer, trainer->layer);
	if (trainer->layer-- == trainer->pass.first_stage / LAYER_STAGES)
		finish_pass(trainer, event);
	return true;
}

/* Clip, take an optimizer step if one is due, and validate at the end of an epoch. */
static bool
slice_clip(Trainer *trainer, TrainerEvent *event, Status *status)
{
	int			accumulated;

	if (!optimizer_clip(trainer, status))
		return false;
	trainer->report.learning_rate = schedule_learning_rate(
		&trainer->options, trainer->optimizer_steps, trainer->optimizer_total);
	accumulated = ++trainer->micro_step % trainer->options.accumulation;
	if (accumulated == 0 || trainer->micro_step == trainer->micro_steps)
		optimizer_step(trainer);
	trainer->phase = PHASE_BEGIN;
	*event = TRAINER_STEPPED;
	if (trainer->report.rows_validation == 0 ||
		(trainer->micro_step % trainer->epoch_steps != 0 &&
		 trainer->micro_step != trainer->micro_steps))
		return true;
	form_validation(trainer);
	trainer->validating = true;
	trainer->phase = PHASE_PASS;
	*event = TRAINER_WORKING;
	return true;
}

static bool
slice_refused(Trainer *trainer, TrainerEvent *event, Status *status)
{
	return status_set(status, STATUS_INTERNAL, "a slice of a training that was not started");
}

static bool
slice_done(Trainer *trainer, TrainerEvent *event, Status *status)
{
	*event = TRAINER_DONE;
	return true;
}

bool
trainer_step_slice(Trainer *trainer, TrainerEvent *event, Status *status)
{
	static bool (*const slices[]) (Trainer *trainer, TrainerEvent *event, Status *status) = {
		[PHASE_ADDING] = slice_refused,
		[PHASE_PICTURES] = slice_pictures,
		[PHASE_BEGIN] = slice_begin,
		[PHASE_PASS] = slice_pass,
		[PHASE_FORWARD] = slice_forward,
		[PHASE_HEAD] = slice_head,
		[PHASE_BACKWARD] = slice_backward,
		[PHASE_CLIP] = slice_clip,
		[PHASE_DONE] = slice_done,
	};

	*event = TRAINER_WORKING;
	return slices[trainer->phase](trainer, event, status);
}

/* ---- looking ---- */

void
trainer_report(const Trainer *trainer, TrainerReport *report)
{
	*report = trainer->report;
	report->micro_step = trainer->micro_step;
	report->optimizer_steps = trainer->optimizer_steps;
	report->tokens = trainer->tokens;
	report->best_micro_step = trainer->early.best_micro_step;
	report->stopped = trainer->early.stopped;
}

void
trainer_adapter_shape(const Trainer *trainer, AdapterShape *shape)
{
	*shape = trainer->parameters.shape;
}

/* A matrix of a flat tensor, as files hold it: B is turned back. */
static void
read_matrix(const Trainer *trainer, Tensor flat, const AdapterMatrix *matrix, float *values)
{
	const BackendOps *ops = trainer->model->backend->ops;
	Tensor		place = lora_matrix(trainer, flat, matrix->layer, matrix->target, matrix->b);
	float		piece[PARAMETER_COLUMNS];

	for (int r = 0; r < place.rows; r++)
		for (int c = 0; c < place.columns; c += PARAMETER_COLUMNS)
		{
			int			count = place.columns - c < PARAMETER_COLUMNS ? place.columns - c
																	  : PARAMETER_COLUMNS;

			ops->download(trainer->model->backend, piece,
						  (const float *) tensor_row_range(place, r, 1).data + c,
						  (size_t) count * sizeof(float));
			for (int i = 0; i < count; i++)
			{
				size_t		row = (size_t) (matrix->b ? c + i : r);
				size_t		column = (size_t) (matrix->b ? r : c + i);

				values[row * (size_t) matrix->columns + column] = piece[i];
			}
		}
}

static void
give_values(void *argument, const AdapterMatrix *matrix, float *values)
{
	const Trainer *trainer = argument;

	read_matrix(trainer, trainer->parameters.values, matrix, values);
}

bool
trainer_make_adapter(const Trainer *trainer, Arena *arena, AdapterFiles *files, Status *status)
{
	return adapter_files_make(trainer->model, &trainer->parameters.shape, give_values,
							  (void *) trainer, arena, files, status);
}

bool
trainer_read_gradient(const Trainer *trainer, const AdapterMatrix *matrix, float *values)
{
	if (!lora_trains(trainer, matrix->layer, matrix->target))
		return false;
	read_matrix(trainer, trainer->parameters.gradient, matrix, values);
	return true;
}
