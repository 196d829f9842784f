/*
 * image_internal.h - what the decoders and the resize share.
 *
 * A decoder pushes rows of RGB, in the order of the file, into a PictureTarget. The target
 * turns them the way the orientation says and feeds the resize, which keeps only the
 * rows and columns that the centre crop needs.
 */
#ifndef MMGPT_IMAGE_INTERNAL_H
#define MMGPT_IMAGE_INTERNAL_H

#include "image.h"

typedef struct Resizer Resizer;

/* A resize of width x height pixels to a centre square of size x size. NULL: out of memory. */
extern Resizer *resizer_create(int width, int height, int size, Arena *arena, Status *status);

/* Take row y (RGB, width pixels); rows may come in any order, each once. */
extern void resizer_take_row(Resizer *resizer, int y, const uint8_t *rgb);

/* Write the square, uint8 [size, size, 3], after all rows were taken. */
extern void resizer_finish(Resizer *resizer, uint8_t *pixels);

typedef struct PictureTarget
{
	int			width;			/* as stored */
	int			height;
	int			orientation;	/* EXIF, 1 to 8; 1 where it is to be ignored */
	int			size;
	Arena	   *arena;
	Resizer    *resizer;
	uint8_t    *mirrored;		/* one row, for orientations that mirror */
	uint8_t    *whole;			/* [height, width, 3], for orientations that transpose */
} PictureTarget;

extern bool picture_begin(PictureTarget *target, int width, int height, int orientation, int size,
						  Arena *arena, Status *status);
extern void picture_take_row(PictureTarget *target, int y, const uint8_t *rgb);
extern bool picture_finish(PictureTarget *target, uint8_t *pixels, Status *status);

/* STATUS_IMAGE_TOO_LARGE if the picture has more pixels than allowed. */
extern bool image_check_size(uint64_t width, uint64_t height, const ImageLimits *limits,
							 Status *status);

/* The orientation in an EXIF block (TIFF header first); 1 where there is none or it is damaged. */
extern int	exif_orientation(const uint8_t *bytes, size_t length);

extern bool jpeg_read_info(const void *bytes, size_t length, ImageInfo *info, Status *status);
extern bool jpeg_decode(const void *bytes, size_t length, ImageRules rules,
						const ImageLimits *limits, int size, Arena *arena, uint8_t *pixels,
						Status *status);
extern bool png_read_header(const void *bytes, size_t length, ImageInfo *info, Status *status);
extern bool png_decode(const void *bytes, size_t length, ImageRules rules,
					   const ImageLimits *limits, int size, Arena *arena, uint8_t *pixels,
					   Status *status);

#endif
