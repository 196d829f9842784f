/*
 * media_cache.h - encoded pictures that may be asked about again.
 *
 * A second question on a picture encodes nothing: the keys and values of its latents are
 * still there. Entries are found by a digest that covers who asked (database and role),
 * the pixels, and the adapter, so nobody learns by timing what another role asked about. An
 * entry in use is never evicted; the others go least recently used first when their
 * room is needed. Belongs to the scheduler's thread.
 */
#ifndef MMGPT_MEDIA_CACHE_H
#define MMGPT_MEDIA_CACHE_H

#include "generation.h"

typedef struct MediaCache MediaCache;

/* A cache for the pictures of a model. */
extern MediaCache *media_cache_create(Model *model, Status *status);
extern void media_cache_free(MediaCache *cache);

/* Give the set its encoded pictures, if they are there. */
extern bool media_cache_find(MediaCache *cache, PictureSet *set);

/* Keep the encoded pictures of a set with a key for others, if there is a place. */
extern void media_cache_keep(MediaCache *cache, PictureSet *set);

/* Evict until there is room for this many pictures more; false if there can't be. */
extern bool media_cache_make_room(MediaCache *cache, int pictures);

/* The set's request is over: its pictures stay in the cache, or are freed if they are not there. */
extern void media_cache_release(MediaCache *cache, PictureSet *set);

#endif
