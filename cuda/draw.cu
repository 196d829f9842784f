/*
 * draw.cu - a token drawn at random from a row of logits; the definition is sampling.h's.
 *
 * Nothing is sorted. The tokens that temperature, top_k and top_p leave are the first ones in the
 * order of sampling.h, largest first; so each of them, and the draw itself, asks only one thing:
 * which token is the one at which, in that order, so many tokens are passed, or so much of all
 * probability? A token's place is its logit as 32 bits that sort as the numbers do; places are
 * written down once. The numbers and the weights of tokens are summed by the first four bits, the
 * sum in which the answer falls is taken apart by the next four, and so on until one token is left,
 * or only equal ones; those have equal weights and are in the order of their ids. A block is a row;
 * four or five times over its places are usual, eight the most.
 *
 * Weights are whole multiples of 2^-40 of the largest token's. So sums are exact in whatever order,
 * and a token depends on its row and rule only, though 256 threads add. exp in f32 differs from the
 * processor's by some 1e-7: another token is drawn, or kept, only where a number falls so near to
 * the border between two.
 */
#include "choose.h"

#include <math.h>

extern "C"
{
#include "sampling.h"
}

#define DRAW_THREADS 256
#define DRAW_WARPS (DRAW_THREADS / WARP)

#define DIGIT_BITS 4
#define DIGITS (1 << DIGIT_BITS)

/* The weight of the largest token. */
#define LARGEST_WEIGHT 0x1p40f
/*
 * A thread adds weights below, and tokens above, this one bit. It has at most 4095 tokens so, and a
 * row 4095 * 256: a model's vocabulary ends at 1,000,000 (model_config.c).
 */
#define ONE_TOKEN (static_cast<uint64_t>(1) << 52)

#define NEGATIVE_INFINITY_BITS 0xFF800000u

/* Of tokens with the same digit. */
typedef struct DigitSum
{
	uint64_t	weight;
	uint32_t	count;
} DigitSum;

/* The row that a block draws from, with its shared memory. */
typedef struct DrawRow
{
	uint32_t   *places;			/* [tokens] */
	int			tokens;
	float		largest;		/* logit / temperature */
	uint64_t   *parts;			/* [DIGITS][DRAW_THREADS] */
	DigitSum   *first;			/* [DIGITS]: of all tokens, by the first digit */
	DigitSum   *sums;			/* [DIGITS]: of a group, by its next digit */
} DrawRow;

/* Neighbours in the order: tokens whose places begin with the same bits. */
typedef struct TokenGroup
{
	uint32_t	prefix;			/* place >> shift */
	int			shift;
	uint32_t	count;
	uint32_t	count_before;	/* of all that come before them */
	uint64_t	weight;
	uint64_t	weight_before;
} TokenGroup;

/* ---- places and weights ---- */

/* Larger ones come first. NaN is minus infinity. */
__device__ static inline uint32_t
place_of(float scaled)
{
	uint32_t	bits = scaled == 0.0f ? 0u : scaled != scaled ? NEGATIVE_INFINITY_BITS
		: __float_as_uint(scaled);

	return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

/* The logit, divided by the temperature, at a place. */
__device__ static inline float
scaled_logit(uint32_t place)
{
	return __uint_as_float(place >> 31 != 0 ? place & 0x7FFFFFFFu : ~place);
}

__device__ static inline uint64_t
weight_of(const DrawRow *row, uint32_t place)
{
	return static_cast<uint64_t>(expf(scaled_logit(place) - row->largest) * LARGEST_WEIGHT);
}

/*
 * Write the places of all tokens, 0 where one may not be drawn; returns the first one that a token
 * has, in every thread, 0 where none has one. masks and choosable are as in RowMasks; scratch
 * [DRAW_WARPS] is shared.
 */
__device__ static inline uint32_t
write_places(const DrawRow *row, const float *logits, float temperature, const uint32_t *masks,
			 int choosable, uint32_t *scratch)
{
	uint32_t	first = 0;

#pragma unroll 4
	for (int token = static_cast<int>(threadIdx.x); token < row->tokens; token += DRAW_THREADS)
	{
		uint32_t	place = place_of(logits[token] / temperature);

		if (!has_token(masks, choosable, token))
			place = 0;
		row->places[token] = place;
		first = max(first, place);
	}
	for (int distance = WARP / 2; distance > 0; distance /= 2)
		first = max(first, __shfl_xor_sync(FULL_MASK, first, distance));
	if (threadIdx.x % WARP == 0)
		scratch[threadIdx.x / WARP] = first;
	__syncthreads();
	for (int i = 0; i < DRAW_WARPS; i++)
		first = max(first, scratch[i]);
	return first;
}

/* ---- groups ---- */

/* Sums over the group with a prefix by its next digit; shift is that behind the digit. */
__device__ static inline void
sum_digits(const DrawRow *row, uint32_t prefix, int shift, DigitSum *sums)
{
	uint64_t   *own = row->parts + threadIdx.x;
	int			lane = static_cast<int>(threadIdx.x % WARP);

	for (int digit = 0; digit < DIGITS; digit++)
		own[digit * DRAW_THREADS] = 0;
#pragma unroll 4
	for (int token = static_cast<int>(threadIdx.x); token < row->tokens; token += DRAW_THREADS)
	{
		uint32_t	place = row->places[token];

		if (place != 0 && static_cast<uint64_t>(place) >> (shift + DIGIT_BITS) == prefix)
			own[(place >> shift) % DIGITS * DRAW_THREADS] += ONE_TOKEN + weight_of(row, place);
	}
	__syncthreads();
	for (int digit = static_cast<int>(threadIdx.x / WARP); digit < DIGITS; digit += DRAW_WARPS)
	{
		DigitSum	sum = {0, 0};

		for (int i = lane; i < DRAW_THREADS; i += WARP)
		{
			uint64_t	part = row->parts[digit * DRAW_THREADS + i];

			sum.weight += part % ONE_TOKEN;
			sum.count += static_cast<uint32_t>(part / ONE_TOKEN);
		}
		for (int distance = WARP / 2; distance > 0; distance /= 2)
		{
			sum.weight += __shfl_xor_sync(FULL_MASK, sum.weight, distance);
			sum.count += __shfl_xor_sync(FULL_MASK, sum.count, distance);
		}
		if (lane == 0)
			sums[digit] = sum;
	}
	__syncthreads();
}

/* Go on to the part of a group in which its tokens, or weights, pass a target. */
__device__ static inline void
narrow_group(TokenGroup *group, const DigitSum *sums, uint64_t target, bool by_count)
{
	int			digit = DIGITS - 1;

	for (; digit > 0; digit--)
	{
		uint32_t	count = group->count_before + sums[digit].count;
		uint64_t	weight = group->weight_before + sums[digit].weight;

		if (target < (by_count ? count : weight))
			break;
		group->count_before = count;
		group->weight_before = weight;
	}
	group->prefix = group->prefix * DIGITS + static_cast<uint32_t>(digit);
	group->shift -= DIGIT_BITS;
	group->count = sums[digit].count;
	group->weight = sums[digit].weight;
}

/*
 * The token in which the number of tokens, or the sum of weights, first exceeds a target below that
 * of all; with those that are equal to it.
 */
__device__ static inline TokenGroup
find_group(const DrawRow *row, uint64_t target, bool by_count)
{
	TokenGroup	group = {0, 32, 0, 0, 0, 0};

	narrow_group(&group, row->first, target, by_count);
	while (group.count > 1 && group.shift > 0)
	{
		sum_digits(row, group.prefix, group.shift - DIGIT_BITS, row->sums);
		narrow_group(&group, row->sums, target, by_count);
	}
	return group;
}

/* ---- the draw ---- */

/* What is asked about a row, in this order. */
typedef enum Question
{
	ASK_TOP_K,
	ASK_TOP_P,
	ASK_LEAST_KEPT,
	ASK_TOKEN
} Question;

/* How often a weight goes into another one; less than 2^20 times, as no row has more tokens. */
__device__ static inline uint32_t
divide_weight(uint64_t weight, uint64_t by)
{
	uint32_t	times = 0;

	for (uint32_t bit = 1u << 19; bit > 0; bit /= 2)
		if ((times + bit) * by <= weight)
			times += bit;
	return times;
}

/* The tokens, or the weight, that a question wants; 0: it is not asked. */
__device__ static inline uint64_t
wanted_by(Question question, const DrawOrder *order, uint32_t count, uint64_t weight)
{
	if (question == ASK_TOP_K)
		return order->top_k < count ? order->top_k : 0;
	if (question == ASK_TOKEN)
		return __umul64hi(order->random, weight) + 1;
	if (order->top_p == 0)
		return 0;
	if (question == ASK_LEAST_KEPT)
		return order->least_kept == 1 ? 0 : order->least_kept < count ? order->least_kept : count;
	/* rounded up: all tokens stay before which there is less */
	return __umul64hi(order->top_p, weight) + (order->top_p * weight != 0 ? 1 : 0);
}

/* The token to draw: the member-th of a group. A row has one token at least. */
__device__ static inline TokenGroup
draw_group(const DrawRow *row, const DrawOrder *order, uint32_t *member)
{
	TokenGroup	group = {};
	uint64_t	weight = 0;		/* of all tokens that are left */
	uint32_t	count = 0;

	for (int digit = 0; digit < DIGITS; digit++)
	{
		weight += row->first[digit].weight;
		count += row->first[digit].count;
	}
#pragma unroll 1
	for (int question = ASK_TOP_K; question <= ASK_TOKEN; question++)
	{
		bool		by_count = question == ASK_TOP_K || question == ASK_LEAST_KEPT;
		uint64_t	wanted = wanted_by(static_cast<Question>(question), order, count, weight);
		uint64_t	of_one;
		uint64_t	reached;

		if (wanted == 0)
			continue;
		group = find_group(row, wanted - 1, by_count);
		of_one = group.count == 1 ? group.weight : weight_of(row, group.prefix);
		*member = by_count ? static_cast<uint32_t>(wanted) - 1 - group.count_before
			: divide_weight(wanted - 1 - group.weight_before, of_one);
		reached = group.weight_before + (*member + 1) * of_one;
		if (question == ASK_TOP_K)	/* ties with the k-th stay */
			weight = group.weight_before + group.weight;
		else if (question == ASK_TOP_P || reached > weight)
			weight = reached;
	}
	return group;
}

__device__ static inline bool
is_in_group(const TokenGroup *group, uint32_t place)
{
	return place != 0 && place >> group->shift == group->prefix;
}

/*
 * Write the member-th token by id of a group: each thread counts those of a range of ids, and the
 * thread that has it in its range writes. counts [DRAW_THREADS] is shared.
 */
__device__ static inline void
write_member(const DrawRow *row, const TokenGroup *group, uint32_t member, uint32_t *counts,
			 const float *logits, Candidate *drawn)
{
	int			range = (row->tokens + DRAW_THREADS - 1) / DRAW_THREADS;
	int			first = static_cast<int>(threadIdx.x) * range;
	int			end = min(first + range, row->tokens);
	uint32_t	count = 0;

	for (int token = first; token < end; token++)
		count += is_in_group(group, row->places[token]) ? 1 : 0;
	counts[threadIdx.x] = count;
	__syncthreads();
	for (unsigned i = 0; count > 0 && i < threadIdx.x; i++)
		member -= counts[i];
	if (member >= count)		/* earlier ranges have it, and it wrapped around, or later ones */
		return;
	for (int token = first; token < end; token++)
		if (is_in_group(group, row->places[token]) && member-- == 0)
			*drawn = Candidate{logits[token], token};
}

/*
 * A block is an order. The launch bounds' 1 lets it have the registers that it wants; else ptxas
 * counts how many blocks the shared memory leaves room for, and spills to fit them all.
 */
__global__ static void __launch_bounds__(DRAW_THREADS, 1)
draw_kernel(Rows all, const RowMasks *rows, const uint32_t *masks, const DrawOrder *orders,
			uint32_t *places, RowStatistics *statistics)
{
	SHARED(uint64_t, parts, DIGITS * DRAW_THREADS);
	SHARED(DigitSum, first, DIGITS);
	SHARED(DigitSum, sums, DIGITS);
	SHARED(uint32_t, counts, DRAW_THREADS);
	SHARED(uint32_t, largest_of_warps, DRAW_WARPS);
	DrawOrder	order = orders[blockIdx.x];
	RowStatistics *result = &statistics[order.row];
	const float *logits = all.row(order.row);
	DrawRow		row = {places + static_cast<int64_t>(blockIdx.x) * all.columns, all.columns, 0.0f,
		parts, first, sums};
	uint32_t	largest = write_places(&row, logits, order.temperature, masks,
									   rows == nullptr ? -1 : rows[order.row].choosable,
									   largest_of_warps);
	TokenGroup	group = {largest, 0, 1, 0, 1, 0};
	uint32_t	member = 0;

	row.largest = scaled_logit(largest);
	/* an infinite one is drawn, or the first one where all are minus infinity */
	if (isfinite(row.largest))
	{
		sum_digits(&row, 0, 32 - DIGIT_BITS, first);
		group = draw_group(&row, &order, &member);
	}
	if (largest != 0)
		write_member(&row, &group, member, counts, logits, &result->choice);
	else if (threadIdx.x == 0 && result->largest.token >= 0)
		result->choice = result->largest;
}

/* ---- the host's side ---- */

/* A number in [0, 1) of 2^64. */
static uint64_t
fraction(double number)
{
	return static_cast<uint64_t>(ldexp(number, 64));
}

static DrawOrder
make_order(int row, const ChoiceRule *rule)
{
	uint32_t	least = rule->least_kept > 0 ? static_cast<uint32_t>(rule->least_kept) : 1;
	uint32_t	top_k = rule->top_k > 0 ? static_cast<uint32_t>(rule->top_k) : 0;
	uint64_t	top_p = 0;

	/* the least that can be told leaves one token, as a top_p of 0 does */
	if (rule->top_p < 1.0f)
		top_p = rule->top_p > 0x1p-64f ? fraction(static_cast<double>(rule->top_p)) : 1;
	return DrawOrder{fraction(sampling_random(rule->seed, rule->counter)), top_p,
		top_k > 0 && top_k < least ? least : top_k, least, row, rule->temperature};
}

static bool
is_drawn(const ChoiceRule *rule)
{
	return !rule->skipped && rule->temperature > 0.0f;
}

size_t
cuda_draw_size(Tensor logits, const ChoiceRule *rules)
{
	size_t		of_one = sizeof(DrawOrder) + static_cast<size_t>(logits.columns) * sizeof(uint32_t);
	size_t		size = 0;

	for (int i = 0; i < logits.rows; i++)
		size += is_drawn(&rules[i]) ? of_one : 0;
	return size;
}

void
cuda_draw(const Reading *reading, const ChoiceRule *rules, DrawOrder *orders, void *memory,
		  RowStatistics *statistics)
{
	CudaBackend *cuda = reading->cuda;
	DrawOrder  *on_device = static_cast<DrawOrder *>(memory);
	unsigned	count = 0;

	for (int i = 0; i < reading->logits.rows; i++)
		if (is_drawn(&rules[i]))
			orders[count++] = make_order(i, &rules[i]);
	if (count == 0)
		return;
	cuda_upload(&cuda->base, on_device, orders, count * sizeof(DrawOrder));
	LAUNCH(draw_kernel, count, DRAW_THREADS, 0, cuda->stream, cuda_rows(reading->logits),
		   reading->device_rows, reading->device_masks, on_device,
		   reinterpret_cast<uint32_t *>(on_device + count), statistics);
}
