/*
 * emulator.h - what the files of the emulation share.
 */
#ifndef MMGPT_EMULATOR_H
#define MMGPT_EMULATOR_H

#include "cuda_on_host.h"

/* Dynamic and static shared memory of a block, as of sm_90, and without asking for more. */
#define SHARED_LIMIT ((size_t) 227 << 10)
#define SHARED_DEFAULT ((size_t) 48 << 10)

/* ---- cuda_on_host.cpp ---- */

/* Run all threads of all blocks; false after an error, which was printed. */
extern bool emulator_run(const HostLaunch *launch);
/* Print an error of the running kernel and end it. */
extern void emulator_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Whether a kernel is running. */
extern bool emulator_running;
/* Whether an address lies on the stack of a fiber. */
extern bool emulator_on_stack(const void *address);
/* Place of the running thread: block of the grid, thread of the block, barriers behind it. */
typedef struct EmulatorPlace
{
	unsigned	block;
	unsigned	thread;
	unsigned	interval;
	unsigned	warp_interval;
} EmulatorPlace;

extern EmulatorPlace emulator_place(void);

/* ---- mma_on_host.cpp ---- */

/* At the end of a block: an error where a thread began copies and did not wait for them. */
extern void emulator_end_copies(void);

/* ---- runtime_on_host.cpp ---- */

/* Start and size of the address range that all device memory lies in. */
extern char *device_arena;
#define DEVICE_ARENA_SIZE ((size_t) 64 << 30)
/* Largest dynamic shared memory that a kernel asked for. */
extern size_t runtime_shared_limit(const void *kernel);

/* ---- race.cpp; empty in other builds ---- */

typedef enum MemoryState
{
	MEMORY_NONE,				/* not allocated */
	MEMORY_UNDEFINED,			/* allocated, never written */
	MEMORY_DEFINED
} MemoryState;

extern void race_begin_launch(void);
extern void race_begin_block(const char *shared, size_t size);
extern void race_set(const void *address, size_t bytes, MemoryState state);
extern void race_atomic(const void *address, size_t bytes);

#endif
