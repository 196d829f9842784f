/*
 * media_cache.c - a short list, searched whole: a picture is worth milliseconds, a look at
 * an entry nanoseconds; see media_cache.h.
 */
#include "media_cache.h"

#include <stdlib.h>
#include <string.h>

typedef struct CachedMedia
{
	uint8_t		key[DIGEST_SIZE];
	uint8_t		adapter[DIGEST_SIZE];	/* its identity */
	Media	   *media;			/* NULL: the place is free */
	int			users;			/* requests that look at it now */
	uint64_t	last_use;		/* turn of the last release or find */
} CachedMedia;

struct MediaCache
{
	Model	   *model;
	CachedMedia *entries;
	int			count;
	uint64_t	turn;
};

MediaCache *
media_cache_create(Model *model, Status *status)
{
	MediaCache *cache = calloc(1, sizeof(MediaCache));
	ModelDescription description;

	model_describe(model, &description);
	if (cache != NULL)
	{
		cache->model = model;
		cache->count = description.media_pictures;
		cache->entries = calloc((size_t) cache->count + 1, sizeof(CachedMedia));
	}
	if (cache != NULL && cache->entries != NULL)
		return cache;
	free(cache);
	status_out_of_memory(status, (size_t) description.media_pictures * sizeof(CachedMedia));
	return NULL;
}

static void
evict(MediaCache *cache, CachedMedia *entry)
{
	media_release(cache->model, entry->media);
	entry->media = NULL;
}

void
media_cache_free(MediaCache *cache)
{
	if (cache == NULL)
		return;
	for (int i = 0; i < cache->count; i++)
		if (cache->entries[i].media != NULL)
			evict(cache, &cache->entries[i]);
	free(cache->entries);
	free(cache);
}

bool
media_cache_find(MediaCache *cache, PictureSet *set)
{
	uint8_t		adapter[DIGEST_SIZE];

	adapter_identity(set->adapter, adapter);
	for (int i = 0; set->has_key && i < cache->count; i++)
	{
		CachedMedia *entry = &cache->entries[i];

		if (entry->media == NULL || memcmp(entry->adapter, adapter, DIGEST_SIZE) != 0 ||
			memcmp(entry->key, set->key, DIGEST_SIZE) != 0)
			continue;
		entry->users++;
		entry->last_use = ++cache->turn;
		set->media = entry->media;
		set->place = i;
		return true;
	}
	return false;
}

/* The entry that was not used for the longest time; NULL when all are in use. */
static CachedMedia *
least_recently_used(MediaCache *cache)
{
	CachedMedia *oldest = NULL;

	for (int i = 0; i < cache->count; i++)
	{
		CachedMedia *entry = &cache->entries[i];

		if (entry->media != NULL && entry->users == 0 &&
			(oldest == NULL || entry->last_use < oldest->last_use))
			oldest = entry;
	}
	return oldest;
}

/* A free place, or the one of the entry evicted for it; NULL when all are in use. */
static CachedMedia *
find_place(MediaCache *cache)
{
	CachedMedia *oldest;

	for (int i = 0; i < cache->count; i++)
		if (cache->entries[i].media == NULL)
			return &cache->entries[i];
	oldest = least_recently_used(cache);
	if (oldest != NULL)
		evict(cache, oldest);
	return oldest;
}

void
media_cache_keep(MediaCache *cache, PictureSet *set)
{
	CachedMedia *entry = set->has_key ? find_place(cache) : NULL;

	set->place = -1;
	if (entry == NULL)
		return;
	memcpy(entry->key, set->key, DIGEST_SIZE);
	adapter_identity(set->adapter, entry->adapter);
	entry->media = set->media;
	entry->users = 1;
	entry->last_use = ++cache->turn;
	set->place = (int) (entry - cache->entries);
}

bool
media_cache_make_room(MediaCache *cache, int pictures)
{
	while (!media_has_room(cache->model, pictures))
	{
		CachedMedia *oldest = least_recently_used(cache);

		if (oldest == NULL)
			return false;
		evict(cache, oldest);
	}
	return true;
}

void
media_cache_release(MediaCache *cache, PictureSet *set)
{
	if (set->media == NULL)
		return;
	if (set->place >= 0)
	{
		cache->entries[set->place].users--;
		cache->entries[set->place].last_use = ++cache->turn;
	}
	else
		media_release(cache->model, set->media);
	set->media = NULL;
}
