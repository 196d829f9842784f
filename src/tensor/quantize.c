/*
 * quantize.c - see quantize.h.
 *
 * 8 bits: the scale is the largest magnitude / 127, rounded up to a bf16, so that no code is cut.
 *
 * 4 bits: sixteen steps are few enough that it pays to look for the scale. For some divisors of
 * the largest value the codes are worked out, and the scale that fits these codes best, by least
 * squares, is sum(w q) / sum(q q), with which the squared error falls by sum(w q)^2 / sum(q q):
 * the divisor with the largest such gain wins. The largest value may take the code -8, so a scale
 * can be negative.
 */
#include "quantize.h"

#include <math.h>

/* Four lanes of GCC's own vectors; the order of sums is theirs wherever this runs. */
typedef float Lanes __attribute__((vector_size(16)));
typedef int32_t IntLanes __attribute__((vector_size(16)));

#define LANE_COUNT 4
#define BLOCK_LANES (QUANTIZED_BLOCK / LANE_COUNT)

/* Below this magnitude a whole block is zero, which keeps scales away from subnormal numbers. */
#define SMALLEST_BLOCK 0x1p-100f
/* Added to a number below 2^22 it leaves the number rounded, to nearest even, in the low bits. */
#define ROUNDING 12582912.0f

#define Q8_LARGEST 127.0f
#define Q4_LOWEST (-8.0f)
#define Q4_HIGHEST 7.0f
/* Divisors of the largest value that are tried for 4 bits: 6.5, 6.7, .. 9.1. */
#define Q4_FIRST_DIVISOR 6.5f
#define Q4_DIVISOR_STEP 0.2f
#define Q4_DIVISORS 14

static inline Lanes
set(float value)
{
	return value - (Lanes) {0};
}

static inline float
sum_lanes(Lanes v)
{
	return (v[0] + v[2]) + (v[1] + v[3]);
}

static inline Lanes
select_lanes(IntLanes mask, Lanes a, Lanes b)
{
	return (Lanes) ((mask & (IntLanes) a) | (~mask & (IntLanes) b));
}

/* Rounded to nearest even, within low and high. */
static inline Lanes
round_within(Lanes v, float low, float high)
{
	v = select_lanes(v < set(low), set(low), v);
	v = select_lanes(v > set(high), set(high), v);
	return (v + set(ROUNDING)) - set(ROUNDING);
}

/* The value of largest magnitude; NaN when one is not finite. */
static float
largest_value(const float *values)
{
	float		largest = 0;

	for (int i = 0; i < QUANTIZED_BLOCK; i++)
	{
		if (!isfinite(values[i]))
			return NAN;
		if (fabsf(values[i]) > fabsf(largest))
			largest = values[i];
	}
	return largest;
}

static inline float
scale_value(uint16_t scale)
{
	uint32_t	bits = (uint32_t) scale << 16;
	float		value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* The smallest bf16 that is not below a positive value. */
static uint16_t
round_up(float value)
{
	uint32_t	bits;

	memcpy(&bits, &value, sizeof(bits));
	return (uint16_t) ((bits + 0xFFFF) >> 16);
}

/* The scale of 4-bit codes that leaves the least squared error, of those tried. */
static float
find_scale(const float *values, float largest)
{
	float		best_gain = -1;
	float		best = 0;

	for (int i = 0; i < Q4_DIVISORS; i++)
	{
		float		inverse = -(Q4_FIRST_DIVISOR + (float) i * Q4_DIVISOR_STEP) / largest;
		Lanes		product = {0};
		Lanes		square = {0};
		float		products;
		float		squares;

		for (int v = 0; v < BLOCK_LANES; v++)
		{
			Lanes		w;
			Lanes		q;

			memcpy(&w, values + v * LANE_COUNT, sizeof(w));
			q = round_within(w * set(inverse), Q4_LOWEST, Q4_HIGHEST);
			product += w * q;
			square += q * q;
		}
		products = sum_lanes(product);
		squares = sum_lanes(square);
		if (squares > 0 && products / squares * products > best_gain)
		{
			best_gain = products / squares * products;
			best = products / squares;
		}
	}
	return best;
}

/* One block into codes that are integers; false when a value is not finite. */
static bool
quantize_block(DataType type, const float *values, int32_t codes[QUANTIZED_BLOCK],
			   uint16_t *scale)
{
	float		largest = largest_value(values);
	float		low = type == TYPE_Q8 ? -Q8_LARGEST : Q4_LOWEST;
	float		high = type == TYPE_Q8 ? Q8_LARGEST : Q4_HIGHEST;
	float		step;

	*scale = 0;
	memset(codes, 0, QUANTIZED_BLOCK * sizeof(codes[0]));
	if (isnan(largest))
		return false;
	if (fabsf(largest) < SMALLEST_BLOCK)
		return true;
	*scale = type == TYPE_Q8 ? round_up(fabsf(largest) / Q8_LARGEST)
		: bf16_from_f32(find_scale(values, largest));
	step = scale_value(*scale);
	for (int v = 0; v < BLOCK_LANES; v++)
	{
		Lanes		w;
		IntLanes	q;

		memcpy(&w, values + v * LANE_COUNT, sizeof(w));
		q = __builtin_convertvector(round_within(w / set(step), low, high), IntLanes);
		memcpy(codes + v * LANE_COUNT, &q, sizeof(q));
	}
	return true;
}

bool
quantize_values(DataType type, int count, const float *values, uint8_t *codes, uint16_t *scales)
{
	bool		finite = true;

	for (int k = 0; k < count; k += QUANTIZED_BLOCK)
	{
		int			length = count - k < QUANTIZED_BLOCK ? count - k : QUANTIZED_BLOCK;
		float		block[QUANTIZED_BLOCK] = {0};
		int32_t		q[QUANTIZED_BLOCK];

		memcpy(block, values + k, (size_t) length * sizeof(float));
		finite &= quantize_block(type, block, q, &scales[k / QUANTIZED_BLOCK]);
		if (type == TYPE_Q8)
			for (int i = 0; i < length; i++)
				codes[k + i] = (uint8_t) q[i];
		else
			for (int i = 0; i < length; i += 2)
				codes[(k + i) / 2] = (uint8_t) ((q[i] + 8) | (q[i + 1] + 8) << 4);
	}
	return finite;
}

void
dequantize_values(DataType type, int count, const uint8_t *codes, const uint16_t *scales,
				  float *values)
{
	for (int i = 0; i < count; i++)
	{
		int			code = type == TYPE_Q8 ? (int8_t) codes[i]
			: (codes[i / 2] >> i % 2 * 4 & 15) - 8;

		values[i] = (float) code * scale_value(scales[i / QUANTIZED_BLOCK]);
	}
}
