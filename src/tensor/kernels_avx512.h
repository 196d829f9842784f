/*
 * kernels_avx512.h - what the kernels for AVX-512, with and without BF16, share: sixteen lanes, 24
 * sums and 4 weights of the 32 registers in a product's tile.
 */
#include <immintrin.h>

#define LANES 16
typedef float Vector __attribute__((vector_size(64)));
typedef int IntVector __attribute__((vector_size(64)));

#define v_fma(a, b, c) ((Vector) _mm512_fmadd_ps((__m512) (a), (__m512) (b), (__m512) (c)))
#define v_max(a, b) ((Vector) _mm512_max_ps((__m512) (a), (__m512) (b)))
#define v_min(a, b) ((Vector) _mm512_min_ps((__m512) (a), (__m512) (b)))
#define v_largest(a) _mm512_reduce_max_ps((__m512) (a))

#define PANEL_VECTORS 4
#define TILE_ROWS 6
#define QUANTIZED_ROWS 6
#define QUANTIZED_WIDE_ROWS 3
#define SCORE_ROWS 8
#define VALUE_ROWS 4

/* One instruction, where GCC's conversion takes five. */
#define HAS_WIDEN_HALVES
#define v_widen_halves(p) \
	((IntVector) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) (const void *) (p))))

#ifdef __AVX512VNNI__
/* Four products of bytes for each lane in one instruction. */
#define HAS_DOT_BYTES
#define v_dot_bytes(sum, codes, x) \
	((IntVector) _mm512_dpbusd_epi32((__m512i) (sum), (__m512i) (codes), _mm512_set1_epi32(x)))
#endif
