/*
 * test_cuda_draw.c - tokens that the CUDA library draws from rows of logits, against sampling.h.
 *
 * Device and processor may differ only where a number falls on a border to within their rounding:
 * the random number, on that between two tokens, or top_p, on that behind the last token it leaves.
 */
#include "cuda_pair.h"
#include "sampling.h"

/* Of weights: exp in f32 of a difference in f32. */
#define BORDER 3e-6
/* One draw in so many may fall on a border. */
#define RARELY 100

enum
{
	ROWS = 16,
	MOST_TOKENS = 3001,
	MASK_WORDS = (MOST_TOKENS + 31) / 32,
	BANNED = 3
};

typedef enum Kind
{
	KIND_WIDE,
	KIND_EQUAL,
	KIND_FEW_VALUES,			/* many ties, zeros of both signs among them */
	KIND_INFINITE_AND_NAN,		/* some are minus infinity or NaN */
	KIND_PEAK,					/* one token has nearly all probability */
	KINDS
} Kind;

/* Rows with a rule each. */
typedef struct Draws
{
	Tensor		logits;
	ChoiceRule	rules[ROWS];
	uint32_t	allowed[ROWS][MASK_WORDS];
	int32_t		banned[ROWS][BANNED];
} Draws;

static int
random_below(int count)
{
	return (int) ((random_number() + 1.0) / 2.0 * count);
}

static void
fill_row(float *row, int tokens, Kind kind)
{
	for (int i = 0; i < tokens; i++)
	{
		float		value = (float) (6 * random_number());

		row[i] = kind == KIND_EQUAL ? 1.25f : kind == KIND_FEW_VALUES ? roundf(value / 2)
			: kind == KIND_PEAK && i == tokens / 2 ? 60.0f : value;
		if (kind == KIND_INFINITE_AND_NAN && i % 3 != 1)
			row[i] = i % 3 == 0 ? -INFINITY : NAN;
	}
}

/* A mask that leaves the last token alone, some tokens, or nearly all. */
static void
make_mask(Draws *draws, int row)
{
	int			tokens = draws->logits.columns;

	for (int i = 0; i < tokens; i++)
		if (i == tokens - 1 || (row % 8 == 3 && random_below(9) == 0) ||
			(row % 8 > 3 && random_below(9) > 0))
			draws->allowed[row][i / 32] |= 1u << i % 32;
	draws->rules[row].allowed = draws->allowed[row];
}

static void
make_rule(Draws *draws, int row)
{
	static const float temperatures[] = {1.0f, 0.1f, 0.7f, 2.0f, 100.0f};
	static const int top_ks[] = {0, 0, 1, 2, 5, 40, MOST_TOKENS};
	static const float top_ps[] = {1.0f, 1.0f, 0.9f, 0.5f, 0.1f, 1e-7f, 1e-30f};
	static const int leasts[] = {0, 0, 2, 3};
	ChoiceRule *rule = &draws->rules[row];

	*rule = (ChoiceRule) {.temperature = temperatures[random_below(5)],
						  .top_k = top_ks[random_below(7)],
						  .top_p = top_ps[random_below(7)],
						  .least_kept = leasts[random_below(4)],
						  .seed = (uint64_t) random_below(1000),
						  .counter = (uint64_t) random_below(1000)};
	if (row % 2 == 1)
		make_mask(draws, row);
	if (row % 3 == 1 && draws->logits.columns > BANNED)
	{
		for (int i = 0; i < BANNED; i++)
			draws->banned[row][i] = random_below(draws->logits.columns / 2);
		rule->banned = draws->banned[row];
		rule->banned_count = BANNED;
	}
}

static Draws *
make_draws(int tokens, Kind kind)
{
	Draws	   *draws = take(sizeof(Draws));

	draws->logits = random_tensor(ROWS, tokens);
	for (int i = 0; i < ROWS; i++)
	{
		fill_row(cpu_row(draws->logits, i), tokens, kind);
		make_rule(draws, i);
	}
	draws->rules[5].skipped = true;
	if (kind != KIND_INFINITE_AND_NAN)
		draws->rules[7].temperature = 0;
	return draws;
}

/* Whether a rule's random number is within BORDER of a token's share. */
static bool
falls_beside(const float *logits, int tokens, const ChoiceRule *rule, int32_t token)
{
	SamplingCandidate *candidates = take((size_t) tokens * sizeof(SamplingCandidate));
	int			count = sampling_distribution(logits, tokens, rule, candidates);
	double		random = sampling_random(rule->seed, rule->counter);
	double		before = 0;

	for (int i = 0; i < count; i++)
	{
		if (candidates[i].token == token)
			return random > before - BORDER && random < before + candidates[i].probability + BORDER;
		before += candidates[i].probability;
	}
	return false;
}

/* The same with a top_p to either side. */
static bool
is_on_border(const float *logits, int tokens, const ChoiceRule *rule, int32_t token)
{
	for (int side = -1; side <= 1; side++)
	{
		ChoiceRule	beside = *rule;

		if (rule->top_p < 1.0f)
			beside.top_p = rule->top_p * (float) (1 + side * BORDER);
		if (falls_beside(logits, tokens, &beside, token))
			return true;
	}
	return false;
}

/* Draw on both sides; returns how many tokens differ, and fails where one must not. */
static int
check_draws(Pair *pair, const Draws *draws)
{
	Choice		choices[2][ROWS];
	int			tokens = draws->logits.columns;
	int			differ = 0;

	for (int i = 0; i < ROWS; i++)
		choices[0][i] = choices[1][i] = (Choice) {-7, 0};
	pair->cpu->ops->choose(pair->cpu, draws->logits, draws->rules, choices[0]);
	pair->cuda->ops->choose(pair->cuda, to_device(pair, draws->logits), draws->rules, choices[1]);
	for (int i = 0; i < ROWS; i++)
	{
		const float *row = cpu_row(draws->logits, i);
		const ChoiceRule *rule = &draws->rules[i];
		int32_t		token = choices[1][i].token;

		if (token == choices[0][i].token)
		{
			if (isfinite(choices[0][i].log_probability))
				UNIT_NEAR(choices[1][i].log_probability, choices[0][i].log_probability, 2e-5);
			continue;
		}
		differ++;
		if (token < 0 || token >= tokens || !is_on_border(row, tokens, rule, token))
			UNIT_FAIL("row %d of %d tokens: %d instead of %d (temperature %g, top_k %d, top_p %g, "
					  "least %d)", i, tokens, (int) token, (int) choices[0][i].token,
					  (double) rule->temperature, rule->top_k, (double) rule->top_p,
					  rule->least_kept);
	}
	UNIT_EQUAL_INT(choices[1][5].token, -7);
	return differ;
}

UNIT_TEST(drawn_tokens_are_the_processors)
{
	static const int vocabularies[] = {1, 31, 203, 700, MOST_TOKENS};
	int			draws = 0;
	int			differ = 0;

	for (int i = 0; i < 5; i++)
		for (int turn = 0; turn < KINDS * (vocabularies[i] == 203 ? 3 : 1); turn++)
		{
			Pair		pair;

			if (!pair_open(&pair))
				UNIT_SKIP(CUDA_SKIPPED);
			differ += check_draws(&pair, make_draws(vocabularies[i], (Kind) (turn % KINDS)));
			UNIT_CHECK(device_is_well(&pair));
			draws += ROWS;
			pair_close(&pair);
		}
	if (differ * RARELY > draws)
		UNIT_FAIL("%d of %d draws differ", differ, draws);
}

/* A row by itself, with one rule. */
static Choice
draw_alone(Pair *pair, Tensor logits, const ChoiceRule *rule)
{
	Choice		choice = {-7, 0};

	pair->cuda->ops->choose(pair->cuda, to_device(pair, logits), rule, &choice);
	return choice;
}

UNIT_TEST(tokens_are_drawn_as_often_as_they_are_likely)
{
	enum {DRAWS = 100};
	/* e^0, e^-1, e^-1 and nothing */
	float		values[] = {-1.0f, -INFINITY, 0.0f, -1.0f};
	ChoiceRule	rules[DRAWS];
	Choice		choices[DRAWS];
	int			seen[4] = {0};
	Tensor		logits;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	logits = tensor_make(take(DRAWS * sizeof(values)), TYPE_F32, DRAWS, 4);
	for (int i = 0; i < DRAWS; i++)
	{
		memcpy(cpu_row(logits, i), values, sizeof(values));
		rules[i] = (ChoiceRule) {.temperature = 1, .top_p = 1, .seed = 3, .counter = (uint64_t) i};
	}
	pair.cuda->ops->choose(pair.cuda, to_device(&pair, logits), rules, choices);
	for (int i = 0; i < DRAWS; i++)
		seen[choices[i].token]++;
	UNIT_EQUAL_INT(seen[1], 0);
	/* 100 times 0.576 and 0.212, to within three standard deviations */
	UNIT_NEAR(seen[2], 57.6, 14.8);
	UNIT_NEAR(seen[0], 21.2, 12.3);
	pair_close(&pair);
}

UNIT_TEST(top_p_keeps_no_token_more_than_it_needs)
{
	enum {DRAWS = 40};
	ChoiceRule	rules[DRAWS];
	Choice		choices[DRAWS];
	int			seen[4] = {0};
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	for (int i = 0; i < DRAWS; i++)
		rules[i] = (ChoiceRule) {.temperature = 1, .top_p = 0.5f, .counter = (uint64_t) i};
	/* all four are equally likely, so two of them have the half */
	pair.cuda->ops->choose(pair.cuda,
						   to_device(&pair, tensor_make(take(DRAWS * sizeof(float[4])), TYPE_F32,
														DRAWS, 4)), rules, choices);
	for (int i = 0; i < DRAWS; i++)
		seen[choices[i].token]++;
	UNIT_CHECK(seen[0] > 0 && seen[1] > 0);
	UNIT_EQUAL_INT(seen[0] + seen[1], DRAWS);
	pair_close(&pair);
}

UNIT_TEST(a_token_alone_is_drawn_however_small)
{
	uint32_t	allowed[2] = {1u << 9, 0};
	ChoiceRule	rule = {.temperature = 1, .top_p = 1, .allowed = allowed};
	Tensor		logits;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	logits = random_tensor(1, 40);
	cpu_row(logits, 0)[9] = -1e30f;
	UNIT_EQUAL_INT(draw_alone(&pair, logits, &rule).token, 9);
	pair_close(&pair);
}

UNIT_TEST(infinite_logits_are_drawn_first)
{
	float		values[2][40];
	ChoiceRule	rule = {.temperature = 0.5f, .top_p = 0.9f, .seed = 1};
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	for (int i = 0; i < 40; i++)
	{
		values[0][i] = i == 37 || i == 12 ? INFINITY : (float) i;
		values[1][i] = i % 2 == 0 ? NAN : -INFINITY;
	}
	for (rule.counter = 0; rule.counter < 5; rule.counter++)
	{
		UNIT_EQUAL_INT(draw_alone(&pair, tensor_make(values[0], TYPE_F32, 1, 40), &rule).token, 12);
		UNIT_EQUAL_INT(draw_alone(&pair, tensor_make(values[1], TYPE_F32, 1, 40), &rule).token, 0);
	}
	pair_close(&pair);
}

UNIT_TEST(where_nothing_may_be_drawn_the_largest_is_taken)
{
	uint32_t	allowed[2] = {1u << 9 | 1u << 20, 0};
	uint32_t	none[2] = {0, 0};
	int32_t		banned[] = {20, 9};
	ChoiceRule	rule = {.temperature = 1, .top_p = 1, .allowed = allowed, .banned = banned,
						.banned_count = 2};
	Choice		choice;
	Tensor		logits;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	logits = random_tensor(1, 40);
	cpu_row(logits, 0)[20] = 3.0f;
	UNIT_EQUAL_INT(draw_alone(&pair, logits, &rule).token, 20);
	pair.cpu->ops->choose(pair.cpu, logits, &rule, &choice);
	UNIT_EQUAL_INT(choice.token, 20);
	rule.allowed = none;
	UNIT_EQUAL_INT(draw_alone(&pair, logits, &rule).token, 0);
	pair.cpu->ops->choose(pair.cpu, logits, &rule, &choice);
	UNIT_EQUAL_INT(choice.token, 0);
	/* and greedily: the first one, with its own log-probability */
	rule.allowed = allowed;
	rule.temperature = 0;
	pair.cpu->ops->choose(pair.cpu, logits, &rule, &choice);
	UNIT_EQUAL_INT(choice.token, 0);
	UNIT_EQUAL_INT(draw_alone(&pair, logits, &rule).token, 0);
	UNIT_NEAR(draw_alone(&pair, logits, &rule).log_probability, choice.log_probability, 1e-5);
	pair_close(&pair);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
