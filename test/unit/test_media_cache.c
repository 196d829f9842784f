/*
 * test_media_cache.c - encoded pictures are found again by whoever may find them, and give the
 * same bits as if they had been encoded anew.
 */
#include "golden_cases.h"
#include "media_cache.h"

/* More different pictures than the model has places for. */
#define MANY 150

/* The first forward case with one picture. */
typedef struct Asked
{
	ForwardCases cases;
	Engine		engine;
	Picture		picture;
	const int32_t *ids;
	int			count;
	RequestOptions options;
} Asked;

static Asked
open_asked(void)
{
	Asked		asked = {.cases = open_cases()};

	asked.engine = engine_open(MODEL_A, "auto", 2, 0);
	case_pictures(&asked.cases, find_case(&asked.cases, "vision_one_round"), &asked.picture);
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

	set->pictures = &asked->picture;
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

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
