/*
 * image_sniff.c - which format a file has, judged by its first bytes and never by a
 * name; limits; the orientation that cameras write.
 */
#include <stdio.h>
#include <string.h>

#include "image_internal.h"

/* Bytes that a message shows of what is no image. */
#define SHOWN_BYTES 4

static const uint8_t jpeg_signature[] = {0xFF, 0xD8, 0xFF};
static const uint8_t png_signature[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};

/* Formats that people try, for a message that helps. */
static const char *
guess_other_format(const uint8_t *bytes, size_t length)
{
	if (length >= 4 && memcmp(bytes, "GIF8", 4) == 0)
		return "a GIF";
	if (length >= 12 && memcmp(bytes, "RIFF", 4) == 0 && memcmp(bytes + 8, "WEBP", 4) == 0)
		return "a WebP";
	if (length >= 12 && memcmp(bytes + 4, "ftyp", 4) == 0)
		return "a HEIC, AVIF or MP4";
	if (length >= 2 && memcmp(bytes, "BM", 2) == 0)
		return "a BMP";
	if (length >= 4 && (memcmp(bytes, "II*\0", 4) == 0 || memcmp(bytes, "MM\0*", 4) == 0))
		return "a TIFF";
	if (length >= 4 && memcmp(bytes, "%PDF", 4) == 0)
		return "a PDF";
	return NULL;
}

/* Name the first bytes, as far as there are any. Returns false. */
static bool
describe_bytes(const uint8_t *bytes, size_t length, Status *status)
{
	char		digits[3 * SHOWN_BYTES + 1] = "";
	size_t		shown = length < SHOWN_BYTES ? length : SHOWN_BYTES;

	for (size_t i = 0; i < shown; i++)
		snprintf(digits + 3 * i, 4, " %02x", bytes[i]);
	return status_detail(status, "Its first bytes are%s.", digits);
}

/* True and the format, or false and a message that says what the bytes are instead. */
static bool
sniff_format(const uint8_t *bytes, size_t length, ImageFormat *format, Status *status)
{
	const char *other;

	if (length >= sizeof(jpeg_signature) &&
		memcmp(bytes, jpeg_signature, sizeof(jpeg_signature)) == 0)
	{
		*format = IMAGE_JPEG;
		return true;
	}
	if (length >= sizeof(png_signature) && memcmp(bytes, png_signature, sizeof(png_signature)) == 0)
	{
		*format = IMAGE_PNG;
		return true;
	}
	if (length == 0)
		return status_set(status, STATUS_INVALID_IMAGE, "image is empty");
	other = guess_other_format(bytes, length);
	status_set(status, STATUS_INVALID_IMAGE, "image is neither JPEG nor PNG");
	if (other != NULL)
		status_detail(status, "It looks like %s file.", other);
	else
		describe_bytes(bytes, length, status);
	return status_hint(status, "Store the bytes of a JPEG or PNG file.");
}

bool
image_check_size(uint64_t width, uint64_t height, const ImageLimits *limits, Status *status)
{
	if (width < 1 || height < 1)
		return status_set(status, STATUS_INVALID_IMAGE, "image has no pixels: %llu x %llu",
						  (unsigned long long) width, (unsigned long long) height);
	if (width <= limits->max_pixels && height <= limits->max_pixels / width)
		return true;
	status_set(status, STATUS_IMAGE_TOO_LARGE,
			   "image of %llu x %llu pixels exceeds the limit of %llu pixels",
			   (unsigned long long) width, (unsigned long long) height,
			   (unsigned long long) limits->max_pixels);
	return status_hint(status, "Scale it down, or raise mmgpt.max_image_pixels.");
}

/* A 16- or 32-bit number of a TIFF structure. */
static uint32_t
tiff_number(const uint8_t *bytes, int size, bool big_endian)
{
	uint32_t	value = 0;

	for (int i = 0; i < size; i++)
		value |= (uint32_t) bytes[i] << 8 * (big_endian ? size - 1 - i : i);
	return value;
}

int
exif_orientation(const uint8_t *bytes, size_t length)
{
	bool		big_endian;
	size_t		directory;
	uint32_t	entries;

	if (length < 8 || (memcmp(bytes, "II", 2) != 0 && memcmp(bytes, "MM", 2) != 0))
		return 1;
	big_endian = bytes[0] == 'M';
	directory = tiff_number(bytes + 4, 4, big_endian);
	if (directory > length - 2)
		return 1;
	entries = tiff_number(bytes + directory, 2, big_endian);
	for (uint32_t i = 0; i < entries; i++)
	{
		size_t		entry = directory + 2 + 12 * (size_t) i;
		uint32_t	value;

		if (entry + 12 > length)
			return 1;
		/* Tag 0x0112 of type SHORT. */
		if (tiff_number(bytes + entry, 2, big_endian) != 0x0112 ||
			tiff_number(bytes + entry + 2, 2, big_endian) != 3)
			continue;
		value = tiff_number(bytes + entry + 8, 2, big_endian);
		return value >= 1 && value <= 8 ? (int) value : 1;
	}
	return 1;
}

bool
image_read_info(const void *bytes, size_t length, ImageInfo *info, Status *status)
{
	memset(info, 0, sizeof(*info));
	if (!sniff_format(bytes, length, &info->format, status))
		return false;
	info->bytes = length;
	info->orientation = 1;
	if (info->format == IMAGE_JPEG)
		return jpeg_read_info(bytes, length, info, status);
	return png_read_header(bytes, length, info, status);
}

bool
image_preprocess(const void *bytes, size_t length, ImageRules rules, const ImageLimits *limits,
				 int size, Arena *arena, uint8_t *pixels, Status *status)
{
	ImageFormat format;

	if (!sniff_format(bytes, length, &format, status))
		return false;
	if (format == IMAGE_JPEG)
		return jpeg_decode(bytes, length, rules, limits, size, arena, pixels, status);
	return png_decode(bytes, length, rules, limits, size, arena, pixels, status);
}
