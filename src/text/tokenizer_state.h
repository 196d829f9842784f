/*
 * tokenizer_state.h - what the files tokenizer_*.c share and nobody else sees.
 */
#ifndef MMGPT_TOKENIZER_STATE_H
#define MMGPT_TOKENIZER_STATE_H

#include "sentencepiece_shim.h"
#include "tokenizer.h"

#define TOKENIZER_MARKS 6

/* How a special token is written, and what white space beside it means. */
typedef struct SpecialMark
{
	const char *spelling;
	int32_t		id;
	bool		strips;			/* white space beside it vanishes (all but <unk>) */
} SpecialMark;

struct Tokenizer
{
	SentencePieceModel *model;
	SpecialTokens special;
	SpecialMark marks[TOKENIZER_MARKS];
	int			base_vocabulary;
	size_t		longest_piece;	/* bytes of text that one token can stand for at most */
	bool		splits_at_spaces;	/* text may be cut before a space; see tokenizer_encode.c */
};

/* Find out longest_piece and splits_at_spaces; called once, while opening. */
extern bool tokenizer_measure(Tokenizer *tokenizer, Status *status);

/* True for ids of the base vocabulary and of the added tokens. */
extern bool tokenizer_knows(const Tokenizer *tokenizer, int32_t id);

#endif
