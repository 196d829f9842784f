/*
 * race.cpp - who touched which byte: the memory checker of the race build, and its empty twin.
 *
 * In the race build the kernels are compiled with -fsanitize=thread but not linked with that
 * sanitizer: the functions that the compiler then calls before every load and store are here. Two
 * accesses to one byte, one of them a write, by two threads, with no barrier between them, are an
 * error, as are reads of what nobody wrote and every address that is no device memory.
 */
#include "emulator.h"

#ifndef CUDA_ON_HOST_RACE

void
race_begin_launch(void)
{
}

void
race_begin_block(const char *shared, size_t size)
{
}

void
race_set(const void *address, size_t bytes, MemoryState state)
{
}

void
race_atomic(const void *address, size_t bytes)
{
}

#else

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <sys/mman.h>

/* One access; 0 is none. */
typedef union Access
{
	struct
	{
		uint64_t	launch:16;
		uint64_t	block:16;
		uint64_t	thread:10;
		uint64_t	interval:13;
		uint64_t	warp_interval:8;
		uint64_t	atomic:1;
	};
	uint64_t	bits;
} Access;

typedef struct Cell
{
	Access		write;
	Access		reads[2];
	const void *write_code;		/* where it was written from */
} Cell;

static Cell *device_cells;		/* sparse: one for each byte of the arena */
static uint8_t *device_states;
static Cell shared_cells[2 * SHARED_LIMIT];
static uint8_t shared_states[2 * SHARED_LIMIT];
static const char *shared_start;
static size_t shared_size;
static unsigned launch_number;

static void *
reserve(size_t bytes)
{
	void	   *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
							  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		abort();
	return memory;
}

/* Cell and state of a byte; false when it is neither of the device nor shared. */
static bool
find(const void *address, Cell **cell, uint8_t **state)
{
	size_t		offset = (size_t) ((const char *) address - device_arena);

	if (device_cells == NULL)
	{
		device_cells = (Cell *) reserve(DEVICE_ARENA_SIZE * sizeof(Cell));
		device_states = (uint8_t *) reserve(DEVICE_ARENA_SIZE);
	}
	if (device_arena != NULL && offset < DEVICE_ARENA_SIZE)
	{
		*cell = &device_cells[offset];
		*state = &device_states[offset];
		return true;
	}
	offset = (size_t) ((const char *) address - shared_start);
	if (shared_start == NULL || offset >= shared_size)
		return false;
	*cell = &shared_cells[offset];
	*state = &shared_states[offset];
	return true;
}

void
race_begin_launch(void)
{
	launch_number = launch_number % 65535 + 1;
}

void
race_begin_block(const char *shared, size_t size)
{
	shared_start = shared;
	shared_size = size;
	memset(shared_states, 0, sizeof(shared_states));
	memset(shared_cells, 0, sizeof(shared_cells));
}

void
race_set(const void *address, size_t bytes, MemoryState state)
{
	Cell	   *cell;
	uint8_t    *at;

	if (bytes > 0 && find(address, &cell, &at))
		memset(at, state, bytes);
}

/* Print where code comes from. */
static void
print_place(const void *code)
{
	Dl_info		info;
	char		command[512];

	if (dladdr(code, &info) == 0)
		return;
	fflush(stderr);
	snprintf(command, sizeof(command), "addr2line -s -e '%s' %#zx >&2", info.dli_fname,
			 (size_t) ((const char *) code - 1 - (const char *) info.dli_fbase));
	if (system(command) != 0)
		fprintf(stderr, "%p\n", code);
}

static void
report(const char *what, const void *code, const void *other)
{
	static std::map<std::pair<const void *, const void *>, bool> told;

	if (told[{code, other}])
	{
		emulator_error("%s (told before)", what);
		return;
	}
	told[{code, other}] = true;
	emulator_error("%s, here:", what);
	print_place(code);
	if (other != NULL)
	{
		fprintf(stderr, "and there:\n");
		print_place(other);
	}
}

/* Whether nothing orders two accesses of the same launch. */
static bool
unordered(Access a, Access b)
{
	if (a.bits == 0 || a.launch != b.launch || (a.atomic && b.atomic))
		return false;
	if (a.block != b.block)
		return true;
	if (a.thread == b.thread || a.interval != b.interval)
		return false;
	return a.thread / 32 != b.thread / 32 || a.warp_interval == b.warp_interval;
}

static void
check_byte(const void *address, bool write, bool atomic, const void *code)
{
	EmulatorPlace place = emulator_place();
	Access		access = {};
	Cell	   *cell;
	uint8_t    *state;

	access.launch = launch_number;
	access.block = place.block;
	access.thread = place.thread;
	access.interval = place.interval;
	access.warp_interval = place.warp_interval;
	access.atomic = atomic;
	if (!find(address, &cell, &state))
	{
		report("uses memory of the host", code, NULL);
		return;
	}
	if (*state == MEMORY_NONE)
		report("uses memory that is not allocated", code, NULL);
	if (!write && *state == MEMORY_UNDEFINED)
		report("reads what nobody wrote", code, NULL);
	if (unordered(cell->write, access))
		report(write ? "two threads write" : "reads what another thread writes", code,
			   cell->write_code);
	if (write)
	{
		for (int i = 0; i < 2; i++)
			if (unordered(cell->reads[i], access))
				report("writes what another thread reads", code, NULL);
		cell->write = access;
		cell->write_code = code;
		*state = MEMORY_DEFINED;
	}
	else if (cell->reads[0].thread != access.thread || cell->reads[0].block != access.block ||
			 cell->reads[0].launch != access.launch)
	{
		cell->reads[1] = cell->reads[0];
		cell->reads[0] = access;
	}
	else
		cell->reads[0] = access;
}

static void
check(const void *address, size_t bytes, bool write, bool atomic, const void *code)
{
	if (!emulator_running || emulator_on_stack(address) ||
		((const char *) address >= (const char *) &host_indices &&
		 (const char *) address < (const char *) (&host_indices + 1)))
		return;
	for (size_t i = 0; i < bytes; i++)
		check_byte((const char *) address + i, write, atomic, code);
}

void
race_atomic(const void *address, size_t bytes)
{
	check(address, bytes, true, true, __builtin_return_address(0));
}

#define HOOK(name, bytes, write) \
	extern "C" void \
	__tsan_##name(void *address) \
	{ \
		check(address, bytes, write, false, __builtin_return_address(0)); \
	}
#define HOOKS(bytes) \
	HOOK(read##bytes, bytes, false) \
	HOOK(write##bytes, bytes, true) \
	HOOK(unaligned_read##bytes, bytes, false) \
	HOOK(unaligned_write##bytes, bytes, true) \
	extern "C" void \
	__tsan_read_write##bytes(void *address) \
	{ \
		check(address, bytes, false, false, __builtin_return_address(0)); \
		check(address, bytes, true, false, __builtin_return_address(0)); \
	}

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" void
__tsan_read_range(void *address, size_t bytes)
{
	check(address, bytes, false, false, __builtin_return_address(0));
}

extern "C" void
__tsan_write_range(void *address, size_t bytes)
{
	check(address, bytes, true, false, __builtin_return_address(0));
}

extern "C" void
__tsan_init(void)
{
}

extern "C" void
__tsan_func_entry(void *)
{
}

extern "C" void
__tsan_func_exit(void)
{
}

extern "C" void
__tsan_vptr_update(void **, void *)
{
}

extern "C" void
__tsan_vptr_read(void **)
{
}

#endif
