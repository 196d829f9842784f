/*
 * results.h - from the engine's answer to a Datum.
 *
 * Each function raises a protocol error where the answer lacks the field. Datums
 * are of the current memory context.
 */
#ifndef MMGPT_RESULTS_H
#define MMGPT_RESULTS_H

#include "engine_client.h"

/* The text, JSON (as jsonb), integer (as int4), real (as float4) or boolean of an answer. */
extern Datum result_text(const EngineAnswer *answer);
extern Datum result_jsonb(const EngineAnswer *answer);
extern Datum result_integer(const EngineAnswer *answer);
extern Datum result_real(const EngineAnswer *answer);
extern Datum result_boolean(const EngineAnswer *answer);

/* A value of a JSON object (jsonb) of the engine, which is there, as text. */
extern char *result_json_field(Datum json, const char *key);

/*
 * A place in a list of count elements, from 0; and places in ascending order, *chosen of
 * them. An answer with any other is a protocol error.
 */
extern int	result_place(const EngineAnswer *answer, int count);
extern int *result_places(const EngineAnswer *answer, int count, int *chosen);

/*
 * Convert UTF-8 to the database's encoding, NUL added. A character that the
 * encoding lacks becomes "?": a query over many rows must not fail because the
 * model wrote a typographic quote.
 */
extern char *result_text_to_server(const char *utf8, size_t length);

#endif
