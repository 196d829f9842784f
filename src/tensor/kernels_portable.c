/*
 * kernels_portable.c - the inner loops for any processor: four lanes of GCC's own
 * vectors, multiplication and addition rounded separately. The definition of what
 * the other sets compute.
 */
#define LANES 4
typedef float Vector __attribute__((vector_size(16)));
typedef int IntVector __attribute__((vector_size(16)));

static inline Vector
v_fma(Vector a, Vector b, Vector c)
{
	return a * b + c;
}

static inline Vector
v_max(Vector a, Vector b)
{
	IntVector	mask = a > b;

	return (Vector) ((mask & (IntVector) a) | (~mask & (IntVector) b));
}

static inline Vector
v_min(Vector a, Vector b)
{
	IntVector	mask = a < b;

	return (Vector) ((mask & (IntVector) a) | (~mask & (IntVector) b));
}

static inline float
v_largest(Vector v)
{
	Vector		pair = v_max(v, (Vector) {v[2], v[3], v[2], v[3]});

	return pair[0] > pair[1] ? pair[0] : pair[1];
}

#define PANEL_VECTORS 2
#define TILE_ROWS 4
#define QUANTIZED_ROWS 4
#define QUANTIZED_WIDE_ROWS 2
#define SCORE_ROWS 4
#define VALUE_ROWS 2
#define KERNELS kernels_portable
#define KERNELS_NAME "portable"
#include "kernels_template.h"
