/*
 * image_jpeg.c - JPEG files through libjpeg-turbo: baseline and progressive; grey, colour,
 * CMYK and YCCK. The exact integer transform and smooth upsampling, as Pillow uses them.
 *
 * libjpeg reports errors by a call that must not return. Its longjmp stays inside this
 * file: each entry function sets the target and holds no resources but the decoder, which
 * the error path destroys.
 */
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "image_internal.h"

/* Progressive files have about ten scans; thousands are an attack on the processor. */
#define MAX_SCANS 500

typedef struct JpegDecoder
{
	struct jpeg_decompress_struct jpeg;
	struct jpeg_error_mgr errors;
	struct jpeg_progress_mgr progress;
	jmp_buf		failed;
	Status	   *status;
} JpegDecoder;

static void
fail(j_common_ptr jpeg)
{
	JpegDecoder *decoder = (JpegDecoder *) jpeg->client_data;
	char		text[JMSG_LENGTH_MAX];

	jpeg->err->format_message(jpeg, text);
	if (jpeg->err->msg_code == JERR_OUT_OF_MEMORY)
		status_set(decoder->status, STATUS_OUT_OF_MEMORY,
				   "out of memory while decoding a JPEG image");
	else
	{
		status_set(decoder->status, STATUS_INVALID_IMAGE, "image is not a valid JPEG file");
		status_detail(decoder->status, "%s.", text);
	}
	longjmp(decoder->failed, 1);
}

static void
fail_truncated(j_common_ptr jpeg)
{
	JpegDecoder *decoder = (JpegDecoder *) jpeg->client_data;

	status_set(decoder->status, STATUS_INVALID_IMAGE, "JPEG image is truncated");
	if (decoder->jpeg.image_height > 0)
		status_detail(decoder->status, "The data ends after row %u of %u.",
					  decoder->jpeg.output_scanline, decoder->jpeg.image_height);
	longjmp(decoder->failed, 1);
}

/*
 * Warnings are harmless, but for the end of the data inside the picture: of the file, or of
 * a scan, by a marker that stands too early. libjpeg would go on with grey.
 */
static void
note_warning(j_common_ptr jpeg, int level)
{
	if (level < 0 &&
		(jpeg->err->msg_code == JWRN_JPEG_EOF || jpeg->err->msg_code == JWRN_HIT_MARKER))
		fail_truncated(jpeg);
}

static void
stay_silent(j_common_ptr jpeg)
{
}

static void
check_progress(j_common_ptr jpeg)
{
	JpegDecoder *decoder = (JpegDecoder *) jpeg->client_data;

	if (decoder->jpeg.input_scan_number <= MAX_SCANS)
		return;
	status_set(decoder->status, STATUS_INVALID_IMAGE, "JPEG image has more than %d scans",
			   MAX_SCANS);
	longjmp(decoder->failed, 1);
}

/* Begin to read; the caller has set the jump target. */
static void
begin(JpegDecoder *decoder, const void *bytes, size_t length)
{
	struct jpeg_decompress_struct *jpeg = &decoder->jpeg;

	jpeg_create_decompress(jpeg);
	jpeg->progress = &decoder->progress;
	jpeg_mem_src(jpeg, bytes, (unsigned long) length);
	jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xFFFF);
	jpeg_read_header(jpeg, TRUE);
}

static void
prepare(JpegDecoder *decoder, Status *status)
{
	memset(decoder, 0, sizeof(*decoder));
	decoder->status = status;
	decoder->jpeg.err = jpeg_std_error(&decoder->errors);
	decoder->jpeg.client_data = decoder;
	decoder->errors.error_exit = fail;
	decoder->errors.emit_message = note_warning;
	decoder->errors.output_message = stay_silent;
	decoder->progress.progress_monitor = check_progress;
}

/* The orientation in the first EXIF marker; 1 where there is none. */
static int
stored_orientation(const struct jpeg_decompress_struct *jpeg)
{
	for (jpeg_saved_marker_ptr marker = jpeg->marker_list; marker != NULL; marker = marker->next)
		if (marker->data_length > 6 && memcmp(marker->data, "Exif\0\0", 6) == 0)
			return exif_orientation(marker->data + 6, marker->data_length - 6);
	return 1;
}

bool
jpeg_read_info(const void *bytes, size_t length, ImageInfo *info, Status *status)
{
	JpegDecoder decoder;

	prepare(&decoder, status);
	if (setjmp(decoder.failed) != 0)
	{
		jpeg_destroy_decompress(&decoder.jpeg);
		return false;
	}
	begin(&decoder, bytes, length);
	info->width = (int) decoder.jpeg.image_width;
	info->height = (int) decoder.jpeg.image_height;
	info->channels = decoder.jpeg.num_components;
	info->bits = decoder.jpeg.data_precision;
	info->orientation = stored_orientation(&decoder.jpeg);
	info->color = info->channels == 1 ? "grey" : info->channels == 4 ? "CMYK" : "RGB";
	jpeg_destroy_decompress(&decoder.jpeg);
	return true;
}

/* a * b / 255, rounded as Pillow does. */
static int
multiply_bytes(int a, int b)
{
	int			product = a * b + 128;

	return ((product >> 8) + product) >> 8;
}

/* Pillow's CMYK to RGB; the file holds inverted values, as Adobe writes them. */
static void
cmyk_to_rgb(const uint8_t *cmyk, int width, uint8_t *rgb)
{
	for (int x = 0; x < width; x++)
	{
		int			light = cmyk[4 * x + 3];	/* 255 - K */

		for (int channel = 0; channel < 3; channel++)
		{
			int			value = light - multiply_bytes(255 - cmyk[4 * x + channel], light);

			rgb[3 * x + channel] = (uint8_t) (value < 0 ? 0 : value);
		}
	}
}

static void
grey_to_rgb(const uint8_t *grey, int width, uint8_t *rgb)
{
	for (int x = 0; x < width; x++)
		memset(rgb + 3 * x, grey[x], 3);
}

/* Rows in the file's components and in RGB. */
typedef struct JpegRows
{
	JSAMPROW	row;
	uint8_t    *rgb;
} JpegRows;

static bool
take_rows(const struct jpeg_decompress_struct *jpeg, Arena *arena, JpegRows *rows, Status *status)
{
	rows->row = arena_take_array(arena, jpeg->image_width, 4);
	rows->rgb = arena_take_array(arena, jpeg->image_width, 3);
	if (rows->row == NULL || rows->rgb == NULL)
		return status_out_of_memory(status, (size_t) jpeg->image_width * 7);
	return true;
}

/* Decode row by row into the target. */
static void
read_rows(struct jpeg_decompress_struct *jpeg, JpegRows *rows, PictureTarget *target)
{
	int			width = (int) jpeg->output_width;

	while (jpeg->output_scanline < jpeg->output_height)
	{
		int			y = (int) jpeg->output_scanline;
		const uint8_t *rgb = rows->rgb;

		jpeg_read_scanlines(jpeg, &rows->row, 1);
		if (jpeg->out_color_space == JCS_CMYK)
			cmyk_to_rgb(rows->row, width, rows->rgb);
		else if (jpeg->out_color_space == JCS_GRAYSCALE)
			grey_to_rgb(rows->row, width, rows->rgb);
		else
			rgb = rows->row;
		picture_take_row(target, y, rgb);
	}
}

/* The part of jpeg_decode between header and clean-up; errors of libjpeg jump out of it. */
static bool
decode_rows(JpegDecoder *decoder, ImageRules rules, const ImageLimits *limits, int size,
			Arena *arena, uint8_t *pixels)
{
	struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
	int			orientation = rules == IMAGE_RULES_DISPLAY ? stored_orientation(jpeg) : 1;
	PictureTarget target;
	JpegRows	rows;

	jpeg->out_color_space = jpeg->num_components == 1 ? JCS_GRAYSCALE
							: jpeg->num_components == 4 ? JCS_CMYK
														: JCS_RGB;
	if (!image_check_size(jpeg->image_width, jpeg->image_height, limits, decoder->status) ||
		!take_rows(jpeg, arena, &rows, decoder->status) ||
		!picture_begin(&target, (int) jpeg->image_width, (int) jpeg->image_height, orientation,
					   size, arena, decoder->status))
		return false;
	jpeg_start_decompress(jpeg);
	read_rows(jpeg, &rows, &target);
	return picture_finish(&target, pixels, decoder->status);
}

bool
jpeg_decode(const void *bytes, size_t length, ImageRules rules, const ImageLimits *limits, int size,
			Arena *arena, uint8_t *pixels, Status *status)
{
	JpegDecoder decoder;
	bool		good;

	prepare(&decoder, status);
	if (setjmp(decoder.failed) != 0)
	{
		jpeg_destroy_decompress(&decoder.jpeg);
		return false;
	}
	begin(&decoder, bytes, length);
	good = decode_rows(&decoder, rules, limits, size, arena, pixels);
	jpeg_destroy_decompress(&decoder.jpeg);
	return good;
}
