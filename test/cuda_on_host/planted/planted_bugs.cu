/*
 * planted_bugs.cu - mistakes that the emulation has to find, each in a process of its own.
 *
 * A bug counts as found when the next wait tells an error, or when the process dies of it. Which
 * build finds which is part of the table below; kernels without a mistake must pass in all of them.
 */
#include "mma.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* Builds that find a bug. */
enum
{
	PLAIN = 1,
	ASAN = 2,
	RACE = 4,
	ALL = PLAIN | ASAN | RACE
};

#if defined(CUDA_ON_HOST_RACE)
#define THIS_BUILD RACE
#elif defined(__SANITIZE_ADDRESS__)
#define THIS_BUILD ASAN
#else
#define THIS_BUILD PLAIN
#endif

#define THREADS 64
#define COUNT 256

static cudaStream_t stream;
static float *memory;			/* f32 [COUNT] on the device, written */

/* ---- kernels without a mistake ---- */

/* Each block turns its part around through shared memory. */
__global__ static void
good_kernel(float *x)
{
	SHARED(float, part, THREADS);
	float	   *mine = x + blockIdx.x * THREADS;

	part[threadIdx.x] = mine[threadIdx.x] + warp_sum(1.0f);
	__syncthreads();
	mine[threadIdx.x] = part[THREADS - 1 - threadIdx.x];
}

static void
run_good(void)
{
	LAUNCH(good_kernel, COUNT / THREADS, THREADS, 0, stream, memory);
}

/* ---- mistakes ---- */

__global__ static void
missing_barrier_kernel(float *x)
{
	SHARED(float, part, THREADS);

	part[threadIdx.x] = x[threadIdx.x];
	x[threadIdx.x] = part[THREADS - 1 - threadIdx.x];
}

static void
run_missing_barrier(void)
{
	LAUNCH(missing_barrier_kernel, 1, THREADS, 0, stream, memory);
}

__global__ static void
early_return_kernel(float *x)
{
	if (threadIdx.x == 5)
		return;
	__syncthreads();
	x[threadIdx.x] = 0;
}

static void
run_early_return(void)
{
	LAUNCH(early_return_kernel, 1, THREADS, 0, stream, memory);
}

__global__ static void
lane_returns_kernel(float *x)
{
	if (threadIdx.x == 5)
		return;
	x[threadIdx.x] = warp_sum(x[threadIdx.x]);
}

static void
run_lane_returns(void)
{
	LAUNCH(lane_returns_kernel, 1, THREADS, 0, stream, memory);
}

__global__ static void
two_barriers_kernel(float *x)
{
	if (threadIdx.x < WARP)
		__syncthreads();
	else
		__syncthreads();
	x[threadIdx.x] = 0;
}

static void
run_two_barriers(void)
{
	LAUNCH(two_barriers_kernel, 1, THREADS, 0, stream, memory);
}

__global__ static void
past_the_end_kernel(float *x)
{
	x[COUNT + threadIdx.x] = 0;
}

static void
run_past_the_end(void)
{
	LAUNCH(past_the_end_kernel, 1, THREADS, 0, stream, memory);
}

__global__ static void
past_shared_kernel(float *x, int place)
{
	SHARED(float, part, THREADS);

	part[threadIdx.x] = 0;
	__syncthreads();
	x[threadIdx.x] = part[threadIdx.x + static_cast<unsigned>(place)];
}

static void
run_past_shared(void)
{
	LAUNCH(past_shared_kernel, 1, THREADS, 0, stream, memory, 1);
}

__global__ static void
two_blocks_kernel(float *x)
{
	x[threadIdx.x] = static_cast<float>(blockIdx.x);
}

static void
run_two_blocks(void)
{
	LAUNCH(two_blocks_kernel, 2, THREADS, 0, stream, memory);
}

__global__ static void
read_kernel(float *to, const float *from)
{
	to[threadIdx.x] = from[threadIdx.x];
}

static void
run_never_written(void)
{
	void	   *fresh = nullptr;

	cudaMalloc(&fresh, COUNT * sizeof(float));
	LAUNCH(read_kernel, 1, THREADS, 0, stream, memory, static_cast<const float *>(fresh));
}

static void
run_host_pointer(void)
{
	static float host[THREADS];

	LAUNCH(read_kernel, 1, THREADS, 0, stream, memory, static_cast<const float *>(host));
}

static void
run_freed(void)
{
	cudaFree(memory);
	LAUNCH(read_kernel, 1, THREADS, 0, stream, memory,
		   static_cast<const float *>(memory + THREADS));
}

static void
run_too_many_threads(void)
{
	LAUNCH(good_kernel, 1, 2048, 0, stream, memory);
}

static void
run_empty_grid(void)
{
	LAUNCH(good_kernel, 0, THREADS, 0, stream, memory);
}

static void
run_tall_grid(void)
{
	LAUNCH(good_kernel, dim3(1, 70000), THREADS, 0, stream, memory);
}

static void
run_much_shared(void)
{
	LAUNCH(good_kernel, 1, THREADS, 100000, stream, memory);
}

/* Copies through shared memory; each mistake leaves something out. */
__global__ static void
copy_kernel(float *x, bool waits, bool meets)
{
	SHARED(uint4, part, WARP);
	int			thread = static_cast<int>(threadIdx.x);
	uint32_t	words[4];

	copy_async(part, thread, reinterpret_cast<const uint4 *>(x) + thread, true);
	if (waits)
		wait_for_copies();
	if (meets)
		__syncthreads();
	load_matrices(part, WARP - 1 - thread, words);
	x[4 * WARP + thread] = __uint_as_float(words[0]);
}

static void
run_good_copy(void)
{
	LAUNCH(copy_kernel, 1, WARP, 0, stream, memory, true, true);
}

/* The second group is empty. */
__global__ static void
group_kernel(float *x, bool waits)
{
	SHARED(uint2, part, WARP);
	int			thread = static_cast<int>(threadIdx.x);

	copy_async(part + thread, reinterpret_cast<const uint2 *>(x) + thread);
	close_copies();
	close_copies();
	if (waits)
		wait_for_groups<1>();
	else
		wait_for_groups<2>();
	__syncthreads();
	x[4 * WARP + thread] = __uint_as_float(part[WARP - 1 - thread].x);
	wait_for_copies();
}

static void
run_good_groups(void)
{
	LAUNCH(group_kernel, 1, WARP, 0, stream, memory, true);
}

static void
run_unawaited_group(void)
{
	LAUNCH(group_kernel, 1, WARP, 0, stream, memory, false);
}

__global__ static void
crooked_copy_kernel(float *x)
{
	SHARED(uint2, part, WARP + 1);

	copy_async(reinterpret_cast<uint2 *>(reinterpret_cast<float *>(part + threadIdx.x) + 1),
			   reinterpret_cast<const uint2 *>(x) + threadIdx.x);
	wait_for_copies();
}

static void
run_crooked_copy(void)
{
	LAUNCH(crooked_copy_kernel, 1, WARP, 0, stream, memory);
}

static void
run_unawaited_copy(void)
{
	LAUNCH(copy_kernel, 1, WARP, 0, stream, memory, false, true);
}

static void
run_copy_without_barrier(void)
{
	LAUNCH(copy_kernel, 1, WARP, 0, stream, memory, true, false);
}

__global__ static void
crooked_matrix_kernel(float *x)
{
	SHARED(uint4, part, WARP + 1);
	uint32_t	words[4];

	part[threadIdx.x] = make_uint4(0, 0, 0, 0);
	part[WARP] = make_uint4(0, 0, 0, 0);
	__syncthreads();
	load_matrices(reinterpret_cast<const uint4 *>(
		reinterpret_cast<const uint16_t *>(part + threadIdx.x) + 4), 0, words);
	x[threadIdx.x] = __uint_as_float(words[0]);
}

static void
run_crooked_matrix(void)
{
	LAUNCH(crooked_matrix_kernel, 1, WARP, 0, stream, memory);
}

__global__ static void
incomplete_product_kernel(float *x)
{
	const uint32_t a[4] = {};
	float		c[4] = {};

	if (threadIdx.x % WARP == 9)
		return;
	mma_bf16(c, a, 0, 0);
	x[threadIdx.x] = c[0];
}

static void
run_incomplete_product(void)
{
	LAUNCH(incomplete_product_kernel, 1, THREADS, 0, stream, memory);
}

static void
run_host_reads_device(void)
{
	printf("# %g\n", static_cast<double>(*const_cast<volatile float *>(memory)));
}

static void
run_allocation_while_capturing(void)
{
	void	   *fresh;

	cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
	cudaMalloc(&fresh, 1);
}

static const struct
{
	const char *name;
	void		(*run) (void);
	int			found_by;
}			bugs[] = {
	{"kernels without a mistake pass", run_good, 0},
	{"copies without a mistake pass", run_good_copy, 0},
	{"groups of copies without a mistake pass", run_good_groups, 0},
	{"a missing barrier", run_missing_barrier, RACE},
	{"a return before a barrier", run_early_return, ALL},
	{"a lane that returns before a shuffle", run_lane_returns, ALL},
	{"a lane that returns before a product of matrices", run_incomplete_product, ALL},
	{"a copy that nobody waits for", run_unawaited_copy, ALL},
	{"a group of copies that is waited for too late", run_unawaited_group, RACE},
	{"a copy to a place between vectors", run_crooked_copy, ALL},
	{"a barrier missing behind copies", run_copy_without_barrier, RACE},
	{"a matrix that begins between vectors", run_crooked_matrix, ASAN},
	{"two barriers in one block", run_two_barriers, ALL},
	{"past the end of an allocation", run_past_the_end, ASAN | RACE},
	{"past the end of shared memory", run_past_shared, ASAN | RACE},
	{"two blocks that write one address", run_two_blocks, RACE},
	{"memory that nobody wrote", run_never_written, RACE},
	{"a pointer of the host", run_host_pointer, RACE},
	{"memory that was freed", run_freed, ASAN | RACE},
	{"too many threads", run_too_many_threads, ALL},
	{"an empty grid", run_empty_grid, ALL},
	{"a grid that is too tall", run_tall_grid, ALL},
	{"too much shared memory", run_much_shared, ALL},
	{"host code that follows a device pointer", run_host_reads_device, ALL},
	{"an allocation while capturing", run_allocation_while_capturing, ALL},
};

/* In a process of its own: exit status 0 where nothing was found. */
static int
run_bug(int i)
{
	static float host[COUNT];
	void	   *address = nullptr;
	bool		well;

	cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
	cudaMalloc(&address, sizeof(host));
	memory = static_cast<float *>(address);
	cudaMemcpyAsync(memory, host, sizeof(host), cudaMemcpyHostToDevice, stream);
	well = cudaStreamSynchronize(stream) == cudaSuccess && cudaGetLastError() == cudaSuccess;
	if (!well)
		return 2;
	bugs[i].run();
	well = cudaStreamSynchronize(stream) == cudaSuccess;
	return well && cudaGetLastError() == cudaSuccess ? 0 : 1;
}

int
main(void)
{
	int			count = static_cast<int>(sizeof(bugs) / sizeof(bugs[0]));
	int			failures = 0;

	setvbuf(stdout, nullptr, _IOLBF, 0);
	for (int i = 0; i < count; i++)
	{
		bool		expected = (bugs[i].found_by & THIS_BUILD) != 0;
		int			status = 0;
		pid_t		child;
		bool		found;

		fflush(stdout);
		child = fork();
		if (child == 0)
		{
			/* what is found is told to nobody: the exit status is enough */
			if (freopen("/dev/null", "w", stderr) == nullptr)
				_exit(0);
			_exit(run_bug(i));
		}
		waitpid(child, &status, 0);
		found = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
		/* where a build need not find a bug, it may all the same */
		if (found == expected || (found && bugs[i].found_by != 0))
			printf("ok %d - %s%s\n", i + 1, bugs[i].name, expected ? " is found" : "");
		else
		{
			printf("not ok %d - %s%s\n", i + 1, bugs[i].name, found ? "" : " was not found");
			failures++;
		}
	}
	printf("1..%d\n", count);
	return failures == 0 ? 0 : 1;
}
