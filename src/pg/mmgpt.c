/*
 * mmgpt.c - what happens when PostgreSQL loads the library.
 *
 * The library holds no model code. A SQL function (sql_ask.c, sql_filter.c,
 * sql_model.c) turns its arguments into a request (arguments.c), sends it to the
 * engine over a socket and waits (engine_client.c), and turns the answer into a
 * Datum (results.c). A background worker, the supervisor (worker.c), keeps the
 * engine alive as a process of its own.
 *
 * Loading defines the settings. From shared_preload_libraries it also registers
 * the supervisor; otherwise the first call that finds no engine does so
 * (supervisor_control.c), which is why the library needs no shared memory and
 * no setting that only a server's start can change.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "pg_compat.h"
#include "settings.h"
#include "worker.h"

extern EXPORTED const Pg_magic_struct *PG_MAGIC_FUNCTION_NAME(void);
PG_MODULE_MAGIC;

extern EXPORTED void _PG_init(void);

/* Define the settings, and register the supervisor when the server is starting. */
void
_PG_init(void)
{
	settings_define();
	if (process_shared_preload_libraries_in_progress && !IsBinaryUpgrade)
		worker_register_static();
}
