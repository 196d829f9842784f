/*
 * pixel_cache.h - pictures as the model sees them, kept for the next question about them.
 *
 * Reading a file takes longer than answering about it where the model is small. Found is what the
 * same role of the same database sent before, byte by byte: the key is a digest of who asks, how
 * the file is to be read, and of the file. All threads may use it.
 */
#ifndef MMGPT_PIXEL_CACHE_H
#define MMGPT_PIXEL_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "digest.h"
#include "status.h"

typedef struct PixelCache PixelCache;

/* Places for pictures of so many bytes within bytes in all; none is no failure. */
extern PixelCache *pixel_cache_create(size_t bytes, size_t picture_bytes, Arena *arena,
									  Status *status);

/* Copy a picture, and the key of what is made of it, out of the cache. False: it is not there. */
extern bool pixel_cache_find(PixelCache *cache, const uint8_t key[DIGEST_SIZE], uint8_t *pixels,
							 uint8_t picture_key[DIGEST_SIZE]);

/* Keep a copy in the place of the one that was not used for the longest time. */
extern void pixel_cache_keep(PixelCache *cache, const uint8_t key[DIGEST_SIZE],
							 const uint8_t *pixels, const uint8_t picture_key[DIGEST_SIZE]);

#endif
