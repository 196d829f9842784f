/*
 * adapter_set.h - the LoRA adapters on the device.
 *
 * An adapter comes with the request that names it and stays for the next one. It is kept
 * for the role and database that brought it: another role's request for the same files has
 * to bring them itself, so nobody learns by timing what others use. Adapters that no
 * request uses go, least recently used first, when their room is needed; one in use never
 * does.
 *
 * The thread that decides who starts takes adapters, the model's thread loads and evicts them:
 * a mutex guards the list. An adapter that was taken or loaded is the caller's until it is
 * released.
 */
#ifndef MMGPT_ADAPTER_SET_H
#define MMGPT_ADAPTER_SET_H

#include "digest.h"
#include "model.h"

typedef struct AdapterSet AdapterSet;

/* Whose adapter, and which. */
typedef struct AdapterKey
{
	uint64_t	owner;			/* database and role */
	uint8_t		digest[DIGEST_SIZE];	/* of its files */
} AdapterKey;

/* Now, and since the set was made. */
typedef struct AdapterCounters
{
	int			held;
	size_t		bytes;			/* of those held */
	size_t		limit;
	uint64_t	loaded;
	uint64_t	evicted;
} AdapterCounters;

/* An empty set that holds at most limit bytes. NULL: out of memory. */
extern AdapterSet *adapter_set_create(size_t limit, Status *status);

/* Close all adapters; nobody may use one any more. */
extern void adapter_set_free(AdapterSet *set, Model *model);

/* The adapter of this key, if it is there; NULL otherwise. Any thread. */
extern Adapter *adapter_set_take(AdapterSet *set, const AdapterKey *key);

/* The caller is done with an adapter; NULL is allowed. Any thread. */
extern void adapter_set_release(AdapterSet *set, Adapter *adapter);

/*
 * Whether an adapter of so many bytes fits when all others are gone; STATUS_OUT_OF_MEMORY with both
 * numbers otherwise. Any thread.
 */
extern bool adapter_set_allows(const AdapterSet *set, size_t bytes, Status *status);

/*
 * Bring an adapter to the device, evicting others as needed, and take it. Two requests may
 * bring the same one: the second gets what the first loaded. False with the status set; or with a
 * good status, where those in use leave no room: to be tried again when some were released. The
 * model's thread only.
 */
extern bool adapter_set_load(AdapterSet *set, Model *model, const AdapterKey *key,
							 const AdapterContent *content, Adapter **adapter, Status *status);

extern void adapter_set_counters(AdapterSet *set, AdapterCounters *counters);

#endif
