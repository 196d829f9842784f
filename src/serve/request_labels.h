/*
 * request_labels.h - what a picture may be classified as: the labels of a request.
 */
#ifndef MMGPT_REQUEST_LABELS_H
#define MMGPT_REQUEST_LABELS_H

#include "request.h"

/* Labels of one request, at most. */
#define REQUEST_MAX_LABELS 65536

typedef struct LabelList
{
	TextPart   *labels;			/* [count] into the request's payload; none is empty, none twice */
	int			count;			/* 1 .. REQUEST_MAX_LABELS */
} LabelList;

/*
 * Read and check the request's labels. Failures name the label, from 1:
 * STATUS_INVALID_ARGUMENT for none, an empty or blank one, or one that comes twice;
 * STATUS_PROMPT_TOO_LONG for too many, or one that certainly exceeds the context.
 */
extern bool labels_read(Request *request, LabelList *list);

/* All labels with commas between, in the request's arena. */
extern bool labels_join(Request *request, const LabelList *list, TextPart *joined);

#endif
