/*
 * cuda_library.h - how the engine and mmgpt_cuda.so meet: the one symbol that the library exports.
 */
#ifndef MMGPT_CUDA_LIBRARY_H
#define MMGPT_CUDA_LIBRARY_H

#include "backend.h"

#define CUDA_LIBRARY_FILE "mmgpt_cuda.so"
#define CUDA_LIBRARY_SYMBOL "mmgpt_cuda_library"

typedef struct CudaLibrary
{
	int			version;		/* BACKEND_VERSION; of another one nothing behind it is read */

	/*
	 * How many devices there are, 0 without a driver. reason [reason_size] receives why there is
	 * none.
	 */
	int			(*devices) (char *reason, size_t reason_size);
	/* Open a device, counted from 0; any_order as in DeviceOptions. */
	Backend    *(*open) (int device, bool any_order, Status *status);
} CudaLibrary;

#endif
