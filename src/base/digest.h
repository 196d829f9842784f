/*
 * digest.h - SHA-256 (FIPS 180-4), which keys caches and names models.
 */
#ifndef MMGPT_DIGEST_H
#define MMGPT_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#define DIGEST_SIZE 32
#define DIGEST_HEX_SIZE 65		/* 64 digits and a NUL */

typedef struct DigestState
{
	uint32_t	hash[8];
	uint64_t	length;			/* bytes so far */
	uint8_t		block[64];
	size_t		filled;			/* bytes waiting in block */
} DigestState;

/* Begin, add data in any number of parts, and end with the 32 bytes. */
extern void digest_begin(DigestState *state);
extern void digest_add(DigestState *state, const void *data, size_t size);
extern void digest_end(DigestState *state, uint8_t result[DIGEST_SIZE]);

/* Write a digest as 64 lower-case hexadecimal digits and a NUL. */
extern void digest_to_hex(const uint8_t digest[DIGEST_SIZE], char hex[DIGEST_HEX_SIZE]);

#endif
