/*
 * status.h - how a function of this project tells that it failed.
 *
 * A function that can fail takes a Status as its last argument and returns
 * false (or NULL); the caller passes the same Status upwards. The Status holds
 * a code, which the PostgreSQL side translates to an SQLSTATE in one file, and
 * texts in PostgreSQL's style: the message in lower case without a full stop,
 * detail and hint as whole sentences. Nothing here allocates.
 */
#ifndef MMGPT_STATUS_H
#define MMGPT_STATUS_H

#include <stdbool.h>
#include <stddef.h>

/* The numbers travel over the wire: append, never renumber. */
typedef enum StatusCode
{
	STATUS_SUCCESS = 0,
	STATUS_INTERNAL = 1,			/* a bug of ours, or of the machine */
	STATUS_INVALID_ARGUMENT = 2,	/* unknown option, value out of range, unknown detail level */
	STATUS_INVALID_JSON = 3,		/* text that is not JSON, or history of a wrong shape */
	STATUS_INVALID_IMAGE = 4,		/* not an image, truncated, damaged */
	STATUS_IMAGE_TOO_LARGE = 5,		/* more pixels or bytes than allowed */
	STATUS_PROMPT_TOO_LONG = 6,		/* prompt and answer do not fit the context */
	STATUS_OUT_OF_MEMORY = 7,
	STATUS_MODEL_UNAVAILABLE = 8,	/* no model could be loaded; the message says why */
	STATUS_CANCELLED = 9,
	STATUS_ENGINE_LOST = 10,		/* the engine ended while it worked on the request */
	STATUS_PROTOCOL = 11,			/* a frame that does not obey wire_message.h */
	STATUS_NOT_SUPPORTED = 12,
	STATUS_USAGE = 13,				/* wrong command line */
	STATUS_IO = 14,					/* a file or socket could not be read or written */
	STATUS_INVALID_MODEL = 15,		/* a file of the model directory is missing or wrong */
	STATUS_INVALID_TEXT = 16,		/* text that is not UTF-8 */
	STATUS_INVALID_ADAPTER = 17,	/* an adapter's files are wrong, or do not fit the model */
	STATUS_DAMAGED_ADAPTER = 18,	/* the files that came are not those that were stored */
	STATUS_OTHER_MODEL = 19			/* an adapter was made for another model */
} StatusCode;

#define STATUS_MESSAGE_SIZE 512
#define STATUS_DETAIL_SIZE 512
#define STATUS_HINT_SIZE 256

typedef struct Status
{
	StatusCode	code;
	char		message[STATUS_MESSAGE_SIZE];
	char		detail[STATUS_DETAIL_SIZE];	/* empty when there is none */
	char		hint[STATUS_HINT_SIZE];		/* empty when there is none */
} Status;

#if defined(__GNUC__)
#define STATUS_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define STATUS_PRINTF(f, a)
#endif

/* Make *status a success with empty texts. */
extern void status_clear(Status *status);

/* True while no failure was set. */
extern bool status_good(const Status *status);

/*
 * Set code and message, and empty detail and hint. Always returns false, so
 * that a failing function can end with "return status_set(...)". Texts that do
 * not fit are cut at a UTF-8 character.
 */
extern bool status_set(Status *status, StatusCode code, const char *format, ...)
	STATUS_PRINTF(3, 4);

/* Set the detail (one or more whole sentences). Always returns false. */
extern bool status_detail(Status *status, const char *format, ...) STATUS_PRINTF(2, 3);

/* Set the hint (a whole sentence that says what to do). Always returns false. */
extern bool status_hint(Status *status, const char *format, ...) STATUS_PRINTF(2, 3);

/* Set STATUS_OUT_OF_MEMORY for an allocation of size bytes. Always returns false. */
extern bool status_out_of_memory(Status *status, size_t size);

/* Put "prefix: " in front of the message, to say where a failure lies. Always returns false. */
extern bool status_prefix(Status *status, const char *format, ...) STATUS_PRINTF(2, 3);

#endif
