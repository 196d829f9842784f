/*
 * test_scheduler.c - who is computed when: prompts in pieces beside running answers, turns of
 * sessions, waiting for room. Steps and tokens are counted, no time is measured.
 */
#include "engine.h"
#include "step_budget.h"

#define MILLISECOND UINT64_C(1000000)
#define CHUNK 24
#define MANY 32
#define LITTLE_ROOM 4

/* A model with a scheduler that takes pieces of a fixed size. */
typedef struct Bench
{
	Engine		engine;
	Scheduler  *scheduler;
	RequestOptions options;
	int			done;			/* generations that were finished so far */
} Bench;

static void
open_scheduler(Bench *bench, const SchedulerOptions *options)
{
	bench->scheduler = scheduler_create(bench->engine.model, bench->engine.tokenizer, options,
										&bench->engine.status);
	if (bench->scheduler == NULL)
		engine_bail("scheduler", &bench->engine.status);
	request_options_defaults(&bench->options);
	bench->done = 0;
}

static Bench
open_bench(const SchedulerOptions *options)
{
	Bench		bench = {.engine = engine_open(MODEL_A, "auto", 1, -1)};

	open_scheduler(&bench, options);
	return bench;
}

static void
close_bench(Bench *bench)
{
	while (scheduler_step(bench->scheduler))
		;
	scheduler_free(bench->scheduler);
	engine_close(&bench->engine);
}

/* A generation and when it was finished, counted among the others. */
typedef struct Asked
{
	Generation *generation;
	Bench	   *bench;
	int			place;			/* 0: not yet */
} Asked;

static void
note_finished(Generation *generation, void *argument)
{
	Asked	   *asked = argument;

	engine_finished(generation, asked->bench->scheduler);
	asked->place = ++asked->bench->done;
}

/* Submit a prompt of a session that is answered with so many tokens. */
static Asked *
submit(Bench *bench, int session, int prompt, int tokens)
{
	int32_t    *ids = arena_take_array(bench->engine.arena, (size_t) prompt, sizeof(int32_t));
	Asked	   *asked = arena_take(bench->engine.arena, sizeof(Asked));

	for (int i = 0; i < prompt; i++)
		ids[i] = 100 + (i * 7 + session * 13) % 200;
	asked->bench = bench;
	asked->generation = engine_generation(&bench->engine, ids, prompt, NULL, &bench->options);
	asked->generation->max_tokens = tokens;
	asked->generation->eos = -1;	/* never chosen */
	asked->generation->session = (uint64_t) session;
	asked->generation->finished = note_finished;
	asked->generation->argument = asked;
	scheduler_submit(bench->scheduler, asked->generation);
	return asked;
}

/* Do a step; returns the tokens of prompts in it. */
static int
step(Bench *bench)
{
	SchedulerCounters before;
	SchedulerCounters after;

	scheduler_counters(bench->scheduler, &before);
	UNIT_CHECK(scheduler_step(bench->scheduler));
	scheduler_counters(bench->scheduler, &after);
	return (int) (after.prompt_tokens - before.prompt_tokens);
}

/* Begin an answer that goes on for a while. */
static Asked *
begin_answer(Bench *bench)
{
	Asked	   *answer = submit(bench, 99, 10, 240);

	bench->options.max_tokens = 256;
	while (answer->generation->count == 0)
		step(bench);
	return answer;
}

/* ---- pieces ---- */

UNIT_TEST(an_answer_goes_on_while_a_long_prompt_is_read)
{
	Bench		bench = open_bench(&(SchedulerOptions) {.prompt_chunk = CHUNK});
	Asked	   *answer;
	Asked	   *reading;
	int			steps = 0;

	bench.options.max_tokens = 256;
	answer = begin_answer(&bench);
	reading = submit(&bench, 1, 2000, 3);
	for (; reading->generation->count == 0; steps++)
	{
		int			before = answer->generation->count;

		UNIT_CHECK(step(&bench) <= CHUNK);
		UNIT_EQUAL_INT(answer->generation->count, before + 1);
	}
	UNIT_EQUAL_INT(steps, (2000 + CHUNK - 1) / CHUNK);
	close_bench(&bench);
}

UNIT_TEST(without_running_answers_prompts_are_read_whole)
{
	Bench		bench = open_bench(&(SchedulerOptions) {.prompt_chunk = CHUNK});
	Asked	   *reading;

	reading = submit(&bench, 1, 1500, 1);
	UNIT_EQUAL_INT(step(&bench), 512);
	UNIT_EQUAL_INT(step(&bench), 512);
	UNIT_EQUAL_INT(step(&bench), 1500 - 2 * 512);
	UNIT_EQUAL_INT(reading->place, 1);
	close_bench(&bench);
}

/* What is measured decides how much is read, within its bounds. */
UNIT_TEST(a_budget_is_a_few_steps_of_answers)
{
	StepBudget	budget = {0};

	/* the first step beside answers shows what they take */
	UNIT_EQUAL_INT(budget_prompt_tokens(&budget, 512), 0);
	budget_count_step(&budget, 0, true, 8 * MILLISECOND);
	UNIT_EQUAL_INT(budget_prompt_tokens(&budget, 512), STEP_BUDGET_LEAST);
	UNIT_EQUAL_INT(budget_pictures(&budget, 4), 1);
	for (int i = 0; i < 10; i++)
	{
		int			tokens = budget_prompt_tokens(&budget, 512);

		budget_count_step(&budget, tokens, true, (8 + (uint64_t) tokens / 4) * MILLISECOND);
		budget_count_step(&budget, 0, true, 8 * MILLISECOND);
	}
	UNIT_NEAR(budget_prompt_tokens(&budget, 512), STEP_BUDGET_STEPS * 8 * 4, 8);
	UNIT_EQUAL_INT(budget_prompt_tokens(&budget, 20), 20);
	budget_count_pictures(&budget, 2, 20 * MILLISECOND);
	UNIT_EQUAL_INT(budget_pictures(&budget, 4), 2);
	budget_count_pictures(&budget, 1, 5000 * MILLISECOND);
	UNIT_EQUAL_INT(budget_pictures(&budget, 4), 1);
	/* a machine that became very slow for a moment still reads */
	budget_count_step(&budget, 100, true, 100000 * MILLISECOND);
	UNIT_EQUAL_INT(budget_prompt_tokens(&budget, 512), STEP_BUDGET_LEAST);
	/* and what answers take is looked at again now and then, whatever happens */
	for (int i = 0; i < 100 && budget_prompt_tokens(&budget, 512) > 0; i++)
		budget_count_step(&budget, 16, true, 9 * MILLISECOND);
	UNIT_EQUAL_INT(budget_prompt_tokens(&budget, 512), 0);
}

/* ---- turns ---- */

UNIT_TEST(long_prompts_of_one_session_do_not_starve_another)
{
	Bench		bench = open_bench(&(SchedulerOptions) {.prompt_chunk = 2 * STEP_BUDGET_LEAST});
	Asked	   *many[6];
	Asked	   *one;
	int			steps = 0;

	begin_answer(&bench);
	for (int i = 0; i < 6; i++)
		many[i] = submit(&bench, 1, 600, 1);
	step(&bench);
	one = submit(&bench, 2, 4 * STEP_BUDGET_LEAST, 1);
	for (; one->place == 0; steps++)
		step(&bench);
	UNIT_EQUAL_INT(steps, 4);
	for (int i = 0; i < 6; i++)
		UNIT_EQUAL_INT(many[i]->place, 0);
	close_bench(&bench);
}

/* New short prompts in every step, and a long one of another session: both get their turns. */
UNIT_TEST(newcomers_do_not_starve_a_long_prompt)
{
	Bench		bench = open_bench(&(SchedulerOptions) {.prompt_chunk = STEP_BUDGET_LEAST});
	Asked	   *one;
	int			steps = 0;

	begin_answer(&bench);
	one = submit(&bench, 2, 6 * STEP_BUDGET_LEAST, 1);
	for (; one->place == 0 && steps < 100; steps++)
	{
		submit(&bench, 1, STEP_BUDGET_LEAST, 1);
		step(&bench);
	}
	UNIT_CHECK(steps <= 2 * 6 + 1);
	close_bench(&bench);
}

UNIT_TEST(sessions_are_admitted_in_turns)
{
	Bench		bench = open_bench(&(SchedulerOptions) {.max_running = 2});
	Asked	   *many[10];
	Asked	   *one;

	for (int i = 0; i < 10; i++)
		many[i] = submit(&bench, 1, 20, 5);
	one = submit(&bench, 2, 20, 5);
	while (scheduler_step(bench.scheduler))
		;
	UNIT_CHECK(one->place <= 2);
	/* and in the order in which they came within one session; two run at once */
	for (int i = 2; i < 10; i++)
		UNIT_CHECK(many[i]->place > many[i - 2]->place);
	close_bench(&bench);
}

/* ---- pictures ---- */

UNIT_TEST(an_answer_goes_on_while_pictures_are_encoded)
{
	Bench		bench = open_bench(&(SchedulerOptions) {.prompt_chunk = CHUNK});
	GoldenFile	tensors = golden_open(MODEL_A "/forward.safetensors");
	Picture		picture = {NULL, golden_values(&tensors, "pixels.", "img0", NULL)};
	PictureSet	sets[MANY];
	Asked	   *answer = begin_answer(&bench);
	Asked	   *asked[MANY];
	SchedulerCounters before;
	SchedulerCounters after;
	int			steps = 0;

	for (int i = 0; i < MANY; i++)
	{
		sets[i] = (PictureSet) {.pictures = &picture, .count = 1};
		asked[i] = submit(&bench, 1, 20, 1);
		asked[i]->generation->pictures = &sets[i];
	}
	for (; bench.done < MANY && answer->place == 0; steps++)
	{
		int			count = answer->generation->count;

		scheduler_counters(bench.scheduler, &before);
		step(&bench);
		scheduler_counters(bench.scheduler, &after);
		UNIT_CHECK(after.images_encoded - before.images_encoded <= 4);
		UNIT_EQUAL_INT(answer->generation->count, count + 1);
	}
	UNIT_EQUAL_INT(bench.done, MANY);
	UNIT_CHECK(steps >= MANY / 4);
	golden_close(&tensors);
	close_bench(&bench);
}

/* ---- room ---- */

/*
 * A model with the least memory limit that it opens with: it holds the keys of few contexts, and
 * LITTLE_ROOM pictures.
 */
static Bench
open_small_bench(void)
{
	Bench		bench = {.engine = engine_open(MODEL_A, "auto", 1, -1)};
	ModelDescription description;
	ModelOptions options = {.attend_previous = -1, .max_step_tokens = 64,
		.max_images = LITTLE_ROOM, .media_bytes = 1};
	Model	   *model = NULL;

	model_describe(bench.engine.model, &description);
	for (options.memory_limit = description.weight_bytes; model == NULL;
		 options.memory_limit += 1 << 18)
		model = model_open(MODEL_A, bench.engine.backend, &options, &bench.engine.status);
	model_close(bench.engine.model);
	bench.engine.model = model;
	bench.engine.config = model_config(model);
	open_scheduler(&bench, &(SchedulerOptions) {0});
	return bench;
}

/* Many more than there is room for: all wait and are answered, a large one in between too. */
UNIT_TEST(those_without_room_wait_for_it)
{
	Bench		bench = open_small_bench();
	int			pages = scheduler_pages(bench.scheduler);
	int			context = bench.engine.config->decoder.context;
	int			waited = 0;
	Asked	   *asked[MANY];
	SchedulerCounters counters;

	UNIT_CHECK(pages < 2 * model_pages_for(bench.engine.model, context));
	bench.options.max_tokens = context;
	for (int i = 0; i < MANY; i++)
		asked[i] = i == MANY / 2 ? submit(&bench, i + 1, context - 30, 31)
								 : submit(&bench, i + 1, 50 + i * 13, 20 + i % 7);
	while (scheduler_step(bench.scheduler))
	{
		scheduler_counters(bench.scheduler, &counters);
		if (counters.waiting > waited)
			waited = counters.waiting;
	}
	UNIT_CHECK(waited > MANY / 4);
	for (int i = 0; i < MANY; i++)
		UNIT_EQUAL_INT(asked[i]->generation->finish, FINISH_LENGTH);
	/* it did not have to wait until all the others were gone */
	UNIT_CHECK(asked[MANY / 2]->place < MANY);
	close_bench(&bench);
}

/*
 * Encoded pictures of those who wait for pages take all room for pictures when somebody whose turn
 * comes before theirs needs some: they must go on, or nobody would.
 */
UNIT_TEST(pictures_of_those_who_wait_do_not_block_the_first)
{
	Bench		bench = open_small_bench();
	GoldenFile	tensors = golden_open(MODEL_A "/forward.safetensors");
	Picture		picture = {NULL, golden_values(&tensors, "pixels.", "img0", NULL)};
	PictureSet	sets[LITTLE_ROOM + 1];
	Asked	   *asked[LITTLE_ROOM + 1];
	Asked	   *before;
	int			context = bench.engine.config->decoder.context;
	atomic_bool gone = false;

	bench.options.max_tokens = context;
	before = submit(&bench, 1, 20, context - 20);	/* it takes the pages of all */
	before->generation->cancelled = &gone;
	/* the first one comes after the others, as its session has one running */
	for (int i = 0; i <= LITTLE_ROOM; i++)
	{
		sets[i] = (PictureSet) {.pictures = &picture, .count = 1};
		asked[i] = submit(&bench, i + 1, context - 40, 8);
		asked[i]->generation->pictures = &sets[i];
	}
	for (int i = 0; i < 4 * LITTLE_ROOM; i++)
		step(&bench);
	for (int i = 0; i <= LITTLE_ROOM; i++)
		UNIT_EQUAL_INT(sets[i].media != NULL, i > 0);
	atomic_store(&gone, true);
	for (int i = 0; i < 10000 && bench.done <= LITTLE_ROOM + 1; i++)
		scheduler_step(bench.scheduler);
	for (int i = 0; i <= LITTLE_ROOM; i++)
		UNIT_EQUAL_INT(asked[i]->generation->finish, FINISH_LENGTH);
	golden_close(&tensors);
	if (bench.done > LITTLE_ROOM + 1)
		close_bench(&bench);
}

UNIT_TEST(what_can_never_fit_fails_with_the_numbers)
{
	Bench		bench = open_small_bench();
	int			pages = scheduler_pages(bench.scheduler);
	char		expected[64];
	Asked	   *asked;

	bench.options.max_tokens = bench.engine.config->decoder.context;
	bench.options.num_beams = 4;
	asked = submit(&bench, 1, 20, 0);
	asked->generation->max_tokens = bench.engine.config->decoder.context - 20;
	while (scheduler_step(bench.scheduler))
		;
	UNIT_EQUAL_INT(asked->generation->finish, FINISH_FAILED);
	UNIT_EQUAL_INT(asked->generation->status.code, STATUS_OUT_OF_MEMORY);
	snprintf(expected, sizeof(expected), "pages and there are %d.", pages);
	UNIT_CONTAINS(asked->generation->status.detail, expected);
	UNIT_CONTAINS(asked->generation->status.hint, "mmgpt.memory_limit");
	close_bench(&bench);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
