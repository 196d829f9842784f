/*
 * thread_pool.c - fork and join around an atomic counter; see thread_pool.h.
 *
 * A generation number announces an operation. Workers watch it, spinning at
 * first and asleep on a futex after SPIN_NANOSECONDS. Tasks are claimed by counting
 * down one number that holds the generation in its upper half, so that a worker
 * which wakes late can neither take a task of the next operation by mistake nor
 * one that was done already.
 */
#include "thread_pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

/* Longer than the gaps between the operations of one step, shorter than anybody would notice. */
#define SPIN_NANOSECONDS 50000
#define MAXIMUM_THREADS 1024

typedef struct Worker
{
	ThreadPool *pool;
	int			number;
	pthread_t	thread;
} Worker;

struct ThreadPool
{
	int			threads;
	Worker	   *workers;		/* threads - 1 of them */
	int			started;

	TaskFunction function;		/* of the current operation; written before unclaimed is */
	void	   *argument;
	uint32_t	tasks;
	_Atomic uint32_t together;	/* tasks that a thread takes at a time */

	_Atomic uint64_t unclaimed;	/* generation << 32 | tasks that nobody took yet */
	_Atomic uint32_t generation;	/* futex: raised for every operation */
	_Atomic uint32_t sleepers;
	_Atomic uint32_t unfinished;	/* tasks not yet done */
	_Atomic bool stop;
};

static void
pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#endif
}

/* Take tasks of one generation until none is left. */
static void
work(ThreadPool *pool, uint32_t generation, int thread)
{
	for (;;)
	{
		uint64_t	claim = atomic_load(&pool->unclaimed);
		uint32_t	left = (uint32_t) claim;
		/* of a later operation perhaps, but then the exchange fails */
		uint32_t	together = atomic_load(&pool->together);
		uint32_t	taken = left < together ? left : together;

		if ((uint32_t) (claim >> 32) != generation || left == 0)
			return;
		if (!atomic_compare_exchange_weak(&pool->unclaimed, &claim, claim - taken))
			continue;
		/* A claimed task keeps the operation open, so its fields stay as they are. */
		for (uint32_t i = 0; i < taken; i++)
			pool->function(pool->argument, (int) (pool->tasks - left + i), thread);
		atomic_fetch_sub(&pool->unfinished, taken);
	}
}

/* Wait until the generation differs from the one seen last. */
static uint32_t
wait_for_operation(ThreadPool *pool, uint32_t seen)
{
	uint64_t	begin = clock_now_ns();
	int			turns = 0;

	while (atomic_load(&pool->generation) == seen && !atomic_load(&pool->stop))
	{
		pause_briefly();
		if (++turns % 64 != 0 || clock_now_ns() - begin < SPIN_NANOSECONDS)
			continue;
		atomic_fetch_add(&pool->sleepers, 1);
		if (atomic_load(&pool->generation) == seen && !atomic_load(&pool->stop))
			syscall(SYS_futex, &pool->generation, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
		atomic_fetch_sub(&pool->sleepers, 1);
	}
	return atomic_load(&pool->generation);
}

static void *
worker_main(void *argument)
{
	Worker	   *worker = argument;
	ThreadPool *pool = worker->pool;
	uint32_t	seen = 0;

	while (!atomic_load(&pool->stop))
	{
		seen = wait_for_operation(pool, seen);
		work(pool, seen, worker->number);
	}
	return NULL;
}

static void
wake_sleepers(ThreadPool *pool)
{
	if (atomic_load(&pool->sleepers) > 0)
		syscall(SYS_futex, &pool->generation, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Cores that this process may run on. */
static int
available_cores(void)
{
	cpu_set_t	set;

	if (sched_getaffinity(0, sizeof(set), &set) != 0)
		return 1;
	return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
}

/* Start the workers with all signals blocked: signals are the main thread's. */
static bool
start_workers(ThreadPool *pool, Status *status)
{
	sigset_t	all;
	sigset_t	old;
	int			failure = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	for (int i = 0; i < pool->threads - 1 && failure == 0; i++)
	{
		pool->workers[i].pool = pool;
		pool->workers[i].number = i + 1;
		failure = pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i]);
		if (failure == 0)
			pool->started++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (failure != 0)
		return status_set(status, STATUS_OUT_OF_MEMORY, "could not start thread %d of %d",
						  pool->started + 2, pool->threads);
	return true;
}

ThreadPool *
thread_pool_create(int threads, Status *status)
{
	ThreadPool *pool = calloc(1, sizeof(ThreadPool));

	if (pool == NULL)
	{
		status_out_of_memory(status, sizeof(ThreadPool));
		return NULL;
	}
	if (threads <= 0)
		threads = available_cores();
	pool->threads = threads > MAXIMUM_THREADS ? MAXIMUM_THREADS : threads;
	pool->workers = calloc((size_t) pool->threads, sizeof(Worker));
	if (pool->workers == NULL)
		status_out_of_memory(status, (size_t) pool->threads * sizeof(Worker));
	else if (start_workers(pool, status))
		return pool;
	thread_pool_free(pool);
	return NULL;
}

void
thread_pool_free(ThreadPool *pool)
{
	if (pool == NULL)
		return;
	atomic_store(&pool->stop, true);
	atomic_fetch_add(&pool->generation, 1);
	syscall(SYS_futex, &pool->generation, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
	for (int i = 0; i < pool->started; i++)
		pthread_join(pool->workers[i].thread, NULL);
	free(pool->workers);
	free(pool);
}

int
thread_pool_threads(const ThreadPool *pool)
{
	return pool->threads;
}

void
thread_pool_run(ThreadPool *pool, TaskFunction function, void *argument, int tasks, int together)
{
	uint32_t	generation;
	int			turns = 0;

	if (pool->threads == 1 || tasks <= 1)
	{
		for (int task = 0; task < tasks; task++)
			function(argument, task, 0);
		return;
	}
	generation = atomic_load(&pool->generation) + 1;
	pool->function = function;
	pool->argument = argument;
	pool->tasks = (uint32_t) tasks;
	atomic_store(&pool->together, (uint32_t) together);
	atomic_store(&pool->unfinished, (uint32_t) tasks);
	atomic_store(&pool->unclaimed, (uint64_t) generation << 32 | (uint32_t) tasks);
	atomic_store(&pool->generation, generation);
	wake_sleepers(pool);
	work(pool, generation, 0);
	while (atomic_load(&pool->unfinished) > 0)
	{
		pause_briefly();
		if (++turns % 4096 == 0)
			sched_yield();		/* somebody else may need this core to finish our task */
	}
}
