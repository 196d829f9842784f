/*
 * npy.c - a magic string, the length of a header, the header (a Python literal) and the
 * data (NEP 1); see npy.h.
 */
#include "npy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NPY_MAGIC "\x93NUMPY\x01\x00"
#define NPY_MAGIC_SIZE 8
/* Data begins at a multiple of this. */
#define NPY_ALIGNMENT 64

static size_t
element_count(const NpyArray *array)
{
	size_t		count = 1;

	for (int i = 0; i < array->dimensions; i++)
		count *= (size_t) array->shape[i];
	return count;
}

/* "'shape': (3, 56, 56)" into the array; false when it is not 1 to 4 sizes. */
static bool
parse_shape(const char *header, NpyArray *array)
{
	const char *at = strstr(header, "'shape':");
	size_t		product = 1;

	if (at == NULL || (at = strchr(at, '(')) == NULL)
		return false;
	at++;
	array->dimensions = 0;
	for (;;)
	{
		char	   *end;
		long		size;

		at += strspn(at, " ,");
		if (*at == ')')
			return array->dimensions > 0;
		size = strtol(at, &end, 10);
		if (end == at || size < 1 || size > 1 << 30 || array->dimensions == 4 ||
			product > ((size_t) 1 << 40) / (size_t) size)
			return false;
		product *= (size_t) size;
		array->shape[array->dimensions++] = (int) size;
		at = end;
	}
}

static bool
parse_header(const char *header, NpyArray *array)
{
	if (strstr(header, "'descr': '<f4'") != NULL)
		array->type = TYPE_F32;
	else if (strstr(header, "'descr': '|u1'") != NULL)
		array->type = TYPE_U8;
	else
		return false;
	return strstr(header, "'fortran_order': False") != NULL && parse_shape(header, array);
}

static bool
read_array(FILE *file, Arena *arena, NpyArray *array)
{
	uint8_t		start[NPY_MAGIC_SIZE + 2];
	char		header[4096];
	size_t		length;
	size_t		bytes;

	if (fread(start, 1, sizeof(start), file) != sizeof(start) ||
		memcmp(start, NPY_MAGIC, NPY_MAGIC_SIZE) != 0)
		return false;
	length = start[NPY_MAGIC_SIZE] | (size_t) start[NPY_MAGIC_SIZE + 1] << 8;
	if (length >= sizeof(header) || fread(header, 1, length, file) != length)
		return false;
	header[length] = '\0';
	if (!parse_header(header, array))
		return false;
	bytes = element_count(array) * data_type_size(array->type);
	array->data = arena_take(arena, bytes);
	return array->data != NULL && fread(array->data, 1, bytes, file) == bytes;
}

bool
npy_read(const char *path, Arena *arena, NpyArray *array, Status *status)
{
	FILE	   *file = fopen(path, "rb");
	bool		good;

	if (file == NULL)
		return status_set(status, STATUS_IO, "could not open file \"%s\": %s", path,
						  strerror(errno));
	good = read_array(file, arena, array);
	fclose(file);
	if (good)
		return true;
	status_set(status, STATUS_INVALID_ARGUMENT, "\"%s\" is not a .npy file that can be read", path);
	return status_hint(status,
					   "It has to hold float32 or uint8 in C order, as numpy.save writes it.");
}

bool
npy_write(const char *path, const NpyArray *array, Status *status)
{
	char		header[256];
	size_t		bytes = element_count(array) * data_type_size(array->type);
	size_t		used;
	size_t		total;
	FILE	   *file = fopen(path, "wb");
	bool		good;

	if (file == NULL)
		return status_set(status, STATUS_IO, "could not create file \"%s\": %s", path,
						  strerror(errno));
	used = (size_t) snprintf(header, sizeof(header),
							 "{'descr': '%s', 'fortran_order': False, 'shape': (",
							 array->type == TYPE_F32 ? "<f4" : "|u1");
	for (int i = 0; i < array->dimensions; i++)
		used += (size_t) snprintf(header + used, sizeof(header) - used, "%d, ", array->shape[i]);
	used += (size_t) snprintf(header + used, sizeof(header) - used, "), }");
	total = (NPY_MAGIC_SIZE + 2 + used + 1 + NPY_ALIGNMENT - 1) / NPY_ALIGNMENT * NPY_ALIGNMENT;
	fwrite(NPY_MAGIC, 1, NPY_MAGIC_SIZE, file);
	fputc((int) ((total - NPY_MAGIC_SIZE - 2) & 0xFF), file);
	fputc((int) ((total - NPY_MAGIC_SIZE - 2) >> 8), file);
	fwrite(header, 1, used, file);
	for (size_t i = NPY_MAGIC_SIZE + 2 + used; i + 1 < total; i++)
		fputc(' ', file);
	fputc('\n', file);
	fwrite(array->data, 1, bytes, file);
	good = ferror(file) == 0;
	good = fclose(file) == 0 && good;
	return good ||
		   status_set(status, STATUS_IO, "could not write file \"%s\": %s", path, strerror(errno));
}
