/*
 * arena.h - memory that is freed all at once.
 *
 * Each request, file or load owns an arena; there are no frees of single
 * objects. An arena is used by one thread at a time.
 */
#ifndef MMGPT_ARENA_H
#define MMGPT_ARENA_H

#include <stddef.h>

typedef struct Arena Arena;

/* Make an empty arena; NULL when memory is out. */
extern Arena *arena_create(void);

/*
 * Take size bytes, zeroed and aligned to 64 bytes. NULL when memory is out; a
 * size of 0 gives a valid pointer.
 */
extern void *arena_take(Arena *arena, size_t size);

/*
 * Take count elements of size bytes each, zeroed; NULL when the product
 * overflows or memory is out.
 */
extern void *arena_take_array(Arena *arena, size_t count, size_t size);

/* Copy length bytes and add a NUL. NULL when memory is out. */
extern char *arena_copy_text(Arena *arena, const char *text, size_t length);

/* Bytes that the arena holds from the system. */
extern size_t arena_size(const Arena *arena);

/* Forget everything taken, keeping the first block for reuse. */
extern void arena_reset(Arena *arena);

/* Free the arena with everything taken from it. NULL is allowed. */
extern void arena_free(Arena *arena);

#endif
