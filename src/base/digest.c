/*
 * digest.c - SHA-256 as FIPS 180-4 section 6.2 defines it; see digest.h.
 */
#include "digest.h"

#include <string.h>

/* First 32 bits of the fractional parts of the cube roots of the first 64 primes (4.2.2). */
static const uint32_t round_constant[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2
};

/* First 32 bits of the fractional parts of the square roots of the first 8 primes (5.3.3). */
static const uint32_t initial_hash[8] = {
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19
};

static uint32_t
rotate_right(uint32_t x, int bits)
{
	return (x >> bits) | (x << (32 - bits));
}

/* Take one block of 64 bytes into the hash (6.2.2). */
static void
take_block(DigestState *state, const uint8_t *block)
{
	uint32_t	w[64];
	uint32_t	v[8];

	for (int t = 0; t < 16; t++)
		w[t] = (uint32_t) block[4 * t] << 24 | (uint32_t) block[4 * t + 1] << 16 |
			(uint32_t) block[4 * t + 2] << 8 | (uint32_t) block[4 * t + 3];
	for (int t = 16; t < 64; t++)
	{
		uint32_t	s0 = rotate_right(w[t - 15], 7) ^ rotate_right(w[t - 15], 18) ^
						 (w[t - 15] >> 3);
		uint32_t	s1 = rotate_right(w[t - 2], 17) ^ rotate_right(w[t - 2], 19) ^ (w[t - 2] >> 10);

		w[t] = w[t - 16] + s0 + w[t - 7] + s1;
	}
	memcpy(v, state->hash, sizeof(v));
	for (int t = 0; t < 64; t++)
	{
		uint32_t	s1 = rotate_right(v[4], 6) ^ rotate_right(v[4], 11) ^ rotate_right(v[4], 25);
		uint32_t	choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
		uint32_t	t1 = v[7] + s1 + choice + round_constant[t] + w[t];
		uint32_t	s0 = rotate_right(v[0], 2) ^ rotate_right(v[0], 13) ^ rotate_right(v[0], 22);
		uint32_t	majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);

		memmove(v + 1, v, 7 * sizeof(uint32_t));
		v[4] += t1;
		v[0] = t1 + s0 + majority;
	}
	for (int i = 0; i < 8; i++)
		state->hash[i] += v[i];
}

void
digest_begin(DigestState *state)
{
	memcpy(state->hash, initial_hash, sizeof(initial_hash));
	state->length = 0;
	state->filled = 0;
}

void
digest_add(DigestState *state, const void *data, size_t size)
{
	const uint8_t *bytes = data;

	state->length += size;
	while (size > 0)
	{
		size_t		part = sizeof(state->block) - state->filled;

		if (state->filled == 0 && size >= sizeof(state->block))
		{
			take_block(state, bytes);
			bytes += sizeof(state->block);
			size -= sizeof(state->block);
			continue;
		}
		if (part > size)
			part = size;
		memcpy(state->block + state->filled, bytes, part);
		state->filled += part;
		bytes += part;
		size -= part;
		if (state->filled == sizeof(state->block))
		{
			take_block(state, state->block);
			state->filled = 0;
		}
	}
}

void
digest_end(DigestState *state, uint8_t result[DIGEST_SIZE])
{
	uint64_t	bits = state->length * 8;
	uint8_t		padding[72] = {0x80};
	size_t		zeros = (state->filled < 56 ? 56 : 120) - state->filled;

	for (int i = 0; i < 8; i++)
		padding[zeros + (size_t) i] = (uint8_t) (bits >> (56 - 8 * i));
	digest_add(state, padding, zeros + 8);
	for (int i = 0; i < 8; i++)
		for (int j = 0; j < 4; j++)
			result[4 * i + j] = (uint8_t) (state->hash[i] >> (24 - 8 * j));
}

void
digest_to_hex(const uint8_t digest[DIGEST_SIZE], char hex[DIGEST_HEX_SIZE])
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < DIGEST_SIZE; i++)
	{
		hex[2 * i] = digits[digest[i] >> 4];
		hex[2 * i + 1] = digits[digest[i] & 15];
	}
	hex[2 * DIGEST_SIZE] = '\0';
}
