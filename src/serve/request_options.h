/*
 * request_options.h - how an answer is to be generated: the settings of a session, and the
 * JSON object that overrides them for one call. Names and meanings are Hugging Face's.
 */
#ifndef MMGPT_REQUEST_OPTIONS_H
#define MMGPT_REQUEST_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "model.h"
#include "status.h"

/* Stop strings of one call, at most. */
#define OPTIONS_MAX_STOPS 16
/* Beams of one answer, at most. */
#define OPTIONS_MAX_BEAMS 16

/* What a build for tests can break on purpose (-DMMGPT_FAULTS). */
typedef enum FaultKind
{
	FAULT_NONE,
	FAULT_ABORT,				/* the engine dies while it works on the request */
	FAULT_HANG,					/* ... never answers */
	FAULT_OUT_OF_MEMORY,		/* ... refuses the request */
	FAULT_SLOW					/* ... takes a tenth of a second for each token */
} FaultKind;

typedef struct RequestOptions
{
	int			max_tokens;		/* new tokens, 1 .. 1000000 */
	double		temperature;	/* 0: greedy */
	int			top_k;			/* 0: all tokens */
	double		top_p;			/* 1: all tokens */
	bool		has_seed;
	int64_t		seed;
	int			num_beams;		/* 1 .. OPTIONS_MAX_BEAMS; 1: no beam search */
	double		length_penalty;	/* of beam search: scores are divided by length^penalty */
	bool		early_stopping;	/* stop when num_beams answers are finished */
	int			no_repeat_ngram_size;	/* no n tokens of prompt and answer come twice; 0: off */
	const char *input;			/* text of an "### Input:" block; NULL: none */
	size_t		input_length;
	double		threshold;		/* of mmgpt_filter and mmgpt_classify_multi, 0 .. 1 */
	bool		logprobs;		/* give the log-probabilities of the tokens with the answer */
	const char *stops[OPTIONS_MAX_STOPS];	/* the answer ends before the first of these */
	int			stop_count;
	int			eos_token_id;	/* -1: the model's; command line only */
	const char *adapter_name;	/* NULL: the option is not there; empty: no adapter */
	Adapter    *adapter;		/* what the caller found for it; NULL: none */
	FaultKind	fault;
} RequestOptions;

/* The settings' defaults: 256 tokens, greedy. */
extern void request_options_defaults(RequestOptions *options);

/*
 * Override options by a JSON object; texts are copied to the arena. length 0: nothing.
 * STATUS_INVALID_ARGUMENT names an unknown key, or the key, value and range of a
 * wrong one; STATUS_INVALID_JSON when it is not a JSON object.
 */
extern bool request_options_read(const char *json, size_t length, bool command_line, Arena *arena,
								 RequestOptions *options, Status *status);

#endif
