/*
 * tokenizer_load.c - tokenizer.model is opened and held against config.json.
 *
 * The vocabulary has two parts: SentencePiece's pieces, among them <unk>, <s>
 * and </s>, and behind them the tokens that the original added for images:
 * <|endofchunk|>, <image>, <PAD>. config.json says how many pieces there are and
 * which ids the six special tokens have. A tokenizer.model of another model
 * would give fluent nonsense, so every one of these numbers is checked here.
 */
#include "tokenizer_state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* A tokenizer.model has some megabytes at most; what is larger is another file. */
#define TOKENIZER_MAX_FILE_SIZE ((off_t) 256 * 1024 * 1024)

/* Read size bytes from an open file. NULL when they can't be had. */
static void *
read_bytes(FILE *file, size_t size, const char *path, Status *status)
{
	void	   *bytes = malloc(size + 1);

	if (bytes == NULL)
	{
		status_out_of_memory(status, size + 1);
		return NULL;
	}
	if (fread(bytes, 1, size, file) != size)
	{
		free(bytes);
		status_set(status, STATUS_INVALID_MODEL, "could not read file \"%s\": %s", path,
				   ferror(file) ? strerror(errno) : "unexpected end of file");
		return NULL;
	}
	return bytes;
}

/* Read the whole file. The caller frees the bytes. */
static void *
read_model_file(const char *path, size_t *size, Status *status)
{
	FILE	   *file = fopen(path, "rbe");
	struct stat description;
	void	   *bytes = NULL;

	if (file == NULL)
	{
		status_set(status, STATUS_INVALID_MODEL, "could not open file \"%s\": %s", path,
				   strerror(errno));
		return NULL;
	}
	if (fstat(fileno(file), &description) != 0)
		status_set(status, STATUS_INVALID_MODEL, "could not examine file \"%s\": %s", path,
				   strerror(errno));
	else if (!S_ISREG(description.st_mode))
		status_set(status, STATUS_INVALID_MODEL, "\"%s\" is not a regular file", path);
	else if (description.st_size == 0)
		status_set(status, STATUS_INVALID_MODEL, "file \"%s\" is empty", path);
	else if (description.st_size > TOKENIZER_MAX_FILE_SIZE)
		status_set(status, STATUS_INVALID_MODEL, "file \"%s\" is too large for a tokenizer", path);
	else
	{
		*size = (size_t) description.st_size;
		bytes = read_bytes(file, *size, path, status);
	}
	fclose(file);
	return bytes;
}

/* Check that config.json and tokenizer.model agree about one of SentencePiece's own marks. */
static bool
check_own_mark(const char *path, const char *name, int configured, int actual, Status *status)
{
	if (configured == actual)
		return true;
	status_set(status, STATUS_INVALID_MODEL,
			   "special token \"%s\" has id %d in file \"%s\", but %d in config.json", name, actual,
			   path, configured);
	return status_hint(status, "Check that both files belong to the same model.");
}

/* Check that the added tokens stand behind the pieces and differ from each other. */
static bool
check_added_tokens(const SpecialTokens *special, int base_vocabulary, Status *status)
{
	const int	ids[] = {special->endofchunk, special->image, special->pad};
	const char *const names[] = {"endofchunk", "image", "pad"};

	for (int i = 0; i < 3; i++)
	{
		if (ids[i] < base_vocabulary)
			return status_set(status, STATUS_INVALID_MODEL,
							  "special token \"%s\" has id %d in config.json, which is one of the "
							  "%d pieces of the base vocabulary", names[i], ids[i],
							  base_vocabulary);
		for (int j = 0; j < i; j++)
			if (ids[i] == ids[j])
				return status_set(status, STATUS_INVALID_MODEL,
								  "special tokens \"%s\" and \"%s\" have the same id %d in "
								  "config.json", names[j], names[i], ids[i]);
	}
	return true;
}

/* Check everything that config.json says about the opened model. */
static bool
check_vocabulary(const Tokenizer *tokenizer, const char *path, Status *status)
{
	const SpecialTokens *special = &tokenizer->special;
	int			pieces = sentencepiece_size(tokenizer->model);
	int			unk;
	int			bos;
	int			eos;

	if (pieces != tokenizer->base_vocabulary)
	{
		status_set(status, STATUS_INVALID_MODEL,
				   "file \"%s\" has %d pieces, but config.json promises %d", path, pieces,
				   tokenizer->base_vocabulary);
		return status_hint(status, "Check that both files belong to the same model.");
	}
	sentencepiece_marks(tokenizer->model, &unk, &bos, &eos);
	return check_own_mark(path, "unk", special->unk, unk, status) &&
		check_own_mark(path, "bos", special->bos, bos, status) &&
		check_own_mark(path, "eos", special->eos, eos, status) &&
		check_added_tokens(special, pieces, status);
}

/* Fill the table of spellings. */
static void
set_marks(Tokenizer *tokenizer)
{
	const SpecialTokens *special = &tokenizer->special;
	const SpecialMark marks[TOKENIZER_MARKS] = {
		{"<unk>", special->unk, false},
		{"<s>", special->bos, true},
		{"</s>", special->eos, true},
		{"<|endofchunk|>", special->endofchunk, true},
		{"<image>", special->image, true},
		{"<PAD>", special->pad, true},
	};

	memcpy(tokenizer->marks, marks, sizeof(marks));
}

Tokenizer *
tokenizer_open(const char *path, const SpecialTokens *special, int base_vocabulary, Status *status)
{
	size_t		size;
	void	   *bytes = read_model_file(path, &size, status);
	Tokenizer  *tokenizer;

	if (bytes == NULL)
		return NULL;
	tokenizer = calloc(1, sizeof(*tokenizer));
	if (tokenizer == NULL)
	{
		free(bytes);
		status_out_of_memory(status, sizeof(*tokenizer));
		return NULL;
	}
	tokenizer->special = *special;
	tokenizer->base_vocabulary = base_vocabulary;
	set_marks(tokenizer);
	tokenizer->model = sentencepiece_open(bytes, size, status);
	free(bytes);
	if (tokenizer->model == NULL)
		status_prefix(status, "file \"%s\"", path);
	if (tokenizer->model == NULL || !check_vocabulary(tokenizer, path, status) ||
		!tokenizer_measure(tokenizer, status))
	{
		tokenizer_close(tokenizer);
		return NULL;
	}
	return tokenizer;
}

void
tokenizer_close(Tokenizer *tokenizer)
{
	if (tokenizer == NULL)
		return;
	sentencepiece_close(tokenizer->model);
	free(tokenizer);
}

bool
tokenizer_is_special(const Tokenizer *tokenizer, int32_t id)
{
	for (int i = 0; i < TOKENIZER_MARKS; i++)
		if (tokenizer->marks[i].id == id)
			return true;
	return false;
}

bool
tokenizer_knows(const Tokenizer *tokenizer, int32_t id)
{
	return (id >= 0 && id < tokenizer->base_vocabulary) || tokenizer_is_special(tokenizer, id);
}

const char *
tokenizer_piece(const Tokenizer *tokenizer, int32_t id)
{
	for (int i = 0; i < TOKENIZER_MARKS; i++)
		if (tokenizer->marks[i].id == id)
			return tokenizer->marks[i].spelling;
	return sentencepiece_piece(tokenizer->model, id);
}

const SpecialTokens *
tokenizer_special(const Tokenizer *tokenizer)
{
	return &tokenizer->special;
}

int
tokenizer_base_vocabulary(const Tokenizer *tokenizer)
{
	return tokenizer->base_vocabulary;
}
