/*
 * runtime_on_host.cpp - the calls of the CUDA runtime that cuda/ uses: memory, streams, events and
 * graphs.
 *
 * All device memory lies in one range of addresses that nothing may touch but kernels and copies:
 * host code that follows a device pointer ends in a segmentation fault. Streams are queues that run
 * only when something waits for them, so a result read too early is an old one, and a buffer given
 * to an asynchronous copy has to live until then. While a stream is captured nothing runs. Where a
 * driver opens files of its own, a file is opened here, so that a sandbox refuses it as well.
 */
#include "emulator.h"

#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <functional>
#include <map>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void) (p))
#define UNPOISON(p, n) ((void) (p))
#endif

#define ALIGNMENT ((size_t) 512)
/* Larger allocations are not filled: nobody may need all of them. */
#define FILL_LIMIT ((size_t) 16 << 20)
/* What the emulated device claims to have; CUDA_ON_HOST_MEMORY_MB overrides it. */
#define DEFAULT_MEMORY_MB 2048
/* So few that matrices of tests are large for them. */
#define MULTIPROCESSORS 4
/* A number N here makes the N-th kernel fail as a broken device does, and all that follow. */
#define FAILURE_VARIABLE "CUDA_ON_HOST_FAILS_AT"

typedef std::function<void ()> Work;

struct CUgraph_st
{
	std::vector<Work> work;
};

struct CUgraphExec_st
{
	std::vector<Work> work;
};

char	   *device_arena;

static size_t arena_used;
static size_t bytes_taken;
static std::map<char *, size_t> allocations;
static std::multimap<size_t, char *> holes;		/* of freed memory, by size */
static std::map<const void *, size_t> shared_limits;
static std::vector<Work> queue;
static CUgraph_st *captured;
static bool capture_broken;
static cudaError_t last_error = cudaSuccess;
static cudaError_t sticky_error = cudaSuccess;

static cudaError_t
fail(cudaError_t error)
{
	last_error = error;
	return error;
}

/* Open a file as a driver opens a device to map its memory; false when that was refused. */
static bool
open_driver_file(void)
{
	int			fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return false;
	close(fd);
	return true;
}

static void
begin_arena(void)
{
	if (device_arena != NULL)
		return;
	device_arena = (char *) mmap(NULL, DEVICE_ARENA_SIZE, PROT_NONE,
								 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (device_arena == MAP_FAILED)
		abort();
}

/* Let kernels and copies at device memory, or keep everything out. */
static void
open_arena(bool open)
{
	if (arena_used > 0)
		mprotect(device_arena, arena_used, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

/* Run all that was put into the stream. */
static cudaError_t
drain(void)
{
	if (captured != NULL)
	{
		capture_broken = true;
		return fail(cudaErrorStreamCaptureUnsupported);
	}
	if (!queue.empty())
	{
		std::vector<Work> work;

		work.swap(queue);
		open_arena(true);
		for (const Work &item : work)
			if (sticky_error == cudaSuccess)
				item();
		open_arena(false);
	}
	return sticky_error == cudaSuccess ? cudaSuccess : fail(sticky_error);
}

static void
enqueue(Work work)
{
	if (captured != NULL)
		captured->work.push_back(work);
	else
		queue.push_back(work);
}

static size_t
memory_total(void)
{
	const char *text = getenv("CUDA_ON_HOST_MEMORY_MB");

	return (size_t) (text == NULL ? DEFAULT_MEMORY_MB : atol(text)) << 20;
}

/* ---- memory ---- */

cudaError_t
cudaMalloc(void **address, size_t bytes)
{
	size_t		size = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;	/* a gap behind it at least */
	char	   *memory;

	begin_arena();
	if (!open_driver_file())
		return fail(cudaErrorOperatingSystem);
	if (captured != NULL)
	{
		capture_broken = true;
		return fail(cudaErrorStreamCaptureUnsupported);
	}
	if (size > memory_total() - bytes_taken || size > DEVICE_ARENA_SIZE - arena_used)
		return fail(cudaErrorMemoryAllocation);
	auto		hole = holes.find(size);

	if (hole != holes.end())
	{
		memory = hole->second;
		holes.erase(hole);
	}
	else
	{
		memory = device_arena + arena_used;
		arena_used += size;
	}
	allocations[memory] = size;
	bytes_taken += size;
	open_arena(true);
	UNPOISON(memory, bytes);
	if (size <= FILL_LIMIT)
		memset(memory, 0xFF, bytes);
	POISON(memory + bytes, size - bytes);
	open_arena(false);
	race_set(memory, bytes, MEMORY_UNDEFINED);
	*address = memory;
	return cudaSuccess;
}

cudaError_t
cudaFree(void *address)
{
	auto		found = allocations.find((char *) address);

	if (address == NULL)
		return cudaSuccess;
	if (found == allocations.end())
		return fail(cudaErrorInvalidValue);
	if (captured != NULL)
	{
		capture_broken = true;
		return fail(cudaErrorStreamCaptureUnsupported);
	}
	drain();
	POISON(address, found->second);
	race_set(address, found->second, MEMORY_NONE);
	madvise(address, found->second, MADV_DONTNEED);
	holes.insert({found->second, found->first});
	bytes_taken -= found->second;
	allocations.erase(found);
	return cudaSuccess;
}

cudaError_t
cudaMallocHost(void **address, size_t bytes)
{
	*address = malloc(bytes);
	return *address != NULL ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t
cudaFreeHost(void *address)
{
	free(address);
	return cudaSuccess;
}

cudaError_t
cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
	*total = memory_total();
	*free_bytes = *total - bytes_taken;
	return cudaSuccess;
}

static bool
on_device(const void *address)
{
	return (const char *) address >= device_arena &&
		(const char *) address < device_arena + DEVICE_ARENA_SIZE;
}

cudaError_t
cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
	bool		to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
	bool		from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;

	if (on_device(to) != to_device || on_device(from) != from_device)
		return fail(cudaErrorInvalidValue);
	enqueue([=] {
		memcpy(to, from, bytes);
		if (to_device)
			race_set(to, bytes, MEMORY_DEFINED);
	});
	return cudaSuccess;
}

cudaError_t
cudaMemsetAsync(void *address, int value, size_t bytes, cudaStream_t stream)
{
	if (!on_device(address))
		return fail(cudaErrorInvalidValue);
	enqueue([=] {
		memset(address, value, bytes);
		race_set(address, bytes, MEMORY_DEFINED);
	});
	return cudaSuccess;
}

/* ---- kernels ---- */

size_t
runtime_shared_limit(const void *kernel)
{
	auto		found = shared_limits.find(kernel);

	return found == shared_limits.end() ? SHARED_DEFAULT : found->second;
}

cudaError_t
cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value)
{
	if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
		(size_t) value > SHARED_LIMIT)
		return fail(cudaErrorInvalidValue);
	shared_limits[kernel] = (size_t) value;
	return cudaSuccess;
}

/* What a device would say to a launch. */
static cudaError_t
check_launch(const HostLaunch *launch)
{
	size_t		threads = (size_t) launch->block.x * launch->block.y * launch->block.z;
	size_t		blocks = (size_t) launch->grid.x * launch->grid.y * launch->grid.z;

	if (threads == 0 || threads > 1024 || blocks == 0 || launch->grid.x > INT32_MAX ||
		launch->grid.y > 65535 || launch->grid.z > 65535)
		return cudaErrorInvalidConfiguration;
	if (threads % 32 != 0)		/* a rule of ours: blocks are whole warps */
		return cudaErrorInvalidConfiguration;
	if (launch->shared > runtime_shared_limit(launch->kernel))
		return cudaErrorInvalidValue;
	return cudaSuccess;
}

void
host_launch(const HostLaunch *launch, cudaStream_t stream)
{
	std::vector<char> call((const char *) launch->call, (const char *) launch->call +
						   launch->call_size);
	HostLaunch	copy = *launch;
	cudaError_t error = check_launch(launch);

	if (error != cudaSuccess)
	{
		fprintf(stderr, "cuda_on_host: %s: a launch that a device refuses\n", launch->name);
		fail(error);
		return;
	}
	enqueue([copy, call] {
		const char *fails_at = getenv(FAILURE_VARIABLE);
		static long launches;
		HostLaunch	here = copy;

		if (fails_at != NULL && ++launches >= atol(fails_at))
		{
			sticky_error = cudaErrorIllegalAddress;
			return;
		}
		here.call = call.data();
		if (!emulator_run(&here))
			sticky_error = cudaErrorLaunchFailure;
	});
}

/* ---- streams and events: there is one queue ---- */

cudaError_t
cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
	*stream = (cudaStream_t) &queue;
	return cudaSuccess;
}

cudaError_t
cudaStreamDestroy(cudaStream_t stream)
{
	return drain();
}

cudaError_t
cudaStreamSynchronize(cudaStream_t stream)
{
	return drain();
}

cudaError_t
cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
	*event = (cudaEvent_t) &queue;
	return cudaSuccess;
}

cudaError_t
cudaEventDestroy(cudaEvent_t event)
{
	return cudaSuccess;
}

cudaError_t
cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
	return cudaSuccess;
}

cudaError_t
cudaEventSynchronize(cudaEvent_t event)
{
	return drain();
}

/* ---- graphs ---- */

cudaError_t
cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
	if (captured != NULL)
		return fail(cudaErrorIllegalState);
	captured = new CUgraph_st();
	capture_broken = false;
	return cudaSuccess;
}

cudaError_t
cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
	*graph = captured;
	captured = NULL;
	if (!capture_broken)
		return cudaSuccess;
	delete *graph;
	*graph = NULL;
	return fail(cudaErrorStreamCaptureInvalidated);
}

cudaError_t
cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
	if (!open_driver_file())
		return fail(cudaErrorOperatingSystem);
	*exec = new CUgraphExec_st{graph->work};
	return cudaSuccess;
}

cudaError_t
cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
	for (const Work &item : exec->work)
		enqueue(item);
	return cudaSuccess;
}

cudaError_t
cudaGraphDestroy(cudaGraph_t graph)
{
	delete graph;
	return cudaSuccess;
}

cudaError_t
cudaGraphExecDestroy(cudaGraphExec_t exec)
{
	delete exec;
	return cudaSuccess;
}

/* ---- the device ---- */

cudaError_t
cudaGetDeviceCount(int *count)
{
	*count = 1;
	return cudaSuccess;
}

cudaError_t
cudaSetDevice(int device)
{
	return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice);
}

cudaError_t
cudaGetDeviceProperties(cudaDeviceProp *properties, int device)
{
	memset(properties, 0, sizeof(*properties));
	snprintf(properties->name, sizeof(properties->name), "emulated on the host");
	properties->major = 9;
	properties->multiProcessorCount = MULTIPROCESSORS;
	properties->sharedMemPerBlockOptin = SHARED_LIMIT;
	properties->totalGlobalMem = memory_total();
	return cudaSuccess;
}

cudaError_t
cudaGetLastError(void)
{
	cudaError_t error = last_error;

	last_error = sticky_error;
	return error;
}

const char *
cudaGetErrorString(cudaError_t error)
{
	return error == cudaErrorMemoryAllocation ? "out of memory"
		: error == cudaErrorLaunchFailure ? "unspecified launch failure" : "an error";
}
