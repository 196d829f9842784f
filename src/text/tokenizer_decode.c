/*
 * tokenizer_decode.c - token ids to text.
 *
 * The original drops the special tokens and gives SentencePiece the rest in one
 * call. That one call matters: a character may be spread over several byte
 * pieces, and only the leading space of the very first piece is dropped, so a
 * text is never decoded piece by piece and joined.
 */
#include "tokenizer_state.h"

#include <stdlib.h>

/* Copy the ids that stand for text to kept. Returns how many, or -1 when one is unknown. */
static int
keep_text_ids(const Tokenizer *tokenizer, const int32_t *ids, int count, int32_t *kept,
			  Status *status)
{
	int			length = 0;

	for (int i = 0; i < count; i++)
	{
		if (!tokenizer_knows(tokenizer, ids[i]))
		{
			status_set(status, STATUS_INVALID_ARGUMENT, "token id %d is not in the vocabulary",
					   (int) ids[i]);
			return -1;
		}
		if (!tokenizer_is_special(tokenizer, ids[i]))
			kept[length++] = ids[i];
	}
	return length;
}

char *
tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, int count, Arena *arena,
				 size_t *length, Status *status)
{
	size_t		size = ((size_t) count + 1) * sizeof(int32_t);
	int32_t    *kept = malloc(size);
	int			kept_count;
	char	   *text = NULL;

	if (kept == NULL)
	{
		status_out_of_memory(status, size);
		return NULL;
	}
	kept_count = keep_text_ids(tokenizer, ids, count, kept, status);
	if (kept_count >= 0)
		text = sentencepiece_decode(tokenizer->model, kept, kept_count, arena, length, status);
	free(kept);
	return text;
}
