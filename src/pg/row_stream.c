/*
 * row_stream.c - see row_stream.h.
 *
 * The rows on their way stand in a ring, oldest first. It takes new ones until it is full or its
 * rows have too many bytes; the oldest leaves as soon as it is answered. So a table of pictures is
 * never held in memory, and the engine always has something to do.
 *
 * When the engine is lost, what it did not answer is sent again, now one row at a time, until all
 * rows that were on their way have left: whichever makes the engine end is known the next time.
 */
#include "row_stream.h"

#include "access/detoast.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "adapter_table.h"
#include "arguments.h"
#include "clock.h"
#include "extension_tables.h"
#include "pg_compat.h"
#include "results.h"
#include "settings.h"
#include "status_to_sqlstate.h"

#define WINDOW 16				/* rows on their way */
#define WINDOW_BYTES (32 * 1024 * 1024)	/* of their images and texts, but for one row */
#define CHECK_MS 500
#define LOSSES_ALLOWED 1		/* of one row that was alone on its way */
#define NS_PER_MS UINT64CONST(1000000)

typedef enum PlaceState
{
	PLACE_WAITING,				/* its request is to be sent */
	PLACE_SENT,
	PLACE_ANSWERED				/* its row may leave */
} PlaceState;

typedef struct Place
{
	StreamRow	row;
	PlaceState	state;
	uint64_t	id;				/* of the request that was sent */
	int			losses;			/* of the engine while the row was alone on its way */
} Place;

typedef struct Ring
{
	RowStream  *stream;
	Portal		portal;			/* gives the rows */
	bool		ended;			/* there are no more */
	int64		rows;			/* that were read */
	Place		places[WINDOW];
	int			first;
	int			count;
	size_t		bytes;			/* of the rows' requests */
	int			sent;			/* places that wait for an answer */
	int64		careful_until;	/* up to this row one is sent at a time */
	uint64_t	checked;		/* when stream->check was called */
} Ring;

static Place *
place_at(Ring *ring, int index)
{
	return &ring->places[(ring->first + index) % WINDOW];
}

/* ---- from the table ---- */

/* A column of the row that was fetched; false where it is NULL. */
static bool
fetched(int number, Datum *value)
{
	bool		is_null;

	*value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, number, &is_null);
	return !is_null;
}

/* Bytes of images and texts of the row that was fetched, before anything is decompressed. */
static size_t
content_size(void)
{
	size_t		size = 0;
	Datum		value;

	for (int i = 0; i < ROW_COLUMNS; i++)
		if (fetched(SOURCE_COLUMN(i), &value))
			size += toast_raw_datum_size(value) - VARHDRSZ;
	return size;
}

/*
 * Whether the texts of the row that was fetched can be converted to UTF-8: in a database of
 * encoding SQL_ASCII any bytes are text.
 */
static bool
has_valid_texts(void)
{
	Datum		value;

	for (int i = 0; i < ROW_COLUMNS && GetDatabaseEncoding() == PG_SQL_ASCII; i++)
		if (i != COLUMN_IMAGE && fetched(SOURCE_COLUMN(i), &value))
		{
			text	   *content = DatumGetTextPP(value);

			if (!pg_verify_mbstr(PG_UTF8, VARDATA_ANY(content), VARSIZE_ANY_EXHDR(content), true))
				return false;
		}
	return true;
}

/* Why the row that was fetched can't be used, as far as can be seen here. NULL: it can. */
static char *
find_reason(const RowSource *source)
{
	size_t		size = content_size();
	Datum		value;

	if (size > (size_t) setting_max_request_bytes)
		return psprintf("image and texts have %zu bytes, more than the %d of "
						"mmgpt.max_request_bytes", size, setting_max_request_bytes);
	if (!has_valid_texts())
		return pstrdup("a text is not valid in encoding UTF8");
	if (fetched(SOURCE_COLUMN(COLUMN_CONVERSATION), &value))
		return NULL;
	if (source->dialogues)
		return pstrdup("the conversation is NULL");
	if (!fetched(SOURCE_COLUMN(COLUMN_INSTRUCTION), &value))
		return pstrdup("the instruction is NULL");
	if (!fetched(SOURCE_COLUMN(COLUMN_RESPONSE), &value))
		return pstrdup("the response is NULL");
	return NULL;
}

/* Add a text column of the row that was fetched, unless it is NULL. */
static void
add_text(EngineRequest *request, WireField field, RowColumn column)
{
	Datum		value;

	if (fetched(SOURCE_COLUMN(column), &value))
		request_add_text(request, field, DatumGetTextPP(value));
}

/* Make the request that encodes the row that was fetched. */
static void
make_request(const RowStream *stream, EngineRequest *request)
{
	const JobOptions *options = stream->options;
	Datum		value;

	request_begin(request, WIRE_KIND_TRAIN_ENCODE);
	wire_write_u64(&request->writer, WIRE_FIELD_MAX_PIXELS, (uint64_t) setting_max_image_pixels);
	request_add_bytes(request, WIRE_FIELD_IMAGE_RULES, options->image_rules,
					  strlen(options->image_rules));
	request_add_uncounted_json(request, WIRE_FIELD_OPTIONS, options->training);
	if (fetched(SOURCE_COLUMN(COLUMN_CONVERSATION), &value))
		add_text(request, WIRE_FIELD_CONVERSATION, COLUMN_CONVERSATION);
	else
	{
		add_text(request, WIRE_FIELD_PROMPT, COLUMN_INSTRUCTION);
		add_text(request, WIRE_FIELD_INPUT, COLUMN_INPUT);
		add_text(request, WIRE_FIELD_RESPONSE, COLUMN_RESPONSE);
	}
	if (fetched(SOURCE_COLUMN(COLUMN_IMAGE), &value))
		request_set_image(request, PointerGetDatum(PG_DETOAST_DATUM_COPY(value)));
}

/* Put the row that was fetched into the ring. */
static void
add_row(Ring *ring)
{
	Place	   *place = place_at(ring, ring->count++);
	StreamRow  *row = &place->row;
	MemoryContext previous;
	Datum		key;

	memset(place, 0, sizeof(*place));
	row->context = AllocSetContextCreate(CurrentMemoryContext, "mmgpt row",
										 ALLOCSET_DEFAULT_SIZES);
	previous = MemoryContextSwitchTo(row->context);
	row->number = ++ring->rows;
	row->key = fetched(SOURCE_KEY, &key) ? TextDatumGetCString(key) : NULL;
	row->reason = find_reason(ring->stream->source);
	if (row->reason != NULL)
		place->state = PLACE_ANSWERED;
	else
		make_request(ring->stream, &row->request);
	ring->bytes += row->request.content;
	MemoryContextSwitchTo(previous);
}

/* Whether the ring takes another row. */
static bool
has_room(const Ring *ring)
{
	return !ring->ended && ring->count < WINDOW &&
		(ring->count == 0 || ring->bytes < WINDOW_BYTES);
}

/* Read rows while there is room for them. */
static void
fill(Ring *ring)
{
	while (has_room(ring))
	{
		SPI_cursor_fetch(ring->portal, true, 1);
		if (SPI_processed == 0)
			ring->ended = true;
		else
			add_row(ring);
		SPI_freetuptable(SPI_tuptable);
	}
}

/* What messages call a row: "row 3 (key 17)". */
static char *
row_name(const StreamRow *row)
{
	return row->key == NULL ? psprintf("row %lld", (long long) row->number)
							: psprintf("row %lld (key %s)", (long long) row->number, row->key);
}

/* ---- to the engine, and back ---- */

/* Send what waits; a row at a time after a loss. */
static void
send_waiting(Ring *ring)
{
	for (int i = 0; i < ring->count; i++)
	{
		Place	   *place = place_at(ring, i);

		if (place->row.number <= ring->careful_until && ring->sent > 0)
			return;
		if (place->state != PLACE_WAITING)
			continue;
		place->id = engine_line_send(&ring->stream->line, &place->row.request);
		place->state = PLACE_SENT;
		ring->sent++;
	}
}

/* Raise the error for a row that made the engine end twice. */
static void
raise_lost(const Place *place)
{
	ereport(ERROR,
			(errcode(ERRCODE_SYSTEM_ERROR),
			 errmsg("the mmgpt engine ended twice while it worked on %s", row_name(&place->row)),
			 errhint("The server's log says how the engine ended.")));
}

/* All that was sent and not answered waits again. */
static void
take_loss(Ring *ring)
{
	bool		alone = ring->sent == 1;

	for (int i = 0; i < ring->count; i++)
	{
		Place	   *place = place_at(ring, i);

		ring->careful_until = place->row.number;
		if (place->state != PLACE_SENT)
			continue;
		if (alone && ++place->losses > LOSSES_ALLOWED)
			raise_lost(place);
		place->state = PLACE_WAITING;
	}
	ring->sent = 0;
}

/* Whether an error of the engine is the fault of a row. */
static bool
is_of_row(StatusCode code)
{
	switch (code)
	{
		case STATUS_INVALID_ARGUMENT:
		case STATUS_INVALID_JSON:
		case STATUS_INVALID_TEXT:
		case STATUS_INVALID_IMAGE:
		case STATUS_IMAGE_TOO_LARGE:
		case STATUS_PROMPT_TOO_LONG:
		case STATUS_NOT_SUPPORTED:
			return true;
		default:
			return false;
	}
}

/* Message and detail of a failure as one text. */
static char *
join_texts(const Status *status)
{
	char	   *message = result_text_to_server(status->message, strlen(status->message));
	char	   *detail = result_text_to_server(status->detail, strlen(status->detail));

	return detail[0] == '\0' ? message : psprintf("%s: %s", message, detail);
}

/* Take an answer, or an error, to the request of a place. */
static void
take_event(Ring *ring, Place *place, LineEvent event, const EngineAnswer *answer,
		   const Status *status)
{
	RowStream  *stream = ring->stream;
	StreamRow  *row = &place->row;

	ring->sent--;
	place->state = PLACE_ANSWERED;
	if (event == LINE_ERROR && !is_of_row(status->code))
		status_raise(status);
	if (event == LINE_ERROR)
		row->reason = join_texts(status);
	else
	{
		row->answer = *answer;
		if (stream->next_request != NULL && row->stage++ == 0 &&
			stream->next_request(stream->argument, row))
			place->state = PLACE_WAITING;
	}
}

/* Wait for something to come from the engine. */
static void
receive(Ring *ring)
{
	RowStream  *stream = ring->stream;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "mmgpt answer",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext previous = MemoryContextSwitchTo(context);
	EngineAnswer answer;
	Status		status;
	uint64_t	id;
	LineEvent	event;

	status_clear(&status);
	event = engine_line_receive(&stream->line, CHECK_MS, &id, &answer, &status);
	MemoryContextSwitchTo(previous);
	if (event == LINE_LOST)
		take_loss(ring);
	if (event == LINE_NOTHING || event == LINE_LOST)
	{
		MemoryContextDelete(context);
		return;
	}
	if (id == 0)
		status_raise(&status);
	for (int i = 0; i < ring->count; i++)
	{
		Place	   *place = place_at(ring, i);

		if (place->state != PLACE_SENT || place->id != id)
			continue;
		MemoryContextSetParent(context, place->row.context);
		previous = MemoryContextSwitchTo(place->row.context);
		take_event(ring, place, event, &answer, &status);
		MemoryContextSwitchTo(previous);
		return;
	}
	MemoryContextDelete(context);
}

/* Let the oldest rows leave that are answered. */
static void
drain(Ring *ring)
{
	while (ring->count > 0 && place_at(ring, 0)->state == PLACE_ANSWERED)
	{
		StreamRow  *row = &place_at(ring, 0)->row;
		MemoryContext previous = MemoryContextSwitchTo(row->context);

		ring->stream->take(ring->stream->argument, row);
		MemoryContextSwitchTo(previous);
		ring->bytes -= row->request.content;
		MemoryContextDelete(row->context);
		ring->first = (ring->first + 1) % WINDOW;
		ring->count--;
	}
}

/* Let the stream's user look whether all shall end, and others into this process. */
static void
check(Ring *ring)
{
	uint64_t	now = clock_now_ns();

	CHECK_FOR_INTERRUPTS();
	if (ring->stream->check == NULL || now - ring->checked < CHECK_MS * NS_PER_MS)
		return;
	ring->checked = now;
	ring->stream->check(ring->stream->argument);
}

void
row_stream_run(RowStream *stream)
{
	Ring	   *ring = palloc0(sizeof(Ring));

	ring->stream = stream;
	engine_line_begin(&stream->line, stream->adapter);
	tables_connect();
	ring->portal = SPI_cursor_open_with_args(NULL, stream->source->query, 0, NULL, NULL, NULL,
											 stream->read_only, 0);
	for (;;)
	{
		check(ring);
		fill(ring);
		if (ring->count == 0)
			break;
		send_waiting(ring);
		if (place_at(ring, 0)->state != PLACE_ANSWERED)
			receive(ring);
		drain(ring);
	}
	SPI_cursor_close(ring->portal);
	SPI_finish();
}

void
row_stream_end(RowStream *stream)
{
	engine_line_close(&stream->line);
}

void
row_stream_raise_unusable(const StreamRow *row)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s can't be used: %s", row_name(row), row->reason),
			 errhint("The option \"unusable\": \"skip\" leaves such rows out.")));
}
