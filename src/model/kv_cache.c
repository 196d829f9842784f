/*
 * kv_cache.c - a stack of free pages; see kv_cache.h.
 */
#include "kv_cache.h"

bool
pages_begin(PageAllocator *allocator, int total, Arena *arena, Status *status)
{
	allocator->free = arena_take_array(arena, (size_t) total, sizeof(int32_t));
	if (allocator->free == NULL)
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
		list->pages[list->count++] = allocator->free[--allocator->free_count];
	return true;
}

void
pages_give_back(PageAllocator *allocator, PageList *list, int count)
{
	while (list->count > count)
		allocator->free[allocator->free_count++] = list->pages[--list->count];
}
