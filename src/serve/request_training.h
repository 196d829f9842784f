/*
 * request_training.h - requests of a training: what is read of them and written for them beside the
 * model's thread.
 *
 *	IO			request_is_training
 *	preparer	request_encode_row (TRAIN_ENCODE whole); request_prepare_training (TRAIN_OPEN and
 *				TRAIN_START, before the model's thread); request_seal_training (TRAIN_SAVE and
 *				TRAIN_ADAPTER, after it)
 *	model		request_read_row (TRAIN_ROW), and all that training.h does
 */
#ifndef MMGPT_REQUEST_TRAINING_H
#define MMGPT_REQUEST_TRAINING_H

#include "adapter_files.h"
#include "request.h"
#include "train_options.h"
#include "training_row.h"

/* What a request of a training carries between threads. */
typedef struct TrainPlan
{
	/* of TRAIN_OPEN */
	TrainOptions options;
	AdapterSource initial;
	bool		has_initial;

	/* of TRAIN_START and TRAIN_SAVE */
	uint8_t    *checkpoint;		/* NULL: none */
	size_t		checkpoint_size;

	/* of TRAIN_ADAPTER */
	AdapterFiles files;

	bool		unsealed;		/* TRAIN_SAVE and TRAIN_ADAPTER: a preparer has to finish it */
} TrainPlan;

/* Whether the request works on the training of its connection: TRAIN_OPEN to TRAIN_CLOSE. */
extern bool request_is_training(const Request *request);

/* Answer a TRAIN_ENCODE. */
extern void request_encode_row(Request *request, const ModelContext *context);

/*
 * Give the request its plan: options and initial adapter checked, a checkpoint verified. False with
 * request->status set.
 */
extern bool request_prepare_training(Request *request, const ModelContext *context);

/* Digest what the model's thread has made, and write the answer. */
extern void request_seal_training(Request *request, const ModelContext *context);

/*
 * The row in TOKENS, TARGETS and PIXELS: ids and labels copied, pixels in the payload; picture is
 * the caller's place for one. Sizes are checked (STATUS_PROTOCOL), tokens are not. False with
 * request->status set.
 */
extern bool request_read_row(Request *request, const ModelConfig *config, TrainingRow *row,
							 Picture *picture);

#endif
