/*
 * cuda_on_host.cpp - blocks of threads as fibers.
 *
 * A kernel runs block by block, each CUDA thread a fiber with a stack of its own. A thread runs
 * until it waits for its warp or its block; then the next lane of its warp runs, and when no lane
 * can, the scheduler looks for another warp. A thread that never waits gives its stack to the next.
 * CUDA_ON_HOST_ORDER=reverse runs threads and blocks from last to first, so that what depends on
 * the order differs between two runs.
 *
 * Found here: a thread that returns before a barrier of others, different barriers in one block,
 * launches that a device would refuse, too much shared memory.
 */
#include "emulator.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <vector>

#if !defined(__x86_64__)
#error "the switch between fibers is written for x86-64"
#endif

#define STACK_SIZE ((size_t) 128 << 10)
#define GUARD_SIZE ((size_t) 4096)
/* Stacks at equal distances would share the sets of the cache. */
#define STACK_SHIFT 576
#define STACK_SHIFTS 16
#define WARP 32
#define MOST_THREADS 1024
#define MOST_SITES 32
/* Between pieces of shared memory, so that address sanitizer sees who leaves one. */
#define RED_ZONE 64

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#define START_SWITCH(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define FINISH_SWITCH(saved) __sanitizer_finish_switch_fiber(saved, NULL, NULL)
#else
#define POISON(p, n) ((void) (p))
#define UNPOISON(p, n) ((void) (p))
#define START_SWITCH(save, bottom, size) ((void) (save))
#define FINISH_SWITCH(saved) ((void) (saved))
#endif

typedef enum FiberState
{
	FIBER_FRESH,
	FIBER_WAITS_WARP,
	FIBER_WAITS_BLOCK,
	FIBER_DONE
} FiberState;

typedef struct Fiber
{
	void	   *stack_pointer;
	char	   *stack;
	void	   *fake_stack;		/* of address sanitizer */
	FiberState	state;
	unsigned	generation;		/* of what it waits for */
	const char *file;			/* where it waits */
	int			line;
	uint3		index;
} Fiber;

typedef struct Warp
{
	unsigned	generation;
	unsigned	fences;
	int			arrived;
	uint64_t	lanes[2][WARP];	/* by turns: one is read while the next is written */
} Warp;

typedef struct SharedSite
{
	const void *site;
	char	   *memory;
} SharedSite;

HostIndices host_indices;
bool		emulator_running;

static Fiber fibers[MOST_THREADS];
static Warp warps[MOST_THREADS / WARP];
static Fiber scheduler;
static Fiber *current;
static int	thread_count;
static int	done_count;
static unsigned block_generation;
static int	block_arrived;
static unsigned block_number;
static bool failed;
static bool reverse;
static const HostLaunch *running;

static std::vector<char *> free_stacks;
static std::vector<char *> all_stacks;

static char *shared_memory;
static size_t shared_used;		/* red zones included */
static size_t shared_bytes;		/* without them */
static SharedSite sites[MOST_SITES];
static int	site_count;

extern "C" void fiber_switch(void **save, void *load);

asm(R"(
	.text
	.globl fiber_switch
	.hidden fiber_switch
	.type fiber_switch, @function
fiber_switch:
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	ret
	.size fiber_switch, .-fiber_switch
)");

/* Go from one fiber to another; returns when something goes back. */
static void
go_to(Fiber *from, Fiber *to, bool from_ends)
{
	current = to;
	if (to != &scheduler)
		host_indices.thread = to->index;
	START_SWITCH(from_ends ? NULL : &from->fake_stack, to->stack, STACK_SIZE);
	fiber_switch(&from->stack_pointer, to->stack_pointer);
	FINISH_SWITCH(from->fake_stack);
}

/* The first function of every fiber. */
static void
fiber_main(void)
{
	Fiber	   *self = current;
	void	   *call = alloca(running->call_size);

	FINISH_SWITCH(NULL);
	memcpy(call, running->call, running->call_size);
	running->run(call);
	self->state = FIBER_DONE;
	done_count++;
	free_stacks.push_back(self->stack);
	go_to(self, &scheduler, true);
	abort();
}

static char *
take_stack(void)
{
	char	   *stack;

	if (free_stacks.empty())
	{
		stack = (char *) mmap(NULL, STACK_SIZE + GUARD_SIZE, PROT_READ | PROT_WRITE,
							  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (stack == MAP_FAILED)
			abort();
		mprotect(stack, GUARD_SIZE, PROT_NONE);
		all_stacks.push_back(stack + GUARD_SIZE);
		return stack + GUARD_SIZE;
	}
	stack = free_stacks.back();
	free_stacks.pop_back();
	UNPOISON(stack, STACK_SIZE);
	return stack;
}

bool
emulator_on_stack(const void *address)
{
	for (char *stack : all_stacks)
		if ((const char *) address >= stack && (const char *) address < stack + STACK_SIZE)
			return true;
	return false;
}

/* Give a thread a stack that enters fiber_main as if that had been called. */
static void
prepare(Fiber *fiber)
{
	size_t		shift = (size_t) (fiber - fibers) % STACK_SHIFTS * STACK_SHIFT;
	void	  **top;

	fiber->stack = take_stack();
	top = (void **) (fiber->stack + STACK_SIZE - shift);
	*--top = NULL;
	*--top = (void *) fiber_main;
	for (int i = 0; i < 6; i++)
		*--top = NULL;
	fiber->stack_pointer = top;
}

static bool
can_run(const Fiber *fiber)
{
	switch (fiber->state)
	{
		case FIBER_FRESH:
			return true;
		case FIBER_WAITS_WARP:
			return warps[(fiber - fibers) / WARP].generation != fiber->generation;
		case FIBER_WAITS_BLOCK:
			return block_generation != fiber->generation;
		case FIBER_DONE:
			break;
	}
	return false;
}

/* The next lane of the warp that can run, behind `lane` in the order of the run; NULL: none. */
static Fiber *
next_lane(int warp, int lane)
{
	int			step = reverse ? WARP - 1 : 1;

	for (int i = 0; i < WARP; i++)
	{
		Fiber	   *fiber;

		lane = (lane + step) % WARP;
		fiber = &fibers[warp * WARP + lane];
		if (can_run(fiber))
			return fiber;
	}
	return NULL;
}

static void
resume(Fiber *from, Fiber *fiber)
{
	if (fiber->state == FIBER_FRESH)
		prepare(fiber);
	go_to(from, fiber, false);
}

/* Leave the running thread until what it waits for has come. */
static void
wait_here(FiberState state, unsigned generation, const char *file, int line)
{
	Fiber	   *self = current;
	Fiber	   *next;

	self->state = state;
	self->generation = generation;
	self->file = file;
	self->line = line;
	next = next_lane((int) (self - fibers) / WARP, (int) (self - fibers) % WARP);
	if (next != NULL && !failed)
		resume(self, next);
	else
		go_to(self, &scheduler, false);
}

void
emulator_error(const char *format, ...)
{
	va_list		arguments;

	failed = true;
	fprintf(stderr, "cuda_on_host: %s, block %u, thread %d: ",
			running == NULL ? "host" : running->name, block_number,
			current >= fibers && current < fibers + MOST_THREADS ? (int) (current - fibers) : -1);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
}

void
host_block_barrier(const char *file, int line)
{
	static const char *first_file;
	static int	first_line;

	if (block_arrived == 0)
	{
		first_file = file;
		first_line = line;
	}
	else if (strcmp(first_file, file) != 0 || first_line != line)
		emulator_error("waits at %s:%d while others of its block wait at %s:%d", file, line,
					   first_file, first_line);
	if (++block_arrived == thread_count)
	{
		block_arrived = 0;
		block_generation++;
	}
	else
		wait_here(FIBER_WAITS_BLOCK, block_generation, file, line);
}

const uint64_t *
host_warp_exchange(uint64_t value, const char *file, int line)
{
	int			thread = (int) (current - fibers);
	Warp	   *warp = &warps[thread / WARP];
	uint64_t   *lanes = warp->lanes[warp->generation & 1];

	lanes[thread % WARP] = value;
	if (++warp->arrived == WARP)
	{
		warp->arrived = 0;
		warp->generation++;
	}
	else
		wait_here(FIBER_WAITS_WARP, warp->generation, file, line);
	return lanes;
}

void
host_warp_fence(void)
{
	/* every lane counts the fence; only the number matters */
	warps[(current - fibers) / WARP].fences++;
}

EmulatorPlace
emulator_place(void)
{
	unsigned	thread = (unsigned) (current - fibers);

	/* lanes pass a fence one after another: those behind it have counted it */
	return (EmulatorPlace) {block_number, thread, block_generation,
							warps[thread / WARP].fences / WARP};
}

void *
host_dynamic_shared(void)
{
	return shared_memory;
}

/* Take shared memory for the block. */
static char *
take_shared(size_t bytes)
{
	char	   *memory = shared_memory + shared_used;

	shared_bytes += bytes;
	shared_used += (bytes + RED_ZONE + 127) / 128 * 128;
	if (shared_bytes > SHARED_LIMIT || shared_used > 2 * SHARED_LIMIT)
	{
		emulator_error("takes %zu bytes of shared memory", shared_bytes);
		abort();
	}
	UNPOISON(memory, bytes);
	memset(memory, 0xFF, bytes);
	race_set(memory, bytes, MEMORY_UNDEFINED);
	return memory;
}

void *
host_shared(const void *site, size_t bytes)
{
	for (int i = 0; i < site_count; i++)
		if (sites[i].site == site)
			return sites[i].memory;
	if (site_count == MOST_SITES)
		abort();
	sites[site_count] = (SharedSite) {site, take_shared(bytes)};
	return sites[site_count++].memory;
}

/* Forget what the last block shared. */
static void
begin_shared(size_t dynamic)
{
	POISON(shared_memory, 2 * SHARED_LIMIT);
	race_begin_block(shared_memory, 2 * SHARED_LIMIT);
	site_count = 0;
	shared_used = 0;
	shared_bytes = 0;
	if (dynamic > 0)
		take_shared(dynamic);
}

/* Tell who waits in vain. */
static void
report_deadlock(void)
{
	for (int i = 0; i < thread_count; i++)
		if (fibers[i].state != FIBER_DONE)
		{
			current = &fibers[i];
			emulator_error("waits at %s:%d for threads that returned or wait elsewhere",
						   fibers[i].file, fibers[i].line);
			return;
		}
}

static void
run_block(const HostLaunch *launch)
{
	thread_count = (int) (launch->block.x * launch->block.y * launch->block.z);
	done_count = 0;
	block_arrived = 0;
	block_generation = 0;
	for (int i = 0; i < thread_count; i++)
	{
		unsigned	x = launch->block.x;
		unsigned	y = launch->block.y;

		fibers[i].state = FIBER_FRESH;
		fibers[i].index = make_uint3((unsigned) i % x, (unsigned) i / x % y, (unsigned) i / x / y);
	}
	memset(warps, 0, sizeof(warps));
	begin_shared(launch->shared);
	while (done_count < thread_count && !failed)
	{
		int			count = thread_count / WARP;
		bool		ran = false;

		for (int i = 0; i < count && !failed; i++)
		{
			int			warp = reverse ? count - 1 - i : i;
			Fiber	   *fiber;

			while (!failed && (fiber = next_lane(warp, reverse ? 0 : WARP - 1)) != NULL)
			{
				ran = true;
				resume(&scheduler, fiber);
			}
		}
		if (!ran)
			report_deadlock();
	}
	emulator_end_copies();
	for (int i = 0; i < thread_count; i++)	/* after an error */
		if (fibers[i].state != FIBER_DONE && fibers[i].state != FIBER_FRESH)
			free_stacks.push_back(fibers[i].stack);
}

/* Memory and the order of threads, at the first launch. */
static void
begin_emulation(void)
{
	const char *order = getenv("CUDA_ON_HOST_ORDER");

	if (shared_memory != NULL)
		return;
	reverse = order != NULL && strcmp(order, "reverse") == 0;
	shared_memory = (char *) mmap(NULL, 2 * SHARED_LIMIT + RED_ZONE, PROT_READ | PROT_WRITE,
								  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (shared_memory == MAP_FAILED)
		abort();
}

bool
emulator_run(const HostLaunch *launch)
{
	unsigned	blocks = launch->grid.x * launch->grid.y * launch->grid.z;

	begin_emulation();
	race_begin_launch();
	running = launch;
	failed = false;
	emulator_running = true;
	host_indices.block_size = launch->block;
	host_indices.grid_size = launch->grid;
	for (unsigned i = 0; i < blocks && !failed; i++)
	{
		unsigned	x = launch->grid.x;
		unsigned	y = launch->grid.y;

		block_number = reverse ? blocks - 1 - i : i;
		host_indices.block = make_uint3(block_number % x, block_number / x % y,
										block_number / x / y);
		run_block(launch);
	}
	emulator_running = false;
	running = NULL;
	current = NULL;
	return !failed;
}

unsigned
atomicAdd(unsigned *address, unsigned value)
{
	unsigned	old = *address;

	race_atomic(address, sizeof(*address));
	*address = old + value;
	return old;
}

unsigned long long
atomicAdd(unsigned long long *address, unsigned long long value)
{
	unsigned long long old = *address;

	race_atomic(address, sizeof(*address));
	*address = old + value;
	return old;
}
