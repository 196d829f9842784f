/*
 * supervisor_control.h - what backends ask of the supervisor.
 */
#ifndef MMGPT_SUPERVISOR_CONTROL_H
#define MMGPT_SUPERVISOR_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#include "supervisor_file.h"

/* One search for a supervisor, begun when a call found none. */
typedef struct SupervisorSearch
{
	uint64_t	begun;			/* clock_now_ns(); 0 before the first try */
	uint64_t	registered;		/* clock_now_ns() of our last registration; 0 for none */
	void	   *handle;			/* of the worker that we registered */
	bool		opened;			/* the file of turns is */
	bool		has_turn;		/* nobody else registers a supervisor */
	int			turn;			/* its descriptor */
} SupervisorSearch;

/*
 * Wait a moment, interruptibly, after a call that found nobody listening; see
 * to it that a supervisor is coming. Raises an error where none can be started,
 * and where none came within half a minute. Then, as at any other error, what the
 * search holds is given back at the end of the transaction.
 */
extern void supervisor_search(SupervisorSearch *search);

/* End a search that found somebody. */
extern void supervisor_search_end(SupervisorSearch *search);

/* Sleep, interruptibly, for at most so many milliseconds. */
extern void supervisor_pause(long milliseconds);

/* Stop the engines of this server and return when the next ones were started. */
extern void supervisor_restart_engine(void);

#endif
