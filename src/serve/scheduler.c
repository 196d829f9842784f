/*
 * scheduler.c - see scheduler.h.
 *
 * A generation is in one of two lists: waiting (in order of arrival) or running (in order of
 * admission). A step goes: throw out what was cancelled, encode pictures, admit what has room, form
 * the batch, compute it, and hand each generation its tokens. Whoever finishes leaves the lists
 * before its callback runs, so the callback may submit the next part of a request.
 */
#include "scheduler_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"

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
	/* each with logits, or one of a generation, or of a search that is read in pieces */
	size_t		items = (size_t) scheduler->max_logits + running + OPTIONS_MAX_BEAMS;

	scheduler->running = calloc(running, sizeof(Generation *));
	scheduler->claims = calloc(running, sizeof(PromptClaim));
	scheduler->items = calloc(items, sizeof(StepItem));
	scheduler->parts = calloc(items, sizeof(StepPart));
	scheduler->ids = calloc((size_t) scheduler->max_tokens, sizeof(int32_t));
	scheduler->rules = calloc((size_t) scheduler->max_logits, sizeof(ChoiceRule));
	scheduler->choices = calloc((size_t) scheduler->max_logits, sizeof(Choice));
	scheduler->ordinary = calloc(((size_t) config->decoder.vocabulary + 31) / 32, sizeof(uint32_t));
	scheduler->scratch = arena_create();
	return scheduler->running != NULL && scheduler->claims != NULL && scheduler->items != NULL &&
		scheduler->parts != NULL &&
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
	scheduler->budget.fixed = options->prompt_chunk;
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
	free(scheduler->claims);
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
	scheduler->running_count--;
	memmove(&scheduler->running[i], &scheduler->running[i + 1],
			(size_t) (scheduler->running_count - i) * sizeof(Generation *));
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

/* The same for a generation. */
static void
take_waiting(Scheduler *scheduler, const Generation *generation)
{
	Generation **link = &scheduler->waiting;

	while (*link != generation)
		link = &(*link)->next;
	unlink_waiting(scheduler, link);
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

/* True if there are pages for the generation now. */
static bool
has_room(const Scheduler *scheduler, const Generation *generation)
{
	int			pages = model_pages_for(scheduler->model, largest_length(generation)) +
		extra_pages(scheduler, generation);

	return prefix_cache_make_room(scheduler->prefix_cache, pages + scheduler->promised);
}

/*
 * Whether the generation's picture still has to be encoded. Those behind it go on meanwhile: they
 * may hold the room that it waits for, as the order can change while they wait for pages.
 */
static bool
lacks_picture(const Generation *generation)
{
	return generation->pictures != NULL && generation->pictures->media == NULL;
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

/* False where waiting generations were finished, as it failed. */
static bool
encode_pictures(Scheduler *scheduler, PictureSet **sets, int count)
{
	uint64_t	begin_ns = clock_now_ns();
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
		return false;
	}
	budget_count_pictures(&scheduler->budget, total, clock_now_ns() - begin_ns);
	for (int i = 0; i < count; i++)
	{
		sets[i]->media = medias[i];
		media_cache_keep(scheduler->media_cache, sets[i]);
	}
	scheduler->counters.images_encoded += (uint64_t) total;
	return true;
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
	generation->last_share = scheduler->counters.steps;
	scheduler->promised += extra_pages(scheduler, generation);
	scheduler->running[scheduler->running_count++] = generation;
}

static bool
same_key(const PictureSet *a, const PictureSet *b)
{
	return a->has_key && b->has_key && a->adapter == b->adapter &&
		memcmp(a->key, b->key, DIGEST_SIZE) == 0;
}

/* Whether the picture set is among the listed ones, or one with the same key is. */
static bool
is_listed(PictureSet *const *sets, int count, const PictureSet *set)
{
	for (int i = 0; i < count; i++)
		if (sets[i] == set || same_key(sets[i], set))
			return true;
	return false;
}

/* Pictures that may be encoded at once: all that go, or what running answers can wait for. */
static int
most_pictures(const Scheduler *scheduler)
{
	for (int i = 0; i < scheduler->running_count; i++)
		if (is_answering(scheduler->running[i]))
			return budget_pictures(&scheduler->budget, scheduler->max_images);
	return scheduler->max_images;
}

/* Collect pictures of waiting generations that still have to be encoded, as many as go at once. */
static int
collect_pictures(Scheduler *scheduler, Generation **order, int waiting, PictureSet **sets)
{
	int			count = 0;
	int			images = 0;
	int			most = most_pictures(scheduler);
	int			slots = scheduler->max_running - scheduler->running_count;

	for (int i = 0; i < waiting && i < slots; i++)
	{
		PictureSet *set = order[i]->pictures;

		if (set == NULL || set->media != NULL)
			continue;
		if (media_cache_find(scheduler->media_cache, set))
		{
			scheduler->counters.images_found++;
			continue;
		}
		/* the same picture twice: the second request finds it in the next step */
		if (is_listed(sets, count, set))
			continue;
		if ((count > 0 && images + set->count > most) || count == MAX_ENCODED ||
			images + set->count > scheduler->max_images ||
			!media_cache_make_room(scheduler->media_cache, images + set->count))
			break;
		sets[count++] = set;
		images += set->count;
	}
	return count;
}

/* ---- whose turn it is ---- */

/* How many of its session are running or came before it and wait. */
static int
count_ahead(const Scheduler *scheduler, const Generation *generation)
{
	int			ahead = 0;

	for (int i = 0; i < scheduler->running_count; i++)
		ahead += scheduler->running[i]->session == generation->session;
	for (const Generation *g = scheduler->waiting; g != generation; g = g->next)
		ahead += g->session == generation->session;
	return ahead;
}

/*
 * The waiting generations in the order in which they are admitted, *count of them: those first
 * whose session has the fewest ahead of them, then those that came first. So sessions take turns
 * however many each has sent, and nobody is passed for ever.
 */
static Generation **
order_waiting(Scheduler *scheduler, int *count)
{
	size_t		most = (size_t) scheduler->counters.waiting;
	Generation **order = arena_take_array(scheduler->scratch, most, sizeof(Generation *));
	int		   *ahead = arena_take_array(scheduler->scratch, most, sizeof(int));

	*count = 0;
	if (order == NULL || ahead == NULL)
		return NULL;
	for (Generation *g = scheduler->waiting; g != NULL; g = g->next)
	{
		int			before = count_ahead(scheduler, g);
		int			place = (*count)++;

		for (; place > 0 && ahead[place - 1] > before; place--)
		{
			order[place] = order[place - 1];
			ahead[place] = ahead[place - 1];
		}
		order[place] = g;
		ahead[place] = before;
	}
	return order;
}

/* Encode one batch of pictures and start everybody who has room. */
static void
admit(Scheduler *scheduler)
{
	PictureSet *sets[MAX_ENCODED];
	int			waiting;
	Generation **order;
	int			count;

	scheduler->encoding = false;
	if (scheduler->waiting == NULL || scheduler->running_count == scheduler->max_running)
		return;
	order = order_waiting(scheduler, &waiting);
	count = collect_pictures(scheduler, order, waiting, sets);
	scheduler->encoding = count > 0;
	if (count > 0 && !encode_pictures(scheduler, sets, count))
		return;					/* some of those in order are gone */
	for (int i = 0; i < waiting && scheduler->running_count < scheduler->max_running; i++)
	{
		Generation *generation = order[i];

		if (!can_ever_fit(scheduler, generation))
		{
			take_waiting(scheduler, generation);
			finish(scheduler, generation, FINISH_FAILED);
		}
		else if (lacks_picture(generation))
			continue;
		else if (!has_room(scheduler, generation))
			break;				/* keep the order, so that a large request is not starved */
		else
		{
			take_waiting(scheduler, generation);
			start(scheduler, generation);
		}
	}
}

/* ---- steps ---- */

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
	uint64_t	begin_ns;

	arena_reset(scheduler->scratch);
	drop_cancelled(scheduler);
	admit(scheduler);
	scores_open(scheduler);
	if (scheduler->running_count == 0)
		return scheduler->waiting != NULL;
	begin_ns = clock_now_ns();
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
	if (choose_all(scheduler, &status))
	{
		budget_count_step(&scheduler->budget, scheduler->token_count - scheduler->answer_tokens,
						  scheduler->answering, clock_now_ns() - begin_ns);
		deliver(scheduler);
	}
	else
		fail_step(scheduler, &status);
	return true;
}
