/*
 * image.h - from the bytes of a JPEG or PNG file to what the vision encoder eats.
 *
 * A file is decoded row by row and resized while it is read, so a picture of 12
 * megapixels costs the rows that the crop keeps, not the picture. The bytes are
 * not trusted: every size in a header is checked against the limits before it is
 * used.
 */
#ifndef MMGPT_IMAGE_H
#define MMGPT_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "status.h"

typedef enum ImageFormat
{
	IMAGE_JPEG,
	IMAGE_PNG
} ImageFormat;

/* How a file becomes RGB (MODEL.md, image rules). */
typedef enum ImageRules
{
	IMAGE_RULES_DISPLAY, /* as a viewer shows it: EXIF orientation, transparency over white, 16 bits
							scaled */
	IMAGE_RULES_ORIGINAL /* as the original's training: alpha dropped, EXIF ignored, 16-bit grey
							clipped */
} ImageRules;

typedef struct ImageInfo
{
	ImageFormat format;
	int			width;			/* pixels, as stored (before orientation) */
	int			height;
	/*
	 * 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA or CMYK; a palette counts as what it holds: 3, or 4
	 * with transparency
	 */
	int			channels;
	/* per channel as stored: 1, 2, 4, 8, 16 (palette: bits of an index) */
	int			bits;
	int			orientation;	/* EXIF, 1 to 8; 1 where there is none */
	size_t		bytes;			/* of the file */
	const char *color;			/* "grey", "grey and alpha", "RGB", "RGBA", "palette", "CMYK" */
} ImageInfo;

/* Read the header only. STATUS_INVALID_IMAGE when it is neither JPEG nor PNG, or damaged. */
extern bool image_read_info(const void *bytes, size_t length, ImageInfo *info, Status *status);

typedef struct ImageLimits
{
	uint64_t	max_pixels;		/* width * height; STATUS_IMAGE_TOO_LARGE above */
} ImageLimits;

/*
 * Decode, turn to RGB by the rules, resize the shorter side to size with an
 * antialiased bicubic filter and cut the centre square, as PIL and torchvision
 * do, bit for bit: pixels receives uint8 [size, size, 3]. Scratch memory comes
 * from the arena and may be forgotten afterwards. Safe to call from several threads
 * with arenas of their own.
 */
extern bool image_preprocess(const void *bytes, size_t length, ImageRules rules,
							 const ImageLimits *limits, int size, Arena *arena, uint8_t *pixels,
							 Status *status);

#endif
