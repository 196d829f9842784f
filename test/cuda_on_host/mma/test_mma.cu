/*
 * test_mma.cu - the instructions of cuda/mma.h against plain loops: on the host and, where there is
 * one, on a GPU (test/device/run), which tells whether the emulation has the layouts right.
 */
#include "mma.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 16
#define DEPTH 16
#define COLUMNS 8
#define NUMBERS 256
#define TURNS 5

/* One product, in memory that host and device take turns with. */
typedef struct Product
{
	uint16_t	a[ROWS][DEPTH];
	uint16_t	b[DEPTH][COLUMNS];
	uint16_t	b_turned[COLUMNS][DEPTH];
	float		c[ROWS][COLUMNS];
	float		sum[ROWS][COLUMNS];			/* c + a b */
	float		sum_turned[ROWS][COLUMNS];	/* the same with b_turned */
} Product;

/* What is computed number by number. */
typedef struct Numbers
{
	float		x[NUMBERS];
	float		power[NUMBERS];
	uint32_t	packed[NUMBERS];			/* x[i] and x[NUMBERS - 1 - i] */
	uint4		vectors[WARP];
	uint4		copied[WARP];				/* the even ones of vectors */
} Numbers;

/* One product of bytes. */
typedef struct ByteProduct
{
	int8_t		a[ROWS][2 * DEPTH];
	int8_t		b[2 * DEPTH][COLUMNS];
	int32_t		c[ROWS][COLUMNS];
	int32_t		sum[ROWS][COLUMNS];		/* c + a b */
} ByteProduct;

/* Rounds of copies, the next two under way while one is read. */
typedef struct Copies
{
	uint4		vectors[TURNS][WARP];
	uint2		halves[TURNS][WARP];
	uint4		copied[TURNS][WARP];	/* each lane's is the vector of the lane across */
	uint2		copied_halves[TURNS][WARP];
} Copies;

static int	tests;
static int	failures;
static cudaStream_t stream;

/* ---- kernels ---- */

/* Both ways to load b; one warp. */
__global__ static void
product_kernel(Product *p)
{
	SHARED(uint4, a_rows, ROWS * 2);
	SHARED(uint4, b_rows, DEPTH);
	SHARED(uint4, b_turned_rows, COLUMNS * 2);
	int			lane = static_cast<int>(threadIdx.x);
	uint32_t	a[4];
	uint32_t	b[4];
	float		c[4];

	copy_async(a_rows, lane, reinterpret_cast<const uint4 *>(p->a) + lane, true);
	if (lane < DEPTH)
	{
		copy_async(b_rows, lane, reinterpret_cast<const uint4 *>(p->b) + lane, true);
		copy_async(b_turned_rows, lane, reinterpret_cast<const uint4 *>(p->b_turned) + lane, true);
	}
	wait_for_copies();
	__syncthreads();
	load_matrices(a_rows, lane % 16 * 2 + lane / 16, a);
	for (int turned = 0; turned < 2; turned++)
	{
		float		(*sum)[COLUMNS] = turned ? p->sum_turned : p->sum;

		for (int i = 0; i < 4; i++)
			c[i] = p->c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
		if (turned)
			load_matrices(b_turned_rows, lane % 8 * 2 + lane / 8 % 2, b);
		else
			load_matrices_transposed(b_rows, lane % 16, b);
		mma_bf16(c, a, b[0], b[1]);
		for (int i = 0; i < 4; i++)
			sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = c[i];
	}
}

__global__ static void
number_kernel(Numbers *p)
{
	SHARED(uint4, copied, WARP);
	int			lane = static_cast<int>(threadIdx.x);

	for (int i = lane; i < NUMBERS; i += WARP)
	{
		p->power[i] = power_of_two(p->x[i]);
		p->packed[i] = pack_bf16(p->x[i], p->x[NUMBERS - 1 - i]);
	}
	copy_async(copied, lane, p->vectors + lane, lane % 2 == 0);
	wait_for_copies();
	__syncthreads();
	p->copied[lane] = copied[WARP - 1 - lane];
}

/* Elements by their numbers in a lane's registers, as the PTX manual has them. */
__global__ static void
byte_product_kernel(ByteProduct *p)
{
	int			group = static_cast<int>(threadIdx.x) / 4;
	int			thread = static_cast<int>(threadIdx.x) % 4;
	uint32_t	a[4] = {};
	uint32_t	b[2] = {};
	int32_t		c[4];
	int32_t		sum[4];

	for (int i = 0; i < 16; i++)
	{
		int			row = i < 4 || (i >= 8 && i < 12) ? group : group + 8;
		int			column = thread * 4 + (i & 3) + (i >= 8 ? 16 : 0);

		a[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(p->a[row][column])) << i % 4 * 8;
	}
	for (int i = 0; i < 8; i++)
	{
		int			row = thread * 4 + (i & 3) + (i >= 4 ? 16 : 0);

		b[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(p->b[row][group])) << i % 4 * 8;
	}
	for (int i = 0; i < 4; i++)
		c[i] = p->c[i < 2 ? group : group + 8][thread * 2 + (i & 1)];
	mma_s8(sum, a, b, c);
	for (int i = 0; i < 4; i++)
		p->sum[i < 2 ? group : group + 8][thread * 2 + (i & 1)] = sum[i];
}

__device__ static inline void
start_copies(const Copies *p, int turn, uint4 *vectors, uint2 *halves)
{
	int			lane = static_cast<int>(threadIdx.x);

	if (turn < TURNS)
	{
		copy_async(vectors, turn % 3 * WARP + lane, &p->vectors[turn][lane], true);
		copy_async(&halves[turn % 3 * WARP + lane], &p->halves[turn][lane]);
	}
	close_copies();
}

__global__ static void
copy_kernel(Copies *p)
{
	SHARED(uint4, vectors, 3 * WARP);
	SHARED(uint2, halves, 3 * WARP);
	int			lane = static_cast<int>(threadIdx.x);

	start_copies(p, 0, vectors, halves);
	start_copies(p, 1, vectors, halves);
	for (int turn = 0; turn < TURNS; turn++)
	{
		wait_for_groups<1>();
		__syncthreads();
		start_copies(p, turn + 2, vectors, halves);
		p->copied[turn][lane] = vectors[turn % 3 * WARP + WARP - 1 - lane];
		p->copied_halves[turn][lane] = halves[turn % 3 * WARP + WARP - 1 - lane];
	}
}

/* ---- the host's side ---- */

static void
check(bool right, const char *name)
{
	printf("%sok %d - %s\n", right ? "" : "not ", ++tests, name);
	failures += !right;
}

/* Run a kernel of one warp over a copy of x on the device. */
template <typename T>
static void
run_on_device(void (*kernel) (T *), T *x)
{
	void	   *address = nullptr;

	cudaMalloc(&address, sizeof(T));
	cudaMemcpyAsync(address, x, sizeof(T), cudaMemcpyHostToDevice, stream);
	LAUNCH(kernel, 1, WARP, 0, stream, static_cast<T *>(address));
	cudaMemcpyAsync(x, address, sizeof(T), cudaMemcpyDeviceToHost, stream);
	if (cudaStreamSynchronize(stream) != cudaSuccess || cudaGetLastError() != cudaSuccess)
	{
		puts("Bail out! the device");
		exit(1);
	}
	cudaFree(address);
}

static float
random_number(void)
{
	static uint32_t state = 1;

	state = state * 1664525u + 1013904223u;
	return static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
}

static uint16_t
to_half(float value)
{
	uint32_t	bits;

	memcpy(&bits, &value, sizeof(bits));
	return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static float
from_half(uint16_t half)
{
	uint32_t	bits = static_cast<uint32_t>(half) << 16;
	float		value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* Random operands; whole ones have exact sums, in any order. */
static Product
random_product(bool whole)
{
	Product		p = {};

	for (int i = 0; i < ROWS * DEPTH; i++)
		p.a[i / DEPTH][i % DEPTH] = to_half(whole ? rintf(random_number() * 99) : random_number());
	for (int i = 0; i < DEPTH * COLUMNS; i++)
		p.b[i / COLUMNS][i % COLUMNS] = p.b_turned[i % COLUMNS][i / COLUMNS] =
			to_half(whole ? rintf(random_number() * 99) : random_number());
	for (int i = 0; i < ROWS * COLUMNS; i++)
		p.c[i / COLUMNS][i % COLUMNS] = whole ? rintf(random_number() * 9999) : random_number();
	return p;
}

/* The largest difference between a product and its three loops. */
static double
product_error(const Product *p)
{
	double		worst = 0;

	for (int r = 0; r < ROWS; r++)
		for (int n = 0; n < COLUMNS; n++)
		{
			double		sum = static_cast<double>(p->c[r][n]);

			for (int k = 0; k < DEPTH; k++)
				sum += static_cast<double>(from_half(p->a[r][k])) *
					static_cast<double>(from_half(p->b[k][n]));
			worst = fmax(worst, fabs(static_cast<double>(p->sum[r][n]) - sum));
			worst = fmax(worst, fabs(static_cast<double>(p->sum_turned[r][n]) - sum));
		}
	return worst;
}

static void
test_products(void)
{
	Product		whole = random_product(true);
	Product		p = random_product(false);
	Product		moved = p;
	bool		same = true;

	run_on_device(product_kernel, &whole);
	run_on_device(product_kernel, &p);
	check(product_error(&whole) == 0.0, "a product of whole numbers is that of three loops");
	check(product_error(&p) < 1e-5, "a product is that of three loops, by rounding");
	/* every row goes 5 down, every column 3 to the right */
	for (int i = 0; i < ROWS * DEPTH; i++)
		moved.a[(i / DEPTH + 5) % ROWS][i % DEPTH] = p.a[i / DEPTH][i % DEPTH];
	for (int i = 0; i < DEPTH * COLUMNS; i++)
	{
		moved.b[i / COLUMNS][(i + 3) % COLUMNS] = p.b[i / COLUMNS][i % COLUMNS];
		moved.b_turned[(i + 3) % COLUMNS][i / COLUMNS] = p.b[i / COLUMNS][i % COLUMNS];
	}
	for (int i = 0; i < ROWS * COLUMNS; i++)
		moved.c[(i / COLUMNS + 5) % ROWS][(i + 3) % COLUMNS] = p.c[i / COLUMNS][i % COLUMNS];
	run_on_device(product_kernel, &moved);
	for (int i = 0; i < ROWS * COLUMNS; i++)
		same = same && memcmp(&moved.sum[(i / COLUMNS + 5) % ROWS][(i + 3) % COLUMNS],
							  &p.sum[i / COLUMNS][i % COLUMNS], sizeof(float)) == 0;
	check(same, "an element has the same bits in any row and column");
}

/* Where a is zero, as the weights of keys that a row does not see are, b may be anything finite. */
static void
test_zeros(void)
{
	Product		p = random_product(false);
	Product		other;

	for (int i = 0; i < ROWS * DEPTH; i++)
		if (i / DEPTH % 2 == 0 || i % DEPTH > 6)
			p.a[i / DEPTH][i % DEPTH] = 0;
	other = p;
	for (int i = 7 * COLUMNS; i < DEPTH * COLUMNS; i++)
		other.b[i / COLUMNS][i % COLUMNS] = other.b_turned[i % COLUMNS][i / COLUMNS] =
			to_half(ldexpf(random_number(), i % 40));
	run_on_device(product_kernel, &p);
	run_on_device(product_kernel, &other);
	check(memcmp(p.sum, other.sum, sizeof(p.sum)) == 0, "zero times a number adds nothing");
	check(memcmp(p.sum[2], p.c[2], sizeof(p.c[2])) == 0, "a row of zeros leaves the sum as it is");
}

static void
test_numbers(void)
{
	Numbers		p = {};
	bool		power = true;
	bool		packed = true;
	bool		copied = true;

	for (int i = 0; i < NUMBERS; i++)
		p.x[i] = i == 0 ? 0.0f : i == 1 ? -INFINITY : i == 2 ? -126.5f : random_number() * 125;
	for (unsigned i = 0; i < WARP; i++)
		p.vectors[i] = make_uint4(i, 100 + i, 200 + i, 300 + i);
	run_on_device(number_kernel, &p);
	for (int i = 0; i < NUMBERS; i++)
	{
		double		expected = i == 1 || i == 2 ? 0 : exp2(static_cast<double>(p.x[i]));
		uint32_t	upper = to_half(p.x[NUMBERS - 1 - i]);

		power = power && fabs(static_cast<double>(p.power[i]) - expected) <= expected * 0x1p-22;
		packed = packed && p.packed[i] == (upper << 16 | to_half(p.x[i]));
	}
	for (unsigned i = 0; i < WARP; i++)
	{
		unsigned	from = WARP - 1 - i;
		uint4		expected = from % 2 == 0 ? p.vectors[from] : make_uint4(0, 0, 0, 0);

		copied = copied && memcmp(&p.copied[i], &expected, sizeof(expected)) == 0;
	}
	check(power && p.power[0] == 1.0f, "powers of two");
	check(packed, "two numbers as bf16");
	check(copied, "copies, and zeros in place of what is not looked at");
}

static uint32_t
random_bits(void)
{
	static uint32_t state = 1;

	state = state * 1664525u + 1013904223u;
	return state >> 8;
}

/* Whether the kernel gives what three loops give. */
static bool
is_right(ByteProduct *p)
{
	run_on_device(byte_product_kernel, p);
	for (int r = 0; r < ROWS; r++)
		for (int n = 0; n < COLUMNS; n++)
		{
			int32_t		sum = p->c[r][n];

			for (int k = 0; k < 2 * DEPTH; k++)
				sum += p->a[r][k] * p->b[k][n];
			if (p->sum[r][n] != sum)
				return false;
		}
	return true;
}

static void
test_products_of_bytes(void)
{
	ByteProduct	p = {};
	bool		right = true;

	for (int turn = 0; turn < 20; turn++)
	{
		for (int i = 0; i < ROWS * 2 * DEPTH; i++)
			p.a[i / (2 * DEPTH)][i % (2 * DEPTH)] = static_cast<int8_t>(random_bits());
		for (int i = 0; i < 2 * DEPTH * COLUMNS; i++)
			p.b[i / COLUMNS][i % COLUMNS] = static_cast<int8_t>(random_bits());
		for (int i = 0; i < ROWS * COLUMNS; i++)
			p.c[i / COLUMNS][i % COLUMNS] = static_cast<int32_t>(random_bits()) - (1 << 23);
		right = right && is_right(&p);
	}
	check(right, "products of random bytes are those of three loops");
	memset(p.a, -128, sizeof(p.a));
	memset(p.b, -128, sizeof(p.b));
	check(is_right(&p), "the largest product of bytes is exact");
	memset(p.b, 127, sizeof(p.b));
	check(is_right(&p), "the smallest product of bytes is exact");
}

static void
test_groups_of_copies(void)
{
	Copies		p = {};
	bool		right = true;

	for (int i = 0; i < TURNS * WARP; i++)
	{
		p.vectors[i / WARP][i % WARP] = make_uint4(random_bits(), random_bits(), random_bits(),
												   random_bits());
		p.halves[i / WARP][i % WARP] = make_uint2(random_bits(), random_bits());
	}
	run_on_device(copy_kernel, &p);
	for (int turn = 0; turn < TURNS; turn++)
		for (int lane = 0; lane < WARP; lane++)
			right = right &&
				memcmp(&p.copied[turn][lane], &p.vectors[turn][WARP - 1 - lane],
					   sizeof(uint4)) == 0 &&
				memcmp(&p.copied_halves[turn][lane], &p.halves[turn][WARP - 1 - lane],
					   sizeof(uint2)) == 0;
	check(right, "copies arrive in the order of their groups");
}

int
main(void)
{
	cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
	test_products();
	test_zeros();
	test_numbers();
	test_products_of_bytes();
	test_groups_of_copies();
	printf("1..%d\n", tests);
	return failures == 0 ? 0 : 1;
}
