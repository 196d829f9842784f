/*
 * logprobs.c - see logprobs.h.
 */
#include "logprobs.h"

#include <math.h>

/* JSON has no infinity: a model of broken weights gives null. */
static json_t *
number_json(float value)
{
	return isfinite(value) ? json_real((double) value) : json_null();
}

json_t *
logprobs_json(const Generation *generation, const Tokenizer *tokenizer)
{
	json_t	   *array = json_array();

	for (int i = 0; array != NULL && i < generation->count; i++)
	{
		int32_t		id = generation->tokens[i];
		json_t	   *element = json_pack("{s:i, s:s, s:o}", "id", (int) id, "token",
										tokenizer_piece(tokenizer, id), "logprob",
										number_json(generation->log_probabilities[i]));

		/* takes the element over, and fails where it is NULL */
		if (json_array_append_new(array, element) != 0)
		{
			json_decref(array);
			return NULL;
		}
	}
	return array;
}
