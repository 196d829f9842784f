/*
 * test_attention_backward.c - gradients of attention against finite differences, over groups, spans
 * and heads of all sorts; and that threads change no bit of any gradient.
 */
#include "gradients.h"

/* ---- attention ---- */

typedef struct AttentionCase
{
	int			groups;
	int			rows[3];		/* of each group */
	int			keys[3];
	int			heads;
	int			kv_heads;
	int			head_size;
	bool		causal;			/* row i of a group sees keys 0 .. i; else spans of all sorts */
} AttentionCase;

static const AttentionCase attention_cases[] = {
	{1, {1}, {1}, 1, 1, 1, true},
	{2, {5, 3}, {5, 3}, 2, 2, 6, true},
	{1, {53}, {53}, 2, 1, 16, true},
	{3, {4, 9, 2}, {8, 35, 16}, 4, 2, 5, false},
	{1, {50}, {70}, 1, 1, 20, false},
};

#define ATTENTION_CASES ((int) (sizeof(attention_cases) / sizeof(attention_cases[0])))

/* The integers of a case. */
typedef struct AttentionSetup
{
	const AttentionCase *shape;
	int			rows;
	int			keys;
	AttentionPlan plan;
	Tensor		groups;
} AttentionSetup;

/* What row r of a group sees: nothing, all alike, or some keys in the middle, in turn. */
static void
fill_span(const AttentionCase *shape, int group, int r, int32_t *span)
{
	int			keys = shape->keys[group];

	span[SPAN_LIST] = 0;
	span[SPAN_FIRST] = shape->causal ? 0 : (r * 3) % keys;
	span[SPAN_COUNT] = shape->causal ? r + 1 : r % 4 == 1 ? 0 : keys - span[SPAN_FIRST] - r % 2;
	span[SPAN_UNIFORM] = !shape->causal && r % 4 == 2;
	if (span[SPAN_COUNT] < 0)
		span[SPAN_COUNT] = 0;
}

static AttentionSetup
make_setup(const AttentionCase *shape)
{
	AttentionSetup setup = {.shape = shape};
	int32_t    *group;
	int			row = 0;

	for (int g = 0; g < shape->groups; g++)
	{
		setup.rows += shape->rows[g];
		setup.keys += shape->keys[g];
	}
	setup.plan.heads = shape->heads;
	setup.plan.scale = 0.7f;
	setup.plan.spans = integers(setup.rows, ATTENTION_SPAN_FIELDS);
	setup.groups = integers(shape->groups, ATTENTION_GROUP_FIELDS);
	group = setup.groups.data;
	for (int g = 0; g < shape->groups; g++, group += ATTENTION_GROUP_FIELDS)
	{
		group[GROUP_FIRST_ROW] = row;
		group[GROUP_ROWS] = shape->rows[g];
		group[GROUP_FIRST_KEY] = g == 0 ? 0 : group[GROUP_FIRST_KEY - ATTENTION_GROUP_FIELDS] +
			group[GROUP_KEYS - ATTENTION_GROUP_FIELDS];
		group[GROUP_KEYS] = shape->keys[g];
		for (int r = 0; r < shape->rows[g]; r++, row++)
			fill_span(shape, g, r,
					  (int32_t *) setup.plan.spans.data + row * ATTENTION_SPAN_FIELDS);
	}
	return setup;
}

/* One head of one row over its span. */
static void
attend_double(const double *q, const double *k, const double *v, int stride, int size,
			  const int32_t *span, double scale, double *y)
{
	double		weights[128];
	double		sum = 0;

	for (int d = 0; d < size; d++)
		y[d] = 0;
	for (int j = 0; j < span[SPAN_COUNT]; j++)
	{
		const double *key = k + (span[SPAN_FIRST] + j) * stride;
		double		score = 0;

		for (int d = 0; d < size; d++)
			score += q[d] * key[d];
		weights[j] = span[SPAN_UNIFORM] ? 1 : exp(score * scale);
		sum += weights[j];
	}
	for (int j = 0; j < span[SPAN_COUNT]; j++)
		for (int d = 0; d < size; d++)
			y[d] += weights[j] / sum * v[(span[SPAN_FIRST] + j) * stride + d];
}

static void
attention_formula(const Formula *f, double *y)
{
	const AttentionSetup *setup = f->extra;
	const AttentionCase *shape = setup->shape;
	int			size = shape->head_size;
	int			kv_width = shape->kv_heads * size;

	for (int g = 0; g < shape->groups; g++)
	{
		const int32_t *group = (const int32_t *) setup->groups.data + g * ATTENTION_GROUP_FIELDS;

		for (int row = group[GROUP_FIRST_ROW]; row < group[GROUP_FIRST_ROW] + group[GROUP_ROWS];
			 row++)
			for (int h = 0; h < shape->heads; h++)
			{
				int			at = row * shape->heads * size + h * size;
				int			key = group[GROUP_FIRST_KEY] * kv_width +
					h / (shape->heads / shape->kv_heads) * size;

				attend_double(f->inputs[0] + at, f->inputs[1] + key, f->inputs[2] + key, kv_width,
							  size,
							  (const int32_t *) setup->plan.spans.data +
								  row * ATTENTION_SPAN_FIELDS,
							  (double) setup->plan.scale, y + at);
			}
	}
}

/* Gradients of a case by the backend. */
static AttentionGradient
run_attention_backward(Backend *backend, const AttentionSetup *setup, Tensor q, Tensor k, Tensor v,
					   Tensor dy)
{
	AttentionGradient gradient = {.plan = &setup->plan,
								  .kv_heads = setup->shape->kv_heads,
								  .head_size = setup->shape->head_size,
								  .groups = setup->groups,
								  .q = q,
								  .k = k,
								  .v = v,
								  .dy = dy,
								  .dq = random_tensor(q.rows, q.columns),
								  .dk = random_tensor(k.rows, k.columns),
								  .dv = random_tensor(k.rows, k.columns)};
	int			keys = 0;

	for (int g = 0; g < setup->shape->groups; g++)
		keys = setup->shape->keys[g] > keys ? setup->shape->keys[g] : keys;
	gradient.scratch = take(backend->ops->attention_backward_size(backend, keys,
																  setup->shape->head_size));
	backend->ops->attention_backward(backend, &gradient);
	return gradient;
}

static void
check_attention(Backend *backend, const AttentionCase *shape)
{
	AttentionSetup setup = make_setup(shape);
	Tensor		q = wide_tensor(setup.rows, shape->heads * shape->head_size);
	Tensor		k = random_tensor(setup.keys, shape->kv_heads * shape->head_size);
	Tensor		v = random_tensor(setup.keys, shape->kv_heads * shape->head_size);
	Tensor		dy = random_tensor(setup.rows, q.columns);
	Formula		formula = {attention_formula,
						   {doubles(q), doubles(k), doubles(v)},
						   q.rows * q.columns,
						   q.rows,
						   q.columns,
						   0,
						   &setup};
	AttentionGradient gradient = run_attention_backward(backend, &setup, q, k, v, dy);
	double	   *dy_double = doubles(dy);

	near_doubles("dq", gradient.dq, measure_gradient(&formula, dy_double, formula.inputs[0],
													 q.rows * q.columns));
	near_doubles("dk", gradient.dk, measure_gradient(&formula, dy_double, formula.inputs[1],
													 k.rows * k.columns));
	near_doubles("dv", gradient.dv, measure_gradient(&formula, dy_double, formula.inputs[2],
													 k.rows * k.columns));
}

UNIT_TEST(gradients_of_attention)
{
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		Backend    *backend = open_backend(set, 2);

		for (int i = 0; i < ATTENTION_CASES; i++)
		{
			check_attention(backend, &attention_cases[i]);
			forget_all();
		}
		backend->ops->close(backend);
	}
}

/* ---- bits ---- */

/* Everything whose work is shared out, computed with a number of threads; tensors of results. */
static int
compute_all(const char *set, int threads, Tensor results[8])
{
	Backend    *backend = open_backend(set, threads);
	AttentionSetup setup = make_setup(&attention_cases[3]);
	const AttentionCase *shape = setup.shape;
	Tensor		w = random_tensor(150, 90);
	Tensor		dy = random_tensor(200, 150);
	Tensor		x = random_tensor(200, 90);
	AttentionGradient gradient;
	Weight		weight = make_weight(backend, w);

	results[0] = random_tensor(200, 90);
	backend->ops->matmul_backward(backend, results[0], dy, &weight, 1.5f, true);
	results[1] = random_tensor(150, 90);
	backend->ops->add_product(backend, results[1], dy, x);
	gradient = run_attention_backward(backend, &setup,
									  random_tensor(setup.rows, shape->heads * shape->head_size),
									  random_tensor(setup.keys, shape->kv_heads * shape->head_size),
									  random_tensor(setup.keys, shape->kv_heads * shape->head_size),
									  random_tensor(setup.rows, shape->heads * shape->head_size));
	results[2] = gradient.dq;
	results[3] = gradient.dk;
	results[4] = gradient.dv;
	backend->ops->weight_destroy(backend, &weight);
	backend->ops->close(backend);
	return 5;
}

UNIT_TEST(threads_change_no_bit)
{
	const char *set;

	FOR_EACH_INSTRUCTION_SET(set)
	{
		Tensor		alone[8];
		Tensor		together[8];
		int			count;

		random_state = 7;
		count = compute_all(set, 1, alone);
		for (int threads = 2; threads <= 3; threads++)
		{
			random_state = 7;
			compute_all(set, threads, together);
			for (int i = 0; i < count; i++)
				UNIT_CHECK(same_bits(alone[i], together[i]));
		}
		forget_all();
	}
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
