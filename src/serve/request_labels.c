/*
 * request_labels.c - see request_labels.h.
 */
#include "request_labels.h"

#include <stdlib.h>
#include <string.h>

#include "request_internal.h"
#include "utf8.h"

/* Bytes of a label that a message shows. */
#define LABEL_SHOWN_SIZE 64

/* Check one label, numbered from 1, before anything is done with it. */
static bool
check_label(Request *request, TextPart label, int number)
{
	const ModelContext *context = request->context;
	int			room = context->config->decoder.context;
	size_t		valid = utf8_valid_prefix(label.text, label.length);
	size_t		solid;
	int			least;

	if (valid < label.length)
		return status_set(&request->status, STATUS_INVALID_TEXT,
						  "label %d is not valid UTF-8 at byte offset %zu", number, valid);
	tokenizer_strip(label.text, label.length, true, true, &solid);
	if (solid == 0)
		return status_set(&request->status, STATUS_INVALID_ARGUMENT,
						  label.length == 0 ? "label %d is empty"
											: "label %d is nothing but white space", number);
	least = tokenizer_fewest_tokens(context->tokenizer, solid);
	if (least < room)
		return true;
	return status_set(&request->status, STATUS_PROMPT_TOO_LONG,
					  "label %d of at least %d tokens does not fit the model's context of %d "
					  "tokens", number, least, room);
}

/* How many labels a list has; -1 where it is none, or has too many. */
static int
count_labels(Request *request, const uint8_t *list, size_t length)
{
	size_t		at = 0;
	int			count = 0;
	const uint8_t *text;
	uint32_t	size;

	while (list != NULL && wire_list_next(list, length, &at, &text, &size))
		if (++count > REQUEST_MAX_LABELS)
		{
			status_set(&request->status, STATUS_PROMPT_TOO_LONG,
					   "there are more than %d labels", REQUEST_MAX_LABELS);
			return -1;
		}
	if (at == length)
		return count;
	status_set(&request->status, STATUS_PROTOCOL, "a list of labels ends inside one");
	return -1;
}

/* Order pointers to labels by text, equal ones by place. */
static int
compare_labels(const void *a, const void *b)
{
	const TextPart *x = *(const TextPart *const *) a;
	const TextPart *y = *(const TextPart *const *) b;
	int			order = memcmp(x->text, y->text, x->length < y->length ? x->length : y->length);

	if (order != 0)
		return order;
	if (x->length != y->length)
		return x->length < y->length ? -1 : 1;
	return x < y ? -1 : x > y;
}

/* Refuse a label that equals an earlier one. Always returns false. */
static bool
refuse_repeated(Request *request, const LabelList *list, const TextPart *repeated,
				const TextPart *original)
{
	size_t		shown = repeated->length < LABEL_SHOWN_SIZE ? repeated->length : LABEL_SHOWN_SIZE;

	shown = utf8_valid_prefix(repeated->text, shown);
	status_set(&request->status, STATUS_INVALID_ARGUMENT, "label %d is the same as label %d",
			   (int) (repeated - list->labels) + 1, (int) (original - list->labels) + 1);
	return status_detail(&request->status, "Both are \"%.*s%s\".", (int) shown, repeated->text,
						 shown < repeated->length ? "..." : "");
}

/* Check that no label comes twice; of several that do the first one is named. */
static bool
check_repeated(Request *request, const LabelList *list)
{
	size_t		count = (size_t) list->count;
	const TextPart **sorted = arena_take_array(request->arena, count, sizeof(TextPart *));
	const TextPart *repeated = NULL;
	const TextPart *original = NULL;

	if (sorted == NULL)
		return status_out_of_memory(&request->status, count * sizeof(TextPart *));
	for (size_t i = 0; i < count; i++)
		sorted[i] = &list->labels[i];
	qsort(sorted, count, sizeof(TextPart *), compare_labels);
	for (size_t i = 1; i < count; i++)
		if (sorted[i]->length == sorted[i - 1]->length &&
			memcmp(sorted[i]->text, sorted[i - 1]->text, sorted[i]->length) == 0 &&
			(repeated == NULL || sorted[i] < repeated))
		{
			repeated = sorted[i];
			original = sorted[i - 1];
		}
	return repeated == NULL || refuse_repeated(request, list, repeated, original);
}

bool
labels_read(Request *request, LabelList *list)
{
	const uint8_t *bytes = request->fields.bytes[WIRE_FIELD_LABELS];
	size_t		length = request->fields.length[WIRE_FIELD_LABELS];
	int			count = count_labels(request, bytes, length);
	size_t		at = 0;

	if (count < 0)
		return false;
	if (count == 0)
		return status_set(&request->status, STATUS_INVALID_ARGUMENT,
						  "there are no labels to choose from");
	list->labels = arena_take_array(request->arena, (size_t) count, sizeof(TextPart));
	if (list->labels == NULL)
		return status_out_of_memory(&request->status, (size_t) count * sizeof(TextPart));
	for (list->count = 0; list->count < count; list->count++)
	{
		TextPart   *label = &list->labels[list->count];
		const uint8_t *text;
		uint32_t	size;

		wire_list_next(bytes, length, &at, &text, &size);
		*label = (TextPart) {(const char *) text, size};
		if (!check_label(request, *label, list->count + 1))
			return false;
	}
	return check_repeated(request, list);
}

bool
labels_join(Request *request, const LabelList *list, TextPart *joined)
{
	size_t		length = 0;
	char	   *text;

	for (int i = 0; i < list->count; i++)
		length += list->labels[i].length + 2;
	text = arena_take(request->arena, length);
	if (text == NULL)
		return status_out_of_memory(&request->status, length);
	*joined = (TextPart) {text, 0};
	for (int i = 0; i < list->count; i++)
	{
		if (i > 0)
		{
			memcpy(text + joined->length, ", ", 2);
			joined->length += 2;
		}
		memcpy(text + joined->length, list->labels[i].text, list->labels[i].length);
		joined->length += list->labels[i].length;
	}
	return true;
}
