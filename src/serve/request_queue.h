/*
 * request_queue.h - requests on their way from one thread to another.
 */
#ifndef MMGPT_REQUEST_QUEUE_H
#define MMGPT_REQUEST_QUEUE_H

#include <pthread.h>
#include <stdint.h>

#include "request.h"

/* First in, first out; the mutex guards the list, nothing else. */
typedef struct RequestQueue
{
	pthread_mutex_t mutex;
	pthread_cond_t filled;
	Request    *first;
	Request   **end;
	bool		closed;			/* nobody waits any more */
	bool		woken;			/* whoever waits shall look at other things */
} RequestQueue;

extern void request_queue_begin(RequestQueue *queue);
extern void request_queue_push(RequestQueue *queue, Request *request);

/* Let whoever waits for a request, or does so next, go on without one. */
extern void request_queue_wake(RequestQueue *queue);

/* The oldest request; NULL when there is none (wait false), or the queue was woken or closed. */
extern Request *request_queue_pop(RequestQueue *queue, bool wait);

/* Wait until a request is there or the queue was woken or closed, but no longer than this. */
extern void request_queue_wait(RequestQueue *queue, uint64_t nanoseconds);

/* Wake everybody who waits; they get NULL from now on. */
extern void request_queue_close(RequestQueue *queue);

#endif
