/*
 * test_image_rules.c - colours, transparency and orientation under both image rules.
 *
 * Every colour type and depth of PNG is made with random samples, interlaced and not,
 * with and without a transparent colour, and held against the rules as MODEL.md
 * words them, written out here in doubles. Every orientation is held against a
 * picture turned by its definition.
 */
#include <stdio.h>

#include <jpeglib.h>

#include "picture.h"

#define WIDTH 37
#define HEIGHT 29
/* Of the squares compared; smaller and larger than the turned sides. */
#define SIZE 24

/* One pixel as stored: samples, and what they are on a scale of 0 to 255. */
typedef struct Sample
{
	int			value[4];
	bool		key;			/* has the transparent colour */
} Sample;

/* Number of a sample in a row of packed samples. */
static int
get_sample(const uint8_t *row, int index, int bits)
{
	int			bit = index * bits;

	if (bits == 16)
		return row[2 * index] << 8 | row[2 * index + 1];
	return row[bit / 8] >> (8 - bits - bit % 8) & ((1 << bits) - 1);
}

static Sample
get_pixel(const PngRecipe *recipe, int x, int y)
{
	int			channels = picture_channels(recipe->type);
	const uint8_t *row = recipe->rows +
						 (size_t) y * picture_row_bytes(recipe->width, channels, recipe->bits);
	Sample		sample = {{0}, false};

	for (int i = 0; i < channels; i++)
		sample.value[i] = get_sample(row, x * channels + i, recipe->bits);
	if (recipe->key != NULL && channels == 1)
		sample.key = sample.value[0] == recipe->key->gray;
	else if (recipe->key != NULL)
		sample.key = sample.value[0] == recipe->key->red && sample.value[1] == recipe->key->green &&
			sample.value[2] == recipe->key->blue;
	return sample;
}

/* A stored value on the scale of 0 to 255 under the rules. */
static int
scale_value(int value, const PngRecipe *recipe, ImageRules rules)
{
	if (recipe->bits < 16)
		return value * 255 / ((1 << recipe->bits) - 1);
	if (rules == IMAGE_RULES_DISPLAY)
		return (int) floor(value / 257.0 + 0.5);
	if (recipe->type == PNG_COLOR_TYPE_GRAY)
		return value < 255 ? value : 255;
	return value >> 8;
}

/* Find colour and alpha of a pixel, each 0 to 255. Returns the alpha. */
static int
find_color(const PngRecipe *recipe, int x, int y, ImageRules rules, int *rgb)
{
	Sample		sample = get_pixel(recipe, x, y);
	int			channels = picture_channels(recipe->type);

	if (recipe->type == PNG_COLOR_TYPE_PALETTE)
	{
		rgb[0] = recipe->palette[sample.value[0]].red;
		rgb[1] = recipe->palette[sample.value[0]].green;
		rgb[2] = recipe->palette[sample.value[0]].blue;
		return recipe->palette_alpha != NULL ? recipe->palette_alpha[sample.value[0]] : 255;
	}
	for (int i = 0; i < 3; i++)
		rgb[i] = scale_value(sample.value[channels >= 3 ? i : 0], recipe, rules);
	if (channels % 2 == 0)
		return scale_value(sample.value[channels - 1], recipe, rules);
	return sample.key ? 0 : 255;
}

/* What the rules make of a recipe, as a file of 8-bit RGB. */
static Bytes
make_expected(const PngRecipe *recipe, ImageRules rules)
{
	uint8_t		rgb[HEIGHT * WIDTH * 3];

	for (int y = 0; y < HEIGHT; y++)
	{
		for (int x = 0; x < WIDTH; x++)
		{
			int			color[3];
			int			alpha = find_color(recipe, x, y, rules, color);

			for (int i = 0; i < 3; i++)
			{
				double		white = (color[i] * alpha + 255 * (255 - alpha)) / 255.0;

				rgb[(y * WIDTH + x) * 3 + i] = (uint8_t) (rules == IMAGE_RULES_DISPLAY
															  ? floor(white + 0.5)
															  : color[i]);
			}
		}
	}
	return picture_make_rgb(WIDTH, HEIGHT, rgb);
}

/* Compare one recipe with its expectation under both rules, and what the header says. */
static void
check_recipe(const PngRecipe *recipe)
{
	Bytes		file = picture_make_png(recipe);
	ImageInfo	info;
	Status		status;
	char		what[128];

	snprintf(what, sizeof(what), "type %d, %d bits%s%s", recipe->type, recipe->bits,
			 recipe->interlaced ? ", interlaced" : "",
			 recipe->key != NULL || recipe->palette_alpha != NULL ? ", tRNS" : "");
	for (int rules = IMAGE_RULES_DISPLAY; rules <= IMAGE_RULES_ORIGINAL; rules++)
	{
		Bytes		expected = make_expected(recipe, (ImageRules) rules);

		picture_check_same(what, file, (ImageRules) rules, expected, SIZE);
		free(expected.data);
	}
	if (UNIT_CHECK(image_read_info(file.data, file.length, &info, &status)))
	{
		UNIT_EQUAL_INT(info.width, WIDTH);
		UNIT_EQUAL_INT(info.height, HEIGHT);
		UNIT_EQUAL_INT(info.bits, recipe->bits);
		UNIT_EQUAL_INT(info.channels, recipe->type != PNG_COLOR_TYPE_PALETTE
										  ? picture_channels(recipe->type)
									  : recipe->palette_alpha != NULL ? 4
																	  : 3);
	}
	free(file.data);
}

/* Check a colour type and depth with random samples in each way of storing it. */
static void
check_kind(int type, int bits)
{
	static uint8_t rows[HEIGHT * WIDTH * 8];
	png_color	palette[256];
	png_byte	alpha[256];
	png_color_16 key = {0};
	uint64_t	state = (uint64_t) (type * 100 + bits);
	PngRecipe	recipe = {
		.width = WIDTH, .height = HEIGHT, .type = type, .bits = bits, .rows = rows};
	Sample		sample;

	for (size_t i = 0; i < sizeof(rows); i++)
		rows[i] = (uint8_t) (picture_random(&state, 4) == 0 ? 255 * picture_random(&state, 2) :
							 picture_random(&state, 256));
	for (int i = 0; i < 256; i++)
	{
		palette[i] = (png_color){(png_byte) picture_random(&state, 256),
								 (png_byte) picture_random(&state, 256),
								 (png_byte) picture_random(&state, 256)};
		alpha[i] = (png_byte) (i % 3 == 0 ? 255 : picture_random(&state, 256));
	}
	if (type == PNG_COLOR_TYPE_PALETTE)
		recipe.palette = palette;
	for (int variant = 0; variant < 4; variant++)
	{
		recipe.interlaced = variant % 2 == 1;
		recipe.key = NULL;
		recipe.palette_alpha = variant >= 2 && recipe.palette != NULL ? alpha : NULL;
		sample = get_pixel(&recipe, 3, 2);
		key = (png_color_16) {0, (png_uint_16) sample.value[0], (png_uint_16) sample.value[1],
							  (png_uint_16) sample.value[2], (png_uint_16) sample.value[0]};
		if (variant >= 2 && (type == PNG_COLOR_TYPE_GRAY || type == PNG_COLOR_TYPE_RGB))
			recipe.key = &key;
		check_recipe(&recipe);
	}
}

UNIT_TEST(png_grey)
{
	for (int bits = 1; bits <= 16; bits *= 2)
		check_kind(PNG_COLOR_TYPE_GRAY, bits);
}

UNIT_TEST(png_palette)
{
	for (int bits = 1; bits <= 8; bits *= 2)
		check_kind(PNG_COLOR_TYPE_PALETTE, bits);
}

UNIT_TEST(png_rgb)
{
	check_kind(PNG_COLOR_TYPE_RGB, 8);
	check_kind(PNG_COLOR_TYPE_RGB, 16);
}

UNIT_TEST(png_grey_and_alpha)
{
	check_kind(PNG_COLOR_TYPE_GRAY_ALPHA, 8);
	check_kind(PNG_COLOR_TYPE_GRAY_ALPHA, 16);
}

UNIT_TEST(png_rgb_and_alpha)
{
	check_kind(PNG_COLOR_TYPE_RGB_ALPHA, 8);
	check_kind(PNG_COLOR_TYPE_RGB_ALPHA, 16);
}

/* Adam7 leaves passes empty in small pictures. */
UNIT_TEST(png_interlaced_small)
{
	static const uint8_t rows[9 * 9 * 3] = {200, 100, 50, 1,  2,   3, 99, 98,
											97,	 11,  22, 33, 250, 0, 250};

	for (int width = 1; width <= 9; width++)
	{
		for (int height = 1; height <= 9; height++)
		{
			PngRecipe	recipe = {.width = width,
								  .height = height,
								  .type = PNG_COLOR_TYPE_RGB,
								  .bits = 8,
								  .interlaced = true,
								  .rows = rows};
			Bytes		interlaced = picture_make_png(&recipe);
			Bytes		straight = picture_make_rgb(width, height, rows);

			picture_check_same("small", interlaced, IMAGE_RULES_DISPLAY, straight, SIZE);
			free(interlaced.data);
			free(straight.data);
		}
	}
}

/* Turn a stored picture as TIFF 6.0 defines tag 274. Sides are exchanged from 5 on. */
static Bytes
make_turned(const uint8_t *rgb, int width, int height, int orientation)
{
	bool		exchanged = orientation >= 5;
	int			seen_width = exchanged ? height : width;
	int			seen_height = exchanged ? width : height;
	uint8_t    *seen = malloc((size_t) width * (size_t) height * 3);
	Bytes		file;

	for (int y = 0; y < seen_height; y++)
	{
		for (int x = 0; x < seen_width; x++)
		{
			int			right = width - 1;
			int			bottom = height - 1;
			const int	places[9][2] = {
				{x, y}, {x, y}, {right - x, y}, {right - x, bottom - y}, {x, bottom - y},
				{y, x}, {y, bottom - x}, {right - y, bottom - x}, {right - y, x}
			};
			const int  *place = places[orientation];

			memcpy(seen + (y * seen_width + x) * 3, rgb + (place[1] * width + place[0]) * 3, 3);
		}
	}
	file = picture_make_rgb(seen_width, seen_height, seen);
	free(seen);
	return file;
}

/* Check all orientations of a stored picture; make(orientation) gives the file. */
static void
check_orientations(const uint8_t *rgb, int width, int height, Bytes (*make) (int orientation))
{
	Bytes		stored = picture_make_rgb(width, height, rgb);

	for (int orientation = 1; orientation <= 8; orientation++)
	{
		Bytes		file = make(orientation);
		Bytes		turned = make_turned(rgb, width, height, orientation);
		ImageInfo	info;
		Status		status;
		char		what[64];

		snprintf(what, sizeof(what), "orientation %d of %d x %d", orientation, width, height);
		picture_check_same(what, file, IMAGE_RULES_DISPLAY, turned, SIZE);
		picture_check_same("ignored", file, IMAGE_RULES_ORIGINAL, stored, SIZE);
		if (UNIT_CHECK(image_read_info(file.data, file.length, &info, &status)))
		{
			UNIT_EQUAL_INT(info.orientation, orientation);
			UNIT_EQUAL_INT(info.width, width);
		}
		free(file.data);
		free(turned.data);
	}
	free(stored.data);
}

/* Random colours that the makers of orientation files use. */
static uint8_t oriented_rgb[HEIGHT * WIDTH * 3];
static bool oriented_upright;	/* higher than wide */

static Bytes
make_oriented_png(int orientation)
{
	PngRecipe	recipe = {.width = oriented_upright ? HEIGHT : WIDTH,
						  .height = oriented_upright ? WIDTH : HEIGHT,
						  .type = PNG_COLOR_TYPE_RGB,
						  .bits = 8,
						  .rows = oriented_rgb,
						  .orientation = orientation,
						  .big_endian = orientation % 2 == 0};

	return picture_make_png(&recipe);
}

UNIT_TEST(png_orientations)
{
	uint64_t	state = 3;

	for (size_t i = 0; i < sizeof(oriented_rgb); i++)
		oriented_rgb[i] = (uint8_t) picture_random(&state, 256);
	oriented_upright = false;
	check_orientations(oriented_rgb, WIDTH, HEIGHT, make_oriented_png);
	oriented_upright = true;
	check_orientations(oriented_rgb, HEIGHT, WIDTH, make_oriented_png);
}

/* Put an EXIF segment behind the first two bytes of a JPEG file. */
static Bytes
insert_exif(Bytes file, const uint8_t *exif, size_t length)
{
	Bytes		result = {malloc(file.length + length + 10), file.length + length + 10};
	uint8_t		head[10] = {0xFF, 0xE1, 0, (uint8_t) (length + 8), 'E', 'x', 'i', 'f', 0, 0};

	memcpy(result.data, file.data, 2);
	memcpy(result.data + 2, head, sizeof(head));
	memcpy(result.data + 2 + sizeof(head), exif, length);
	memcpy(result.data + 2 + sizeof(head) + length, file.data + 2, file.length - 2);
	return result;
}

static Bytes
read_jpeg_file(void)
{
	Bytes		file;

	file.data = unit_read_file("test/golden/preprocess/images/jpeg420.jpg", &file.length);
	return file;
}

static Bytes
make_oriented_jpeg(int orientation)
{
	Bytes		file = read_jpeg_file();
	uint8_t		exif[26];
	Bytes		result;

	picture_exif(orientation, orientation % 2 == 1, exif);
	result = insert_exif(file, exif, sizeof(exif));
	free(file.data);
	return result;
}

/* Decode a JPEG file to RGB with libjpeg's defaults. */
static uint8_t *
decode_jpeg(Bytes file, int *width, int *height)
{
	struct jpeg_decompress_struct jpeg;
	struct jpeg_error_mgr errors;
	uint8_t    *rgb;

	jpeg.err = jpeg_std_error(&errors);
	jpeg_create_decompress(&jpeg);
	jpeg_mem_src(&jpeg, file.data, file.length);
	jpeg_read_header(&jpeg, TRUE);
	jpeg_start_decompress(&jpeg);
	*width = (int) jpeg.output_width;
	*height = (int) jpeg.output_height;
	rgb = malloc((size_t) *width * (size_t) *height * 3);
	while (jpeg.output_scanline < jpeg.output_height)
	{
		JSAMPROW	row = rgb + (size_t) jpeg.output_scanline * (size_t) *width * 3;

		jpeg_read_scanlines(&jpeg, &row, 1);
	}
	jpeg_destroy_decompress(&jpeg);
	return rgb;
}

UNIT_TEST(jpeg_orientations)
{
	Bytes		file = read_jpeg_file();
	int			width;
	int			height;
	uint8_t    *rgb = decode_jpeg(file, &width, &height);

	check_orientations(rgb, width, height, make_oriented_jpeg);
	free(rgb);
	free(file.data);
}

/* Damaged EXIF is no reason to refuse a picture: it is upright then. */
UNIT_TEST(damaged_exif)
{
	Bytes		file = read_jpeg_file();
	Bytes		unknown;
	uint64_t	state = 17;
	uint8_t		exif[26];
	ImageInfo	info;
	Status		status;

	for (int i = 0; i < 2000; i++)
	{
		size_t		length = picture_random(&state, sizeof(exif) + 1);
		Bytes		damaged;

		picture_exif((int) picture_random(&state, 12), i % 2 == 0, exif);
		for (uint32_t changes = picture_random(&state, 4); changes > 0; changes--)
			exif[picture_random(&state, sizeof(exif))] = (uint8_t) picture_random(&state, 256);
		damaged = insert_exif(file, exif, length);
		if (UNIT_CHECK(image_read_info(damaged.data, damaged.length, &info, &status)))
			UNIT_CHECK(info.orientation >= 1 && info.orientation <= 8);
		free(damaged.data);
	}
	picture_exif(9, false, exif);
	unknown = insert_exif(file, exif, sizeof(exif));
	UNIT_CHECK(image_read_info(unknown.data, unknown.length, &info, &status));
	UNIT_EQUAL_INT(info.orientation, 1);
	free(unknown.data);
	free(file.data);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
