/*
 * prefix_cache.h - finished sequences whose keys and values the next question may begin with.
 *
 * Questions on one picture begin with the same tokens, and a dialogue's next round with all of
 * the last one. A sequence that finished stays here, and a new one of the same asker, with the
 * same picture and adapter, takes over the pages of what both have in common and computes
 * only the rest. Keys and values depend on the tokens before them alone, so the bits are those
 * of a fresh start. The least recently used sequences go first when pages or places are
 * needed. Belongs to the scheduler's thread.
 */
#ifndef MMGPT_PREFIX_CACHE_H
#define MMGPT_PREFIX_CACHE_H

#include "generation.h"

typedef struct PrefixCache PrefixCache;

extern PrefixCache *prefix_cache_create(Model *model, Status *status);
extern void prefix_cache_free(PrefixCache *cache);

/*
 * Let the new, empty sequence of a generation begin with what a kept one has in common with
 * its prompt. Returns the tokens that need not be computed, 0 if none.
 */
extern int	prefix_cache_adopt(PrefixCache *cache, const Generation *generation);

/* Keep the sequence of a finished generation, or close it where nobody could use it. */
extern void prefix_cache_keep(PrefixCache *cache, Generation *generation);

/* Close kept sequences until this many pages are free; false if there can't be as many. */
extern bool prefix_cache_make_room(PrefixCache *cache, int pages);

#endif
