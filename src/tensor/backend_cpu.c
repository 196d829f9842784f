/*
 * backend_cpu.c - the processor as a device: memory, threads and the table of
 * operations. Everything is done when a call returns.
 */
#include "cpu_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/*
 * Buffers from this size on ask for pages of 2 MB: rows of a wide matrix lie further apart than
 * small pages are long, and the processor remembers where a few of those are only.
 */
#define HUGE_PAGE ((size_t) 2 << 20)
#define HUGE_FROM HUGE_PAGE

void
cpu_run(CpuBackend *cpu, TaskFunction function, void *argument, int tasks, double work)
{
	int			together;

	if (work < SMALL_WORK)
	{
		for (int task = 0; task < tasks; task++)
			function(argument, task, 0);
		return;
	}
	together = (int) (SMALL_WORK * tasks / work);
	thread_pool_run(cpu->pool, function, argument, tasks, together > 1 ? together : 1);
}

static const char *
cpu_describe(Backend *backend)
{
	return ((CpuBackend *) backend)->description;
}

static void
cpu_close(Backend *backend)
{
	CpuBackend *cpu = (CpuBackend *) backend;

	thread_pool_free(cpu->pool);
	free(cpu->sums);
	free(cpu->rounded);
	free(cpu->queries);
	free(cpu->backward);
	free(cpu);
}

static bool
cpu_alive(Backend *backend)
{
	return true;
}

static size_t
cpu_memory_room(Backend *backend)
{
	return 0;
}

static bool
cpu_allocate(Backend *backend, size_t bytes, void **address, Status *status)
{
	*address = NULL;
	if (bytes > SIZE_MAX - 64)
		return status_out_of_memory(status, bytes);
	bytes = (bytes + 63) & ~(size_t) 63;
	if (posix_memalign(address, bytes < HUGE_FROM ? 64 : HUGE_PAGE, bytes > 0 ? bytes : 64) != 0)
		return status_out_of_memory(status, bytes);
	if (bytes >= HUGE_FROM)
		madvise(*address, bytes, MADV_HUGEPAGE);	/* where the system has none, all is as before */
	return true;
}

bool
cpu_grow(Backend *backend, void **buffer, size_t *size, size_t need, Status *status)
{
	void	   *grown;

	if (need <= *size)
		return true;
	if (!cpu_allocate(backend, need, &grown, status))
		return false;
	free(*buffer);
	*buffer = grown;
	*size = need;
	return true;
}

static void
cpu_release(Backend *backend, void *address)
{
	free(address);
}

static void
cpu_copy(Backend *backend, void *to, const void *from, size_t bytes)
{
	memcpy(to, from, bytes);
}

static bool
cpu_synchronize(Backend *backend, Status *status)
{
	return true;
}

/* There is nothing to win by a record: a call costs no more. */
static bool
cpu_step_begin(Backend *backend, const void *key, size_t key_bytes)
{
	return false;
}

static void
cpu_step_end(Backend *backend)
{
}

static const BackendOps cpu_ops = {
	.version = BACKEND_VERSION,
	.describe = cpu_describe,
	.close = cpu_close,
	.alive = cpu_alive,
	.memory_room = cpu_memory_room,
	.allocate = cpu_allocate,
	.release = cpu_release,
	.upload = cpu_copy,
	.download = cpu_copy,
	.synchronize = cpu_synchronize,
	.weight_create = cpu_weight_create,
	.weight_destroy = cpu_weight_destroy,
	.kv_create = cpu_kv_create,
	.kv_page_size = cpu_kv_page_size,
	.kv_destroy = cpu_kv_destroy,
	.matmul = cpu_matmul,
	.low_rank = cpu_low_rank,
	.embed = cpu_embed,
	.gather = cpu_gather,
	.layer_norm = cpu_layer_norm,
	.rms_norm = cpu_rms_norm,
	.activate = cpu_activate,
	.swiglu = cpu_swiglu,
	.rotary = cpu_rotary,
	.kv_write = cpu_kv_write,
	.kv_copy = cpu_kv_copy,
	.attention = cpu_attention,
	.patches = cpu_patches,
	.vision_tokens = cpu_vision_tokens,
	.step_begin = cpu_step_begin,
	.step_end = cpu_step_end,
	.choose = cpu_choose,
	.best = cpu_best,
	.score = cpu_score,
	.copy = cpu_copy_tensor,
	.scale = cpu_scale,
	.scatter = cpu_scatter,
	.matmul_backward = cpu_matmul_backward,
	.add_product = cpu_add_product,
	.weight_update = cpu_weight_update,
	.layer_norm_backward = cpu_layer_norm_backward,
	.rms_norm_backward = cpu_rms_norm_backward,
	.activate_backward = cpu_activate_backward,
	.swiglu_backward = cpu_swiglu_backward,
	.rotary_backward = cpu_rotary_backward,
	.attention_backward_size = cpu_attention_backward_size,
	.attention_backward = cpu_attention_backward,
	.cross_entropy = cpu_cross_entropy,
	.square_sums = cpu_square_sums,
	.adamw = cpu_adamw,
};

/* Take memory for each thread; false when there is none. */
static bool
take_for_threads(CpuBackend *cpu, size_t floats, float **memory, Status *status)
{
	size_t		bytes = (size_t) thread_pool_threads(cpu->pool) * floats * sizeof(float);

	*memory = aligned_alloc(64, bytes);
	return *memory != NULL || status_out_of_memory(status, bytes);
}

Backend *
backend_open_cpu(const CpuOptions *options, Status *status)
{
	const Kernels *kernels = kernels_select(options->instruction_set, status);
	CpuBackend *cpu;

	if (kernels == NULL)
		return NULL;
	cpu = calloc(1, sizeof(CpuBackend));
	if (cpu == NULL)
	{
		status_out_of_memory(status, sizeof(CpuBackend));
		return NULL;
	}
	cpu->base.ops = &cpu_ops;
	cpu->kernels = kernels;
	cpu->pool = thread_pool_create(options->threads, status);
	if (cpu->pool == NULL)
	{
		cpu_close(&cpu->base);
		return NULL;
	}
	if (!take_for_threads(cpu, MATMUL_ROW_BLOCK * MATMUL_MAX_PANEL, &cpu->sums, status) ||
		!take_for_threads(cpu, BACKWARD_SCRATCH, &cpu->backward, status))
	{
		cpu_close(&cpu->base);
		return NULL;
	}
	snprintf(cpu->description, sizeof(cpu->description), "cpu %s, %d thread%s", kernels->name,
			 thread_pool_threads(cpu->pool), thread_pool_threads(cpu->pool) == 1 ? "" : "s");
	return &cpu->base;
}
