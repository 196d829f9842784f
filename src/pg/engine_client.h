/*
 * engine_client.h - ask the engine, and wait for its answer.
 */
#ifndef MMGPT_ENGINE_CLIENT_H
#define MMGPT_ENGINE_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"
#include "wire_message.h"

/*
 * A request as arguments.c builds it. FLAGS is its first field, so that a retry
 * can change it in place; the image, if there is one, comes after the fields.
 */
typedef struct EngineRequest
{
	WireWriter	writer;			/* the fields; ends with the head of the image's */
	const uint8_t *image;		/* image_length bytes, which stay where they are; may be NULL */
	size_t		image_length;
	size_t		content;		/* bytes of the image and the texts, as the limit counts them */
	struct AdapterRow *adapter; /* sent where the engine lacks it; NULL: the request has none */
} EngineRequest;

/* An answer; its fields point into a payload of the caller's memory context. */
typedef struct EngineAnswer
{
	WireFields	fields;
} EngineAnswer;

/*
 * Send the request and wait for the answer, interruptibly. Starts a supervisor
 * where none runs, waits while an engine starts, and sends again what an engine
 * lost, as engine_client.c says. Raises the engine's errors.
 */
extern void engine_ask(EngineRequest *request, EngineAnswer *answer);

/* The same of one of several engines, by its number. False, with the reason, where it refuses. */
extern bool engine_ask_one(EngineRequest *request, EngineAnswer *answer, int engine,
						   Status *status);

/* Forget all connections, so that the next request makes a new one. */
extern void engine_disconnect(void);

#endif
