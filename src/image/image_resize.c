/*
 * image_resize.c - Pillow's antialiased bicubic resize and the centre crop, bit for bit.
 *
 * Two passes, each rounded to 8 bits, with weights rounded to 22 bits: horizontal first,
 * done on each row as it comes, then vertical over the rows kept. Only columns and
 * rows of the crop are computed. Sums are integers, so vector lanes and order change
 * nothing.
 *
 * A weight w of up to 24 bits is split into w = high * 2^11 + low with both parts in 16
 * bits; the horizontal pass then is two dot products of 16-bit numbers, which every
 * processor with vectors has an instruction for.
 */
#include <limits.h>
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "image_internal.h"

/* Pillow's PRECISION_BITS: 32 bits, less 8 of a pixel, less 2 for overshoot. */
#define PRECISION_BITS 22
#define LOW_BITS 11
/* Parameter of the cubic; Pillow's and torchvision's bicubic. */
#define CUBIC_A (-0.5)
/* Half the width of the cubic, in output pixels. */
#define CUBIC_SUPPORT 2.0
/* Taps are padded with zeros to a multiple of this. */
#define TAP_BLOCK 8
/* Half a unit of the result. */
#define ROUND_UP (1 << (PRECISION_BITS - 1))

/* Where an output pixel looks, and how much of each input pixel it takes. */
typedef struct Axis
{
	int			outputs;		/* size of the square */
	int			taps;			/* weights for each output, padded */
	int			first;			/* smallest input that is needed */
	int			end;			/* one past the largest */
	int		   *start;			/* [outputs] first input of each output */
	int		   *count;			/* [outputs] inputs of each output */
	int32_t    *weights;		/* [outputs, taps] */
	int16_t    *high;			/* the same, upper and lower part */
	int16_t    *low;
} Axis;

struct Resizer
{
	int			size;
	Axis		horizontal;
	Axis		vertical;
	int			plane;			/* elements of one plane of the current row */
	int16_t    *planes;			/* [3, plane]: the needed columns of the current row */
	uint8_t    *kept;			/* [vertical.end - vertical.first, size * 3] */
	int32_t    *sums;			/* [size * 3] */
};

static double
cubic(double x)
{
	x = fabs(x);
	if (x < 1.0)
		return ((CUBIC_A + 2.0) * x - (CUBIC_A + 3.0)) * x * x + 1.0;
	if (x < 2.0)
		return (((x - 5.0) * x + 8.0) * x - 4.0) * CUBIC_A;
	return 0.0;
}

static int32_t
fixed_point(double weight)
{
	return (int32_t) (weight < 0 ? weight * (1 << PRECISION_BITS) - 0.5
								 : weight * (1 << PRECISION_BITS) + 0.5);
}

/* The weights of output number out (in the whole resized picture) into place i of the axis. */
static void
set_weights(Axis *axis, int i, int64_t out, int inputs, double scale, double *scratch)
{
	double		filter_scale = scale < 1.0 ? 1.0 : scale;
	double		support = CUBIC_SUPPORT * filter_scale;
	double		center = ((double) out + 0.5) * scale;
	int			begin = (int) (center - support + 0.5);
	int			end = (int) (center + support + 0.5);
	double		sum = 0;
	int32_t    *weights = axis->weights + (size_t) i * (size_t) axis->taps;

	begin = begin < 0 ? 0 : begin;
	end = end > inputs ? inputs : end;
	for (int x = begin; x < end; x++)
	{
		scratch[x - begin] = cubic((x - center + 0.5) * (1.0 / filter_scale));
		sum += scratch[x - begin];
	}
	for (int x = 0; x < end - begin; x++)
	{
		size_t		at = (size_t) i * (size_t) axis->taps + (size_t) x;

		weights[x] = fixed_point(sum != 0.0 ? scratch[x] / sum : scratch[x]);
		axis->high[at] = (int16_t) (weights[x] >> LOW_BITS);
		axis->low[at] = (int16_t) (weights[x] & ((1 << LOW_BITS) - 1));
	}
	axis->start[i] = begin;
	axis->count[i] = end - begin;
	axis->first = begin < axis->first ? begin : axis->first;
	axis->end = end > axis->end ? end : axis->end;
}

/* Python's round(x / 2): half to even. */
static int64_t
half_even(int64_t x)
{
	return x % 2 == 0 ? x / 2 : (x / 2) + ((x / 2) % 2 != 0);
}

/*
 * An axis of `inputs` pixels resized to `resized`, of which the centre `size` are kept.
 * The long side of a thin picture has more pixels after the resize than an int holds.
 */
static bool
axis_create(Axis *axis, int inputs, int64_t resized, int size, Arena *arena, Status *status)
{
	double		scale = (double) inputs / (double) resized;
	double		support = CUBIC_SUPPORT * (scale < 1.0 ? 1.0 : scale);
	int			taps = (int) ceil(support) * 2 + 1;
	int64_t		offset = half_even(resized - size);
	size_t		cells;
	double	   *scratch;

	taps = (taps + TAP_BLOCK - 1) / TAP_BLOCK * TAP_BLOCK;
	cells = (size_t) size * (size_t) taps;
	axis->outputs = size;
	axis->taps = taps;
	axis->first = INT_MAX;
	axis->end = 0;
	axis->start = arena_take_array(arena, (size_t) size, sizeof(int));
	axis->count = arena_take_array(arena, (size_t) size, sizeof(int));
	axis->weights = arena_take_array(arena, cells, sizeof(int32_t));
	axis->high = arena_take_array(arena, cells, sizeof(int16_t));
	axis->low = arena_take_array(arena, cells, sizeof(int16_t));
	scratch = arena_take_array(arena, (size_t) taps, sizeof(double));
	if (axis->start == NULL || axis->count == NULL || axis->weights == NULL || axis->high == NULL ||
		axis->low == NULL || scratch == NULL)
		return status_out_of_memory(status, cells * 8);
	for (int i = 0; i < size; i++)
		set_weights(axis, i, offset + i, inputs, scale, scratch);
	return true;
}

/* The longer side after the resize: int(size * long / short), as torchvision computes it. */
static int64_t
resized_length(int length, int shorter, int size)
{
	return (int64_t) size * length / shorter;
}

Resizer *
resizer_create(int width, int height, int size, Arena *arena, Status *status)
{
	Resizer    *resizer = arena_take(arena, sizeof(Resizer));
	int			shorter = width < height ? width : height;
	size_t		row = (size_t) size * 3;
	size_t		rows;

	if (resizer == NULL)
	{
		status_out_of_memory(status, sizeof(Resizer));
		return NULL;
	}
	resizer->size = size;
	if (!axis_create(&resizer->horizontal, width, resized_length(width, shorter, size), size, arena,
					 status) ||
		!axis_create(&resizer->vertical, height, resized_length(height, shorter, size), size, arena,
					 status))
		return NULL;
	resizer->plane = resizer->horizontal.end - resizer->horizontal.first + resizer->horizontal.taps;
	rows = (size_t) (resizer->vertical.end - resizer->vertical.first);
	resizer->planes = arena_take_array(arena, 3 * (size_t) resizer->plane, sizeof(int16_t));
	resizer->kept = arena_take_array(arena, rows, row);
	resizer->sums = arena_take_array(arena, row, sizeof(int32_t));
	if (resizer->planes == NULL || resizer->kept == NULL || resizer->sums == NULL)
	{
		status_out_of_memory(status, rows * row);
		return NULL;
	}
	return resizer;
}

static inline uint8_t
clip_to_byte(int32_t sum)
{
	int32_t		value = sum >> PRECISION_BITS;

	return (uint8_t) (value < 0 ? 0 : value > 255 ? 255 : value);
}

#if defined(__SSE2__)
/* Sum of the four lanes of each of high * 2^11 + low, for one channel. */
static inline int32_t
join_sums(__m128i high, __m128i low)
{
	__m128i		sum = _mm_add_epi32(_mm_slli_epi32(high, LOW_BITS), low);

	sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, _MM_SHUFFLE(1, 0, 3, 2)));
	sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, _MM_SHUFFLE(2, 3, 0, 1)));
	return _mm_cvtsi128_si32(sum);
}

/* One output pixel: eight taps at a time; sums wrap modulo 2^32, and their end fits. */
static inline void
resize_pixel(const int16_t *in, int plane, const int16_t *high, const int16_t *low, int taps,
			 uint8_t *out)
{
	__m128i		sum_high[3] = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
	__m128i		sum_low[3] = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};

	for (int t = 0; t < taps; t += TAP_BLOCK)
	{
		__m128i		weight_high = _mm_loadu_si128((const __m128i *) (high + t));
		__m128i		weight_low = _mm_loadu_si128((const __m128i *) (low + t));

		for (int channel = 0; channel < 3; channel++)
		{
			__m128i		values = _mm_loadu_si128((const __m128i *) (in + channel * plane + t));

			sum_high[channel] = _mm_add_epi32(sum_high[channel],
											  _mm_madd_epi16(values, weight_high));
			sum_low[channel] = _mm_add_epi32(sum_low[channel], _mm_madd_epi16(values, weight_low));
		}
	}
	for (int channel = 0; channel < 3; channel++)
		out[channel] = clip_to_byte(ROUND_UP + join_sums(sum_high[channel], sum_low[channel]));
}
#else
/* One output pixel; sums wrap modulo 2^32, and their end fits. */
static inline void
resize_pixel(const int16_t *in, int plane, const int16_t *high, const int16_t *low, int taps,
			 uint8_t *out)
{
	for (int channel = 0; channel < 3; channel++)
	{
		uint32_t	sum = ROUND_UP;

		for (int t = 0; t < taps; t++)
			sum += (uint32_t) in[channel * plane + t] *
				   ((uint32_t) high[t] * (1u << LOW_BITS) + (uint32_t) low[t]);
		out[channel] = clip_to_byte((int32_t) sum);
	}
}
#endif

/* Spread pixels from i on over three planes. */
static void
split_rest(const uint8_t *rgb, int i, int count, int16_t *planes, int plane)
{
	for (; i < count; i++)
		for (int channel = 0; channel < 3; channel++)
			planes[channel * plane + i] = rgb[3 * i + channel];
}

#if defined(__x86_64__)
/*
 * Four pixels a turn; reads up to four bytes past them, so the last two pixels are left to the
 * plain loop.
 */
__attribute__((target("ssse3"))) static void
split_planes_ssse3(const uint8_t *rgb, int count, int16_t *planes, int plane)
{
	const __m128i red_green = _mm_setr_epi8(0, -1, 3, -1, 6, -1, 9, -1, 1, -1, 4, -1, 7, -1, 10,
											-1);
	const __m128i blue = _mm_setr_epi8(2, -1, 5, -1, 8, -1, 11, -1, -1, -1, -1, -1, -1, -1, -1, -1);
	int			i = 0;

	for (; i + 6 <= count; i += 4)
	{
		__m128i		bytes = _mm_loadu_si128((const __m128i *) (rgb + 3 * i));
		__m128i		values = _mm_shuffle_epi8(bytes, red_green);

		_mm_storel_epi64((__m128i *) (planes + i), values);
		_mm_storel_epi64((__m128i *) (planes + plane + i), _mm_unpackhi_epi64(values, values));
		_mm_storel_epi64((__m128i *) (planes + 2 * plane + i), _mm_shuffle_epi8(bytes, blue));
	}
	split_rest(rgb, i, count, planes, plane);
}
#endif

/* Spread the needed columns of a row over three planes of 16-bit numbers. */
static void
split_planes(const uint8_t *rgb, int count, int16_t *planes, int plane)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("ssse3"))
	{
		split_planes_ssse3(rgb, count, planes, plane);
		return;
	}
#endif
	split_rest(rgb, 0, count, planes, plane);
}

void
resizer_take_row(Resizer *resizer, int y, const uint8_t *rgb)
{
	const Axis *axis = &resizer->horizontal;
	int16_t    *planes = resizer->planes;
	int			plane = resizer->plane;
	uint8_t    *kept;

	if (y < resizer->vertical.first || y >= resizer->vertical.end)
		return;
	kept = resizer->kept + (size_t) (y - resizer->vertical.first) * (size_t) resizer->size * 3;
	split_planes(rgb + 3 * axis->first, axis->end - axis->first, planes, plane);
	for (int i = 0; i < axis->outputs; i++)
		resize_pixel(planes + axis->start[i] - axis->first, plane,
					 axis->high + (size_t) i * (size_t) axis->taps,
					 axis->low + (size_t) i * (size_t) axis->taps, axis->taps, kept + 3 * i);
}

/* The compiler turns this into vector code; O2 alone would not. */
__attribute__((optimize("O3"))) static void
add_row(int32_t *sums, const uint8_t *row, int32_t weight, int count)
{
	for (int i = 0; i < count; i++)
		sums[i] += row[i] * weight;
}

void
resizer_finish(Resizer *resizer, uint8_t *pixels)
{
	const Axis *axis = &resizer->vertical;
	int			width = resizer->size * 3;

	for (int i = 0; i < axis->outputs; i++)
	{
		for (int x = 0; x < width; x++)
			resizer->sums[x] = ROUND_UP;
		for (int t = 0; t < axis->count[i]; t++)
			add_row(resizer->sums,
					resizer->kept + (size_t) (axis->start[i] - axis->first + t) * (size_t) width,
					axis->weights[(size_t) i * (size_t) axis->taps + (size_t) t], width);
		for (int x = 0; x < width; x++)
			pixels[(size_t) i * (size_t) width + (size_t) x] = clip_to_byte(resizer->sums[x]);
	}
}
