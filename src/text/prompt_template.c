/*
 * prompt_template.c - the paper's unified template (section 3.1), as token ids.
 *
 * A dialogue is written down as text with marks between:
 *
 *	{introduction}
 *
 *	### Image:
 *	<image>
 *
 *	### Instruction:
 *	{prompt}
 *
 *	### Input:
 *	{input}
 *
 *	### Response:
 *	{response}</s>
 *
 *	### Instruction:
 *	...
 *
 * where the image and input blocks are there only when the dialogue has them, and
 * </s> only when the model was trained with it in its history. The original's
 * tokenizer would now search this text for marks, and find those that a user
 * typed too. Here the marks are never text: the writer below collects the text
 * of a piece, and at a mark strips the sides that touch one, encodes the piece on
 * its own and appends the mark's id. The ids are the original's for the same text
 * as long as nobody typed a mark.
 *
 * Without a mark between, everything belongs to one piece: with history_eos off,
 * an earlier response is encoded together with what follows it.
 */
#include "prompt_template.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

#define IMAGE_BLOCK "Image:\n"
#define INPUT_BLOCK "Input:\n"
#define HEADING_END ":\n"
#define WRITER_FIRST_CAPACITY 1024

const PromptTemplate prompt_template_default = {
	.introduction = "Below is an instruction that describes a task. "
		"Write a response that appropriately completes the request.",
	.separator = "\n\n### ",
	.user_prefix = "Instruction",
	.ai_prefix = "Response",
	.history_eos = false,
};

/* Collects the piece that is being written. After a failure it ignores what it is told. */
typedef struct Writer
{
	const Tokenizer *tokenizer;
	TokenList  *ids;			/* where finished pieces go; NULL: they are dropped */
	Status	   *status;
	bool		failed;
	bool		after_mark;		/* the piece follows a mark: its left side is stripped */
	char	   *text;			/* the piece so far, on the C heap */
	size_t		length;
	size_t		capacity;
} Writer;

/* Make room for more bytes of text. */
static bool
writer_reserve(Writer *writer, size_t more)
{
	size_t		capacity = writer->capacity > 0 ? writer->capacity : WRITER_FIRST_CAPACITY;
	char	   *text;

	if (more <= writer->capacity - writer->length)
		return true;
	if (more > SIZE_MAX / 4 - writer->length)
		return status_out_of_memory(writer->status, more);
	while (capacity < writer->length + more)
		capacity *= 2;
	text = realloc(writer->text, capacity);
	if (text == NULL)
		return status_out_of_memory(writer->status, capacity);
	writer->text = text;
	writer->capacity = capacity;
	return true;
}

/* Add length bytes to the piece. */
static void
write_bytes(Writer *writer, const char *text, size_t length)
{
	if (writer->failed || length == 0)
		return;
	if (!writer_reserve(writer, length))
	{
		writer->failed = true;
		return;
	}
	memcpy(writer->text + writer->length, text, length);
	writer->length += length;
}

/* Add a string of the template to the piece. */
static void
write_string(Writer *writer, const char *string)
{
	write_bytes(writer, string, strlen(string));
}

/* Add what a user or the model said to the piece; an absent part is empty. */
static void
write_part(Writer *writer, TextPart part)
{
	if (part.text != NULL)
		write_bytes(writer, part.text, part.length);
}

/* Append the ids of the piece as it stands to ids, stripped where it touches a mark. */
static bool
encode_piece(const Writer *writer, bool before_mark, TokenList *ids)
{
	size_t		length;
	const char *text;

	if (writer->length == 0)
		return true;
	text = tokenizer_strip(writer->text, writer->length, writer->after_mark, before_mark, &length);
	return tokenizer_encode_plain(writer->tokenizer, text, length, ids, writer->status);
}

/* End the piece at a mark, and begin the next one behind it. */
static void
write_mark(Writer *writer, int32_t id)
{
	if (writer->failed)
		return;
	if (writer->ids != NULL &&
		(!encode_piece(writer, true, writer->ids) ||
		 !token_list_add(writer->ids, id, writer->status)))
		writer->failed = true;
	writer->length = 0;
	writer->after_mark = true;
}

/* Add "{separator}{prefix}:\n". */
static void
write_heading(Writer *writer, const PromptTemplate *prompt_template, const char *prefix)
{
	write_string(writer, prompt_template->separator);
	write_string(writer, prefix);
	write_string(writer, HEADING_END);
}

/* Add a round up to and including "### Response:\n". */
static void
write_question(Writer *writer, const PromptTemplate *prompt_template, const DialogueRound *round)
{
	write_heading(writer, prompt_template, prompt_template->user_prefix);
	write_part(writer, round->prompt);
	if (round->input.text != NULL)
	{
		write_string(writer, prompt_template->separator);
		write_string(writer, INPUT_BLOCK);
		write_part(writer, round->input);
	}
	write_heading(writer, prompt_template, prompt_template->ai_prefix);
}

/* Write the dialogue; the piece that ends with "### Response:\n" is left open. */
static void
write_dialogue(Writer *writer, const PromptTemplate *prompt_template, const Dialogue *dialogue)
{
	const SpecialTokens *special = tokenizer_special(writer->tokenizer);

	write_string(writer, prompt_template->introduction);
	if (dialogue->has_image)
	{
		write_string(writer, prompt_template->separator);
		write_string(writer, IMAGE_BLOCK);
		write_mark(writer, special->image);
	}
	for (int i = 0; i < dialogue->count; i++)
	{
		write_question(writer, prompt_template, &dialogue->rounds[i]);
		if (i == dialogue->count - 1)
			break;
		write_part(writer, dialogue->rounds[i].response);
		if (prompt_template->history_eos)
			write_mark(writer, special->eos);
	}
}

/* Check that one part is UTF-8; round counts from 1. */
static bool
check_part(TextPart part, const char *name, int round, Status *status)
{
	size_t		good;

	if (part.text == NULL)
		return true;
	good = utf8_valid_prefix(part.text, part.length);
	if (good == part.length)
		return true;
	return status_set(status, STATUS_INVALID_TEXT,
					  "%s of round %d is not valid UTF-8 at byte offset %zu", name, round, good);
}

/* Check a dialogue before its parts are glued together, while their offsets mean something. */
static bool
check_dialogue(const Dialogue *dialogue, Status *status)
{
	if (dialogue->count <= 0)
		return status_set(status, STATUS_INTERNAL, "a dialogue without rounds cannot be encoded");
	for (int i = 0; i < dialogue->count; i++)
	{
		const DialogueRound *round = &dialogue->rounds[i];

		if (!check_part(round->prompt, "prompt", i + 1, status) ||
			!check_part(round->input, "input", i + 1, status) ||
			!check_part(round->response, "response", i + 1, status))
			return false;
	}
	return true;
}

bool
prompt_encode(const Tokenizer *tokenizer, const PromptTemplate *prompt_template,
			  const Dialogue *dialogue, TokenList *ids, Status *status)
{
	Writer		writer = {.tokenizer = tokenizer, .ids = ids, .status = status};
	bool		good;

	if (!check_dialogue(dialogue, status) ||
		!token_list_add(ids, tokenizer_special(tokenizer)->bos, status))
		return false;
	write_dialogue(&writer, prompt_template, dialogue);
	good = !writer.failed && encode_piece(&writer, false, ids);
	free(writer.text);
	return good;
}

/* Bytes of a part that no stripping takes away. */
static size_t
solid_length(TextPart part)
{
	size_t		length = 0;

	if (part.text != NULL)
		tokenizer_strip(part.text, part.length, true, true, &length);
	return length;
}

int
prompt_fewest_tokens(const Tokenizer *tokenizer, const Dialogue *dialogue)
{
	size_t		length = 0;

	for (int i = 0; i < dialogue->count; i++)
	{
		const DialogueRound *round = &dialogue->rounds[i];

		length += solid_length(round->prompt) + solid_length(round->input);
		if (i < dialogue->count - 1)
			length += solid_length(round->response);
	}
	return tokenizer_fewest_tokens(tokenizer, length);
}

/*
 * Append to ids what text adds to the open piece. Encoded without and with text,
 * the piece must begin alike, since the model has already read its first part.
 */
static bool
encode_continuation(Writer *writer, const PromptTemplate *prompt_template, TextPart text,
					Arena *scratch, TokenList *ids)
{
	TokenList	without;
	TokenList	with;

	token_list_begin(&without, scratch);
	token_list_begin(&with, scratch);
	if (!encode_piece(writer, false, &without))
		return false;
	write_part(writer, text);
	if (writer->failed || !encode_piece(writer, false, &with))
		return false;
	if (with.count < without.count ||
		(without.count > 0 &&
		 memcmp(with.ids, without.ids, (size_t) without.count * sizeof(int32_t)) != 0))
	{
		status_set(writer->status, STATUS_INTERNAL,
				   "the answer's first characters merge with the end of the prompt");
		return status_detail(writer->status,
							 "A piece of the model's vocabulary begins in the heading \"%s\" and "
							 "ends in the answer.",
							 prompt_template->ai_prefix);
	}
	for (int i = without.count; i < with.count; i++)
		if (!token_list_add(ids, with.ids[i], writer->status))
			return false;
	return true;
}

bool
prompt_encode_answer(const Tokenizer *tokenizer, const PromptTemplate *prompt_template,
					 const Dialogue *dialogue, TextPart text, TokenList *ids, Status *status)
{
	Writer		writer = {.tokenizer = tokenizer, .status = status};
	Arena	   *scratch;
	bool		good;

	if (!check_dialogue(dialogue, status) || !check_part(text, "answer", dialogue->count, status))
		return false;
	scratch = arena_create();
	if (scratch == NULL)
		return status_out_of_memory(status, sizeof(TokenList));
	write_dialogue(&writer, prompt_template, dialogue);
	good = !writer.failed && encode_continuation(&writer, prompt_template, text, scratch, ids);
	free(writer.text);
	arena_free(scratch);
	return good;
}

/* ---- training ---- */

/* Where a response lies in the piece that is being written, in bytes. */
typedef struct ResponseSpan
{
	size_t		start;
	size_t		end;
} ResponseSpan;

typedef struct TrainingWriter
{
	Writer		writer;
	TokenList  *labels;
	ResponseSpan *spans;		/* of the piece; room for all rounds */
	int			span_count;
	Arena	   *scratch;
} TrainingWriter;

/* Tokens of the first bytes of the open piece. */
static bool
count_prefix(TrainingWriter *training, size_t bytes, int *count)
{
	Writer		prefix = training->writer;
	TokenList	tokens;

	token_list_begin(&tokens, training->scratch);
	prefix.length = bytes;
	if (!encode_piece(&prefix, false, &tokens))
		return false;
	*count = tokens.count;
	return true;
}

/* Make the tokens of one response their own labels; the piece's ids begin at first. */
static bool
label_response(TrainingWriter *training, const ResponseSpan *span, int first)
{
	const TokenList *ids = training->writer.ids;
	bool		at_end = span->end == training->writer.length;
	int			from;
	int			to = ids->count - first;

	if (!count_prefix(training, span->start, &from) ||
		(!at_end && !count_prefix(training, span->end, &to)))
		return false;
	for (int i = first + from; i < first + to && i < ids->count; i++)
		training->labels->ids[i] = ids->ids[i];
	return true;
}

/* End the piece, with labels for its responses; mark < 0: the text ends here. */
static bool
end_training_piece(TrainingWriter *training, int32_t mark, int32_t mark_label)
{
	Writer	   *writer = &training->writer;
	int			first = writer->ids->count;

	if (writer->failed || !encode_piece(writer, mark >= 0, writer->ids))
		return false;
	while (training->labels->count < writer->ids->count)
		if (!token_list_add(training->labels, LABEL_NONE, writer->status))
			return false;
	for (int i = 0; i < training->span_count; i++)
		if (!label_response(training, &training->spans[i], first))
			return false;
	training->span_count = 0;
	writer->length = 0;
	writer->after_mark = true;
	return mark < 0 || (token_list_add(writer->ids, mark, writer->status) &&
						token_list_add(training->labels, mark_label, writer->status));
}

static bool
write_training(TrainingWriter *training, const PromptTemplate *prompt_template,
			   const Dialogue *dialogue)
{
	Writer	   *writer = &training->writer;
	const SpecialTokens *special = tokenizer_special(writer->tokenizer);

	if (!token_list_add(writer->ids, special->bos, writer->status))
		return false;
	write_string(writer, prompt_template->introduction);
	if (dialogue->has_image)
	{
		write_string(writer, prompt_template->separator);
		write_string(writer, IMAGE_BLOCK);
		if (!end_training_piece(training, special->image, LABEL_NONE))
			return false;
	}
	for (int i = 0; i < dialogue->count; i++)
	{
		ResponseSpan *span = &training->spans[training->span_count++];

		write_question(writer, prompt_template, &dialogue->rounds[i]);
		span->start = writer->length;
		write_part(writer, dialogue->rounds[i].response);
		span->end = writer->length;
		if (i < dialogue->count - 1 && prompt_template->history_eos &&
			!end_training_piece(training, special->eos, special->eos))
			return false;
	}
	return end_training_piece(training, -1, 0);
}

/* Cut at max_length, or put EOS at the end. */
static bool
finish_training(TrainingWriter *training, int max_length)
{
	TokenList  *ids = training->writer.ids;
	int32_t		eos = tokenizer_special(training->writer.tokenizer)->eos;

	if (ids->count >= max_length)
	{
		ids->count = max_length;
		training->labels->count = max_length;
		return true;
	}
	return token_list_add(ids, eos, training->writer.status) &&
		token_list_add(training->labels, eos, training->writer.status);
}

bool
prompt_encode_training(const Tokenizer *tokenizer, const PromptTemplate *prompt_template,
					   const Dialogue *dialogue, int max_length, TokenList *ids,
					   TokenList *labels, Status *status)
{
	TrainingWriter training = {.writer = {.tokenizer = tokenizer, .ids = ids, .status = status},
							   .labels = labels};
	bool		good;

	if (!check_dialogue(dialogue, status))
		return false;
	training.scratch = arena_create();
	if (training.scratch != NULL)
		training.spans = arena_take_array(training.scratch, (size_t) dialogue->count,
										  sizeof(ResponseSpan));
	if (training.spans == NULL)
	{
		arena_free(training.scratch);
		return status_out_of_memory(status, (size_t) dialogue->count * sizeof(ResponseSpan));
	}
	good = write_training(&training, prompt_template, dialogue) &&
		finish_training(&training, max_length);
	free(training.writer.text);
	arena_free(training.scratch);
	return good;
}
