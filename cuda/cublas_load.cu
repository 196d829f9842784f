/*
 * cublas_load.cu - opens cuBLASLt; see cublas.h.
 */
#include "cublas.h"

#include <dlfcn.h>

/* cuBLAS has the major number of the toolkit. */
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define CUBLAS_LIBRARY "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

static void *library;

/* Look up one function; the first that is missing is told. */
template <typename Function>
static void
find(Function *function, const char *name, const char **missing)
{
	*function = reinterpret_cast<Function>(dlsym(library, name));
	if (*function == nullptr && *missing == nullptr)
		*missing = name;
}

bool
cublas_load(CublasLt *table, Status *status)
{
	const char *missing = nullptr;

	library = dlopen(CUBLAS_LIBRARY, RTLD_NOW | RTLD_LOCAL);
	if (library == nullptr)
	{
		status_set(status, STATUS_NOT_SUPPORTED, "could not open %s: %.200s", CUBLAS_LIBRARY,
				   dlerror());
		return status_hint(status, "Install the cuBLAS library of CUDA %d.", CUBLAS_VER_MAJOR);
	}
	find(&table->create, "cublasLtCreate", &missing);
	find(&table->destroy, "cublasLtDestroy", &missing);
	find(&table->description_create, "cublasLtMatmulDescCreate", &missing);
	find(&table->description_destroy, "cublasLtMatmulDescDestroy", &missing);
	find(&table->description_set, "cublasLtMatmulDescSetAttribute", &missing);
	find(&table->layout_create, "cublasLtMatrixLayoutCreate", &missing);
	find(&table->layout_destroy, "cublasLtMatrixLayoutDestroy", &missing);
	find(&table->preference_create, "cublasLtMatmulPreferenceCreate", &missing);
	find(&table->preference_destroy, "cublasLtMatmulPreferenceDestroy", &missing);
	find(&table->preference_set, "cublasLtMatmulPreferenceSetAttribute", &missing);
	find(&table->heuristic, "cublasLtMatmulAlgoGetHeuristic", &missing);
	find(&table->matmul, "cublasLtMatmul", &missing);
	if (missing == nullptr)
		return true;
	cublas_unload(table);
	return status_set(status, STATUS_NOT_SUPPORTED, "%s lacks %s", CUBLAS_LIBRARY, missing);
}

void
cublas_unload(CublasLt *table)
{
	if (library != nullptr)
		dlclose(library);
	library = nullptr;
}
