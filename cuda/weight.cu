/*
 * weight.cu - weight matrices on the device.
 *
 * Rows of outputs as in a file, each padded with zeros to whole vectors of 16 bytes, so that a
 * kernel reads nothing else:
 *
 *	f32, bf16	[N, stride]
 *	q8, q4		codes [N, stride], in steps of 128 inputs in the order that tensor cores want
 *				(place_of_q8, place_of_q4); scales bf16 [N, stride / 32]
 *
 * N is rounded up to PRODUCT_UNIT by outputs of zeros.
 *
 * The conversion is the processor's, by the very functions of quantize.h that every backend uses.
 */
#include "cuda_backend.h"

#include <stdlib.h>
#include <string.h>

/* Bytes that are converted before they are uploaded. */
#define CHUNK_BYTES STAGING_BYTES
#define VECTOR_BYTES 16

typedef struct WeightMaker
{
	const WeightPart *parts;
	int			count;
	int			inputs;
	DataType	format;
	int64_t		stride;			/* inputs of a row, padded */
	size_t		row_bytes;
	int			blocks;			/* of a row as a file has it */
	int64_t		scale_stride;	/* blocks of a padded row */
	float	   *values;			/* one row, f32 [stride] */
	uint8_t    *codes;			/* one row as a file has it */
} WeightMaker;

/* Bytes of so many inputs, a multiple of those in a vector. */
static size_t
input_bytes(DataType format, int64_t inputs)
{
	size_t		count = static_cast<size_t>(inputs);

	return format == TYPE_F32 ? count * 4 : format == TYPE_BF16 ? count * 2
		: format == TYPE_Q8 ? count : count / 2;
}

static int64_t
padded_inputs(DataType format, int inputs)
{
	int			unit = format == TYPE_F32 ? 4 : format == TYPE_BF16 ? 8 : QUANTIZED_STEP;

	return (static_cast<int64_t>(inputs) + unit - 1) / unit * unit;
}

/* A row of a part as f32. */
static void
read_row(const WeightMaker *maker, const WeightPart *part, int row)
{
	size_t		first = static_cast<size_t>(row) * static_cast<size_t>(maker->inputs);

	if (data_type_is_quantized(part->type))
	{
		size_t		blocks = static_cast<size_t>(maker->blocks);
		size_t		bytes = static_cast<size_t>(quantized_row_bytes(part->type, maker->inputs));
		/* aligned, as those of a file need not be */
		uint16_t   *scales = reinterpret_cast<uint16_t *>(maker->codes);

		memcpy(scales, static_cast<const uint16_t *>(part->scales) +
			   static_cast<size_t>(row) * blocks, blocks * sizeof(uint16_t));
		dequantize_values(part->type, maker->inputs,
						  static_cast<const uint8_t *>(part->data) +
							  static_cast<size_t>(row) * bytes, scales, maker->values);
		return;
	}
	convert_to_f32(static_cast<const char *>(part->data) + first * data_type_size(part->type),
				   part->type, static_cast<size_t>(maker->inputs), maker->values);
}

/* Codes of a row, as a file has them, into the device's layout. */
static void
lay_out_codes(const WeightMaker *maker, uint8_t *to)
{
	if (maker->format == TYPE_Q8)
	{
		memset(to, 0, maker->row_bytes);
		for (int i = 0; i < maker->inputs; i += 8)	/* eight lie together */
			memcpy(to + place_of_q8(i), maker->codes + i,
				   static_cast<size_t>(maker->inputs - i < 8 ? maker->inputs - i : 8));
		return;
	}
	for (int64_t i = 0; i < maker->stride; i++)
	{
		int			code = i >= maker->inputs ? 8 : maker->codes[i / 2] >> i % 2 * 4 & 15;
		uint8_t    *byte = &to[place_of_q4(i)];

		*byte = static_cast<uint8_t>(i % 8 < 4 ? code : *byte | code << 4);
	}
}

/* A row of bf16 as it is, but for numbers below 2^-126, which become zero as in tensor.h. */
static void
copy_bf16(const WeightMaker *maker, const void *from, uint16_t *to)
{
	memset(to, 0, maker->row_bytes);
	memcpy(to, from, static_cast<size_t>(maker->inputs) * sizeof(uint16_t));
	for (int64_t i = 0; i < maker->stride; i++)
		to[i] = static_cast<uint16_t>((to[i] & 0x7F80) != 0 ? to[i] : to[i] & 0x8000);
}

/* One row in the device's format; false when it can't be quantised. */
static bool
make_row(const WeightMaker *maker, const WeightPart *part, int row, uint8_t *to, uint16_t *scales)
{
	bool		good = true;

	if (part->type == maker->format && data_type_is_quantized(part->type))
	{
		size_t		blocks = static_cast<size_t>(maker->blocks);
		size_t		bytes = static_cast<size_t>(quantized_row_bytes(part->type, maker->inputs));

		memcpy(maker->codes, static_cast<const uint8_t *>(part->data) +
			   static_cast<size_t>(row) * bytes, bytes);
		memcpy(scales, static_cast<const uint16_t *>(part->scales) +
			   static_cast<size_t>(row) * blocks, blocks * sizeof(uint16_t));
		lay_out_codes(maker, to);
		return true;
	}
	if (part->type == TYPE_BF16 && maker->format == TYPE_BF16)
	{
		copy_bf16(maker, static_cast<const char *>(part->data) +
				  static_cast<size_t>(row) * static_cast<size_t>(maker->inputs) * sizeof(uint16_t),
				  reinterpret_cast<uint16_t *>(to));
		return true;
	}
	read_row(maker, part, row);
	if (maker->format == TYPE_F32)
		memcpy(to, maker->values, maker->row_bytes);
	else if (maker->format == TYPE_BF16)
		for (int64_t i = 0; i < maker->stride; i++)
			reinterpret_cast<uint16_t *>(to)[i] = bf16_from_f32(maker->values[i]);
	else
	{
		good = quantize_values(maker->format, maker->inputs, maker->values, maker->codes, scales);
		lay_out_codes(maker, to);
	}
	return good;
}

/* Convert and upload all parts, some rows at a time. */
static bool
upload_parts(Backend *backend, const WeightMaker *maker, const CudaWeight *weight, uint8_t *rows,
			 uint16_t *scales, Status *status)
{
	int			most = static_cast<int>(CHUNK_BYTES / maker->row_bytes) + 1;
	size_t		output = 0;

	for (int i = 0; i < maker->count; i++)
		for (int first = 0; first < maker->parts[i].outputs; first += most)
		{
			const WeightPart *part = &maker->parts[i];
			int			here = part->outputs - first < most ? part->outputs - first : most;
			size_t		blocks = static_cast<size_t>(maker->scale_stride);

			for (int r = 0; r < here; r++)
				if (!make_row(maker, part, first + r,
							  rows + static_cast<size_t>(r) * maker->row_bytes,
							  scales + static_cast<size_t>(r) * blocks))
					return status_set(status, STATUS_INVALID_MODEL, "tensor \"%s\" holds a number "
									  "that is not finite and can't be quantised",
									  part->name == nullptr ? "" : part->name);
			cuda_upload(backend, static_cast<uint8_t *>(weight->values) + output * maker->row_bytes,
						rows, static_cast<size_t>(here) * maker->row_bytes);
			if (weight->scales != nullptr)
				cuda_upload(backend, weight->scales + output * blocks, scales,
							static_cast<size_t>(here) * blocks * sizeof(uint16_t));
			output += static_cast<size_t>(here);
		}
	return true;
}

/* Take host memory for one chunk and one row, and convert. */
static bool
convert_parts(Backend *backend, WeightMaker *maker, const CudaWeight *weight, Status *status)
{
	size_t		rows_bytes = CHUNK_BYTES + 2 * maker->row_bytes;
	size_t		row_count = CHUNK_BYTES / maker->row_bytes + 1;
	size_t		scale_count = row_count * static_cast<size_t>(maker->scale_stride);
	size_t		scale_bytes = scale_count * sizeof(uint16_t);
	size_t		value_bytes = static_cast<size_t>(maker->stride) * sizeof(float);
	uint8_t    *memory = static_cast<uint8_t *>(calloc(1, rows_bytes + scale_bytes +
													   2 * value_bytes + 64));
	bool		good;

	if (memory == nullptr)
		return status_out_of_memory(status, rows_bytes + scale_bytes + 2 * value_bytes);
	maker->values = reinterpret_cast<float *>(memory);
	maker->codes = memory + value_bytes;
	good = upload_parts(backend, maker, weight, memory + 2 * value_bytes,
						reinterpret_cast<uint16_t *>(memory + 2 * value_bytes +
													 rows_bytes / 16 * 16), status);
	free(memory);
	return good;
}

/* Take memory for an array of a number of bytes for each output; those that round up are zero. */
static void *
allocate_outputs(Backend *backend, int outputs, size_t bytes, Status *status)
{
	size_t		used = static_cast<size_t>(outputs) * bytes;
	size_t		all = static_cast<size_t>(product_size(outputs)) * bytes;
	CudaBackend *cuda = cuda_use(backend);
	void	   *memory;

	if (!cuda_allocate(backend, all, &memory, status))
		return nullptr;
	if (all > used)
		cuda_note(cuda, cudaMemsetAsync(static_cast<char *>(memory) + used, 0, all - used,
										cuda->stream));
	return memory;
}

/* One algorithm for each direction of the products of a weight that are cuBLASLt's. */
static bool
pin_algorithms(CudaBackend *cuda, const Weight *weight, Status *status)
{
	CudaWeight *on_device = static_cast<CudaWeight *>(weight->data);
	int			depth = static_cast<int>(on_device->stride);
	int			outputs = weight->outputs;

	if (weight->type == TYPE_F32)
		return true;
	if (weight->type != TYPE_BF16 && outputs > DEQUANTIZED_OUTPUTS)
		outputs = DEQUANTIZED_OUTPUTS;	/* so many are multiplied at a time */
	return (weight->type != TYPE_BF16 ||
			cublas_pin(cuda, outputs, depth, on_device->stride, true, &on_device->forward,
					   status)) &&
		cublas_pin(cuda, weight->inputs, outputs, on_device->stride, false, &on_device->backward,
				   status);
}

bool
cuda_weight_create(Backend *backend, const WeightPart *parts, int count, int inputs,
				   DataType format, Weight *weight, Status *status)
{
	bool		quantized = data_type_is_quantized(format);
	WeightMaker maker = {};
	CudaWeight *on_device;
	int			outputs = 0;
	size_t		scale_bytes;	/* of one output */

	if (format != TYPE_F32 && format != TYPE_BF16 && !quantized)
		return status_set(status, STATUS_NOT_SUPPORTED, "weights in %s are not supported",
						  data_type_name(format));
	for (int i = 0; i < count; i++)
		outputs += parts[i].outputs;
	maker.parts = parts;
	maker.count = count;
	maker.inputs = inputs;
	maker.format = format;
	maker.stride = padded_inputs(format, inputs);
	maker.row_bytes = input_bytes(format, maker.stride);
	maker.blocks = quantized_blocks(inputs);
	maker.scale_stride = maker.stride / QUANTIZED_BLOCK;
	scale_bytes = quantized ? static_cast<size_t>(maker.scale_stride) * sizeof(uint16_t) : 0;
	on_device = static_cast<CudaWeight *>(calloc(1, sizeof(CudaWeight)));
	if (on_device == nullptr)
		return status_out_of_memory(status, sizeof(CudaWeight));
	on_device->stride = maker.stride;
	weight->data = on_device;
	weight->type = format;
	weight->outputs = outputs;
	weight->inputs = inputs;
	weight->bytes = static_cast<size_t>(product_size(outputs)) * (maker.row_bytes + scale_bytes);
	on_device->values = allocate_outputs(backend, outputs, maker.row_bytes, status);
	if (on_device->values != nullptr && quantized)
		on_device->scales = static_cast<uint16_t *>(allocate_outputs(backend, outputs, scale_bytes,
																	 status));
	if (on_device->values != nullptr && (on_device->scales != nullptr || !quantized) &&
		convert_parts(backend, &maker, on_device, status) &&
		pin_algorithms(cuda_use(backend), weight, status))
		return true;
	cuda_weight_destroy(backend, weight);
	return false;
}

void
cuda_weight_destroy(Backend *backend, Weight *weight)
{
	CudaWeight *on_device = static_cast<CudaWeight *>(weight->data);

	if (on_device == nullptr)
		return;
	cuda_release(backend, on_device->values);
	cuda_release(backend, on_device->scales);
	free(on_device);
	weight->data = nullptr;
}

void
cuda_weight_update(Backend *backend, Weight *weight, Tensor values, bool transposed)
{
	const CudaWeight *on_device = static_cast<const CudaWeight *>(weight->data);
	float	   *to = static_cast<float *>(on_device->values);
	int64_t		stride = on_device->stride;
	Rows		from = cuda_rows(values);

	for_each_element(cuda_use(backend), weight->outputs, weight->inputs,
					 [=] __device__ (int64_t output, int input) {
		to[output * stride + input] = transposed ? from.row(input)[output]
			: from.row(output)[input];
	});
}

__device__ static inline int
q4_code(const uint8_t *row, int input)
{
	int			byte = row[place_of_q4(input)];

	return (input % 8 < 4 ? byte & 15 : byte >> 4) - 8;
}

uint16_t *
cuda_weight_as_bf16(CudaBackend *cuda, const Weight *weight, int first, int count)
{
	const CudaWeight *on_device = static_cast<const CudaWeight *>(weight->data);
	int64_t		stride = on_device->stride;
	int64_t		blocks = stride / QUANTIZED_BLOCK;
	bool		four = weight->type == TYPE_Q4;
	int64_t		row_bytes = four ? stride / 2 : stride;
	const uint8_t *codes = static_cast<const uint8_t *>(on_device->values) + first * row_bytes;
	const uint16_t *scales = on_device->scales + first * blocks;
	int			outputs = product_size(count);
	uint16_t   *values = static_cast<uint16_t *>(cuda_scratch(
		cuda, &cuda->values, static_cast<size_t>(outputs * stride) * sizeof(uint16_t)));

	if (values == nullptr)
		return nullptr;
	for_each_element(cuda, outputs, static_cast<int>(stride),
					 [=] __device__ (int64_t output, int input) {
		const uint8_t *row = codes + output * row_bytes;
		int			code = four ? q4_code(row, input)
			: static_cast<int8_t>(row[place_of_q8(input)]);

		values[output * stride + input] = round_to_bf16(
			static_cast<float>(code) *
			bf16_value(scales[output * blocks + input / QUANTIZED_BLOCK]));
	});
	return values;
}
