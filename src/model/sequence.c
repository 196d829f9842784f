/*
 * sequence.c - the tokens of one dialogue, the pages of their keys and values, and the
 * picture that each token attends to.
 *
 * The rule (golden README, Facts 1): a token's picture is the number of <image> marks
 * up to and including it. In the "following" mode, which MultiModal-GPT was trained
 * with, other tokens than marks take the next picture, or none if no mark follows.
 * Tokens generated after the prompt come after all marks: the last picture in the
 * "preceding" mode, none in the "following" one.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "model_internal.h"

int
sequence_assign_pictures(const ModelConfig *config, const int32_t *ids, int count,
						 int32_t *pictures)
{
	int			marks = 0;
	int			seen = 0;

	for (int i = 0; i < count; i++)
		marks += ids[i] == config->image;
	for (int i = 0; i < count; i++)
	{
		bool		mark = ids[i] == config->image;
		int			picture;

		seen += mark;
		picture = config->attend_previous || mark ? seen : seen + 1;
		pictures[i] = picture <= marks ? picture : 0;
	}
	return marks;
}

void
sequence_media_span(const ModelConfig *config, int picture, int pictures, int32_t *span)
{
	int			latents = config->resampler.latents;

	/*
	 * More marks than pictures: every score is masked alike, so the softmax is uniform over all
	 * latents.
	 */
	span[SPAN_UNIFORM] = picture > pictures;
	span[SPAN_FIRST] = picture > pictures || picture == 0 ? 0 : (picture - 1) * latents;
	span[SPAN_COUNT] = picture > pictures ? pictures * latents : picture == 0 ? 0 : latents;
}

static bool
check_ids(const ModelConfig *config, const int32_t *ids, int count, Status *status)
{
	if (count < 1)
		return status_set(status, STATUS_INVALID_ARGUMENT, "a sequence needs at least one token");
	if (count > config->decoder.context)
	{
		status_set(status, STATUS_PROMPT_TOO_LONG,
				   "prompt of %d tokens is longer than the model's context of %d", count,
				   config->decoder.context);
		return status_hint(status, "Shorten the prompt, the history or the input.");
	}
	for (int i = 0; i < count; i++)
		if (ids[i] < 0 || ids[i] >= config->decoder.vocabulary)
			return status_set(status, STATUS_INVALID_ARGUMENT,
							  "token id %d is outside of the vocabulary of %d", ids[i],
							  config->decoder.vocabulary);
	return true;
}

/* A sequence without pages, with room for the ids of a prompt. */
static Sequence *
sequence_allocate(const Model *model, int count, Status *status)
{
	int			capacity = pages_for_keys(model->config.decoder.context);
	size_t		bytes = sizeof(Sequence) +
		((size_t) capacity + 2 * (size_t) count) * sizeof(int32_t);
	Sequence   *sequence = calloc(1, bytes);

	if (sequence == NULL)
	{
		status_out_of_memory(status, bytes);
		return NULL;
	}
	sequence->pages.pages = (int32_t *) (sequence + 1);
	sequence->pages.capacity = capacity;
	sequence->ids = sequence->pages.pages + capacity;
	sequence->pictures = sequence->ids + count;
	sequence->prompt = count;
	return sequence;
}

Sequence *
sequence_open(Model *model, Media *media, Adapter *adapter, const int32_t *ids, int count,
			  Status *status)
{
	Sequence   *sequence;

	if (!check_ids(&model->config, ids, count, status))
		return NULL;
	sequence = sequence_allocate(model, count, status);
	if (sequence == NULL)
		return NULL;
	sequence->media = media;
	sequence->adapter = adapter;
	memcpy(sequence->ids, ids, (size_t) count * sizeof(int32_t));
	sequence->marks = sequence_assign_pictures(&model->config, sequence->ids, count,
											   sequence->pictures);
	return sequence;
}

int
sequence_picture(const Model *model, const Sequence *sequence, int position)
{
	if (position < sequence->prompt)
		return sequence->pictures[position];
	return model->config.attend_previous ? sequence->marks : 0;
}

int
sequence_adopt(Model *model, Sequence *sequence, const Sequence *from, int tokens)
{
	int			same = 0;
	int			full;

	/* a mark behind the common tokens can change what they attend to */
	while (same < tokens &&
		   sequence_picture(model, sequence, same) == sequence_picture(model, from, same))
		same++;
	tokens = same;
	full = tokens / KV_PAGE_KEYS;
	pages_share(&model->cache_pages, &sequence->pages, &from->pages, full);
	sequence->length = full * KV_PAGE_KEYS;
	if (tokens == sequence->length)
		return tokens;
	if (!pages_take(&model->cache_pages, &sequence->pages, full + 1))
		return sequence->length;
	model->backend->ops->kv_copy(model->backend, &model->cache, from->pages.pages[full],
								 sequence->pages.pages[full]);
	sequence->length = tokens;
	return tokens;
}

Sequence *
sequence_fork(Model *model, const Sequence *sequence, Status *status)
{
	Sequence   *fork = sequence_allocate(model, sequence->prompt, status);

	if (fork == NULL)
		return NULL;
	fork->media = sequence->media;
	fork->adapter = sequence->adapter;
	fork->marks = sequence->marks;
	memcpy(fork->ids, sequence->ids, (size_t) sequence->prompt * sizeof(int32_t));
	memcpy(fork->pictures, sequence->pictures, (size_t) sequence->prompt * sizeof(int32_t));
	if (sequence_adopt(model, fork, sequence, sequence->length) == sequence->length)
		return fork;
	sequence_close(model, fork);
	status_set(status, STATUS_OUT_OF_MEMORY, "no page is free for a copy of a sequence");
	return NULL;
}

void
sequence_close(Model *model, Sequence *sequence)
{
	if (sequence == NULL)
		return;
	pages_give_back(&model->cache_pages, &sequence->pages, 0);
	free(sequence);
}

int
sequence_length(const Sequence *sequence)
{
	return sequence->length;
}

int
model_free_pages(const Model *model)
{
	return model->cache_pages.free_count;
}

int
model_pages_for(const Model *model, int tokens)
{
	return pages_for_keys(tokens);
}

bool
sequence_reserve(Model *model, Sequence *sequence, int tokens, Status *status)
{
	if (tokens > model->config.decoder.context)
		return status_set(status, STATUS_PROMPT_TOO_LONG,
						  "%d tokens are more than the model's context of %d", tokens,
						  model->config.decoder.context);
	if (pages_take(&model->cache_pages, &sequence->pages, pages_for_keys(tokens)))
		return true;
	status_set(status, STATUS_OUT_OF_MEMORY, "no room for the keys and values of %d tokens",
			   tokens);
	return status_detail(status, "%d pages of %d tokens are needed and %d of %d are free.",
						 pages_for_keys(tokens) - sequence->pages.count, KV_PAGE_KEYS,
						 model->cache_pages.free_count, model->cache_pages.total);
}

void
sequence_truncate(Model *model, Sequence *sequence, int tokens)
{
	if (sequence->length > tokens)
		sequence->length = tokens;
	pages_give_back(&model->cache_pages, &sequence->pages, pages_for_keys(tokens));
}
