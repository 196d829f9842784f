/*
 * tensor.c - views and host conversions; see tensor.h.
 */
#include "tensor.h"

#include <string.h>

size_t
data_type_size(DataType type)
{
	switch (type)
	{
		case TYPE_F32:
		case TYPE_I32:
			return 4;
		case TYPE_F16:
		case TYPE_BF16:
			return 2;
		case TYPE_U8:
		case TYPE_I8:
		case TYPE_Q8:
		case TYPE_Q4:
			return 1;
	}
	return 1;
}

const char *
data_type_name(DataType type)
{
	static const char *const names[] = {"f32", "f16", "bf16", "i32", "u8", "i8", "q8", "q4"};

	return names[type];
}

Tensor
tensor_make(void *data, DataType type, int rows, int columns)
{
	Tensor		tensor = {data, type, rows, columns, columns};

	return tensor;
}

/* The address of an element; arithmetic only, the memory is not touched. */
static void *
element_address(Tensor tensor, int row, int column)
{
	size_t		element = (size_t) row * (size_t) tensor.stride + (size_t) column;

	return (char *) tensor.data + element * data_type_size(tensor.type);
}

Tensor
tensor_row_range(Tensor tensor, int first, int count)
{
	tensor.data = element_address(tensor, first, 0);
	tensor.rows = count;
	return tensor;
}

Tensor
tensor_column_range(Tensor tensor, int first, int count)
{
	tensor.data = element_address(tensor, 0, first);
	tensor.columns = count;
	return tensor;
}

/* IEEE binary16 to binary32, subnormals and infinities included. */
static float
half_to_float(uint16_t half)
{
	uint32_t	sign = (uint32_t) (half & 0x8000) << 16;
	uint32_t	exponent = (half >> 10) & 0x1F;
	uint32_t	fraction = half & 0x3FF;
	uint32_t	bits;
	float		value;

	if (exponent == 0)
	{
		value = (float) fraction * 5.9604644775390625e-08f;	/* 2^-24 */
		return sign ? -value : value;
	}
	if (exponent == 31)
		bits = sign | 0x7F800000u | fraction << 13;
	else
		bits = sign | (exponent + 112) << 23 | fraction << 13;
	memcpy(&value, &bits, sizeof(value));
	return value;
}

void
convert_to_f32(const void *from, DataType type, size_t count, float *to)
{
	const char *at = from;		/* a file need not align its tensors */
	uint16_t	half;

	switch (type)
	{
		case TYPE_F32:
			memcpy(to, from, count * sizeof(float));
			break;
		case TYPE_F16:
			for (size_t i = 0; i < count; i++)
			{
				memcpy(&half, at + i * sizeof(half), sizeof(half));
				to[i] = half_to_float(half);
			}
			break;
		case TYPE_BF16:
			for (size_t i = 0; i < count; i++)
			{
				uint32_t	bits;

				memcpy(&half, at + i * sizeof(half), sizeof(half));
				bits = (uint32_t) half << 16;
				memcpy(to + i, &bits, sizeof(bits));
			}
			break;
		case TYPE_I32:
		case TYPE_U8:
			for (size_t i = 0; i < count; i++)
				to[i] = type == TYPE_U8 ? (float) ((const uint8_t *) from)[i] :
					(float) ((const int32_t *) from)[i];
			break;
		case TYPE_I8:
		case TYPE_Q8:
		case TYPE_Q4:
			break;				/* codes without their scales are no numbers */
	}
}
