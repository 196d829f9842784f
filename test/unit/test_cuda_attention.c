/*
 * test_cuda_attention.c - attention of the CUDA library, forward and backward, and what is read out
 * of logits, against the portable kernels.
 */
#include "cuda_pair.h"

#define TOLERANCE 2e-5

/* ---- forward ---- */

enum
{
	PAGES = 14,
	LISTS = 3,
	ROWS = 21
};

/* Pages of the three lists, and keys that each holds. */
static const int32_t page_lists[] = {5, 2, 9, 0, 11, 7, 3, 1, 13, 12, 6};
static const int list_starts[] = {0, 6, 8};
static const int list_keys[] = {170, 33, 70};

typedef struct Shape
{
	int			heads;
	int			kv_heads;
	int			head_size;
} Shape;

/* A pool with keys in all lists, on both sides. */
typedef struct PoolPair
{
	KvPool		cpu;
	KvPool		cuda;
	const Shape *shape;
} PoolPair;

static PoolPair
create_pools(Pair *pair, const Shape *shape, DataType type)
{
	PoolPair	pools = {.shape = shape};
	Status		status;

	if (!pair->cpu->ops->kv_create(pair->cpu, type, 2, PAGES, shape->kv_heads, shape->head_size,
								   &pools.cpu, &status) ||
		!pair->cuda->ops->kv_create(pair->cuda, type, 2, PAGES, shape->kv_heads, shape->head_size,
									&pools.cuda, &status))
		engine_bail("pool", &status);
	for (int i = 0; i < LISTS; i++)
	{
		Tensor		keys = random_tensor(list_keys[i], shape->kv_heads * shape->head_size);
		Tensor		values = random_tensor(list_keys[i], shape->kv_heads * shape->head_size);
		Tensor		slots = integers(1, list_keys[i]);

		for (int j = 0; j < list_keys[i]; j++)
			((int32_t *) slots.data)[j] = page_lists[list_starts[i] + j / KV_PAGE_KEYS] *
				KV_PAGE_KEYS + j % KV_PAGE_KEYS;
		pair->cpu->ops->kv_write(pair->cpu, &pools.cpu, 1, keys, values, slots);
		pair->cuda->ops->kv_write(pair->cuda, &pools.cuda, 1, to_device(pair, keys),
								  to_device(pair, values), to_device(pair, slots));
	}
	return pools;
}

/* Spans of all kinds: a prompt, single tokens of other lists, nothing seen, a window, equal scores. */
static Tensor
make_spans(void)
{
	Tensor		spans = integers(ROWS, ATTENTION_SPAN_FIELDS);

	for (int r = 0; r < ROWS; r++)
	{
		int32_t    *span = (int32_t *) spans.data + r * ATTENTION_SPAN_FIELDS;
		int			list = r < 11 ? 0 : r < 14 ? 1 : r < 15 ? 0 : 2;

		span[SPAN_LIST] = list_starts[list];
		span[SPAN_FIRST] = r == 13 ? 5 : r == 19 ? 40 : 0;
		span[SPAN_COUNT] = r < 11 ? 120 + r * 5 : r == 12 ? 0 : r == 19 ? 11
			: list_keys[list] - span[SPAN_FIRST];
		span[SPAN_UNIFORM] = r == 16;
	}
	return spans;
}

static void
check_attention(Pair *pair, const PoolPair *pools, Tensor q, const AttentionPlan *plan)
{
	Tensor		y = random_tensor(q.rows, q.columns);
	Tensor		q_device = to_device(pair, q);
	Tensor		y_device = to_device(pair, y);
	AttentionPlan on_device = *plan;

	on_device.page_lists = to_device(pair, plan->page_lists);
	on_device.spans = to_device(pair, plan->spans);
	pair->cpu->ops->attention(pair->cpu, y, q, &pools->cpu, 1, plan);
	pair->cuda->ops->attention(pair->cuda, y_device, q_device, &pools->cuda, 1, &on_device);
	same_result(pair, data_type_name(pools->cpu.type), y_device, y,
				pools->cpu.type == TYPE_BF16 ? 2e-3 : TOLERANCE);
	for (int first = 0; first < q.rows; first += 5)
	{
		int			count = q.rows - first < 3 ? q.rows - first : 3;
		Tensor		alone = to_device(pair, tensor_row_range(y, first, count));
		AttentionPlan part = on_device;

		part.spans = tensor_row_range(on_device.spans, first, count);
		pair->cuda->ops->attention(pair->cuda, alone, tensor_row_range(q_device, first, count),
								   &pools->cuda, 1, &part);
		same_rows(pair, "attention", y_device, first, alone);
	}
}

UNIT_TEST(attention_matches_whatever_the_company)
{
	static const Shape shapes[] = {{4, 4, 16}, {4, 2, 21}, {2, 1, 128}, {1, 1, 150}};

	for (int i = 0; i < 4; i++)
		for (int bf16 = 0; bf16 < 2; bf16++)
		{
			Tensor		lists = tensor_make((void *) page_lists, TYPE_I32, 1, 11);
			AttentionPlan plan = {lists, {0}, shapes[i].heads,
								  1.0f / sqrtf((float) shapes[i].head_size)};
			PoolPair	pools;
			Pair		pair;

			if (!pair_open(&pair))
				UNIT_SKIP(CUDA_SKIPPED);
			plan.spans = make_spans();
			pools = create_pools(&pair, &shapes[i], bf16 ? TYPE_BF16 : TYPE_F32);
			check_attention(&pair, &pools,
							random_tensor(ROWS, shapes[i].heads * shapes[i].head_size), &plan);
			/* a copied page serves as the one it came from */
			pair.cpu->ops->kv_copy(pair.cpu, &pools.cpu, 6, 4);
			pair.cuda->ops->kv_copy(pair.cuda, &pools.cuda, 6, 4);
			check_attention(&pair, &pools,
							random_tensor(ROWS, shapes[i].heads * shapes[i].head_size), &plan);
			pair.cpu->ops->kv_destroy(pair.cpu, &pools.cpu);
			pair.cuda->ops->kv_destroy(pair.cuda, &pools.cuda);
			pair_close(&pair);
		}
}

UNIT_TEST(a_head_that_is_too_wide_is_refused)
{
	KvPool		pool;
	Status		status;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	UNIT_CHECK(!pair.cuda->ops->kv_create(pair.cuda, TYPE_F32, 1, 1, 1, 257, &pool, &status));
	UNIT_EQUAL_INT(status.code, STATUS_NOT_SUPPORTED);
	pair_close(&pair);
}

/* ---- backward ---- */

static const int32_t group_numbers[] = {
	/* first row, rows, first key, keys */
	0, 9, 0, 9,
	9, 4, 12, 140,
};

static void
check_gradients_of(Pair *pair, const Shape *shape, bool keys_too)
{
	enum {QUERIES = 14, KEYS = 152};
	int			width = shape->heads * shape->head_size;
	int			kv_width = shape->kv_heads * shape->head_size;
	AttentionPlan plan = {.spans = integers(QUERIES, ATTENTION_SPAN_FIELDS), .heads = shape->heads,
						  .scale = 0.3f};
	AttentionGradient g = {.plan = &plan,
						   .kv_heads = shape->kv_heads,
						   .head_size = shape->head_size,
						   .groups = tensor_make((void *) group_numbers, TYPE_I32, 2, 4),
						   .q = random_tensor(QUERIES, width),
						   .k = random_tensor(KEYS, kv_width),
						   .v = random_tensor(KEYS, kv_width),
						   .dy = random_tensor(QUERIES, width),
						   .dq = random_tensor(QUERIES, width),
						   .scratch = take(pair->cpu->ops->attention_backward_size(
							   pair->cpu, KEYS, shape->head_size))};
	AttentionPlan device_plan = plan;
	AttentionGradient d = g;

	if (keys_too)
	{
		g.dk = random_tensor(KEYS, kv_width);
		g.dv = random_tensor(KEYS, kv_width);
	}
	for (int r = 0; r < QUERIES; r++)
	{
		int32_t    *span = (int32_t *) plan.spans.data + r * ATTENTION_SPAN_FIELDS;

		span[SPAN_FIRST] = r == 10 ? 3 : 0;
		span[SPAN_COUNT] = r < 9 ? r + 1 : r == 11 ? 0 : 137;
		span[SPAN_UNIFORM] = r == 12;
	}
	device_plan.spans = to_device(pair, plan.spans);
	d.plan = &device_plan;
	d.groups = to_device(pair, g.groups);
	d.q = to_device(pair, g.q);
	d.k = to_device(pair, g.k);
	d.v = to_device(pair, g.v);
	d.dy = to_device(pair, g.dy);
	d.dq = to_device(pair, g.dq);
	if (keys_too)
	{
		d.dk = to_device(pair, g.dk);
		d.dv = to_device(pair, g.dv);
	}
	pair->cpu->ops->attention_backward(pair->cpu, &g);
	pair->cuda->ops->attention_backward(pair->cuda, &d);
	same_result(pair, "dq", d.dq, g.dq, TOLERANCE);
	if (keys_too)
	{
		same_result(pair, "dk", d.dk, g.dk, TOLERANCE);
		same_result(pair, "dv", d.dv, g.dv, TOLERANCE);
	}
}

UNIT_TEST(gradients_of_attention_match)
{
	static const Shape shapes[] = {{2, 2, 16}, {4, 2, 9}, {1, 1, 140}};

	for (int i = 0; i < 6; i++)
	{
		Pair		pair;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		check_gradients_of(&pair, &shapes[i / 2], i % 2 == 0);
		pair_close(&pair);
	}
}

/* ---- what is read out of logits ---- */

enum
{
	VOCABULARY = 203,
	LOGIT_ROWS = 6
};

/* Some rows with masks, some with banned tokens, one that is left out, one drawn. */
static void
make_rules(const uint32_t *allowed, const int32_t *banned, ChoiceRule *rules)
{
	for (int i = 0; i < LOGIT_ROWS; i++)
		rules[i] = (ChoiceRule) {.top_p = 1.0f, .seed = 7, .counter = (uint64_t) i};
	rules[1].allowed = allowed;
	rules[2].banned = banned;
	rules[2].banned_count = 3;
	rules[3] = rules[1];
	rules[3].banned = banned;
	rules[3].banned_count = 3;
	rules[4].skipped = true;
	rules[5].temperature = 0.8f;
	rules[5].top_k = 20;
}

/* Logits whose largest of row 2 is banned, and equal ones in row 0. */
static Tensor
make_logits(int32_t *banned)
{
	Tensor		logits = wide_tensor(LOGIT_ROWS, VOCABULARY);

	cpu_row(logits, 0)[150] = cpu_row(logits, 0)[17] = 9.0f;
	banned[0] = 33;
	banned[1] = 202;
	banned[2] = 0;
	cpu_row(logits, 2)[33] = cpu_row(logits, 3)[33] = 8.0f;
	return logits;
}

UNIT_TEST(choices_best_tokens_and_scores_match)
{
	enum {COUNT = 5};
	uint32_t	allowed[(VOCABULARY + 31) / 32] = {0x12345678, 0x2, 0xF0F0, 0, 1, 0x80000000, 3};
	int32_t		banned[3];
	ChoiceRule	rules[LOGIT_ROWS];
	Choice		choices[2][LOGIT_ROWS] = {{{-7, 0}}};
	Choice		best[2][LOGIT_ROWS * COUNT];
	ScoreTarget targets[] = {{0, 3}, {0, 150}, {3, 202}, {5, 1}};
	float		scores[2][4];
	Tensor		logits;
	Tensor		device;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	logits = make_logits(banned);
	device = to_device(&pair, logits);
	make_rules(allowed, banned, rules);
	choices[0][4].token = choices[1][4].token = -7;
	pair.cpu->ops->choose(pair.cpu, logits, rules, choices[0]);
	pair.cuda->ops->choose(pair.cuda, device, rules, choices[1]);
	rules[5].temperature = 0;
	pair.cpu->ops->best(pair.cpu, logits, rules, COUNT, best[0]);
	pair.cuda->ops->best(pair.cuda, device, rules, COUNT, best[1]);
	pair.cpu->ops->score(pair.cpu, logits, targets, 4, scores[0]);
	pair.cuda->ops->score(pair.cuda, device, targets, 4, scores[1]);
	UNIT_EQUAL_INT(choices[1][0].token, 17);
	UNIT_EQUAL_INT(choices[1][4].token, -7);
	for (int i = 0; i < LOGIT_ROWS; i++)
	{
		UNIT_EQUAL_INT(choices[1][i].token, choices[0][i].token);
		UNIT_NEAR(choices[1][i].log_probability, choices[0][i].log_probability, 1e-5);
	}
	for (int i = 0; i < LOGIT_ROWS * COUNT; i++)
	{
		UNIT_EQUAL_INT(best[1][i].token, best[0][i].token);
		UNIT_NEAR(best[1][i].log_probability, best[0][i].log_probability, 1e-5);
	}
	UNIT_NEAR_ALL(scores[1], scores[0], 4, 1e-5);
	UNIT_CHECK(device_is_well(&pair));
	pair_close(&pair);
}

UNIT_TEST(fewer_tokens_than_wanted_end_the_list)
{
	enum {COUNT = 4};
	uint32_t	allowed[(VOCABULARY + 31) / 32] = {0x9};
	ChoiceRule	rules[2] = {{.allowed = allowed}, {.top_p = 1.0f}};
	Choice		best[2][2 * COUNT];
	Tensor		logits;
	Pair		pair;

	if (!pair_open(&pair))
		UNIT_SKIP(CUDA_SKIPPED);
	logits = wide_tensor(2, VOCABULARY);
	pair.cpu->ops->best(pair.cpu, logits, rules, COUNT, best[0]);
	pair.cuda->ops->best(pair.cuda, to_device(&pair, logits), rules, COUNT, best[1]);
	UNIT_EQUAL_INT(best[1][2].token, -1);
	for (int i = 0; i < 2 * COUNT; i++)
		UNIT_EQUAL_INT(best[1][i].token, best[0][i].token);
	pair_close(&pair);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
