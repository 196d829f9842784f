/*
 * kernels_products.h - the register tile of a matrix product, for f32 and bf16 weights; part of
 * kernels_template.h.
 *
 * Packed weights are words of 32 bits, PANEL of them side by side for each step along the depth.
 * A step is one depth of f32, or two depths of bf16: the even one in the low half of the word, the
 * odd one in the high half. So both formats walk the same loops and differ in v_step only.
 *
 * The definition of a bf16 step, for every instruction set: sum = sum + x[odd] * w[odd], then
 * sum = sum + x[even] * w[even], each rounded to nearest even. That is the order of the
 * instruction vdpbf16ps (Intel, Software Developer's Manual). A product of two bf16 has 16 bits of
 * fraction and is exact in f32, so that separate and fused multiply-adds give the same bits. Only
 * below 2^-126 do they differ, where vdpbf16ps makes zero of what others keep.
 */

/* Address of a row's steps from `step` on: an f32, or a pair of Rounded, for each. */
static inline const void *
step_address(const bool bf16, const void *x, size_t step)
{
	if (bf16)
		return (const Rounded *) x + 2 * step;
	return (const float *) x + step;
}

/* sum + what one step of x adds in the lanes' outputs. */
static inline __attribute__((always_inline)) Vector
v_step(const bool bf16, Vector sum, const void *x, Vector weights)
{
	if (bf16)
		return v_dot_pair(sum, x, (IntVector) weights);
	return v_fma(v_set(*(const float *) x), weights, sum);
}

/* The register tile += `steps` steps; all counts are constants where this is inlined. */
static inline __attribute__((always_inline)) void
add_steps(const bool bf16, const int vectors, const int rows, const int steps,
		  const void *const *row, size_t first, const float *weights,
		  Vector sum[TILE_ROWS][PANEL_VECTORS])
{
	UNROLL for (int k = 0; k < steps; k++)
	{
		Vector		w[PANEL_VECTORS];

		UNROLL for (int v = 0; v < vectors; v++)
			w[v] = v_load(weights + k * PANEL + v * LANES);
		UNROLL for (int r = 0; r < rows; r++)
			UNROLL for (int v = 0; v < vectors; v++)
				sum[r][v] = v_step(bf16, sum[r][v], step_address(bf16, row[r], first + (size_t) k),
								   w[v]);
	}
}

/*
 * The register tile: rows sums in the first `vectors` vectors of a panel stay in registers while
 * the steps go by, and lines from ahead on are asked for, if any. bf16, vectors and rows are
 * constants wherever this is inlined, so that the loops unroll. x_stride in steps.
 */
static inline __attribute__((always_inline)) void
multiply_tile(const bool bf16, const int vectors, const int rows, int steps, const void *x,
			  size_t x_stride, const float *weights, float *sums, bool first, const char *ahead)
{
	Vector		sum[TILE_ROWS][PANEL_VECTORS];
	const void *row[TILE_ROWS];
	int			k = 0;

	UNROLL for (int r = 0; r < rows; r++)
	{
		row[r] = step_address(bf16, x, (size_t) r * x_stride);
		UNROLL for (int v = 0; v < vectors; v++)
			sum[r][v] = first ? v_set(0.0f) : v_load(sums + r * PANEL + v * LANES);
	}
	for (; ahead != NULL && k + STEPS_A_LINE <= steps; k += STEPS_A_LINE)
	{
		__builtin_prefetch(ahead + k / STEPS_A_LINE * CACHE_LINE, 0, 2);
		add_steps(bf16, vectors, rows, STEPS_A_LINE, row, (size_t) k,
				  weights + (size_t) k * PANEL, sum);
	}
	for (; k < steps; k++)
		add_steps(bf16, vectors, rows, 1, row, (size_t) k, weights + (size_t) k * PANEL, sum);
	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < vectors; v++)
			v_store(sums + r * PANEL + v * LANES, sum[r][v]);
}

static inline __attribute__((always_inline)) void
multiply_rows(const bool bf16, const int vectors, int rows, int steps, const void *x,
			  size_t x_stride, const float *weights, float *sums, bool first, const char *ahead)
{
	switch (rows)
	{
		case 1:
			multiply_tile(bf16, vectors, 1, steps, x, x_stride, weights, sums, first, ahead);
			break;
		case 2:
			multiply_tile(bf16, vectors, 2, steps, x, x_stride, weights, sums, first, ahead);
			break;
		case 3:
			multiply_tile(bf16, vectors, 3, steps, x, x_stride, weights, sums, first, ahead);
			break;
		case 4:
			multiply_tile(bf16, vectors, 4, steps, x, x_stride, weights, sums, first, ahead);
			break;
#if TILE_ROWS >= 6
		case 5:
			multiply_tile(bf16, vectors, 5, steps, x, x_stride, weights, sums, first, ahead);
			break;
		case 6:
			multiply_tile(bf16, vectors, 6, steps, x, x_stride, weights, sums, first, ahead);
			break;
#endif
	}
}

/* A panel of which only the first vector is wanted, as of LoRA's small ranks, is done faster. */
static void
multiply_panel(int rows, int columns, int depth, const float *x, size_t x_stride,
			   const float *weights, float *sums, bool first, const void *ahead)
{
	if (columns <= LANES)
		multiply_rows(false, 1, rows, depth, x, x_stride, weights, sums, first, ahead);
	else
		multiply_rows(false, PANEL_VECTORS, rows, depth, x, x_stride, weights, sums, first, ahead);
}

static void
multiply_panel_bf16(int rows, int pairs, const void *x, size_t x_stride, const void *weights,
					float *sums, bool first, const void *ahead)
{
	multiply_rows(true, PANEL_VECTORS, rows, pairs, x, x_stride, weights, sums, first, ahead);
}

static void
round_row(int count, const float *x, void *rounded)
{
	Rounded    *to = rounded;
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
		v_store_rounded(to + i, v_load(x + i));
	if (i < count)
	{
		Rounded		last[LANES];

		v_store_rounded(last, v_load_part(x + i, count - i, 0.0f));
		memcpy(to + i, last, (size_t) ((count - i + 1) / 2 * 2) * sizeof(Rounded));
	}
}

static void
convert_bf16(int count, const float *x, uint16_t *to)
{
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
		v_store_bf16(to + i, v_load(x + i));
	for (; i < count; i++)
		to[i] = bf16_from_f32(x[i]);
}

/* finish_row for the lanes of a vector, up to what y holds. */
static inline __attribute__((always_inline)) Vector
finish_vector(Vector sum, Vector bias, Activation activation, float scale)
{
	sum = sum + bias;
	if (activation == ACTIVATION_QUICK_GELU)
		sum = v_quick_gelu(sum);
	else if (activation == ACTIVATION_GELU)
		sum = v_gelu(sum);
	return v_set(scale) * sum;
}

static inline __attribute__((always_inline)) void
finish_columns(const bool with_bias, const bool accumulate, Activation activation, int count,
			   const float *sums, const float *bias, float scale, float *y)
{
	int			i = 0;

	for (; i + LANES <= count; i += LANES)
	{
		Vector		b = with_bias ? v_load(bias + i) : v_set(0.0f);
		Vector		v = finish_vector(v_load(sums + i), b, activation, scale);

		v_store(y + i, accumulate ? v_load(y + i) + v : v);
	}
	if (i < count)
	{
		Vector		b = with_bias ? v_load_part(bias + i, count - i, 0.0f) : v_set(0.0f);
		Vector		s = v_load_part(sums + i, count - i, 0.0f);
		Vector		v = finish_vector(s, b, activation, scale);

		v_store_part(y + i, accumulate ? v_load_part(y + i, count - i, 0.0f) + v : v, count - i);
	}
}

static void
finish_row(int count, const float *sums, const float *bias, Activation activation, float scale,
		   bool accumulate, float *y)
{
	if (bias == NULL && accumulate)
		finish_columns(false, true, activation, count, sums, NULL, scale, y);
	else if (bias == NULL)
		finish_columns(false, false, activation, count, sums, NULL, scale, y);
	else if (accumulate)
		finish_columns(true, true, activation, count, sums, bias, scale, y);
	else
		finish_columns(true, false, activation, count, sums, bias, scale, y);
}
