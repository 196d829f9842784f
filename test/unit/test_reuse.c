/*
 * test_reuse.c - encoded pictures and computed beginnings are found again by whoever may find
 * them, and give the same bits as if they had been computed anew.
 */
#include "beam_search.h"
#include "golden_cases.h"
#include "media_cache.h"

/* More different pictures than the model has places for. */
#define MANY 150

/* The first forward case with one picture. */
typedef struct Asked
{
	ForwardCases cases;
	Engine		engine;
	Picture		pictures[4];
	const int32_t *ids;
	int			count;
	RequestOptions options;
} Asked;

static Asked
open_asked(void)
{
	Asked		asked = {.cases = open_cases()};

	asked.engine = engine_open(MODEL_A, "auto", 2, 0);
	case_pictures(&asked.cases, find_case(&asked.cases, "vision_one_round"), asked.pictures);
	asked.ids = golden_values(&asked.cases.tensors, "vision_one_round", ".ids", &asked.count);
	request_options_defaults(&asked.options);
	asked.options.max_tokens = 4;
	return asked;
}

static void
close_asked(Asked *asked)
{
	engine_close(&asked->engine);
	close_cases(&asked->cases);
}

/* A question about the picture by somebody; who 0 asks without a key. */
static Generation *
ask(Asked *asked, int who)
{
	PictureSet *set = arena_take(asked->engine.arena, sizeof(PictureSet));

	set->pictures = asked->pictures;
	set->count = 1;
	set->has_key = who != 0;
	memcpy(set->key, &who, sizeof(who));
	return engine_generation(&asked->engine, asked->ids, asked->count, set, &asked->options);
}

static bool
same_bits(const Generation *a, const Generation *b)
{
	return a->count == b->count &&
		memcmp(a->tokens, b->tokens, (size_t) a->count * sizeof(int32_t)) == 0 &&
		memcmp(a->log_probabilities, b->log_probabilities, (size_t) a->count * sizeof(float)) == 0;
}

UNIT_TEST(a_second_question_encodes_nothing)
{
	Asked		asked = open_asked();
	Generation *plain = ask(&asked, 0);
	Generation *two[] = {ask(&asked, 1), ask(&asked, 1)};
	SchedulerCounters counters;

	engine_run(&asked.engine, &plain, 1, NULL);
	engine_run(&asked.engine, two, 2, &counters);
	UNIT_EQUAL_INT(counters.images_encoded, 1);
	UNIT_EQUAL_INT(counters.images_found, 1);
	UNIT_CHECK(same_bits(two[0], plain));
	UNIT_CHECK(same_bits(two[1], plain));
	close_asked(&asked);
}

UNIT_TEST(others_find_nothing)
{
	Asked		asked = open_asked();
	Generation *three[] = {ask(&asked, 1), ask(&asked, 2), ask(&asked, 0)};
	SchedulerCounters counters;

	engine_run(&asked.engine, three, 3, &counters);
	UNIT_EQUAL_INT(counters.images_encoded, 3);
	UNIT_EQUAL_INT(counters.images_found, 0);
	close_asked(&asked);
}

UNIT_TEST(more_pictures_than_places_are_all_answered)
{
	Asked		asked = open_asked();
	Generation *plain = ask(&asked, 0);
	Generation *many[MANY];
	SchedulerCounters counters;
	ModelDescription description;

	model_describe(asked.engine.model, &description);
	UNIT_CHECK(description.media_pictures < MANY);
	engine_run(&asked.engine, &plain, 1, NULL);
	for (int i = 0; i < MANY; i++)
		many[i] = ask(&asked, i + 1);
	engine_run(&asked.engine, many, MANY, &counters);
	UNIT_EQUAL_INT(counters.images_encoded, MANY);
	for (int i = 0; i < MANY; i++)
		UNIT_CHECK(same_bits(many[i], plain));
	UNIT_CHECK(media_has_room(asked.engine.model, description.media_pictures));
	close_asked(&asked);
}

/* The question again, with the last `changed` tokens of the prompt replaced, by an owner. */
static Generation *
ask_changed(Asked *asked, int who, int changed)
{
	Generation *generation = ask(asked, who);

	generation->owner = (uint64_t) who;
	for (int i = asked->count - changed; i < asked->count; i++)
		generation->prompt[i] = 100 + i % 50;
	return generation;
}

/* Run generations one after another on one scheduler: each begins when the one before is done. */
static void
run_in_turn(Asked *asked, Generation **generations, int count, SchedulerCounters *counters)
{
	Scheduler  *scheduler = scheduler_create(asked->engine.model, asked->engine.tokenizer,
											 &(SchedulerOptions) {0}, &asked->engine.status);

	for (int i = 0; i < count; i++)
	{
		generations[i]->finished = engine_finished;
		generations[i]->argument = scheduler;
		scheduler_submit(scheduler, generations[i]);
		while (scheduler_step(scheduler))
			;
	}
	scheduler_counters(scheduler, counters);
	scheduler_free(scheduler);
}

UNIT_TEST(a_beginning_is_computed_once)
{
	static const int changed[] = {0, 1, 3, 30};
	Asked		asked = open_asked();
	int			pages = model_free_pages(asked.engine.model);

	for (int i = 0; i < 4; i++)
	{
		Generation *plain = ask_changed(&asked, 0, changed[i]);
		Generation *two[] = {ask_changed(&asked, 1, 0), ask_changed(&asked, 1, changed[i])};
		SchedulerCounters counters;

		engine_run(&asked.engine, &plain, 1, NULL);
		run_in_turn(&asked, two, 2, &counters);
		UNIT_EQUAL_INT(counters.prompt_tokens_reused,
					   changed[i] == 0 ? asked.count - 1 : asked.count - changed[i]);
		UNIT_EQUAL_INT(counters.prompt_tokens + counters.prompt_tokens_reused, 2 * asked.count);
		UNIT_CHECK(same_bits(two[1], plain));
		UNIT_EQUAL_INT(model_free_pages(asked.engine.model), pages);
	}
	close_asked(&asked);
}

UNIT_TEST(a_later_mark_decides_what_can_be_shared)
{
	Asked		asked = open_asked();
	Generation *plain = ask_changed(&asked, 0, 40);
	Generation *two[] = {ask_changed(&asked, 1, 0), ask_changed(&asked, 1, 40)};
	SchedulerCounters counters;

	/* the mark is among the last 40 tokens, so the first ones attend to another picture: none */
	engine_run(&asked.engine, &plain, 1, NULL);
	run_in_turn(&asked, two, 2, &counters);
	UNIT_EQUAL_INT(counters.prompt_tokens_reused, 0);
	UNIT_CHECK(same_bits(two[1], plain));
	close_asked(&asked);
}

UNIT_TEST(others_share_no_beginning)
{
	Asked		asked = open_asked();
	Generation *three[] = {ask_changed(&asked, 1, 0), ask_changed(&asked, 2, 0),
		ask_changed(&asked, 0, 0)};
	SchedulerCounters counters;

	run_in_turn(&asked, three, 3, &counters);
	UNIT_EQUAL_INT(counters.prompt_tokens_reused, 0);
	close_asked(&asked);
}

UNIT_TEST(beams_begin_where_others_ended)
{
	Asked		asked = open_asked();
	Generation *plain;
	Generation *two[2];
	SchedulerCounters counters;

	two[0] = ask_changed(&asked, 1, 0);
	asked.options.num_beams = 3;
	plain = ask_changed(&asked, 0, 2);
	two[1] = ask_changed(&asked, 1, 2);
	engine_run(&asked.engine, &plain, 1, NULL);
	run_in_turn(&asked, two, 2, &counters);
	UNIT_EQUAL_INT(counters.prompt_tokens_reused, asked.count - 2);
	for (int i = 0; i < 3; i++)
		UNIT_CHECK(two[1]->search->finished[i].score == plain->search->finished[i].score);
	close_asked(&asked);
}

UNIT_TEST(kept_sequences_make_room_for_new_ones)
{
	Asked		asked = open_asked();
	Generation *plain = ask_changed(&asked, 0, 0);
	Generation *many[MANY];
	SchedulerCounters counters;

	asked.options.max_tokens = asked.engine.config->decoder.context - asked.count;
	engine_run(&asked.engine, &plain, 1, NULL);
	for (int i = 0; i < MANY; i++)
	{
		many[i] = ask_changed(&asked, i + 1, 0);
		many[i]->max_tokens = i % 3 == 0 ? many[i]->max_tokens : 4;
		many[i]->eos = i % 3 == 0 ? plain->tokens[3] : many[i]->eos;
	}
	engine_run(&asked.engine, many, MANY, &counters);
	for (int i = 0; i < MANY; i++)
		UNIT_CHECK(many[i]->finish == FINISH_EOS || many[i]->finish == FINISH_LENGTH);
	close_asked(&asked);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
