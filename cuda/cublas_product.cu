/*
 * cublas_product.cu - products of bf16 matrices by cuBLASLt.
 *
 * cuBLASLt's matrices are column-major, ours row-major: it computes y^T [M, R] = a^T x^T. For every
 * weight one algorithm is chosen when the weight is made and used for any number of rows, without
 * cutting the depth into parts that are summed up later: so the sum of an output has one order
 * whatever rows come with it.
 *
 * Its fast algorithms move vectors of 16 bytes, and one that was chosen for matrices which lie well
 * need not take others. So all of them do: the sizes of a product are rounded up to PRODUCT_UNIT,
 * and a y that does not lie well receives its sums by way of memory of the backend's own.
 */
#include "cuda_backend.h"

#define WORKSPACE_BYTES ((size_t) 32 << 20)
/* Bytes that matrices and their rows begin at multiples of. */
#define ALIGNMENT 16

/*
 * Rows that the algorithm is chosen for: few enough that decoding is not slow, many enough that
 * prompts are not; and where few rows are multiplied by kernels of our own, those of a prompt.
 */
#define PINNED_ROWS 64
#define PROMPT_ROWS 512
/* Numbers of rows that it has to work for. */
static const int checked_rows[] = {1, 2, 8, 33, PINNED_ROWS, PROMPT_ROWS, 8192};
/* Algorithms that are looked at for one weight. */
#define CANDIDATES 16

/* Of sums on their way to a y that does not lie well: bytes at a time. */
#define SUMS_BYTES ((size_t) 64 << 20)

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
}

static bool
make_descriptors(CudaBackend *cuda, const CublasProduct *p, Descriptors *d)
{
	const CublasLt *lt = &cuda->cublas;
	cublasOperation_t operation = p->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
	uint64_t	outputs = static_cast<uint64_t>(p->y.columns);
	uint64_t	depth = static_cast<uint64_t>(p->depth);
	uint64_t	rows = static_cast<uint64_t>(p->y.rows);

	*d = Descriptors();
	return note(cuda, lt->description_create(&d->description, CUBLAS_COMPUTE_32F, CUDA_R_32F)) &&
		note(cuda, lt->description_set(d->description, CUBLASLT_MATMUL_DESC_TRANSA, &operation,
									   sizeof(operation))) &&
		note(cuda, lt->layout_create(&d->a, CUDA_R_16BF, p->a_transposed ? depth : outputs,
									 p->a_transposed ? outputs : depth, p->a_stride)) &&
		note(cuda, lt->layout_create(&d->x, CUDA_R_16BF, depth, rows, p->x_stride)) &&
		note(cuda, lt->layout_create(&d->y, CUDA_R_32F, outputs, rows, p->y.stride));
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

/* ---- the choice of an algorithm ---- */

template <typename Value>
static void
prefer(CudaBackend *cuda, cublasLtMatmulPreference_t preference,
	   cublasLtMatmulPreferenceAttributes_t attribute, Value value)
{
	note(cuda, cuda->cublas.preference_set(preference, attribute, &value, sizeof(value)));
}

/*
 * What an algorithm may do: no cut of the depth, since parts would be summed in an order of their
 * own, and no more than the memory that it is given.
 */
static cublasLtMatmulPreference_t
make_preference(CudaBackend *cuda)
{
	static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
	cublasLtMatmulPreference_t preference = nullptr;

	if (!note(cuda, cuda->cublas.preference_create(&preference)))
		return nullptr;
	prefer<uint32_t>(cuda, preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
					 CUBLASLT_REDUCTION_SCHEME_NONE);
	prefer<uint64_t>(cuda, preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE_BYTES);
	for (cublasLtMatmulPreferenceAttributes_t attribute : alignments)
		prefer<uint32_t>(cuda, preference, attribute, ALIGNMENT);
	return preference;
}

/* Algorithms for a product, the fastest first; returns how many. */
static int
find_algorithms(CudaBackend *cuda, const CublasProduct *p,
				cublasLtMatmulHeuristicResult_t *results)
{
	cublasLtMatmulPreference_t preference = make_preference(cuda);
	Descriptors d = {};
	int			found = 0;

	if (preference != nullptr && make_descriptors(cuda, p, &d))
		note(cuda, cuda->cublas.heuristic(cuda->handle, d.description, d.a, d.x, d.y, d.y,
										  preference, CANDIDATES, results, &found));
	free_descriptors(cuda, &d);
	if (preference != nullptr)
		cuda->cublas.preference_destroy(preference);
	return found;
}

/* Whether an algorithm sums in one sequence. */
static bool
keeps_order(const CudaBackend *cuda, const cublasLtMatmulAlgo_t *algorithm)
{
	int32_t		parts = 1;
	uint32_t	reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
	size_t		written;

	/* what an algorithm does not have stays as it is */
	cuda->cublas.configuration(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof(parts),
							   &written);
	cuda->cublas.configuration(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
							   sizeof(reduction), &written);
	return parts <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* Whether an algorithm multiplies any number of rows. */
static bool
takes_all_rows(CudaBackend *cuda, CublasProduct p, const cublasLtMatmulAlgo_t *algorithm)
{
	for (int rows : checked_rows)
	{
		cublasLtMatmulHeuristicResult_t result;
		Descriptors d;
		bool		good;

		p.y.rows = rows;
		good = make_descriptors(cuda, &p, &d) &&
			cuda->cublas.check(cuda->handle, d.description, d.a, d.x, d.y, d.y, algorithm,
							   &result) == CUBLAS_STATUS_SUCCESS &&
			result.workspaceSize <= WORKSPACE_BYTES;
		free_descriptors(cuda, &d);
		if (!good)
			return false;
	}
	return true;
}

bool
cublas_pin(CudaBackend *cuda, int outputs, int depth, int64_t a_stride, bool a_transposed,
		   cublasLtMatmulAlgo_t *algorithm, Status *status)
{
	cublasLtMatmulHeuristicResult_t results[CANDIDATES];
	CublasProduct p = {};
	int			found;
	int			error;

	p.y = tensor_make(nullptr, TYPE_F32, cuda->any_order ? PROMPT_ROWS : PINNED_ROWS,
					  product_size(outputs));
	p.depth = product_size(depth);
	p.x_stride = p.depth;
	p.a_stride = a_stride;
	p.a_transposed = a_transposed;
	found = find_algorithms(cuda, &p, results);
	/* where the check refuses all, one may work yet: a product that does not says so itself */
	for (int i = 0; i < 2 * found; i++)
	{
		const cublasLtMatmulAlgo_t *candidate = &results[i % found].algo;

		if (results[i % found].state == CUBLAS_STATUS_SUCCESS && keeps_order(cuda, candidate) &&
			(i >= found || takes_all_rows(cuda, p, candidate)))
		{
			*algorithm = *candidate;
			cuda->cublas_error = CUBLAS_STATUS_SUCCESS;
			return true;
		}
	}
	error = static_cast<int>(cuda->cublas_error);
	cuda->cublas_error = CUBLAS_STATUS_SUCCESS;
	return status_set(status, STATUS_NOT_SUPPORTED,
					  "cuBLASLt has no product for a bf16 matrix of %d by %d (error %d)",
					  outputs, depth, error);
}

/* ---- products ---- */

/* A product whose y lies well. */
static void
multiply(CudaBackend *cuda, const CublasProduct *p)
{
	Descriptors d;

	if (make_descriptors(cuda, p, &d))
		note(cuda, cuda->cublas.matmul(cuda->handle, d.description, &p->factor, p->a, d.a, p->x,
									   d.x, &p->beta, p->y.data, d.y, p->y.data, d.y, p->algorithm,
									   cuda->workspace, WORKSPACE_BYTES, cuda->stream));
	free_descriptors(cuda, &d);
}

/* y = sums + beta * y. */
static void
add_sums(CudaBackend *cuda, Tensor y, Tensor sums, float beta)
{
	Rows		to = cuda_rows(y);
	Rows		from = cuda_rows(sums);

	for_each_element(cuda, y.rows, y.columns, [=] __device__ (int64_t row, int column) {
		float	   *at = to.row(row) + column;
		float		sum = from.row(row)[column];

		*at = beta == 0.0f ? sum : fmaf(beta, *at, sum);
	});
}

/* A product whose sums, of `width` outputs with those that round them up, go to y afterwards. */
static void
multiply_aside(CudaBackend *cuda, const CublasProduct *p, int width)
{
	size_t		row_bytes = static_cast<size_t>(width) * sizeof(float);
	int			fitting = static_cast<int>(SUMS_BYTES / row_bytes) + 1;
	int			most = p->y.rows < fitting ? p->y.rows : fitting;
	void	   *sums = cuda_scratch(cuda, &cuda->products, static_cast<size_t>(most) * row_bytes);

	for (int first = 0; sums != nullptr && first < p->y.rows; first += most)
	{
		int			rows = p->y.rows - first < most ? p->y.rows - first : most;
		CublasProduct part = *p;

		part.x = p->x + first * p->x_stride;
		part.y = tensor_make(sums, TYPE_F32, rows, width);
		part.beta = 0.0f;
		multiply(cuda, &part);
		add_sums(cuda, tensor_row_range(p->y, first, rows), part.y, p->beta);
	}
}

void
cublas_multiply(CudaBackend *cuda, const CublasProduct *p)
{
	int			width = product_size(p->y.columns);

	if (p->y.rows == 0)
		return;
	if (p->y.columns == width && reinterpret_cast<uintptr_t>(p->y.data) % ALIGNMENT == 0 &&
		p->y.stride * static_cast<int64_t>(sizeof(float)) % ALIGNMENT == 0)
		multiply(cuda, p);
	else
		multiply_aside(cuda, p, width);
}
