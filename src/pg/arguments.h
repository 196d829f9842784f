/*
 * arguments.h - from SQL arguments to a request.
 *
 * A request is built in the current memory context: request_begin, then its
 * texts and options, then the image. Texts are converted to UTF-8 whatever the
 * database's encoding; the image stays where it lies. A call whose image and texts
 * have more bytes than mmgpt.max_request_bytes raises an error (54000, both numbers).
 */
#ifndef MMGPT_ARGUMENTS_H
#define MMGPT_ARGUMENTS_H

#include "fmgr.h"
#include "utils/jsonb.h"

#include "engine_client.h"
#include "wire_message.h"

/* Begin a request: its kind, database and role. */
extern void request_begin(EngineRequest *request, WireKind kind);

/* Add a text. */
extern void request_add_text(EngineRequest *request, WireField field, const text *value);

/* Add a list of texts: Datums of type text, none of them null. */
extern void request_add_texts(EngineRequest *request, WireField field, const Datum *texts,
							  int count);

/* Add a JSON value as text. */
extern void request_add_json(EngineRequest *request, WireField field, Jsonb *value);

/* Add the session's settings for answers, and the call's own options (NULL: none). */
extern void request_add_options(EngineRequest *request, Jsonb *options);

/* Add the files of an adapter; the tensors stay where they lie. */
extern void request_set_files(EngineRequest *request, const char *tensors, size_t size,
							  Jsonb *config);

/* Add a JSON value that does not count as content of a call; NULL: none. */
extern void request_add_uncounted_json(EngineRequest *request, WireField field, Jsonb *value);

/* A JSON value as the engine gets it: in UTF-8, the same text for the same jsonb. */
extern char *request_json_text(Jsonb *config, size_t *length);

/* Add bytes, copied; and bytes as the last field, which stay where they lie. */
extern void request_add_bytes(EngineRequest *request, WireField field, const void *bytes,
							  size_t length);
extern void request_set_tail(EngineRequest *request, WireField field, const void *bytes,
							 size_t length);

/* Choose an adapter that was found by its name; the row must outlive the request. */
extern void request_set_adapter(EngineRequest *request, const char *name, struct AdapterRow *row);

/* Add an image: a Datum of type bytea, whose size is checked before its bytes are read. */
extern void request_set_image(EngineRequest *request, Datum image);

#endif
