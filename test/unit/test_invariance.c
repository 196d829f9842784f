/*
 * test_invariance.c - an answer is a function of its request.
 *
 * The promise of backend.h, end to end: the same request gives the same bits
 *
 *	alone, and together with 15 others, with and without an adapter, wherever it stands
 *	whether its prompt is read whole, in pieces, or token by token as an answer is decoded
 *	with 1 or 2 threads
 *	whether its picture is encoded alone or beside others
 *
 * for every instruction set of the machine, in every format. Compared are log-probabilities
 * of chosen tokens and whole rows of logits, bit by bit; and, as a check of the cache itself,
 * decoding with the cache against the full forward within the tolerance of the golden data.
 */
#include "engine.h"

#define TENSOR_TOLERANCE 2e-4

#define COMPANY 16				/* requests in a batch */
#define NEW_TOKENS 24

/* A way to compute: an instruction set of the machine and a format. */
typedef struct Way
{
	const char *set;
	WeightFormat format;
	char		name[32];		/* of both, for messages */
} Way;

/* The i-th way; false past the last. */
static bool
take_way(int i, Way *way)
{
	static const WeightFormat formats[] = {WEIGHTS_F32, WEIGHTS_BF16, WEIGHTS_Q8, WEIGHTS_Q4};
	static const char *const names[] = {"f32", "bf16", "q8", "q4"};

	way->set = kernels_available(i / 4);
	way->format = formats[i % 4];
	if (way->set != NULL)
		snprintf(way->name, sizeof(way->name), "%s %s", way->set, names[i % 4]);
	return way->set != NULL;
}

#define FOR_EACH_WAY(way) for (int way_ = 0; take_way(way_, &(way)); way_++)

static Engine
open_way(const Way *way, int threads, int attend_previous)
{
	return engine_open_format(MODEL_A, way->set, threads, attend_previous, way->format);
}

/* Forward cases of the golden data whose numbers of marks and pictures agree. */
static const struct
{
	const char *name;
	int			pictures;
	const char *picture[3];
} requests[] = {
	{"two_images", 2, {"img0", "img1"}},
	{"vision_one_round", 1, {"img0"}},
	{"language_only", 0, {NULL}},
	{"long_prompt", 1, {"img1"}},
	{"three_images_interleaved", 3, {"img1", "img0", "img2"}},
	{"language_only_three_rounds", 0, {NULL}},
	{"vision_three_rounds", 1, {"img1"}},
	{"image_token_first", 1, {"img0"}},
};

#define REQUESTS ((int) (sizeof(requests) / sizeof(requests[0])))

/* The i-th request's pictures, at most 3; returns how many. */
static int
request_pictures(const GoldenFile *tensors, int i, Picture *pictures)
{
	for (int j = 0; j < requests[i].pictures; j++)
		pictures[j] = (Picture){NULL,
								golden_values(tensors, "pixels.", requests[i].picture[j], NULL)};
	return requests[i].pictures;
}

/* All logits of the i-th request, [*count, V], in steps of `chunk` tokens. */
static float *
request_forward(Engine *engine, const GoldenFile *tensors, int i, int chunk, int *count)
{
	Picture		pictures[3];
	int			picture_count = request_pictures(tensors, i, pictures);
	const int32_t *ids = golden_values(tensors, requests[i].name, ".ids", count);

	return engine_forward(engine, pictures, picture_count, NULL, ids, *count, chunk);
}

/* ---- the cache ---- */

UNIT_TEST(decoding_with_the_cache_equals_the_full_forward)
{
	GoldenFile	tensors = golden_open(MODEL_A "/forward.safetensors");
	Way			way;

	FOR_EACH_WAY(way)
		for (int mode = 0; mode < 2; mode++)
		{
			Engine		engine = open_way(&way, 2, mode);

			for (int i = 0; i < REQUESTS; i++)
			{
				int			count;
				float	   *whole = request_forward(&engine, &tensors, i, 256, &count);
				float	   *cached = request_forward(&engine, &tensors, i, 1, &count);

				if (!UNIT_NEAR_ALL(cached, whole,
								   (size_t) count * (size_t) engine.config->decoder.vocabulary,
								   TENSOR_TOLERANCE))
					printf("# %s, %s, media mode %d\n", way.name, requests[i].name, mode);
				free(whole);
				free(cached);
			}
			engine_close(&engine);
		}
	golden_close(&tensors);
}

/*
 * Generated tokens come after the prompt that a sequence was opened with; one full forward over
 * prompt and answer has to give what chose them.
 */
UNIT_TEST(an_answer_equals_the_full_forward_over_it)
{
	GoldenFile	tensors = golden_open(MODEL_A "/forward.safetensors");

	for (int mode = 0; mode < 2; mode++)
	{
		Engine		engine = engine_open(MODEL_A, "auto", 2, mode);
		size_t		vocabulary = (size_t) engine.config->decoder.vocabulary;
		Picture		pictures[3];
		PictureSet	set = {.pictures = pictures, .count = request_pictures(&tensors, 0, pictures)};
		int			count;
		const int32_t *ids = golden_values(&tensors, requests[0].name, ".ids", &count);
		int32_t		all[512];
		RequestOptions options;
		Generation *generation;
		float	   *logits;

		request_options_defaults(&options);
		options.max_tokens = NEW_TOKENS;
		generation = engine_generation(&engine, ids, count, &set, &options);
		engine_run(&engine, &generation, 1, NULL);
		UNIT_CHECK(generation->count > 1);
		for (int i = 0; i < count + generation->count; i++)
			all[i] = generation_token(generation, i);
		logits = engine_forward(&engine, pictures, set.count, NULL, all, count + generation->count,
								256);
		for (int i = 0; i < generation->count; i++)
		{
			const float *row = logits + (size_t) (count + i - 1) * vocabulary;
			int			best = -1;

			for (int token = 0; token < (int) vocabulary; token++)
				if ((token == engine.config->eos ||
					 !tokenizer_is_special(engine.tokenizer, token)) &&
					(best < 0 || row[token] > row[best]))
					best = token;
			UNIT_EQUAL_INT(generation->tokens[i], best);
		}
		free(logits);
		engine_close(&engine);
	}
	golden_close(&tensors);
}

/* ---- the same bits ---- */

UNIT_TEST(pieces_of_a_prompt_change_no_bit)
{
	static const int chunks[] = {1, 3, 7, 32, 33, 100};
	GoldenFile	tensors = golden_open(MODEL_A "/forward.safetensors");
	Way			way;

	FOR_EACH_WAY(way)
	{
		Engine		engine = open_way(&way, 2, 0);

		for (int i = 0; i < REQUESTS; i++)
		{
			int			count;
			float	   *whole = request_forward(&engine, &tensors, i, 256, &count);

			for (size_t c = 0; c < sizeof(chunks) / sizeof(chunks[0]); c++)
			{
				float	   *pieces = request_forward(&engine, &tensors, i, chunks[c], &count);

				if (memcmp(whole, pieces,
						   (size_t) count * (size_t) engine.config->decoder.vocabulary *
							   sizeof(float)) != 0)
					UNIT_FAIL("%s, %s: pieces of %d tokens change bits", way.name,
							  requests[i].name, chunks[c]);
				free(pieces);
			}
			free(whole);
		}
		engine_close(&engine);
	}
	golden_close(&tensors);
}

/* What a request's answer was: the tokens and the bits of their log-probabilities. */
typedef struct Answer
{
	int			count;
	int32_t		tokens[NEW_TOKENS];
	float		log_probabilities[NEW_TOKENS];
} Answer;

/* Requests running together, and how each is generated. */
typedef struct Company
{
	Picture		pictures[COMPANY][3];
	PictureSet	sets[COMPANY];
	RequestOptions options[COMPANY];
	Generation *generations[COMPANY];
	Answer		answers[COMPANY];
	SchedulerCounters counters;
} Company;

/* Every second request is sampled, with a seed of its own; every third one uses the adapter. */
static void
begin_request(Engine *engine, const GoldenFile *tensors, Adapter *adapter, Company *company,
			  int place, int number)
{
	int			i = number % REQUESTS;
	RequestOptions *options = &company->options[place];
	PictureSet *set = &company->sets[place];
	int			count;
	const int32_t *ids = golden_values(tensors, requests[i].name, ".ids", &count);

	request_options_defaults(options);
	options->max_tokens = NEW_TOKENS;
	options->has_seed = true;
	options->seed = number;
	options->temperature = number % 2 == 0 ? 0.0 : 1.0;
	*set = (PictureSet) {.pictures = company->pictures[place],
		.adapter = number % 3 == 0 ? adapter : NULL};
	set->count = request_pictures(tensors, i, company->pictures[place]);
	company->generations[place] = engine_generation(engine, ids, count, set->count > 0 ? set : NULL,
													options);
	company->generations[place]->adapter = set->adapter;
	company->generations[place]->eos = -1;	/* all answers are of one length */
}

/* Run requests numbers[0 .. count) together. */
static void
run_company(Engine *engine, const GoldenFile *tensors, Adapter *adapter, const int *numbers,
			int count, Company *company)
{
	memset(company, 0, sizeof(*company));
	for (int i = 0; i < count; i++)
		begin_request(engine, tensors, adapter, company, i, numbers[i]);
	engine_run(engine, company->generations, count, &company->counters);
	for (int i = 0; i < count; i++)
	{
		const Generation *generation = company->generations[i];
		Answer	   *answer = &company->answers[i];

		UNIT_CHECK(generation->finish == FINISH_LENGTH || generation->finish == FINISH_STOP);
		UNIT_CHECK(generation->count > 0 && generation->log_probabilities[0] < 0);
		answer->count = generation->count;
		memcpy(answer->tokens, generation->tokens, (size_t) answer->count * sizeof(int32_t));
		memcpy(answer->log_probabilities, generation->log_probabilities,
			   (size_t) answer->count * sizeof(float));
	}
}

static void
check_answer(const Answer *answer, const Answer *expected, const char *set, int number,
			 const char *how)
{
	if (answer->count != expected->count ||
		memcmp(answer->tokens, expected->tokens, (size_t) expected->count * sizeof(int32_t)) != 0)
		UNIT_FAIL("%s, request %d %s: other tokens", set, number, how);
	else if (memcmp(answer->log_probabilities, expected->log_probabilities,
					(size_t) expected->count * sizeof(float)) != 0)
		UNIT_FAIL("%s, request %d %s: the same tokens, other bits", set, number, how);
}

/*
 * Each request alone, then all together forwards and backwards; with the given number of threads.
 */
static void
check_company(const GoldenFile *tensors, const char *directory, const Way *way, int threads,
			  Answer *alone)
{
	Engine		engine = open_way(way, threads, 0);
	Adapter    *adapter = adapter_open(engine.model, directory, &engine.status);
	Company    *company = malloc(sizeof(Company));
	int			numbers[COMPANY];

	if (company == NULL || adapter == NULL)
		engine_bail("company", company == NULL ? NULL : &engine.status);
	for (int i = 0; i < COMPANY; i++)
	{
		run_company(&engine, tensors, adapter, &i, 1, company);
		if (threads == 1)
			alone[i] = company->answers[0];
		else
			check_answer(&company->answers[0], &alone[i], way->name, i,
						 "with another number of threads");
	}
	for (int i = 0; i < COMPANY; i++)
		numbers[i] = i;
	run_company(&engine, tensors, adapter, numbers, COMPANY, company);
	for (int i = 0; i < COMPANY; i++)
		check_answer(&company->answers[i], &alone[i], way->name, i, "in company");
	/* they did share steps: prompts are read in a few, then most steps advance most of them */
	UNIT_CHECK(company->counters.rows >= 8 * company->counters.steps);
	for (int i = 0; i < COMPANY; i++)
		numbers[i] = COMPANY - 1 - i;
	run_company(&engine, tensors, adapter, numbers, COMPANY, company);
	for (int i = 0; i < COMPANY; i++)
		check_answer(&company->answers[i], &alone[COMPANY - 1 - i], way->name, COMPANY - 1 - i,
					 "in another order");
	free(company);
	adapter_close(engine.model, adapter);
	engine_close(&engine);
}

UNIT_TEST(fifteen_others_and_threads_change_no_bit)
{
	GoldenFile	tensors = golden_open(MODEL_A "/forward.safetensors");
	char		directory[] = "/tmp/mmgpt-adapter-XXXXXX";
	Answer		alone[COMPANY];
	Way			way;

	engine_make_adapter(directory);
	FOR_EACH_WAY(way)
	{
		memset(alone, 0, sizeof(alone));
		check_company(&tensors, directory, &way, 1, alone);
		check_company(&tensors, directory, &way, 2, alone);
		check_company(&tensors, directory, &way, 3, alone);	/* more than the machine may have */
	}
	engine_remove_adapter(directory);
	golden_close(&tensors);
}

/* ---- pictures ---- */

/* Logits of the second request, whose Media was made among others or alone. */
static void
logits_with_media(Engine *engine, const GoldenFile *tensors, Media *media, float *logits)
{
	int			count;
	const int32_t *ids = golden_values(tensors, requests[1].name, ".ids", &count);
	Sequence   *sequence = sequence_open(engine->model, media, NULL, ids, count, &engine->status);
	StepItem	item = {sequence, ids, count, 64};

	if (sequence == NULL || !sequence_reserve(engine->model, sequence, count, &engine->status) ||
		!model_step(engine->model, &item, 1, &engine->status) ||
		!model_read_logits(engine->model, item.logits, logits, &engine->status))
		engine_bail("step", &engine->status);
	sequence_close(engine->model, sequence);
}

UNIT_TEST(other_pictures_beside_change_no_bit)
{
	GoldenFile	tensors = golden_open(MODEL_A "/forward.safetensors");
	Way			way;

	FOR_EACH_WAY(way)
	{
		Engine		engine = open_way(&way, 2, 0);
		size_t		size = 64 * (size_t) engine.config->decoder.vocabulary * sizeof(float);
		float	   *alone = malloc(size);
		float	   *beside = malloc(size);
		Picture		pictures[4];
		int			counts[3] = {2, 1, 1};	/* the one in question is the third picture */
		Adapter    *adapters[3] = {NULL, NULL, NULL};
		Media	   *medias[3];

		request_pictures(&tensors, 0, pictures);
		request_pictures(&tensors, 1, pictures + 2);
		request_pictures(&tensors, 3, pictures + 3);
		medias[0] = engine_encode(&engine, pictures + 2, 1, NULL);
		logits_with_media(&engine, &tensors, medias[0], alone);
		media_release(engine.model, medias[0]);
		if (!model_encode_images(engine.model, 3, counts, adapters, pictures, medias,
								 &engine.status))
			engine_bail("pictures", &engine.status);
		logits_with_media(&engine, &tensors, medias[1], beside);
		if (memcmp(alone, beside, size) != 0)
			UNIT_FAIL("%s: other pictures change bits", way.name);
		for (int i = 0; i < 3; i++)
			media_release(engine.model, medias[i]);
		free(alone);
		free(beside);
		engine_close(&engine);
	}
	golden_close(&tensors);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
