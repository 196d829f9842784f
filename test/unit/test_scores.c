/*
 * test_scores.c - continuations of one prompt, scored together by the scheduler.
 *
 *	by hand		sums equal those of log-softmax over the logits of a full forward pass
 *	together	one prefill of the prompt, then all continuations in one step
 *	the same	bits alone, in company, in another order, cut into small steps, after reuse
 *	room		more continuations than steps and pages have room for; all pages come back
 */
#include "golden_cases.h"
#include "scoring.h"

#define TOLERANCE 1e-5
#define COUNT 12
#define LONGEST 9
#define MANY 150

/* Continuations of every length from 1 on, of which some begin or end alike. */
typedef struct Continuations
{
	int32_t		ids[MANY][LONGEST];
	Continuation list[MANY];
	int			count;
} Continuations;

static void
make_continuations(Continuations *made, int count, const ModelConfig *config)
{
	uint32_t	state = 12345;

	made->count = count;
	for (int i = 0; i < count; i++)
	{
		int			length = 1 + i % LONGEST;

		for (int j = 0; j < length; j++)
		{
			state = state * 1664525u + 1013904223u;
			made->ids[i][j] = i > 0 && i % 4 == 3 && j < length - 2
				? made->ids[i - 1][j] : 3 + (int32_t) (state >> 8) % 500;
		}
		if (i % 3 == 0)
			made->ids[i][length - 1] = config->eos;
		made->list[i] = (Continuation) {.ids = made->ids[i], .count = length, .scored = length};
	}
}

/* A generation that scores continuations behind a prompt. */
static Generation *
begin_scoring_ids(Engine *engine, const int32_t *ids, int count, PictureSet *set,
				  Continuations *made)
{
	Scoring    *scoring = arena_take(engine->arena, sizeof(Scoring));
	RequestOptions *options = arena_take(engine->arena, sizeof(RequestOptions));
	Generation *generation;

	request_options_defaults(options);
	generation = engine_generation(engine, ids, count, set, options);
	if (!scoring_begin(scoring, made->list, made->count, engine->arena, &engine->status))
		engine_bail("scoring", &engine->status);
	generation->scoring = scoring;
	return generation;
}

/* The same behind a golden case's prompt. */
static Generation *
begin_scoring(Engine *engine, const ForwardCases *cases, const char *name, Continuations *made)
{
	PictureSet *set = arena_take(engine->arena, sizeof(PictureSet));
	Picture    *pictures = arena_take_array(engine->arena, 4, sizeof(Picture));
	int			count;
	const int32_t *ids = golden_values(&cases->tensors, name, ".ids", &count);

	set->pictures = pictures;
	set->count = case_pictures(cases, find_case(cases, name), pictures);
	return begin_scoring_ids(engine, ids, count, set->count > 0 ? set : NULL, made);
}

/* The log-probability of a token by a row of logits. */
static double
log_softmax(const float *logits, int vocabulary, int32_t token)
{
	double		largest = logits[0];
	double		sum = 0;

	for (int i = 1; i < vocabulary; i++)
		largest = logits[i] > largest ? logits[i] : largest;
	for (int i = 0; i < vocabulary; i++)
		sum += exp(logits[i] - largest);
	return logits[token] - largest - log(sum);
}

/* The sum of a continuation's scored tokens by one forward pass over prompt and continuation. */
static double
sum_by_hand(Engine *engine, const ForwardCases *cases, const char *name,
			const Continuation *continuation)
{
	int			vocabulary = engine->config->decoder.vocabulary;
	Picture		pictures[4];
	int			picture_count = case_pictures(cases, find_case(cases, name), pictures);
	int			count;
	const int32_t *ids = golden_values(&cases->tensors, name, ".ids", &count);
	int32_t    *whole = malloc((size_t) (count + continuation->count) * sizeof(int32_t));
	float	   *logits;
	double		sum = 0;

	memcpy(whole, ids, (size_t) count * sizeof(int32_t));
	memcpy(whole + count, continuation->ids, (size_t) continuation->count * sizeof(int32_t));
	count += continuation->count;
	logits = engine_forward(engine, pictures, picture_count, NULL, whole, count, 256);
	for (int i = count - continuation->scored; i < count; i++)
		sum += log_softmax(logits + (size_t) (i - 1) * (size_t) vocabulary, vocabulary, whole[i]);
	free(logits);
	free(whole);
	return sum;
}

UNIT_TEST(sums_are_those_of_the_full_forward_pass)
{
	static const char *const names[] = {"vision_one_round", "language_only", "long_prompt"};
	ForwardCases cases = open_cases();

	for (int mode = 0; mode < 2; mode++)
	{
		Engine		engine = engine_open(MODEL_A, "auto", 2, mode);

		for (int n = 0; n < 3; n++)
		{
			Continuations made;
			Generation *generation;

			make_continuations(&made, COUNT, engine.config);
			/* of some only the end counts */
			for (int i = 0; i < COUNT; i += 5)
				made.list[i].scored = (made.list[i].count + 1) / 2;
			generation = begin_scoring(&engine, &cases, names[n], &made);
			engine_run(&engine, &generation, 1, NULL);
			UNIT_EQUAL_INT(generation->finish, FINISH_SCORED);
			for (int i = 0; i < COUNT; i++)
				UNIT_NEAR(made.list[i].sum, sum_by_hand(&engine, &cases, names[n], &made.list[i]),
						  TOLERANCE);
		}
		engine_close(&engine);
	}
	close_cases(&cases);
}

/* Tokens of all branches that a scoring computes. */
static int
branch_token_count(const Scoring *scoring)
{
	int			count = 0;

	for (int i = 0; i < scoring->branch_count; i++)
		count += branch_tokens(scoring, &scoring->branches[i]);
	return count;
}

UNIT_TEST(continuations_are_computed_together)
{
	ForwardCases cases = open_cases();
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Continuations made;
	Generation *generation;
	SchedulerCounters counters;
	int			pages = model_free_pages(engine.model);

	make_continuations(&made, COUNT, engine.config);
	generation = begin_scoring(&engine, &cases, "vision_one_round", &made);
	engine_run(&engine, &generation, 1, &counters);
	UNIT_EQUAL_INT(counters.steps, 2);	/* the prompt, and all that follows it */
	UNIT_EQUAL_INT(counters.rows, 1 + generation->scoring->branch_count);
	UNIT_EQUAL_INT(counters.images_encoded, 1);
	UNIT_EQUAL_INT(counters.prompt_tokens,
				   generation->prompt_count + branch_token_count(generation->scoring));
	UNIT_EQUAL_INT(counters.tokens, counters.prompt_tokens);
	UNIT_EQUAL_INT(counters.new_tokens, 0);
	UNIT_EQUAL_INT(model_free_pages(engine.model), pages);
	engine_close(&engine);
	close_cases(&cases);
}

UNIT_TEST(those_that_differ_in_the_last_token_share_a_sequence)
{
	static const int32_t ids[][4] = {{7, 8, 9, 10}, {7, 8, 9, 11}, {7, 8, 9, 12}, {7, 8, 10, 12},
		{7}, {8}};
	ForwardCases cases = open_cases();
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Continuations made = {.count = 6};
	Generation *generation;
	SchedulerCounters counters;

	for (int i = 0; i < made.count; i++)
		made.list[i] = (Continuation) {.ids = ids[i], .count = i < 4 ? 4 : 1, .scored = 1};
	generation = begin_scoring(&engine, &cases, "vision_one_round", &made);
	UNIT_EQUAL_INT(generation->scoring->branch_count, 2);
	engine_run(&engine, &generation, 1, &counters);
	UNIT_EQUAL_INT(counters.prompt_tokens, generation->prompt_count + 6);
	for (int i = 0; i < made.count; i++)
		UNIT_NEAR(made.list[i].sum,
				  sum_by_hand(&engine, &cases, "vision_one_round", &made.list[i]), TOLERANCE);
	engine_close(&engine);
	close_cases(&cases);
}

static void
check_same(const Continuations *made, const Continuations *expected, const char *how)
{
	for (int i = 0; i < expected->count; i++)
		if (made->list[i].sum != expected->list[i].sum)
			UNIT_FAIL("continuation %d %s: %.17g, not %.17g", i, how, made->list[i].sum,
					  expected->list[i].sum);
}

UNIT_TEST(company_order_and_threads_change_no_bit)
{
	enum {TOGETHER = 5};
	static const char *const names[TOGETHER] = {"vision_one_round", "language_only",
		"vision_one_round", "long_prompt", "vision_three_rounds"};
	ForwardCases cases = open_cases();
	Continuations alone[TOGETHER];
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
		for (int threads = 1; threads <= 3; threads++)
		{
			Engine		engine = engine_open(MODEL_A, set, threads, 0);
			Continuations company[TOGETHER];
			Continuations backwards;
			Generation *generations[TOGETHER + 1];
			Generation *single;
			RequestOptions options;
			int			count;
			const int32_t *ids = golden_values(&cases.tensors, "language_only", ".ids", &count);

			for (int i = 0; i < TOGETHER; i++)
			{
				make_continuations(&company[i], COUNT, engine.config);
				if (threads == 1)
				{
					alone[i] = company[i];
					for (int j = 0; j < COUNT; j++)
						alone[i].list[j].ids = alone[i].ids[j];
					single = begin_scoring(&engine, &cases, names[i], &alone[i]);
					engine_run(&engine, &single, 1, NULL);
				}
				generations[i] = begin_scoring(&engine, &cases, names[i], &company[i]);
			}
			request_options_defaults(&options);
			generations[TOGETHER] = engine_generation(&engine, ids, count, NULL, &options);
			engine_run(&engine, generations, TOGETHER + 1, NULL);
			for (int i = 0; i < TOGETHER; i++)
				check_same(&company[i], &alone[i], "in company");
			make_continuations(&backwards, COUNT, engine.config);
			for (int i = 0; i < COUNT; i++)
				backwards.list[i] = company[0].list[COUNT - 1 - i];
			single = begin_scoring(&engine, &cases, names[0], &backwards);
			engine_run(&engine, &single, 1, NULL);
			for (int i = 0; i < COUNT; i++)
				UNIT_CHECK(backwards.list[i].sum == alone[0].list[COUNT - 1 - i].sum);
			engine_close(&engine);
		}
	close_cases(&cases);
}

/* Open the engine's model anew, for small steps and with as few pages as it takes. */
static void
reopen_small(Engine *engine)
{
	ModelOptions options = {.attend_previous = -1, .max_step_tokens = 24, .max_step_logits = 5,
							.max_images = 1};
	ModelDescription description;

	model_describe(engine->model, &description);
	model_close(engine->model);
	engine->model = NULL;
	for (options.memory_limit = description.weight_bytes; engine->model == NULL;
		 options.memory_limit += 65536)
		engine->model = model_open(MODEL_A, engine->backend, &options, &engine->status);
	engine->config = model_config(engine->model);
}

/* A prompt that leaves few pages of the smallest model, with continuations for it. */
static Generation *
begin_long_scoring(Engine *engine, Continuations *made)
{
	static int32_t ids[1600];
	const int	count = (int) (sizeof(ids) / sizeof(ids[0]));

	for (int i = 0; i < count; i++)
		ids[i] = i == 0 ? engine->config->bos : 3 + i * 7 % 500;
	make_continuations(made, MANY, engine->config);
	return begin_scoring_ids(engine, ids, count, NULL, made);
}

UNIT_TEST(small_steps_and_few_pages_change_no_bit)
{
	Engine		engine = engine_open(MODEL_A, "auto", 2, -1);
	Continuations expected;
	Continuations made[2];
	Generation *generations[2] = {begin_long_scoring(&engine, &expected)};
	SchedulerCounters counters;
	int			pages;

	engine_run(&engine, generations, 1, NULL);
	reopen_small(&engine);
	pages = model_free_pages(engine.model);
	UNIT_CHECK(pages < model_pages_for(engine.model, generations[0]->prompt_count) +
			   SCORING_MAX_OPEN);
	for (int i = 0; i < 2; i++)
		generations[i] = begin_long_scoring(&engine, &made[i]);
	engine_run(&engine, generations, 2, &counters);
	for (int i = 0; i < 2; i++)
	{
		UNIT_EQUAL_INT(generations[i]->finish, FINISH_SCORED);
		check_same(&made[i], &expected, "in small steps");
	}
	/* five rows of logits a step */
	UNIT_CHECK(counters.steps > (uint64_t) MANY);
	UNIT_EQUAL_INT(model_free_pages(engine.model), pages);
	engine_close(&engine);
}

/* Run generations one after another on one scheduler. */
static void
run_in_turn(Engine *engine, Generation **generations, int count, SchedulerCounters *counters)
{
	Scheduler  *scheduler = scheduler_create(engine->model, engine->tokenizer,
											 &(SchedulerOptions) {0}, &engine->status);

	for (int i = 0; i < count; i++)
	{
		generations[i]->finished = engine_finished;
		generations[i]->argument = scheduler;
		generations[i]->owner = 7;
		generations[i]->pictures->has_key = true;
		scheduler_submit(scheduler, generations[i]);
		while (scheduler_step(scheduler))
			;
	}
	scheduler_counters(scheduler, counters);
	scheduler_free(scheduler);
}

UNIT_TEST(a_prompt_asked_before_is_not_computed_again)
{
	ForwardCases cases = open_cases();
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Continuations first;
	Continuations again;
	Continuations ends;
	Generation *three[3];
	SchedulerCounters counters;
	int			pages = model_free_pages(engine.model);
	int			prompt;

	make_continuations(&first, COUNT, engine.config);
	make_continuations(&again, COUNT, engine.config);
	make_continuations(&ends, COUNT, engine.config);
	for (int i = 0; i < COUNT; i++)
	{
		ends.list[i] = ends.list[LONGEST - 1];
		ends.list[i].scored = 1;
	}
	three[0] = begin_scoring(&engine, &cases, "vision_one_round", &first);
	three[1] = begin_scoring(&engine, &cases, "vision_one_round", &again);
	three[2] = begin_scoring(&engine, &cases, "vision_one_round", &ends);
	prompt = three[0]->prompt_count;
	run_in_turn(&engine, three, 3, &counters);
	UNIT_EQUAL_INT(counters.images_encoded, 1);
	UNIT_EQUAL_INT(counters.images_found, 2);
	/* the second needs the logits behind the prompt, the third does not */
	UNIT_EQUAL_INT(counters.prompt_tokens_reused, prompt - 1 + prompt);
	UNIT_EQUAL_INT(counters.prompt_tokens,
				   prompt + 1 + 2 * branch_token_count(three[0]->scoring) + LONGEST - 1);
	check_same(&again, &first, "after reuse");
	UNIT_NEAR(ends.list[0].sum, sum_by_hand(&engine, &cases, "vision_one_round", &ends.list[0]),
			  TOLERANCE);
	UNIT_EQUAL_INT(model_free_pages(engine.model), pages);
	engine_close(&engine);
	close_cases(&cases);
}

UNIT_TEST(a_cancelled_scoring_gives_everything_back)
{
	ForwardCases cases = open_cases();
	Engine		engine = engine_open(MODEL_A, "auto", 2, -1);
	Continuations made;
	Generation *generation;
	Scheduler  *scheduler;
	atomic_bool cancelled = false;
	int			pages;

	reopen_small(&engine);
	pages = model_free_pages(engine.model);
	make_continuations(&made, MANY, engine.config);
	generation = begin_scoring(&engine, &cases, "vision_one_round", &made);
	scheduler = scheduler_create(engine.model, engine.tokenizer, &(SchedulerOptions) {0},
								 &engine.status);
	generation->finished = engine_finished;
	generation->argument = scheduler;
	generation->cancelled = &cancelled;
	scheduler_submit(scheduler, generation);
	while (generation->scoring->done < MANY / 4)
		scheduler_step(scheduler);
	atomic_store(&cancelled, true);
	while (scheduler_step(scheduler))
		;
	UNIT_EQUAL_INT(generation->finish, FINISH_CANCELLED);
	UNIT_CHECK(generation->scoring->done < generation->scoring->branch_count);
	scheduler_free(scheduler);
	UNIT_EQUAL_INT(model_free_pages(engine.model), pages);
	engine_close(&engine);
	close_cases(&cases);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
