/*
 * model_host.c - see model_host.h.
 */
#include "model_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "model_text.h"
#include "pixel_cache.h"

/* Bytes for adapters: this without a memory limit, a part of it otherwise. */
#define DEFAULT_ADAPTER_BYTES ((size_t) 1 << 30)
#define ADAPTER_PART 8
/* Bytes for pictures as they were read: this at most, and a part of a memory limit. */
#define MOST_PIXEL_BYTES ((size_t) 16 << 20)
#define PIXEL_PART 64

void
model_host_wake_io(ModelHost *host)
{
	uint64_t	one = 1;
	ssize_t		written = write(host->wake_fd, &one, sizeof(one));

	(void) written;				/* full: the IO thread is awake anyway */
}

void
model_host_announce(ModelHost *host, const Request *request)
{
	if (request_is_computed(request))
		atomic_fetch_add(&host->elsewhere, 1);
}

void
model_host_release(ModelHost *host)
{
	if (atomic_fetch_sub(&host->elsewhere, 1) == 1 && atomic_load(&host->patient))
		request_queue_wake(&host->inbox);
}

void
model_host_counters(ModelHost *host, SchedulerCounters *counters, TrainingCounters *training)
{
	pthread_mutex_lock(&host->mutex);
	*counters = host->counters;
	*training = host->training_counters;
	pthread_mutex_unlock(&host->mutex);
}

static void
note_progress(void *argument, double fraction)
{
	ModelHost  *host = argument;

	atomic_store(&host->progress, (uint32_t) (fraction * 1000));
}

static bool
device_is_lost(const ModelHost *host)
{
	return host->backend != NULL && !host->backend->ops->alive(host->backend);
}

/*
 * A request that a lost device leaves unfinished gets no answer: its backend sees the engine end,
 * and sends it again to the next one.
 */
static void
request_done(Request *request, void *argument)
{
	ModelHost  *host = argument;

	if (device_is_lost(host))
		return;
	model_host_announce(host, request);
	request_queue_push(&host->outbox, request);
	model_host_wake_io(host);
}

/* A request of the training is complete, but for what a preparer has to do. */
static void
training_done(Request *request, void *argument)
{
	ModelHost  *host = argument;

	if (request->train != NULL && request->train->unsealed && status_good(&request->status))
		request_queue_push(host->preparing, request);
	else
		request_done(request, host);
}

/* The limit that was set, or what the device has room for if that is less; 0: none. */
static size_t
memory_limit(const ModelHost *host)
{
	size_t		limit = host->options.memory_limit;
	size_t		room = host->backend->ops->memory_room(host->backend);

	return room > 0 && (limit == 0 || room < limit) ? room : limit;
}

/* Everything that can be wrong with a model directory shows here. */
static bool
load(ModelHost *host, Status *status)
{
	ModelOptions options = {.attend_previous = -1, .progress = note_progress, .argument = host,
		.training = true, .weights = host->options.weights,
		.max_step_tokens = host->options.step_tokens};
	size_t		limit;
	size_t		adapters;
	size_t		pixels;
	SchedulerOptions scheduler = {0};
	size_t		side;

	host->arena = arena_create();
	if (host->arena == NULL)
		return status_out_of_memory(status, 0);
	host->backend = host->options.cuda != NULL ? host->options.cuda
		: backend_open_cpu(&host->options.device.cpu, status);
	if (host->backend == NULL)
		return false;
	limit = memory_limit(host);
	adapters = limit == 0 ? DEFAULT_ADAPTER_BYTES : limit / ADAPTER_PART;
	pixels = limit == 0 || limit / PIXEL_PART > MOST_PIXEL_BYTES ? MOST_PIXEL_BYTES
		: limit / PIXEL_PART;
	options.memory_limit = limit;
	options.adapter_bytes = adapters + pixels;
	host->model = model_open(host->options.directory, host->backend, &options, status);
	if (host->model == NULL)
		return false;
	host->tokenizer = model_text_tokenizer(host->options.directory, model_config(host->model),
										   host->arena, status);
	if (host->tokenizer == NULL ||
		!model_context_create(&host->context, model_config(host->model), host->tokenizer,
							  host->arena, status))
		return false;
	host->adapters = adapter_set_create(adapters, status);
	if (host->adapters == NULL)
		return false;
	host->context.model = host->model;
	host->context.adapters = host->adapters;
	side = (size_t) model_config(host->model)->vision.image_size;
	host->context.pixels = pixel_cache_create(pixels, side * side * 3, host->arena, status);
	if (host->context.pixels == NULL)
		return false;
	training_begin(&host->training, host->model, host->options.training_share, training_done,
				   host);
	share_begin(&host->share, host->options.training_share);
	host->scheduler = scheduler_create(host->model, host->tokenizer, &scheduler, status);
	return host->scheduler != NULL;
}

/* What callers are told when there is no model. */
static void
set_failure(ModelHost *host, const Status *reason)
{
	status_set(&host->failure, STATUS_MODEL_UNAVAILABLE, "model \"%s\" could not be loaded",
			   host->options.directory);
	if (reason->detail[0] != '\0')
		status_detail(&host->failure, "%.300s: %.200s", reason->message, reason->detail);
	else
		status_detail(&host->failure, "%s.", reason->message);
	status_hint(
		&host->failure,
		"Repair the model, or set mmgpt.model to another one, and run SELECT mmgpt_restart().");
	log_write(ENGINE_ERROR, "model \"%s\" could not be loaded: %s %s", host->options.directory,
			  reason->message, reason->detail);
}

static void
copy_counters(ModelHost *host)
{
	pthread_mutex_lock(&host->mutex);
	scheduler_counters(host->scheduler, &host->counters);
	host->training_counters = host->training.counters;
	pthread_mutex_unlock(&host->mutex);
}

/* Begin to compute a request. False if it has to wait until its adapter has room. */
static bool
begin(ModelHost *host, Request *request)
{
	bool		loads = request->files != NULL;
	bool		good = request_load_adapter(request, host->adapters, host->model);

	if (!good && status_good(&request->status) && !atomic_load(&request->cancelled))
		return false;
	if (loads)
		model_host_wake_io(host);	/* the files' memory was given back */
	if (good)
		request_run(request, host->scheduler, request_done, host);
	else
		request_done(request, host);
	return true;
}

/* Begin those that wait for room, in order, as far as there is room. */
static void
begin_held(ModelHost *host)
{
	while (host->held != NULL)
	{
		Request    *request = host->held;
		Request    *next = request->next;

		if (!begin(host, request))
			return;
		host->held = next;
		if (next == NULL)
			host->held_end = &host->held;
	}
}

/* Take what came in, and sleep until something does where there is nothing to do. */
static void
take_requests(ModelHost *host, bool busy)
{
	Request    *request = request_queue_pop(&host->inbox, !busy);

	begin_held(host);
	for (; request != NULL; request = request_queue_pop(&host->inbox, false))
	{
		if (request_is_computed(request))
			atomic_fetch_sub(&host->elsewhere, 1);
		if (request_is_training(request))
			training_take(&host->training, request);
		else if (!begin(host, request))
		{
			request->next = NULL;
			*host->held_end = request;
			host->held_end = &request->next;
		}
	}
}

/* Do what the IO thread wants with the training. Returns whether a slice may be computed. */
static bool
heed_training(ModelHost *host)
{
	uint32_t	hold = atomic_load(&host->hold);

	if (atomic_exchange(&host->hold_seen, hold) != hold)
		model_host_wake_io(host);
	if (atomic_load(&host->abandon))
	{
		take_requests(host, true);	/* its last requests were pushed before */
		training_abandon(&host->training);
		copy_counters(host);
		atomic_store(&host->abandon, false);
		model_host_wake_io(host);
	}
	return hold % 2 == 0 && training_has_work(&host->training);
}

/* A step of the scheduler; true where there is more to do. */
static bool
step(ModelHost *host, bool training_waits)
{
	uint64_t	begin_ns = clock_now_ns();
	bool		busy = scheduler_step(host->scheduler);

	if (training_waits)
		share_count_requests(&host->share, clock_now_ns() - begin_ns);
	return busy;
}

/* Let the training stand still for requests that other threads have now. True if it did. */
static bool
wait_for_requests(ModelHost *host)
{
	uint64_t	patience = atomic_load(&host->elsewhere) > 0 ? share_patience(&host->share) : 0;
	uint64_t	begin_ns = clock_now_ns();

	if (patience == 0)
		return false;
	atomic_store(&host->patient, true);
	if (atomic_load(&host->elsewhere) > 0)
		request_queue_wait(&host->inbox, patience);
	atomic_store(&host->patient, false);
	share_count_patience(&host->share, clock_now_ns() - begin_ns);
	return true;
}

/* Steps and slices while there is work, in turn; sleep on the inbox otherwise. */
static void
run(ModelHost *host)
{
	bool		busy = false;
	bool		training = false;

	while (!atomic_load(&host->stop) && !device_is_lost(host))
	{
		take_requests(host, busy || training);
		training = heed_training(host);
		if (host->training.counters.open)
			host->share.percent = host->training.counters.share;
		busy = scheduler_has_work(host->scheduler);
		if (training && !busy && wait_for_requests(host))
			continue;
		if (training && !(busy && share_requests_first(&host->share)))
			share_count_training(&host->share, training_slice(&host->training));
		else
			busy = step(host, training);
		copy_counters(host);
	}
}

static void *
host_main(void *argument)
{
	ModelHost  *host = argument;
	uint64_t	begin = clock_now_ns();
	Status		status;

	if (!load(host, &status) && !device_is_lost(host))
	{
		set_failure(host, &status);
		atomic_store(&host->state, HOST_FAILED);
		model_host_wake_io(host);
		return NULL;
	}
	if (!device_is_lost(host))
	{
		log_write(ENGINE_LOG, "model \"%s\" loaded in %.1f s on %s, %s", host->options.directory,
				  (double) (clock_now_ns() - begin) * 1e-9,
				  host->backend->ops->describe(host->backend),
				  data_type_name(model_format(host->model)));
		atomic_store(&host->state, HOST_READY);
		model_host_wake_io(host);
		run(host);
	}
	if (device_is_lost(host))
	{
		log_write(ENGINE_ERROR, "%s failed: the engine ends",
				  host->backend->ops->describe(host->backend));
		atomic_store(&host->state, HOST_LOST);
		model_host_wake_io(host);
	}
	return NULL;
}

bool
model_host_open_device(ModelHostOptions *options, Status *status)
{
	return backend_open_cuda(&options->device, &options->cuda, status);
}

bool
model_host_start(ModelHost *host, const ModelHostOptions *options, int wake_fd,
				 RequestQueue *preparing, Status *status)
{
	memset(host, 0, sizeof(*host));
	host->preparing = preparing;
	host->options = *options;
	host->wake_fd = wake_fd;
	request_queue_begin(&host->inbox);
	request_queue_begin(&host->outbox);
	host->held_end = &host->held;
	pthread_mutex_init(&host->mutex, NULL);
	if (pthread_create(&host->thread, NULL, host_main, host) != 0)
		return status_set(status, STATUS_OUT_OF_MEMORY, "could not start the model's thread");
	host->thread_started = true;
	return true;
}
