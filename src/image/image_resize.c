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

#include "image_internal.h"

/* Pillow's PRECISION_BITS: 32 bits, less 8 of a pixel, less 2 for overshoot. */
#define PRECISION_BITS 22
#define LOW_BITS 11
/* Parameter of the cubic; Pillow's and torchvision's bicubic. */
#define CUBIC_A (-0.5)
/* Half the width of the cubic, in output pixels. */
#define CUBIC_SUPPORT 2.0
/* Taps are padded with zeros to a multiple of this. */
#define TAP_BLOCK 16

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
	return (int32_t) (weight < 0 ? weight * (1 << PRECISION_BITS) - 0.5 : weight * (1 << PRECISION_BITS) + 0.5);
}

/* The weights of output number out (in the whole resized picture) into place i of the axis. */
static void
set_weights(Axis *axis, int i, int out, int inputs, double scale, double *scratch)
{
	double		filter_scale = scale < 1.0 ? 1.0 : scale;
	double		support = CUBIC_SUPPORT * filter_scale;
	double		center = (out + 0.5) * scale;
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
static int
half_even(int x)
{
	return x % 2 == 0 ? x / 2 : (x / 2) + ((x / 2) % 2 != 0);
}

/* An axis of `inputs` pixels resized to `resized`, of which the centre `size` are kept. */
static bool
axis_create(Axis *axis, int inputs, int resized, int size, Arena *arena, Status *status)
{
	double		scale = (double) inputs / resized;
	double		support = CUBIC_SUPPORT * (scale < 1.0 ? 1.0 : scale);
	int			taps = (int) ceil(support) * 2 + 1;
	int			offset = half_even(resized - size);
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
static int
resized_length(int length, int shorter, int size)
{
	return (int) ((int64_t) size * length / shorter);
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
	if (!axis_create(&resizer->horizontal, width, resized_length(width, shorter, size), size, arena, status) ||
		!axis_create(&resizer->vertical, height, resized_length(height, shorter, size), size, arena, status))
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

/*
 * Sums may wrap around on the way where a picture shrinks more than a thousandfold; their
 * end fits, so wrapping has to be the rule.
 */
#if defined(__x86_64__)
#define FAST_LOOP __attribute__((optimize("O3", "wrapv"), target_clones("avx2", "default")))
#else
#define FAST_LOOP __attribute__((optimize("O3", "wrapv")))
#endif

/* One channel of a row: sums of 16-bit products, upper and lower parts of the weights apart. */
FAST_LOOP static void
resize_plane(const Axis *axis, const int16_t *plane, uint8_t *out)
{
	int			taps = axis->taps;

	for (int i = 0; i < axis->outputs; i++)
	{
		const int16_t *in = plane + axis->start[i] - axis->first;
		const int16_t *high = axis->high + (size_t) i * (size_t) taps;
		const int16_t *low = axis->low + (size_t) i * (size_t) taps;
		int32_t		sum_high = 0;
		int32_t		sum_low = 0;

		for (int t = 0; t < taps; t += TAP_BLOCK)
			for (int j = 0; j < TAP_BLOCK; j++)
			{
				sum_high += (int32_t) in[t + j] * high[t + j];
				sum_low += (int32_t) in[t + j] * low[t + j];
			}
		out[3 * i] = clip_to_byte((1 << (PRECISION_BITS - 1)) + sum_high * (1 << LOW_BITS) + sum_low);
	}
}

/* Spread the needed columns of a row over three planes. */
FAST_LOOP static void
split_planes(const uint8_t *rgb, int count, int16_t *red, int16_t *green, int16_t *blue)
{
	for (int i = 0; i < count; i++)
	{
		red[i] = rgb[3 * i];
		green[i] = rgb[3 * i + 1];
		blue[i] = rgb[3 * i + 2];
	}
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
	split_planes(rgb + 3 * axis->first, axis->end - axis->first, planes, planes + plane, planes + 2 * plane);
	for (int channel = 0; channel < 3; channel++)
		resize_plane(axis, planes + channel * plane, kept + channel);
}

FAST_LOOP static void
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
			resizer->sums[x] = 1 << (PRECISION_BITS - 1);
		for (int t = 0; t < axis->count[i]; t++)
			add_row(resizer->sums, resizer->kept + (size_t) (axis->start[i] - axis->first + t) * (size_t) width,
					axis->weights[(size_t) i * (size_t) axis->taps + (size_t) t], width);
		for (int x = 0; x < width; x++)
			pixels[(size_t) i * (size_t) width + (size_t) x] = clip_to_byte(resizer->sums[x]);
	}
}
