/*
 * kernels_attention.h - attention over pages of keys and values, f32 and bf16; part of
 * kernels_template.h.
 *
 * The rows of a tile walk the keys together in blocks of ATTEND_BLOCK_KEYS: scores of the block,
 * the running softmax, values. Blocks begin at multiples of their size, so what a row computes
 * depends on positions only, never on its company. Where the rows of a tile see different parts of
 * a block (the diagonal of causal attention), each adds its values alone; that is the same sum.
 *
 * Keys and values are stored as words of 32 bits, as weights are: the keys of a page [steps of D,
 * KV_PAGE_KEYS], the values [steps of KV_PAGE_KEYS, D]. A step is one element or key of f32, or two
 * of bf16.
 */

/* Keys whose scores are softened at once. */
#define ATTEND_BLOCK_PAGES 4
#define ATTEND_BLOCK_KEYS (ATTEND_BLOCK_PAGES * KV_PAGE_KEYS)

/* Scores of a page that stay in registers: of SCORE_ROWS rows, SCORE_VECTORS vectors of keys. */
#define SCORE_VECTORS 2

/* Values that stay in registers: of VALUE_ROWS rows, VALUE_VECTORS vectors of D. */
#define VALUE_VECTORS 4

/* What a row of a tile carries from block to block: the running softmax. */
typedef struct RunningRow
{
	Vector		sum;			/* of exp(score - largest), in lanes by key */
	float		largest;		/* score so far */
	int			low;			/* keys [low, high) of the current block are seen */
	int			high;
	float		weights[ATTEND_BLOCK_KEYS];	/* scores, then exp(score - largest) */
	Rounded		rounded[ATTEND_BLOCK_KEYS];	/* the weights as bf16 takes them */
} RunningRow;

/* Steps of a query that lie side by side. */
#define QUERY_STEPS 16

/*
 * Where the queries of a tile begin at a step that begins a block: [ATTEND_MAX_ROWS, QUERY_STEPS]
 * steps, one block after another. So a row lies a constant behind the one before it, and all of
 * them are found by one register.
 */
static inline size_t
query_block(const bool bf16, int step)
{
	return (size_t) step * ATTEND_MAX_ROWS * (bf16 ? 2 * sizeof(Rounded) : sizeof(float));
}

/*
 * Scores of `rows` rows from `row` on with one page, without the scale, to their weights from place
 * on. bf16 and rows are constants where this is inlined.
 */
static inline __attribute__((always_inline)) void
score_rows(const bool bf16, const int rows, const AttendTile *tile, int row, const float *keys,
		   int place, RunningRow *running)
{
	int			steps = bf16 ? (tile->head_size + 1) / 2 : tile->head_size;

	for (int first = 0; first < PAGE_VECTORS; first += SCORE_VECTORS)
	{
		Vector		sum[SCORE_ROWS][SCORE_VECTORS];

		UNROLL for (int r = 0; r < rows; r++)
			UNROLL for (int v = 0; v < SCORE_VECTORS; v++)
				sum[r][v] = v_set(0.0f);
		for (int begin = 0; begin < steps; begin += QUERY_STEPS)
		{
			const float *from = keys + begin * KV_PAGE_KEYS + first * LANES;
			const char *q = (const char *) tile->scratch + query_block(bf16, begin);
			int			here = steps - begin < QUERY_STEPS ? steps - begin : QUERY_STEPS;

			q = step_address(bf16, q, (size_t) row * QUERY_STEPS);
			for (int d = 0; d < here; d++)
			{
				Vector		k[SCORE_VECTORS];

				UNROLL for (int v = 0; v < SCORE_VECTORS; v++)
					k[v] = v_load(from + d * KV_PAGE_KEYS + v * LANES);
				UNROLL for (int r = 0; r < rows; r++)
					UNROLL for (int v = 0; v < SCORE_VECTORS; v++)
						sum[r][v] = v_step(bf16, sum[r][v],
										   step_address(bf16, q, (size_t) (r * QUERY_STEPS + d)),
										   k[v]);
			}
		}
		UNROLL for (int r = 0; r < rows; r++)
			UNROLL for (int v = 0; v < SCORE_VECTORS; v++)
				v_store(running[row + r].weights + place + (first + v) * LANES, sum[r][v]);
	}
}

/* Scores of all rows of the tile with one page. */
static inline __attribute__((always_inline)) void
score_page(const bool bf16, const AttendTile *tile, const float *keys, int place,
		   RunningRow *running)
{
	int			row = 0;

	for (; row + SCORE_ROWS <= tile->rows; row += SCORE_ROWS)
		score_rows(bf16, SCORE_ROWS, tile, row, keys, place, running);
	for (; row + 2 <= tile->rows; row += 2)
		score_rows(bf16, 2, tile, row, keys, place, running);
	if (row < tile->rows)
		score_rows(bf16, 1, tile, row, keys, place, running);
}

/* Scale a row's scores of a block, hide the keys that it does not see, and find the largest. */
static inline void
mask_scores(RunningRow *row, float scale, int keys)
{
	IntVector	index;
	Vector		largest = v_set(row->largest);

	for (int i = 0; i < LANES; i++)
		index[i] = i;
	for (int j = 0; j < keys; j += LANES)
	{
		IntVector	seen = (index >= row->low) & (index < row->high);
		Vector		score = v_select(seen, v_load(row->weights + j) * v_set(scale),
									 v_set(-INFINITY));

		v_store(row->weights + j, score);
		largest = v_max(score, largest);
		index += LANES;
	}
	row->largest = v_largest(largest);
}

/* Turn the scores of a block into weights, and add them to what was summed before. */
static inline __attribute__((always_inline)) void
weigh_scores(const bool bf16, RunningRow *row, float shrink, int keys)
{
	Vector		sum = row->sum * v_set(shrink);

	for (int j = 0; j < keys; j += LANES)
	{
		Vector		w = v_exp(v_load(row->weights + j) - v_set(row->largest));

		sum = sum + w;
		if (bf16)
			v_store_rounded(row->rounded + j, w);
		else
			v_store(row->weights + j, w);
	}
	row->sum = sum;
}

/*
 * The running softmax over a block with `keys` keys, for the rows that see a part of it. shrink
 * [ATTEND_MAX_ROWS] receives the factors by which what they summed before has to shrink.
 */
static inline __attribute__((always_inline)) void
soften_block(const bool bf16, const AttendTile *tile, int keys, RunningRow *running, float *shrink)
{
	for (int r = 0; r < ATTEND_MAX_ROWS; r++)
		shrink[r] = 0.0f;
	for (int r = 0; r < tile->rows; r++)
		if (running[r].low < running[r].high)
		{
			shrink[r] = running[r].largest;
			mask_scores(&running[r], tile->scale[r], keys);
			shrink[r] -= running[r].largest;
		}
	for (int r = 0; r < tile->rows; r += LANES)
		v_store(shrink + r, v_exp(v_load(shrink + r)));
	for (int r = 0; r < tile->rows; r++)
		if (running[r].low < running[r].high)
			weigh_scores(bf16, &running[r], shrink[r], keys);
}

/*
 * Where a tile of values is summed: `vectors` vectors of y from d on, or with lanes below LANES the
 * first lanes of one.
 */
typedef struct ValueColumns
{
	int			d;
	int			vectors;
	int			lanes;
} ValueColumns;

/*
 * Add steps [step, end) of one page; keep hides a half of each pair whose key is not seen, so that
 * what an unwritten key left in memory is never multiplied, not even by zero.
 */
static inline __attribute__((always_inline)) void
add_value_steps(const bool bf16, const int rows, const ValueColumns columns, int step, int end,
				int keep, const float *values, int stride, const RunningRow *running, int place,
				Vector sum[VALUE_ROWS][VALUE_VECTORS])
{
	for (; step < end; step++)
	{
		const float *from = values + step * stride + columns.d;
		Vector		value[VALUE_VECTORS];

		UNROLL for (int v = 0; v < columns.vectors; v++)
		{
			value[v] = columns.lanes == LANES ? v_load(from + v * LANES)
											  : v_load_part(from, columns.lanes, 0.0f);
			if (keep != -1)
				value[v] = (Vector) ((IntVector) value[v] & keep);
		}
		UNROLL for (int r = 0; r < rows; r++)
		{
			const void *weight = bf16 ? (const void *) (running[r].rounded + place + 2 * step)
									  : (const void *) (running[r].weights + place + step);

			UNROLL for (int v = 0; v < columns.vectors; v++)
				sum[r][v] = v_step(bf16, sum[r][v], weight, value[v]);
		}
	}
}

/* Add the values of keys [low, high) of one page, whose weights are at place. */
static inline __attribute__((always_inline)) void
add_page_values(const bool bf16, const int rows, const ValueColumns columns, int low, int high,
				const float *values, int stride, const RunningRow *running, int place,
				Vector sum[VALUE_ROWS][VALUE_VECTORS])
{
	int			end = bf16 ? high / 2 : high;

	if (bf16 && low % 2 == 1)
	{
		add_value_steps(bf16, rows, columns, low / 2, low / 2 + 1, PAIR_ODD, values, stride,
						running, place, sum);
		low++;
	}
	add_value_steps(bf16, rows, columns, bf16 ? low / 2 : low, end, -1, values, stride, running,
					place, sum);
	if (bf16 && high % 2 == 1 && low < high)
		add_value_steps(bf16, rows, columns, end, end + 1, PAIR_EVEN, values, stride, running,
						place, sum);
}

/* y = y * shrink + sum of weight * value over a block, for rows that see the same keys of it. */
static inline __attribute__((always_inline)) void
add_value_columns(const bool bf16, const int rows, const ValueColumns columns,
				  const AttendTile *tile, int row, int first_page, const RunningRow *running,
				  const float *shrink)
{
	Vector		sum[VALUE_ROWS][VALUE_VECTORS];

	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < columns.vectors; v++)
		{
			const float *y = tile->y[row + r] + columns.d + v * LANES;

			sum[r][v] = (columns.lanes == LANES ? v_load(y) : v_load_part(y, columns.lanes, 0.0f)) *
				v_set(shrink[row + r]);
		}
	for (int place = running[row].low / KV_PAGE_KEYS * KV_PAGE_KEYS; place < running[row].high;
		 place += KV_PAGE_KEYS)
	{
		size_t		page = (size_t) tile->pages[first_page + place / KV_PAGE_KEYS];
		int			low = running[row].low - place;
		int			high = running[row].high - place;

		add_page_values(bf16, rows, columns, low > 0 ? low : 0,
						high < KV_PAGE_KEYS ? high : KV_PAGE_KEYS,
						tile->values + page * tile->page_stride, tile->head_size, running + row,
						place, sum);
	}
	UNROLL for (int r = 0; r < rows; r++)
		UNROLL for (int v = 0; v < columns.vectors; v++)
		{
			float	   *y = tile->y[row + r] + columns.d + v * LANES;

			if (columns.lanes == LANES)
				v_store(y, sum[r][v]);
			else
				v_store_part(y, sum[r][v], columns.lanes);
		}
}

/* add_value_columns for all of a head; rows is a constant where this is inlined. */
static inline __attribute__((always_inline)) void
add_values(const bool bf16, const int rows, const AttendTile *tile, int row, int first_page,
		   const RunningRow *running, const float *shrink)
{
	int			size = tile->head_size;
	int			d = 0;

	for (; d + VALUE_VECTORS * LANES <= size; d += VALUE_VECTORS * LANES)
		add_value_columns(bf16, rows, (ValueColumns) {d, VALUE_VECTORS, LANES}, tile, row,
						  first_page, running, shrink);
	for (; d + 2 * LANES <= size; d += 2 * LANES)
		add_value_columns(bf16, rows, (ValueColumns) {d, 2, LANES}, tile, row, first_page, running,
						  shrink);
	for (; d + LANES <= size; d += LANES)
		add_value_columns(bf16, rows, (ValueColumns) {d, 1, LANES}, tile, row, first_page, running,
						  shrink);
	if (d < size)
		add_value_columns(bf16, rows, (ValueColumns) {d, 1, size - d}, tile, row, first_page,
						  running, shrink);
}

/* Values of a block for all rows: several together where they see the same keys. */
static inline __attribute__((always_inline)) void
add_block_values(const bool bf16, const AttendTile *tile, int first_page, const RunningRow *running,
				 const float *shrink)
{
	int			row = 0;

	while (row < tile->rows)
	{
		int			rows = 1;

		while (rows < VALUE_ROWS && row + rows < tile->rows &&
			   running[row + rows].low == running[row].low &&
			   running[row + rows].high == running[row].high)
			rows++;
		if (running[row].low >= running[row].high)
			row++;
		else if (rows == VALUE_ROWS)
		{
			add_values(bf16, VALUE_ROWS, tile, row, first_page, running, shrink);
			row += VALUE_ROWS;
		}
		else
		{
			add_values(bf16, 1, tile, row, first_page, running, shrink);
			row++;
		}
	}
}

/* Begin the running softmax of every row; returns the end of the keys that any of them sees. */
static inline int
begin_rows(const AttendTile *tile, RunningRow *running, int *first)
{
	int			end = tile->end[0];

	*first = tile->first[0];
	for (int r = 0; r < tile->rows; r++)
	{
		*first = tile->first[r] < *first ? tile->first[r] : *first;
		end = tile->end[r] > end ? tile->end[r] : end;
		running[r].largest = -FLT_MAX;
		running[r].sum = v_set(0.0f);
		memset(tile->y[r], 0, (size_t) tile->head_size * sizeof(float));
	}
	return end;
}

/* Divide each row by the sum of its weights. */
static inline void
end_rows(const AttendTile *tile, const RunningRow *running)
{
	for (int r = 0; r < tile->rows; r++)
	{
		float		sum = v_sum(running[r].sum);
		int			d = 0;

		if (!(sum > 0.0f))
			continue;
		for (; d + LANES <= tile->head_size; d += LANES)
			v_store(tile->y[r] + d, v_load(tile->y[r] + d) / v_set(sum));
		for (; d < tile->head_size; d++)
			tile->y[r][d] /= sum;
	}
}

static inline __attribute__((always_inline)) void
attend_rows(const bool bf16, const AttendTile *tile)
{
	RunningRow	running[ATTEND_MAX_ROWS];
	float		shrink[ATTEND_MAX_ROWS];
	int			first;
	int			end = begin_rows(tile, running, &first);

	for (int begin = first / ATTEND_BLOCK_KEYS * ATTEND_BLOCK_KEYS; begin < end;
		 begin += ATTEND_BLOCK_KEYS)
	{
		int			first_page = begin / KV_PAGE_KEYS;
		int			keys = end - begin < ATTEND_BLOCK_KEYS ? end - begin : ATTEND_BLOCK_KEYS;
		int			low = first > begin ? first - begin : 0;

		for (int r = 0; r < tile->rows; r++)
		{
			running[r].low = tile->first[r] > begin ? tile->first[r] - begin : 0;
			running[r].high = tile->end[r] < begin + keys ? tile->end[r] - begin : keys;
		}
		for (int place = low / KV_PAGE_KEYS * KV_PAGE_KEYS; place < keys; place += KV_PAGE_KEYS)
		{
			size_t		page = (size_t) tile->pages[first_page + place / KV_PAGE_KEYS];

			score_page(bf16, tile, tile->keys + page * tile->page_stride, place, running);
		}
		soften_block(bf16, tile, keys, running, shrink);
		add_block_values(bf16, tile, first_page, running, shrink);
	}
	end_rows(tile, running);
}

/* The queries, for bf16 rounded as all operands of products are, to where scores find them. */
static inline __attribute__((always_inline)) void
lay_out_queries(const bool bf16, const AttendTile *tile)
{
	const int	block = QUERY_STEPS * (bf16 ? 2 : 1);

	for (int r = 0; r < tile->rows; r++)
		for (int d = 0; d < tile->head_size; d += block)
		{
			int			count = tile->head_size - d < block ? tile->head_size - d : block;
			const float *q = tile->q[r] + d;
			char	   *to = (char *) tile->scratch + query_block(bf16, bf16 ? d / 2 : d);

			if (bf16)
				round_row(count, q, (Rounded *) (void *) to + r * block);
			else
				memcpy((float *) (void *) to + r * block, q, (size_t) count * sizeof(float));
		}
}

static void
attend(const AttendTile *tile)
{
	lay_out_queries(false, tile);
	attend_rows(false, tile);
}

static void
attend_bf16(const AttendTile *tile)
{
	lay_out_queries(true, tile);
	attend_rows(true, tile);
}
