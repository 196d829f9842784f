/*
 * model_text.c - see model_text.h.
 */
#include "model_text.h"

#include <stdio.h>
#include <string.h>

Tokenizer *
model_text_tokenizer(const char *directory, const ModelConfig *config, Arena *arena, Status *status)
{
	size_t		length = strlen(directory) + sizeof("/tokenizer.model");
	char	   *path = arena_take(arena, length);
	SpecialTokens special = {
		.unk = config->unk, .bos = config->bos, .eos = config->eos,
		.endofchunk = config->endofchunk, .image = config->image, .pad = config->pad
	};

	if (path == NULL)
	{
		status_out_of_memory(status, length);
		return NULL;
	}
	snprintf(path, length, "%s/tokenizer.model", directory);
	return tokenizer_open(path, &special, config->decoder.base_vocabulary, status);
}

PromptTemplate
model_text_template(const ModelConfig *config)
{
	return (PromptTemplate) {
		.introduction = config->introduction, .separator = config->separator,
		.user_prefix = config->user_prefix, .ai_prefix = config->ai_prefix,
		.history_eos = config->history_eos
	};
}
