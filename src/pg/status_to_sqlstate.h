/*
 * status_to_sqlstate.h - the one translation from the engine's errors to PostgreSQL's.
 */
#ifndef MMGPT_STATUS_TO_SQLSTATE_H
#define MMGPT_STATUS_TO_SQLSTATE_H

#include "status.h"

/* The SQLSTATE (as of MAKE_SQLSTATE) of a failure. */
extern int	status_to_sqlstate(StatusCode code);

/* Raise the failure as an error, with its texts in the database's encoding. Never returns. */
extern void status_raise(const Status *status) __attribute__((noreturn));

#endif
