/*
 * model_host.h - the thread that owns the model: it loads it, runs the scheduler, and hands
 * finished requests back.
 *
 * While the model is loading or when it could not be loaded, the thread has nothing to
 * do with requests: the IO thread keeps or refuses them by the host's state.
 */
#ifndef MMGPT_MODEL_HOST_H
#define MMGPT_MODEL_HOST_H

#include <pthread.h>
#include <stdatomic.h>

#include "request.h"
#include "request_queue.h"
#include "scheduler.h"
#include "training.h"
#include "training_share.h"

typedef enum HostState
{
	HOST_LOADING,
	HOST_READY,
	HOST_FAILED,
	/* the device failed: the engine has to end, without answering what it was computing */
	HOST_LOST
} HostState;

typedef struct ModelHostOptions
{
	const char *directory;
	DeviceOptions device;
	Backend    *cuda;			/* of model_host_open_device; NULL: the processor computes */
	WeightFormat weights;
	/* bytes of everything that the model takes; 0: the model's default */
	size_t		memory_limit;
	int			training_share;	/* percent, 1 .. 99 */
	int			step_tokens;	/* of a step at most; 0: the model's default */
} ModelHostOptions;

typedef struct ModelHost
{
	ModelHostOptions options;
	pthread_t	thread;
	bool		thread_started;
	RequestQueue inbox;			/* prepared requests */
	RequestQueue outbox;		/* finished ones, for the IO thread */
	RequestQueue *preparing;	/* what preparers are to finish */
	int			wake_fd;		/* eventfd of the IO thread */
	atomic_bool stop;

	_Atomic HostState state;	/* written by the host's thread */
	/* Written by it before state leaves HOST_LOADING, read-only afterwards. */
	Status		failure;
	Arena	   *arena;
	Backend    *backend;
	Model	   *model;
	Tokenizer  *tokenizer;
	ModelContext context;
	AdapterSet *adapters;
	Scheduler  *scheduler;		/* the host's thread's alone */
	Request    *held;			/* the same: prepared, waiting for room for their adapters */
	Request   **held_end;
	Training	training;		/* the same */
	TrainingShare share;		/* the same */

	/* set by the IO thread to free the training that is open; cleared when it is gone */
	atomic_bool abandon;
	/*
	 * Odd: the training has to stand still, as a request runs alone. Counted up by the IO thread.
	 * The host answers with the number that it has seen: no slice is computed from there on.
	 */
	_Atomic uint32_t hold;
	_Atomic uint32_t hold_seen;

	/* requests in the hands of other threads that are to be computed or were */
	_Atomic uint32_t elsewhere;
	atomic_bool patient;		/* the training stands still for them */

	_Atomic uint32_t progress;	/* of loading, in 1/1000 */

	pthread_mutex_t mutex;		/* guards counters */
	SchedulerCounters counters;	/* a copy after every step */
	TrainingCounters training_counters;	/* the same */
} ModelHost;

/*
 * Open the CUDA device that the options mean, if one. Before sandbox_enter, as must be
 * model_host_start where there is one: its files are opened for writing. An engine whose device is
 * not there has to end: others may have theirs.
 */
extern bool model_host_open_device(ModelHostOptions *options, Status *status);

/* Start the thread. Requests that preparers have to finish go to the queue `preparing`. */
extern bool model_host_start(ModelHost *host, const ModelHostOptions *options, int wake_fd,
							 RequestQueue *preparing, Status *status);

/*
 * A request that is to be computed goes to another thread, or was and goes back; and one of these
 * was answered. While another thread has any, the training may stand still.
 */
extern void model_host_announce(ModelHost *host, const Request *request);
extern void model_host_release(ModelHost *host);

/* Make the IO thread look at the outbox and the state. */
extern void model_host_wake_io(ModelHost *host);

/* The last copies of the counters. */
extern void model_host_counters(ModelHost *host, SchedulerCounters *counters,
								TrainingCounters *training);

#endif
