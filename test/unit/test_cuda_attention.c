/*
 * test_cuda_attention.c - attention of the CUDA library, forward and backward, and what is read out
 * of logits, against the portable kernels.
 */
#include "cuda_pair.h"

#define TOLERANCE 2e-5

/* ---- forward ---- */

enum
{
	PAGES = 96,
	MOST_LISTS = 4,
	SPARE_PAGE = 23				/* in no list */
};

typedef struct Shape
{
	int			heads;
	int			kv_heads;
	int			head_size;
} Shape;

/* Rows that see keys of the same list. */
typedef struct List
{
	int			rows;
	int			keys;
	int			seen;			/* keys that its first row sees; each that follows `more` more */
	int			more;
} List;

/* What is attended to, on both sides. */
typedef struct AttentionCase
{
	Pair		pair;
	const Shape *shape;
	const List *lists;			/* [MOST_LISTS] */
	DataType	type;
	KvPool		cpu_pool;
	KvPool		cuda_pool;
	AttentionPlan plan;			/* in host memory */
	AttentionPlan on_device;
	Tensor		q;				/* [R, heads D] */
	Tensor		q_device;
} AttentionCase;

/* Put keys and values of a list, the n-th page of all being page 7 n + 3, into both pools. */
static void
fill_list(AttentionCase *c, int list, int first_page)
{
	int			count = c->lists[list].keys;
	int			width = c->shape->kv_heads * c->shape->head_size;
	Tensor		keys = random_tensor(count, width);
	Tensor		values = random_tensor(count, width);
	Tensor		slots = integers(1, count);
	int32_t    *pages = c->plan.page_lists.data;

	for (int j = 0; j < count; j++)
	{
		pages[first_page + j / KV_PAGE_KEYS] = ((first_page + j / KV_PAGE_KEYS) * 7 + 3) % PAGES;
		((int32_t *) slots.data)[j] = pages[first_page + j / KV_PAGE_KEYS] * KV_PAGE_KEYS +
			j % KV_PAGE_KEYS;
	}
	c->pair.cpu->ops->kv_write(c->pair.cpu, &c->cpu_pool, 1, keys, values, slots);
	c->pair.cuda->ops->kv_write(c->pair.cuda, &c->cuda_pool, 1, to_device(&c->pair, keys),
								to_device(&c->pair, values), to_device(&c->pair, slots));
}

/*
 * Fill pools, and let the rows of the lists follow one another. Some see nothing, a window, or all
 * with equal scores.
 */
static void
fill_case(AttentionCase *c)
{
	int32_t    *span = c->plan.spans.data;
	int			page = 0;

	for (int list = 0; list < MOST_LISTS; list++)
	{
		const List *l = &c->lists[list];

		fill_list(c, list, page);
		for (int r = 0; r < l->rows; r++, span += ATTENTION_SPAN_FIELDS)
		{
			span[SPAN_LIST] = page;
			span[SPAN_COUNT] = l->seen + r * l->more;
			if (list == 2 && r % 4 == 1)
				span[SPAN_COUNT] = 0;
			if (list == 2 && r % 4 == 2)
			{
				span[SPAN_FIRST] = r * 300 % l->keys;
				span[SPAN_COUNT] = 11 < l->keys - span[SPAN_FIRST] ? 11
					: l->keys - span[SPAN_FIRST];
			}
			span[SPAN_UNIFORM] = list > 1 && r % 4 == 3;
		}
		page += (l->keys + KV_PAGE_KEYS - 1) / KV_PAGE_KEYS;
	}
}

/* False where the tests are skipped. */
static bool
open_case(AttentionCase *c, const Shape *shape, const List *lists, DataType type)
{
	int			rows = 0;
	int			most_keys = 0;
	Status		status;

	*c = (AttentionCase) {.shape = shape, .lists = lists, .type = type};
	if (!pair_open(&c->pair))
		return false;
	for (int i = 0; i < MOST_LISTS; i++)
	{
		rows += lists[i].rows;
		most_keys = lists[i].keys > most_keys ? lists[i].keys : most_keys;
	}
	if (!c->pair.cpu->ops->kv_create(c->pair.cpu, type, 2, PAGES, shape->kv_heads,
									 shape->head_size, &c->cpu_pool, &status) ||
		!c->pair.cuda->ops->kv_create(c->pair.cuda, type, 2, PAGES, shape->kv_heads,
									  shape->head_size, &c->cuda_pool, &status))
		engine_bail("pool", &status);
	c->plan = (AttentionPlan) {integers(1, PAGES), integers(rows, ATTENTION_SPAN_FIELDS),
							   shape->heads, 1.0f / sqrtf((float) shape->head_size), most_keys};
	fill_case(c);
	c->on_device = c->plan;
	c->on_device.page_lists = to_device(&c->pair, c->plan.page_lists);
	c->on_device.spans = to_device(&c->pair, c->plan.spans);
	c->q = random_tensor(rows, shape->heads * shape->head_size);
	c->q_device = to_device(&c->pair, c->q);
	return true;
}

static void
close_case(AttentionCase *c)
{
	c->pair.cpu->ops->kv_destroy(c->pair.cpu, &c->cpu_pool);
	c->pair.cuda->ops->kv_destroy(c->pair.cuda, &c->cuda_pool);
	pair_close(&c->pair);
}

/* The device's result, so many rows at once. */
static Tensor
attend(AttentionCase *c, int at_once)
{
	Tensor		y = to_device(&c->pair, random_tensor(c->q.rows, c->q.columns));

	for (int first = 0; first < c->q.rows; first += at_once)
	{
		int			rows = c->q.rows - first < at_once ? c->q.rows - first : at_once;
		AttentionPlan part = c->on_device;

		part.spans = tensor_row_range(part.spans, first, rows);
		c->pair.cuda->ops->attention(c->pair.cuda, tensor_row_range(y, first, rows),
									 tensor_row_range(c->q_device, first, rows), &c->cuda_pool, 1,
									 &part);
	}
	return y;
}

/* Hold all rows at once against the processor's. */
static Tensor
check_attention(AttentionCase *c)
{
	Tensor		expected = random_tensor(c->q.rows, c->q.columns);
	Tensor		y = attend(c, c->q.rows);

	c->pair.cpu->ops->attention(c->pair.cpu, expected, c->q, &c->cpu_pool, 1, &c->plan);
	same_result(&c->pair, data_type_name(c->type), y, expected,
				c->type == TYPE_BF16 ? 2e-3 : TOLERANCE);
	return y;
}

UNIT_TEST(attention_matches_whatever_the_company)
{
	static const Shape shapes[] = {{3, 3, 8}, {4, 2, 21}, {2, 1, 128}, {1, 1, 256}};
	/* a prompt, a few tokens, spans of all kinds, a single token */
	static const List lists[MOST_LISTS] = {{11, 170, 120, 5}, {3, 33, 33, 0}, {8, 70, 70, 0},
										   {1, 65, 65, 0}};

	for (int i = 0; i < 8; i++)
	{
		AttentionCase c;
		Tensor		y;

		if (!open_case(&c, &shapes[i / 2], lists, i % 2 == 0 ? TYPE_F32 : TYPE_BF16))
			UNIT_SKIP(CUDA_SKIPPED);
		y = check_attention(&c);
		same_rows(&c.pair, "rows by threes", y, 0, attend(&c, 3));
		close_case(&c);
	}
}

/* More rows than a block has, and than a step of single tokens. */
UNIT_TEST(prompts_in_pieces_have_the_same_bits)
{
	static const Shape shapes[] = {{1, 1, 64}, {1, 1, 80}, {1, 1, 200}, {1, 1, 12}};
	/* a prompt that takes up another, a single token, spans of all kinds, a picture */
	static const List lists[MOST_LISTS] = {{70, 135, 66, 1}, {1, 77, 77, 0}, {37, 90, 90, 0},
										   {150, 40, 40, 0}};
	static const int pieces[] = {100, 17, 16, 1};

	for (int i = 0; i < 4; i++)
	{
		AttentionCase c;
		Tensor		y;

		if (!open_case(&c, &shapes[i], lists, i < 3 ? TYPE_BF16 : TYPE_F32))
			UNIT_SKIP(CUDA_SKIPPED);
		y = check_attention(&c);
		/* single rows of one shape only: each costs as much as sixteen */
		for (int j = 0; j < (i == 0 ? 4 : 2); j++)
			same_rows(&c.pair, "pieces of a prompt", y, 0, attend(&c, pieces[j]));
		close_case(&c);
	}
}

/* Keys that several blocks share. A row whose own fit one has the same bits beside longer ones. */
UNIT_TEST(many_keys_are_cut_where_each_row_alone_would_be)
{
	static const Shape shapes[] = {{2, 1, 64}, {1, 1, 80}, {1, 1, 200}};
	/* a prompt, a single token, spans of all kinds, another single token */
	static const List lists[MOST_LISTS] = {{20, 1150, 1005, 7}, {1, 600, 600, 0}, {8, 1030, 1030, 0},
										   {1, 40, 40, 0}};
	enum {SHORT_ROW = 29};

	for (int i = 0; i < 3; i++)
	{
		AttentionCase c;
		Tensor		y;

		if (!open_case(&c, &shapes[i], lists, TYPE_BF16))
			UNIT_SKIP(CUDA_SKIPPED);
		y = check_attention(&c);
		same_rows(&c.pair, "many keys, rows by threes", y, 0, attend(&c, 3));
		c.on_device.most_keys = 512;
		same_rows(&c.pair, "a row with few keys", tensor_row_range(y, SHORT_ROW, 1), 0,
				  tensor_row_range(attend(&c, 3), SHORT_ROW, 1));
		close_case(&c);
	}
}

UNIT_TEST(a_copied_page_serves_as_the_one_it_came_from)
{
	static const Shape shape = {2, 1, 24};
	static const List lists[MOST_LISTS] = {{5, 60, 56, 1}, {1, 9, 9, 0}, {1, 9, 9, 0},
										   {1, 9, 9, 0}};

	for (int i = 0; i < 2; i++)
	{
		AttentionCase c;
		Tensor		before;
		int32_t    *list;

		if (!open_case(&c, &shape, lists, i == 0 ? TYPE_F32 : TYPE_BF16))
			UNIT_SKIP(CUDA_SKIPPED);
		before = attend(&c, c.q.rows);
		list = c.plan.page_lists.data;
		c.pair.cpu->ops->kv_copy(c.pair.cpu, &c.cpu_pool, list[1], SPARE_PAGE);
		c.pair.cuda->ops->kv_copy(c.pair.cuda, &c.cuda_pool, list[1], SPARE_PAGE);
		list[1] = SPARE_PAGE;
		c.on_device.page_lists = to_device(&c.pair, c.plan.page_lists);
		same_rows(&c.pair, "a copied page", before, 0, check_attention(&c));
		close_case(&c);
	}
}

/* Put a number in the place of element 3 of a key, or of its value; of the first list. */
static void
spoil(AttentionCase *c, int key, bool value, float number)
{
	int			width = c->shape->kv_heads * c->shape->head_size;
	Tensor		keys = random_tensor(1, width);
	Tensor		values = random_tensor(1, width);
	Tensor		slot = integers(1, 1);

	cpu_row(value ? values : keys, 0)[3] = number;
	*(int32_t *) slot.data = ((int32_t *) c->plan.page_lists.data)[key / KV_PAGE_KEYS] *
		KV_PAGE_KEYS + key % KV_PAGE_KEYS;
	c->pair.cuda->ops->kv_write(c->pair.cuda, &c->cuda_pool, 1, to_device(&c->pair, keys),
								to_device(&c->pair, values), to_device(&c->pair, slot));
}

/* What is no number reaches the rows that see it, in the elements where it is, and no other row. */
UNIT_TEST(what_a_row_does_not_see_does_not_reach_it)
{
	enum {FIRST_SEEN = 40, SPOILT = 70, ROWS = 50};
	static const Shape shape = {1, 1, 16};
	static const List lists[MOST_LISTS] = {{ROWS, 90, FIRST_SEEN, 1}, {1, 9, 9, 0}, {1, 9, 9, 0},
										   {1, 9, 9, 0}};

	for (int i = 0; i < 6; i++)
	{
		AttentionCase c;
		Tensor		before;
		Tensor		after;

		if (!open_case(&c, &shape, lists, i % 2 == 0 ? TYPE_F32 : TYPE_BF16))
			UNIT_SKIP(CUDA_SKIPPED);
		before = attend(&c, c.q.rows);
		spoil(&c, SPOILT, i < 4, i < 2 ? INFINITY : NAN);
		after = attend(&c, c.q.rows);
		same_rows(&c.pair, "rows that see nothing of it", before, 0,
				  tensor_row_range(after, 0, SPOILT - FIRST_SEEN + 1));
		after = to_host(&c.pair, after);
		for (int r = SPOILT - FIRST_SEEN + 1; r < ROWS; r++)
			UNIT_CHECK(!isfinite(cpu_row(after, r)[3]));
		close_case(&c);
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

enum
{
	QUERIES = 74,
	KEYS = 215
};

/* A sequence that sees itself up to each token, and rows that see keys of all kinds. */
static const int32_t group_numbers[2][ATTENTION_GROUP_FIELDS] = {
	{[GROUP_FIRST_ROW] = 0, [GROUP_ROWS] = 70, [GROUP_FIRST_KEY] = 0, [GROUP_KEYS] = 70},
	{[GROUP_FIRST_ROW] = 70, [GROUP_ROWS] = 4, [GROUP_FIRST_KEY] = 75, [GROUP_KEYS] = 140},
};

/* Queries of two groups, and what they attend to. */
typedef struct GradientCase
{
	Pair	   *pair;
	AttentionPlan plan;
	AttentionPlan device_plan;
	AttentionGradient host;
	AttentionGradient device;
} GradientCase;

/* Random numbers that the type holds. */
static Tensor
factor(int rows, int columns, DataType type)
{
	Tensor		x = random_tensor(rows, columns);

	for (int r = 0; r < rows && type == TYPE_BF16; r++)
		for (int c = 0; c < columns; c++)
		{
			uint16_t	half = bf16_from_f32(cpu_row(x, r)[c]);

			convert_to_f32(&half, TYPE_BF16, 1, &cpu_row(x, r)[c]);
		}
	return x;
}

static void
make_gradient_case(GradientCase *c, Pair *pair, const Shape *shape, DataType type, bool keys_too)
{
	int			width = shape->heads * shape->head_size;
	int			kv_width = shape->kv_heads * shape->head_size;

	*c = (GradientCase) {.pair = pair};
	c->plan = (AttentionPlan) {.spans = integers(QUERIES, ATTENTION_SPAN_FIELDS),
							   .heads = shape->heads, .scale = 0.3f};
	for (int r = 0; r < QUERIES; r++)
	{
		int32_t    *span = (int32_t *) c->plan.spans.data + r * ATTENTION_SPAN_FIELDS;

		span[SPAN_FIRST] = r == 71 ? 3 : 0;
		span[SPAN_COUNT] = r < 70 ? r + 1 : r == 72 ? 0 : 137;
		span[SPAN_UNIFORM] = r == 73;
	}
	c->host = (AttentionGradient) {.plan = &c->plan,
								   .type = type,
								   .kv_heads = shape->kv_heads,
								   .head_size = shape->head_size,
								   .groups = tensor_make((void *) group_numbers, TYPE_I32, 2, 4),
								   .q = factor(QUERIES, width, type),
								   .k = factor(KEYS, kv_width, type),
								   .v = factor(KEYS, kv_width, type),
								   .dy = factor(QUERIES, width, type),
								   .dq = random_tensor(QUERIES, width),
								   .scratch = take(pair->cpu->ops->attention_backward_size(
									   pair->cpu, KEYS, shape->head_size))};
	if (keys_too)
	{
		c->host.dk = random_tensor(KEYS, kv_width);
		c->host.dv = random_tensor(KEYS, kv_width);
	}
	c->device = c->host;
	c->device_plan = c->plan;
	c->device_plan.spans = to_device(pair, c->plan.spans);
	c->device.plan = &c->device_plan;
	c->device.groups = to_device(pair, c->host.groups);
	c->device.q = to_device(pair, c->host.q);
	c->device.k = to_device(pair, c->host.k);
	c->device.v = to_device(pair, c->host.v);
	c->device.dy = to_device(pair, c->host.dy);
	c->device.dq = to_device(pair, c->host.dq);
	if (keys_too)
	{
		c->device.dk = to_device(pair, c->host.dk);
		c->device.dv = to_device(pair, c->host.dv);
	}
}

/* P and dS are rounded, where the type is bf16. */
static void
check_gradients_of(Pair *pair, const Shape *shape, DataType type, bool keys_too)
{
	double		tolerance = type == TYPE_BF16 ? 8e-3 : TOLERANCE;
	GradientCase c;

	make_gradient_case(&c, pair, shape, type, keys_too);
	pair->cpu->ops->attention_backward(pair->cpu, &c.host);
	pair->cuda->ops->attention_backward(pair->cuda, &c.device);
	same_result(pair, "dq", c.device.dq, c.host.dq, tolerance);
	if (keys_too)
	{
		same_result(pair, "dk", c.device.dk, c.host.dk, tolerance);
		same_result(pair, "dv", c.device.dv, c.host.dv, tolerance);
	}
}

UNIT_TEST(gradients_of_attention_match)
{
	static const Shape shapes[] = {{2, 2, 16}, {4, 2, 9}, {1, 1, 140}, {2, 1, 128}, {1, 1, 64}};

	for (int i = 0; i < 10; i++)
	{
		Pair		pair;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		check_gradients_of(&pair, &shapes[i / 2], i / 2 < 3 ? TYPE_F32 : TYPE_BF16, i % 2 == 0);
		check_gradients_of(&pair, &shapes[i / 2], TYPE_BF16, i % 2 == 0);
		pair_close(&pair);
	}
}

/* The second group's gradients, beside the first and alone. */
UNIT_TEST(gradients_of_a_group_do_not_depend_on_others)
{
	static const Shape shape = {4, 2, 24};
	const int32_t *group = group_numbers[1];
	int			row = group[GROUP_FIRST_ROW];
	int			key = group[GROUP_FIRST_KEY];

	for (int i = 0; i < 2; i++)
	{
		Pair		pair;
		GradientCase c;
		AttentionGradient alone;

		if (!pair_open(&pair))
			UNIT_SKIP(CUDA_SKIPPED);
		make_gradient_case(&c, &pair, &shape, i == 0 ? TYPE_F32 : TYPE_BF16, true);
		alone = c.device;
		alone.groups = tensor_row_range(c.device.groups, 1, 1);
		alone.dq = to_device(&pair, c.host.dq);
		alone.dk = to_device(&pair, c.host.dk);
		alone.dv = to_device(&pair, c.host.dv);
		pair.cuda->ops->attention_backward(pair.cuda, &c.device);
		pair.cuda->ops->attention_backward(pair.cuda, &alone);
		same_rows(&pair, "dq", c.device.dq, row,
				  tensor_row_range(alone.dq, row, group[GROUP_ROWS]));
		same_rows(&pair, "dk", c.device.dk, key,
				  tensor_row_range(alone.dk, key, group[GROUP_KEYS]));
		same_rows(&pair, "dv", c.device.dv, key,
				  tensor_row_range(alone.dv, key, group[GROUP_KEYS]));
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
