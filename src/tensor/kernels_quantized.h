/*
 * kernels_quantized.h - products with weights in 8 and 4 bits, and how their gradients read them;
 * part of kernels_template.h.
 *
 * A row of x is quantised to 8 bits in blocks of the same 32 inputs as the weights. Of each block
 * of a row and an output the integers are multiplied and summed exactly; the block then adds to
 * the sum of the output, blocks in order and every operation rounded:
 *
 *	sum = sum + integer sum * (scale of the weights * scale of x)
 *
 * Integers are exact in any order and the three operations in f32 are the same everywhere, so all
 * instruction sets give the same bits, for one row as for many.
 *
 * Codes are multiplied as unsigned bytes, q + code_offset, because vpdpbusd takes one operand
 * without sign; what the offset adds, code_offset * (sum of x's integers), is taken off where an
 * integer sum begins.
 *
 * In packed weights a block of a panel is PANEL scales (bf16), and then words of four codes for
 * neighbouring inputs, PANEL words side by side for each four inputs. A word of 4-bit codes holds
 * eight: those of four inputs in the low halves of its bytes, and of the next four in the high
 * ones.
 */

#define BLOCK_WORDS (QUANTIZED_BLOCK / 4)
#define BLOCK_VECTORS (QUANTIZED_BLOCK / LANES)
#define LOW_HALVES 0x0F0F0F0F

/* Added to a number below 2^22 it leaves the number rounded, to nearest even, in the low bits. */
#define ROUNDING 12582912.0f
#define ROUNDING_BITS 0x4B400000

typedef int8_t ByteVector __attribute__((vector_size(LANES)));
typedef uint16_t ScaleVector __attribute__((vector_size(2 * LANES)));
typedef IntVector UnalignedIntVector __attribute__((aligned(4), may_alias));

static inline IntVector
v_load_words(const uint8_t *p)
{
	return *(const UnalignedIntVector *) (const void *) p;
}

static inline IntVector
v_set_int(int32_t value)
{
	return value - (IntVector) {0};
}

#ifndef HAS_DOT_BYTES
/* sum + the products of four unsigned bytes of each word with four signed ones. */
static inline IntVector
v_dot_bytes(IntVector sum, IntVector codes, int32_t x)
{
	UNROLL for (int i = 0; i < 32; i += 8)
		sum += (codes >> i & 255) * v_set_int((int8_t) (x >> i));
	return sum;
}
#endif

/*
 * Codes of 4 bits fit 16 bits as sums of pairs: of a block each sum has 16 products of at most
 * 15 * 127. So a machine that multiplies bytes only into such sums widens them once a block.
 */
#ifdef HAS_DOT_NIBBLES
#define PAIR_SUMS true
#else
#define PAIR_SUMS false
#define v_dot_nibbles(sums, codes, x) (sums)
#define v_add_pairs(sums) (sums)
#endif

#ifndef HAS_WIDEN_HALVES
/* LANES numbers of 16 bits at p, as words. */
static inline IntVector
v_widen_halves(const uint8_t *p)
{
	ScaleVector halves;

	memcpy(&halves, p, sizeof(halves));
	return __builtin_convertvector(halves, IntVector);
}
#endif

/* The scales at p as f32. */
static inline Vector
v_load_scales(const uint8_t *p)
{
	return (Vector) (v_widen_halves(p) << 16);
}

/* Unsigned codes of inputs [4 group, 4 group + 4) of a block, for one vector of outputs. */
static inline __attribute__((always_inline)) IntVector
v_load_codes(const bool four, const uint8_t *codes, int group, int v)
{
	int			word = four ? group / 2 : group;
	IntVector	codes_here = v_load_words(codes + (word * PANEL + v * LANES) * 4);

	if (!four)
		return codes_here;
	return (group % 2 == 0 ? codes_here : codes_here >> 4) & LOW_HALVES;
}

/* What is added to a code of a packed weight. */
static inline int
code_offset(const bool four)
{
	return four ? 8 : 128;
}

/* Bytes of a block of a panel. */
static inline size_t
block_bytes(const bool four)
{
	return (size_t) PANEL * (sizeof(uint16_t) + (four ? QUANTIZED_BLOCK / 2 : QUANTIZED_BLOCK));
}

/* Largest magnitude of a block of x as the bits of an f32, which order as the numbers do. */
static inline int32_t
largest_magnitude(const float *x)
{
	IntVector	largest = {0};
	int32_t		result = 0;

	for (int v = 0; v < BLOCK_VECTORS; v++)
	{
		IntVector	magnitude = (IntVector) v_load(x + v * LANES) & INT32_MAX;
		IntVector	larger = magnitude > largest;

		largest = (larger & magnitude) | (~larger & largest);
	}
	for (int i = 0; i < LANES; i++)
		result = largest[i] > result ? largest[i] : result;
	return result;
}

/*
 * A block of x: magnitudes below 2^-100 make it zero, and one that is not finite makes the scale
 * NaN, and so every product that the row enters.
 */
static inline void
quantize_block(const float *x, int offset, QuantizedBlock *to)
{
	int32_t		bits = largest_magnitude(x);
	IntVector	sum = {0};
	int32_t		whole_sum = 0;
	float		largest;
	Vector		inverse;

	if (bits < QUANTIZED_SMALLEST || bits >= 0x7F800000)
	{
		memset(to, 0, sizeof(*to));
		to->scale = bits < QUANTIZED_SMALLEST ? 0.0f : NAN;
		return;
	}
	memcpy(&largest, &bits, sizeof(largest));
	inverse = v_set(127.0f / largest);
	for (int v = 0; v < BLOCK_VECTORS; v++)
	{
		Vector		shifted = v_load(x + v * LANES) * inverse + v_set(ROUNDING);
		IntVector	rounded = (IntVector) shifted - ROUNDING_BITS;
		ByteVector	bytes = __builtin_convertvector(rounded, ByteVector);

		sum += rounded;
		memcpy(to->values + v * LANES, &bytes, sizeof(bytes));
	}
	to->scale = largest / 127.0f;
	for (int i = 0; i < LANES; i++)
		whole_sum += sum[i];
	to->begin = -offset * whole_sum;
}

static void
quantize_row(DataType type, int count, const float *x, QuantizedBlock *to)
{
	int			offset = code_offset(type == TYPE_Q4);
	float		last[QUANTIZED_BLOCK] = {0};
	int			k = 0;

	for (; k + QUANTIZED_BLOCK <= count; k += QUANTIZED_BLOCK)
		quantize_block(x + k, offset, to++);
	if (k == count)
		return;
	memcpy(last, x + k, (size_t) (count - k) * sizeof(float));
	quantize_block(last, offset, to);
}

/*
 * The register tile: integer sums of a block and f32 sums of rows x vectors, both in registers.
 * Outputs of the panel from vector `begin` on; four, rows and vectors are constants wherever this
 * is inlined. x_stride in blocks.
 */
static inline __attribute__((always_inline)) void
quantized_tile(const bool four, const int rows, const int vectors, int begin,
			   const QuantizedProduct *product)
{
	const bool	pairs = four && PAIR_SUMS;
	const QuantizedBlock *x = product->x;
	const size_t x_stride = product->x_stride;
	const uint8_t *weights = product->weights;
	/* each pass over the panel asks for its part of what comes next */
	const int	ahead_lines = product->ahead_lines * vectors / PANEL_VECTORS;
	const uint8_t *ahead = product->ahead + (size_t) (product->blocks * begin / vectors) *
		(size_t) ahead_lines * CACHE_LINE;
	const size_t stream = product->stream_ahead;
	float	   *sums = product->sums + begin * LANES;
	Vector		sum[QUANTIZED_ROWS][PANEL_VECTORS];

	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < vectors; v++)
			sum[r][v] = product->first ? v_set(0.0f) : v_load(sums + r * PANEL + v * LANES);
	for (int b = 0; b < product->blocks; b++, x++, weights += block_bytes(four))
	{
		const uint8_t *scales = weights + (size_t) (begin * LANES) * sizeof(uint16_t);
		const uint8_t *codes = weights + PANEL * sizeof(uint16_t) + (size_t) (begin * LANES) * 4;
		IntVector	dot[QUANTIZED_ROWS][PANEL_VECTORS];

		for (int line = 0; line < ahead_lines; line++, ahead += CACHE_LINE)
			__builtin_prefetch(ahead);
		UNROLL for (int r = 0; r < rows; r++)
			UNROLL for (int v = 0; v < vectors; v++)
				dot[r][v] = v_set_int(pairs ? 0 : x[(size_t) r * x_stride].begin);
		UNROLL for (int group = 0; group < BLOCK_WORDS; group++)
		{
			IntVector	w[PANEL_VECTORS];

			if (four && stream > 0 && group % 2 == 0)
				UNROLL for (int v = 0; v < vectors; v++)
					__builtin_prefetch(codes + stream + (group / 2 * PANEL + v * LANES) * 4);
			UNROLL for (int v = 0; v < vectors; v++)
				w[v] = v_load_codes(four, codes, group, v);
			UNROLL for (int r = 0; r < rows; r++)
			{
				int32_t		four_values;

				memcpy(&four_values, x[(size_t) r * x_stride].values + 4 * group,
					   sizeof(four_values));
				UNROLL for (int v = 0; v < vectors; v++)
					dot[r][v] = pairs ? v_dot_nibbles(dot[r][v], w[v], four_values)
						: v_dot_bytes(dot[r][v], w[v], four_values);
			}
		}
		UNROLL for (int v = 0; v < vectors; v++)
		{
			Vector		scale = v_load_scales(scales + (size_t) v * LANES * sizeof(uint16_t));

			UNROLL for (int r = 0; r < rows; r++)
			{
				const QuantizedBlock *block = &x[(size_t) r * x_stride];
				IntVector	integer = pairs ? v_add_pairs(dot[r][v]) + v_set_int(block->begin)
					: dot[r][v];

				sum[r][v] += __builtin_convertvector(integer, Vector) *
					(scale * v_set(block->scale));
			}
		}
	}
	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < vectors; v++)
			v_store(sums + r * PANEL + v * LANES, sum[r][v]);
}

/*
 * Few rows go over a panel at once. More go over one half of it and then over the other: twice the
 * rows share what it costs to unpack the codes and scales.
 */
static inline __attribute__((always_inline)) void
quantized_rows(const bool four, const int rows, const QuantizedProduct *product)
{
	if (rows <= QUANTIZED_WIDE_ROWS)
		quantized_tile(four, rows, PANEL_VECTORS, 0, product);
	else
		for (int begin = 0; begin < PANEL_VECTORS; begin += PANEL_VECTORS / 2)
			quantized_tile(four, rows, PANEL_VECTORS / 2, begin, product);
}

static inline __attribute__((always_inline)) void
quantized_product(const bool four, const QuantizedProduct *product)
{
	switch (product->rows)
	{
		case 1:
			quantized_rows(four, 1, product);
			break;
		case 2:
			quantized_rows(four, 2, product);
			break;
		case 3:
			quantized_rows(four, 3, product);
			break;
		case 4:
			quantized_rows(four, 4, product);
			break;
#if QUANTIZED_ROWS >= 6
		case 5:
			quantized_rows(four, 5, product);
			break;
		case 6:
			quantized_rows(four, 6, product);
			break;
#endif
	}
}

static void
multiply_panel_q8(const QuantizedProduct *product)
{
	quantized_product(false, product);
}

static void
multiply_panel_q4(const QuantizedProduct *product)
{
	quantized_product(true, product);
}

/* ---- for gradients: weights as bf16 ---- */

/* Weights of one input for a vector of outputs, rounded to bf16, in the low halves of words. */
static inline __attribute__((always_inline)) IntVector
dequantized_bits(const bool four, IntVector codes, int byte, Vector scales)
{
	IntVector	code = (codes >> 8 * byte & 255) - code_offset(four);
	IntVector	bits = (IntVector) (__builtin_convertvector(code, Vector) * scales);

	return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & PAIR_EVEN;
}

static inline __attribute__((always_inline)) void
turn_codes(const bool four, int first, int steps, const uint8_t *panel, uint32_t *turned)
{
	uint32_t	pairs[PANEL / 2 * PANEL];

	for (int i = 0; i < steps; i++)
	{
		int			input = first + 2 * i;
		const uint8_t *block = panel + (size_t) (input / QUANTIZED_BLOCK) * block_bytes(four);
		int			group = input % QUANTIZED_BLOCK / 4;

		for (int v = 0; v < PANEL_VECTORS; v++)
		{
			Vector		scales = v_load_scales(block + (size_t) v * LANES * sizeof(uint16_t));
			IntVector	codes = v_load_codes(four, block + PANEL * sizeof(uint16_t), group, v);
			IntVector	words = dequantized_bits(four, codes, input % 4, scales) |
				dequantized_bits(four, codes, input % 4 + 1, scales) << 16;

			memcpy(pairs + (size_t) i * PANEL + v * LANES, &words, sizeof(words));
		}
	}
	transpose_pairs(steps, pairs, turned);
}

static void
turn_quantized(DataType type, int first, int steps, const uint8_t *panel, uint32_t *turned)
{
	if (type == TYPE_Q4)
		turn_codes(true, first, steps, panel, turned);
	else
		turn_codes(false, first, steps, panel, turned);
}
