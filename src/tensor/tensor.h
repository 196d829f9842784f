/*
 * tensor.h - matrices on a device.
 *
 * A Tensor is a view: row-major, rows of `columns` elements, `stride` elements
 * from one row to the next. Its memory belongs to whoever allocated the buffer,
 * and only a backend may follow the address. Code above src/tensor never does.
 */
#ifndef MMGPT_TENSOR_H
#define MMGPT_TENSOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum DataType
{
	TYPE_F32,
	TYPE_F16,
	TYPE_BF16,
	TYPE_I32,
	TYPE_U8,
	TYPE_I8,
	/* weights in blocks with a scale each, see quantize.h; no tensor has such elements */
	TYPE_Q8,
	TYPE_Q4
} DataType;

typedef struct Tensor
{
	void	   *data;			/* device address of row 0, column 0 */
	DataType	type;
	int			rows;
	int			columns;
	int			stride;			/* elements from row to row, >= columns */
} Tensor;

/* Bytes of one element. */
extern size_t data_type_size(DataType type);

/* The name of the type in messages: "f32", "bf16", ... */
extern const char *data_type_name(DataType type);

/* A dense tensor at a device address. */
extern Tensor tensor_make(void *data, DataType type, int rows, int columns);

/* Rows [first, first + count) of a tensor. */
extern Tensor tensor_row_range(Tensor tensor, int first, int count);

/* Columns [first, first + count) of a tensor. */
extern Tensor tensor_column_range(Tensor tensor, int first, int count);

/* Convert count elements of a floating type on the host to f32. */
extern void convert_to_f32(const void *from, DataType type, size_t count, float *to);

/*
 * An f32 rounded to bf16, to nearest even, as all bf16 arithmetic here does it: numbers below
 * 2^-126 become zero, NaN stays one.
 */
static inline uint16_t
bf16_from_f32(float value)
{
	uint32_t	bits;
	uint32_t	magnitude;

	memcpy(&bits, &value, sizeof(bits));
	magnitude = bits & 0x7FFFFFFFu;
	if (magnitude > 0x7F800000u)
		return (uint16_t) (bits >> 16 | 0x40);
	if (magnitude < 0x00800000u)
		return (uint16_t) (bits >> 16 & 0x8000);
	return (uint16_t) ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

#endif
