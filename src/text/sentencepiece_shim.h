/*
 * sentencepiece_shim.h - the few calls of libsentencepiece that the tokenizer needs.
 *
 * SentencePiece is C++ and reports by exceptions, log lines and its own Status;
 * behind these calls there is only C: no exception leaves them, nothing is
 * printed, failures arrive in our Status. A model is immutable after opening,
 * so threads may share it.
 */
#ifndef MMGPT_SENTENCEPIECE_SHIM_H
#define MMGPT_SENTENCEPIECE_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "arena.h"
#include "status.h"
#include "tokenizer.h"

typedef struct SentencePieceModel SentencePieceModel;

/*
 * Read a model from the size bytes of a tokenizer.model file, which may be
 * freed afterwards. NULL with STATUS_INVALID_MODEL when they are none.
 */
extern SentencePieceModel *sentencepiece_open(const void *data, size_t size, Status *status);

/* Free a model. NULL is allowed. */
extern void sentencepiece_close(SentencePieceModel *model);

/*
 * Append the ids of length bytes of UTF-8 text, with SentencePiece's dummy
 * prefix and without BOS and EOS. What is written like a control symbol ("</s>")
 * is ordinary text.
 */
extern bool sentencepiece_encode(const SentencePieceModel *model, const char *text, size_t length,
								 TokenList *ids, Status *status);

/*
 * Decode count ids at once. The text lies in the arena, with a NUL that is not
 * counted in *length. Ids must be within the vocabulary.
 */
extern char *sentencepiece_decode(const SentencePieceModel *model, const int32_t *ids, int count,
								  Arena *arena, size_t *length, Status *status);

/* Number of pieces of the vocabulary. */
extern int	sentencepiece_size(const SentencePieceModel *model);

/* Spelling of a piece, owned by the model; NULL when id is outside the vocabulary. */
extern const char *sentencepiece_piece(const SentencePieceModel *model, int32_t id);

/* The model's own ids of its unknown, begin and end marks; -1 for one that it lacks. */
extern void sentencepiece_marks(const SentencePieceModel *model, int *unk, int *bos, int *eos);

#ifdef __cplusplus
}
#endif

#endif
