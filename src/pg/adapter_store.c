/*
 * adapter_store.c - see adapter_store.h.
 */
#include "adapter_store.h"

#include "miscadmin.h"
#include "utils/acl.h"

#include "pg_compat.h"

#define LONGEST_NAME (NAMEDATALEN - 1)

void
adapter_check_name(const char *name)
{
	if (name[0] == '\0' || strlen(name) > LONGEST_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("name of an adapter must have 1 to %d bytes, not %zu", LONGEST_NAME,
						strlen(name))));
}

void
adapter_raise_duplicate(const char *name, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 errmsg("adapter \"%s\" already exists", name),
			 hint != NULL ? errhint("%s", hint) : 0));
}

void
adapter_check_owner(const char *name, const AdapterEntry *entry)
{
	if (!has_privs_of_role(adapter_caller(), entry->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of adapter \"%s\"", name)));
}

void
adapter_lock_own(const char *name, AdapterEntry *entry)
{
	if (!adapter_lock(name, entry))
		adapter_raise_missing(name, NULL);
	adapter_check_owner(name, entry);
}

/* Store a file in pieces. */
static void
insert_pieces(int64 id, const char *bytes, size_t length)
{
	bytea	   *piece = palloc(ADAPTER_PIECE_SIZE + VARHDRSZ);
	int			number = 0;

	for (size_t at = 0; at < length; at += ADAPTER_PIECE_SIZE)
	{
		size_t		size = Min(length - at, ADAPTER_PIECE_SIZE);

		CHECK_FOR_INTERRUPTS();
		SET_VARSIZE(piece, size + VARHDRSZ);
		memcpy(VARDATA(piece), bytes + at, size);
		adapter_insert_piece(id, number++, piece);
	}
	pfree(piece);
}

void
adapter_check_free(const char *name, bool replace, const char *hint)
{
	AdapterEntry entry;

	adapter_write_begin();
	if (adapter_lock(name, &entry))
	{
		if (!replace)
			adapter_raise_duplicate(name, hint);
		adapter_check_owner(name, &entry);
	}
	adapter_write_end();
}

void
adapter_store(const char *name, const AdapterFiles *files, bool replace, const char *hint)
{
	AdapterEntry entry;

	adapter_write_begin();
	if (!adapter_insert(name, files->description, (int64) files->length, files->config, &entry.id))
	{
		if (!replace)
			adapter_raise_duplicate(name, hint);
		adapter_lock_own(name, &entry);
		adapter_update(entry.id, files->description, (int64) files->length, files->config);
	}
	insert_pieces(entry.id, files->tensors, files->length);
	adapter_write_end();
}
