/*
 * wire_message.h - what the payload of a frame says.
 *
 * A payload is a sequence of fields, each a tag (u32), a length in bytes (u32)
 * and that many bytes. A field stands at most once; unknown tags are skipped.
 * Text is UTF-8 without a NUL. A list of texts is, for each, its length in bytes (u32)
 * and the bytes. The image of a request is its last field, so that a backend can send it
 * straight from where it lies; so are the tensors of an adapter, pixels and checkpoints.
 *
 * Writers fill a buffer of the caller's and readers point into one: nothing
 * here allocates, so the same file serves palloc on one side and the arena on
 * the other.
 */
#ifndef MMGPT_WIRE_MESSAGE_H
#define MMGPT_WIRE_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* What a request asks for (WIRE_FIELD_KIND). */
typedef enum WireKind
{
	WIRE_KIND_CHAT = 1,			/* PROMPT, optional IMAGE and HISTORY -> TEXT */
	WIRE_KIND_CHAT_TURN = 2,	/* the same -> JSON, the history with both new turns */
	WIRE_KIND_CAPTION = 3,		/* IMAGE, PROMPT = brief|detailed -> TEXT */
	WIRE_KIND_COUNT = 4,		/* IMAGE, PROMPT = what -> INTEGER */
	WIRE_KIND_SCORE = 5,		/* IMAGE, PROMPT = condition -> REAL */
	WIRE_KIND_FILTER = 6,		/* the same -> REAL, BOOLEAN */
	WIRE_KIND_IMAGE_INFO = 7,	/* IMAGE -> JSON; needs no model */
	WIRE_KIND_TOKEN_COUNT = 8,	/* PROMPT -> INTEGER */
	WIRE_KIND_STATUS = 9,		/* -> JSON; answered even without a model */
	WIRE_KIND_VERSION = 10,		/* -> TEXT; answered even without a model */
	WIRE_KIND_CLASSIFY = 11,	/* IMAGE, LABELS -> INTEGER, the place of the label, from 0 */
	WIRE_KIND_CLASSIFY_MULTI = 12,	/* the same -> PLACES */
	/* ADAPTER_CONFIG, ADAPTER_TENSORS -> JSON, what the adapter is; fails where it does not fit */
	WIRE_KIND_ADAPTER_CHECK = 13,
	/*
	 * PROMPT (the instruction), optional INPUT, RESPONSE; or CONVERSATION; optional OPTIONS (of the
	 * training, for max_length), IMAGE, MAX_PIXELS and IMAGE_RULES -> TOKENS, TARGETS, PIXELS where
	 * there is an image. Fails where no training could use the row
	 */
	WIRE_KIND_TRAIN_ENCODE = 14,
	/*
	 * Optional OPTIONS (of a training), ADAPTER_CONFIG and ADAPTER_TENSORS (the adapter to go on
	 * from) -> JSON {"model": digest, "rank", "alpha", "targets": [name...], "pixels": S}
	 */
	WIRE_KIND_TRAIN_OPEN = 15,
	/* TOKENS, TARGETS, optional PIXELS -> nothing. A failure leaves the training as it was */
	WIRE_KIND_TRAIN_ROW = 16,
	/*
	 * Optional CHECKPOINT -> JSON {"rows_image", "rows_language", "rows_validation", "pictures",
	 * "micro_steps", "micro_step", "memory": {"rows", "pictures", "parameters", "activations",
	 * "scratch", "total" (bytes), "pass_tokens", "trained_layers", "kept_layers"}}
	 */
	WIRE_KIND_TRAIN_START = 17,
	/*
	 * BUDGET_MS: work for so long, or until training is done; optional TRAINING_SHARE
	 * -> JSON {"done", "early", "pictures", "pictures_encoded", "micro_step", "micro_steps",
	 * "optimizer_steps", "tokens", "seconds",
	 * "best_micro_step", "steps": [{"step", "loss_vision", "loss_language", "grad_norm",
	 * "learning_rate", "validation_loss_vision"?, "validation_loss_language"?}...]}. A loss is null
	 * where there was no such row. "seconds" are those in which this training computed, since
	 * TRAIN_OPEN; "early" says that validations stopped it; "best_micro_step" is that of the best
	 * validation so far, whose adapter is the result, with early_stopping, and 0 without
	 */
	WIRE_KIND_TRAIN_STEP = 18,
	WIRE_KIND_TRAIN_SAVE = 19,	/* -> CHECKPOINT */
	/* -> JSON, what the adapter is, as of ADAPTER_CHECK; ADAPTER_CONFIG, ADAPTER_TENSORS */
	WIRE_KIND_TRAIN_ADAPTER = 20,
	WIRE_KIND_TRAIN_CLOSE = 21,	/* -> nothing */
	/*
	 * TOKENS, TARGETS, optional PIXELS -> REAL, the sum of -log p (natural) of the targets;
	 * INTEGER, how many these are; BOOLEAN, whether each of them is the most likely token, so that
	 * greedy decoding gives just this response
	 */
	WIRE_KIND_EVALUATE = 22,

	WIRE_KIND_LAST = 22
} WireKind;

typedef enum WireField
{
	/* of a request */
	WIRE_FIELD_KIND = 1,		/* u32, a WireKind */
	WIRE_FIELD_FLAGS = 2,		/* u32, WIRE_FLAG_... */
	WIRE_FIELD_DATABASE = 3,	/* u32, oid: with ROLE the key of caches */
	WIRE_FIELD_ROLE = 4,		/* u32, oid */
	WIRE_FIELD_PROMPT = 5,		/* text */
	WIRE_FIELD_HISTORY = 6,		/* JSON text; absent: an empty history */
	/* JSON text, an object; absent: none. Overrides the session's settings below */
	WIRE_FIELD_OPTIONS = 7,
	WIRE_FIELD_IMAGE = 8,		/* bytes of a JPEG or PNG file; absent: language only */
	WIRE_FIELD_MAX_PIXELS = 9,	/* u64, mmgpt.max_image_pixels; absent: 100 million */
	/* u32, mmgpt.max_tokens; each of these absent: the setting's default */
	WIRE_FIELD_MAX_TOKENS = 10,
	WIRE_FIELD_TEMPERATURE = 11,	/* f64 */
	WIRE_FIELD_TOP_K = 12,		/* u32 */
	WIRE_FIELD_TOP_P = 13,		/* f64 */
	WIRE_FIELD_SEED = 14,		/* i64; absent: derived from the request */
	WIRE_FIELD_NUM_BEAMS = 15,	/* u32 */
	WIRE_FIELD_LABELS = 16,		/* list of texts, what a picture may be classified as */

	/* of a row to train on; TOKENS, TARGETS and PIXELS of an answer too */
	WIRE_FIELD_INPUT = 17,		/* text of an "### Input:" block; absent or empty: none */
	WIRE_FIELD_RESPONSE = 18,	/* text */
	/* JSON text, [{"role", "content"}...], the last turn the assistant's */
	WIRE_FIELD_CONVERSATION = 19,
	WIRE_FIELD_TOKENS = 20,		/* i32 each: token ids */
	/* i32 each, one for each token: the token itself where it is trained, negative elsewhere */
	WIRE_FIELD_TARGETS = 21,
	WIRE_FIELD_IMAGE_RULES = 22,	/* text: display (absent: that) or original */
	WIRE_FIELD_BUDGET_MS = 23,	/* u32, how long to work on a training */

	/* u32, mmgpt.training_share, 1 .. 99, from now on; absent: as it was */
	WIRE_FIELD_TRAINING_SHARE = 27,

	/* of a request with an adapter */
	WIRE_FIELD_ADAPTER = 24,	/* text, 64 hexadecimal digits: the digest; absent: no adapter */
	WIRE_FIELD_ADAPTER_NAME = 25,	/* text, for messages */
	WIRE_FIELD_ADAPTER_MODEL = 26,	/* text, 64 hexadecimal digits: the model it is for */

	/* the files of an adapter: payload of ADAPTER, and of a request to check one */
	WIRE_FIELD_ADAPTER_CONFIG = 28,	/* JSON text */
	WIRE_FIELD_ADAPTER_TENSORS = 29,	/* bytes of a safetensors file; the last field */

	/* u8 [S, S, 3], a picture as the model takes it; the last field */
	WIRE_FIELD_PIXELS = 30,
	WIRE_FIELD_CHECKPOINT = 31,	/* bytes, the state of a training; the last field */

	/* of an answer */
	WIRE_FIELD_TEXT = 32,		/* text */
	WIRE_FIELD_JSON = 33,		/* JSON text */
	WIRE_FIELD_INTEGER = 34,	/* i64 */
	WIRE_FIELD_REAL = 35,		/* f64 */
	WIRE_FIELD_BOOLEAN = 36,	/* u32, 0 or 1 */
	WIRE_FIELD_FINISH = 37,		/* text: eos, length or stop */
	WIRE_FIELD_PROMPT_TOKENS = 38,	/* u32 */
	WIRE_FIELD_NEW_TOKENS = 39,	/* u32 */
	WIRE_FIELD_PLACES = 40,		/* u32 each: places in LABELS, from 0, ascending */

	/* of an error */
	WIRE_FIELD_CODE = 48,		/* u32, a StatusCode */
	WIRE_FIELD_MESSAGE = 49,	/* text */
	WIRE_FIELD_DETAIL = 50,		/* text; absent: none */
	WIRE_FIELD_HINT = 51,		/* text; absent: none */

	/* of hello */
	WIRE_FIELD_WIRE_VERSION = 64,	/* u32, WIRE_VERSION of the engine */
	WIRE_FIELD_ENGINE_VERSION = 65,	/* text, as in mmgpt_version() */
	/* text, 64 hexadecimal digits; empty while no model is loaded */
	WIRE_FIELD_MODEL_DIGEST = 66,

	/* of progress */
	WIRE_FIELD_FRACTION = 80,	/* f64, 0 to 1, of the model's bytes loaded */

	WIRE_FIELD_LAST = 80
} WireField;

/* No other request may be started while this one runs: it was lost once already. */
#define WIRE_FLAG_ALONE 1u

/* Room that the fields of a request need beside the bytes of its texts. */
#define WIRE_REQUEST_OVERHEAD 512

typedef struct WireWriter
{
	uint8_t    *bytes;
	size_t		size;			/* of the buffer */
	size_t		used;
	bool		overflow;		/* a field did not fit; nothing was written from there on */
} WireWriter;

extern void wire_writer_begin(WireWriter *writer, void *buffer, size_t size);
extern void wire_write_u32(WireWriter *writer, WireField field, uint32_t value);
extern void wire_write_u64(WireWriter *writer, WireField field, uint64_t value);
extern void wire_write_i64(WireWriter *writer, WireField field, int64_t value);
extern void wire_write_f64(WireWriter *writer, WireField field, double value);
extern void wire_write_bytes(WireWriter *writer, WireField field, const void *bytes, size_t length);

/* Only tag and length of the last field, whose bytes the caller sends itself. */
extern void wire_write_tail(WireWriter *writer, WireField field, size_t length);

/* Bytes of a list of texts in front of each text. */
#define WIRE_LIST_HEADER_SIZE 4

/*
 * Write the next text of a list at `to`, which has room for its bytes and the header. Returns
 * where the one after it goes.
 */
extern uint8_t *wire_list_add(uint8_t *to, const void *text, uint32_t length);

/*
 * Read the text at offset *at of a list of length bytes: where it begins and its own length.
 * *at goes to the one after it. False at the end, and where the rest is no text of a list; then
 * *at is below length.
 */
extern bool wire_list_next(const uint8_t *list, size_t length, size_t *at, const uint8_t **text,
						   uint32_t *text_length);

/* The fields of one payload, by tag. Pointers are into the payload. */
typedef struct WireFields
{
	const uint8_t *bytes[WIRE_FIELD_LAST + 1];	/* NULL where the field is absent */
	uint32_t	length[WIRE_FIELD_LAST + 1];
} WireFields;

/* Read a payload; false (STATUS_PROTOCOL) when it does not have the form above. */
extern bool wire_fields_read(const uint8_t *payload, size_t length, WireFields *fields,
							 Status *status);

/* True where the field is present. */
extern bool wire_has(const WireFields *fields, WireField field);

/* The value of a field, or fallback where it is absent or of another size. */
extern uint32_t wire_get_u32(const WireFields *fields, WireField field, uint32_t fallback);
extern uint64_t wire_get_u64(const WireFields *fields, WireField field, uint64_t fallback);
extern int64_t wire_get_i64(const WireFields *fields, WireField field, int64_t fallback);
extern double wire_get_f64(const WireFields *fields, WireField field, double fallback);

/*
 * The payload of an ERROR frame from a Status, and back. The buffer of the writer needs 2048 bytes.
 */
extern void wire_write_status(WireWriter *writer, const Status *status);
extern void wire_get_status(const WireFields *fields, Status *status);

#endif
