/*
 * training_row.h - one row to train on: token ids, labels and the pictures it looks at.
 */
#ifndef MMGPT_TRAINING_ROW_H
#define MMGPT_TRAINING_ROW_H

#include "arena.h"
#include "model.h"
#include "prompt_template.h"
#include "status.h"

typedef struct TrainingRow
{
	const int32_t *ids;			/* [count] */
	const int32_t *labels;		/* [count]: the token to be predicted there, or negative */
	int			count;
	const Picture *pictures;	/* one for each <image> mark; none: a language-only row */
	int			picture_count;
} TrainingRow;

/* What a row says, before it is tokens. */
typedef struct RowText
{
	TextPart	instruction;	/* these, or a conversation */
	TextPart	input;			/* may be absent or empty */
	TextPart	response;
	TextPart	conversation;	/* JSON, see dialogue_read_conversation */
	bool		has_image;
} RowText;

/*
 * The ids and labels of a row by the model's template, cut at max_length, in the arena; pictures
 * are the caller's to add. Errors say what makes the row unusable.
 */
extern bool training_row_encode(const Tokenizer *tokenizer, const PromptTemplate *prompt_template,
								const RowText *text, int max_length, Arena *arena,
								TrainingRow *row, Status *status);

/*
 * Whether the model could take the row: tokens and labels are of its vocabulary, and there is a
 * picture for each <image> mark, or none. STATUS_INVALID_ARGUMENT.
 */
extern bool training_row_check(const ModelConfig *config, const TrainingRow *row, Status *status);

/* Labels that a row of this length trains: those behind the first token. */
extern int	training_row_labels(const int32_t *labels, int count);

#endif
