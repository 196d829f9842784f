/*
 * choose.cu - what is read out of rows of logits: a choice, the best tokens, scores of given ones.
 *
 * The logits stay on the device; the largest of them, the token that was drawn (draw.cu) and the sum
 * of a row's softmax come back.
 */
#include "choose.h"

#include <stdlib.h>
#include <string.h>

/* Whether a comes before b: larger, or equal with a lower id. */
__device__ static inline bool
is_before(Candidate a, Candidate b)
{
	return a.token >= 0 &&
		(b.token < 0 || a.logit > b.logit || (a.logit == b.logit && a.token < b.token));
}

/* The first candidate of all threads, in every thread. scratch [ROW_WARPS] is shared. */
__device__ static inline Candidate
block_first(Candidate mine, Candidate *scratch)
{
	for (int distance = WARP / 2; distance > 0; distance /= 2)
	{
		Candidate	other;

		other.logit = __shfl_xor_sync(FULL_MASK, mine.logit, distance);
		other.token = __shfl_xor_sync(FULL_MASK, mine.token, distance);
		if (is_before(other, mine))
			mine = other;
	}
	__syncthreads();
	if (threadIdx.x % WARP == 0)
		scratch[threadIdx.x / WARP] = mine;
	__syncthreads();
	mine = scratch[0];
	for (int i = 1; i < ROW_WARPS; i++)
		if (is_before(scratch[i], mine))
			mine = scratch[i];
	return mine;
}

/* A block is a row. */
__global__ static void __launch_bounds__(ROW_THREADS)
statistics_kernel(Rows logits, const RowMasks *rows, const uint32_t *masks,
				  RowStatistics *statistics)
{
	SHARED(Candidate, candidates, ROW_WARPS);
	SHARED(float, scratch, ROW_WARPS);
	const float *row = logits.row(blockIdx.x);
	RowMasks	mask = rows == nullptr ? RowMasks{-1, -1} : rows[blockIdx.x];
	Candidate	largest = {0.0f, -1};
	Candidate	choice = {0.0f, -1};
	float		sum = 0;

	for (int token = static_cast<int>(threadIdx.x); token < logits.columns; token += ROW_THREADS)
	{
		Candidate	here = {row[token], token};

		if (has_token(masks, mask.allowed, token) && is_before(here, largest))
			largest = here;
		if (has_token(masks, mask.choosable, token) && is_before(here, choice))
			choice = here;
	}
	largest = block_first(largest, candidates);
	choice = block_first(choice, candidates);
	for (int token = static_cast<int>(threadIdx.x); token < logits.columns; token += ROW_THREADS)
		if (has_token(masks, mask.allowed, token))
			sum += expf(row[token] - largest.logit);
	sum = block_sum(sum, scratch);
	if (threadIdx.x > 0)
		return;
	if (choice.token < 0)
		choice = Candidate{row[0], 0};
	statistics[blockIdx.x] = RowStatistics{largest, choice, largest.logit + logf(sum)};
}

/* best [R, count] = the first tokens of each row that may be chosen, in order. */
__global__ static void __launch_bounds__(ROW_THREADS)
best_kernel(Rows logits, const RowMasks *rows, const uint32_t *masks, int count, Candidate *best)
{
	SHARED(Candidate, candidates, ROW_WARPS);
	const float *row = logits.row(blockIdx.x);
	RowMasks	mask = rows == nullptr ? RowMasks{-1, -1} : rows[blockIdx.x];
	Candidate	last = {0.0f, -1};

	for (int i = 0; i < count; i++)
	{
		Candidate	next = {0.0f, -1};

		for (int token = static_cast<int>(threadIdx.x); token < logits.columns;
			 token += ROW_THREADS)
		{
			Candidate	here = {row[token], token};

			if (has_token(masks, mask.choosable, token) && is_before(here, next) &&
				(i == 0 || is_before(last, here)))
				next = here;
		}
		last = block_first(next, candidates);
		if (threadIdx.x == 0)
			best[static_cast<int64_t>(blockIdx.x) * count + i] = last;
		if (last.token < 0)		/* none is left: the list ends here, in every thread */
			break;
	}
}

/* A thread is a target. */
__global__ static void
score_kernel(Rows logits, const RowStatistics *statistics, const ScoreTarget *targets, int count,
			 float *scores)
{
	int			i = own_column();

	if (i < count)
		scores[i] = logits.row(targets[i].row)[targets[i].token] -
			statistics[targets[i].row].log_sum;
}

/* ---- the host's side ---- */

static int
words_of(int vocabulary)
{
	return (vocabulary + 31) / 32;
}

/* Copy a rule's bits, and those without its banned tokens. */
static void
write_masks(Reading *reading, int row, const ChoiceRule *rule)
{
	int			words = words_of(reading->logits.columns);
	size_t		bytes = static_cast<size_t>(words) * sizeof(uint32_t);

	reading->rows[row] = RowMasks{-1, -1};
	if (rule->allowed != nullptr)
	{
		memcpy(reading->masks + reading->mask_words, rule->allowed, bytes);
		reading->rows[row] = RowMasks{reading->mask_words, reading->mask_words};
		reading->mask_words += words;
	}
	if (rule->banned_count > 0)
	{
		uint32_t   *mask = reading->masks + reading->mask_words;

		if (rule->allowed != nullptr)
			memcpy(mask, rule->allowed, bytes);
		else
			memset(mask, 0xFF, bytes);
		for (int i = 0; i < rule->banned_count; i++)
			if (rule->banned[i] >= 0 && rule->banned[i] < reading->logits.columns)
				mask[rule->banned[i] / 32] &= ~(1u << rule->banned[i] % 32);
		reading->rows[row].choosable = reading->mask_words;
		reading->mask_words += words;
	}
}

/* Upload what the rules say of tokens; rules NULL: nothing. False when memory is out. */
static bool
begin_reading(CudaBackend *cuda, Tensor logits, const ChoiceRule *rules, size_t result_bytes,
			  Reading *reading)
{
	size_t		words = 2 * static_cast<size_t>(words_of(logits.columns));
	size_t		rows = static_cast<size_t>(logits.rows);
	bool		masked = false;
	size_t		row_bytes;
	size_t		mask_bytes;

	*reading = Reading();
	reading->cuda = cuda;
	reading->logits = logits;
	for (int i = 0; rules != nullptr && i < logits.rows; i++)
		masked = masked || rules[i].allowed != nullptr || rules[i].banned_count > 0;
	if (masked)
	{
		reading->rows = static_cast<RowMasks *>(malloc(rows * sizeof(RowMasks)));
		reading->masks = static_cast<uint32_t *>(malloc(rows * words * sizeof(uint32_t)));
		if (reading->rows == nullptr || reading->masks == nullptr)
			return cuda_note(cuda, cudaErrorMemoryAllocation);
		for (int i = 0; i < logits.rows; i++)
			write_masks(reading, i, &rules[i]);
	}
	row_bytes = masked ? (rows * sizeof(RowMasks) + 255) / 256 * 256 : 0;
	mask_bytes = (static_cast<size_t>(reading->mask_words) * sizeof(uint32_t) + 255) / 256 * 256;
	reading->device = static_cast<char *>(cuda_scratch(cuda, &cuda->reading,
													   row_bytes + mask_bytes + result_bytes));
	if (reading->device == nullptr)
		return false;
	reading->results = reading->device + row_bytes + mask_bytes;
	if (!masked)
		return true;
	reading->device_rows = reinterpret_cast<RowMasks *>(reading->device);
	reading->device_masks = reinterpret_cast<uint32_t *>(reading->device + row_bytes);
	cuda_upload(&cuda->base, reading->device_rows, reading->rows, rows * sizeof(RowMasks));
	cuda_upload(&cuda->base, reading->device_masks, reading->masks,
				static_cast<size_t>(reading->mask_words) * sizeof(uint32_t));
	return true;
}

static void
end_reading(Reading *reading)
{
	free(reading->rows);
	free(reading->masks);
}

static void
launch_statistics(const Reading *reading, RowStatistics *statistics)
{
	LAUNCH(statistics_kernel, static_cast<unsigned>(reading->logits.rows), ROW_THREADS, 0,
		   reading->cuda->stream, cuda_rows(reading->logits), reading->device_rows,
		   reading->device_masks, statistics);
}

void
cuda_choose(Backend *backend, Tensor logits, const ChoiceRule *rules, Choice *choices)
{
	size_t		rows = static_cast<size_t>(logits.rows);
	size_t		bytes = rows * sizeof(RowStatistics);
	size_t		draw_bytes = cuda_draw_size(logits, rules);
	RowStatistics *statistics = static_cast<RowStatistics *>(calloc(1, bytes));
	DrawOrder  *orders = static_cast<DrawOrder *>(calloc(rows, sizeof(DrawOrder)));
	Reading		reading;

	if (begin_reading(cuda_use(backend), logits, rules, draw_bytes + bytes, &reading) &&
		statistics != nullptr && orders != nullptr)
	{
		RowStatistics *on_device = reinterpret_cast<RowStatistics *>(reading.results + draw_bytes);

		launch_statistics(&reading, on_device);
		cuda_draw(&reading, rules, orders, reading.results, on_device);
		cuda_download(backend, statistics, on_device, bytes);
		for (int i = 0; i < logits.rows; i++)
			if (!rules[i].skipped)
				choices[i] = Choice{statistics[i].choice.token,
									statistics[i].choice.logit - statistics[i].log_sum};
	}
	end_reading(&reading);
	free(statistics);
	free(orders);
}

void
cuda_best(Backend *backend, Tensor logits, const ChoiceRule *rules, int count, Choice *choices)
{
	size_t		rows = static_cast<size_t>(logits.rows);
	size_t		listed = rows * static_cast<size_t>(count);
	size_t		bytes = rows * sizeof(RowStatistics) + listed * sizeof(Candidate);
	char	   *results = static_cast<char *>(calloc(1, bytes));
	RowStatistics *statistics = reinterpret_cast<RowStatistics *>(results);
	Candidate  *best = reinterpret_cast<Candidate *>(results + rows * sizeof(RowStatistics));
	Reading		reading;

	for (size_t i = 0; i < listed; i++)
		choices[i] = Choice{-1, 0.0f};
	if (begin_reading(cuda_use(backend), logits, rules, bytes, &reading) && results != nullptr)
	{
		launch_statistics(&reading, reinterpret_cast<RowStatistics *>(reading.results));
		LAUNCH(best_kernel, static_cast<unsigned>(logits.rows), ROW_THREADS, 0,
			   reading.cuda->stream, cuda_rows(logits), reading.device_rows, reading.device_masks,
			   count, reinterpret_cast<Candidate *>(reading.results +
													rows * sizeof(RowStatistics)));
		cuda_download(backend, results, reading.results, bytes);
		for (size_t i = 0; i < listed; i++)
		{
			/* nothing is written behind the end of a list */
			if (best[i].token < 0)
				i = (i / static_cast<size_t>(count) + 1) * static_cast<size_t>(count) - 1;
			else
				choices[i] = Choice{best[i].token, best[i].logit -
					statistics[i / static_cast<size_t>(count)].log_sum};
		}
	}
	end_reading(&reading);
	free(results);
}

void
cuda_score(Backend *backend, Tensor logits, const ScoreTarget *targets, int count,
		   float *log_probabilities)
{
	CudaBackend *cuda = cuda_use(backend);
	size_t		statistics = static_cast<size_t>(logits.rows) * sizeof(RowStatistics);
	size_t		target_bytes = static_cast<size_t>(count) * sizeof(ScoreTarget);
	size_t		score_bytes = static_cast<size_t>(count) * sizeof(float);
	Reading		reading;

	if (begin_reading(cuda, logits, nullptr, statistics + target_bytes + score_bytes, &reading))
	{
		RowStatistics *rows = reinterpret_cast<RowStatistics *>(reading.results);
		ScoreTarget *on_device = reinterpret_cast<ScoreTarget *>(reading.results + statistics);
		float	   *scores = reinterpret_cast<float *>(reading.results + statistics + target_bytes);

		cuda_upload(backend, on_device, targets, target_bytes);
		launch_statistics(&reading, rows);
		LAUNCH(score_kernel, blocks_for(count, ROW_THREADS), ROW_THREADS, 0, cuda->stream,
			   cuda_rows(logits), rows, on_device, count, scores);
		cuda_download(backend, log_probabilities, scores, score_bytes);
	}
	end_reading(&reading);
}
