/*
 * kernels_avx2.c - the inner loops for AVX2 with FMA: eight lanes, 12 sums and 2
 * weights of the 16 registers in a product's tile.
 */
#include <immintrin.h>

#define LANES 8
typedef float Vector __attribute__((vector_size(32)));
typedef int IntVector __attribute__((vector_size(32)));

#define v_fma(a, b, c) ((Vector) _mm256_fmadd_ps((__m256) (a), (__m256) (b), (__m256) (c)))
#define v_max(a, b) ((Vector) _mm256_max_ps((__m256) (a), (__m256) (b)))
#define v_min(a, b) ((Vector) _mm256_min_ps((__m256) (a), (__m256) (b)))

static inline float
v_largest(Vector v)
{
	__m128		half = _mm_max_ps(_mm256_castps256_ps128((__m256) v),
								  _mm256_extractf128_ps((__m256) v, 1));

	half = _mm_max_ps(half, _mm_movehl_ps(half, half));
	return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

/*
 * Without an instruction for four bytes, two for two numbers of 16 bits do it: the even bytes and
 * the odd ones. None can overflow.
 */
#define HAS_DOT_BYTES
static inline IntVector
v_dot_bytes(IntVector sum, IntVector codes, int32_t x)
{
	__m256i		bytes = _mm256_set1_epi32(x);
	__m256i		even = _mm256_madd_epi16(_mm256_and_si256((__m256i) codes, _mm256_set1_epi16(255)),
										 _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8));
	__m256i		odd = _mm256_madd_epi16(_mm256_srli_epi16((__m256i) codes, 8),
										_mm256_srai_epi16(bytes, 8));

	return sum + (IntVector) even + (IntVector) odd;
}

#define HAS_DOT_NIBBLES
#define v_dot_nibbles(sums, codes, x) \
	((IntVector) _mm256_add_epi16((__m256i) (sums), \
								  _mm256_maddubs_epi16((__m256i) (codes), _mm256_set1_epi32(x))))
#define v_add_pairs(sums) \
	((IntVector) _mm256_madd_epi16((__m256i) (sums), _mm256_set1_epi16(1)))

#define PANEL_VECTORS 2
#define TILE_ROWS 6
#define QUANTIZED_ROWS 4
#define QUANTIZED_WIDE_ROWS 2
#define SCORE_ROWS 4
#define VALUE_ROWS 2
#define KERNELS kernels_avx2
#define KERNELS_NAME "avx2"
#include "kernels_template.h"
