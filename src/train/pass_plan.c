/*
 * pass_plan.c - which sequences go through the model together, and the integers that tell the
 * device where each of their rows belongs.
 *
 * Sequences are packed one after another, those with pictures first, without padding. A
 * micro step with more rows than a pass may hold is cut between sequences; as every sum of
 * gradients goes over rows in their order and continues from pass to pass, the cut changes
 * nothing.
 */
#include <math.h>
#include <string.h>

#include "trainer_internal.h"

static const StoredRow *
stored_row(const Trainer *trainer, const BatchRow *sequence)
{
	return &trainer->store.rows[sequence->row];
}

static int
row_latents(const Trainer *trainer, const StoredRow *row)
{
	return row->picture_count * trainer->model->config.resampler.latents;
}

int
pass_count_sequences(const Trainer *trainer, const BatchRow *sequences, int count)
{
	const PassLimits *limits = &trainer->limits;
	int			rows = 0;
	int			latents = 0;

	for (int i = 0; i < count; i++)
	{
		const StoredRow *row = stored_row(trainer, &sequences[i]);

		rows += row->count;
		latents += row_latents(trainer, row);
		if (i > 0 && (i == limits->sequences || rows > limits->rows || latents > limits->latents))
			return i;
	}
	return count;
}

/* Count what the sequences hold. */
static void
measure_pass(Trainer *trainer, const BatchRow *sequences, int count)
{
	Pass	   *pass = &trainer->pass;

	memset(pass, 0, sizeof(*pass));
	pass->sequences = sequences;
	pass->count = count;
	for (int i = 0; i < count; i++)
	{
		const StoredRow *row = stored_row(trainer, &sequences[i]);

		pass->rows += row->count;
		pass->labels += row->trained;
		if (sequences[i].kind != ROWS_IMAGE)
			continue;
		pass->media_sequences++;
		pass->media_rows += row->count;
		pass->latents += row_latents(trainer, row);
		pass->image_labels += row->trained;
	}
	pass->first_stage = pass->media_rows > 0 ? trainer->first_stage
											 : trainer->first_language_stage;
	for (int kind = 0; kind < ROW_KINDS; kind++)
		if (trainer->label_counts[kind] > 0)
			pass->label_weight[kind] = 1.0 / trainer->label_counts[kind] /
				trainer->options.accumulation;
}

static void
upload(Trainer *trainer, Tensor tensor, const void *values, size_t count)
{
	trainer->model->backend->ops->upload(trainer->model->backend, tensor.data, values,
										 count * sizeof(int32_t));
}

/* Ids and positions; x becomes the embeddings. */
static void
upload_tokens(Trainer *trainer)
{
	const Pass *pass = &trainer->pass;
	PassTensors *t = &trainer->tensors;
	int32_t    *ids = trainer->staging;
	int32_t    *positions = ids + pass->rows;
	int			row = 0;

	for (int i = 0; i < pass->count; i++)
	{
		const StoredRow *stored = stored_row(trainer, &pass->sequences[i]);

		memcpy(ids + row, stored->ids, (size_t) stored->count * sizeof(int32_t));
		for (int j = 0; j < stored->count; j++)
			positions[row++] = j;
	}
	upload(trainer, t->t.ids, ids, (size_t) pass->rows);
	upload(trainer, t->t.positions, positions, (size_t) pass->rows);
	trainer->model->backend->ops->embed(trainer->model->backend, t->t.x,
										trainer->model->weights.decoder.embed_tokens, t->t.ids);
}

/* The sequence's keys lie in pages of its own, page after page from `page` on. */
static int32_t
slot_of(int page, int key)
{
	return (page + key / KV_PAGE_KEYS) * KV_PAGE_KEYS + key % KV_PAGE_KEYS;
}

/* Lists of pages that follow one another. */
static void
upload_lists(Trainer *trainer, Tensor lists, int pages)
{
	for (int i = 0; i < pages; i++)
		trainer->staging[i] = i;
	upload(trainer, lists, trainer->staging, (size_t) pages);
}

static void
upload_groups(Trainer *trainer, Tensor groups, bool media)
{
	const Pass *pass = &trainer->pass;
	int			count = media ? pass->media_sequences : pass->count;
	int32_t    *group = trainer->staging;
	int			row = 0;
	int			key = 0;

	for (int i = 0; i < count; i++, group += ATTENTION_GROUP_FIELDS)
	{
		const StoredRow *stored = stored_row(trainer, &pass->sequences[i]);

		group[GROUP_FIRST_ROW] = row;
		group[GROUP_ROWS] = stored->count;
		group[GROUP_FIRST_KEY] = key;
		group[GROUP_KEYS] = media ? row_latents(trainer, stored) : stored->count;
		row += stored->count;
		key += group[GROUP_KEYS];
	}
	upload(trainer, groups, trainer->staging, (size_t) count * ATTENTION_GROUP_FIELDS);
}

/* Slots and spans of self attention: a token sees everything up to itself. */
static void
plan_self_attention(Trainer *trainer)
{
	Pass	   *pass = &trainer->pass;
	PassTensors *t = &trainer->tensors;
	const DecoderConfig *config = &trainer->model->config.decoder;
	int32_t    *slots = trainer->staging;
	int32_t    *span = slots + pass->rows;
	int			most_keys = 0;
	int			page = 0;

	for (int i = 0; i < pass->count; i++)
	{
		const StoredRow *stored = stored_row(trainer, &pass->sequences[i]);

		for (int j = 0; j < stored->count; j++, span += ATTENTION_SPAN_FIELDS)
		{
			*slots++ = slot_of(page, j);
			span[SPAN_LIST] = page;
			span[SPAN_FIRST] = 0;
			span[SPAN_COUNT] = j + 1;
			span[SPAN_UNIFORM] = 0;
		}
		most_keys = stored->count > most_keys ? stored->count : most_keys;
		page += pages_for_keys(stored->count);
	}
	upload(trainer, t->t.slots, trainer->staging, (size_t) pass->rows);
	upload(trainer, t->t.spans, trainer->staging + pass->rows,
		   (size_t) pass->rows * ATTENTION_SPAN_FIELDS);
	upload_lists(trainer, t->t.lists, page);
	upload_groups(trainer, t->groups, false);
	pass->batch.self_attention = (AttentionPlan) {t->t.lists, t->t.spans, config->heads,
		1.0f / sqrtf((float) config->head_size), most_keys};
}

/* Which latents a pass needs, in the order of its sequences, and where their keys go. */
static void
gather_latents(Trainer *trainer)
{
	const Pass *pass = &trainer->pass;
	PassTensors *t = &trainer->tensors;
	int			latents = trainer->model->config.resampler.latents;
	int32_t    *index = trainer->staging;
	int32_t    *slots = index + pass->latents;
	int			page = 0;

	for (int i = 0; i < pass->media_sequences; i++)
	{
		const StoredRow *stored = stored_row(trainer, &pass->sequences[i]);

		for (int j = 0; j < row_latents(trainer, stored); j++)
		{
			*index++ = stored->pictures[j / latents] * latents + j % latents;
			*slots++ = slot_of(page, j);
		}
		page += pages_for_keys(row_latents(trainer, stored));
	}
	upload(trainer, t->latents_index, trainer->staging, (size_t) pass->latents);
	upload(trainer, t->media_slots, trainer->staging + pass->latents, (size_t) pass->latents);
	trainer->model->backend->ops->gather(trainer->model->backend, t->latents, trainer->latents,
										 t->latents_index);
	upload_lists(trainer, t->t.media_lists, page);
}

/* Spans of cross attention: a token sees the latents of its picture. */
static void
plan_cross_attention(Trainer *trainer)
{
	Pass	   *pass = &trainer->pass;
	PassTensors *t = &trainer->tensors;
	const CrossAttentionConfig *config = &trainer->model->config.cross_attention;
	int32_t    *span = trainer->staging;
	int			most_keys = 0;
	int			page = 0;

	for (int i = 0; i < pass->media_sequences; i++)
	{
		const StoredRow *stored = stored_row(trainer, &pass->sequences[i]);

		for (int j = 0; j < stored->count; j++, span += ATTENTION_SPAN_FIELDS)
		{
			sequence_media_span(&trainer->model->config, stored->looks_at[j],
								stored->picture_count, span);
			span[SPAN_LIST] = page;
		}
		if (row_latents(trainer, stored) > most_keys)
			most_keys = row_latents(trainer, stored);
		page += pages_for_keys(row_latents(trainer, stored));
	}
	upload(trainer, t->t.media_spans, trainer->staging,
		   (size_t) pass->media_rows * ATTENTION_SPAN_FIELDS);
	upload_groups(trainer, t->media_groups, true);
	pass->batch.cross_attention = (AttentionPlan) {t->t.media_lists, t->t.media_spans,
		config->heads, 1.0f / sqrtf((float) config->head_size), most_keys};
}

/* The label behind each token counts at the token's row. */
static void
upload_labels(Trainer *trainer)
{
	const Pass *pass = &trainer->pass;
	PassTensors *t = &trainer->tensors;
	int32_t    *index = trainer->staging;
	int32_t    *targets = index + pass->labels;
	float	   *weights = trainer->host_floats;
	int			first = 0;

	for (int i = 0; i < pass->count; i++)
	{
		const StoredRow *stored = stored_row(trainer, &pass->sequences[i]);

		for (int j = 1; j < stored->count; j++)
		{
			if (stored->labels[j] < 0)
				continue;
			*index++ = first + j - 1;
			*targets++ = stored->labels[j];
			*weights++ = (float) pass->label_weight[pass->sequences[i].kind];
		}
		first += stored->count;
	}
	upload(trainer, t->label_index, trainer->staging, (size_t) pass->labels);
	upload(trainer, t->targets, trainer->staging + pass->labels, (size_t) pass->labels);
	upload(trainer, t->weights, trainer->host_floats, (size_t) pass->labels);
}

/* All rows use the adapter that is being trained. */
static void
plan_adapter(Trainer *trainer)
{
	Pass	   *pass = &trainer->pass;
	AdapterRuns *runs = &pass->batch.adapters;

	trainer->run = (AdapterRun) {0, pass->rows, trainer->parameters.adapter};
	*runs = (AdapterRuns) {&trainer->run, 1, true, trainer->tensors.t.reduced};
}

void
pass_begin(Trainer *trainer, const BatchRow *sequences, int count)
{
	Pass	   *pass = &trainer->pass;

	measure_pass(trainer, sequences, count);
	train_memory_begin_pass(trainer);
	upload_tokens(trainer);
	plan_self_attention(trainer);
	if (pass->media_rows > 0)
	{
		gather_latents(trainer);
		plan_cross_attention(trainer);
	}
	upload_labels(trainer);
	plan_adapter(trainer);
	pass->batch.rows = pass->rows;
	pass->batch.media_rows = pass->media_rows;
	pass->batch.cache = &trainer->cache;
	pass->batch.media = &trainer->media;
}
