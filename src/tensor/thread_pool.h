/*
 * thread_pool.h - the threads that share one operation.
 *
 * An operation is cut into tasks; whoever is free takes the next one. Which
 * thread computes a task never changes its result. Threads spin for a moment
 * after an operation, because the next one follows within microseconds, and then
 * sleep, so that an idle engine uses no processor time.
 */
#ifndef MMGPT_THREAD_POOL_H
#define MMGPT_THREAD_POOL_H

#include "status.h"

typedef struct ThreadPool ThreadPool;

/* Does one task. thread is 0 .. threads - 1 and selects scratch memory. */
typedef void (*TaskFunction) (void *argument, int task, int thread);

/* threads counts the caller; 0 means all cores this process may run on. */
extern ThreadPool *thread_pool_create(int threads, Status *status);
extern void thread_pool_free(ThreadPool *pool);
extern int	thread_pool_threads(const ThreadPool *pool);

/*
 * Do tasks 0 .. tasks - 1 and return when all are done; a thread takes `together` of them at a
 * time, at least 1: more than one where a task is not much longer than taking it. Only one thread
 * at a time may call this for a pool.
 */
extern void thread_pool_run(ThreadPool *pool, TaskFunction function, void *argument, int tasks,
							int together);

#endif
