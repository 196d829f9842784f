/*
 * cublas_product.cu - products of bf16 matrices by cuBLASLt.
 *
 * cuBLASLt's matrices are column-major, ours row-major: it computes y^T [M, R] = a^T x^T. For every
 * weight one algorithm is chosen when the weight is made and used for any number of rows, without
 * cutting the depth into parts that are summed up later: so the sum of an output has one order
 * whatever rows come with it.
 */
#include "cuda_backend.h"

#define WORKSPACE_BYTES ((size_t) 32 << 20)

/*
 * Rows that the algorithm is chosen for: few enough that decoding is not slow, many enough that
 * prompts are not; and where few rows are multiplied by kernels of our own, those of a prompt.
 */
#define PINNED_ROWS 64
#define PROMPT_ROWS 512

/* The descriptors of one product. */
typedef struct Descriptors
{
	cublasLtMatmulDesc_t description;
	cublasLtMatrixLayout_t a;
	cublasLtMatrixLayout_t x;
	cublasLtMatrixLayout_t y;
} Descriptors;

static bool
note(CudaBackend *cuda, cublasStatus_t status)
{
	if (status != CUBLAS_STATUS_SUCCESS && cuda->cublas_error == CUBLAS_STATUS_SUCCESS)
		cuda->cublas_error = status;
	return status == CUBLAS_STATUS_SUCCESS;
}

bool
cublas_begin(CudaBackend *cuda, Status *status)
{
	cublasStatus_t error;

	if (!cublas_load(&cuda->cublas, status))
		return false;
	error = cuda->cublas.create(&cuda->handle);
	if (error != CUBLAS_STATUS_SUCCESS)
		return status_set(status, STATUS_NOT_SUPPORTED, "cuBLASLt could not start: error %d",
						  static_cast<int>(error));
	return cuda_allocate(&cuda->base, WORKSPACE_BYTES, &cuda->workspace, status);
}

void
cublas_end(CudaBackend *cuda)
{
	cuda_release(&cuda->base, cuda->workspace);
	if (cuda->handle != nullptr)
		cuda->cublas.destroy(cuda->handle);
	cublas_unload(&cuda->cublas);
}

/* y [rows, outputs] of f32 from a and x of bf16. */
static bool
make_descriptors(CudaBackend *cuda, int outputs, int depth, int rows, int64_t a_stride,
				 bool a_transposed, int64_t x_stride, int64_t y_stride, Descriptors *d)
{
	cublasOperation_t operation = a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
	uint64_t	a_rows = static_cast<uint64_t>(a_transposed ? depth : outputs);
	uint64_t	a_columns = static_cast<uint64_t>(a_transposed ? outputs : depth);
	uint64_t	columns = static_cast<uint64_t>(rows);

	*d = Descriptors();
	return note(cuda, cuda->cublas.description_create(&d->description, CUBLAS_COMPUTE_32F,
													  CUDA_R_32F)) &&
		note(cuda, cuda->cublas.description_set(d->description, CUBLASLT_MATMUL_DESC_TRANSA,
												&operation, sizeof(operation))) &&
		note(cuda, cuda->cublas.layout_create(&d->a, CUDA_R_16BF, a_rows, a_columns, a_stride)) &&
		note(cuda, cuda->cublas.layout_create(&d->x, CUDA_R_16BF, static_cast<uint64_t>(depth),
											  columns, x_stride)) &&
		note(cuda, cuda->cublas.layout_create(&d->y, CUDA_R_32F, static_cast<uint64_t>(outputs),
											  columns, y_stride));
}

static void
free_descriptors(CudaBackend *cuda, Descriptors *d)
{
	if (d->y != nullptr)
		cuda->cublas.layout_destroy(d->y);
	if (d->x != nullptr)
		cuda->cublas.layout_destroy(d->x);
	if (d->a != nullptr)
		cuda->cublas.layout_destroy(d->a);
	if (d->description != nullptr)
		cuda->cublas.description_destroy(d->description);
}

/*
 * What an algorithm may do: no cut of the depth, since parts would be summed in an order of their
 * own, and y anywhere, as it may be a range of another tensor's columns.
 */
static cublasLtMatmulPreference_t
make_preference(CudaBackend *cuda)
{
	cublasLtMatmulPreference_t preference = nullptr;
	uint32_t	reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
	uint32_t	alignment = sizeof(float);
	size_t		workspace = WORKSPACE_BYTES;

	if (!note(cuda, cuda->cublas.preference_create(&preference)))
		return nullptr;
	note(cuda, cuda->cublas.preference_set(preference,
										   CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction,
										   sizeof(reduction)));
	note(cuda, cuda->cublas.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
										   &workspace, sizeof(workspace)));
	note(cuda, cuda->cublas.preference_set(preference,
										   CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &alignment,
										   sizeof(alignment)));
	note(cuda, cuda->cublas.preference_set(preference,
										   CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &alignment,
										   sizeof(alignment)));
	return preference;
}

bool
cublas_pin(CudaBackend *cuda, int outputs, int depth, int64_t a_stride, bool a_transposed,
		   cublasLtMatmulAlgo_t *algorithm, Status *status)
{
	int64_t		x_stride = (depth + 7) / 8 * 8;
	cublasLtMatmulPreference_t preference = make_preference(cuda);
	cublasLtMatmulHeuristicResult_t result;
	Descriptors d = {};
	int			found = 0;

	if (preference != nullptr &&
		make_descriptors(cuda, outputs, depth, cuda->any_order ? PROMPT_ROWS : PINNED_ROWS,
						 a_stride, a_transposed, x_stride, outputs, &d))
		note(cuda, cuda->cublas.heuristic(cuda->handle, d.description, d.a, d.x, d.y, d.y,
										  preference, 1, &result, &found));
	free_descriptors(cuda, &d);
	if (preference != nullptr)
		cuda->cublas.preference_destroy(preference);
	if (found == 0)
	{
		int			error = static_cast<int>(cuda->cublas_error);

		cuda->cublas_error = CUBLAS_STATUS_SUCCESS;
		return status_set(status, STATUS_NOT_SUPPORTED,
						  "cuBLASLt has no product for a bf16 matrix of %d by %d (error %d)",
						  outputs, depth, error);
	}
	*algorithm = result.algo;
	return true;
}

void
cublas_multiply(CudaBackend *cuda, const CublasProduct *p)
{
	Descriptors d;

	if (p->y.rows > 0 &&
		make_descriptors(cuda, p->y.columns, p->depth, p->y.rows, p->a_stride, p->a_transposed,
						 p->x_stride, p->y.stride, &d))
		note(cuda, cuda->cublas.matmul(cuda->handle, d.description, &p->factor, p->a, d.a, p->x,
									   d.x, &p->beta, p->y.data, d.y, p->y.data, d.y, p->algorithm,
									   cuda->workspace, WORKSPACE_BYTES, cuda->stream));
	if (p->y.rows > 0)
		free_descriptors(cuda, &d);
}
