/*
 * memory_read.c - how fast all threads together read memory, in GB/s: memory_read THREADS
 *
 * Each thread adds up its part of 512 MB again and again for half a second. The figure brackets
 * other measurements: it tells whether the machine was the same before and after.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BYTES ((size_t) 512 << 20)
#define SECONDS 0.5

typedef struct Part
{
	const uint64_t *words;
	size_t		count;
	uint64_t	sum;
	double		bytes;
	double		seconds;
} Part;

static double
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double) time.tv_sec + (double) time.tv_nsec * 1e-9;
}

static void *
read_part(void *argument)
{
	Part	   *part = argument;
	double		begin = now();

	do
	{
		uint64_t	sums[16] = {0};

		for (size_t i = 0; i + 16 <= part->count; i += 16)
			for (int j = 0; j < 16; j++)
				sums[j] += part->words[i + j];
		for (int j = 0; j < 16; j++)
			part->sum += sums[j];
		part->bytes += (double) part->count * sizeof(uint64_t);
		part->seconds = now() - begin;
	} while (part->seconds < SECONDS);
	return NULL;
}

int
main(int argc, char **argv)
{
	int			threads = argc > 1 ? atoi(argv[1]) : 1;
	uint64_t   *words = aligned_alloc(64, BYTES);
	Part	   *parts = calloc((size_t) threads, sizeof(Part));
	pthread_t  *workers = calloc((size_t) threads, sizeof(pthread_t));
	double		rate = 0;

	if (threads < 1 || words == NULL || parts == NULL || workers == NULL)
		return 1;
	memset(words, 1, BYTES);
	for (int i = 0; i < threads; i++)
	{
		size_t		count = BYTES / sizeof(uint64_t) / (size_t) threads / 16 * 16;

		parts[i] = (Part) {.words = words + (size_t) i * count, .count = count};
		if (pthread_create(&workers[i], NULL, read_part, &parts[i]) != 0)
			return 1;
	}
	for (int i = 0; i < threads; i++)
	{
		pthread_join(workers[i], NULL);
		rate += parts[i].bytes / parts[i].seconds;
	}
	printf("%.1f\n", rate * 1e-9);
	return parts[0].sum == 42;	/* the sums are used */
}
