/*
 * kv_cache.h - which pages of a KvPool are free, and how many lists hold each of the others.
 *
 * Pages are numbers; the keys and values in them are the backend's. A page list is
 * owned by one sequence or one media. A full page may stand in several lists: sequences
 * with the same beginning share it. Only a page of a single list may be written to.
 */
#ifndef MMGPT_KV_CACHE_H
#define MMGPT_KV_CACHE_H

#include "arena.h"
#include "backend.h"

typedef struct PageAllocator
{
	int32_t    *free;			/* stack of free pages */
	int32_t    *holders;		/* [total] lists that hold a page */
	int			free_count;
	int			total;
} PageAllocator;

typedef struct PageList
{
	int32_t    *pages;			/* [capacity] in memory of the owner */
	int			count;
	int			capacity;
} PageList;

/* All pages free, the lowest on top. */
extern bool pages_begin(PageAllocator *allocator, int total, Arena *arena, Status *status);

/* Pages for this many keys. */
extern int	pages_for_keys(int keys);

/* Grow the list to count pages; false leaves both as they were. */
extern bool pages_take(PageAllocator *allocator, PageList *list, int count);

/* Make the empty list `to` hold the first count pages of `from` too. */
extern void pages_share(PageAllocator *allocator, PageList *to, const PageList *from, int count);

/* Shrink the list to count pages; those that no other list holds are free again. */
extern void pages_give_back(PageAllocator *allocator, PageList *list, int count);

/* The slot of key j: page * KV_PAGE_KEYS + place, as kv_write takes it. */
static inline int32_t
page_list_slot(const PageList *list, int key)
{
	return list->pages[key / KV_PAGE_KEYS] * KV_PAGE_KEYS + key % KV_PAGE_KEYS;
}

#endif
