/*
 * backend_cuda.cu - a CUDA device as a backend: the table of operations, and the one symbol that
 * the library exports.
 */
#include "cuda_backend.h"

#include <stdio.h>
#include <stdlib.h>

/* Kernels are built for these and what follows them. */
#define LEAST_MAJOR 8

CudaBackend *
cuda_use(Backend *backend)
{
	static thread_local int device_of_thread = -1;
	CudaBackend *cuda = reinterpret_cast<CudaBackend *>(backend);

	if (device_of_thread != cuda->device && cuda_note(cuda, cudaSetDevice(cuda->device)))
		device_of_thread = cuda->device;
	return cuda;
}

bool
cuda_note(CudaBackend *cuda, cudaError_t error)
{
	if (error != cudaSuccess && cuda->error == cudaSuccess)
		cuda->error = error;
	return error == cudaSuccess;
}

static const char *
cuda_describe(Backend *backend)
{
	return reinterpret_cast<CudaBackend *>(backend)->description;
}

static void
cuda_close(Backend *backend)
{
	CudaBackend *cuda = cuda_use(backend);

	cuda_forget_steps(cuda);
	cublas_end(cuda);
	cuda_memory_end(cuda);
	free(cuda);
}

static const BackendOps cuda_ops = {
	.version = BACKEND_VERSION,
	.describe = cuda_describe,
	.close = cuda_close,
	.alive = cuda_alive,
	.memory_room = cuda_memory_room,
	.allocate = cuda_allocate,
	.release = cuda_release,
	.upload = cuda_upload,
	.download = cuda_download,
	.synchronize = cuda_synchronize,
	.weight_create = cuda_weight_create,
	.weight_destroy = cuda_weight_destroy,
	.kv_create = cuda_kv_create,
	.kv_page_size = cuda_kv_page_size,
	.kv_destroy = cuda_kv_destroy,
	.matmul = cuda_matmul,
	.low_rank = cuda_low_rank,
	.embed = cuda_embed,
	.gather = cuda_gather,
	.layer_norm = cuda_layer_norm,
	.rms_norm = cuda_rms_norm,
	.activate = cuda_activate,
	.swiglu = cuda_swiglu,
	.rotary = cuda_rotary,
	.kv_write = cuda_kv_write,
	.kv_copy = cuda_kv_copy,
	.attention = cuda_attention,
	.patches = cuda_patches,
	.vision_tokens = cuda_vision_tokens,
	.step_begin = cuda_step_begin,
	.step_end = cuda_step_end,
	.choose = cuda_choose,
	.best = cuda_best,
	.score = cuda_score,
	.copy = cuda_copy,
	.scale = cuda_scale,
	.scatter = cuda_scatter,
	.matmul_backward = cuda_matmul_backward,
	.add_product = cuda_add_product,
	.weight_update = cuda_weight_update,
	.layer_norm_backward = cuda_layer_norm_backward,
	.rms_norm_backward = cuda_rms_norm_backward,
	.activate_backward = cuda_activate_backward,
	.swiglu_backward = cuda_swiglu_backward,
	.rotary_backward = cuda_rotary_backward,
	.attention_backward_size = cuda_attention_backward_size,
	.attention_backward = cuda_attention_backward,
	.cross_entropy = cuda_cross_entropy,
	.square_sums = cuda_square_sums,
	.adamw = cuda_adamw,
};

static int
cuda_devices(char *reason, size_t reason_size)
{
	int			count = 0;		/* not written when there is no driver */
	cudaError_t error = cudaGetDeviceCount(&count);

	if (error == cudaErrorInsufficientDriver)	/* also where there is none */
		snprintf(reason, reason_size, "there is no NVIDIA driver for CUDA %d.%d or later",
				 CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
	else if (error != cudaSuccess)
		snprintf(reason, reason_size, "%s", cudaGetErrorString(error));
	else if (count == 0)
		snprintf(reason, reason_size, "the driver sees no device");
	return error == cudaSuccess ? count : 0;
}

/* Check what the device is, and make its stream. */
static bool
begin_device(CudaBackend *cuda, Status *status)
{
	cudaDeviceProp properties;
	cudaError_t error = cudaSetDevice(cuda->device);

	if (error == cudaSuccess)
		error = cudaGetDeviceProperties(&properties, cuda->device);
	if (error == cudaSuccess)
		error = cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);
	if (error != cudaSuccess)
		return status_set(status, STATUS_NOT_SUPPORTED, "CUDA device %d could not be opened: %s",
						  cuda->device, cudaGetErrorString(error));
	if (properties.major < LEAST_MAJOR)
		return status_set(status, STATUS_NOT_SUPPORTED,
						  "CUDA device %d (%s) has compute capability %d.%d, %d.0 is needed",
						  cuda->device, properties.name, properties.major, properties.minor,
						  LEAST_MAJOR);
	cuda->multiprocessors = properties.multiProcessorCount;
	snprintf(cuda->description, sizeof(cuda->description), "cuda:%d %s", cuda->device,
			 properties.name);
	return true;
}

static Backend *
cuda_open(int device, bool any_order, Status *status)
{
	CudaBackend *cuda = static_cast<CudaBackend *>(calloc(1, sizeof(CudaBackend)));

	if (cuda == nullptr)
	{
		status_out_of_memory(status, sizeof(CudaBackend));
		return nullptr;
	}
	cuda->base.ops = &cuda_ops;
	cuda->device = device;
	cuda->any_order = any_order;
	if (begin_device(cuda, status) && cuda_memory_begin(cuda, status) &&
		cublas_begin(cuda, status) && cuda_quantized_begin(cuda, status))
		return &cuda->base;
	cuda_close(&cuda->base);
	return nullptr;
}

extern "C" __attribute__((visibility("default"))) const CudaLibrary mmgpt_cuda_library = {
	BACKEND_VERSION, cuda_devices, cuda_open};
