/*
 * request_internal.h - what the files of a request share.
 *
 *	request.c			its fields, options, prompt and picture
 *	request_labels.c	its labels
 *	request_run.c		tasks that generate
 *	request_scores.c	tasks that read log-probabilities of given answers
 *	request_evaluate.c	the loss of a row
 *	request_training.c	what belongs to a training
 */
#ifndef MMGPT_REQUEST_INTERNAL_H
#define MMGPT_REQUEST_INTERNAL_H

#include "request.h"

/* ---- request.c ---- */

/* A text field; an absent one has no text. */
extern TextPart request_text_field(const Request *request, WireField field);

/* A prompt of the config with its first "{}" replaced by a value. */
extern bool request_fill_prompt(Request *request, const char *pattern, TextPart value,
								TextPart *prompt);

/*
 * Put a prompt behind the request's history, which becomes request->dialogue, and make the
 * token ids of both.
 */
extern bool request_encode_prompt(Request *request, TextPart prompt, TokenList *ids);

/* The picture in IMAGE as the model takes it, u8 [S, S, 3] in the arena. */
extern bool request_read_pixels(Request *request, const ModelConfig *config, ImageRules rules,
								uint8_t **pixels);

/* Let the request be about a picture u8 [S, S, 3]. */
extern void request_set_picture(Request *request, const ModelConfig *config,
								const uint8_t *pixels);

/* Whether the client gave up waiting; the status then says so. For long loops. */
extern bool request_given_up(Request *request);

/* ---- request_run.c ---- */

/* Hand the request back: its answer or its status is complete. */
extern void request_complete(Request *request);

/* ---- request_scores.c ---- */

/* Whether the kind is of those that read log-probabilities. */
extern bool scores_wanted(const Request *request);

/*
 * The preparer's part: prompts, labels and words to request->ids, the beginning that all
 * share, and the continuations to be scored. STATUS_INVALID_ARGUMENT names a label that is
 * empty or comes twice, STATUS_PROMPT_TOO_LONG one that does not fit the context.
 */
extern bool scores_prepare(Request *request);

/* The scheduler's part: submit one generation that scores them all. */
extern void scores_submit(Request *request);

/* Submit a generation that scores continuations of the request's prompt. */
extern void request_submit_scoring(Request *request, struct Scoring *scoring,
								   Generation *generation,
								   void (*finished)(Generation *generation, void *argument));

/* ---- request_evaluate.c ---- */

/* The preparer's part of an EVALUATE: the row's prompt, and its targets to be scored. */
extern bool evaluate_prepare(Request *request);

/* The scheduler's part. */
extern void evaluate_submit(Request *request);

#endif
