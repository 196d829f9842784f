/*
 * image_preprocess.c - rows of a file on their way to the resize, turned as the
 * orientation says.
 *
 * Mirroring works row by row. Orientations 5 to 8 exchange rows and columns; for these
 * the whole picture is kept, since the resize wants rows of the turned one.
 */
#include <string.h>

#include "image_internal.h"

static bool
transposes(int orientation)
{
	return orientation >= 5;
}

bool
picture_begin(PictureTarget *target, int width, int height, int orientation, int size, Arena *arena,
			  Status *status)
{
	size_t		row = (size_t) width * 3;

	memset(target, 0, sizeof(*target));
	target->width = width;
	target->height = height;
	target->orientation = orientation;
	target->size = size;
	target->arena = arena;
	if (transposes(orientation))
	{
		target->whole = arena_take_array(arena, (size_t) height, row);
		return target->whole != NULL || status_out_of_memory(status, (size_t) height * row);
	}
	target->mirrored = arena_take(arena, row);
	if (target->mirrored == NULL)
		return status_out_of_memory(status, row);
	target->resizer = resizer_create(width, height, size, arena, status);
	return target->resizer != NULL;
}

void
picture_take_row(PictureTarget *target, int y, const uint8_t *rgb)
{
	int			width = target->width;

	if (transposes(target->orientation))
	{
		memcpy(target->whole + (size_t) y * (size_t) width * 3, rgb, (size_t) width * 3);
		return;
	}
	if (target->orientation == 2 || target->orientation == 3)
	{
		for (int x = 0; x < width; x++)
			memcpy(target->mirrored + 3 * x, rgb + 3 * (width - 1 - x), 3);
		rgb = target->mirrored;
	}
	if (target->orientation == 3 || target->orientation == 4)
		y = target->height - 1 - y;
	resizer_take_row(target->resizer, y, rgb);
}

/* Feed the turned rows of a whole picture to a resize of height x width pixels. */
static bool
resize_transposed(PictureTarget *target, Status *status)
{
	int			width = target->width;
	int			height = target->height;
	bool		from_right = target->orientation == 7 || target->orientation == 8;
	bool		from_bottom = target->orientation == 6 || target->orientation == 7;
	uint8_t    *row = arena_take_array(target->arena, (size_t) height, 3);

	if (row == NULL)
		return status_out_of_memory(status, (size_t) height * 3);
	target->resizer = resizer_create(height, width, target->size, target->arena, status);
	if (target->resizer == NULL)
		return false;
	for (int y = 0; y < width; y++)
	{
		int			column = from_right ? width - 1 - y : y;

		for (int x = 0; x < height; x++)
		{
			size_t		line = (size_t) (from_bottom ? height - 1 - x : x);

			memcpy(row + 3 * x, target->whole + (line * (size_t) width + (size_t) column) * 3, 3);
		}
		resizer_take_row(target->resizer, y, row);
	}
	return true;
}

bool
picture_finish(PictureTarget *target, uint8_t *pixels, Status *status)
{
	if (transposes(target->orientation) && !resize_transposed(target, status))
		return false;
	resizer_finish(target->resizer, pixels);
	return true;
}
