/*
 * training.h - the one training that may be open in the engine, on the model's thread.
 *
 * The IO thread decides whose it is (admission_training.c) and hands its requests over in their
 * order. They are worked on here in slices, between the scheduler's steps: a row, a layer of a
 * micro step, a checkpoint. All of it belongs to the model's thread.
 */
#ifndef MMGPT_TRAINING_H
#define MMGPT_TRAINING_H

#include <jansson.h>

#include "request_training.h"
#include "trainer.h"

/* Called with a request that is answered, failed or cancelled; it is gone from the training. */
typedef void (*TrainingDone)(Request *request, void *argument);

typedef struct TrainingCounters
{
	bool		open;
	int			micro_step;		/* done, of the open training; these 0 where there is none */
	int			micro_steps;
	int			share;			/* percent of the time, 1 .. 99, see training_share.h */
	uint64_t	tokens;			/* that went through training */
	uint64_t	compute_ns;		/* that it took so far */
	uint64_t	slices;			/* since the engine began, of all trainings */
} TrainingCounters;

typedef struct Training
{
	Model	   *model;
	TrainingDone done;
	void	   *argument;
	Request    *first;			/* its requests, oldest first */
	Request   **end;

	Trainer    *trainer;		/* NULL: none is open */
	size_t		limit;			/* bytes that it may take */
	size_t		parameters;		/* bytes of adapter and optimizer, of these */
	bool		started;
	int			usual_share;	/* of a training whose client names none */
	Status		failure;		/* it can't go on */
	TrainingCounters counters;

	/* the TRAIN_STEP at work */
	bool		stepping;
	uint64_t	step_begin_ns;
	json_t	   *steps;			/* what came out so far */
} Training;

/* share: percent of the time for trainings whose clients name none. */
extern void training_begin(Training *training, Model *model, int share, TrainingDone done,
						   void *argument);

/* Append a request, which was prepared where it has to be. */
extern void training_take(Training *training, Request *request);

/* Whether a slice could be computed now. */
extern bool training_has_work(const Training *training);

/* Compute a slice. Returns the nanoseconds that it took. */
extern uint64_t training_slice(Training *training);

/* Free the trainer, and hand all requests back unanswered: the client is gone. */
extern void training_abandon(Training *training);

#endif
