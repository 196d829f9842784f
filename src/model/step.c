/*
 * step.c - one ragged batch: any number of new tokens of any number of sequences.
 *
 * Rows of sequences with pictures come first, so that the gated blocks work on one
 * range of rows and skip the others altogether. Within the rows, everything that
 * differs from sequence to sequence is a number beside the row: its position, the slot
 * of its key, the keys it sees, its picture, its adapter.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "model_internal.h"

/* AttentionPlan.most_keys is a multiple of this. */
#define KEYS_STEP 512

typedef struct StepPlan
{
	Model	   *model;
	const StepItem *items;
	int			count;
	DecoderBatch batch;
	DecoderTensors t;
} StepPlan;

int
step_list_pages(const Model *model)
{
	return pages_for_keys(model->config.decoder.context);
}

int
step_media_pages(const Model *model)
{
	return pages_for_keys(model->options.max_images * model->config.resampler.latents);
}

static bool
has_media(const StepItem *item)
{
	return item->sequence->media != NULL;
}

/* Check an item and add its rows to the batch's numbers. */
static bool
measure_item(const Model *model, const StepItem *item, DecoderBatch *batch, Status *status)
{
	const Sequence *sequence = item->sequence;

	if (item->count < 1 || item->logits < 0 || item->logits > item->count)
		return status_set(status, STATUS_INTERNAL, "a step with %d tokens and %d logits",
						  item->count, item->logits);
	if (sequence->length + item->count > sequence->pages.count * KV_PAGE_KEYS)
		return status_set(status, STATUS_INTERNAL, "a step beyond the pages of its sequence");
	for (int i = 0; i < item->count; i++)
	{
		bool		in_prompt = sequence->length + i < sequence->prompt;

		if (item->ids[i] < 0 || item->ids[i] >= model->config.decoder.vocabulary)
			return status_set(status, STATUS_INTERNAL, "token id %d is outside of the vocabulary",
							  item->ids[i]);
		if (in_prompt ? item->ids[i] != sequence->ids[sequence->length + i]
					  : item->ids[i] == model->config.image)
			return status_set(status, STATUS_INTERNAL,
							  "a step whose tokens do not continue their sequence");
	}
	batch->rows += item->count;
	batch->media_rows += has_media(item) ? item->count : 0;
	batch->logits_rows += item->logits;
	return true;
}

static bool
measure_step(const Model *model, const StepItem *items, int count, DecoderBatch *batch,
			 Status *status)
{
	memset(batch, 0, sizeof(*batch));
	for (int i = 0; i < count; i++)
		if (!measure_item(model, &items[i], batch, status))
			return false;
	if (batch->rows < 1 || batch->rows > model->options.max_step_tokens ||
		batch->logits_rows > model->options.max_step_logits)
		return status_set(status, STATUS_INTERNAL,
						  "a step of %d tokens and %d logits, the model was opened for %d and %d",
						  batch->rows, batch->logits_rows, model->options.max_step_tokens,
						  model->options.max_step_logits);
	return true;
}

/* Calls write for every item in the order of rows: those with pictures first. */
static void
for_each_item(StepPlan *plan, int32_t *out,
			  void (*write)(StepPlan *plan, const StepItem *item, int32_t *out))
{
	for (int part = 0; part < 2; part++)
		for (int i = 0; i < plan->count; i++)
			if (has_media(&plan->items[i]) == (part == 0))
			{
				write(plan, &plan->items[i], out);
				out += plan->items[i].count;
			}
}

static void
write_ids(StepPlan *plan, const StepItem *item, int32_t *out)
{
	memcpy(out, item->ids, (size_t) item->count * sizeof(int32_t));
}

static void
write_positions(StepPlan *plan, const StepItem *item, int32_t *out)
{
	for (int i = 0; i < item->count; i++)
		out[i] = item->sequence->length + i;
}

static void
write_slots(StepPlan *plan, const StepItem *item, int32_t *out)
{
	for (int i = 0; i < item->count; i++)
		out[i] = page_list_slot(&item->sequence->pages, item->sequence->length + i);
}

/* Write one integer per row to a tensor of the device. */
static void
upload_rows(StepPlan *plan, Tensor tensor,
			void (*write)(StepPlan *plan, const StepItem *item, int32_t *out))
{
	for_each_item(plan, plan->model->staging, write);
	plan->model->backend->ops->upload(plan->model->backend, tensor.data, plan->model->staging,
									  (size_t) plan->batch.rows * sizeof(int32_t));
}

/* What row i of an item sees of its own sequence: everything up to itself. */
static void
self_span(const StepItem *item, int i, int32_t *span)
{
	span[SPAN_FIRST] = 0;
	span[SPAN_COUNT] = item->sequence->length + i + 1;
	span[SPAN_UNIFORM] = 0;
}

/* What row i of an item sees of its pictures. */
static void
media_span(const Model *model, const StepItem *item, int i, int32_t *span)
{
	const Sequence *sequence = item->sequence;

	sequence_media_span(&model->config,
						sequence_picture(model, sequence, sequence->length + i),
						sequence->media->pictures, span);
}

/* Keys of the longest sequence, or of the most pictures; rounded up, so that steps come again. */
static int
most_keys(const StepPlan *plan, bool media)
{
	int			most = 1;

	for (int i = 0; i < plan->count; i++)
	{
		const StepItem *item = &plan->items[i];
		int			keys = item->sequence->length + item->count;

		if (media)
			keys = has_media(item) ? item->sequence->media->pictures *
				plan->model->config.resampler.latents : 0;
		most = keys > most ? keys : most;
	}
	return (most + KEYS_STEP - 1) / KEYS_STEP * KEYS_STEP;
}

/*
 * Spans and page lists of self attention (media false) or cross attention. Both are
 * uploaded; lists of the items follow one another.
 */
static AttentionPlan
plan_attention(StepPlan *plan, bool media, Tensor spans, Tensor lists, int heads, int head_size)
{
	Model	   *model = plan->model;
	AttentionPlan attention = {lists, spans, heads, 1.0f / sqrtf((float) head_size),
		most_keys(plan, media)};
	int32_t    *span = model->staging;
	int32_t    *list = model->staging + (size_t) plan->batch.rows * ATTENTION_SPAN_FIELDS;
	int			rows = 0;
	int			listed = 0;

	for (int part = 0; part < (media ? 1 : 2); part++)
		for (int i = 0; i < plan->count; i++)
		{
			const StepItem *item = &plan->items[i];
			const PageList *pages = &item->sequence->pages;

			if (has_media(item) != (part == 0))
				continue;
			if (media)
				pages = &item->sequence->media->pages;
			for (int r = 0; r < item->count; r++, rows++, span += ATTENTION_SPAN_FIELDS)
			{
				if (media)
					media_span(model, item, r, span);
				else
					self_span(item, r, span);
				span[SPAN_LIST] = listed;
			}
			memcpy(list + listed, pages->pages, (size_t) pages->count * sizeof(int32_t));
			listed += pages->count;
		}
	model->backend->ops->upload(model->backend, spans.data, model->staging,
								(size_t) rows * ATTENTION_SPAN_FIELDS * sizeof(int32_t));
	model->backend->ops->upload(model->backend, lists.data, list,
								(size_t) listed * sizeof(int32_t));
	return attention;
}

/* The rows whose logits are wanted, in the order of the items. */
static void
upload_logits_index(StepPlan *plan)
{
	Model	   *model = plan->model;
	int			written = 0;
	int			media_row = 0;
	int			language_row = plan->batch.media_rows;

	for (int i = 0; i < plan->count; i++)
	{
		const StepItem *item = &plan->items[i];
		int		   *row = has_media(item) ? &media_row : &language_row;

		*row += item->count;
		for (int j = item->logits; j > 0; j--)
			model->staging[written++] = *row - j;
	}
	model->backend->ops->upload(model->backend, plan->t.logits_index.data, model->staging,
								(size_t) written * sizeof(int32_t));
}

/* Runs of rows with the same adapter. */
static void
plan_adapters(StepPlan *plan)
{
	AdapterRuns *runs = &plan->batch.adapters;
	int			row = 0;

	runs->runs = plan->model->runs;
	runs->reduced = plan->t.reduced;
	for (int part = 0; part < 2; part++)
		for (int i = 0; i < plan->count; i++)
		{
			const StepItem *item = &plan->items[i];
			AdapterRun *last = runs->count > 0 ? &runs->runs[runs->count - 1] : NULL;

			if (has_media(item) != (part == 0))
				continue;
			if (last != NULL && last->adapter == item->sequence->adapter)
				last->count += item->count;
			else
				runs->runs[runs->count++] = (AdapterRun){row, item->count, item->sequence->adapter};
			runs->any = runs->any || item->sequence->adapter != NULL;
			row += item->count;
		}
}

static void
plan_step(StepPlan *plan)
{
	Model	   *model = plan->model;
	const DecoderConfig *decoder = &model->config.decoder;
	const CrossAttentionConfig *cross = &model->config.cross_attention;

	upload_rows(plan, plan->t.ids, write_ids);
	upload_rows(plan, plan->t.positions, write_positions);
	upload_rows(plan, plan->t.slots, write_slots);
	upload_logits_index(plan);
	plan->batch.self_attention = plan_attention(plan, false, plan->t.spans, plan->t.lists,
												decoder->heads, decoder->head_size);
	if (plan->batch.media_rows > 0)
		plan->batch.cross_attention = plan_attention(
			plan, true, plan->t.media_spans, plan->t.media_lists, cross->heads, cross->head_size);
	plan_adapters(plan);
	plan->batch.cache = &model->cache;
	plan->batch.media = &model->media;
}

/* Steps of at most so many rows may be recorded: prompts hardly come twice in the same shape. */
#define RECORDED_ROWS 64

/*
 * All that the operations of a step depend on, but for what plan_step uploads; for
 * BackendOps.step_begin. Tensors of a step with these numbers always lie at the same places.
 */
typedef struct StepKey
{
	int32_t		rows;
	int32_t		media_rows;
	int32_t		logits_rows;
	int32_t		most_keys;
	int32_t		most_media_keys;
	int32_t		run_count;
	AdapterRun	runs[RECORDED_ROWS];
} StepKey;

/* Run the decoder, or the backend's record of such a step. */
static void
forward(StepPlan *plan)
{
	Model	   *model = plan->model;
	const AdapterRuns *runs = &plan->batch.adapters;
	StepKey		key = {plan->batch.rows, plan->batch.media_rows, plan->batch.logits_rows,
		plan->batch.self_attention.most_keys, plan->batch.cross_attention.most_keys,
		runs->count, {{0, 0, NULL}}};
	size_t		run_bytes = (size_t) runs->count * sizeof(AdapterRun);

	/* a tap reads what lies between the operations */
	if (plan->batch.rows > RECORDED_ROWS || model->tap != NULL)
	{
		decoder_forward(model, &plan->batch, &plan->t);
		return;
	}
	memcpy(key.runs, runs->runs, run_bytes);
	if (model->backend->ops->step_begin(model->backend, &key, offsetof(StepKey, runs) + run_bytes))
		return;
	decoder_forward(model, &plan->batch, &plan->t);
	model->backend->ops->step_end(model->backend);
}

bool
model_step(Model *model, const StepItem *items, int count, Status *status)
{
	StepPlan	plan = {.model = model, .items = items, .count = count};

	model->logits_rows = 0;
	if (!measure_step(model, items, count, &plan.batch, status))
		return false;
	model->workspace.used = 0;
	plan.t = decoder_take_tensors(&model->workspace, model, plan.batch.rows, plan.batch.media_rows,
								  plan.batch.logits_rows);
	plan_step(&plan);
	forward(&plan);
	if (!model->backend->ops->synchronize(model->backend, status))
		return false;
	for (int i = 0; i < count; i++)
		items[i].sequence->length += items[i].count;
	model->logits = plan.t.logits;
	model->logits_rows = plan.batch.logits_rows;
	return true;
}

static bool
check_rows(const Model *model, int rows, Status *status)
{
	if (rows >= 0 && rows <= model->logits_rows)
		return true;
	return status_set(status, STATUS_INTERNAL,
					  "%d rows of logits were asked for, the last step has %d", rows,
					  model->logits_rows);
}

/* What is read out of logits counts only when nothing went wrong while it was. */
static bool
end_reading(const Model *model, Status *status)
{
	return model->backend->ops->synchronize(model->backend, status);
}

bool
model_choose(Model *model, int rows, const ChoiceRule *rules, Choice *choices, Status *status)
{
	if (!check_rows(model, rows, status))
		return false;
	if (rows == 0)
		return true;
	model->backend->ops->choose(model->backend, tensor_row_range(model->logits, 0, rows), rules,
								choices);
	return end_reading(model, status);
}

bool
model_best(Model *model, int first, int rows, const ChoiceRule *rules, int count, Choice *choices,
		   Status *status)
{
	if (!check_rows(model, first + rows, status))
		return false;
	model->backend->ops->best(model->backend, tensor_row_range(model->logits, first, rows), rules,
							  count, choices);
	return end_reading(model, status);
}

bool
model_score(Model *model, const ScoreTarget *targets, int count, float *log_probabilities,
			Status *status)
{
	for (int i = 0; i < count; i++)
		if (targets[i].row < 0 || targets[i].row >= model->logits_rows || targets[i].token < 0 ||
			targets[i].token >= model->config.decoder.vocabulary ||
			(i > 0 && targets[i].row < targets[i - 1].row))
			return status_set(status, STATUS_INTERNAL, "score %d of row %d and token %d", i,
							  targets[i].row, targets[i].token);
	if (count == 0)
		return true;
	model->backend->ops->score(model->backend, model->logits, targets, count, log_probabilities);
	return end_reading(model, status);
}

bool
model_read_logits(Model *model, int rows, float *logits, Status *status)
{
	if (!check_rows(model, rows, status))
		return false;
	if (rows == 0)
		return true;
	model->backend->ops->download(model->backend, logits, model->logits.data,
								  (size_t) rows * (size_t) model->logits.columns * sizeof(float));
	return end_reading(model, status);
}
