/*
 * quantize.h - weights in 8 and 4 bits: what a block of a matrix is, and how it is made.
 *
 * A row of a matrix (the weights of one output) is cut into blocks of QUANTIZED_BLOCK inputs. A
 * block is one scale, a bf16, and a code for each input; the weight is scale * code. The codes of
 * TYPE_Q8 are -127 .. 127 (a file may hold -128), those of TYPE_Q4 -8 .. 7, kept as 0 .. 15. One
 * plain implementation serves every instruction set, so that a matrix quantised while it is loaded
 * is the one that `quantize` writes.
 */
#ifndef MMGPT_QUANTIZE_H
#define MMGPT_QUANTIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor.h"

/* Inputs that share a scale; also of the rows of x that such a matrix is multiplied with. */
#define QUANTIZED_BLOCK 32

/* Bits of 2^-100: a block of x whose numbers are all smaller is zero. */
#define QUANTIZED_SMALLEST 0x0D800000

static inline bool
data_type_is_quantized(DataType type)
{
	return type == TYPE_Q8 || type == TYPE_Q4;
}

/* Blocks of a row of so many inputs. */
static inline int
quantized_blocks(int inputs)
{
	return (inputs - 1) / QUANTIZED_BLOCK + 1;
}

/*
 * Bytes of a row's codes as a file has them: of TYPE_Q8 an int8 for each input, of TYPE_Q4 a byte
 * for two, the first in the low half.
 */
static inline int
quantized_row_bytes(DataType type, int inputs)
{
	return type == TYPE_Q4 ? (inputs - 1) / 2 + 1 : inputs;
}

/*
 * Quantise values [count], that begin with a block, into codes as in a file and scales, one for
 * each block. False when a value is not finite.
 */
extern bool quantize_values(DataType type, int count, const float *values, uint8_t *codes,
							uint16_t *scales);

/* values [count] = what codes and scales stand for; they begin with a block. */
extern void dequantize_values(DataType type, int count, const uint8_t *codes,
							  const uint16_t *scales, float *values);

#endif
