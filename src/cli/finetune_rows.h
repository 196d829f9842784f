/*
 * finetune_rows.h - the rows of a JSON lines file, for training.
 *
 * A line is {"image": path or null, "instruction", "input", "response"}, or {"image",
 * "conversation": [...]}, or for tests {"pixels": path.npy, a list of paths, or null, "ids":
 * [...], "labels": [...]}. Other keys are passed over. Paths are relative to the file's folder.
 */
#ifndef MMGPT_FINETUNE_ROWS_H
#define MMGPT_FINETUNE_ROWS_H

#include "cli_common.h"
#include "trainer.h"

typedef struct RowFile
{
	const char *path;			/* "-": standard input */
	const Tokenizer *tokenizer;
	const ModelConfig *config;
	ImageRules	rules;
	int			max_length;
	bool		skip_unusable;	/* false: the first unusable row is a failure */
	int			rows;			/* results: lines that were rows, */
	int			unusable;		/* ... and those of them that were skipped */
} RowFile;

/*
 * Give all rows to the trainer. Each unusable row is reported on standard error with the
 * number of its line and the reason.
 */
extern bool finetune_rows_read(RowFile *file, Trainer *trainer, Status *status);

#endif
