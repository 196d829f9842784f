/*
 * kv_cache.c - a stack of free pages, and counts of holders; see kv_cache.h.
 */
#include "kv_cache.h"

bool
pages_begin(PageAllocator *allocator, int total, Arena *arena, Status *status)
{
	allocator->free = arena_take_array(arena, (size_t) total, sizeof(int32_t));
	allocator->holders = arena_take_array(arena, (size_t) total, sizeof(int32_t));
	if (allocator->free == NULL || allocator->holders == NULL)
		return status_out_of_memory(status, (size_t) total * sizeof(int32_t));
	allocator->total = total;
	allocator->free_count = total;
	for (int i = 0; i < total; i++)
		allocator->free[i] = total - 1 - i;
	return true;
}

int
pages_for_keys(int keys)
{
	return (keys + KV_PAGE_KEYS - 1) / KV_PAGE_KEYS;
}

bool
pages_take(PageAllocator *allocator, PageList *list, int count)
{
	int			more = count - list->count;

	if (more > allocator->free_count || count > list->capacity)
		return false;
	for (int i = 0; i < more; i++)
	{
		int32_t		page = allocator->free[--allocator->free_count];

		allocator->holders[page] = 1;
		list->pages[list->count++] = page;
	}
	return true;
}

void
pages_share(PageAllocator *allocator, PageList *to, const PageList *from, int count)
{
	for (int i = 0; i < count; i++)
	{
		to->pages[i] = from->pages[i];
		allocator->holders[from->pages[i]]++;
	}
	to->count = count;
}

void
pages_give_back(PageAllocator *allocator, PageList *list, int count)
{
	while (list->count > count)
	{
		int32_t		page = list->pages[--list->count];

		if (--allocator->holders[page] == 0)
			allocator->free[allocator->free_count++] = page;
	}
}
