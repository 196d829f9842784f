/*
 * trainer.h - LoRA training of an open model: the front of src/train.
 *
 *	trainer_create			options, and the adapter to go on from
 *	trainer_add_row			rows, one by one
 *	trainer_start			the plan of memory, refused with its numbers where it doesn't fit
 *	trainer_step_slice		a slice of work, at most a layer long, until TRAINER_DONE
 *	trainer_make_adapter	the adapter as it is now
 *
 * Between slices the model may answer questions: a trainer shares its weights and nothing
 * else, but for the pictures' encoder, which is used within one slice. There is no state
 * outside of the object.
 *
 * What comes out is a function of model, options, rows and initial adapter, to the last bit: not
 * of threads, of memory, of how a micro step is cut into passes, of layers computed anew, of
 * checkpoints or of what the model did in between (for one build and instruction set).
 */
#ifndef MMGPT_TRAINER_H
#define MMGPT_TRAINER_H

#include "adapter_files.h"
#include "arena.h"
#include "model.h"
#include "status.h"
#include "train_options.h"
#include "training_row.h"

typedef struct Trainer Trainer;

/*
 * The bytes that trainer_create takes for these arguments, which is what does not depend on rows.
 */
extern bool trainer_measure(Model *model, const TrainOptions *options,
							const AdapterSource *initial_adapter, size_t *bytes, Status *status);

/*
 * Begin training from an adapter; NULL: from the first values of LoRA. Options that were not given
 * (r, alpha, targets) become those of the initial adapter, or the defaults; STATUS_INVALID_ARGUMENT
 * when they contradict it. The model must outlive the trainer.
 */
extern Trainer *trainer_create(Model *model, const TrainOptions *options,
							   const AdapterSource *initial_adapter, Status *status);
extern void trainer_free(Trainer *trainer);

/*
 * Take a copy of a row, cut at max_length. STATUS_INVALID_ARGUMENT says why a row is unusable
 * and leaves the trainer as it was; STATUS_OUT_OF_MEMORY is no fault of the row.
 */
extern bool trainer_add_row(Trainer *trainer, const TrainingRow *row, Status *status);

/* Bytes that the rows take so far. */
extern size_t trainer_rows_bytes(const Trainer *trainer);

/*
 * Encode fewer pictures in a slice, somewhat slower, so that those who ask the model wait for
 * less. The result is the same.
 */
extern void trainer_shorten_slices(Trainer *trainer);

/* Where the memory goes, in bytes, beside the model's own. */
typedef struct TrainerMemory
{
	size_t		rows;			/* tokens, labels, and pixels until they are encoded */
	size_t		pictures;		/* latents of all distinct pictures */
	size_t		parameters;		/* adapter, gradients and the optimizer's means */
	size_t		activations;	/* of one pass, kept for the way back */
	size_t		scratch;
	size_t		total;
	int			pass_tokens;	/* most tokens that go through the model at once */
	int			trained_layers;	/* from the lowest layer with LoRA up */
	int			kept_layers;	/* of these, layers whose activations are kept, not computed anew */
} TrainerMemory;

/*
 * No more rows will come: hold validation rows out, plan the memory within limit bytes (0: no
 * limit) and take it. A trainer that fits better computes fewer layers anew.
 * STATUS_OUT_OF_MEMORY tells what is needed where even the smallest plan does not fit;
 * STATUS_INVALID_ARGUMENT when there are no rows.
 */
extern bool trainer_start(Trainer *trainer, size_t limit, Status *status);
extern void trainer_memory(const Trainer *trainer, TrainerMemory *memory);

typedef enum TrainerEvent
{
	TRAINER_WORKING,			/* call again */
	TRAINER_GRADIENTS,			/* a micro step's gradients are complete and not clipped yet */
	TRAINER_STEPPED,			/* a micro step is done, see trainer_report; checkpoints fit here */
	TRAINER_DONE
} TrainerEvent;

/*
 * Do a slice of work. STATUS_INVALID_ARGUMENT when the loss is no longer finite: the training
 * has diverged.
 */
extern bool trainer_step_slice(Trainer *trainer, TrainerEvent *event, Status *status);

/* How far a trainer is, and what its last micro step gave. */
typedef struct TrainerReport
{
	int			pictures;		/* distinct ones */
	int			pictures_encoded;
	int			rows_image;		/* trained on */
	int			rows_language;
	int			rows_validation;
	int			micro_steps;	/* in all */
	int			micro_step;		/* done */
	int			optimizer_steps;	/* done */
	uint64_t	tokens;			/* that went through training */
	/* of the last micro step; losses are NaN where there was no such batch */
	double		loss_image;
	double		loss_language;
	double		gradient_norm;	/* before clipping */
	double		learning_rate;	/* of the optimizer step that it belongs to */
	bool		validated;		/* the losses over the rows held out were measured after it */
	double		validation_image;
	double		validation_language;
	/*
	 * with early_stopping: the micro step of the best validation so far, whose adapter is the
	 * result; 0: none yet
	 */
	int			best_micro_step;
	bool		stopped;		/* validations ended the training */
} TrainerReport;

extern void trainer_report(const Trainer *trainer, TrainerReport *report);

/*
 * The adapter as it is now, as PEFT's files in the arena; after TRAINER_DONE with early_stopping
 * that of the best validation.
 */
extern bool trainer_make_adapter(const Trainer *trainer, Arena *arena, AdapterFiles *files,
								 Status *status);
extern void trainer_adapter_shape(const Trainer *trainer, AdapterShape *shape);

/*
 * Everything that is needed to go on from a finished micro step, as bytes in the arena: after
 * TRAINER_STEPPED or before the first slice only (STATUS_INTERNAL otherwise).
 */
extern bool trainer_save(const Trainer *trainer, Arena *arena, uint8_t **bytes, size_t *size,
						 Status *status);

/* Whether trainer_save may be called: the training stands between two micro steps. */
extern bool trainer_at_rest(const Trainer *trainer);

/*
 * Go on from saved bytes: right after trainer_start of a trainer with the same model, options
 * and rows (STATUS_INVALID_ARGUMENT if they differ, or the bytes are damaged).
 */
extern bool trainer_restore(Trainer *trainer, const uint8_t *bytes, size_t size, Status *status);

/*
 * Both in two parts, as a digest over all bytes takes a while and no trainer: trainer_save is
 * trainer_copy and checkpoint_seal, trainer_restore is checkpoint_verify and trainer_resume.
 * checkpoint_seal and checkpoint_verify may run on any thread.
 */
extern bool trainer_copy(const Trainer *trainer, Arena *arena, uint8_t **bytes, size_t *size,
						 Status *status);
extern void checkpoint_seal(uint8_t *bytes, size_t size);
extern bool checkpoint_verify(const uint8_t *bytes, size_t size, Status *status);
extern bool trainer_resume(Trainer *trainer, const uint8_t *bytes, size_t size, Status *status);

/*
 * Read the gradient of one matrix [rows, columns] as it is now, for tests; false if there is no
 * such matrix.
 */
extern bool trainer_read_gradient(const Trainer *trainer, const AdapterMatrix *matrix,
								  float *values);

#endif
