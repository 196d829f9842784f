/*
 * cuda_on_host.h - CUDA's device language for a host compiler: what kernels see.
 *
 * The kernels of cuda/ are compiled unchanged as C++. NVIDIA's own headers declare the runtime, so
 * that a wrong call is a compile error; cuda_on_host.cpp and runtime_on_host.cpp define it. Each
 * CUDA thread is a fiber, see cuda_on_host.cpp. This proves logic, bounds and barriers; it says
 * nothing about speed, nor about the order of memory between blocks.
 */
#ifndef MMGPT_CUDA_ON_HOST_H
#define MMGPT_CUDA_ON_HOST_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include <cuda_runtime_api.h>
#include <vector_functions.h>

/* CUDA's headers make this nothing, and every thread would get memory of its own. */
#undef __shared__
#define __shared__ use_SHARED_instead_of_plain_shared_memory
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

/* Code of the emulation that the memory checker must not see, see race.cpp. */
#define UNCHECKED __attribute__((no_sanitize("thread")))

/* The indices of the running thread; rewritten at every switch between fibers. */
typedef struct HostIndices
{
	uint3		thread;
	uint3		block;
	dim3		block_size;
	dim3		grid_size;
} HostIndices;

extern HostIndices host_indices;

#define threadIdx host_indices.thread
#define blockIdx host_indices.block
#define blockDim host_indices.block_size
#define gridDim host_indices.grid_size

/* ---- waiting for other threads ---- */

/* Wait for all threads of the block. */
extern void host_block_barrier(const char *file, int line);
/* Give a value to the warp and wait for those of its other lanes; returns all [32]. */
extern const uint64_t *host_warp_exchange(uint64_t value, const char *file, int line);
/* Tell the memory checker that the warp's accesses so far come before those that follow. */
extern void host_warp_fence(void);

#define __syncthreads() host_block_barrier(__FILE__, __LINE__)
#define __syncwarp() (host_warp_exchange(0, __FILE__, __LINE__), host_warp_fence())

template <typename T>
UNCHECKED static inline T
host_shuffle(T value, int lane, const char *file, int line)
{
	uint64_t	bits = 0;

	static_assert(sizeof(T) <= sizeof(bits));
	memcpy(&bits, &value, sizeof(value));
	memcpy(&value, host_warp_exchange(bits, file, line) + (lane & 31), sizeof(value));
	return value;
}

UNCHECKED static inline unsigned
host_ballot(bool vote, const char *file, int line)
{
	const uint64_t *votes = host_warp_exchange(vote, file, line);
	unsigned	result = 0;

	for (int i = 0; i < 32; i++)
		result |= (unsigned) votes[i] << i;
	return result;
}

/* Masks are full in all kernels. */
#define __shfl_xor_sync(mask, value, distance) \
	host_shuffle(value, (int) (threadIdx.x % 32) ^ (distance), __FILE__, __LINE__)
#define __shfl_sync(mask, value, lane) host_shuffle(value, lane, __FILE__, __LINE__)
#define __ballot_sync(mask, vote) host_ballot(vote, __FILE__, __LINE__)

/* ---- memory that a block shares ---- */

/* Memory of the running block, the same for all that ask at one place of the source. */
extern void *host_shared(const void *site, size_t bytes);
extern void *host_dynamic_shared(void);

#define SHARED(type, name, count) \
	static const char name##_site = 0; \
	type	   *name = (type *) host_shared(&name##_site, sizeof(type) * (count))
#define DYNAMIC_SHARED(type, name) type *name = (type *) host_dynamic_shared()

extern unsigned atomicAdd(unsigned *address, unsigned value);
extern unsigned long long atomicAdd(unsigned long long *address, unsigned long long value);

/* ---- arithmetic ---- */

template <typename To, typename From>
static inline To
host_bits(From value)
{
	To			result;

	static_assert(sizeof(To) == sizeof(From));
	memcpy(&result, &value, sizeof(result));
	return result;
}

#define __float_as_uint(x) host_bits<uint32_t>((float) (x))
#define __uint_as_float(x) host_bits<float>((uint32_t) (x))

static inline int
min(int a, int b)
{
	return a < b ? a : b;
}

static inline int
max(int a, int b)
{
	return a > b ? a : b;
}

static inline unsigned
max(unsigned a, unsigned b)
{
	return a > b ? a : b;
}

/* sum + the products of four signed bytes of each word. */
static inline int
__dp4a(int a, int b, int sum)
{
	for (int i = 0; i < 32; i += 8)
		sum += (int8_t) (a >> i) * (int8_t) (b >> i);
	return sum;
}

/* The upper half of a product. */
static inline uint64_t
__umul64hi(uint64_t a, uint64_t b)
{
	return (uint64_t) ((unsigned __int128) a * b >> 64);
}

/* ---- launching ---- */

/* A kernel with its arguments, copied when it is launched. */
template <typename... P>
struct HostCall
{
	void		(*kernel) (P...);
	std::tuple<P...> arguments;

	static void
	run(const void *call)
	{
		const HostCall *self = (const HostCall *) call;

		std::apply(self->kernel, self->arguments);
	}
};

/* What is launched, without types. */
typedef struct HostLaunch
{
	const char *name;
	const void *kernel;
	dim3		grid;
	dim3		block;
	size_t		shared;
	const void *call;			/* bytes that every thread gets a copy of */
	size_t		call_size;
	void		(*run) (const void *call);
} HostLaunch;

extern void host_launch(const HostLaunch *launch, cudaStream_t stream);

template <typename... P, typename... A>
static void
host_launch_kernel(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
				   cudaStream_t stream, A... arguments)
{
	HostCall<P...> call = {kernel, std::tuple<P...>((P) arguments...)};
	HostLaunch	launch = {name, (const void *) kernel, grid, block, shared, &call, sizeof(call),
						  HostCall<P...>::run};

	/* not is_trivially_copyable: g++ 12 denies it for lambdas here */
	static_assert(((std::is_trivially_copy_constructible_v<P> &&
					std::is_trivially_destructible_v<P>) && ...));
	host_launch(&launch, stream);
}

#define LAUNCH(kernel, grid, block, shared, stream, ...) \
	host_launch_kernel(#kernel, kernel, grid, block, shared, stream, __VA_ARGS__)

#endif
