/*
 * pixel_cache.c - a short list under a mutex; see pixel_cache.h.
 */
#include "pixel_cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Pictures at most. */
#define PLACES 64

typedef struct KeptPixels
{
	uint8_t		key[DIGEST_SIZE];
	uint8_t		picture_key[DIGEST_SIZE];
	uint8_t    *pixels;			/* malloc'ed; NULL: the place is free */
	uint64_t	last_use;
} KeptPixels;

struct PixelCache
{
	pthread_mutex_t mutex;
	size_t		picture_bytes;
	int			count;			/* of places */
	uint64_t	turn;
	KeptPixels	places[PLACES];
};

PixelCache *
pixel_cache_create(size_t bytes, size_t picture_bytes, Arena *arena, Status *status)
{
	PixelCache *cache = arena_take(arena, sizeof(PixelCache));
	size_t		fit = bytes / picture_bytes;

	if (cache == NULL)
	{
		status_out_of_memory(status, sizeof(PixelCache));
		return NULL;
	}
	memset(cache, 0, sizeof(*cache));
	pthread_mutex_init(&cache->mutex, NULL);
	cache->picture_bytes = picture_bytes;
	cache->count = fit < PLACES ? (int) fit : PLACES;
	return cache;
}

static KeptPixels *
find(PixelCache *cache, const uint8_t key[DIGEST_SIZE])
{
	for (int i = 0; i < cache->count; i++)
		if (cache->places[i].pixels != NULL &&
			memcmp(cache->places[i].key, key, DIGEST_SIZE) == 0)
			return &cache->places[i];
	return NULL;
}

bool
pixel_cache_find(PixelCache *cache, const uint8_t key[DIGEST_SIZE], uint8_t *pixels,
				 uint8_t picture_key[DIGEST_SIZE])
{
	KeptPixels *kept;

	pthread_mutex_lock(&cache->mutex);
	kept = find(cache, key);
	if (kept != NULL)
	{
		memcpy(pixels, kept->pixels, cache->picture_bytes);
		memcpy(picture_key, kept->picture_key, DIGEST_SIZE);
		kept->last_use = ++cache->turn;
	}
	pthread_mutex_unlock(&cache->mutex);
	return kept != NULL;
}

/* A free place, or the one that was not used for the longest time; NULL: there is no place. */
static KeptPixels *
oldest_place(PixelCache *cache)
{
	KeptPixels *oldest = NULL;

	for (int i = 0; i < cache->count; i++)
	{
		KeptPixels *place = &cache->places[i];

		if (place->pixels == NULL)
			return place;
		if (oldest == NULL || place->last_use < oldest->last_use)
			oldest = place;
	}
	return oldest;
}

void
pixel_cache_keep(PixelCache *cache, const uint8_t key[DIGEST_SIZE], const uint8_t *pixels,
				 const uint8_t picture_key[DIGEST_SIZE])
{
	KeptPixels *place;

	pthread_mutex_lock(&cache->mutex);
	place = find(cache, key);	/* two requests may have read the same file at once */
	if (place == NULL)
		place = oldest_place(cache);
	if (place != NULL && place->pixels == NULL)
		place->pixels = malloc(cache->picture_bytes);
	if (place != NULL && place->pixels != NULL)
	{
		memcpy(place->key, key, DIGEST_SIZE);
		memcpy(place->picture_key, picture_key, DIGEST_SIZE);
		memcpy(place->pixels, pixels, cache->picture_bytes);
		place->last_use = ++cache->turn;
	}
	pthread_mutex_unlock(&cache->mutex);
}
