/*
 * adapter_set.c - a short list, searched whole; see adapter_set.h.
 */
#include "adapter_set.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct HeldAdapter
{
	AdapterKey	key;
	Adapter    *adapter;
	size_t		bytes;
	int			users;			/* requests that have it now */
	uint64_t	last_use;		/* turn of the last take or release */
	struct HeldAdapter *next;
} HeldAdapter;

struct AdapterSet
{
	pthread_mutex_t mutex;		/* guards all below */
	HeldAdapter *first;
	size_t		limit;
	AdapterCounters counters;
	uint64_t	turn;
};

AdapterSet *
adapter_set_create(size_t limit, Status *status)
{
	AdapterSet *set = calloc(1, sizeof(AdapterSet));

	if (set == NULL)
	{
		status_out_of_memory(status, sizeof(AdapterSet));
		return NULL;
	}
	pthread_mutex_init(&set->mutex, NULL);
	set->limit = limit;
	set->counters.limit = limit;
	return set;
}

/* Take the least recently used adapter that nobody uses out of the list; NULL: all are in use. */
static HeldAdapter *
unlink_oldest(AdapterSet *set)
{
	HeldAdapter **oldest = NULL;
	HeldAdapter *found;

	for (HeldAdapter **link = &set->first; *link != NULL; link = &(*link)->next)
		if ((*link)->users == 0 && (oldest == NULL || (*link)->last_use < (*oldest)->last_use))
			oldest = link;
	if (oldest == NULL)
		return NULL;
	found = *oldest;
	*oldest = found->next;
	set->counters.held--;
	set->counters.bytes -= found->bytes;
	return found;
}

void
adapter_set_free(AdapterSet *set, Model *model)
{
	HeldAdapter *held;

	if (set == NULL)
		return;
	while ((held = unlink_oldest(set)) != NULL)
	{
		adapter_close(model, held->adapter);
		free(held);
	}
	pthread_mutex_destroy(&set->mutex);
	free(set);
}

/* The entry of a key, counted as used once more; the mutex is held. */
static Adapter *
take_held(AdapterSet *set, const AdapterKey *key)
{
	for (HeldAdapter *held = set->first; held != NULL; held = held->next)
		if (held->key.owner == key->owner &&
			memcmp(held->key.digest, key->digest, DIGEST_SIZE) == 0)
		{
			held->users++;
			held->last_use = ++set->turn;
			return held->adapter;
		}
	return NULL;
}

Adapter *
adapter_set_take(AdapterSet *set, const AdapterKey *key)
{
	Adapter    *adapter;

	pthread_mutex_lock(&set->mutex);
	adapter = take_held(set, key);
	pthread_mutex_unlock(&set->mutex);
	return adapter;
}

void
adapter_set_release(AdapterSet *set, Adapter *adapter)
{
	if (adapter == NULL)
		return;
	pthread_mutex_lock(&set->mutex);
	for (HeldAdapter *held = set->first; held != NULL; held = held->next)
		if (held->adapter == adapter)
		{
			held->users--;
			held->last_use = ++set->turn;
		}
	pthread_mutex_unlock(&set->mutex);
}

/* Bytes of adapters in use; the mutex is held. */
static size_t
bytes_in_use(const AdapterSet *set)
{
	size_t		bytes = 0;

	for (const HeldAdapter *held = set->first; held != NULL; held = held->next)
		if (held->users > 0)
			bytes += held->bytes;
	return bytes;
}

bool
adapter_set_allows(const AdapterSet *set, size_t bytes, Status *status)
{
	if (bytes <= set->limit)
		return true;
	status_set(status, STATUS_OUT_OF_MEMORY,
			   "adapter of %zu MB exceeds the engine's memory for adapters of %zu MB",
			   (bytes >> 20) + 1, set->limit >> 20);
	return status_hint(status, "Raise mmgpt.memory_limit.");
}

/* Evict until so many bytes more fit, at most the limit; false where those in use leave no room. */
static bool
make_room(AdapterSet *set, Model *model, size_t bytes)
{
	for (;;)
	{
		HeldAdapter *oldest;
		size_t		used;
		bool		fits;

		pthread_mutex_lock(&set->mutex);
		used = bytes_in_use(set);
		fits = set->counters.bytes <= set->limit - bytes;
		/* in vain, if those in use leave too little */
		oldest = fits || used > set->limit - bytes ? NULL : unlink_oldest(set);
		set->counters.evicted += oldest != NULL;
		pthread_mutex_unlock(&set->mutex);
		if (oldest == NULL)
			return fits;
		/* what sequences and pictures kept with it is found by its digest, never looked up here */
		adapter_close(model, oldest->adapter);
		free(oldest);
	}
}

/* Append an adapter, which is taken. False: out of memory. */
static bool
add(AdapterSet *set, const AdapterKey *key, Adapter *adapter, size_t bytes, Status *status)
{
	HeldAdapter *held = calloc(1, sizeof(HeldAdapter));

	if (held == NULL)
		return status_out_of_memory(status, sizeof(HeldAdapter));
	held->key = *key;
	held->adapter = adapter;
	held->bytes = bytes;
	held->users = 1;
	pthread_mutex_lock(&set->mutex);
	held->last_use = ++set->turn;
	held->next = set->first;
	set->first = held;
	set->counters.held++;
	set->counters.bytes += bytes;
	set->counters.loaded++;
	pthread_mutex_unlock(&set->mutex);
	return true;
}

bool
adapter_set_load(AdapterSet *set, Model *model, const AdapterKey *key,
				 const AdapterContent *content, Adapter **adapter, Status *status)
{
	size_t		least = content->tensors_length;	/* on the device it does not get smaller */
	size_t		bytes;
	bool		added = false;

	*adapter = adapter_set_take(set, key);
	if (*adapter != NULL)
		return true;
	if (!adapter_set_allows(set, least, status) || !make_room(set, model, least))
		return false;
	*adapter = adapter_open_content(model, content, status);
	if (*adapter == NULL)
		return false;
	bytes = adapter_bytes(*adapter);
	if (adapter_set_allows(set, bytes, status) && make_room(set, model, bytes))
		added = add(set, key, *adapter, bytes, status);
	if (added)
		return true;
	adapter_close(model, *adapter);
	*adapter = NULL;
	return false;
}

void
adapter_set_counters(AdapterSet *set, AdapterCounters *counters)
{
	pthread_mutex_lock(&set->mutex);
	*counters = set->counters;
	pthread_mutex_unlock(&set->mutex);
}
