/*
 * beam_search.h - beam search with Hugging Face's arithmetic (golden README, Facts 3).
 *
 * The best `width` unfinished answers, the beams, grow by one token a step. Of the 2 width
 * most likely continuations those that end, by the end token or because a stop string is
 * complete, become finished answers if they rank among the first width; the others become
 * the next beams, fewer than width where too many end. A score is the sum of
 * log-probabilities over length^length_penalty, where the length counts the prompt and not the
 * end token. This file knows nothing of models: candidates come in, beams go out.
 */
#ifndef MMGPT_BEAM_SEARCH_H
#define MMGPT_BEAM_SEARCH_H

#include <stdbool.h>
#include <stdint.h>

#include "arena.h"
#include "generation.h"
#include "model.h"
#include "request_options.h"
#include "status.h"

/* One way to go on. */
typedef struct BeamCandidate
{
	int			beam;			/* that it continues */
	int32_t		token;
	double		score;			/* sum of log-probabilities, this token's included */
	float		log_probability;	/* this token's */
	bool		stops;			/* the text is at an end with it, though it is not the end token */
} BeamCandidate;

typedef struct Beam
{
	int32_t    *tokens;			/* [max_tokens] new tokens */
	float	   *log_probabilities;	/* [max_tokens] */
	int			count;
	double		sum;			/* of their log-probabilities */
	Sequence   *sequence;		/* the scheduler's; NULL until the prompt was read */
	int			fed;			/* tokens of prompt and answer given to the model */
} Beam;

/* A finished answer. */
typedef struct Hypothesis
{
	int32_t    *tokens;			/* [count], and the end token where finish is FINISH_EOS */
	float	   *log_probabilities;	/* of the tokens */
	int			count;			/* without the end token */
	Finish		finish;			/* FINISH_EOS, FINISH_STOP or FINISH_LENGTH */
	double		score;
} Hypothesis;

typedef struct BeamSearch
{
	int			width;
	int			prompt_count;
	int			max_tokens;
	int32_t		eos;
	double		length_penalty;
	bool		early_stopping;
	Arena	   *arena;
	Beam	   *beams;			/* [width] the running ones */
	int			beam_count;		/* 1 before the first step, then width where no candidates end */
	Beam	   *next;			/* [width] being made; the two change places */
	int			parent[OPTIONS_MAX_BEAMS];	/* of each new beam: the old one it continues */
	Hypothesis *finished;		/* [width + 1], best first once the search is over */
	int			finished_count;
	bool		done;
} BeamSearch;

/* A search with one empty beam. */
extern bool beam_search_begin(BeamSearch *search, const RequestOptions *options, int prompt_count,
							  int max_tokens, int32_t eos, Arena *arena, Status *status);

/*
 * Take a step: candidates are sorted by score, best first, at most 2 width. Sets beams, parent
 * and done; the sequences of the old beams are still in `next`.
 */
extern bool beam_search_take(BeamSearch *search, const BeamCandidate *candidates, int count,
							 Status *status);

/* Add the running beams where the length ended the search, and sort the answers. */
extern bool beam_search_finish(BeamSearch *search, Status *status);

/*
 * Tokens that would complete an n-gram that text (prompt, then tokens) has already, into the
 * list banned, which has room for as many as the text has tokens. Returns their number.
 */
extern int	ngram_banned(const int32_t *prompt, int prompt_count, const int32_t *tokens, int count,
						 int n, int32_t *banned);

#endif
