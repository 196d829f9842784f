/*
 * scheduler.c - see scheduler.h.
 *
 * A generation is in one of two lists: waiting (in order of arrival) or running. A step
 * goes: throw out what was cancelled, admit what has room, encode pictures, form the batch,
 * compute it, and hand each generation its tokens. Whoever finishes leaves the lists
 * before its callback runs, so the callback may submit the next part of a request.
 */
#include "scheduler_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_RUNNING 64
/* Pictures that are encoded together, at most, whatever the model was opened for. */
#define MAX_ENCODED 32

/* All tokens but those that stand for no text; the end token is allowed. */
static void
mark_ordinary(Scheduler *scheduler, const ModelConfig *config)
{
	for (int32_t token = 0; token < config->decoder.vocabulary; token++)
		if (token == config->eos || !tokenizer_is_special(scheduler->tokenizer, token))
			scheduler->ordinary[token / 32] |= 1u << (token % 32);
}

static bool
take_arrays(Scheduler *scheduler, const ModelConfig *config)
{
	size_t		running = (size_t) scheduler->max_running;

	scheduler->running = calloc(running, sizeof(Generation *));
	scheduler->items = calloc(running + (size_t) scheduler->max_logits, sizeof(StepItem));
	scheduler->parts = calloc(running + (size_t) scheduler->max_logits, sizeof(StepPart));
	scheduler->ids = calloc((size_t) scheduler->max_tokens, sizeof(int32_t));
	scheduler->rules = calloc((size_t) scheduler->max_logits, sizeof(ChoiceRule));
	scheduler->choices = calloc((size_t) scheduler->max_logits, sizeof(Choice));
	scheduler->ordinary = calloc(((size_t) config->decoder.vocabulary + 31) / 32, sizeof(uint32_t));
	scheduler->scratch = arena_create();
	return scheduler->running != NULL && scheduler->items != NULL && scheduler->parts != NULL &&
		scheduler->ids != NULL && scheduler->rules != NULL && scheduler->choices != NULL &&
		scheduler->ordinary != NULL && scheduler->scratch != NULL;
}

Scheduler *
scheduler_create(Model *model, const Tokenizer *tokenizer, const SchedulerOptions *options,
				 Status *status)
{
	Scheduler  *scheduler = calloc(1, sizeof(Scheduler));

	if (scheduler == NULL)
	{
		status_out_of_memory(status, sizeof(Scheduler));
		return NULL;
	}
	scheduler->model = model;
	scheduler->tokenizer = tokenizer;
	scheduler->max_running = options->max_running > 0 ? options->max_running : DEFAULT_RUNNING;
	model_step_limits(model, &scheduler->max_tokens, &scheduler->max_logits,
					  &scheduler->max_images);
	if (scheduler->max_images > MAX_ENCODED)
		scheduler->max_images = MAX_ENCODED;
	scheduler->waiting_end = &scheduler->waiting;
	scheduler->media_cache = media_cache_create(model, status);
	scheduler->prefix_cache = prefix_cache_create(model, status);
	if (scheduler->media_cache == NULL || scheduler->prefix_cache == NULL ||
		!take_arrays(scheduler, model_config(model)))
	{
		status_out_of_memory(status, 0);
		scheduler_free(scheduler);
		return NULL;
	}
	mark_ordinary(scheduler, model_config(model));
	return scheduler;
}

void
scheduler_free(Scheduler *scheduler)
{
	if (scheduler == NULL)
		return;
	prefix_cache_free(scheduler->prefix_cache);
	media_cache_free(scheduler->media_cache);
	free(scheduler->running);
	free(scheduler->items);
	free(scheduler->parts);
	free(scheduler->ids);
	free(scheduler->rules);
	free(scheduler->choices);
	free(scheduler->ordinary);
	arena_free(scheduler->scratch);
	free(scheduler);
}

void
scheduler_submit(Scheduler *scheduler, Generation *generation)
{
	generation->next = NULL;
	*scheduler->waiting_end = generation;
	scheduler->waiting_end = &generation->next;
	scheduler->counters.waiting++;
}

void
scheduler_release_pictures(Scheduler *scheduler, PictureSet *pictures)
{
	media_cache_release(scheduler->media_cache, pictures);
}

int
scheduler_pages(const Scheduler *scheduler)
{
	ModelDescription description;

	model_describe(scheduler->model, &description);
	return description.cache_pages;
}

void
scheduler_counters(const Scheduler *scheduler, SchedulerCounters *counters)
{
	*counters = scheduler->counters;
	counters->running = scheduler->running_count;
}

/* ---- leaving ---- */

/* Pages that the generation may need beside those of its own sequence. */
static int
extra_pages(const Scheduler *scheduler, const Generation *generation)
{
	return beams_extra_pages(scheduler, generation) + scores_extra_pages(scheduler, generation);
}

static void
finish(Scheduler *scheduler, Generation *generation, Finish how)
{
	beams_close(scheduler, generation);
	scores_close(scheduler, generation);
	if (generation->started)
		scheduler->promised -= extra_pages(scheduler, generation);
	prefix_cache_keep(scheduler->prefix_cache, generation);
	generation->finish = how;
	generation->finished(generation, generation->argument);
}

static void
remove_running(Scheduler *scheduler, int i)
{
	scheduler->running[i] = scheduler->running[--scheduler->running_count];
}

void
finish_running(Scheduler *scheduler, Generation *generation, Finish how)
{
	for (int i = 0; i < scheduler->running_count; i++)
		if (scheduler->running[i] == generation)
			remove_running(scheduler, i);
	finish(scheduler, generation, how);
}

/* Take the generation behind *link out of the waiting ones. */
static Generation *
unlink_waiting(Scheduler *scheduler, Generation **link)
{
	Generation *generation = *link;

	*link = generation->next;
	if (scheduler->waiting_end == &generation->next)
		scheduler->waiting_end = link;
	scheduler->counters.waiting--;
	return generation;
}

static bool
is_cancelled(const Generation *generation)
{
	return generation->cancelled != NULL && atomic_load(generation->cancelled);
}

static void
drop_cancelled(Scheduler *scheduler)
{
	Generation **link = &scheduler->waiting;

	while (*link != NULL)
	{
		if (is_cancelled(*link))
			finish(scheduler, unlink_waiting(scheduler, link), FINISH_CANCELLED);
		else
			link = &(*link)->next;
	}
	for (int i = scheduler->running_count - 1; i >= 0; i--)
		if (i < scheduler->running_count && is_cancelled(scheduler->running[i]))
			finish_running(scheduler, scheduler->running[i], FINISH_CANCELLED);
}

/* ---- admission ---- */

int
largest_length(const Generation *generation)
{
	int			new_tokens = generation->scoring != NULL ? 1 : generation->max_tokens;

	return generation->prompt_count + new_tokens - 1;
}

/* True if the generation may start now. */
static bool
has_room(const Scheduler *scheduler, const Generation *generation)
{
	const PictureSet *pictures = generation->pictures;
	int			pages = model_pages_for(scheduler->model, largest_length(generation)) +
		extra_pages(scheduler, generation);

	if (!prefix_cache_make_room(scheduler->prefix_cache, pages + scheduler->promised))
		return false;
	return pictures == NULL || pictures->media != NULL ||
		media_cache_make_room(scheduler->media_cache, pictures->count);
}

/* A request that would not fit an empty engine must not wait for ever. */
static bool
can_ever_fit(const Scheduler *scheduler, Generation *generation)
{
	int			need = model_pages_for(scheduler->model, largest_length(generation)) +
		extra_pages(scheduler, generation);
	int			total = scheduler_pages(scheduler);
	int			tokens = largest_length(generation);

	if (need <= total)
		return true;
	if (generation->scoring != NULL)
		tokens += generation->scoring->longest;
	status_set(&generation->status, STATUS_OUT_OF_MEMORY,
			   "request of %d tokens exceeds the engine's memory for keys and values", tokens);
	status_detail(&generation->status, "It needs %d pages and there are %d.", need, total);
	return status_hint(&generation->status, "Lower max_tokens, or raise mmgpt.memory_limit.");
}

/* Finish all waiting generations that look at a picture set whose encoding failed. */
static void
fail_pictures(Scheduler *scheduler, const PictureSet *set, const Status *status)
{
	Generation **link = &scheduler->waiting;

	while (*link != NULL)
	{
		if ((*link)->pictures == set)
		{
			(*link)->status = *status;
			finish(scheduler, unlink_waiting(scheduler, link), FINISH_FAILED);
		}
		else
			link = &(*link)->next;
	}
}

static void
encode_pictures(Scheduler *scheduler, PictureSet **sets, int count)
{
	int			counts[MAX_ENCODED];
	Adapter    *adapters[MAX_ENCODED];
	Media	   *medias[MAX_ENCODED];
	Picture		pictures[MAX_ENCODED];
	int			total = 0;
	Status		status;

	for (int i = 0; i < count; i++)
	{
		counts[i] = sets[i]->count;
		adapters[i] = sets[i]->adapter;
		for (int j = 0; j < sets[i]->count; j++)
			pictures[total++] = sets[i]->pictures[j];
	}
	if (!model_encode_images(scheduler->model, count, counts, adapters, pictures, medias, &status))
	{
		for (int i = 0; i < count; i++)
			fail_pictures(scheduler, sets[i], &status);
		return;
	}
	for (int i = 0; i < count; i++)
	{
		sets[i]->media = medias[i];
		media_cache_keep(scheduler->media_cache, sets[i]);
	}
	scheduler->counters.images_encoded += (uint64_t) total;
}

/* Make the sequence of an admitted generation; on failure the generation is finished. */
static void
start(Scheduler *scheduler, Generation *generation)
{
	Media	   *media = generation->pictures == NULL ? NULL : generation->pictures->media;

	generation->sequence = sequence_open(scheduler->model, media, generation->adapter,
										 generation->prompt, generation->prompt_count,
										 &generation->status);
	if (generation->sequence != NULL)
		generation->fed = prefix_cache_adopt(scheduler->prefix_cache, generation);
	if (generation->sequence == NULL ||
		!sequence_reserve(scheduler->model, generation->sequence, largest_length(generation),
						  &generation->status))
	{
		finish(scheduler, generation, FINISH_FAILED);
		return;
	}
	scheduler->counters.prompt_tokens_reused += (uint64_t) generation->fed;
	generation->started = true;
	scheduler->promised += extra_pages(scheduler, generation);
	scheduler->running[scheduler->running_count++] = generation;
}

static bool
same_key(const PictureSet *a, const PictureSet *b)
{
	return a->has_key && b->has_key && a->adapter == b->adapter &&
		memcmp(a->key, b->key, DIGEST_SIZE) == 0;
}

/* Collect waiting generations whose pictures still have to be encoded, as many as go at once. */
static int
collect_pictures(Scheduler *scheduler, PictureSet **sets)
{
	int			count = 0;
	int			images = 0;
	int			slots = scheduler->max_running - scheduler->running_count;

	for (Generation *g = scheduler->waiting; g != NULL && slots-- > 0; g = g->next)
	{
		PictureSet *set = g->pictures;
		bool		listed = false;

		if (set == NULL || set->media != NULL)
			continue;
		if (media_cache_find(scheduler->media_cache, set))
		{
			scheduler->counters.images_found++;
			continue;
		}
		/* the same picture twice: the second request finds it in the next step */
		for (int i = 0; i < count; i++)
			listed = listed || sets[i] == set || same_key(sets[i], set);
		if (listed)
			continue;
		if (images + set->count > scheduler->max_images || count == MAX_ENCODED ||
			!media_cache_make_room(scheduler->media_cache, images + set->count))
			break;
		sets[count++] = set;
		images += set->count;
	}
	return count;
}

/* Encode one batch of pictures and start everybody who has room. */
static void
admit(Scheduler *scheduler)
{
	PictureSet *sets[MAX_ENCODED];
	int			count = collect_pictures(scheduler, sets);
	Generation **link = &scheduler->waiting;

	if (count > 0)
		encode_pictures(scheduler, sets, count);
	while (*link != NULL && scheduler->running_count < scheduler->max_running)
	{
		Generation *generation = *link;

		if (!can_ever_fit(scheduler, generation))
			finish(scheduler, unlink_waiting(scheduler, link), FINISH_FAILED);
		else if (!has_room(scheduler, generation))
			break;				/* keep the order, so that a large request is not starved */
		else if (generation->pictures != NULL && generation->pictures->media == NULL)
			link = &generation->next;	/* its turn to be encoded comes in the next step */
		else
			start(scheduler, unlink_waiting(scheduler, link));
	}
}

/* ---- the batch ---- */

/* What follows the prompt in a beam or branch, and the sequence that computes it. */
static const int32_t *
branch_ids(const Generation *generation, int branch, Sequence **sequence)
{
	const Scoring *scoring = generation->scoring;

	if (scoring == NULL)
	{
		*sequence = generation->search->beams[branch].sequence;
		return generation->search->beams[branch].tokens;
	}
	*sequence = scoring->branches[branch].sequence;
	return scoring->continuations[scoring->branches[branch].first].ids;
}

void
add_tokens(Scheduler *scheduler, Generation *generation, int branch, int first, int count,
		   int logits)
{
	Sequence   *sequence = generation->sequence;
	const int32_t *tokens = branch < 0 ? generation->tokens
									   : branch_ids(generation, branch, &sequence);
	int32_t    *ids = scheduler->ids + scheduler->token_count;
	int			n = scheduler->item_count;

	for (int i = 0; i < count; i++)
	{
		int			place = first + i - generation->prompt_count;

		ids[i] = place < 0 ? generation->prompt[first + i] : tokens[place];
	}
	scheduler->items[n] = (StepItem) {sequence, ids, count, logits};
	scheduler->parts[n] = (StepPart) {
		generation, n == 0 || scheduler->parts[n - 1].generation != generation, branch,
		scheduler->logit_count, logits
	};
	scheduler->item_count++;
	scheduler->token_count += count;
	scheduler->logit_count += logits;
}

/* Put up to room tokens of a generation into the batch. */
static void
add_item(Scheduler *scheduler, Generation *generation, int room)
{
	int			left = generation_length(generation) - generation->fed;
	int			count = left < room ? left : room;
	bool		wanted = generation->scoring == NULL || generation->scoring->after_prompt;
	int			logits = count == left && wanted ? 1 : 0;

	if (count < 1 || scheduler->logit_count + logits > scheduler->max_logits)
		return;
	add_tokens(scheduler, generation, -1, generation->fed, count, logits);
}

/* Next tokens of running answers first, then prompts and branches in turn. */
static void
form_batch(Scheduler *scheduler)
{
	int			count = scheduler->running_count;

	scheduler->item_count = 0;
	scheduler->token_count = 0;
	scheduler->logit_count = 0;
	for (int i = 0; i < count; i++)
	{
		Generation *generation = scheduler->running[(scheduler->turn + i) % count];

		if (beams_running(generation))
			beams_add(scheduler, generation);
		else if (generation_length(generation) - generation->fed == 1)
			add_item(scheduler, generation, scheduler->max_tokens - scheduler->token_count);
	}
	for (int i = 0; i < count; i++)
	{
		Generation *generation = scheduler->running[(scheduler->turn + i) % count];

		if (scores_running(generation))
			scores_add(scheduler, generation);
		else if (!beams_running(generation) &&
				 generation_length(generation) - generation->fed > 1)
			add_item(scheduler, generation, scheduler->max_tokens - scheduler->token_count);
	}
	scheduler->turn++;
}

/* Tell every generation of the step that it failed. */
static void
fail_step(Scheduler *scheduler, const Status *status)
{
	for (int i = 0; i < scheduler->item_count; i++)
	{
		if (!scheduler->parts[i].first)
			continue;
		scheduler->parts[i].generation->status = *status;
		finish_running(scheduler, scheduler->parts[i].generation, FINISH_FAILED);
	}
}

static void
count_step(Scheduler *scheduler)
{
	SchedulerCounters *counters = &scheduler->counters;

	counters->steps++;
	counters->rows += (uint64_t) scheduler->item_count;
	counters->tokens += (uint64_t) scheduler->token_count;
	for (int i = 0; i < scheduler->item_count; i++)
	{
		Generation *generation = scheduler->parts[i].generation;
		int			branch = scheduler->parts[i].branch;
		int			count = scheduler->items[i].count;
		int			prompt = generation->prompt_count - generation->fed;

		if (generation->scoring != NULL)
			prompt = count;		/* continuations too are given */
		counters->prompt_tokens += (uint64_t) (prompt < 0 ? 0 : prompt < count ? prompt : count);
		if (branch < 0)
			generation->fed += count;
		else if (generation->scoring != NULL)
			generation->scoring->branches[branch].fed += count;
		else
			generation->search->beams[branch].fed += count;
	}
}

#ifdef MMGPT_FAULTS
/* Take a tenth of a second for each step in which a slow request takes part. */
static void
slow_down(const Scheduler *scheduler)
{
	const struct timespec pause = {0, 100000000};

	for (int i = 0; i < scheduler->item_count; i++)
	{
		const Generation *generation = scheduler->parts[i].generation;

		if (generation->options != NULL && generation->options->fault == FAULT_SLOW)
		{
			nanosleep(&pause, NULL);
			return;
		}
	}
}
#endif

bool
scheduler_has_work(const Scheduler *scheduler)
{
	return scheduler->running_count > 0 || scheduler->waiting != NULL;
}

bool
scheduler_step(Scheduler *scheduler)
{
	Status		status;

	drop_cancelled(scheduler);
	admit(scheduler);
	scores_open(scheduler);
	if (scheduler->running_count == 0)
		return scheduler->waiting != NULL;
	form_batch(scheduler);
	if (scheduler->item_count == 0)
		return true;
	status_clear(&status);
	if (!model_step(scheduler->model, scheduler->items, scheduler->item_count, &status))
	{
		fail_step(scheduler, &status);
		return true;
	}
	count_step(scheduler);
#ifdef MMGPT_FAULTS
	slow_down(scheduler);
#endif
	arena_reset(scheduler->scratch);
	if (choose_all(scheduler, &status))
		deliver(scheduler);
	else
		fail_step(scheduler, &status);
	return true;
}
