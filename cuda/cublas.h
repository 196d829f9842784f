/*
 * cublas.h - the calls of cuBLASLt that we make, by a table.
 *
 * The library is 540 MB large and opened only when a device was found: linked, it would cost every
 * start without one, and its absence would be a loader's error instead of a message.
 */
#ifndef MMGPT_CUBLAS_H
#define MMGPT_CUBLAS_H

#include <cublasLt.h>

extern "C"
{
#include "status.h"
}

/* Types are cuBLASLt's own, so that a changed prototype is a compile error in the loader. */
typedef struct CublasLt
{
	decltype(&cublasLtCreate) create;
	decltype(&cublasLtDestroy) destroy;
	decltype(&cublasLtMatmulDescCreate) description_create;
	decltype(&cublasLtMatmulDescDestroy) description_destroy;
	decltype(&cublasLtMatmulDescSetAttribute) description_set;
	decltype(&cublasLtMatrixLayoutCreate) layout_create;
	decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
	decltype(&cublasLtMatmulPreferenceCreate) preference_create;
	decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
	decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
	decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
	decltype(&cublasLtMatmulAlgoCheck) check;
	decltype(&cublasLtMatmulAlgoConfigGetAttribute) configuration;
	decltype(&cublasLtMatmul) matmul;
} CublasLt;

/* Open the library, which then stays as long as the process, and fill the table. */
extern bool cublas_load(CublasLt *table, Status *status);

#endif
