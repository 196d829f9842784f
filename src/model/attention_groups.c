/*
 * attention_groups.c - attention plans in which each row of a group sees all keys of
 * its group: the pictures of vision encoder and resampler. Group g owns pages
 * g * n .. g * n + n - 1 of a scratch pool.
 */
#include "model_internal.h"

#include <math.h>

int
group_pages(int keys)
{
	return pages_for_keys(keys);
}

AttentionPlan
group_plan(Model *model, Tensor spans, Tensor lists, int groups, int queries, int keys, int heads,
		   int head_size)
{
	AttentionPlan plan = {lists, spans, heads, 1.0f / sqrtf((float) head_size), keys};
	int			pages = group_pages(keys);
	int32_t    *staging = model->staging;

	for (int row = 0; row < groups * queries; row++)
	{
		int32_t    *span = staging + row * ATTENTION_SPAN_FIELDS;

		span[SPAN_LIST] = row / queries * pages;
		span[SPAN_FIRST] = 0;
		span[SPAN_COUNT] = keys;
		span[SPAN_UNIFORM] = 0;
	}
	model->backend->ops->upload(model->backend, spans.data, staging,
								(size_t) (groups * queries * ATTENTION_SPAN_FIELDS) *
									sizeof(int32_t));
	for (int i = 0; i < groups * pages; i++)
		staging[i] = i;
	model->backend->ops->upload(model->backend, lists.data, staging,
								(size_t) (groups * pages) * sizeof(int32_t));
	return plan;
}

void
group_slots(Model *model, Tensor slots, int groups, int keys, int first, int count)
{
	int			pages = group_pages(keys);
	int32_t    *staging = model->staging;

	for (int i = 0; i < groups * count; i++)
		staging[i] = i / count * pages * KV_PAGE_KEYS + first + i % count;
	model->backend->ops->upload(model->backend, slots.data, staging,
								(size_t) (groups * count) * sizeof(int32_t));
}
