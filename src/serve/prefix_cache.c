/*
 * prefix_cache.c - a short list of sequences with their tokens; see prefix_cache.h.
 */
#include "prefix_cache.h"

#include <stdlib.h>
#include <string.h>

#include "scoring.h"

/* Sequences that are kept, at most. */
#define PLACES 64

typedef struct KeptSequence
{
	Sequence   *sequence;		/* NULL: the place is free */
	uint64_t	owner;
	bool		has_picture;
	uint8_t		picture[DIGEST_SIZE];
	uint8_t		adapter[DIGEST_SIZE];	/* its identity */
	int32_t    *ids;			/* [count] whose keys and values it holds; malloc'ed */
	int			count;
	uint64_t	last_use;
} KeptSequence;

struct PrefixCache
{
	Model	   *model;
	KeptSequence places[PLACES];
	uint64_t	turn;
};

PrefixCache *
prefix_cache_create(Model *model, Status *status)
{
	PrefixCache *cache = calloc(1, sizeof(PrefixCache));

	if (cache == NULL)
		status_out_of_memory(status, sizeof(PrefixCache));
	else
		cache->model = model;
	return cache;
}

static void
drop(PrefixCache *cache, KeptSequence *kept)
{
	sequence_close(cache->model, kept->sequence);
	free(kept->ids);
	kept->sequence = NULL;
	kept->ids = NULL;
}

void
prefix_cache_free(PrefixCache *cache)
{
	if (cache == NULL)
		return;
	for (int i = 0; i < PLACES; i++)
		if (cache->places[i].sequence != NULL)
			drop(cache, &cache->places[i]);
	free(cache);
}

/* Whether a kept sequence was asked for by the same one, about the same picture. */
static bool
same_asker(const KeptSequence *kept, const Generation *generation)
{
	const PictureSet *pictures = generation->pictures;
	uint8_t		adapter[DIGEST_SIZE];

	adapter_identity(generation->adapter, adapter);
	if (kept->sequence == NULL || kept->owner != generation->owner ||
		memcmp(kept->adapter, adapter, DIGEST_SIZE) != 0 || kept->has_picture != (pictures != NULL))
		return false;
	return pictures == NULL ||
		(pictures->has_key && memcmp(kept->picture, pictures->key, DIGEST_SIZE) == 0);
}

/* Tokens that the beginnings of a kept sequence and of a generation's text have in common. */
static int
common_tokens(const KeptSequence *kept, const Generation *generation)
{
	int			length = generation_length(generation);
	int			count = 0;

	while (count < kept->count && count < length &&
		   kept->ids[count] == generation_token(generation, count))
		count++;
	return count;
}

/* The kept sequence with the longest common beginning; NULL if there is none. */
static KeptSequence *
find_longest(PrefixCache *cache, const Generation *generation, int *longest)
{
	KeptSequence *best = NULL;

	*longest = 0;
	for (int i = 0; i < PLACES; i++)
	{
		int			common;

		if (!same_asker(&cache->places[i], generation))
			continue;
		common = common_tokens(&cache->places[i], generation);
		if (common > *longest)
		{
			*longest = common;
			best = &cache->places[i];
		}
	}
	return best;
}

int
prefix_cache_adopt(PrefixCache *cache, const Generation *generation)
{
	int			common;
	KeptSequence *kept = find_longest(cache, generation, &common);
	int			needed = generation->scoring == NULL || generation->scoring->after_prompt ? 1 : 0;

	if (generation->owner == 0 || kept == NULL)
		return 0;
	/* the last token is computed in any case where its logits are wanted */
	if (common > generation->prompt_count - needed)
		common = generation->prompt_count - needed;
	kept->last_use = ++cache->turn;
	return sequence_adopt(cache->model, generation->sequence, kept->sequence, common);
}

static KeptSequence *
least_recently_used(PrefixCache *cache)
{
	KeptSequence *oldest = NULL;

	for (int i = 0; i < PLACES; i++)
	{
		KeptSequence *kept = &cache->places[i];

		if (kept->sequence != NULL && (oldest == NULL || kept->last_use < oldest->last_use))
			oldest = kept;
	}
	return oldest;
}

bool
prefix_cache_make_room(PrefixCache *cache, int pages)
{
	while (model_free_pages(cache->model) < pages)
	{
		KeptSequence *oldest = least_recently_used(cache);

		if (oldest == NULL)
			return false;
		drop(cache, oldest);
	}
	return true;
}

/*
 * A free place, made if need be. A kept sequence that the new one begins with is not needed any
 * more.
 */
static KeptSequence *
find_place(PrefixCache *cache, const Generation *generation)
{
	int			common;
	KeptSequence *kept = find_longest(cache, generation, &common);

	if (kept != NULL && common == kept->count)
	{
		drop(cache, kept);
		return kept;
	}
	for (int i = 0; i < PLACES; i++)
		if (cache->places[i].sequence == NULL)
			return &cache->places[i];
	kept = least_recently_used(cache);
	drop(cache, kept);
	return kept;
}

void
prefix_cache_keep(PrefixCache *cache, Generation *generation)
{
	Sequence   *sequence = generation->sequence;
	int			count = sequence == NULL ? 0 : sequence_length(sequence);
	int32_t    *ids = NULL;
	KeptSequence *kept;

	generation->sequence = NULL;
	if (generation->owner != 0 && count > 0 && count <= generation_length(generation) &&
		(generation->pictures == NULL || generation->pictures->has_key))
		ids = malloc((size_t) count * sizeof(int32_t));
	if (ids == NULL)
	{
		sequence_close(cache->model, sequence);
		return;
	}
	for (int i = 0; i < count; i++)
		ids[i] = generation_token(generation, i);
	sequence_truncate(cache->model, sequence, count);
	kept = find_place(cache, generation);
	kept->sequence = sequence;
	kept->owner = generation->owner;
	kept->has_picture = generation->pictures != NULL;
	if (kept->has_picture)
		memcpy(kept->picture, generation->pictures->key, DIGEST_SIZE);
	adapter_identity(generation->adapter, kept->adapter);
	kept->ids = ids;
	kept->count = count;
	kept->last_use = ++cache->turn;
}
