/*
 * test_beams.c - beam search and n-gram blocking against the original's answers.
 *
 *	golden beams	every sequence and score of generation.json's beam cases; those read anew in steps
 *					that are smaller than they are
 *	options			its n-gram cases
 *	company			the same scores to the last bit alone and among others, all pages given back
 *	sampling		beams that are drawn: repeatable by seed
 *	stops			a beam ends where its text holds a stop string
 *	logprobs		of each token, those of the full forward pass
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

/*
 * A beam that generates <image> is read anew, as what it sees changes: here with more tokens than a
 * step takes.
 */
UNIT_TEST(beams_are_read_anew_in_pieces)
{
	ForwardCases cases = open_cases();
	json_t	   *root = golden_json(MODEL_A "/generation.json");
	json_t	   *list = json_object_get(root, "beam");
	ModelOptions options = {.weights = WEIGHTS_F32, .max_step_tokens = 16, .max_step_logits = 16,
							.max_images = 4};
	CpuOptions	cpu = {0};
	Status		status;
	Engine		engine = engine_open_with(MODEL_A, backend_open_cpu(&cpu, &status), &options);
	int			mark = engine.config->image;
	int			found = 0;

	for (size_t i = 0; i < json_array_size(list); i++)
	{
		const json_t *entry = json_array_get(list, i);
		const json_t *best = json_array_get(json_object_get(entry, "sequences"), 0);
		Generation *generation;
		bool		marked = false;

		for (size_t j = 0; j < json_array_size(best); j++)
			marked = marked || json_integer_value(json_array_get(best, j)) == mark;
		if (!marked || json_is_true(json_object_get(entry, "attend_previous")))
			continue;
		generation = begin_entry(&cases, &engine, entry);
		engine_run(&engine, &generation, 1, NULL);
		check_beams(entry, generation, (int) i);
		found++;
	}
	UNIT_CHECK(found > 0);
	json_decref(root);
	engine_close(&engine);
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

/* ---- stops ---- */

/* A search of two beams behind a prompt of three tokens, whose end token is 2. */
static BeamSearch
begin_search(Arena *arena)
{
	RequestOptions options;
	BeamSearch	search;
	Status		status;

	request_options_defaults(&options);
	options.num_beams = 2;
	UNIT_CHECK(beam_search_begin(&search, &options, 3, 10, 2, arena, &status));
	return search;
}

UNIT_TEST(a_stop_finishes_its_beam)
{
	const BeamCandidate first[] = {{0, 5, -0.5, -0.5f, false}, {0, 6, -0.7, -0.7f, true},
		{0, 7, -1.0, -1.0f, false}, {0, 8, -1.2, -1.2f, false}};
	const BeamCandidate second[] = {{1, 9, -1.1, -0.1f, false}, {0, 2, -1.3, -0.8f, false},
		{0, 5, -2.0, -1.5f, true}, {1, 5, -2.5, -1.5f, false}};
	Arena	   *arena = arena_create();
	BeamSearch	search = begin_search(arena);
	Status		status;

	UNIT_CHECK(beam_search_take(&search, first, 4, &status));
	UNIT_CHECK(!search.done);
	UNIT_EQUAL_INT(search.beam_count, 2);
	UNIT_EQUAL_INT(search.beams[0].tokens[0], 5);
	UNIT_EQUAL_INT(search.beams[1].tokens[0], 7);
	/* the end token counts in no length, the token of a stop does */
	UNIT_EQUAL_INT(search.finished_count, 1);
	UNIT_EQUAL_INT(search.finished[0].finish, FINISH_STOP);
	UNIT_EQUAL_INT(search.finished[0].count, 1);
	UNIT_EQUAL_INT(search.finished[0].tokens[0], 6);
	UNIT_NEAR(search.finished[0].score, -0.7 / 4, 1e-12);
	UNIT_CHECK(beam_search_take(&search, second, 4, &status));
	/* the third best ends too, but is not among the first two */
	UNIT_EQUAL_INT(search.finished_count, 2);
	UNIT_EQUAL_INT(search.finished[1].finish, FINISH_EOS);
	UNIT_EQUAL_INT(search.finished[1].count, 1);
	UNIT_NEAR(search.finished[1].score, -1.3 / 4, 1e-12);
	UNIT_NEAR(search.finished[1].log_probabilities[1], -0.8, 1e-6);
	UNIT_CHECK(!search.done);
	UNIT_EQUAL_INT(search.beam_count, 2);
	arena_free(arena);
}

UNIT_TEST(stops_leave_fewer_beams_and_at_last_none)
{
	const BeamCandidate first[] = {{0, 5, -0.5, -0.5f, true}, {0, 6, -3.0, -3.0f, true},
		{0, 7, -4.0, -4.0f, false}, {0, 8, -5.0, -5.0f, true}};
	const BeamCandidate second[] = {{0, 9, -4.1, -0.1f, true}};
	Arena	   *arena = arena_create();
	BeamSearch	search = begin_search(arena);
	Status		status;

	search.length_penalty = 3;		/* longer answers may still be better */
	UNIT_CHECK(beam_search_take(&search, first, 4, &status));
	UNIT_EQUAL_INT(search.finished_count, 2);
	UNIT_EQUAL_INT(search.beam_count, 1);
	UNIT_EQUAL_INT(search.beams[0].tokens[0], 7);
	UNIT_CHECK(!search.done);
	UNIT_CHECK(beam_search_take(&search, second, 1, &status));
	UNIT_CHECK(search.done);
	UNIT_CHECK(beam_search_finish(&search, &status));
	UNIT_EQUAL_INT(search.finished_count, 2);
	UNIT_NEAR(search.finished[0].score, -0.5 / 64, 1e-12);
	UNIT_NEAR(search.finished[1].score, -4.1 / 125, 1e-12);
	arena_free(arena);
}

/* What the beams of a prompt that tokens follow find, each with its own options. */
static Generation *
answer_with(Engine *engine, const ForwardCases *cases, const RequestOptions *options)
{
	int			count;
	const int32_t *ids = golden_values(&cases->tensors, "language_only", ".ids", &count);
	Generation *generation = engine_generation(engine, ids, count, NULL, options);

	engine_run(engine, &generation, 1, NULL);
	return generation;
}

/* The text of tokens. */
static const char *
text_of(Engine *engine, const int32_t *tokens, int count)
{
	size_t		length;

	return tokenizer_decode(engine->tokenizer, tokens, count, engine->arena, &length,
							&engine->status);
}

UNIT_TEST(beams_end_where_a_stop_string_stands)
{
	ForwardCases cases = open_cases();
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	RequestOptions options;
	Generation *whole;
	Generation *cut;
	int			pages = model_free_pages(engine.model);
	int			stopped = 0;
	const char *stop;
	size_t		length;

	request_options_defaults(&options);
	options.max_tokens = 20;
	options.num_beams = 3;
	whole = answer_with(&engine, &cases, &options);
	/* the third token's text, which the answer has to end before */
	stop = text_of(&engine, whole->tokens + 2, 1);
	options.stops[0] = stop;
	options.stop_count = 1;
	cut = answer_with(&engine, &cases, &options);
	for (int i = 0; i < cut->search->finished_count; i++)
	{
		const Hypothesis *answer = &cut->search->finished[i];
		const char *text = text_of(&engine, answer->tokens, answer->count);
		const char *before = text_of(&engine, answer->tokens, answer->count - 1);

		UNIT_EQUAL_INT(strstr(text, stop) != NULL, answer->finish == FINISH_STOP);
		UNIT_CHECK(strstr(before, stop) == NULL);
		stopped += answer->finish == FINISH_STOP;
	}
	UNIT_CHECK(stopped > 0);
	UNIT_CHECK(strstr(generation_text(cut, engine.tokenizer, &length, &engine.status), stop) ==
			   NULL);
	UNIT_EQUAL_INT(cut->finish, cut->search->finished[0].finish);
	UNIT_EQUAL_INT(model_free_pages(engine.model), pages);
	engine_close(&engine);
	close_cases(&cases);
}

UNIT_TEST(one_beam_with_a_stop_is_the_greedy_answer)
{
	ForwardCases cases = open_cases();
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);
	RequestOptions options;
	Generation *greedy;
	Generation *beam;

	request_options_defaults(&options);
	options.max_tokens = 20;
	options.stops[0] = text_of(&engine, answer_with(&engine, &cases, &options)->tokens + 4, 1);
	options.stop_count = 1;
	greedy = answer_with(&engine, &cases, &options);
	options.num_beams = 2;
	beam = engine_generation(&engine, greedy->prompt, greedy->prompt_count, NULL, &options);
	beam->search->width = 1;
	engine_run(&engine, &beam, 1, NULL);
	UNIT_EQUAL_INT(greedy->finish, FINISH_STOP);
	UNIT_EQUAL_INT(beam->finish, FINISH_STOP);
	if (UNIT_EQUAL_INT(beam->count, greedy->count))
		UNIT_CHECK(memcmp(beam->tokens, greedy->tokens,
						  (size_t) beam->count * sizeof(int32_t)) == 0);
	engine_close(&engine);
	close_cases(&cases);
}

/* ---- log-probabilities ---- */

/* Whether a token counts in the softmax of an answer in text. */
static bool
counts(const Engine *engine, int32_t token)
{
	return token == engine->config->eos || !tokenizer_is_special(engine->tokenizer, token);
}

/* Compare the log-probabilities of an answer with those of a full forward pass over it. */
static void
check_logprobs(Engine *engine, const Generation *generation)
{
	int			vocabulary = engine->config->decoder.vocabulary;
	int			length = generation_length(generation);
	int32_t    *ids = malloc((size_t) length * sizeof(int32_t));
	float	   *logits;

	for (int i = 0; i < length; i++)
		ids[i] = generation_token(generation, i);
	logits = engine_forward(engine, NULL, 0, NULL, ids, length, 256);
	for (int i = 0; i < generation->count; i++)
	{
		const float *row = logits + (size_t) (generation->prompt_count + i - 1) *
			(size_t) vocabulary;
		double		sum = 0;

		for (int j = 0; j < vocabulary; j++)
			if (generation->allow_special || counts(engine, j))
				sum += exp(row[j] - row[generation->tokens[i]]);
		UNIT_NEAR(generation->log_probabilities[i], -log(sum), 1e-4);
	}
	free(logits);
	free(ids);
}

UNIT_TEST(logprobs_are_those_of_the_forward_pass)
{
	ForwardCases cases = open_cases();
	Engine		engine = engine_open(MODEL_A, "auto", 2, 0);

	for (int beams = 1; beams <= 4; beams += 3)
		for (int sampled = 0; sampled < 2; sampled++)
		{
			RequestOptions options;
			Generation *generation;

			request_options_defaults(&options);
			options.max_tokens = 12;
			options.num_beams = beams;
			options.temperature = sampled * 1.3;
			options.top_k = sampled * 30;
			generation = answer_with(&engine, &cases, &options);
			UNIT_CHECK(generation->count > 0);
			check_logprobs(&engine, generation);
		}
	engine_close(&engine);
	close_cases(&cases);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
