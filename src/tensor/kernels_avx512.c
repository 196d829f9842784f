/*
 * kernels_avx512.c - the inner loops for AVX-512.
 */
#include "kernels_avx512.h"

/* The even bytes and the odd ones as numbers of 16 bits, as for AVX2. */
#define HAS_DOT_BYTES
static inline IntVector
v_dot_bytes(IntVector sum, IntVector codes, int32_t x)
{
	__m512i		bytes = _mm512_set1_epi32(x);
	__m512i		even = _mm512_madd_epi16(_mm512_and_si512((__m512i) codes, _mm512_set1_epi16(255)),
										 _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8));
	__m512i		odd = _mm512_madd_epi16(_mm512_srli_epi16((__m512i) codes, 8),
										_mm512_srai_epi16(bytes, 8));

	return sum + (IntVector) even + (IntVector) odd;
}

#define HAS_DOT_NIBBLES
#define v_dot_nibbles(sums, codes, x) \
	((IntVector) _mm512_add_epi16((__m512i) (sums), \
								  _mm512_maddubs_epi16((__m512i) (codes), _mm512_set1_epi32(x))))
#define v_add_pairs(sums) \
	((IntVector) _mm512_madd_epi16((__m512i) (sums), _mm512_set1_epi16(1)))

#define KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#include "kernels_template.h"
