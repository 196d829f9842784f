/*
 * image_png.c - PNG files through libpng: all colour types and depths, interlaced or not.
 *
 * libpng turns everything to rows of RGB or RGBA with 8 bits, except 16-bit grey under
 * the original rules, which is clipped here. Its longjmp stays inside this file.
 */
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <png.h>

#include "image_internal.h"

/* Chunks that say something about pixels or orientation are small. */
#define MAX_CHUNK_BYTES ((png_alloc_size_t) 1024 * 1024)

/*
 * The only chunk read beside header, palette, transparency and pixels
 * (png_set_keep_unknown_chunks).
 */
static const png_byte exif_chunk[] = "eXIf";

typedef struct PngDecoder
{
	png_structp png;
	png_infop	info;
	const uint8_t *bytes;
	size_t		length;
	size_t		at;
	Status	   *status;
} PngDecoder;

static void
fail(png_structp png, png_const_charp text)
{
	PngDecoder *decoder = png_get_error_ptr(png);

	if (status_good(decoder->status))
	{
		status_set(decoder->status, STATUS_INVALID_IMAGE, "image is not a valid PNG file");
		status_detail(decoder->status, "libpng says: %s.", text);
	}
	longjmp(png_jmpbuf(png), 1);
}

static void
ignore_warning(png_structp png, png_const_charp text)
{
}

static void
read_bytes(png_structp png, png_bytep out, size_t count)
{
	PngDecoder *decoder = png_get_io_ptr(png);

	if (count > decoder->length - decoder->at)
	{
		status_set(decoder->status, STATUS_INVALID_IMAGE, "PNG image is truncated");
		status_detail(decoder->status, "The file ends at byte %zu.", decoder->length);
		png_error(png, "truncated");
	}
	memcpy(out, decoder->bytes + decoder->at, count);
	decoder->at += count;
}

static bool
prepare(PngDecoder *decoder, const void *bytes, size_t length, Status *status)
{
	memset(decoder, 0, sizeof(*decoder));
	status_clear(status);
	decoder->bytes = bytes;
	decoder->length = length;
	decoder->status = status;
	decoder->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, decoder, fail, ignore_warning);
	if (decoder->png != NULL)
		decoder->info = png_create_info_struct(decoder->png);
	if (decoder->info != NULL)
		return true;
	png_destroy_read_struct(&decoder->png, NULL, NULL);
	return status_out_of_memory(status, 0);
}

/* Read up to the picture's data; the caller has set the jump target. */
static void
begin(PngDecoder *decoder)
{
	png_set_user_limits(decoder->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
	png_set_chunk_malloc_max(decoder->png, MAX_CHUNK_BYTES);
	/*
	 * the rest is skipped unread: a thousand compressed texts of a small file would unpack to
	 * gigabytes
	 */
	png_set_keep_unknown_chunks(decoder->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
	png_set_keep_unknown_chunks(decoder->png, PNG_HANDLE_CHUNK_AS_DEFAULT, exif_chunk, 1);
	png_set_read_fn(decoder->png, decoder, read_bytes);
	png_read_info(decoder->png, decoder->info);
}

static int
stored_orientation(PngDecoder *decoder)
{
#ifdef PNG_eXIf_SUPPORTED
	png_uint_32 length;
	png_bytep	bytes;

	if (png_get_eXIf_1(decoder->png, decoder->info, &length, &bytes) != 0)
		return exif_orientation(bytes, length);
#endif
	return 1;
}

static void
describe(PngDecoder *decoder, ImageInfo *info)
{
	bool		transparent = png_get_valid(decoder->png, decoder->info, PNG_INFO_tRNS) != 0;

	info->width = (int) png_get_image_width(decoder->png, decoder->info);
	info->height = (int) png_get_image_height(decoder->png, decoder->info);
	info->bits = png_get_bit_depth(decoder->png, decoder->info);
	info->orientation = stored_orientation(decoder);
	info->channels = png_get_channels(decoder->png, decoder->info);
	switch (png_get_color_type(decoder->png, decoder->info))
	{
		case PNG_COLOR_TYPE_GRAY:
			info->color = "grey";
			break;
		case PNG_COLOR_TYPE_GRAY_ALPHA:
			info->color = "grey and alpha";
			break;
		case PNG_COLOR_TYPE_PALETTE:
			info->color = "palette";
			info->channels = transparent ? 4 : 3;
			break;
		case PNG_COLOR_TYPE_RGB:
			info->color = "RGB";
			break;
		default:
			info->color = "RGBA";
	}
}

bool
png_read_header(const void *bytes, size_t length, ImageInfo *info, Status *status)
{
	PngDecoder	decoder;

	if (!prepare(&decoder, bytes, length, status))
		return false;
	if (setjmp(png_jmpbuf(decoder.png)) != 0)
	{
		png_destroy_read_struct(&decoder.png, &decoder.info, NULL);
		return false;
	}
	begin(&decoder);
	describe(&decoder, info);
	png_destroy_read_struct(&decoder.png, &decoder.info, NULL);
	return true;
}

/* What libpng delivers a row in. */
typedef enum RowForm
{
	ROW_RGB,
	ROW_RGBA,
	ROW_GREY_16
} RowForm;

/*
 * Transparency is dropped, colours under it show; 16-bit grey is clipped, other 16 bits keep the
 * high byte.
 */
static RowForm
set_original_rules(PngDecoder *decoder)
{
	png_structp png = decoder->png;
	int			type = png_get_color_type(png, decoder->info);

	if (type == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, decoder->info) == 16)
		return ROW_GREY_16;
	if (type == PNG_COLOR_TYPE_PALETTE)
		png_set_palette_to_rgb(png);
	if (type == PNG_COLOR_TYPE_GRAY)
		png_set_expand_gray_1_2_4_to_8(png);
	png_set_strip_16(png);
	png_set_strip_alpha(png);
	png_set_gray_to_rgb(png);
	return ROW_RGB;
}

/*
 * Transparency of every kind becomes an alpha channel; 16 bits are scaled: (v * 255 + 32895) >> 16,
 * libpng's rounding.
 */
static RowForm
set_display_rules(PngDecoder *decoder)
{
	png_structp png = decoder->png;
	bool		transparent = png_get_valid(png, decoder->info, PNG_INFO_tRNS) != 0 ||
		(png_get_color_type(png, decoder->info) & PNG_COLOR_MASK_ALPHA) != 0;

	png_set_expand(png);
	png_set_scale_16(png);
	png_set_gray_to_rgb(png);
	return transparent ? ROW_RGBA : ROW_RGB;
}

/* Lay RGBA over white: (c a + 255 (255 - a)) / 255, rounded to nearest. */
static void
lay_over_white(const uint8_t *rgba, int width, uint8_t *rgb)
{
	for (int x = 0; x < width; x++)
	{
		int			alpha = rgba[4 * x + 3];

		for (int channel = 0; channel < 3; channel++)
			rgb[3 * x + channel] = (uint8_t) ((rgba[4 * x + channel] * alpha + 255 * (255 - alpha) +
											   127) /
											  255);
	}
}

static void
clip_grey_16(const uint8_t *grey, int width, uint8_t *rgb)
{
	for (int x = 0; x < width; x++)
		memset(rgb + 3 * x, grey[2 * x] != 0 ? 255 : grey[2 * x + 1], 3);
}

static void
take_row(PictureTarget *target, RowForm form, int y, const uint8_t *row, uint8_t *rgb)
{
	if (form == ROW_RGBA)
		lay_over_white(row, target->width, rgb);
	else if (form == ROW_GREY_16)
		clip_grey_16(row, target->width, rgb);
	picture_take_row(target, y, form == ROW_RGB ? row : rgb);
}

/*
 * Decode into the target. rows is one row, or the whole picture where it is interlaced:
 * each of the seven passes fills in more of it.
 */
static void
read_rows(PngDecoder *decoder, PictureTarget *target, RowForm form, int passes, uint8_t *rows,
		  size_t row_bytes, uint8_t *rgb)
{
	for (int pass = 0; pass < passes; pass++)
		for (int y = 0; y < target->height; y++)
		{
			uint8_t    *row = passes > 1 ? rows + (size_t) y * row_bytes : rows;

			png_read_row(decoder->png, row, NULL);
			if (pass == passes - 1)
				take_row(target, form, y, row, rgb);
		}
}

/* The part of png_decode between header and clean-up; errors of libpng jump out of it. */
static bool
decode_rows(PngDecoder *decoder, ImageRules rules, const ImageLimits *limits, int size,
			Arena *arena, uint8_t *pixels)
{
	Status	   *status = decoder->status;
	int			width = (int) png_get_image_width(decoder->png, decoder->info);
	int			height = (int) png_get_image_height(decoder->png, decoder->info);
	PictureTarget target;
	RowForm		form;
	uint8_t    *rows;
	uint8_t    *rgb;
	size_t		row_bytes;
	int			passes;

	if (!image_check_size((uint64_t) width, (uint64_t) height, limits, status))
		return false;
	form = rules == IMAGE_RULES_DISPLAY ? set_display_rules(decoder) : set_original_rules(decoder);
	passes = png_set_interlace_handling(decoder->png);
	png_read_update_info(decoder->png, decoder->info);
	row_bytes = png_get_rowbytes(decoder->png, decoder->info);
	rows = arena_take_array(arena, passes > 1 ? (size_t) height : 1, row_bytes);
	rgb = arena_take_array(arena, (size_t) width, 3);
	if (rows == NULL || rgb == NULL)
		return status_out_of_memory(status, row_bytes * (passes > 1 ? (size_t) height : 1));
	if (!picture_begin(&target, width, height,
					   rules == IMAGE_RULES_DISPLAY ? stored_orientation(decoder) : 1, size, arena,
					   status))
		return false;
	read_rows(decoder, &target, form, passes, rows, row_bytes, rgb);
	return picture_finish(&target, pixels, status);
}

bool
png_decode(const void *bytes, size_t length, ImageRules rules, const ImageLimits *limits, int size,
		   Arena *arena, uint8_t *pixels, Status *status)
{
	PngDecoder	decoder;
	bool		good;

	if (!prepare(&decoder, bytes, length, status))
		return false;
	if (setjmp(png_jmpbuf(decoder.png)) != 0)
	{
		png_destroy_read_struct(&decoder.png, &decoder.info, NULL);
		return false;
	}
	begin(&decoder);
	good = decode_rows(&decoder, rules, limits, size, arena, pixels);
	png_destroy_read_struct(&decoder.png, &decoder.info, NULL);
	return good;
}
