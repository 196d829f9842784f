/*
 * engine_connection.h - a connection to the engine: bytes, frames and waiting.
 *
 * What frames mean is the business of engine_client.c, where a backend asks one question at a time,
 * and of engine_line.c, where many are on their way at once.
 */
#ifndef MMGPT_ENGINE_CONNECTION_H
#define MMGPT_ENGINE_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire_frame.h"
#include "wire_message.h"

#define ENGINE_CHECK_MS 1000	/* longest wait before something is looked after */

typedef struct EngineConnection
{
	int			socket;			/* -1 while there is none */
	struct WaitEventSet *events;
	bool		greeted;		/* HELLO was read */
	uint8_t    *input;			/* bytes read, of TopMemoryContext */
	size_t		input_size;
	size_t		input_start;	/* of the first byte that was not taken yet */
	size_t		input_end;
} EngineConnection;

/*
 * Connect to an engine, however long it takes until somebody listens; starts a supervisor where
 * there is none. An error may leave a connection without input, which must be closed.
 */
extern void engine_connection_open(EngineConnection *connection, int engine);

/* Forget the connection, complete or not. Raises nothing. */
extern void engine_connection_close(EngineConnection *connection);

/*
 * Wait until the socket can be read (or written, where asked), for at most so many milliseconds,
 * handling interrupts. False when nothing happened.
 */
extern bool engine_connection_wait(EngineConnection *connection, bool writing, long milliseconds);

/* Read what is there; false when the engine is gone. */
extern bool engine_connection_read(EngineConnection *connection);

/* Take the next whole frame of the input; payload is valid until the next read. */
extern bool engine_connection_take(EngineConnection *connection, WireHeader *header,
								   const uint8_t **payload);

/* Take HELLO: check that library and engine speak the same language. */
extern void engine_connection_greet(EngineConnection *connection, const uint8_t *payload,
									size_t length);

/* Read the fields of a payload, or close the connection and raise an error. */
extern void engine_connection_fields(EngineConnection *connection, const uint8_t *payload,
									 size_t length, WireFields *fields);

/* Close the connection, and raise the error that the engine sent what is no conversation. */
extern void engine_connection_raise(EngineConnection *connection, const char *what)
	__attribute__((noreturn));

#endif
