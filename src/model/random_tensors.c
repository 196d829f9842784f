/*
 * random_tensors.c - see random_tensors.h.
 *
 * A tensor has its own mapping, which is given back page by page as that of a file is; so a model
 * of noise takes no more memory while it loads than one that is read.
 */
#include "random_tensors.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>

/* Numbers that are drawn; a larger tensor repeats them. */
#define DRAWN ((size_t) 1 << 18)
/* Of a uniform number between -1 and 1, the deviation. */
#define UNIFORM_DEVIATION 0.57735026918962576

typedef struct RandomTensor
{
	StoredTensor stored;
	struct RandomTensor *next;
} RandomTensor;

struct RandomTensors
{
	Arena	   *arena;
	RandomTensor *first;
	uint32_t	state;
};

RandomTensors *
random_tensors_create(Arena *arena)
{
	RandomTensors *tensors = arena_take(arena, sizeof(RandomTensors));

	if (tensors == NULL)
		return NULL;
	tensors->arena = arena;
	tensors->state = 1;
	return tensors;
}

/* Uniform in [-1, 1): a linear congruential generator (Knuth), whose high bits are good enough. */
static float
draw_number(RandomTensors *tensors)
{
	tensors->state = tensors->state * 1664525u + 1013904223u;
	return (float) (int32_t) tensors->state * 0x1p-31f;
}

/* What a tensor's numbers are about, and how far they go from it. */
static void
choose_range(const StoredTensor *tensor, float *middle, float *reach)
{
	size_t		inputs = 1;

	for (int i = 1; i < tensor->dimensions; i++)
		inputs *= (size_t) tensor->shape[i];
	*middle = tensor->dimensions == 1 && strstr(tensor->name, "weight") != NULL ? 1.0f : 0.0f;
	*reach = tensor->dimensions == 1 ? 0.1f
		: (float) (1.0 / (UNIFORM_DEVIATION * sqrt((double) inputs)));
}

/* Rounded toward zero, which noise may be. */
static uint16_t
cut_to_bf16(float value)
{
	uint32_t	bits;

	memcpy(&bits, &value, sizeof(bits));
	return (uint16_t) (bits >> 16);
}

static void
fill(RandomTensors *tensors, const StoredTensor *tensor, uint16_t *values)
{
	size_t		count = tensor->bytes / sizeof(uint16_t);
	size_t		drawn = count < DRAWN ? count : DRAWN;
	float		middle;
	float		reach;

	choose_range(tensor, &middle, &reach);
	for (size_t i = 0; i < drawn; i++)
		values[i] = cut_to_bf16(middle + reach * draw_number(tensors));
	for (size_t done = drawn; done < count; done += drawn)
		memcpy(values + done, values,
			   (count - done < drawn ? count - done : drawn) * sizeof(uint16_t));
}

StoredTensor *
random_tensors_draw(RandomTensors *tensors, const char *name, int dimensions, const int *shape,
					Status *status)
{
	RandomTensor *tensor = arena_take(tensors->arena, sizeof(RandomTensor));
	const char *copy = arena_copy_text(tensors->arena, name, strlen(name));
	size_t		bytes = sizeof(uint16_t);
	void	   *values;

	for (int i = 0; i < dimensions; i++)
		bytes *= (size_t) shape[i];
	values = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (tensor == NULL || copy == NULL || values == MAP_FAILED)
	{
		if (values != MAP_FAILED)
			munmap(values, bytes);
		status_out_of_memory(status, bytes);
		return NULL;
	}
	tensor->stored = (StoredTensor) {.name = copy, .stored_name = copy, .file = "noise",
		.type = TYPE_BF16, .dimensions = dimensions, .data = values, .bytes = bytes, .used = true};
	memcpy(tensor->stored.shape, shape, (size_t) dimensions * sizeof(int));
	tensor->next = tensors->first;
	tensors->first = tensor;
	fill(tensors, &tensor->stored, values);
	return &tensor->stored;
}

void
random_tensors_free(RandomTensors *tensors)
{
	for (RandomTensor *tensor = tensors->first; tensor != NULL; tensor = tensor->next)
		munmap((void *) tensor->stored.data, tensor->stored.bytes);
	tensors->first = NULL;
}
