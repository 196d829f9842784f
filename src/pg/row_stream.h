/*
 * row_stream.h - rows of a table on their way through the engine, several at once.
 *
 * Each row becomes a TRAIN_ENCODE request, for which the engine gives token ids, targets and the
 * pixels of its picture, or the reason why it can't be used. The user of the stream gets the rows
 * in their order, whatever order the answers come in.
 */
#ifndef MMGPT_ROW_STREAM_H
#define MMGPT_ROW_STREAM_H

#include "postgres.h"

#include "engine_line.h"
#include "row_source.h"

/* A row on its way. */
typedef struct StreamRow
{
	MemoryContext context;		/* of all that belongs to the row */
	int64		number;			/* its place among the rows that were read, from 1 */
	char	   *key;			/* NULL: it has none */
	EngineRequest request;		/* what is to be answered next */
	EngineAnswer answer;		/* to that, once it is there */
	char	   *reason;			/* why it can't be used; NULL: it can */
	int			stage;			/* answers before this one */
} StreamRow;

/* What becomes of the rows. Functions run under the rights of who reads the table. */
typedef struct RowStream
{
	const RowSource *source;
	const JobOptions *options;
	bool		read_only;		/* the rows that the statement of the caller sees */
	void	   *argument;		/* of the functions */

	/*
	 * After the first answer: make row->request another one and return true, to have that answered
	 * too; in no order. NULL: there is only one.
	 */
	bool		(*next_request) (void *argument, StreamRow *row);
	/*
	 * In the row's context and the rows' order: the row, with its last answer or the reason why it
	 * can't be used.
	 */
	void		(*take) (void *argument, StreamRow *row);
	/* Called once in a while, to raise an error where all shall end. May be NULL. */
	void		(*check) (void *argument);
	struct AdapterRow *adapter; /* of the requests that have one; NULL: none has */
	EngineLine	line;			/* of the stream's own */
} RowStream;

/*
 * Read all rows. Raises the errors of reading and of the engine, and 58000 where a row made the
 * engine end twice. Between, requests are sent again when the engine is lost. An error leaves the
 * line open: call row_stream_end, in all cases.
 */
extern void row_stream_run(RowStream *stream);

/* End the conversation with the engine. */
extern void row_stream_end(RowStream *stream);

/* Raise the error for a row that can't be used, for who will have all rows or none. */
extern void row_stream_raise_unusable(const StreamRow *row) pg_attribute_noreturn();

#endif
