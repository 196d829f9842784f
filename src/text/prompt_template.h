/*
 * prompt_template.h - a dialogue becomes the token ids of the paper's unified template.
 *
 * Section 3.1 of the paper: one template for language-only and for
 * vision-and-language data. See MODEL.md. What users and earlier answers
 * say is always plain text: <image> or </s> typed by a user stays characters.
 */
#ifndef MMGPT_PROMPT_TEMPLATE_H
#define MMGPT_PROMPT_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#include "arena.h"
#include "status.h"
#include "tokenizer.h"

/* Of jansson.h. */
struct json_t;

/* A text with its length in bytes; not necessarily NUL-terminated. */
typedef struct TextPart
{
	const char *text;			/* UTF-8; NULL for an absent part */
	size_t		length;
} TextPart;

/* The strings of the template, from config.json, with the original's as defaults. */
typedef struct PromptTemplate
{
	const char *introduction;	/* config "template" */
	const char *separator;		/* "\n\n### " */
	const char *user_prefix;	/* "Instruction" */
	const char *ai_prefix;		/* "Response" */
	bool		history_eos;	/* EOS stands after every earlier response */
} PromptTemplate;

/* The original's strings; history_eos false. */
extern const PromptTemplate prompt_template_default;

/* One question with its answer; the answer of the last round is absent. */
typedef struct DialogueRound
{
	TextPart	prompt;
	TextPart	input;			/* absent (NULL): no "### Input:" block; only in the first round */
	TextPart	response;
} DialogueRound;

typedef struct Dialogue
{
	DialogueRound *rounds;
	int			count;
	bool		has_image;		/* an <image> mark stands before the first round */
} Dialogue;

/*
 * Append the token ids of the dialogue up to and including "### Response:\n" of
 * its last round; BOS in front.
 */
extern bool prompt_encode(const Tokenizer *tokenizer, const PromptTemplate *prompt_template,
						  const Dialogue *dialogue, TokenList *ids, Status *status);

/*
 * A number of tokens that the dialogue certainly has, found without encoding it:
 * refuse by it a prompt that is far too long before it costs anything.
 */
extern int prompt_fewest_tokens(const Tokenizer *tokenizer, const Dialogue *dialogue);

/*
 * Append the ids that text has when it stands as the answer to the dialogue,
 * that is what is added to prompt_encode's ids when the response begins with text. For
 * scoring. STATUS_INTERNAL when the prompt's own ids would change; with LLaMA's
 * vocabularies they never do, as the line feed at the joint is a byte piece.
 */
extern bool prompt_encode_answer(const Tokenizer *tokenizer, const PromptTemplate *prompt_template,
								 const Dialogue *dialogue, TextPart text, TokenList *ids,
								 Status *status);

/* The label of a token that is not trained. */
#define LABEL_NONE (-100)

/*
 * Append the token ids of a dialogue to train on, in which the last round has its response too,
 * and as many labels: a response's tokens and the EOS behind it are their own labels,
 * all others LABEL_NONE. Both are cut at max_length; the last EOS is there if it fits.
 */
extern bool prompt_encode_training(const Tokenizer *tokenizer,
								   const PromptTemplate *prompt_template,
								   const Dialogue *dialogue, int max_length, TokenList *ids,
								   TokenList *labels, Status *status);

/*
 * Read history (JSON text: [{"role":"user"|"assistant","content":text}, ...],
 * alternating, first user, last assistant; NULL or length 0: none) and append the
 * prompt as the last round. input and image belong to the first round. Errors name
 * the element, from 1 ("history element 3 ..."): STATUS_INVALID_JSON, or
 * STATUS_INVALID_TEXT for a history that is not UTF-8. prompt and input are not
 * copied, and must live as long as the dialogue.
 */
extern bool dialogue_read(const char *history, size_t history_length, TextPart prompt,
						  TextPart input, bool has_image, Arena *arena, Dialogue *dialogue,
						  Status *status);

/*
 * Read a whole conversation (JSON text of the same form as a history, not empty, the last turn
 * the assistant's) into rounds that all have their responses. Errors name the element
 * ("conversation element 3 ...").
 */
extern bool dialogue_read_conversation(const char *json, size_t length, bool has_image,
									   Arena *arena, Dialogue *dialogue, Status *status);

/*
 * The history with the last round's prompt and answer appended, as JSON text in the
 * arena: what mmgpt_chat_turn returns. Broken bytes and U+0000 become U+FFFD, so
 * that the text is always valid jsonb. logprobs, where it is not NULL, becomes the value
 * "logprobs" of the answer's element. A NUL follows that is not counted in *length.
 */
extern char *dialogue_write(const Dialogue *dialogue, TextPart answer, struct json_t *logprobs,
							Arena *arena, size_t *length, Status *status);

/*
 * Where an answer has to end because the model began a new block: the offset of
 * the first "\n\n### " followed by Instruction, Response, Input or Image and ":";
 * length if there is none.
 */
extern size_t answer_find_stop(const char *text, size_t length);

/*
 * The first number in an answer: digits, or a word from no, zero, one ... twenty
 * (a whole word, any case). False if there is none or it exceeds 2147483647.
 * answer.c says what "1,000", "3.5" or "twenty-one" give.
 */
extern bool answer_find_number(const char *text, size_t length, int *number);

/*
 * Whether the beginning of an answer holds its first number, however the answer goes on: the number
 * and the space behind it.
 */
extern bool answer_settles_number(const char *text, size_t length);

#endif
