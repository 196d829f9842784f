/*
 * kernels_avx512vnni.c - the inner loops for AVX-512 with VNNI but without BF16: quantised weights
 * at full speed.
 */
#include "kernels_avx512.h"

#define KERNELS kernels_avx512vnni
#define KERNELS_NAME "avx512vnni"
#include "kernels_template.h"
