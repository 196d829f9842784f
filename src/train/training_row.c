/*
 * training_row.c - see training_row.h.
 */
#include "training_row.h"

int
training_row_labels(const int32_t *labels, int count)
{
	int			trained = 0;

	for (int i = 1; i < count; i++)
		trained += labels[i] >= 0;
	return trained;
}

bool
training_row_check(const ModelConfig *config, const TrainingRow *row, Status *status)
{
	int			vocabulary = config->decoder.vocabulary;
	int			marks = 0;

	if (row->count < 2)
		return status_set(status, STATUS_INVALID_ARGUMENT, "the row has %d token%s", row->count,
						  row->count == 1 ? "" : "s");
	for (int i = 0; i < row->count; i++)
	{
		if (row->ids[i] < 0 || row->ids[i] >= vocabulary || row->labels[i] >= vocabulary)
			return status_set(status, STATUS_INVALID_ARGUMENT,
							  "token or label %d of the row is outside of the vocabulary of %d",
							  i + 1, vocabulary);
		marks += row->ids[i] == config->image;
	}
	if (row->picture_count == 0 || marks == row->picture_count)
		return true;
	return status_set(status, STATUS_INVALID_ARGUMENT,
					  "the row has %d picture%s and %d <image> mark%s", row->picture_count,
					  row->picture_count == 1 ? "" : "s", marks, marks == 1 ? "" : "s");
}

/* The dialogue that a row's texts are. */
static bool
make_dialogue(const RowText *text, Arena *arena, Dialogue *dialogue, Status *status)
{
	DialogueRound *round;

	if (text->conversation.text != NULL)
		return dialogue_read_conversation(text->conversation.text, text->conversation.length,
										  text->has_image, arena, dialogue, status);
	if (text->instruction.text == NULL || text->response.text == NULL)
		return status_set(status, STATUS_INVALID_ARGUMENT, "the row has no %s",
						  text->instruction.text == NULL ? "instruction" : "response");
	round = arena_take(arena, sizeof(DialogueRound));
	if (round == NULL)
		return status_out_of_memory(status, sizeof(DialogueRound));
	round->prompt = text->instruction;
	round->response = text->response;
	/* the original leaves the block out for an empty input */
	if (text->input.length > 0)
		round->input = text->input;
	*dialogue = (Dialogue) {round, 1, text->has_image};
	return true;
}

bool
training_row_encode(const Tokenizer *tokenizer, const PromptTemplate *prompt_template,
					const RowText *text, int max_length, Arena *arena, TrainingRow *row,
					Status *status)
{
	Dialogue	dialogue;
	TokenList	ids;
	TokenList	labels;

	token_list_begin(&ids, arena);
	token_list_begin(&labels, arena);
	if (!make_dialogue(text, arena, &dialogue, status) ||
		!prompt_encode_training(tokenizer, prompt_template, &dialogue, max_length, &ids, &labels,
								status))
		return false;
	if (training_row_labels(labels.ids, labels.count) == 0)
	{
		status_set(status, STATUS_INVALID_ARGUMENT,
				   "no token of a response is left within %d tokens", max_length);
		return status_hint(status, "Shorten the instruction or raise max_length.");
	}
	*row = (TrainingRow) {ids.ids, labels.ids, ids.count, NULL, 0};
	return true;
}
