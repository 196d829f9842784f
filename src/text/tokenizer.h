/*
 * tokenizer.h - text to token ids and back, as the original's slow LLaMA tokenizer.
 *
 * SentencePiece does the work; this adds the special tokens: BOS in front, the
 * marks <s> </s> <unk> <PAD> <image> <|endofchunk|>, and the white space that
 * vanishes around them (golden README, Facts 4). Ids of the base vocabulary are
 * SentencePiece's; <|endofchunk|>, <image> and <PAD> follow after it. Objects are
 * immutable after opening, so threads may share them.
 */
#ifndef MMGPT_TOKENIZER_H
#define MMGPT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The most bytes that are encoded at once, some 330 bytes of memory each: a text of
 * this length without a space in it, or a run of so many spaces, is refused.
 */
#define TOKENIZER_MAX_WORD ((size_t) 1024 * 1024)

/* Ids of the special tokens, from config.json's special_ids. */
typedef struct SpecialTokens
{
	int			unk;
	int			bos;
	int			eos;
	int			endofchunk;
	int			image;
	int			pad;
} SpecialTokens;

typedef struct Tokenizer Tokenizer;

/* A list of token ids in an arena. */
typedef struct TokenList
{
	Arena	   *arena;
	int32_t    *ids;
	int			count;
	int			capacity;
} TokenList;

/* Make a list empty. */
extern void token_list_begin(TokenList *list, Arena *arena);

/* Append one id; false (STATUS_OUT_OF_MEMORY) when there is no room for more. */
extern bool token_list_add(TokenList *list, int32_t id, Status *status);

/*
 * Open tokenizer.model. base_vocabulary is the number of pieces that the model's
 * config.json promises; STATUS_INVALID_MODEL names the file when it differs or
 * can't be read, or when the special tokens are not where special says.
 */
extern Tokenizer *tokenizer_open(const char *path, const SpecialTokens *special,
								 int base_vocabulary, Status *status);

/* Free a tokenizer. NULL is allowed. */
extern void tokenizer_close(Tokenizer *tokenizer);

/*
 * Append the ids of plain text: one piece for SentencePiece, in which spellings
 * of special tokens are ordinary characters. Text must be UTF-8
 * (STATUS_INVALID_TEXT). Nothing is put in front. Memory does not grow with the
 * text, but with its longest word, of which TOKENIZER_MAX_WORD bytes are the most
 * (STATUS_NOT_SUPPORTED).
 */
extern bool tokenizer_encode_plain(const Tokenizer *tokenizer, const char *text, size_t length,
								   TokenList *ids, Status *status);

/*
 * A number of tokens that length bytes of text certainly have, without encoding
 * them: what does not fit a context by this figure need not be tried.
 */
extern int tokenizer_fewest_tokens(const Tokenizer *tokenizer, size_t length);

/*
 * Append BOS and the ids of text as the original's tokenizer gives them: split
 * at the spellings of special tokens, white space stripped around them (not
 * around <unk>), each piece encoded on its own.
 */
extern bool tokenizer_encode_special(const Tokenizer *tokenizer, const char *text, size_t length,
									 TokenList *ids, Status *status);

/*
 * The part of text that Python's str.strip() leaves (lstrip with left alone, rstrip
 * with right alone): returns its start and sets its length. Text must be UTF-8.
 */
extern const char *tokenizer_strip(const char *text, size_t length, bool left, bool right,
								   size_t *stripped_length);

/*
 * The text of ids, special tokens dropped, then one SentencePiece decode:
 * one leading space is gone, each byte of an invalid UTF-8 sequence is one U+FFFD.
 * The result lies in the arena, with a NUL that is not counted in *length; it may
 * hold U+0000. An id that is in no vocabulary is STATUS_INVALID_ARGUMENT.
 */
extern char *tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, int count,
							  Arena *arena, size_t *length, Status *status);

/*
 * The text of one piece as SentencePiece spells it (U+2581 for a space, <0x0A> for a
 * byte), for constraints; added tokens as their marks. NULL for an id that is in
 * no vocabulary. Lives as long as the tokenizer.
 */
extern const char *tokenizer_piece(const Tokenizer *tokenizer, int32_t id);

/* True for ids that stand for no text: unk, bos, eos and the three added ones. */
extern bool tokenizer_is_special(const Tokenizer *tokenizer, int32_t id);

/* The ids given to tokenizer_open. */
extern const SpecialTokens *tokenizer_special(const Tokenizer *tokenizer);

/* Pieces of the base vocabulary. */
extern int tokenizer_base_vocabulary(const Tokenizer *tokenizer);

#ifdef __cplusplus
}
#endif

#endif
