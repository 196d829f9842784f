/*
 * request.h - the life of a request, from a frame to its answer.
 *
 *	received	the IO thread read a whole frame
 *	waiting		for a model that is loading, or for its turn; nothing in it was looked at yet
 *	preparing	STARTED was sent; a preparer thread reads JSON, decodes the picture, makes token ids
 *	running		the scheduler's thread generates or scores, maybe several times
 *	done		the answer is complete and goes back to the IO thread, which sends and frees it
 *
 * A request belongs to exactly one thread at a time and is handed on through queues;
 * only `cancelled` is set across threads. All its memory is its arena and its payload.
 */
#ifndef MMGPT_REQUEST_H
#define MMGPT_REQUEST_H

#include <stdatomic.h>

#include "adapter_set.h"
#include "generation.h"
#include "image.h"
#include "prompt_template.h"
#include "request_options.h"
#include "scheduler.h"
#include "wire_frame.h"
#include "wire_message.h"

/* What requests need of an open model; made once, read by all threads. */
typedef struct ModelContext
{
	const Model *model;			/* for what changes nothing in it */
	AdapterSet *adapters;
	struct PixelCache *pixels;	/* NULL: none are kept */
	const ModelConfig *config;
	const Tokenizer *tokenizer;
	PromptTemplate prompt_template;
	uint32_t   *digits_first;	/* bits [V]: tokens that can begin a number */
	uint32_t   *digits_rest;	/* tokens that can go on with one, and the end token */
} ModelContext;

extern bool model_context_create(ModelContext *context, const ModelConfig *config,
								 const Tokenizer *tokenizer, Arena *arena, Status *status);

typedef struct Request Request;

struct Request
{
	Request    *next;			/* in whichever queue holds it */
	Request    *work_next;		/* of a training: in the IO thread's list of those at work */
	Request   **work_link;		/* what points to it there */
	Arena	   *arena;
	void	   *connection;		/* the server's; NULL once the client is gone */
	uint64_t	session;		/* number of the connection */
	uint64_t	id;
	uint8_t    *payload;		/* malloc'ed; fields point into it */
	size_t		payload_size;
	WireFields	fields;
	WireKind	kind;
	bool		alone;			/* WIRE_FLAG_ALONE */
	uint64_t	owner;			/* database and role; never 0 for a backend's request */
	atomic_bool cancelled;
	uint64_t	received_ns;

	/* its adapter */
	bool		wants_adapter;
	AdapterKey	adapter_key;
	Adapter    *adapter;		/* taken from the set; NULL until then */
	uint64_t	asked_ns;		/* when NEED was sent; 0: it was not */
	bool		brings_adapter;	/* the files came */
	uint8_t    *files;			/* payload of ADAPTER, malloc'ed; NULL: none, or dropped */
	size_t		files_size;
	atomic_size_t *files_counter;	/* bytes of all requests' files; this one's are in it */
	AdapterContent content;		/* the files in it */

	/* prepared */
	RequestOptions options;
	Dialogue	dialogue;
	TokenList	ids;
	Picture		picture;
	PictureSet	pictures;		/* count 0: language only */
	struct ScorePlan *scores;	/* of kinds that read log-probabilities; NULL: of the others */
	struct Evaluation *evaluation;	/* of EVALUATE; NULL: of the others */
	struct TrainPlan *train;	/* of a training (request_training.h); NULL: of the others */

	/* running */
	const ModelContext *context;
	Scheduler  *scheduler;
	bool		counting_digits;	/* mmgpt_count's second try */
	void		(*done) (Request *request, void *argument);
	void	   *argument;

	/* done */
	Status		status;			/* a failure, or success */
	bool		answered;		/* not cancelled: there is something to send */
	WireWriter	answer;			/* payload of ANSWER, in the arena */
	int			prompt_tokens;
	int			new_tokens;
};

/*
 * Make a request of a frame's payload, which it takes over. Wrong fields show in
 * request->status and are answered like any failure. NULL: out of memory.
 */
extern Request *request_create(uint64_t id, uint8_t *payload, size_t size, void *connection);
extern void request_free(Request *request);

/* Whether the kind needs a model. */
extern bool request_needs_model(const Request *request);

/* Whether the scheduler computes something for it, so that it does not end with its preparer. */
extern bool request_is_computed(const Request *request);

/*
 * Do whole what computes nothing: sets answer or status and returns true. False for the other
 * kinds, which go on with request_prepare.
 */
extern bool request_answer_without_model(Request *request, const ModelContext *context);

/* The preparer's part: options, history, picture, token ids. False with request->status set. */
extern bool request_prepare(Request *request, const ModelContext *context);

/*
 * The scheduler's part: submit what the request needs; done(request, argument) is called when it is
 * complete.
 */
extern void request_run(Request *request, Scheduler *scheduler,
						void (*done)(Request *request, void *argument), void *argument);

/* ---- request_adapter.c ---- */

/* Bytes of an adapter's name in a message. */
#define REQUEST_NAME_SIZE 96

/* Read the fields of an adapter, if there is one. False with request->status set. */
extern bool request_read_adapter(Request *request);

/* Whether the adapter is for the model with this digest; false with request->status set. */
extern bool request_fits_model(Request *request, const char *digest);

/*
 * Take over the payload of ADAPTER, whose bytes are in the counter already. False with
 * request->status set; the request has it in any case.
 */
extern bool request_take_files(Request *request, uint8_t *payload, size_t size,
							   atomic_size_t *counter);

/* Free the files, which are not needed any more. */
extern void request_drop_files(Request *request);

/* Whether the files are those that were asked for. False with request->status set. */
extern bool request_verify_files(Request *request);

/*
 * Load the adapter, if it was not taken before, for all that the request generates. False with
 * request->status set; or with a good one, where others that are in use have to go first.
 */
extern bool request_load_adapter(Request *request, AdapterSet *set, Model *model);

/* Let content point at the files in a payload. */
extern bool request_read_content(const WireFields *fields, AdapterContent *content,
								 Status *status);

/* The names of targets, as a JSON array. */
extern struct json_t *request_target_names(unsigned targets);

/*
 * What an adapter is, as JSON text to be freed: its files are checked against the model. NULL with
 * request->status set.
 */
extern char *request_describe_adapter(Request *request, const ModelContext *context,
									  const AdapterContent *content);

/* Answer an ADAPTER_CHECK. */
extern void request_check_adapter(Request *request, const ModelContext *context);

/* ---- request.c ---- */

/*
 * Begin an answer with room for size bytes of payload; false: out of memory, and the status says
 * so.
 */
extern bool request_begin_answer(Request *request, size_t size);

#endif
