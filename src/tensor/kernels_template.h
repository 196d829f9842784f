/*
 * kernels_template.h - the inner loops, written once over a vector type.
 *
 * Included by each kernels_*.c after it defined
 *
 *	LANES						floats in a vector
 *	Vector						the GCC vector type of LANES floats
 *	IntVector					the same of 32-bit integers
 *	v_fma(a, b, c)				a * b + c
 *	v_max(a, b), v_min(a, b)
 *	v_largest(a)				largest lane
 *	PANEL_VECTORS				vectors across a panel of outputs
 *	TILE_ROWS					rows of a product's register tile
 *	QUANTIZED_ROWS				the same of a product with quantised weights
 *	QUANTIZED_WIDE_ROWS			up to so many of them multiply a whole panel at once
 *	SCORE_ROWS, VALUE_ROWS		rows of the register tiles of attention
 *	KERNELS						name of the table to define
 *	KERNELS_NAME				its name for users
 *
 * and, where the machine multiplies bf16 itself, HAS_BF16 with
 *
 *	Rounded						how an element rounded to bf16 is kept: uint16_t
 *	v_store_rounded(p, a)		LANES elements, rounded
 *	v_store_bf16(p, a)			the same as bf16
 *	v_dot_pair(sum, x, w)		a step of a bf16 product, see kernels_products.h
 *
 * and, where it multiplies bytes, HAS_DOT_BYTES with
 *
 *	v_dot_bytes(sum, w, x)		see kernels_quantized.h
 *
 * and, where it does so only in sums of 16 bits, HAS_DOT_NIBBLES with
 *
 *	v_dot_nibbles(sums, w, x)	sums of 16 bits + the products of two bytes each; w below 16
 *	v_add_pairs(sums)			neighbouring sums of 16 bits added to words
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "tensor.h"
#include "backend.h"

#define PANEL (PANEL_VECTORS * LANES)
#define UNROLL _Pragma("GCC unroll 32")

/* Keys of one page, in vectors. */
#define PAGE_VECTORS (KV_PAGE_KEYS / LANES)

typedef Vector UnalignedVector __attribute__((aligned(4), may_alias));

static inline Vector
v_load(const float *p)
{
	return *(const UnalignedVector *) p;
}

static inline void
v_store(float *p, Vector v)
{
	*(UnalignedVector *) p = v;
}

static inline Vector
v_set(float value)
{
	return value - (Vector) {0};
}

/* The first count elements at p, and fill in the other lanes. */
static inline Vector
v_load_part(const float *p, int count, float fill)
{
	float		buffer[LANES];

	for (int i = 0; i < LANES; i++)
		buffer[i] = i < count ? p[i] : fill;
	return v_load(buffer);
}

static inline void
v_store_part(float *p, Vector v, int count)
{
	float		buffer[LANES];

	v_store(buffer, v);
	memcpy(p, buffer, (size_t) count * sizeof(float));
}

/* Lanes of a where the mask is all ones, lanes of b elsewhere. */
static inline Vector
v_select(IntVector mask, Vector a, Vector b)
{
	return (Vector) ((mask & (IntVector) a) | (~mask & (IntVector) b));
}

/* Sum of the lanes, halves upon halves. */
static inline float
v_sum(Vector v)
{
	float		lanes[LANES];

	v_store(lanes, v);
	for (int width = LANES / 2; width > 0; width /= 2)
		for (int i = 0; i < width; i++)
			lanes[i] += lanes[i + width];
	return lanes[0];
}

/* Halves of words that hold two bf16: the mask that keeps one, in place. */
#define PAIR_EVEN 0x0000FFFF
#define PAIR_ODD ((int) 0xFFFF0000)

#ifndef HAS_BF16
/* Without instructions for bf16, rounded elements are kept as f32. */
typedef float Rounded;
typedef uint16_t HalfVector __attribute__((vector_size(2 * LANES)));

/* Round to bf16, to nearest even; below 2^-126 to zero, as vcvtneps2bf16 does. NaN stays NaN. */
static inline Vector
v_round(Vector v)
{
	IntVector	magnitude = (IntVector) v & 0x7FFFFFFF;
	IntVector	not_a_number = magnitude > 0x7F800000;
	IntVector	rounded = magnitude & ~not_a_number & (magnitude >= 0x00800000);

	rounded = (rounded + 0x7FFF + ((rounded >> 16) & 1)) & PAIR_ODD;
	rounded = rounded | ((IntVector) v & INT32_MIN);
	return v_select(not_a_number, (Vector) ((IntVector) v | 0x00400000), (Vector) rounded);
}

static inline void
v_store_rounded(Rounded *p, Vector v)
{
	v_store(p, v_round(v));
}

static inline void
v_store_bf16(uint16_t *p, Vector v)
{
	HalfVector	halves = __builtin_convertvector((IntVector) v_round(v) >> 16, HalfVector);

	memcpy(p, &halves, sizeof(halves));
}

static inline Vector
v_dot_pair(Vector sum, const Rounded *x, IntVector weights)
{
	sum = v_fma(v_set(x[1]), (Vector) (weights & PAIR_ODD), sum);
	return v_fma(v_set(x[0]), (Vector) (weights << 16), sum);
}
#endif

/*
 * e^x to about one unit in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, the
 * Taylor series of e^r to the 7th power (remainder below 6e-9), and n into the
 * exponent. Below -87.3 the result is 0, above 88 it is e^88.
 */
static inline Vector
v_exp(Vector x)
{
	const Vector ln2_high = v_set(0.693145751953125f);	/* 20 bits: n times it is exact */
	const Vector ln2_low = v_set(1.42860682030941723e-06f);
	/* 1.5 * 2^23: adding it rounds to an integer */
	const Vector round = v_set(12582912.0f);
	IntVector	tiny = x < v_set(-87.3f);
	Vector		n;
	Vector		r;
	Vector		p;
	IntVector	exponent;

	x = v_min(v_max(x, v_set(-87.3f)), v_set(88.0f));
	n = v_fma(x, v_set(1.44269504088896341f), round);
	exponent = ((IntVector) n - (IntVector) round + 127) << 23;
	n = n - round;
	r = v_fma(-n, ln2_high, x);
	r = v_fma(-n, ln2_low, r);
	p = v_set(1.0f / 5040);
	p = v_fma(p, r, v_set(1.0f / 720));
	p = v_fma(p, r, v_set(1.0f / 120));
	p = v_fma(p, r, v_set(1.0f / 24));
	p = v_fma(p, r, v_set(1.0f / 6));
	p = v_fma(p, r, v_set(0.5f));
	p = v_fma(p, r, v_set(1.0f));
	p = v_fma(p, r, v_set(1.0f));
	return v_select(tiny, v_set(0.0f), p * (Vector) exponent);
}

static inline Vector
v_sigmoid(Vector x)
{
	return v_set(1.0f) / (v_set(1.0f) + v_exp(-x));
}

/* x * sigmoid(1.702 x), the activation of CLIP's MLP. */
static inline Vector
v_quick_gelu(Vector x)
{
	return x * v_sigmoid(v_set(1.702f) * x);
}

/*
 * Phi(x) = 1/2 erfc(-x / sqrt 2), with erfc by formula 7.1.26 of Abramowitz and
 * Stegun, Handbook of Mathematical Functions (error below 1.5e-7).
 */
static inline Vector
v_normal(Vector x)
{
	Vector		z = v_max(x, -x) * v_set(0.707106781186547524f);
	Vector		t = v_set(1.0f) / v_fma(v_set(0.3275911f), z, v_set(1.0f));
	Vector		p = v_set(1.061405429f);
	Vector		half_tail;

	p = v_fma(p, t, v_set(-1.453152027f));
	p = v_fma(p, t, v_set(1.421413741f));
	p = v_fma(p, t, v_set(-0.284496736f));
	p = v_fma(p, t, v_set(0.254829592f));
	half_tail = v_set(0.5f) * p * t * v_exp(-z * z);
	return v_select(x < v_set(0.0f), half_tail, v_set(1.0f) - half_tail);
}

/* x * Phi(x), the exact GELU. */
static inline Vector
v_gelu(Vector x)
{
	return x * v_normal(x);
}

/* ---- rows ---- */

/* Sum of (x - shift)^power over a row, power 1 or 2; element i goes to lane i mod LANES. */
static inline float
sum_row(int columns, const float *x, float shift, int power)
{
	Vector		sum = v_set(0.0f);
	int			i = 0;

	for (; i + LANES <= columns; i += LANES)
	{
		Vector		v = v_load(x + i) - v_set(shift);

		sum = power == 2 ? v_fma(v, v, sum) : sum + v;
	}
	if (i < columns)
	{
		Vector		v = v_load_part(x + i, columns - i, shift) - v_set(shift);

		sum = power == 2 ? v_fma(v, v, sum) : sum + v;
	}
	return v_sum(sum);
}

static void
layer_norm(int columns, const float *x, const float *weight, const float *bias, float epsilon,
		   float *y)
{
	float		mean = sum_row(columns, x, 0.0f, 1) / (float) columns;
	float		variance = sum_row(columns, x, mean, 2) / (float) columns;
	float		scale = 1.0f / sqrtf(variance + epsilon);
	int			i;

	for (i = 0; i + LANES <= columns; i += LANES)
		v_store(y + i, (v_load(x + i) - v_set(mean)) * v_set(scale) * v_load(weight + i) +
				v_load(bias + i));
	for (; i < columns; i++)
		y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

static void
rms_norm(int columns, const float *x, const float *weight, float epsilon, float *y)
{
	float		scale = 1.0f / sqrtf(sum_row(columns, x, 0.0f, 2) / (float) columns + epsilon);
	int			i;

	for (i = 0; i + LANES <= columns; i += LANES)
		v_store(y + i, v_load(x + i) * v_set(scale) * v_load(weight + i));
	for (; i < columns; i++)
		y[i] = x[i] * scale * weight[i];
}

static void
quick_gelu(int count, float *x)
{
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
		v_store(x + i, v_quick_gelu(v_load(x + i)));
	if (i < count)
		v_store_part(x + i, v_quick_gelu(v_load_part(x + i, count - i, 0.0f)), count - i);
}

static void
gelu(int count, float *x)
{
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
		v_store(x + i, v_gelu(v_load(x + i)));
	if (i < count)
		v_store_part(x + i, v_gelu(v_load_part(x + i, count - i, 0.0f)), count - i);
}

static void
swiglu(int count, const float *gate, const float *up, float *y)
{
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
	{
		Vector		g = v_load(gate + i);

		v_store(y + i, g * v_sigmoid(g) * v_load(up + i));
	}
	if (i < count)
	{
		Vector		g = v_load_part(gate + i, count - i, 0.0f);
		Vector		u = v_load_part(up + i, count - i, 0.0f);

		v_store_part(y + i, g * v_sigmoid(g) * u, count - i);
	}
}

static void
rotate(int half, float direction, const float *cosines, const float *sines, float *head)
{
	int			i = 0;

	for (; i + LANES <= half; i += LANES)
	{
		Vector		a = v_load(head + i);
		Vector		b = v_load(head + half + i);
		Vector		sine = v_set(direction) * v_load(sines + i);

		v_store(head + i, a * v_load(cosines + i) - b * sine);
		v_store(head + half + i, b * v_load(cosines + i) + a * sine);
	}
	for (; i < half; i++)
	{
		float		a = head[i];
		float		b = head[half + i];
		float		sine = direction * sines[i];

		head[i] = a * cosines[i] - b * sine;
		head[half + i] = b * cosines[i] + a * sine;
	}
}

#include "kernels_products.h"
#include "kernels_attention.h"
#include "kernels_backward_template.h"
#include "kernels_quantized.h"

const Kernels KERNELS = {
	.name = KERNELS_NAME,
	.panel = PANEL,
	.tile_rows = TILE_ROWS,
	.quantized_rows = QUANTIZED_ROWS,
	.rounded_size = sizeof(Rounded),
	.multiply_panel = multiply_panel,
	.round_row = round_row,
	.convert_bf16 = convert_bf16,
	.multiply_panel_bf16 = multiply_panel_bf16,
	.quantize_row = quantize_row,
	.multiply_panel_q8 = multiply_panel_q8,
	.multiply_panel_q4 = multiply_panel_q4,
	.finish_row = finish_row,
	.layer_norm = layer_norm,
	.rms_norm = rms_norm,
	.quick_gelu = quick_gelu,
	.gelu = gelu,
	.rotate = rotate,
	.swiglu = swiglu,
	.attend = attend,
	.attend_bf16 = attend_bf16,
	.multiply_strided = multiply_strided,
	.transpose = transpose,
	.transpose_pairs = transpose_pairs,
	.turn_quantized = turn_quantized,
	.layer_norm_backward = layer_norm_backward,
	.rms_norm_backward = rms_norm_backward,
	.gelu_backward = gelu_backward,
	.swiglu_backward = swiglu_backward,
	.softmax = softmax,
	.softmax_backward = softmax_backward,
	.cross_entropy = cross_entropy,
	.square_sum = square_sum,
	.adamw = adamw,
};
