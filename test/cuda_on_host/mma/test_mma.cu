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

int
main(void)
{
	cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
	test_products();
	test_zeros();
	test_numbers();
	printf("1..%d\n", tests);
	return failures == 0 ? 0 : 1;
}
