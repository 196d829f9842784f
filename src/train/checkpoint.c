/*
 * checkpoint.c - the state of a training between two micro steps, as bytes.
 *
 * A header with what the bytes belong to, then the values, gradients and means of all
 * parameters. Everything else follows from options, rows and the number of the micro step. A
 * digest over all of it is checked before anything is taken over.
 */
#include <string.h>

#include "trainer_internal.h"

#define CHECKPOINT_MAGIC "mmgpt-training-2"

typedef struct CheckpointHeader
{
	char		magic[16];
	uint8_t		origin[DIGEST_SIZE];	/* of model, options and rows */
	int32_t		rows;			/* of each flat tensor */
	int32_t		micro_step;
	int32_t		optimizer_steps;
	uint64_t	tokens;
	double		loss_image;		/* of the last micro step */
	double		loss_language;
	double		gradient_norm;
	double		learning_rate;
	double		best_loss;		/* of early stopping */
	int32_t		best_micro_step;
	int32_t		without;
	int32_t		stopped;
} CheckpointHeader;

/* Flat tensors, at most. */
#define FLATS 5

/* The tensors that are saved; returns how many. */
static int
flat_tensors(const LoraParameters *p, Tensor flats[FLATS])
{
	flats[0] = p->values;
	flats[1] = p->gradient;
	flats[2] = p->mean;
	flats[3] = p->square;
	flats[4] = p->best;
	return p->best.data != NULL ? 5 : 4;
}

static size_t
flat_bytes(const Trainer *trainer)
{
	return (size_t) trainer->parameters.rows * PARAMETER_COLUMNS * sizeof(float);
}

/* What a checkpoint belongs to. Options are digested field by field: padding has no value. */
static void
digest_origin(const Trainer *trainer, uint8_t digest[DIGEST_SIZE])
{
	const TrainOptions *o = &trainer->options;
	const AdapterShape *shape = &trainer->parameters.shape;
	const double numbers[] = {shape->r, shape->alpha, shape->targets, o->learning_rate,
		o->weight_decay, o->warmup_steps, o->schedule, o->clip, o->accumulation, o->batch_size,
		trainer->micro_steps, o->shuffle, (double) o->seed, o->max_length, o->validation,
		o->early_stopping,
		trainer->model->config.attend_previous, trainer->model->format};
	DigestState state;

	digest_begin(&state);
	digest_add(&state, trainer->model->digest, DIGEST_HEX_SIZE);
	digest_add(&state, numbers, sizeof(numbers));
	digest_add(&state, trainer->store.digest, DIGEST_SIZE);
	digest_end(&state, digest);
}

static void
digest_bytes(const uint8_t *bytes, size_t size, uint8_t digest[DIGEST_SIZE])
{
	DigestState state;

	digest_begin(&state);
	digest_add(&state, bytes, size);
	digest_end(&state, digest);
}

bool
trainer_at_rest(const Trainer *trainer)
{
	return (trainer->phase == PHASE_BEGIN || trainer->phase == PHASE_DONE ||
			trainer->phase == PHASE_PICTURES);
}

void
checkpoint_seal(uint8_t *bytes, size_t size)
{
	digest_bytes(bytes, size - DIGEST_SIZE, bytes + size - DIGEST_SIZE);
}

bool
trainer_save(const Trainer *trainer, Arena *arena, uint8_t **bytes, size_t *size, Status *status)
{
	if (!trainer_copy(trainer, arena, bytes, size, status))
		return false;
	checkpoint_seal(*bytes, *size);
	return true;
}

bool
trainer_copy(const Trainer *trainer, Arena *arena, uint8_t **bytes, size_t *size, Status *status)
{
	const TrainerReport *report = &trainer->report;
	size_t		flat = flat_bytes(trainer);
	CheckpointHeader header;
	Tensor		flats[FLATS];
	int			count = flat_tensors(&trainer->parameters, flats);

	if (!trainer_at_rest(trainer))
		return status_set(status, STATUS_INTERNAL, "a checkpoint in the middle of a micro step");
	*size = sizeof(header) + (size_t) count * flat + DIGEST_SIZE;
	*bytes = arena_take(arena, *size);
	if (*bytes == NULL)
		return status_out_of_memory(status, *size);
	memset(&header, 0, sizeof(header));
	memcpy(header.magic, CHECKPOINT_MAGIC, sizeof(header.magic));
	digest_origin(trainer, header.origin);
	header.rows = trainer->parameters.rows;
	header.micro_step = trainer->micro_step;
	header.optimizer_steps = trainer->optimizer_steps;
	header.tokens = trainer->tokens;
	header.loss_image = report->loss_image;
	header.loss_language = report->loss_language;
	header.gradient_norm = report->gradient_norm;
	header.learning_rate = report->learning_rate;
	header.best_loss = trainer->early.best_loss;
	header.best_micro_step = trainer->early.best_micro_step;
	header.without = trainer->early.without;
	header.stopped = trainer->early.stopped;
	memcpy(*bytes, &header, sizeof(header));
	for (int i = 0; i < count; i++)
		trainer->model->backend->ops->download(trainer->model->backend,
											   *bytes + sizeof(header) + (size_t) i * flat,
											   flats[i].data, flat);
	return true;
}

bool
checkpoint_verify(const uint8_t *bytes, size_t size, Status *status)
{
	uint8_t		digest[DIGEST_SIZE];

	if (size >= sizeof(CheckpointHeader) + DIGEST_SIZE)
	{
		digest_bytes(bytes, size - DIGEST_SIZE, digest);
		if (memcmp(digest, bytes + size - DIGEST_SIZE, DIGEST_SIZE) == 0 &&
			memcmp(bytes, CHECKPOINT_MAGIC, sizeof(CHECKPOINT_MAGIC) - 1) == 0)
			return true;
	}
	return status_set(status, STATUS_INVALID_ARGUMENT, "the checkpoint is damaged");
}

/* Is a whole checkpoint this trainer's? */
static bool
check_checkpoint(const Trainer *trainer, const uint8_t *bytes, size_t size,
				 CheckpointHeader *header, Status *status)
{
	uint8_t		digest[DIGEST_SIZE];
	Tensor		flats[FLATS];
	size_t		count = (size_t) flat_tensors(&trainer->parameters, flats);

	if (size != sizeof(*header) + count * flat_bytes(trainer) + DIGEST_SIZE)
		return status_set(status, STATUS_INVALID_ARGUMENT,
						  "the checkpoint has %zu bytes and does not belong to this training",
						  size);
	memcpy(header, bytes, sizeof(*header));
	digest_origin(trainer, digest);
	if (memcmp(digest, header->origin, DIGEST_SIZE) == 0)
		return true;
	status_set(status, STATUS_INVALID_ARGUMENT, "the checkpoint belongs to another training");
	return status_detail(status, "Its model, its options or its rows were others.");
}

bool
trainer_restore(Trainer *trainer, const uint8_t *bytes, size_t size, Status *status)
{
	return checkpoint_verify(bytes, size, status) && trainer_resume(trainer, bytes, size, status);
}

bool
trainer_resume(Trainer *trainer, const uint8_t *bytes, size_t size, Status *status)
{
	TrainerReport *report = &trainer->report;
	size_t		flat = flat_bytes(trainer);
	CheckpointHeader header;
	Tensor		flats[FLATS];
	int			count = flat_tensors(&trainer->parameters, flats);

	if (trainer->phase != PHASE_PICTURES || trainer->micro_step != 0)
		return status_set(status, STATUS_INTERNAL, "a checkpoint for a training that goes on");
	if (!check_checkpoint(trainer, bytes, size, &header, status))
		return false;
	trainer->micro_step = header.micro_step;
	trainer->optimizer_steps = header.optimizer_steps;
	trainer->tokens = header.tokens;
	report->loss_image = header.loss_image;
	report->loss_language = header.loss_language;
	report->gradient_norm = header.gradient_norm;
	report->learning_rate = header.learning_rate;
	trainer->early = (EarlyStopping) {header.best_loss, header.best_micro_step, header.without,
									  header.stopped != 0};
	for (int i = 0; i < count; i++)
		trainer->model->backend->ops->upload(trainer->model->backend, flats[i].data,
											 bytes + sizeof(header) + (size_t) i * flat, flat);
	lora_parameters_publish(trainer);
	return true;
}
