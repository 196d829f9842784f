/*
 * memory.cu - device memory, copies to and from it, and waiting.
 *
 * An upload copies the caller's bytes into pinned memory and returns, so that a step's small tables
 * go to the device while the processor prepares the next: nobody waits unless both halves of the
 * buffer are on their way.
 */
#include "cuda_backend.h"

#include <string.h>

#define HALVES 2

/*
 * Left free for the backend's own: cuBLASLt, rounded rows, weights as bf16. An eighth of what is
 * free, at most RESERVE.
 */
#define RESERVE ((size_t) 1 << 30)
#define RESERVE_PART 8

/* Places in the staging buffer, so that no two uploads share a line of the bus. */
#define STAGING_ALIGNMENT ((size_t) 256)

bool
cuda_memory_begin(CudaBackend *cuda, Status *status)
{
	void	   *staging = nullptr;
	void	   *landing = nullptr;
	cudaError_t error = cudaMallocHost(&staging, HALVES * STAGING_BYTES);

	cuda->staging = static_cast<char *>(staging);
	if (error == cudaSuccess)
		error = cudaMallocHost(&landing, STAGING_BYTES);
	cuda->landing = static_cast<char *>(landing);
	for (int i = 0; i < HALVES && error == cudaSuccess; i++)
		error = cudaEventCreateWithFlags(&cuda->staging_read[i], cudaEventDisableTiming);
	return error == cudaSuccess ||
		status_set(status, STATUS_OUT_OF_MEMORY, "no pinned memory for CUDA device %d: %s",
				   cuda->device, cudaGetErrorString(error));
}

void
cuda_memory_end(CudaBackend *cuda)
{
	CudaScratch *scratches[] = {&cuda->rounded, &cuda->values, &cuda->sums, &cuda->reading,
								&cuda->statistics, &cuda->products, &cuda->pieces};

	if (cuda->stream != nullptr)
		cudaStreamSynchronize(cuda->stream);
	for (CudaScratch *scratch : scratches)
		cudaFree(scratch->data);
	for (int i = 0; i < HALVES; i++)
		if (cuda->staging_read[i] != nullptr)
			cudaEventDestroy(cuda->staging_read[i]);
	cudaFreeHost(cuda->staging);
	cudaFreeHost(cuda->landing);
	if (cuda->stream != nullptr)
		cudaStreamDestroy(cuda->stream);
}

bool
cuda_alive(Backend *backend)
{
	return !reinterpret_cast<CudaBackend *>(backend)->lost;
}

size_t
cuda_memory_room(Backend *backend)
{
	CudaBackend *cuda = cuda_use(backend);
	size_t		free_bytes = 0;
	size_t		total = 0;

	cuda_note(cuda, cudaMemGetInfo(&free_bytes, &total));
	return free_bytes - (free_bytes / RESERVE_PART < RESERVE ? free_bytes / RESERVE_PART : RESERVE);
}

/* Wait for the device. What fails while it computes has no end but that of the process. */
static bool
wait_for_device(CudaBackend *cuda)
{
	if (cuda_note(cuda, cudaStreamSynchronize(cuda->stream)))
		return true;
	cuda->lost = true;
	return false;
}

bool
cuda_allocate(Backend *backend, size_t bytes, void **address, Status *status)
{
	CudaBackend *cuda = cuda_use(backend);
	size_t		free_bytes = 0;
	size_t		total = 0;
	cudaError_t error;

	*address = nullptr;
	error = cudaMalloc(address, bytes > 0 ? bytes : 1);
	if (error == cudaSuccess)
		return true;
	cudaGetLastError();			/* it is told here, and does not end anything */
	*address = nullptr;
	if (error != cudaErrorMemoryAllocation)
	{
		cuda->lost = true;		/* what failed before shows here */
		return status_set(status, STATUS_INTERNAL, "CUDA device %d: %s", cuda->device,
						  cudaGetErrorString(error));
	}
	cudaMemGetInfo(&free_bytes, &total);
	status_set(status, STATUS_OUT_OF_MEMORY, "CUDA device %d has no room for %zu MB", cuda->device,
			   (bytes >> 20) + 1);
	return status_detail(status, "%zu MB of its %zu MB are free.", free_bytes >> 20, total >> 20);
}

void
cuda_release(Backend *backend, void *address)
{
	CudaBackend *cuda = cuda_use(backend);

	/* cudaFree waits for the device by itself */
	if (address == nullptr)
		return;
	cuda_forget_steps(cuda);
	cuda_note(cuda, cudaFree(address));
}

void *
cuda_scratch(CudaBackend *cuda, CudaScratch *scratch, size_t bytes)
{
	if (bytes <= scratch->bytes)
		return scratch->data;
	cuda_forget_steps(cuda);
	cuda_note(cuda, cudaFree(scratch->data));
	scratch->data = nullptr;
	scratch->bytes = 0;
	if (!cuda_note(cuda, cudaMalloc(&scratch->data, bytes)))
		return nullptr;
	scratch->bytes = bytes;
	return scratch->data;
}

/* Copy at most a half of the staging buffer. */
static void
upload_piece(CudaBackend *cuda, void *to, const void *from, size_t bytes)
{
	size_t		place = (cuda->half_used + STAGING_ALIGNMENT - 1) / STAGING_ALIGNMENT *
		STAGING_ALIGNMENT;
	char	   *staged;

	if (place + bytes > STAGING_BYTES)
	{
		cuda_note(cuda, cudaEventRecord(cuda->staging_read[cuda->half], cuda->stream));
		cuda->half = (cuda->half + 1) % HALVES;
		cuda_note(cuda, cudaEventSynchronize(cuda->staging_read[cuda->half]));
		place = 0;
	}
	staged = cuda->staging + (size_t) cuda->half * STAGING_BYTES + place;
	memcpy(staged, from, bytes);
	cuda->half_used = place + bytes;
	cuda_note(cuda, cudaMemcpyAsync(to, staged, bytes, cudaMemcpyHostToDevice, cuda->stream));
}

void
cuda_upload(Backend *backend, void *to, const void *from, size_t bytes)
{
	CudaBackend *cuda = cuda_use(backend);
	const char *source = static_cast<const char *>(from);
	char	   *target = static_cast<char *>(to);

	for (size_t done = 0; done < bytes; done += STAGING_BYTES)
		upload_piece(cuda, target + done, source + done,
					 bytes - done < STAGING_BYTES ? bytes - done : STAGING_BYTES);
}

void
cuda_download(Backend *backend, void *to, const void *from, size_t bytes)
{
	CudaBackend *cuda = cuda_use(backend);
	const char *source = static_cast<const char *>(from);
	char	   *target = static_cast<char *>(to);

	for (size_t done = 0; done < bytes; done += STAGING_BYTES)
	{
		size_t		piece = bytes - done < STAGING_BYTES ? bytes - done : STAGING_BYTES;

		if (cuda_note(cuda, cudaMemcpyAsync(cuda->landing, source + done, piece,
											cudaMemcpyDeviceToHost, cuda->stream)) &&
			wait_for_device(cuda))
			memcpy(target + done, cuda->landing, piece);
		else
			memset(target + done, 0, piece);
	}
}

bool
cuda_synchronize(Backend *backend, Status *status)
{
	CudaBackend *cuda = cuda_use(backend);
	cublasStatus_t cublas_error = cuda->cublas_error;
	cudaError_t error;

	wait_for_device(cuda);
	cuda_note(cuda, cudaGetLastError());
	error = cuda->error;
	cuda->error = cudaSuccess;
	cuda->cublas_error = CUBLAS_STATUS_SUCCESS;
	if (error == cudaErrorMemoryAllocation)
		return status_set(status, STATUS_OUT_OF_MEMORY,
						  "CUDA device %d has no room for what a step needs", cuda->device);
	if (error != cudaSuccess)
		return status_set(status, STATUS_INTERNAL, "CUDA device %d: %s", cuda->device,
						  cudaGetErrorString(error));
	return cublas_error == CUBLAS_STATUS_SUCCESS ||
		status_set(status, STATUS_INTERNAL, "cuBLASLt error %d on CUDA device %d",
				   static_cast<int>(cublas_error), cuda->device);
}
