/*
 * picture.h - files made and compared by the tests of src/image.
 *
 * The tests make PNG files of every kind with libpng and say in a few plain lines
 * what they should look like; that is written as a PNG of 8-bit RGB, the kind
 * that the golden pictures hold to Pillow, and both must give the same square.
 */
#ifndef MMGPT_TEST_PICTURE_H
#define MMGPT_TEST_PICTURE_H

#include <png.h>

#include "image.h"
#include "unit.h"

#define PICTURE_MAX_PIXELS 100000000

/* Bytes of the C heap. */
typedef struct Bytes
{
	uint8_t    *data;
	size_t		length;
} Bytes;

/* A PNG file to be made. */
typedef struct PngRecipe
{
	int			width;
	int			height;
	int			type;			/* PNG_COLOR_TYPE_* */
	int			bits;
	bool		interlaced;
	const uint8_t *rows;		/* as the file holds them, each row from a byte on */
	const png_color *palette;	/* of 2^bits colours */
	const png_byte *palette_alpha;	/* as many, or NULL */
	const png_color_16 *key;	/* the transparent colour, or NULL */
	int			orientation;	/* 0: no eXIf chunk */
	bool		big_endian;		/* of the eXIf chunk */
	const png_text *texts;
	int			text_count;
} PngRecipe;

/* A number below limit; the same ones in every run. */
static UNIT_UNUSED uint32_t
picture_random(uint64_t *state, uint32_t limit)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t) (*state >> 33) % limit;
}

/* Bytes of a row of a PNG file. */
static UNIT_UNUSED size_t
picture_row_bytes(int width, int channels, int bits)
{
	return ((size_t) width * (size_t) channels * (size_t) bits + 7) / 8;
}

/* Channels of a PNG colour type; an index is one. */
static UNIT_UNUSED int
picture_channels(int type)
{
	return type == PNG_COLOR_TYPE_RGB ? 3 : type == PNG_COLOR_TYPE_RGB_ALPHA ? 4 :
		type == PNG_COLOR_TYPE_GRAY_ALPHA ? 2 : 1;
}

/* Write an EXIF block (a TIFF structure) whose only entry is the orientation: 26 bytes. */
static UNIT_UNUSED void
picture_exif(int orientation, bool big_endian, uint8_t *exif)
{
	static const uint8_t little[26] = "II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0";
	static const uint8_t big[26] = "MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0";

	memcpy(exif, big_endian ? big : little, 26);
	exif[big_endian ? 19 : 18] = (uint8_t) orientation;
}

static UNIT_UNUSED void
picture_append(png_structp png, png_bytep data, size_t length)
{
	Bytes	   *file = png_get_io_ptr(png);

	file->data = realloc(file->data, file->length + length);
	memcpy(file->data + file->length, data, length);
	file->length += length;
}

static UNIT_UNUSED void
picture_flush(png_structp png)
{
}

/* Give libpng all that stands before the rows. */
static UNIT_UNUSED void
picture_put_header(png_structp png, png_infop info, const PngRecipe *recipe)
{
	uint8_t		exif[26];

	png_set_IHDR(png, info, (png_uint_32) recipe->width, (png_uint_32) recipe->height, recipe->bits,
				 recipe->type, recipe->interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE,
				 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
	if (recipe->palette != NULL)
		png_set_PLTE(png, info, recipe->palette, 1 << recipe->bits);
	if (recipe->palette_alpha != NULL)
		png_set_tRNS(png, info, recipe->palette_alpha, 1 << recipe->bits, NULL);
	if (recipe->key != NULL)
		png_set_tRNS(png, info, NULL, 0, recipe->key);
	if (recipe->orientation != 0)
	{
		picture_exif(recipe->orientation, recipe->big_endian, exif);
		png_set_eXIf_1(png, info, sizeof(exif), exif);
	}
	if (recipe->text_count > 0)
		png_set_text(png, info, recipe->texts, recipe->text_count);
	png_write_info(png, info);
}

/* Make a PNG file; libpng's own error handler ends the program. */
static UNIT_UNUSED Bytes
picture_make_png(const PngRecipe *recipe)
{
	Bytes		file = {NULL, 0};
	png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
	png_infop	info = png_create_info_struct(png);
	size_t		row_bytes = picture_row_bytes(recipe->width, picture_channels(recipe->type),
											  recipe->bits);
	int			passes;

	png_set_write_fn(png, &file, picture_append, picture_flush);
	png_set_compression_level(png, 1);
	png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
	picture_put_header(png, info, recipe);
	passes = png_set_interlace_handling(png);
	for (int pass = 0; pass < passes; pass++)
		for (int y = 0; y < recipe->height; y++)
			png_write_row(png, recipe->rows + (size_t) y * row_bytes);
	png_write_end(png, NULL);
	png_destroy_write_struct(&png, &info);
	return file;
}

/* Make a PNG file of 8-bit RGB. */
static UNIT_UNUSED Bytes
picture_make_rgb(int width, int height, const uint8_t *rgb)
{
	PngRecipe	recipe = {
		.width = width, .height = height, .type = PNG_COLOR_TYPE_RGB, .bits = 8, .rows = rgb};

	return picture_make_png(&recipe);
}

/* Read a PNG file of 8-bit RGB of the given sides. Ends the program when it is something else. */
static UNIT_UNUSED uint8_t *
picture_read_rgb(const char *path, int width, int height)
{
	png_image	image = {.version = PNG_IMAGE_VERSION};
	uint8_t    *rgb = malloc((size_t) width * (size_t) height * 3);

	if (png_image_begin_read_from_file(&image, path) == 0 || image.width != (png_uint_32) width ||
		image.height != (png_uint_32) height)
	{
		printf("Bail out! %s is no picture of %d x %d\n", path, width, height);
		exit(2);
	}
	image.format = PNG_FORMAT_RGB;
	png_image_finish_read(&image, NULL, rgb, 0, NULL);
	return rgb;
}

/* Preprocess to pixels [size, size, 3] of the C heap; NULL and a status when it is refused. */
static UNIT_UNUSED uint8_t *
picture_preprocess(Bytes file, ImageRules rules, uint64_t max_pixels, int size, Status *status)
{
	ImageLimits limits = {max_pixels};
	Arena	   *arena = arena_create();
	uint8_t    *pixels = malloc((size_t) size * (size_t) size * 3);

	status_clear(status);
	if (!image_preprocess(file.data, file.length, rules, &limits, size, arena, pixels, status))
	{
		free(pixels);
		pixels = NULL;
	}
	arena_free(arena);
	return pixels;
}

/* Check that count bytes are equal; what names the case. */
static UNIT_UNUSED bool
picture_check_equal(const char *what, const uint8_t *actual, const uint8_t *expected, size_t count)
{
	size_t		different = 0;
	size_t		first = 0;

	for (size_t i = count; i-- > 0;)
	{
		if (actual[i] != expected[i])
		{
			different++;
			first = i;
		}
	}
	if (different == 0)
		return true;
	return UNIT_FAIL("%s: %zu of %zu bytes differ, first at %zu: %d, not %d", what, different,
					 count, first, actual[first], expected[first]);
}

/* Check that two files give the same square, each by its rules. */
static UNIT_UNUSED void
picture_check_same(const char *what, Bytes actual, ImageRules actual_rules, Bytes expected,
				   int size)
{
	Status		status;
	uint8_t    *a = picture_preprocess(actual, actual_rules, PICTURE_MAX_PIXELS, size, &status);
	uint8_t    *b;

	if (a == NULL)
	{
		UNIT_FAIL("%s: %s (%s)", what, status.message, status.detail);
		return;
	}
	b = picture_preprocess(expected, IMAGE_RULES_ORIGINAL, PICTURE_MAX_PIXELS, size, &status);
	if (UNIT_CHECK(b != NULL))
		picture_check_equal(what, a, b, (size_t) size * (size_t) size * 3);
	free(a);
	free(b);
}

#endif
