/*
 * engine_probe.h - one question to a new engine, by which the supervisor knows
 * whether it ever came up.
 */
#ifndef MMGPT_ENGINE_PROBE_H
#define MMGPT_ENGINE_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire_frame.h"

typedef struct EngineProbe
{
	int			socket;			/* -1 when there is nothing to read any more */
	bool		answered;		/* the engine worked on the question, or refused it */
	bool		refused;		/* it did, as its model could not be loaded */
	uint8_t		header[WIRE_HEADER_SIZE];	/* of the frame being read */
	size_t		filled;			/* bytes of it */
	size_t		skip;			/* bytes of payload still to be passed over */
} EngineProbe;

/* Make a probe that asks nothing. */
extern void engine_probe_clear(EngineProbe *probe);

/* Send the question to the socket that this engine listens on. Never waits; may fail silently. */
extern void engine_probe_begin(EngineProbe *probe, int engine);

/* Read what has arrived; true when the engine has come up. Never waits. */
extern bool engine_probe_answered(EngineProbe *probe);

/* Hang up. */
extern void engine_probe_end(EngineProbe *probe);

#endif
