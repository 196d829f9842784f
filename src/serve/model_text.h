/*
 * model_text.h - what src/text needs to know of a model: its tokenizer and its template.
 */
#ifndef MMGPT_MODEL_TEXT_H
#define MMGPT_MODEL_TEXT_H

#include "arena.h"
#include "model_config.h"
#include "prompt_template.h"
#include "status.h"
#include "tokenizer.h"

/* Open DIR/tokenizer.model with the special ids of the config; NULL and STATUS_INVALID_MODEL. */
extern Tokenizer *model_text_tokenizer(const char *directory, const ModelConfig *config,
									   Arena *arena, Status *status);

/* The template in the config's words; the strings are the config's. */
extern PromptTemplate model_text_template(const ModelConfig *config);

#endif
