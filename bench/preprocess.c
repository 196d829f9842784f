/*
 * preprocess.c - how many pictures a second one thread turns into CLIP input.
 *
 *	preprocess FILE SIZE COUNT		prints pictures per second
 *
 * Normalising is left to the first layer and is not part of it, as in the engine.
 */
#include <stdio.h>
#include <stdlib.h>

#include "clock.h"
#include "image.h"

static uint8_t *
read_file(const char *path, size_t *length)
{
	FILE	   *file = fopen(path, "rb");
	uint8_t    *bytes;
	long		size;

	if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0)
		return NULL;
	rewind(file);
	bytes = malloc((size_t) size + 1);
	*length = bytes == NULL ? 0 : fread(bytes, 1, (size_t) size, file);
	fclose(file);
	return bytes;
}

int
main(int argc, char **argv)
{
	ImageLimits limits = {UINT64_C(1) << 31};
	Arena	   *arena = arena_create();
	Status		status;
	uint8_t    *bytes;
	uint8_t    *pixels;
	size_t		length;
	uint64_t	begin;
	int			size;
	int			count;

	if (argc != 4 || arena == NULL || (bytes = read_file(argv[1], &length)) == NULL)
	{
		fprintf(stderr, "usage: preprocess FILE SIZE COUNT\n");
		return 2;
	}
	size = atoi(argv[2]);
	count = atoi(argv[3]);
	pixels = malloc((size_t) size * (size_t) size * 3);
	begin = clock_now_ns();
	for (int i = 0; i < count; i++)
	{
		arena_reset(arena);
		if (!image_preprocess(bytes, length, IMAGE_RULES_DISPLAY, &limits, size, arena, pixels,
							  &status))
		{
			fprintf(stderr, "preprocess: %s\n", status.message);
			return 1;
		}
	}
	printf("%.2f\n", count / ((double) (clock_now_ns() - begin) * 1e-9));
	return 0;
}
