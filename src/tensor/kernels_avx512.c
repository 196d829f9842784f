/*
 * kernels_avx512.c - the inner loops for AVX-512.
 */
#include "kernels_avx512.h"

#define KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#include "kernels_template.h"
