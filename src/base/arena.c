/*
 * arena.c - a chain of blocks, newest first; see arena.h.
 */
#include "arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_ALIGNMENT ((size_t) 64)
#define ARENA_BLOCK_SIZE ((size_t) 16 * 1024)

typedef struct ArenaBlock
{
	struct ArenaBlock *next;
	size_t		size;			/* bytes of the whole block, header included */
	size_t		used;			/* bytes from the start of the block */
} ArenaBlock;

struct Arena
{
	ArenaBlock *blocks;			/* newest first; the last of the chain is the first made */
	size_t		size;
};

static size_t
align_up(size_t size)
{
	return (size + ARENA_ALIGNMENT - 1) & ~(ARENA_ALIGNMENT - 1);
}

/* Put a block with room for size bytes in front of the chain. */
static ArenaBlock *
add_block(Arena *arena, size_t size)
{
	size_t		header = align_up(sizeof(ArenaBlock));
	size_t		total = ARENA_BLOCK_SIZE;
	ArenaBlock *block;

	if (size > SIZE_MAX / 2 - header)
		return NULL;
	if (total < size + header)
		total = align_up(size + header);
	block = aligned_alloc(ARENA_ALIGNMENT, total);
	if (block == NULL)
		return NULL;
	block->size = total;
	block->used = header;
	block->next = arena->blocks;
	arena->blocks = block;
	arena->size += total;
	return block;
}

Arena *
arena_create(void)
{
	return calloc(1, sizeof(Arena));
}

void *
arena_take(Arena *arena, size_t size)
{
	ArenaBlock *block = arena->blocks;
	size_t		need;
	void	   *result;

	if (size > SIZE_MAX / 2)
		return NULL;
	need = align_up(size);
	if (block == NULL || block->size - block->used < need)
	{
		block = add_block(arena, need);
		if (block == NULL)
			return NULL;
	}
	result = (char *) block + block->used;
	block->used += need;
	memset(result, 0, size);
	return result;
}

void *
arena_take_array(Arena *arena, size_t count, size_t size)
{
	if (size != 0 && count > SIZE_MAX / size)
		return NULL;
	return arena_take(arena, count * size);
}

char *
arena_copy_text(Arena *arena, const char *text, size_t length)
{
	char	   *copy;

	if (length == SIZE_MAX)
		return NULL;
	copy = arena_take(arena, length + 1);
	if (copy != NULL && length > 0)
		memcpy(copy, text, length);
	return copy;
}

size_t
arena_size(const Arena *arena)
{
	return arena->size;
}

void
arena_reset(Arena *arena)
{
	while (arena->blocks != NULL && arena->blocks->next != NULL)
	{
		ArenaBlock *block = arena->blocks;

		arena->blocks = block->next;
		arena->size -= block->size;
		free(block);
	}
	if (arena->blocks != NULL)
		arena->blocks->used = align_up(sizeof(ArenaBlock));
}

void
arena_free(Arena *arena)
{
	if (arena == NULL)
		return;
	while (arena->blocks != NULL)
	{
		ArenaBlock *block = arena->blocks;

		arena->blocks = block->next;
		free(block);
	}
	free(arena);
}
