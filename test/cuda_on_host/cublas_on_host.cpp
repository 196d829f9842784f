/*
 * cublas_on_host.cpp - the few calls of cuBLASLt that cuda/ makes, as plain loops.
 *
 * Column-major matrices of bf16, sums in f32 in the order of the depth; the caller's descriptors
 * are checked as far as cuBLASLt would. Of the algorithms that it offers, the faster ones have what the
 * backend must not take: one works for few columns only, one cuts the depth. All of them want
 * vectors of 16 bytes, and whole ones.
 */
#include "cublas.h"
#include "emulator.h"

/* Algorithms, in the first word of cublasLtMatmulAlgo_t. */
enum
{
	ALGORITHM_NARROW = 1,
	ALGORITHM_CUT,
	ALGORITHM_WHOLE,
	ALGORITHM_END
};

/* Columns that ALGORITHM_NARROW multiplies at most. */
#define NARROW_COLUMNS 64
#define VECTOR_BYTES 16

/* For the rest of the emulation a product is one more kernel. */
typedef struct HostProduct
{
	int			rows;			/* m, n and k of cuBLASLt */
	int			columns;
	int			depth;
	bool		a_transposed;
	const void *a;
	const void *b;
	float	   *d;
	long		a_stride;
	long		b_stride;
	long		d_stride;
	float		alpha;
	float		beta;
} HostProduct;

struct HostDescription
{
	cublasOperation_t a;
	cublasOperation_t b;
};

struct HostLayout
{
	cudaDataType_t type;
	uint64_t	rows;
	uint64_t	columns;
	int64_t		stride;
};

static inline float
element(const void *matrix, long index)
{
	return host_bits<float>((uint32_t) ((const uint16_t *) matrix)[index] << 16);
}

/* Run by the first thread of one warp; the others have nothing to do. */
static void
product_kernel(HostProduct p)
{
	if (threadIdx.x != 0)
		return;
	for (int column = 0; column < p.columns; column++)
	{
		race_set(p.d + column * p.d_stride, (size_t) p.rows * sizeof(float), MEMORY_DEFINED);
		for (int row = 0; row < p.rows; row++)
		{
			float		sum = 0;
			float	   *d = p.d + column * p.d_stride + row;

			for (int k = 0; k < p.depth; k++)
				sum += element(p.a, p.a_transposed ? row * p.a_stride + k
												   : k * p.a_stride + row) *
					element(p.b, column * p.b_stride + k);
			*d = p.alpha * sum + (p.beta == 0 ? 0 : p.beta * *d);
		}
	}
}

static cublasStatus_t
create(cublasLtHandle_t *handle)
{
	static char handles;

	*handle = (cublasLtHandle_t) &handles;
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
destroy(cublasLtHandle_t handle)
{
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
description_create(cublasLtMatmulDesc_t *description, cublasComputeType_t compute,
				   cudaDataType_t scale)
{
	if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
		return CUBLAS_STATUS_NOT_SUPPORTED;
	*description = (cublasLtMatmulDesc_t) new HostDescription{CUBLAS_OP_N, CUBLAS_OP_N};
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
description_destroy(cublasLtMatmulDesc_t description)
{
	delete (HostDescription *) description;
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
description_set(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t attribute,
				const void *value, size_t bytes)
{
	HostDescription *host = (HostDescription *) description;

	if (bytes != sizeof(cublasOperation_t))
		return CUBLAS_STATUS_INVALID_VALUE;
	if (attribute == CUBLASLT_MATMUL_DESC_TRANSA)
		memcpy(&host->a, value, bytes);
	else if (attribute == CUBLASLT_MATMUL_DESC_TRANSB)
		memcpy(&host->b, value, bytes);
	else
		return CUBLAS_STATUS_NOT_SUPPORTED;
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
layout_create(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows, uint64_t columns,
			  int64_t stride)
{
	if (stride < (int64_t) rows)
		return CUBLAS_STATUS_INVALID_VALUE;
	*layout = (cublasLtMatrixLayout_t) new HostLayout{type, rows, columns, stride};
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
layout_destroy(cublasLtMatrixLayout_t layout)
{
	delete (HostLayout *) layout;
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
preference_create(cublasLtMatmulPreference_t *preference)
{
	static char preferences;

	*preference = (cublasLtMatmulPreference_t) &preferences;
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
preference_destroy(cublasLtMatmulPreference_t preference)
{
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
preference_set(cublasLtMatmulPreference_t preference,
			   cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t bytes)
{
	return CUBLAS_STATUS_SUCCESS;
}

/* Whether a matrix is made of whole vectors. */
static bool
has_vectors(cublasLtMatrixLayout_t matrix, const void *data)
{
	const HostLayout *layout = (const HostLayout *) matrix;
	size_t		size = layout->type == CUDA_R_32F ? sizeof(float) : sizeof(uint16_t);

	return (uintptr_t) data % VECTOR_BYTES == 0 && layout->rows * size % VECTOR_BYTES == 0 &&
		(size_t) layout->stride * size % VECTOR_BYTES == 0;
}

static cublasStatus_t
check(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a,
	  cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
	  const cublasLtMatmulAlgo_t *algorithm, cublasLtMatmulHeuristicResult_t *result)
{
	memset(result, 0, sizeof(*result));
	if (!has_vectors(a, NULL) || !has_vectors(b, NULL) || !has_vectors(d, NULL) ||
		algorithm->data[0] < ALGORITHM_NARROW || algorithm->data[0] >= ALGORITHM_END ||
		(algorithm->data[0] == ALGORITHM_NARROW &&
		 ((const HostLayout *) d)->columns > NARROW_COLUMNS))
		return CUBLAS_STATUS_NOT_SUPPORTED;
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
configuration(const cublasLtMatmulAlgo_t *algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute,
			  void *value, size_t bytes, size_t *written)
{
	if (attribute != CUBLASLT_ALGO_CONFIG_SPLITK_NUM || bytes != sizeof(int32_t))
		return CUBLAS_STATUS_NOT_SUPPORTED;
	*(int32_t *) value = algorithm->data[0] == ALGORITHM_CUT ? 2 : 1;
	*written = bytes;
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
heuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a,
		  cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
		  cublasLtMatmulPreference_t preference, int wanted,
		  cublasLtMatmulHeuristicResult_t *results, int *found)
{
	*found = 0;
	memset(results, 0, sizeof(*results) * (size_t) wanted);
	for (uint64_t i = ALGORITHM_NARROW; i < ALGORITHM_END && *found < wanted; i++)
	{
		cublasLtMatmulHeuristicResult_t checked;
		cublasLtMatmulAlgo_t algorithm = {{i}};

		if (check(handle, description, a, b, c, d, &algorithm, &checked) == CUBLAS_STATUS_SUCCESS)
			results[(*found)++].algo = algorithm;
	}
	return *found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

static cublasStatus_t
matmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void *alpha, const void *a,
	   cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
	   const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
	   cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algorithm, void *workspace,
	   size_t workspace_bytes, cudaStream_t stream)
{
	const HostDescription *host = (const HostDescription *) description;
	const HostLayout *la = (const HostLayout *) a_layout;
	const HostLayout *lb = (const HostLayout *) b_layout;
	const HostLayout *ld = (const HostLayout *) d_layout;
	bool		transposed = host->a == CUBLAS_OP_T;
	HostProduct product = {
		(int) ld->rows, (int) ld->columns, (int) lb->rows, transposed, a, b, (float *) d,
		la->stride, lb->stride, ld->stride, *(const float *) alpha, *(const float *) beta};
	cublasLtMatmulHeuristicResult_t checked;

	if (host->b != CUBLAS_OP_N || la->type != CUDA_R_16BF || lb->type != CUDA_R_16BF ||
		ld->type != CUDA_R_32F || c != d || lb->columns != ld->columns ||
		(transposed ? la->rows : la->columns) != lb->rows ||
		(transposed ? la->columns : la->rows) != ld->rows)
		return CUBLAS_STATUS_INVALID_VALUE;
	if (algorithm->data[0] == ALGORITHM_CUT || !has_vectors(a_layout, a) ||
		!has_vectors(b_layout, b) || !has_vectors(d_layout, d) ||
		check(handle, description, a_layout, b_layout, c_layout, d_layout, algorithm,
			  &checked) != CUBLAS_STATUS_SUCCESS)
		return CUBLAS_STATUS_NOT_SUPPORTED;
	LAUNCH(product_kernel, 1, 32, 0, stream, product);
	return CUBLAS_STATUS_SUCCESS;
}

bool
cublas_load(CublasLt *table, Status *status)
{
	*table = (CublasLt) {create, destroy, description_create, description_destroy,
						 description_set, layout_create, layout_destroy, preference_create,
						 preference_destroy, preference_set, heuristic, check, configuration,
						 matmul};
	return true;
}
