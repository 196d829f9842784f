/*
 * cublas_load.cu - opens cuBLASLt; see cublas.h.
 */
#include "cublas.h"

#include <dlfcn.h>

/* cuBLAS has the major number of the toolkit. */
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define CUBLAS_LIBRARY "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

/* Look up one function; the first that is missing is told. */
template <typename Function>
static void
find(void *library, Function *function, const char *name, const char **missing)
{
	*function = reinterpret_cast<Function>(dlsym(library, name));
	if (*function == nullptr && *missing == nullptr)
		*missing = name;
}

bool
cublas_load(CublasLt *table, Status *status)
{
	const char *missing = nullptr;
	void	   *library = dlopen(CUBLAS_LIBRARY, RTLD_NOW | RTLD_LOCAL);

	if (library == nullptr)
	{
		status_set(status, STATUS_NOT_SUPPORTED, "could not open %s: %.200s", CUBLAS_LIBRARY,
				   dlerror());
		return status_hint(status, "Install the cuBLAS library of CUDA %d.", CUBLAS_VER_MAJOR);
	}
	find(library, &table->create, "cublasLtCreate", &missing);
	find(library, &table->destroy, "cublasLtDestroy", &missing);
	find(library, &table->description_create, "cublasLtMatmulDescCreate", &missing);
	find(library, &table->description_destroy, "cublasLtMatmulDescDestroy", &missing);
	find(library, &table->description_set, "cublasLtMatmulDescSetAttribute", &missing);
	find(library, &table->layout_create, "cublasLtMatrixLayoutCreate", &missing);
	find(library, &table->layout_destroy, "cublasLtMatrixLayoutDestroy", &missing);
	find(library, &table->preference_create, "cublasLtMatmulPreferenceCreate", &missing);
	find(library, &table->preference_destroy, "cublasLtMatmulPreferenceDestroy", &missing);
	find(library, &table->preference_set, "cublasLtMatmulPreferenceSetAttribute", &missing);
	find(library, &table->heuristic, "cublasLtMatmulAlgoGetHeuristic", &missing);
	find(library, &table->check, "cublasLtMatmulAlgoCheck", &missing);
	find(library, &table->configuration, "cublasLtMatmulAlgoConfigGetAttribute", &missing);
	find(library, &table->matmul, "cublasLtMatmul", &missing);
	return missing == nullptr ||
		status_set(status, STATUS_NOT_SUPPORTED, "%s lacks %s", CUBLAS_LIBRARY, missing);
}
