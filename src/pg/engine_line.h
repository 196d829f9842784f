/*
 * engine_line.h - a conversation with the engine in which many requests are on their way at once.
 *
 * Where engine_client.h asks one question and sees to it that it is answered, a line only carries
 * requests and answers, in any order, and says when the engine was lost: what to do then is known
 * to its user alone. A training (job_training.c) belongs to its line; rows (row_stream.c) are sent
 * again on the next.
 */
#ifndef MMGPT_ENGINE_LINE_H
#define MMGPT_ENGINE_LINE_H

#include "engine_client.h"
#include "engine_connection.h"
#include "status.h"

typedef struct EngineLine
{
	EngineConnection connection;
	uint64_t	last_id;		/* of the requests sent so far */
	bool		deaf;			/* the engine takes no more bytes; it may still have said why */
	Status		refusal;		/* of the supervisor, in place of an engine; success: none */
	struct AdapterRow *adapter; /* of all requests of the line that have one; NULL: none has */
} EngineLine;

typedef enum LineEvent
{
	LINE_ANSWER,
	LINE_ERROR,					/* the engine answered with an error */
	LINE_NOTHING,				/* until the time was over */
	LINE_LOST					/* the engine is gone, and with it all that was not answered */
} LineEvent;

/* Begin without a connection; the first request makes one. */
extern void engine_line_begin(EngineLine *line, struct AdapterRow *adapter);

/* Send a request whole; the id of its answer. Raises an error where no engine can be reached. */
extern uint64_t engine_line_send(EngineLine *line, const EngineRequest *request);

/*
 * Wait for the next answer, for at most so many milliseconds. Fields of the answer are of the
 * current memory context. After LINE_LOST the line has no connection. An error of the supervisor,
 * that there is no engine, has id 0.
 */
extern LineEvent engine_line_receive(EngineLine *line, long milliseconds, uint64_t *id,
							  EngineAnswer *answer, Status *status);

/* End the connection; requests that were not answered are forgotten by the engine. */
extern void engine_line_close(EngineLine *line);

#endif
