/*
 * backend_load.c - which device to compute on, and the CUDA library, which is opened only when one
 * is asked for or may be there.
 */
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda_library.h"
#include "log.h"

/* A library to open instead of the one beside the program. For tests. */
#define LIBRARY_VARIABLE "MMGPT_CUDA_LIBRARY"

/* Of dlerror's text in messages. */
#define REASON_SIZE 256

/* Where the library is, or would be. */
static bool
library_path(char *path, size_t size)
{
	const char *given = secure_getenv(LIBRARY_VARIABLE);
	ssize_t		length;
	char	   *slash;

	if (given != NULL)
		return (size_t) snprintf(path, size, "%s", given) < size;
	length = readlink("/proc/self/exe", path, size - 1);
	if (length < 1)
		return false;
	path[length] = '\0';
	slash = strrchr(path, '/');
	if (slash == NULL || (size_t) (slash + 1 - path) + sizeof(CUDA_LIBRARY_FILE) > size)
		return false;
	strcpy(slash + 1, CUDA_LIBRARY_FILE);
	return true;
}

/* Open the library; NULL with a good status when there is none. */
static const CudaLibrary *
open_library(Status *status)
{
	char		path[PATH_MAX];
	const CudaLibrary *library;
	void	   *handle;

	status_clear(status);
	if (!library_path(path, sizeof(path)) || access(path, F_OK) != 0)
		return NULL;
	handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL)
	{
		status_set(status, STATUS_NOT_SUPPORTED, "could not open the CUDA library");
		status_detail(status, "%s.", dlerror());
		return NULL;
	}
	library = dlsym(handle, CUDA_LIBRARY_SYMBOL);
	if (library == NULL)
		status_set(status, STATUS_NOT_SUPPORTED, "\"%.200s\" is not mmgpt's CUDA library", path);
	else if (library->version != BACKEND_VERSION)
	{
		status_set(status, STATUS_NOT_SUPPORTED,
				   "the CUDA library has version %d of the backend, this program needs %d",
				   library->version, BACKEND_VERSION);
		status_detail(status, "The library is \"%.300s\".", path);
		status_hint(status, "Install %s and mmgpt-engine of the same build.", CUDA_LIBRARY_FILE);
	}
	if (status_good(status))
		return library;
	dlclose(handle);
	return NULL;
}

/* The number in "cuda:N", 0 for "cuda", -1 for what is neither. */
static int
device_number(const char *device)
{
	char	   *end;
	long		number;

	if (strcmp(device, "cuda") == 0)
		return 0;
	if (strncmp(device, "cuda:", 5) != 0 || device[5] < '0' || device[5] > '9')
		return -1;
	number = strtol(device + 5, &end, 10);
	return *end == '\0' && number < INT_MAX ? (int) number : -1;
}

/* Open a device that was asked for by its number. */
static bool
open_device(int number, bool any_order, Backend **backend, Status *status)
{
	const CudaLibrary *library = open_library(status);
	char		reason[REASON_SIZE] = "";
	int			count;

	if (library == NULL)
	{
		if (!status_good(status))
			return false;
		status_set(status, STATUS_NOT_SUPPORTED, "this installation has no CUDA library");
		return status_hint(status, "Build with \"make cuda\" and install again.");
	}
	count = library->devices(reason, sizeof(reason));
	if (count == 0)
		return status_set(status, STATUS_NOT_SUPPORTED, "no CUDA device was found (%s)", reason);
	if (number >= count)
		return status_set(status, STATUS_NOT_SUPPORTED,
						  "there is no CUDA device %d: this machine has %d, counted from 0",
						  number, count);
	*backend = library->open(number, any_order, status);
	return *backend != NULL;
}

/* Open the first device, if there is a library and a device. */
static bool
open_automatically(bool any_order, Backend **backend, Status *status)
{
	const CudaLibrary *library = open_library(status);
	char		reason[REASON_SIZE] = "";

	if (library == NULL)
		return status_good(status);
	if (library->devices(reason, sizeof(reason)) == 0)
	{
		log_write(ENGINE_LOG, "no CUDA device was found (%s): computing on the processor", reason);
		return true;
	}
	*backend = library->open(0, any_order, status);
	if (*backend == NULL)
		log_write(ENGINE_WARNING, "computing on the processor: %s", status->message);
	return true;
}

bool
backend_open_cuda(const DeviceOptions *options, Backend **backend, Status *status)
{
	const char *device = options->device;
	int			number;

	*backend = NULL;
	status_clear(status);
	if (device == NULL || strcmp(device, "auto") == 0)
		return open_automatically(options->any_order, backend, status);
	if (strcmp(device, "cpu") == 0)
		return true;
	number = device_number(device);
	if (number >= 0)
		return open_device(number, options->any_order, backend, status) ||
			status_prefix(status, "device \"%.30s\"", device);
	if (strncmp(device, "cuda", 4) == 0 && strchr(device, ',') != NULL)
	{
		status_set(status, STATUS_USAGE, "an engine computes on one device, not on \"%s\"", device);
		return status_hint(status, "mmgpt.device takes a list, and starts an engine for each.");
	}
	return status_set(status, STATUS_USAGE, "a device is auto, cpu, cuda or cuda:N, not \"%s\"",
					  device);
}

Backend *
backend_open(const DeviceOptions *options, Status *status)
{
	Backend    *backend;

	if (!backend_open_cuda(options, &backend, status))
		return NULL;
	return backend != NULL ? backend : backend_open_cpu(&options->cpu, status);
}
