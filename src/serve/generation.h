/*
 * generation.h - one answer in the making.
 *
 * A Generation is what the scheduler works on: a prompt in token ids, pictures, and either a
 * number of new tokens to choose or some given continuations whose log-probabilities are
 * wanted. It knows nothing of sockets, tasks or templates, so the server and the
 * command line generate with the very same code. All of it belongs to the
 * scheduler's thread from scheduler_submit until it is finished.
 */
#ifndef MMGPT_GENERATION_H
#define MMGPT_GENERATION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "arena.h"
#include "digest.h"
#include "model.h"
#include "request_options.h"
#include "tokenizer.h"

typedef enum Finish
{
	FINISH_NONE,
	FINISH_EOS,					/* the end token was chosen */
	FINISH_LENGTH,				/* max_tokens or the context is used up */
	FINISH_STOP,				/* a new block or a stop string began, or it was enough */
	FINISH_SCORED,				/* all log-probabilities are there */
	FINISH_FAILED,				/* see status */
	FINISH_CANCELLED
} Finish;

/* The pictures of one request, shared by its generations; encoded once. */
typedef struct PictureSet
{
	Picture    *pictures;
	int			count;
	Adapter    *adapter;		/* NULL also for one that does not change pictures */
	bool		has_key;		/* may be kept for others with the same key */
	uint8_t		key[DIGEST_SIZE];	/* of who asks and of the pixels */
	Media	   *media;			/* NULL until encoded */
	int			place;			/* in the cache of encoded pictures; -1: not there */
} PictureSet;

typedef struct Generation Generation;

struct Generation
{
	/* ---- what is wanted ---- */
	Arena	   *arena;			/* of the request; lives longer than the generation */
	int32_t    *prompt;			/* [prompt_count] */
	int			prompt_count;
	PictureSet *pictures;		/* NULL: language only */
	Adapter    *adapter;
	int			max_tokens;
	/* how tokens are chosen; counter and allowed are set by the scheduler */
	ChoiceRule	rule;
	int			eos;			/* token that ends the answer */
	uint64_t	session;		/* whose turns it takes among others; one for each connection */
	uint64_t	owner;			/* who asks: only their own sequences are reused; 0: nobody's */
	const atomic_bool *cancelled;	/* set by any thread to give up; NULL: never */
	const RequestOptions *options;	/* stop strings and faults; NULL: none */
	/* whether what was answered so far is all that is wanted; NULL: wait for the end */
	bool		(*enough) (const char *text, size_t length);
	bool		allow_special;	/* <image> and the like may be chosen (command line) */
	const uint32_t *allowed_first;	/* bits [V] for the first token; NULL: all ordinary ones */
	const uint32_t *allowed_rest;	/* for the others */

	struct BeamSearch *search;	/* beam search; NULL: one token after another */
	struct Scoring *scoring;	/* nothing is chosen, continuations are scored; NULL: it is */

	/* ---- what came out ---- */
	Finish		finish;
	Status		status;
	int32_t    *tokens;			/* [max_tokens] chosen, the end token included */
	float	   *log_probabilities;	/* [max_tokens] */
	int			count;

	/* ---- in between; the scheduler's ---- */
	bool		started;		/* admitted: has a sequence */
	Sequence   *sequence;
	int			fed;			/* tokens of prompt and answer given to the model */
	uint64_t	last_share;		/* step in which its session was given room for prompts */
	Generation *next;			/* in the scheduler's list */
	/* required; called by the scheduler's thread, may submit others */
	void		(*finished) (Generation *generation, void *argument);
	void	   *argument;
};

/*
 * Set defaults for a prompt and options; the seed is derived from prompt, pictures and options
 * where none is given.
 */
extern bool generation_begin(Generation *generation, Arena *arena, const ModelConfig *config,
							 int32_t *prompt, int prompt_count, PictureSet *pictures,
							 const RequestOptions *options, Status *status);

/* The token at a place of prompt and answer together. */
extern int32_t generation_token(const Generation *generation, int place);

/* Tokens of prompt and answer so far. */
extern int	generation_length(const Generation *generation);

/*
 * Whether the text of an answer's tokens holds a stop: the beginning of a new block or a stop
 * string. Looks at the last tokens only.
 */
extern bool generation_stops(const Generation *generation, const int32_t *tokens, int count,
							 const Tokenizer *tokenizer, Arena *scratch);

/* Whether the answer so far is enough. */
extern bool generation_has_enough(const Generation *generation, const Tokenizer *tokenizer,
								  Arena *scratch);

/*
 * The text of the answer: decoded without the end token, cut before a stop, stripped of white
 * space, U+0000 replaced by U+FFFD. In the generation's arena.
 */
extern char *generation_text(const Generation *generation, const Tokenizer *tokenizer,
							 size_t *length, Status *status);

/* "eos", "length" or "stop". */
extern const char *finish_name(Finish finish);

#endif
