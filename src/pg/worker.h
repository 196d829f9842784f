/*
 * worker.h - the supervisor, a background worker that keeps the engine alive.
 */
#ifndef MMGPT_WORKER_H
#define MMGPT_WORKER_H

#include "postmaster/bgworker.h"

#define SUPERVISOR_TYPE "mmgpt supervisor"	/* backend_type in pg_stat_activity */

/*
 * Fill in what all background workers of the extension have in common. By default one starts when
 * the server accepts writes, and is never restarted. function is found in the library by its name.
 */
extern void worker_describe(BackgroundWorker *worker, const char *type, const char *function);

/* Register the supervisor to be started with the server. */
extern void worker_register_static(void);

/* True where it was, so that this process has the library that the server was started with. */
extern bool worker_is_preloaded(void);

/*
 * Register a supervisor now, from a backend; the handle is of the current
 * memory context. False when max_worker_processes leaves no room.
 */
extern bool worker_register_dynamic(BackgroundWorkerHandle **handle);

#endif
