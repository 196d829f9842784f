/*
 * logprobs.h - how sure the model was of each token of an answer, as JSON.
 */
#ifndef MMGPT_LOGPROBS_H
#define MMGPT_LOGPROBS_H

#include <jansson.h>

#include "generation.h"

/*
 * One object for each generated token, the end token included: {"id": its id, "token": as the
 * tokenizer's vocabulary spells it, "logprob": the natural logarithm of its probability}. The
 * probability is the softmax's over the tokens that an answer may hold, before temperature,
 * top_k and top_p. NULL: out of memory.
 */
extern json_t *logprobs_json(const Generation *generation, const Tokenizer *tokenizer);

#endif
