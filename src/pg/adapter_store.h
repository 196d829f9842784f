/*
 * adapter_store.h - store an adapter under a name, with the rules of who may.
 */
#ifndef MMGPT_ADAPTER_STORE_H
#define MMGPT_ADAPTER_STORE_H

#include "adapter_table.h"

/* An adapter as it comes from a user or from a training. */
typedef struct AdapterFiles
{
	Datum		description;	/* jsonb, by the engine */
	const char *tensors;		/* the safetensors file */
	size_t		length;			/* of it, in bytes */
	Jsonb	   *config;
} AdapterFiles;

/*
 * Store an adapter. The caller becomes its owner; replace: an adapter of that name, which must be
 * the caller's, gets these files and keeps owner and grants. 42710 where the name is taken, with a
 * hint; 42501 where it is another's.
 */
extern void adapter_store(const char *name, const AdapterFiles *files, bool replace,
						  const char *hint);

/* Raise an error (42602) unless an adapter can have this name. */
extern void adapter_check_name(const char *name);

/* Raise the errors that adapter_store would raise. */
extern void adapter_check_free(const char *name, bool replace, const char *hint);

/* Between adapter_write_begin and adapter_write_end: */

/* Raise an error unless the caller has the rights of a locked adapter's owner. */
extern void adapter_check_owner(const char *name, const AdapterEntry *entry);

/* Lock an adapter that the caller owns, or raise an error. */
extern void adapter_lock_own(const char *name, AdapterEntry *entry);

extern void adapter_raise_duplicate(const char *name, const char *hint);

#endif
