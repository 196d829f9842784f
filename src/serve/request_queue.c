/*
 * request_queue.c - a list under a mutex; see request_queue.h.
 */
#include "request_queue.h"

#include <time.h>

#define NS_PER_SECOND UINT64_C(1000000000)

void
request_queue_begin(RequestQueue *queue)
{
	pthread_condattr_t attributes;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_mutex_init(&queue->mutex, NULL);
	pthread_cond_init(&queue->filled, &attributes);
	pthread_condattr_destroy(&attributes);
	queue->first = NULL;
	queue->end = &queue->first;
	queue->closed = false;
	queue->woken = false;
}

void
request_queue_push(RequestQueue *queue, Request *request)
{
	request->next = NULL;
	pthread_mutex_lock(&queue->mutex);
	*queue->end = request;
	queue->end = &request->next;
	pthread_cond_signal(&queue->filled);
	pthread_mutex_unlock(&queue->mutex);
}

Request *
request_queue_pop(RequestQueue *queue, bool wait)
{
	Request    *request;

	pthread_mutex_lock(&queue->mutex);
	while (wait && queue->first == NULL && !queue->closed && !queue->woken)
		pthread_cond_wait(&queue->filled, &queue->mutex);
	queue->woken = false;
	request = queue->closed ? NULL : queue->first;
	if (request != NULL)
	{
		queue->first = request->next;
		if (queue->first == NULL)
			queue->end = &queue->first;
	}
	pthread_mutex_unlock(&queue->mutex);
	return request;
}

void
request_queue_wait(RequestQueue *queue, uint64_t nanoseconds)
{
	struct timespec end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	nanoseconds += (uint64_t) end.tv_nsec;
	end.tv_sec += (time_t) (nanoseconds / NS_PER_SECOND);
	end.tv_nsec = (long) (nanoseconds % NS_PER_SECOND);
	pthread_mutex_lock(&queue->mutex);
	while (queue->first == NULL && !queue->closed && !queue->woken &&
		   pthread_cond_timedwait(&queue->filled, &queue->mutex, &end) == 0)
		;
	pthread_mutex_unlock(&queue->mutex);
}

void
request_queue_wake(RequestQueue *queue)
{
	pthread_mutex_lock(&queue->mutex);
	queue->woken = true;
	pthread_cond_signal(&queue->filled);
	pthread_mutex_unlock(&queue->mutex);
}

void
request_queue_close(RequestQueue *queue)
{
	pthread_mutex_lock(&queue->mutex);
	queue->closed = true;
	pthread_cond_broadcast(&queue->filled);
	pthread_mutex_unlock(&queue->mutex);
}
