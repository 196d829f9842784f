/*
 * adapter_table.h - adapters in the tables of the extension.
 *
 * Reading goes under the rights of whoever calls, through row-level security; it works in
 * parallel workers and on a standby. Writing is done with the rights of the tables' owner,
 * after the caller's own were looked at.
 */
#ifndef MMGPT_ADAPTER_TABLE_H
#define MMGPT_ADAPTER_TABLE_H

#include "postgres.h"

#include "utils/jsonb.h"

/* Bytes of a piece of a safetensors file, but the last. */
#define ADAPTER_PIECE_SIZE (1024 * 1024)

/* An adapter that the caller may use; texts are of the memory context of the call. */
typedef struct AdapterRow
{
	int64		id;
	int64		bytes;			/* of its safetensors file */
	char	   *digest;			/* hexadecimal */
	char	   *base_model;
	Jsonb	   *config;
} AdapterRow;

/*
 * Find an adapter by its name. 42704 if there is none, 42501 if the caller may not use it;
 * detail, which may be NULL, tells where the name comes from.
 */
extern void adapter_find(const char *name, const char *detail, AdapterRow *row);

/*
 * A piece of an adapter's safetensors file, by its number from 0; XX001 if it is not there, or
 * not of this size.
 */
extern bytea *adapter_read_piece(int64 id, int number, size_t size);

/* Read the whole safetensors file of an adapter to where row->bytes bytes have room. */
extern void adapter_read_file(const AdapterRow *row, char *to);

/* An adapter to be changed: its row is locked. */
typedef struct AdapterEntry
{
	int64		id;
	Oid			owner;
} AdapterEntry;

/*
 * Begin and end work with the rights of the tables' owner, in which the functions below may be
 * called. An error between them ends it too.
 */
extern void adapter_write_begin(void);
extern void adapter_write_end(void);

/* Who asked: the role of the caller outside of adapter_write_begin. */
extern Oid	adapter_caller(void);

/* Lock an adapter's row; false if there is none of this name. */
extern bool adapter_lock(const char *name, AdapterEntry *entry);

/*
 * Insert an adapter, described by the engine's JSON, for the caller; false if the name is
 * taken.
 */
extern bool adapter_insert(const char *name, Datum description, int64 bytes, Jsonb *config,
						   int64 *id);

/* Give a locked adapter other content; its pieces are gone then. */
extern void adapter_update(int64 id, Datum description, int64 bytes, Jsonb *config);

/* Append a piece. */
extern void adapter_insert_piece(int64 id, int number, bytea *piece);

extern void adapter_delete(int64 id);
extern void adapter_set_name(int64 id, const char *name);
extern void adapter_set_owner(int64 id, Oid owner);

/* Share an adapter with a role (InvalidOid: with everybody), or end that. */
extern void adapter_share(int64 id, Oid role, bool share);

/* Raise the error of an adapter that does not exist. */
extern void adapter_raise_missing(const char *name, const char *detail) pg_attribute_noreturn();

#endif
