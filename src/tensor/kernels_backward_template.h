/*
 * kernels_backward_template.h - the inner loops of training; the end of kernels_template.h.
 *
 * Derivatives are written beside what they derive. Sums over a row go as in the
 * forward pass: element i to lane i mod LANES.
 */

/* ---- products of matrices as they lie ---- */

/*
 * rows x vectors * LANES sums in registers; rows and vectors are constants where this is inlined.
 * vectors 0: fewer columns than LANES, `part` of them.
 */
static inline __attribute__((always_inline)) void
strided_tile(const int rows, const int vectors, const StridedProduct *product, int column, int part)
{
	const int	width = vectors > 0 ? vectors : 1;
	const float *a = product->a;
	const float *b = product->b + column;
	float	   *sums = product->sums + column;
	Vector		sum[TILE_ROWS][PANEL_VECTORS];

	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < width; v++)
		{
			const float *at = sums + (size_t) r * product->sums_row + v * LANES;

			sum[r][v] = product->first ? v_set(0.0f)
				: vectors > 0 ? v_load(at) : v_load_part(at, part, 0.0f);
		}
	for (int k = 0; k < product->depth; k++)
	{
		Vector		w[PANEL_VECTORS];

		UNROLL for (int v = 0; v < width; v++)
			w[v] = vectors > 0 ? v_load(b + v * LANES) : v_load_part(b, part, 0.0f);
		UNROLL for (int r = 0; r < rows; r++)
		{
			Vector		ak = v_set(a[(size_t) r * product->a_row]);

			UNROLL for (int v = 0; v < width; v++)
				sum[r][v] = v_fma(ak, w[v], sum[r][v]);
		}
		a += product->a_depth;
		b += product->b_depth;
	}
	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < width; v++)
		{
			float	   *at = sums + (size_t) r * product->sums_row + v * LANES;

			if (vectors > 0)
				v_store(at, sum[r][v]);
			else
				v_store_part(at, sum[r][v], part);
		}
}

/* All columns for a constant number of rows: whole panels, then vectors, then the rest. */
static inline __attribute__((always_inline)) void
strided_rows(const int rows, const StridedProduct *product)
{
	int			column = 0;

	for (; column + PANEL <= product->columns; column += PANEL)
		strided_tile(rows, PANEL_VECTORS, product, column, 0);
	for (; column + LANES <= product->columns; column += LANES)
		strided_tile(rows, 1, product, column, 0);
	if (column < product->columns)
		strided_tile(rows, 0, product, column, product->columns - column);
}

static void
multiply_strided(const StridedProduct *product)
{
	switch (product->rows)
	{
		case 1:
			strided_rows(1, product);
			break;
		case 2:
			strided_rows(2, product);
			break;
		case 3:
			strided_rows(3, product);
			break;
		case 4:
			strided_rows(4, product);
			break;
#if TILE_ROWS >= 6
		case 5:
			strided_rows(5, product);
			break;
		case 6:
			strided_rows(6, product);
			break;
#endif
	}
}

/* ---- transposing ---- */

/* A vector as double words and as half words, and the shuffles of transposing. */
typedef int64_t DoubleVector __attribute__((vector_size(4 * LANES)));
typedef int16_t HalfWordVector __attribute__((vector_size(4 * LANES)));

#define EXCHANGE_4(i) (i), (i) + 2, (i) + 1, (i) + 3
#define EXCHANGE_8(i) EXCHANGE_4(i), EXCHANGE_4((i) + 4)
#define EXCHANGE_16(i) EXCHANGE_8(i), EXCHANGE_8((i) + 8)
#if LANES == 4
#define INTERLEAVE_LOW ((IntVector) {0, 4, 1, 5})
#define INTERLEAVE_HIGH ((IntVector) {2, 6, 3, 7})
#define DOUBLE_LOW ((DoubleVector) {0, 2})
#define DOUBLE_HIGH ((DoubleVector) {1, 3})
#define EXCHANGE_MIDDLE ((HalfWordVector) {EXCHANGE_8(0)})
#elif LANES == 8
#define INTERLEAVE_LOW ((IntVector) {0, 8, 1, 9, 2, 10, 3, 11})
#define INTERLEAVE_HIGH ((IntVector) {4, 12, 5, 13, 6, 14, 7, 15})
#define DOUBLE_LOW ((DoubleVector) {0, 4, 1, 5})
#define DOUBLE_HIGH ((DoubleVector) {2, 6, 3, 7})
#define EXCHANGE_MIDDLE ((HalfWordVector) {EXCHANGE_16(0)})
#elif LANES == 16
#define DOUBLE_LOW ((DoubleVector) {0, 8, 1, 9, 2, 10, 3, 11})
#define DOUBLE_HIGH ((DoubleVector) {4, 12, 5, 13, 6, 14, 7, 15})
#define EXCHANGE_MIDDLE ((HalfWordVector) {EXCHANGE_16(0), EXCHANGE_16(16)})
#define INTERLEAVE_LOW ((IntVector) {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23})
#define INTERLEAVE_HIGH ((IntVector) {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31})
#endif

/*
 * Turn LANES x LANES elements in registers. Interleaving row i with row i + LANES / 2 turns the
 * bits of an element's address (row, column) left by one; after log2 LANES turns row and column
 * have changed places.
 */
static inline __attribute__((always_inline)) void
turn_square(Vector a[LANES])
{
	Vector		b[LANES];

	UNROLL for (int round = 1; round < LANES; round *= 2)
	{
		UNROLL for (int i = 0; i < LANES / 2; i++)
		{
			b[2 * i] = __builtin_shuffle(a[i], a[i + LANES / 2], INTERLEAVE_LOW);
			b[2 * i + 1] = __builtin_shuffle(a[i], a[i + LANES / 2], INTERLEAVE_HIGH);
		}
		UNROLL for (int i = 0; i < LANES; i++)
			a[i] = b[i];
	}
}

static inline void
transpose_square(const float *from, size_t from_stride, float *to, size_t to_stride)
{
	Vector		a[LANES];

	UNROLL for (int i = 0; i < LANES; i++)
		a[i] = v_load(from + (size_t) i * from_stride);
	turn_square(a);
	UNROLL for (int i = 0; i < LANES; i++)
		v_store(to + (size_t) i * to_stride, a[i]);
}

/*
 * LANES / 2 steps of LANES outputs, in two moves. The four halves of two neighbouring words are
 * the weights of two outputs for two inputs; exchanging the middle ones pairs them by outputs, and
 * leaves the two inputs side by side, where they belong. What is left is to turn a square of such
 * double words.
 */
static inline void
transpose_pair_square(const uint32_t *from, uint32_t *to)
{
	DoubleVector a[LANES / 2];
	DoubleVector b[LANES / 2];

	UNROLL for (int i = 0; i < LANES / 2; i++)
	{
		HalfWordVector halves;

		memcpy(&halves, from + (size_t) i * PANEL, sizeof(halves));
		a[i] = (DoubleVector) __builtin_shuffle(halves, EXCHANGE_MIDDLE);
	}
	UNROLL for (int round = 1; round < LANES / 2; round *= 2)
	{
		UNROLL for (int i = 0; i < LANES / 4; i++)
		{
			b[2 * i] = __builtin_shuffle(a[i], a[i + LANES / 4], DOUBLE_LOW);
			b[2 * i + 1] = __builtin_shuffle(a[i], a[i + LANES / 4], DOUBLE_HIGH);
		}
		UNROLL for (int i = 0; i < LANES / 2; i++)
			a[i] = b[i];
	}
	UNROLL for (int i = 0; i < LANES / 2; i++)
		memcpy(to + (size_t) i * PANEL, &a[i], sizeof(a[i]));
}

static void
transpose_pairs(int steps, const uint32_t *from, uint32_t *to)
{
	uint32_t	last[LANES / 2 * PANEL];

	for (int step = 0; step < PANEL / 2; step += LANES / 2)
	{
		const uint32_t *block = from + (size_t) step * PANEL;
		int			here = steps - step;

		if (here < LANES / 2)
		{
			memset(last, 0, sizeof(last));
			if (here > 0)
				memcpy(last, block, (size_t) here * PANEL * sizeof(uint32_t));
			block = last;
		}
		for (int p = 0; p < PANEL; p += LANES)
			transpose_pair_square(block + p, to + (size_t) p / 2 * PANEL + 2 * step);
	}
}

static void
transpose(int rows, int columns, const float *from, size_t from_stride, float *to, size_t to_stride)
{
	int			whole_rows = rows / LANES * LANES;
	int			whole_columns = columns / LANES * LANES;

	for (int r = 0; r < whole_rows; r += LANES)
		for (int c = 0; c < whole_columns; c += LANES)
			transpose_square(from + (size_t) r * from_stride + c, from_stride,
							 to + (size_t) c * to_stride + r, to_stride);
	for (int r = 0; r < rows; r++)
		for (int c = r < whole_rows ? whole_columns : 0; c < columns; c++)
			to[(size_t) c * to_stride + (size_t) r] = from[(size_t) r * from_stride + (size_t) c];
}

/* ---- norms ---- */

/* Sum of dy w (x - shift) over a row; without x (NULL), of dy w. */
static inline float
sum_gradient(int columns, const float *dy, const float *weight, const float *x, float shift)
{
	Vector		sum = v_set(0.0f);
	int			i = 0;

	for (; i + LANES <= columns; i += LANES)
	{
		Vector		g = v_load(dy + i) * v_load(weight + i);

		sum = x == NULL ? sum + g : v_fma(g, v_load(x + i) - v_set(shift), sum);
	}
	if (i < columns)
	{
		Vector		g = v_load_part(dy + i, columns - i, 0.0f) *
			v_load_part(weight + i, columns - i, 0.0f);

		sum = x == NULL ? sum + g
			: v_fma(g, v_load_part(x + i, columns - i, shift) - v_set(shift), sum);
	}
	return v_sum(sum);
}

/*
 * With n = (x - mean) s and g = dy w: dx = s (g - mean(g) - n mean(g n)).
 */
static void
layer_norm_backward(int columns, const float *x, const float *weight, float epsilon,
					const float *dy, float *dx)
{
	float		mean = sum_row(columns, x, 0.0f, 1) / (float) columns;
	float		variance = sum_row(columns, x, mean, 2) / (float) columns;
	float		scale = 1.0f / sqrtf(variance + epsilon);
	float		g_mean = sum_gradient(columns, dy, weight, NULL, 0.0f) / (float) columns;
	float		gn_mean = sum_gradient(columns, dy, weight, x, mean) * scale / (float) columns;
	int			i = 0;

	for (; i + LANES <= columns; i += LANES)
	{
		Vector		g = v_load(dy + i) * v_load(weight + i);
		Vector		n = (v_load(x + i) - v_set(mean)) * v_set(scale);

		v_store(dx + i, v_load(dx + i) +
				v_set(scale) * (g - v_set(g_mean) - n * v_set(gn_mean)));
	}
	for (; i < columns; i++)
		dx[i] += scale * (dy[i] * weight[i] - g_mean - (x[i] - mean) * scale * gn_mean);
}

/* With s = 1 / rms(x) and g = dy w: dx = s (g - x s^2 mean(g x)). */
static void
rms_norm_backward(int columns, const float *x, const float *weight, float epsilon, const float *dy,
				  float *dx)
{
	float		scale = 1.0f / sqrtf(sum_row(columns, x, 0.0f, 2) / (float) columns + epsilon);
	float		gx_mean = sum_gradient(columns, dy, weight, x, 0.0f) / (float) columns * scale *
		scale;
	int			i = 0;

	for (; i + LANES <= columns; i += LANES)
		v_store(dx + i, v_load(dx + i) +
				v_set(scale) * (v_load(dy + i) * v_load(weight + i) -
								v_load(x + i) * v_set(gx_mean)));
	for (; i < columns; i++)
		dx[i] += scale * (dy[i] * weight[i] - x[i] * gx_mean);
}

/* ---- activations ---- */

/* d/dx x Phi(x) = Phi(x) + x phi(x). */
static inline Vector
v_gelu_slope(Vector x)
{
	Vector		density = v_set(0.398942280401432678f) * v_exp(v_set(-0.5f) * x * x);

	return v_fma(x, density, v_normal(x));
}

static void
gelu_backward(int count, const float *x, float *dx)
{
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
		v_store(dx + i, v_load(dx + i) * v_gelu_slope(v_load(x + i)));
	if (i < count)
		v_store_part(dx + i,
					 v_load_part(dx + i, count - i, 0.0f) *
						 v_gelu_slope(v_load_part(x + i, count - i, 0.0f)),
					 count - i);
}

/* y = g s(g) u: dy/du = g s, dy/dg = u s (1 + g (1 - s)). */
static inline void
v_swiglu_backward(Vector gate, Vector up, Vector dy, Vector *d_gate, Vector *d_up)
{
	Vector		s = v_sigmoid(gate);

	*d_up = dy * gate * s;
	*d_gate = dy * up * s * v_fma(gate, v_set(1.0f) - s, v_set(1.0f));
}

static void
swiglu_backward(int count, const float *gate, const float *up, const float *dy, float *d_gate,
				float *d_up)
{
	Vector		dg;
	Vector		du;
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
	{
		v_swiglu_backward(v_load(gate + i), v_load(up + i), v_load(dy + i), &dg, &du);
		v_store(d_gate + i, dg);
		v_store(d_up + i, du);
	}
	if (i < count)
	{
		v_swiglu_backward(v_load_part(gate + i, count - i, 0.0f),
						  v_load_part(up + i, count - i, 0.0f),
						  v_load_part(dy + i, count - i, 0.0f), &dg, &du);
		v_store_part(d_gate + i, dg, count - i);
		v_store_part(d_up + i, du, count - i);
	}
}

/* ---- softmax ---- */

static inline float
largest_of(int count, const float *x)
{
	Vector		largest = v_set(-FLT_MAX);
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
		largest = v_max(largest, v_load(x + i));
	if (i < count)
		largest = v_max(largest, v_load_part(x + i, count - i, -FLT_MAX));
	return v_largest(largest);
}

/* x = exp(scale x - shift); returns the sum. */
static inline float
exponentials(int count, float scale, float shift, float *x)
{
	Vector		sum = v_set(0.0f);
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
	{
		Vector		e = v_exp(v_load(x + i) * v_set(scale) - v_set(shift));

		v_store(x + i, e);
		sum = sum + e;
	}
	if (i < count)
	{
		Vector		rest = v_load_part(x + i, count - i, 0.0f) * v_set(scale) - v_set(shift);
		float		lanes[LANES];

		v_store(lanes, v_exp(rest));
		for (int j = count - i; j < LANES; j++)
			lanes[j] = 0.0f;
		v_store_part(x + i, v_load(lanes), count - i);
		sum = sum + v_load(lanes);
	}
	return v_sum(sum);
}

static inline void
multiply_row(int count, float factor, float *x)
{
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
		v_store(x + i, v_load(x + i) * v_set(factor));
	for (; i < count; i++)
		x[i] *= factor;
}

/* The scale of scores is positive, or 0 where all count alike. */
static void
softmax(int count, float scale, float *x)
{
	float		sum = exponentials(count, scale, scale * largest_of(count, x), x);

	multiply_row(count, 1.0f / sum, x);
}

static void
softmax_backward(int count, float scale, const float *p, float *dp)
{
	Vector		sum = v_set(0.0f);
	Vector		mean;
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
		sum = v_fma(v_load(p + i), v_load(dp + i), sum);
	if (i < count)
		sum = v_fma(v_load_part(p + i, count - i, 0.0f), v_load_part(dp + i, count - i, 0.0f), sum);
	mean = v_set(v_sum(sum));
	for (i = 0; i + LANES <= count; i += LANES)
		v_store(dp + i, v_set(scale) * v_load(p + i) * (v_load(dp + i) - mean));
	for (; i < count; i++)
		dp[i] = scale * p[i] * (dp[i] - mean[0]);
}

static float
cross_entropy(int count, int target, float weight, float *x)
{
	float		largest = largest_of(count, x);
	double		score = (double) x[target] - largest;
	float		sum = exponentials(count, 1.0f, largest, x);

	multiply_row(count, weight / sum, x);
	x[target] -= weight;
	return (float) (log((double) sum) - score);
}

static float
square_sum(int count, const float *x)
{
	return sum_row(count, x, 0.0f, 2);
}

/* ---- optimizer ---- */

static inline Vector
v_sqrt(Vector v)
{
	UNROLL for (int i = 0; i < LANES; i++)
		v[i] = sqrtf(v[i]);
	return v;
}

/* One vector of parameters; what it has beyond the last parameter is left alone by the caller. */
static inline void
adamw_vector(const AdamwRule *rule, Vector g, Vector *value, Vector *mean, Vector *square)
{
	*mean = *mean + v_set(1.0f - rule->beta1) * (g - *mean);
	*square = v_set(rule->beta2) * *square + v_set(1.0f - rule->beta2) * g * g;
	*value = *value * v_set(rule->keep) -
		v_set(rule->step_size) * *mean /
			(v_sqrt(*square) / v_set(rule->correction) + v_set(rule->epsilon));
}

static void
adamw(int count, const AdamwRule *rule, const float *gradient, float *value, float *mean,
	  float *square)
{
	for (int i = 0; i < count; i += LANES)
	{
		int			here = count - i < LANES ? count - i : LANES;
		Vector		v = here == LANES ? v_load(value + i) : v_load_part(value + i, here, 0.0f);
		Vector		m = here == LANES ? v_load(mean + i) : v_load_part(mean + i, here, 0.0f);
		Vector		s = here == LANES ? v_load(square + i) : v_load_part(square + i, here, 0.0f);

		adamw_vector(rule, here == LANES ? v_load(gradient + i)
										 : v_load_part(gradient + i, here, 0.0f), &v, &m, &s);
		v_store_part(value + i, v, here);
		v_store_part(mean + i, m, here);
		v_store_part(square + i, s, here);
	}
}
