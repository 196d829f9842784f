/*
 * mma_on_host.cpp - instructions of cuda/mma.h, as exchanges between the lanes of a warp.
 *
 * A lane shows the others its registers, waits for all, computes its part of the result, and waits
 * again before its registers change. Sums are rounded once; the order of devices is not documented.
 */
#include "emulator.h"
#include "mma_on_host.h"

#include <deque>

#define WARP 32
#define MOST_THREADS 1024
#define DEPTH 16

/* Registers of a lane for a and b. */
typedef struct Operands
{
	uint32_t	a[4];
	uint32_t	b[2];
} Operands;

static std::deque<HostCopy> copies[MOST_THREADS];
static int	copy_count;			/* of all threads */
static unsigned closed_groups[MOST_THREADS];

/* The pointers that all lanes of the warp give. */
template <typename T>
static const T *const *
show_to_warp(const T *registers)
{
	static_assert(sizeof(const T *) == sizeof(uint64_t));
	return (const T *const *) host_warp_exchange((uint64_t) registers, __FILE__, __LINE__);
}

/* Wait until all lanes have looked. */
static void
have_looked(void)
{
	host_warp_exchange(0, __FILE__, __LINE__);
}

static double
half_value(uint32_t word, int half)
{
	return (double) host_bits<float>(half ? word & 0xFFFF0000u : word << 16);
}

void
host_mma_bf16(float *c, const uint32_t *a, uint32_t b_upper, uint32_t b_lower)
{
	Operands	mine = {{a[0], a[1], a[2], a[3]}, {b_upper, b_lower}};
	const Operands *const *lanes = show_to_warp(&mine);
	int			lane = (int) (threadIdx.x % WARP);

	for (int r = 0; r < 2; r++)
		for (int i = 0; i < 2; i++)
		{
			int			row = lane / 4;
			int			column = lane % 4 * 2 + i;
			double		sum = (double) c[r * 2 + i];

			for (int k = 0; k < DEPTH; k++)
			{
				int			owner = k % 8 / 2;	/* t of the lanes that have this depth */
				double		x = half_value(lanes[row * 4 + owner]->a[k / 8 * 2 + r], k % 2);

				sum += x * half_value(lanes[column * 4 + owner]->b[k / 8], k % 2);
			}
			c[r * 2 + i] = (float) sum;
		}
	have_looked();
}

/* By words of four bytes. */
void
host_mma_s8(int32_t *d, const uint32_t *a, const uint32_t *b, const int32_t *c)
{
	Operands	mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
	const Operands *const *lanes = show_to_warp(&mine);
	int			lane = (int) (threadIdx.x % WARP);

	for (int i = 0; i < 4; i++)
	{
		int			row = lane / 4;
		int			column = lane % 4 * 2 + i % 2;
		int32_t		sum = c[i];

		for (int word = 0; word < 8; word++)
			sum = __dp4a((int) lanes[row * 4 + word % 4]->a[word / 4 * 2 + i / 2],
						 (int) lanes[column * 4 + word % 4]->b[word / 4], sum);
		d[i] = sum;
	}
	have_looked();
}

void
host_give_row(uint32_t x, uint32_t y, uint32_t z, uint32_t w, bool transposed, uint32_t *to)
{
	uint4		row = make_uint4(x, y, z, w);
	const uint4 *const *lanes = show_to_warp(&row);
	int			lane = (int) (threadIdx.x % WARP);

	for (int m = 0; m < 4; m++)
	{
		uint16_t	halves[2];

		for (int i = 0; i < 2; i++)
		{
			int			r = transposed ? lane % 4 * 2 + i : lane / 4;
			int			column = transposed ? lane / 4 : lane % 4 * 2 + i;

			memcpy(&halves[i], (const char *) lanes[m * 8 + r] + column * 2, sizeof(uint16_t));
		}
		memcpy(&to[m], halves, sizeof(to[m]));
	}
	have_looked();
}

void
host_copy_later(void *to, const void *from, size_t bytes)
{
	unsigned	thread = emulator_place().thread;

	if ((uintptr_t) to % bytes != 0 || (uintptr_t) from % bytes != 0)
		emulator_error("copies %zu bytes from %p to %p", bytes, from, to);
	copies[thread].push_back({to, from, bytes, closed_groups[thread]});
	copy_count++;
}

void
host_close_copies(void)
{
	closed_groups[emulator_place().thread]++;
}

bool
host_next_copy(HostCopy *copy, int newest)
{
	unsigned	thread = emulator_place().thread;
	std::deque<HostCopy> *queue = &copies[thread];

	if (queue->empty() ||
		(newest != HOST_ALL_COPIES &&
		 queue->front().group + (unsigned) newest >= closed_groups[thread]))
		return false;
	*copy = queue->front();
	queue->pop_front();
	copy_count--;
	return true;
}

void
emulator_end_copies(void)
{
	if (copy_count == 0)
		return;
	emulator_error("ends while %d of its copies are under way", copy_count);
	for (std::deque<HostCopy> &queue : copies)
		queue.clear();
	copy_count = 0;
}
