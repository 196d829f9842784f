/*
 * pg_compat.h - differences between PostgreSQL 14 and 18, in one place.
 *
 * Include after postgres.h.
 */
#ifndef MMGPT_PG_COMPAT_H
#define MMGPT_PG_COMPAT_H

#include "fmgr.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#if PG_VERSION_NUM < 140000
#error "mmgpt needs PostgreSQL 14 or later"
#endif

/* Of libpq/libpq.h, which drags in headers of Kerberos that need not be installed. */
extern bool pq_check_connection(void);

/* The library is compiled with hidden symbols; this one is found by name. */
#define EXPORTED __attribute__((visibility("default")))

/* PG_FUNCTION_INFO_V1 for a library with hidden symbols; before 16 it exports the record only. */
#define SQL_FUNCTION(name) \
	extern EXPORTED Datum name(PG_FUNCTION_ARGS); \
	extern EXPORTED const Pg_finfo_record *CppConcat(pg_finfo_, name)(void); \
	PG_FUNCTION_INFO_V1(name)

/* Unknown settings of a reserved prefix are errors since 15, warnings before. */
static inline void
compat_reserve_prefix(const char *prefix)
{
#if PG_VERSION_NUM >= 150000
	MarkGUCPrefixReserved(prefix);
#else
	EmitWarningsOnPlaceholders(prefix);
#endif
}

/* Raise an error unless a role may give things to another one, as ALTER ... OWNER TO does. */
static inline void
compat_check_can_become(Oid member, Oid role)
{
#if PG_VERSION_NUM >= 160000
	check_can_set_role(member, role);
#else
	check_is_member_of_role(member, role);
#endif
}

/* Make an event set that lives as long as the process, or until it is freed. */
static inline WaitEventSet *
compat_create_wait_event_set(int events)
{
#if PG_VERSION_NUM >= 170000
	return CreateWaitEventSet(NULL, events);
#else
	return CreateWaitEventSet(TopMemoryContext, events);
#endif
}

/* The wait event shown in pg_stat_activity; named since 17, "Extension" before. */
static inline uint32
compat_wait_event(void)
{
#if PG_VERSION_NUM >= 170000
	static uint32 event = 0;

	if (event == 0)
		event = WaitEventExtensionNew("MmgptEngine");
	return event;
#else
	return PG_WAIT_EXTENSION;
#endif
}

#endif
