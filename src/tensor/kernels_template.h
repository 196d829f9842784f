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
 *	PANEL_VECTORS				vectors across a panel of outputs
 *	TILE_ROWS					rows of a product's register tile
 *	KERNELS						name of the table to define
 *	KERNELS_NAME				its name for users
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

static inline float
v_largest(Vector v)
{
	float		lanes[LANES];
	float		largest;

	v_store(lanes, v);
	largest = lanes[0];
	for (int i = 1; i < LANES; i++)
		largest = lanes[i] > largest ? lanes[i] : largest;
	return largest;
}

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
 * x * Phi(x) = x/2 erfc(-x / sqrt 2), with erfc by formula 7.1.26 of Abramowitz and
 * Stegun, Handbook of Mathematical Functions (error below 1.5e-7).
 */
static inline Vector
v_gelu(Vector x)
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
	return x * v_select(x < v_set(0.0f), half_tail, v_set(1.0f) - half_tail);
}

/* ---- products ---- */

/*
 * The register tile: rows x PANEL sums stay in registers while depth goes by. rows is a
 * constant wherever this is inlined, so that the loops unroll.
 */
static inline __attribute__((always_inline)) void
multiply_tile(const int rows, int depth, const float *x, size_t x_stride, const float *weights,
			  float *sums, bool first)
{
	Vector		sum[TILE_ROWS][PANEL_VECTORS];

	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
			sum[r][v] = first ? v_set(0.0f) : v_load(sums + r * PANEL + v * LANES);
	for (int k = 0; k < depth; k++)
	{
		Vector		w[PANEL_VECTORS];

		UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
			w[v] = v_load(weights + (size_t) k * PANEL + v * LANES);
		UNROLL for (int r = 0; r < rows; r++)
		{
			Vector		xk = v_set(x[(size_t) r * x_stride + (size_t) k]);

			UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
				sum[r][v] = v_fma(xk, w[v], sum[r][v]);
		}
	}
	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
			v_store(sums + r * PANEL + v * LANES, sum[r][v]);
}

static void
multiply_panel(int rows, int depth, const float *x, size_t x_stride, const float *weights,
			   float *sums, bool first)
{
	switch (rows)
	{
		case 1:
			multiply_tile(1, depth, x, x_stride, weights, sums, first);
			break;
		case 2:
			multiply_tile(2, depth, x, x_stride, weights, sums, first);
			break;
		case 3:
			multiply_tile(3, depth, x, x_stride, weights, sums, first);
			break;
		case 4:
			multiply_tile(4, depth, x, x_stride, weights, sums, first);
			break;
#if TILE_ROWS >= 6
		case 5:
			multiply_tile(5, depth, x, x_stride, weights, sums, first);
			break;
		case 6:
			multiply_tile(6, depth, x, x_stride, weights, sums, first);
			break;
#endif
	}
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

	for (int i = 0; i < columns; i++)
		y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

static void
rms_norm(int columns, const float *x, const float *weight, float epsilon, float *y)
{
	float		scale = 1.0f / sqrtf(sum_row(columns, x, 0.0f, 2) / (float) columns + epsilon);

	for (int i = 0; i < columns; i++)
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

/* ---- attention ---- */

/* What a row of a tile carries from page to page: the running softmax. */
typedef struct RunningRow
{
	float		largest;		/* score so far */
	float		sum;			/* of exp(score - largest) */
	float		weights[KV_PAGE_KEYS];	/* exp(score - largest) of the current page */
} RunningRow;

/* scores[r] = q[r] . keys of one page, without the scale; keys [D, KV_PAGE_KEYS]. */
static inline __attribute__((always_inline)) void
score_page(const int rows, const AttendTile *tile, const float *keys, RunningRow *running)
{
	Vector		sum[ATTEND_MAX_ROWS][PAGE_VECTORS];

	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < PAGE_VECTORS; v++)
			sum[r][v] = v_set(0.0f);
	for (int d = 0; d < tile->head_size; d++)
		UNROLL for (int v = 0; v < PAGE_VECTORS; v++)
		{
			Vector		k = v_load(keys + d * KV_PAGE_KEYS + v * LANES);

			UNROLL for (int r = 0; r < rows; r++)
				sum[r][v] = v_fma(v_set(tile->q[r][d]), k, sum[r][v]);
		}
	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < PAGE_VECTORS; v++)
			v_store(running[r].weights + v * LANES, sum[r][v]);
}

/*
 * Take the scores of keys [low, high) of a page into the running softmax; return the
 * factor by which what was summed before has to shrink.
 */
static inline float
soften_page(RunningRow *row, float scale, int low, int high)
{
	float		largest = row->largest;
	float		shrink;
	Vector		sum = v_set(0.0f);

	for (int j = 0; j < KV_PAGE_KEYS; j++)
		row->weights[j] = j >= low && j < high ? row->weights[j] * scale : -INFINITY;
	for (int j = 0; j < KV_PAGE_KEYS; j += LANES)
	{
		float		here = v_largest(v_load(row->weights + j));

		largest = here > largest ? here : largest;
	}
	for (int j = 0; j < KV_PAGE_KEYS; j += LANES)
	{
		Vector		w = v_exp(v_load(row->weights + j) - v_set(largest));

		v_store(row->weights + j, w);
		sum = sum + w;
	}
	shrink = v_exp(v_set(row->largest - largest))[0];
	row->sum = row->sum * shrink + v_sum(sum);
	row->largest = largest;
	return shrink;
}

/*
 * The part of add_values for `vectors` whole vectors of y from d on; vectors is a constant where
 * this is inlined.
 */
static inline __attribute__((always_inline)) void
add_value_vectors(const int vectors, const AttendTile *tile, const float *values,
				  const float *weights, float shrink, int low, int high, int d, float *y)
{
	Vector		sum[4];

	UNROLL for (int v = 0; v < vectors; v++)
		sum[v] = v_load(y + d + v * LANES) * v_set(shrink);
	for (int j = low; j < high; j++)
		UNROLL for (int v = 0; v < vectors; v++) sum[v] = v_fma(
			v_set(weights[j]), v_load(values + j * tile->value_stride + d + v * LANES), sum[v]);
	UNROLL for (int v = 0; v < vectors; v++)
		v_store(y + d + v * LANES, sum[v]);
}

/* y = y * shrink + sum over keys [low, high) of weight * value. */
static inline void
add_values(const AttendTile *tile, const float *values, const float *weights, float shrink, int low,
		   int high, float *y)
{
	int			size = tile->head_size;
	int			d = 0;

	for (; d + 4 * LANES <= size; d += 4 * LANES)
		add_value_vectors(4, tile, values, weights, shrink, low, high, d, y);
	for (; d + 2 * LANES <= size; d += 2 * LANES)
		add_value_vectors(2, tile, values, weights, shrink, low, high, d, y);
	for (; d + LANES <= size; d += LANES)
		add_value_vectors(1, tile, values, weights, shrink, low, high, d, y);
	if (d < size)
	{
		Vector		sum = v_load_part(y + d, size - d, 0.0f) * v_set(shrink);

		for (int j = low; j < high; j++)
			sum = v_fma(v_set(weights[j]),
						v_load_part(values + j * tile->value_stride + d, size - d, 0.0f), sum);
		v_store_part(y + d, sum, size - d);
	}
}

static inline __attribute__((always_inline)) void
attend_rows(const int rows, const AttendTile *tile)
{
	RunningRow	running[ATTEND_MAX_ROWS];
	int			first = tile->first[0];
	int			end = tile->end[0];

	for (int r = 0; r < rows; r++)
	{
		first = tile->first[r] < first ? tile->first[r] : first;
		end = tile->end[r] > end ? tile->end[r] : end;
		running[r].largest = -FLT_MAX;
		running[r].sum = 0.0f;
		memset(tile->y[r], 0, (size_t) tile->head_size * sizeof(float));
	}
	for (int begin = first / KV_PAGE_KEYS * KV_PAGE_KEYS; begin < end; begin += KV_PAGE_KEYS)
	{
		size_t		page = (size_t) tile->pages[begin / KV_PAGE_KEYS];

		score_page(rows, tile, tile->keys + page * tile->page_stride, running);
		for (int r = 0; r < rows; r++)
		{
			int			low = tile->first[r] > begin ? tile->first[r] - begin : 0;
			int			high = tile->end[r] < begin + KV_PAGE_KEYS ? tile->end[r] - begin
																   : KV_PAGE_KEYS;
			float		shrink;

			if (low >= high)
				continue;
			shrink = soften_page(&running[r], tile->scale[r], low, high);
			add_values(tile, tile->values + page * tile->page_stride, running[r].weights, shrink,
					   low, high, tile->y[r]);
		}
	}
	for (int r = 0; r < rows; r++)
		if (running[r].sum > 0.0f)
			for (int d = 0; d < tile->head_size; d++)
				tile->y[r][d] /= running[r].sum;
}

static void
attend(const AttendTile *tile)
{
	switch (tile->rows)
	{
		case 1:
			attend_rows(1, tile);
			break;
		case 2:
			attend_rows(2, tile);
			break;
		case 3:
			attend_rows(3, tile);
			break;
		case 4:
			attend_rows(4, tile);
			break;
	}
}

const Kernels KERNELS = {
	.name = KERNELS_NAME,
	.panel = PANEL,
	.tile_rows = TILE_ROWS,
	.multiply_panel = multiply_panel,
	.layer_norm = layer_norm,
	.rms_norm = rms_norm,
	.quick_gelu = quick_gelu,
	.gelu = gelu,
	.swiglu = swiglu,
	.attend = attend,
};
