/*
 * test_image.c - the way from a file to the square: golden pictures, sizes, limits, bad input.
 *
 * The golden pictures and their squares come from Pillow and torchvision through
 * the original's own code; tools/make_image_cases.py made the sizes beside them with
 * Pillow. All must be met bit for bit. Colours and orientation are in
 * test_image_rules.c.
 */
#include <dirent.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend.h"
#include "picture.h"

#define GOLDEN "test/golden/preprocess/"
#define SIZES "test/golden/images/"
#define GOLDEN_SIZE 224			/* CLIP ViT-L/14's input */
#define THREADS 4

/* Texts of a PNG file that are small only while they are compressed. */
#define TEXTS 8
#define TEXT_BYTES (32 * 1024 * 1024)

/* Lengths that a file is cut to, of 40 parts. */
#define CUTS 40

/* The golden pictures: name, and sides as cases.json has them. */
typedef struct GoldenPicture
{
	const char *name;
	const char *suffix;
	int			width;
	int			height;
	const char *color;
	int			channels;
	int			bits;
	int			orientation;
} GoldenPicture;

static const GoldenPicture golden_pictures[] = {
	{"jpeg420", "jpg", 301, 200, "RGB", 3, 8, 1},
	{"jpeg444", "jpg", 256, 256, "RGB", 3, 8, 1},
	{"jpeg_progressive", "jpg", 320, 241, "RGB", 3, 8, 1},
	{"jpeg_gray", "jpg", 260, 300, "grey", 1, 8, 1},
	{"jpeg_cmyk", "jpg", 240, 230, "CMYK", 4, 8, 1},
	{"jpeg_exif6", "jpg", 300, 220, "RGB", 3, 8, 6},
	{"jpeg_large", "jpg", 1600, 1200, "RGB", 3, 8, 1},
	{"png_rgb", "png", 230, 260, "RGB", 3, 8, 1},
	{"png_rgba", "png", 250, 240, "RGBA", 4, 8, 1},
	{"png_palette_trns", "png", 280, 260, "palette", 4, 8, 1},
	{"png_gray16", "png", 240, 250, "grey", 1, 16, 1},
	{"png_la", "png", 231, 240, "grey and alpha", 2, 8, 1},
	{"png_interlaced", "png", 245, 226, "RGB", 3, 8, 1},
	{"png_1bit", "png", 300, 233, "grey", 1, 1, 1},
	{"png_rgb16", "png", 228, 250, "RGB", 3, 16, 1},
	{"png_3x500", "png", 3, 500, "RGB", 3, 8, 1},
	{"png_1x1", "png", 1, 1, "RGB", 3, 8, 1},
	{"png_1000x40", "png", 1000, 40, "RGB", 3, 8, 1},
	{"png_224x224", "png", 224, 224, "RGB", 3, 8, 1}
};

#define GOLDEN_PICTURES ((int) (sizeof(golden_pictures) / sizeof(golden_pictures[0])))

/* The file of a golden picture. */
static Bytes
read_golden(const char *name, const char *suffix)
{
	char		path[256];
	Bytes		file;

	snprintf(path, sizeof(path), GOLDEN "images/%s.%s", name, suffix);
	file.data = unit_read_file(path, &file.length);
	return file;
}

/* Check a golden picture against its square. */
static void
check_golden(const GoldenPicture *picture)
{
	Bytes		file = read_golden(picture->name, picture->suffix);
	Status		status;
	uint8_t *actual = picture_preprocess(file, IMAGE_RULES_ORIGINAL, PICTURE_MAX_PIXELS,
										 GOLDEN_SIZE, &status);
	uint8_t    *expected;
	char		path[256];

	snprintf(path, sizeof(path), GOLDEN "expected_train/%s.png", picture->name);
	expected = picture_read_rgb(path, GOLDEN_SIZE, GOLDEN_SIZE);
	if (actual == NULL)
		UNIT_FAIL("%s: %s (%s)", picture->name, status.message, status.detail);
	else
		picture_check_equal(picture->name, actual, expected,
							(size_t) GOLDEN_SIZE * GOLDEN_SIZE * 3);
	free(actual);
	free(expected);
	free(file.data);
}

/* Kilobytes that a process of its own grows by when it decodes a file; -1 when it fails. */
static long
growth_while_decoding(Bytes file)
{
	struct rusage before;
	struct rusage after;
	Status		status;
	int			channel[2];
	long		growth = -1;
	pid_t		child;

	if (pipe(channel) != 0)
		return -1;
	child = fork();
	if (child == 0)
	{
		getrusage(RUSAGE_SELF, &before);
		if (picture_preprocess(file, IMAGE_RULES_DISPLAY, PICTURE_MAX_PIXELS, 16, &status) != NULL)
		{
			getrusage(RUSAGE_SELF, &after);
			growth = after.ru_maxrss - before.ru_maxrss;
		}
		_exit(write(channel[1], &growth, sizeof(growth)) == sizeof(growth) ? 0 : 1);
	}
	close(channel[1]);
	if (child < 0 || read(channel[0], &growth, sizeof(growth)) != sizeof(growth))
		growth = -1;
	close(channel[0]);
	if (child > 0)
		waitpid(child, NULL, 0);
	return growth;
}

/* Texts say nothing about pixels and must not be unpacked: these would fill 256 MB. */
UNIT_TEST(compressed_texts_are_skipped)
{
	static const uint8_t rgb[16 * 16 * 3] = {10, 20, 30};
	char	   *text = malloc(TEXT_BYTES + 1);
	png_text	texts[TEXTS];
	PngRecipe	recipe = {.width = 16,
						  .height = 16,
						  .type = PNG_COLOR_TYPE_RGB,
						  .bits = 8,
						  .rows = rgb,
						  .texts = texts,
						  .text_count = TEXTS};
	Bytes		file;
	long		growth;

	memset(text, 'a', TEXT_BYTES);
	text[TEXT_BYTES] = '\0';
	for (int i = 0; i < TEXTS; i++)
		texts[i] = (png_text){.compression = PNG_TEXT_COMPRESSION_zTXt,
							  .key = (char *) "key",
							  .text = text,
							  .text_length = TEXT_BYTES};
	file = picture_make_png(&recipe);
	free(text);
	UNIT_CHECK(file.length < 4 * 1024 * 1024);
	growth = growth_while_decoding(file);
	UNIT_CHECK(growth >= 0 && growth < 64 * 1024);
	free(file.data);
}

UNIT_TEST(golden_pictures_bit_for_bit)
{
	for (int i = 0; i < GOLDEN_PICTURES; i++)
		check_golden(&golden_pictures[i]);
}

UNIT_TEST(info_of_golden_pictures)
{
	for (int i = 0; i < GOLDEN_PICTURES; i++)
	{
		const GoldenPicture *picture = &golden_pictures[i];
		Bytes		file = read_golden(picture->name, picture->suffix);
		ImageInfo	info;
		Status		status;

		status_clear(&status);
		if (!UNIT_CHECK(image_read_info(file.data, file.length, &info, &status)))
			continue;
		UNIT_EQUAL_INT(info.format, strcmp(picture->suffix, "jpg") == 0 ? IMAGE_JPEG : IMAGE_PNG);
		UNIT_EQUAL_INT(info.width, picture->width);
		UNIT_EQUAL_INT(info.height, picture->height);
		UNIT_EQUAL_TEXT(info.color, picture->color);
		UNIT_EQUAL_INT(info.channels, picture->channels);
		UNIT_EQUAL_INT(info.bits, picture->bits);
		UNIT_EQUAL_INT(info.orientation, picture->orientation);
		UNIT_EQUAL_INT(info.bytes, file.length);
		free(file.data);
	}
}

/* Every file WxH_S.png is what Pillow makes of WxH.png. */
UNIT_TEST(sizes_bit_for_bit)
{
	DIR		   *folder = opendir(SIZES);
	struct dirent *entry;
	int			cases = 0;

	if (!UNIT_CHECK(folder != NULL))
		return;
	while ((entry = readdir(folder)) != NULL)
	{
		char		path[300];
		Bytes		file;
		Status		status;
		uint8_t    *actual;
		uint8_t    *expected;
		int			width;
		int			height;
		int			size;

		if (sscanf(entry->d_name, "%dx%d_%d.png", &width, &height, &size) != 3)
			continue;
		snprintf(path, sizeof(path), SIZES "%s", entry->d_name);
		expected = picture_read_rgb(path, size, size);
		snprintf(path, sizeof(path), SIZES "%dx%d.png", width, height);
		file.data = unit_read_file(path, &file.length);
		actual = picture_preprocess(file, IMAGE_RULES_DISPLAY, PICTURE_MAX_PIXELS, size, &status);
		if (UNIT_CHECK(actual != NULL))
			picture_check_equal(entry->d_name, actual, expected, (size_t) size * (size_t) size * 3);
		cases++;
		free(actual);
		free(expected);
		free(file.data);
	}
	closedir(folder);
	UNIT_CHECK(cases >= 15);
}

/*
 * The long side of a thin picture has more pixels after the resize than 32 bits
 * count, and just above a multiple of 2^32 they would look few.
 */
UNIT_TEST(thin_pictures)
{
	static const int lengths[] = {10000000, 19173962, 20000000};

	for (int i = 0; i < 3; i++)
	{
		int			length = lengths[i];
		uint8_t    *rows = malloc((size_t) length);
		PngRecipe	recipe = {
			.width = length, .height = 1, .type = PNG_COLOR_TYPE_GRAY, .bits = 1, .rows = rows};
		Bytes		file;
		Status		status;
		uint8_t    *pixels;

		memset(rows, 0xFF, (size_t) length);
		file = picture_make_png(&recipe);
		pixels = picture_preprocess(file, IMAGE_RULES_DISPLAY, PICTURE_MAX_PIXELS, GOLDEN_SIZE,
									&status);
		if (UNIT_CHECK(pixels != NULL))
			UNIT_CHECK(pixels[0] == 255 &&
					   memcmp(pixels, pixels + 1, GOLDEN_SIZE * GOLDEN_SIZE * 3 - 1) == 0);
		free(pixels);
		free(file.data);
		free(rows);
	}
}

/* A large JPEG costs the rows that the cut keeps, not the picture. */
UNIT_TEST(memory_of_a_large_picture)
{
	Bytes		file = read_golden("jpeg_large", "jpg");
	ImageLimits limits = {PICTURE_MAX_PIXELS};
	Arena	   *arena = arena_create();
	uint8_t    *pixels = malloc(GOLDEN_SIZE * GOLDEN_SIZE * 3);
	Status		status;

	status_clear(&status);
	UNIT_CHECK(image_preprocess(file.data, file.length, IMAGE_RULES_DISPLAY, &limits, GOLDEN_SIZE,
								arena, pixels, &status));
	UNIT_CHECK(arena_size(arena) < 2 * 1024 * 1024);
	arena_free(arena);
	free(pixels);
	free(file.data);
}

/* Preprocess all golden pictures; returns NULL when all squares are right. */
static void *
preprocess_all(void *unused)
{
	const char *wrong = NULL;

	for (int i = 0; i < GOLDEN_PICTURES; i++)
	{
		const GoldenPicture *picture = &golden_pictures[i];
		Bytes		file = read_golden(picture->name, picture->suffix);
		Status		status;
		uint8_t *actual = picture_preprocess(file, IMAGE_RULES_ORIGINAL, PICTURE_MAX_PIXELS,
											 GOLDEN_SIZE, &status);
		uint8_t    *expected;
		char		path[256];

		snprintf(path, sizeof(path), GOLDEN "expected_train/%s.png", picture->name);
		expected = picture_read_rgb(path, GOLDEN_SIZE, GOLDEN_SIZE);
		if (actual == NULL || memcmp(actual, expected, (size_t) GOLDEN_SIZE * GOLDEN_SIZE * 3) != 0)
			wrong = picture->name;
		free(actual);
		free(expected);
		free(file.data);
	}
	return (void *) wrong;
}

UNIT_TEST(several_threads_at_once)
{
	pthread_t	threads[THREADS];

	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, preprocess_all, NULL);
	for (int i = 0; i < THREADS; i++)
	{
		void	   *wrong;

		pthread_join(threads[i], &wrong);
		if (wrong != NULL)
			UNIT_FAIL("wrong in thread %d: %s", i, (const char *) wrong);
	}
}

/*
 * Check that both entry points (or only the decoder, where the header is right)
 * refuse data with a code, a part of the message and a part of the detail.
 */
static void
check_refused(const char *what, Bytes file, bool header_too, StatusCode code, const char *message,
			  const char *detail)
{
	Status		status;
	ImageInfo	info;

	for (int rules = IMAGE_RULES_DISPLAY; rules <= IMAGE_RULES_ORIGINAL; rules++)
	{
		uint8_t *pixels = picture_preprocess(file, (ImageRules) rules, PICTURE_MAX_PIXELS, 32,
											 &status);

		if (pixels != NULL)
			UNIT_FAIL("%s: taken", what);
		else
		{
			if (status.code != code || strstr(status.message, message) == NULL ||
				strstr(status.detail, detail) == NULL)
				UNIT_FAIL("%s: code %d, \"%s\", \"%s\"", what, status.code, status.message,
						  status.detail);
			UNIT_CHECK(!(status.message[0] >= 'A' && status.message[0] <= 'Z') ||
					   strncmp(status.message, "JPEG", 4) == 0 ||
					   strncmp(status.message, "PNG", 3) == 0);
		}
		free(pixels);
	}
	status_clear(&status);
	if (header_too && image_read_info(file.data, file.length, &info, &status))
		UNIT_FAIL("%s: header taken", what);
}

/* Check data given as a literal. */
static void
check_literal(const char *what, const char *data, size_t length, const char *message,
			  const char *detail)
{
	Bytes		file = {malloc(length + 1), length};

	memcpy(file.data, data, length);
	check_refused(what, file, true, STATUS_INVALID_IMAGE, message, detail);
	free(file.data);
}

UNIT_TEST(not_an_image)
{
	check_literal("empty", "", 0, "empty", "");
	check_literal("one byte", "A", 1, "neither JPEG nor PNG", "first bytes are 41.");
	check_literal("text", "no image", 8, "neither JPEG nor PNG", "first bytes are 6e 6f 20 69.");
	check_literal("GIF", "GIF89a\x01\0\x01\0", 10, "neither JPEG nor PNG", "GIF");
	check_literal("WebP", "RIFF\x10\0\0\0WEBPVP8 ", 16, "neither JPEG nor PNG", "WebP");
	check_literal("HEIC", "\0\0\0\x18" "ftypheic", 12, "neither JPEG nor PNG", "HEIC");
	check_literal("JPEG's beginning", "\xFF\xD8\xFF", 3, "", "");
	check_literal("PNG's beginning", "\x89PNG\r\n\x1a\n", 8, "truncated", "");
	check_literal("JPEG without picture", "\xFF\xD8\xFF\xD9", 4, "", "");
}

/*
 * Cut a file in the middle; it must be refused, and called truncated once its header is complete.
 */
static void
check_cuts(const char *name, const char *suffix)
{
	Bytes		file = read_golden(name, suffix);

	for (int i = 1; i < CUTS; i++)
	{
		Bytes		cut = {malloc(file.length), file.length * (size_t) i / CUTS};

		memcpy(cut.data, file.data, cut.length);
		check_refused(name, cut, false, STATUS_INVALID_IMAGE, cut.length > 1000 ? "truncated" : "",
					  "");
		free(cut.data);
	}
	free(file.data);
}

UNIT_TEST(truncated_files)
{
	check_cuts("jpeg420", "jpg");
	check_cuts("jpeg_progressive", "jpg");
	check_cuts("jpeg_gray", "jpg");
	check_cuts("jpeg_cmyk", "jpg");
	check_cuts("png_rgb", "png");
	check_cuts("png_interlaced", "png");
	check_cuts("png_palette_trns", "png");
}

/* An end marker where the data is cut must not turn the rest grey. */
UNIT_TEST(jpeg_ended_early)
{
	static const char *const names[] = {"jpeg420", "jpeg_gray", "jpeg_cmyk"};

	for (int i = 0; i < 3; i++)
	{
		Bytes		file = read_golden(names[i], "jpg");

		for (int part = 2; part < 10; part++)
		{
			Bytes		cut = {malloc(file.length), file.length * (size_t) part / 10};

			memcpy(cut.data, file.data, cut.length - 2);
			cut.data[cut.length - 2] = 0xFF;
			cut.data[cut.length - 1] = 0xD9;
			check_refused(names[i], cut, false, STATUS_INVALID_IMAGE, "truncated", "after row");
			free(cut.data);
		}
		free(file.data);
	}
}

/* The checksum of a PNG chunk (PNG specification, annex D). */
static uint32_t
png_checksum(const uint8_t *bytes, size_t length)
{
	uint32_t	sum = 0xFFFFFFFF;

	for (size_t i = 0; i < length; i++)
	{
		sum ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			sum = (sum & 1) != 0 ? sum >> 1 ^ 0xEDB88320 : sum >> 1;
	}
	return ~sum;
}

static void
put_32(uint8_t *bytes, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		bytes[i] = (uint8_t) (value >> (24 - 8 * i));
}

/* Change the sides in the header of a PNG file. */
static void
set_png_sides(Bytes file, uint32_t width, uint32_t height)
{
	put_32(file.data + 16, width);
	put_32(file.data + 20, height);
	put_32(file.data + 29, png_checksum(file.data + 12, 17));
}

/* Change the sides in the frame header of a JPEG file. */
static void
set_jpeg_sides(Bytes file, int width, int height)
{
	size_t		place = 2;

	while (place + 9 < file.length &&
		   (file.data[place + 1] != 0xC0 && file.data[place + 1] != 0xC2))
		place += 2 + (size_t) (file.data[place + 2] << 8 | file.data[place + 3]);
	file.data[place + 5] = (uint8_t) (height >> 8);
	file.data[place + 6] = (uint8_t) height;
	file.data[place + 7] = (uint8_t) (width >> 8);
	file.data[place + 8] = (uint8_t) width;
}

UNIT_TEST(too_many_pixels)
{
	Bytes		png = read_golden("png_rgb", "png");
	Bytes		interlaced = read_golden("png_interlaced", "png");
	Bytes		jpeg = read_golden("jpeg420", "jpg");
	Bytes		progressive = read_golden("jpeg_progressive", "jpg");

	set_png_sides(png, 60000, 60000);
	check_refused("PNG", png, false, STATUS_IMAGE_TOO_LARGE, "60000 x 60000", "");
	set_png_sides(interlaced, 60000, 60000);
	check_refused("interlaced PNG", interlaced, false, STATUS_IMAGE_TOO_LARGE, "60000 x 60000", "");
	set_png_sides(png, 0x7FFFFFFF, 0x7FFFFFFF);
	check_refused("largest PNG", png, false, STATUS_IMAGE_TOO_LARGE, "2147483647 x 2147483647", "");
	set_jpeg_sides(jpeg, 60000, 60000);
	check_refused("JPEG", jpeg, false, STATUS_IMAGE_TOO_LARGE, "60000 x 60000", "");
	set_jpeg_sides(progressive, 60000, 60000);
	check_refused("progressive JPEG", progressive, false, STATUS_IMAGE_TOO_LARGE, "60000 x 60000",
				  "");
	free(png.data);
	free(interlaced.data);
	free(jpeg.data);
	free(progressive.data);
}

/* The limit itself is allowed. */
UNIT_TEST(limit_of_pixels)
{
	Bytes		file = read_golden("jpeg420", "jpg");
	Status		status;
	uint8_t    *pixels = picture_preprocess(file, IMAGE_RULES_DISPLAY, 301 * 200, 32, &status);

	UNIT_CHECK(pixels != NULL);
	free(pixels);
	pixels = picture_preprocess(file, IMAGE_RULES_DISPLAY, 301 * 200 - 1, 32, &status);
	UNIT_CHECK(pixels == NULL);
	UNIT_EQUAL_INT(status.code, STATUS_IMAGE_TOO_LARGE);
	UNIT_CONTAINS(status.message, "60199");
	UNIT_CONTAINS(status.hint, "mmgpt.max_image_pixels");
	free(file.data);
}

UNIT_TEST(sides_of_zero)
{
	Bytes		png = read_golden("png_rgb", "png");
	Bytes		jpeg = read_golden("jpeg420", "jpg");

	set_png_sides(png, 0, 10);
	check_refused("PNG", png, true, STATUS_INVALID_IMAGE, "", "");
	set_png_sides(png, 10, 0x80000000);
	check_refused("negative PNG", png, true, STATUS_INVALID_IMAGE, "", "");
	set_jpeg_sides(jpeg, 10, 0);
	check_refused("JPEG", jpeg, true, STATUS_INVALID_IMAGE, "", "");
	free(png.data);
	free(jpeg.data);
}

UNIT_TEST(corrupt_png)
{
	Bytes		file = read_golden("png_rgb", "png");

	file.data[file.length / 2] ^= 0x55;
	check_refused("pixels", file, false, STATUS_INVALID_IMAGE, "not a valid PNG", "");
	file.data[file.length / 2] ^= 0x55;
	file.data[25] = 1;			/* no such colour type */
	put_32(file.data + 29, png_checksum(file.data + 12, 17));
	check_refused("colour type", file, true, STATUS_INVALID_IMAGE, "not a valid PNG", "");
	free(file.data);
}

UNIT_TEST(corrupt_jpeg)
{
	Bytes		file = read_golden("jpeg420", "jpg");

	for (size_t i = 0; i + 20 < file.length; i++)
	{
		if (file.data[i] == 0xFF && file.data[i + 1] == 0xC4)
			memset(file.data + i + 5, 0xFF, 16);	/* counts of a Huffman table */
	}
	check_refused("tables", file, false, STATUS_INVALID_IMAGE, "not a valid JPEG", "");
	free(file.data);
}

/* Floats of normalize_lut.npy stand at the end of the file. */
UNIT_TEST(normalised_as_the_original)
{
	static const float mean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
	static const float deviation[3] = {0.26862954f, 0.26130258f, 0.27577711f};
	static uint8_t pixels[256][3];	/* a picture of 16 x 16, one patch */
	static float patch[3][256];
	CpuOptions	options = {.threads = 1};
	Status		status;
	Backend    *backend = backend_open_cpu(&options, &status);
	size_t		length;
	char	   *file = unit_read_file(GOLDEN "normalize_lut.npy", &length);
	float		expected[256][3];

	memcpy(expected, file + length - sizeof(expected), sizeof(expected));
	free(file);
	for (int value = 0; value < 256; value++)
		memset(pixels[value], value, 3);
	if (!UNIT_CHECK(backend != NULL))
		return;
	backend->ops->patches(backend, tensor_make(patch, TYPE_F32, 1, 768),
						  tensor_make(pixels, TYPE_U8, 1, 768), 16, 16, mean, deviation);
	for (int value = 0; value < 256; value++)
		for (int channel = 0; channel < 3; channel++)
			UNIT_NEAR(patch[channel][value], expected[value][channel], 0.0);
	backend->ops->close(backend);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
