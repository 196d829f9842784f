/*
 * test_beams.c - beam search and n-gram blocking against the original's answers.
 *
 *	golden beams	every sequence and score of generation.json's beam cases
 *	options			its n-gram cases
 *	company			the same scores to the last bit alone and among others, all pages given back
 *	sampling		beams that are drawn: repeatable by seed
 */
#include "beam_search.h"
#include "golden_cases.h"

#define SCORE_TOLERANCE 1e-4
/* The original stores scores as float32; the smallest ones are multiples of this. */
#define SCORE_QUANTUM 1.5e-45

/* The options of one entry of generation.json. */
static RequestOptions
entry_options(const json_t *entry)
{
	RequestOptions options;
	const json_t *beams = json_object_get(entry, "num_beams");
	const json_t *eos = json_object_get(entry, "eos");

	request_options_defaults(&options);
	options.max_tokens = (int) json_integer_value(json_object_get(entry, "max_new_tokens"));
	options.num_beams = beams == NULL ? 1 : (int) json_integer_value(beams);
	options.eos_token_id = eos == NULL ? -1 : (int) json_integer_value(eos);
	if (json_object_get(entry, "length_penalty") != NULL)
		options.length_penalty = json_number_value(json_object_get(entry, "length_penalty"));
	options.early_stopping = json_is_true(json_object_get(entry, "early_stopping"));
	options.no_repeat_ngram_size =
		(int) json_integer_value(json_object_get(entry, "no_repeat_ngram_size"));
	return options;
}

/* What one entry asks of an engine. The pictures and options live in memory of the engine. */
static Generation *
begin_entry(const ForwardCases *cases, Engine *engine, const json_t *entry)
{
	const char *name = json_string_value(json_object_get(entry, "case"));
	RequestOptions *options = arena_take(engine->arena, sizeof(RequestOptions));
	PictureSet *set = arena_take(engine->arena, sizeof(PictureSet));
	Picture    *pictures = arena_take_array(engine->arena, 4, sizeof(Picture));
	int			count;
	const int32_t *ids = golden_values(&cases->tensors, name, ".ids", &count);
	Generation *generation;

	*options = entry_options(entry);
	set->pictures = pictures;
	set->count = case_pictures(cases, find_case(cases, name), pictures);
	generation = engine_generation(engine, ids, count, set->count > 0 ? set : NULL, options);
	generation->allow_special = true;
	return generation;
}

/* Compare one answer with a row of the original's result, which is padded with 0 behind its end. */
static bool
same_sequence(const Hypothesis *answer, const json_t *row, int32_t eos)
{
	size_t		count = json_array_size(row);
	bool		ended = answer->finish == FINISH_EOS;

	if (count < (size_t) answer->count + ended)
		return false;
	for (size_t i = 0; i < count; i++)
	{
		int32_t		expected = i < (size_t) answer->count ? answer->tokens[i] :
			i == (size_t) answer->count && ended ? eos : 0;

		if (json_integer_value(json_array_get(row, i)) != expected)
			return false;
	}
	return true;
}

static void
check_beams(const json_t *entry, const Generation *generation, int number)
{
	const json_t *sequences = json_object_get(entry, "sequences");
	const json_t *scores = json_object_get(entry, "scores");
	const BeamSearch *search = generation->search;

	if (!UNIT_EQUAL_INT(search->finished_count, json_array_size(sequences)))
		return;
	for (int i = 0; i < search->finished_count; i++)
	{
		double		score = json_number_value(json_array_get(scores, (size_t) i));
		double		size = fabs(score) > 1.0 || search->length_penalty != 1.0 ? fabs(score) : 1.0;

		if (!same_sequence(&search->finished[i], json_array_get(sequences, (size_t) i),
						   search->eos))
			UNIT_FAIL("beam case %d: answer %d has other ids", number, i);
		UNIT_NEAR(search->finished[i].score, score, SCORE_TOLERANCE * size + SCORE_QUANTUM);
	}
}

UNIT_TEST(beams_match)
{
	ForwardCases cases = open_cases();
	json_t	   *root = golden_json(MODEL_A "/generation.json");
	json_t	   *list = json_object_get(root, "beam");
	const char *set;

	UNIT_CHECK(json_array_size(list) > 0);
	FOR_EACH_INSTRUCTION_SET(set)
	{
		EnginePair	pair = open_pair(set, 2);

		for (size_t i = 0; i < json_array_size(list); i++)
		{
			const json_t *entry = json_array_get(list, i);
			Engine	   *engine = case_engine(&pair, entry);
			int			pages = model_free_pages(engine->model);
			Generation *generation = begin_entry(&cases, engine, entry);

			engine_run(engine, &generation, 1, NULL);
			check_beams(entry, generation, (int) i);
			UNIT_EQUAL_INT(model_free_pages(engine->model), pages);
		}
		close_pair(&pair);
	}
	json_decref(root);
	close_cases(&cases);
}

UNIT_TEST(no_ngram_comes_twice)
{
	ForwardCases cases = open_cases();
	json_t	   *root = golden_json(MODEL_A "/generation.json");
	json_t	   *list = json_object_get(root, "options");
	EnginePair	pair = open_pair("auto", 2);

	UNIT_CHECK(json_array_size(list) > 0);
	for (size_t i = 0; i < json_array_size(list); i++)
	{
		const json_t *entry = json_array_get(list, i);
		Generation *generation = begin_entry(&cases, &pair.modes[0], entry);
		int			count;
		int32_t    *expected = golden_ids(json_object_get(entry, "ids"), &count);

		engine_run(&pair.modes[0], &generation, 1, NULL);
		if (UNIT_EQUAL_INT(generation->count, count))
			UNIT_CHECK(memcmp(generation->tokens, expected, (size_t) count * sizeof(int32_t)) == 0);
		free(expected);
	}
	close_pair(&pair);
	json_decref(root);
	close_cases(&cases);
}

UNIT_TEST(company_changes_no_bit_of_a_score)
{
	enum {TOGETHER = 6};
	ForwardCases cases = open_cases();
	json_t	   *root = golden_json(MODEL_A "/generation.json");
	json_t	   *list = json_object_get(root, "beam");
	EnginePair	pair = open_pair("auto", 2);
	Engine	   *engine = &pair.modes[0];
	int			pages = model_free_pages(engine->model);
	Generation *alone[TOGETHER];
	Generation *company[TOGETHER];
	int			count = 0;

	for (size_t i = 0; i < json_array_size(list) && count < TOGETHER; i++)
		if (case_engine(&pair, json_array_get(list, i)) == engine)
		{
			alone[count] = begin_entry(&cases, engine, json_array_get(list, i));
			company[count] = begin_entry(&cases, engine, json_array_get(list, i));
			engine_run(engine, &alone[count++], 1, NULL);
		}
	engine_run(engine, company, count, NULL);
	for (int i = 0; i < count; i++)
		for (int j = 0; j < alone[i]->search->finished_count; j++)
			UNIT_CHECK(alone[i]->search->finished[j].score ==
					   company[i]->search->finished[j].score);
	UNIT_EQUAL_INT(model_free_pages(engine->model), pages);
	close_pair(&pair);
	json_decref(root);
	close_cases(&cases);
}

/* The best answer of a search whose continuations are drawn. */
static Generation *
draw_answer(const ForwardCases *cases, Engine *engine, int64_t seed)
{
	RequestOptions *options = arena_take(engine->arena, sizeof(RequestOptions));
	int			count;
	const int32_t *ids = golden_values(&cases->tensors, "language_only", ".ids", &count);
	Generation *generation;

	request_options_defaults(options);
	options->max_tokens = 12;
	options->num_beams = 3;
	options->temperature = 1.5;
	options->top_k = 20;
	options->has_seed = true;
	options->seed = seed;
	generation = engine_generation(engine, ids, count, NULL, options);
	engine_run(engine, &generation, 1, NULL);
	return generation;
}

UNIT_TEST(drawn_beams_repeat_by_seed)
{
	ForwardCases cases = open_cases();
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	Generation *first = draw_answer(&cases, &engine, 1);
	int			different = 0;

	for (int64_t seed = 1; seed <= 8; seed++)
	{
		Generation *again = draw_answer(&cases, &engine, seed);
		bool		same = again->count == first->count &&
			memcmp(again->tokens, first->tokens, (size_t) first->count * sizeof(int32_t)) == 0;

		UNIT_CHECK(again->finish != FINISH_FAILED);
		different += !same;
		if (seed == 1)
			UNIT_CHECK(same);
	}
	UNIT_CHECK(different > 0);
	engine_close(&engine);
	close_cases(&cases);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
