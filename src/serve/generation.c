/*
 * generation.c - see generation.h.
 */
#include "generation.h"

#include <string.h>

#include "beam_search.h"
#include "digest.h"
#include "prompt_template.h"
#include "utf8.h"

/* Longest stop in bytes that is looked for across tokens; every token gives at least one byte. */
#define STOP_WINDOW 64

/* A seed from everything that decides the answer, so that the same call gives the same answer. */
static uint64_t
derive_seed(const Generation *generation, const ModelConfig *config)
{
	const RequestOptions *options = generation->options;
	size_t		pixels = 3 * (size_t) config->vision.image_size *
						 (size_t) config->vision.image_size;
	double		numbers[4] = {options->temperature, options->top_k, options->top_p,
							  options->max_tokens};
	DigestState state;
	uint8_t		digest[DIGEST_SIZE];
	uint64_t	seed;

	digest_begin(&state);
	digest_add(&state, generation->prompt, (size_t) generation->prompt_count * sizeof(int32_t));
	digest_add(&state, numbers, sizeof(numbers));
	for (int i = 0; generation->pictures != NULL && i < generation->pictures->count; i++)
	{
		const Picture *picture = &generation->pictures->pictures[i];

		if (picture->pixels != NULL)
			digest_add(&state, picture->pixels, pixels);
		else
			digest_add(&state, picture->normalised, pixels * sizeof(float));
	}
	digest_end(&state, digest);
	memcpy(&seed, digest, sizeof(seed));
	return seed;
}

bool
generation_begin(Generation *generation, Arena *arena, const ModelConfig *config, int32_t *prompt,
				 int prompt_count, PictureSet *pictures, const RequestOptions *options,
				 Status *status)
{
	int			room = config->decoder.context - prompt_count;

	memset(generation, 0, sizeof(*generation));
	generation->arena = arena;
	generation->prompt = prompt;
	generation->prompt_count = prompt_count;
	generation->pictures = pictures;
	generation->options = options;
	generation->adapter = options->adapter;
	generation->eos = options->eos_token_id >= 0 ? options->eos_token_id : config->eos;
	if (room < 1)
	{
		status_set(status, STATUS_PROMPT_TOO_LONG,
				   "prompt of %d tokens does not fit the model's context of %d tokens",
				   prompt_count, config->decoder.context);
		status_detail(status, "At least one token has to be left for the answer.");
		return status_hint(status, "Shorten the prompt, the history or the input.");
	}
	generation->max_tokens = options->max_tokens < room ? options->max_tokens : room;
	generation->tokens = arena_take_array(arena, (size_t) generation->max_tokens, sizeof(int32_t));
	generation->log_probabilities = arena_take_array(arena, (size_t) generation->max_tokens,
													 sizeof(float));
	if (generation->tokens == NULL || generation->log_probabilities == NULL)
		return status_out_of_memory(status, (size_t) generation->max_tokens * 8);
	if (options->num_beams > 1)
	{
		generation->search = arena_take(arena, sizeof(BeamSearch));
		if (generation->search == NULL)
			return status_out_of_memory(status, sizeof(BeamSearch));
		if (!beam_search_begin(generation->search, options, prompt_count, generation->max_tokens,
							   generation->eos, arena, status))
			return false;
	}
	generation->rule.temperature = (float) options->temperature;
	generation->rule.top_k = options->top_k;
	generation->rule.top_p = (float) options->top_p;
	if (options->has_seed)
		generation->rule.seed = (uint64_t) options->seed;
	else if (options->temperature > 0)
		generation->rule.seed = derive_seed(generation, config);
	return true;
}

int32_t
generation_token(const Generation *generation, int place)
{
	if (place < generation->prompt_count)
		return generation->prompt[place];
	return generation->tokens[place - generation->prompt_count];
}

int
generation_length(const Generation *generation)
{
	return generation->prompt_count + generation->count;
}

/* Offset of the first stop in a text; length if there is none. */
static size_t
find_stop(const Generation *generation, const char *text, size_t length)
{
	size_t		stop = answer_find_stop(text, length);

	for (int i = 0; generation->options != NULL && i < generation->options->stop_count; i++)
	{
		const char *string = generation->options->stops[i];
		const char *found = memmem(text, length, string, strlen(string));

		if (found != NULL && (size_t) (found - text) < stop)
			stop = (size_t) (found - text);
	}
	return stop;
}

bool
generation_stops(const Generation *generation, const int32_t *tokens, int count,
				 const Tokenizer *tokenizer, Arena *scratch)
{
	size_t		window = STOP_WINDOW;
	int			first;
	size_t		length;
	char	   *text;
	Status		status;

	for (int i = 0; generation->options != NULL && i < generation->options->stop_count; i++)
		if (strlen(generation->options->stops[i]) > window)
			window = strlen(generation->options->stops[i]);
	first = count > (int) window ? count - (int) window : 0;
	text = tokenizer_decode(tokenizer, tokens + first, count - first, scratch, &length, &status);
	return text != NULL && find_stop(generation, text, length) < length;
}

bool
generation_has_enough(const Generation *generation, const Tokenizer *tokenizer, Arena *scratch)
{
	size_t		length;
	char	   *text;
	Status		status;

	if (generation->enough == NULL)
		return false;
	text = tokenizer_decode(tokenizer, generation->tokens, generation->count, scratch, &length,
							&status);
	return text != NULL && generation->enough(text, find_stop(generation, text, length));
}

char *
generation_text(const Generation *generation, const Tokenizer *tokenizer, size_t *length,
				Status *status)
{
	int			count = generation->count;
	size_t		decoded;
	char	   *text;
	const char *stripped;
	char	   *repaired;

	if (generation->finish == FINISH_EOS)
		count--;
	text = tokenizer_decode(tokenizer, generation->tokens, count, generation->arena, &decoded,
							status);
	if (text == NULL)
		return NULL;
	decoded = find_stop(generation, text, decoded);
	stripped = tokenizer_strip(text, decoded, true, true, &decoded);
	repaired = arena_take(generation->arena, 3 * decoded + 1);
	if (repaired == NULL)
	{
		status_out_of_memory(status, 3 * decoded + 1);
		return NULL;
	}
	*length = utf8_repair(stripped, decoded, repaired);
	return repaired;
}

const char *
finish_name(Finish finish)
{
	return finish == FINISH_EOS ? "eos" : finish == FINISH_STOP ? "stop" : "length";
}
