/*
 * cpu_weight.c - weight matrices laid out for the products of cpu_matmul.c.
 *
 * A weight matrix [N, K] is cut into panels of as many outputs as the kernels
 * take side by side, each stored step by step of the depth, so that a product reads it as one
 * stream:
 *
 *	panel 0: w[0..P)[step 0], w[0..P)[step 1], ...   panel 1: ...
 *
 * A step is a word of 32 bits for each output: an f32, or two bf16 of neighbouring depths. Of a
 * quantised weight a step is a block of inputs: P scales, then the codes (kernels_quantized.h).
 */
#include "cpu_backend.h"

#include <string.h>

/* Depths that are packed at once: whole blocks, and so even. */
#define PACK_DEPTH 256

typedef struct PackJob
{
	const WeightPart *parts;
	int			count;
	int			inputs;
	const Kernels *kernels;
	DataType	format;
	void	   *packed;
	/* not NULL: the part that holds a number that can't be quantised; written by any thread */
	const WeightPart *volatile bad;
} PackJob;

/* The part that holds an output, and the output's row in it; NULL past the last. */
static const WeightPart *
find_part(const PackJob *job, int output, int *row)
{
	for (int i = 0; i < job->count; i++)
	{
		if (output < job->parts[i].outputs)
		{
			*row = output;
			return &job->parts[i];
		}
		output -= job->parts[i].outputs;
	}
	return NULL;
}

/* Depths [k, k + length) of a row of a part as f32; k begins a block. */
static void
read_part(const WeightPart *part, int row, int inputs, int k, int length, float *values)
{
	size_t		first = (size_t) row * (size_t) inputs + (size_t) k;

	if (data_type_is_quantized(part->type))
	{
		size_t		bytes = (size_t) quantized_row_bytes(part->type, inputs);
		size_t		blocks = (size_t) quantized_blocks(inputs);
		uint16_t	scales[PACK_DEPTH / QUANTIZED_BLOCK];

		/* a file need not align its tensors */
		memcpy(scales,
			   (const char *) part->scales +
				   ((size_t) row * blocks + (size_t) (k / QUANTIZED_BLOCK)) * sizeof(uint16_t),
			   (size_t) quantized_blocks(length) * sizeof(uint16_t));
		dequantize_values(part->type, length,
						  (const uint8_t *) part->data + (size_t) row * bytes +
							  quantized_row_bytes(part->type, k + 1) - 1,
						  scales, values);
	}
	else
		convert_to_f32((const char *) part->data + first * data_type_size(part->type), part->type,
					   (size_t) length, values);
}

/*
 * Depths [k, k + length) of an output as f32, length at most PACK_DEPTH; zero past the last
 * output. One more element is zero, for the pair of an odd last depth.
 */
static void
read_depths(const PackJob *job, int output, int k, int length, float *values)
{
	int			row = 0;
	const WeightPart *part = find_part(job, output, &row);

	values[length] = 0.0f;
	if (part == NULL)
		memset(values, 0, (size_t) length * sizeof(float));
	else
		read_part(part, row, job->inputs, k, length, values);
}

/* Pack one panel: transpose its rows, converted to the format; outputs past the last are zero. */
static void
pack_panel(void *argument, int task, int thread)
{
	PackJob    *job = argument;
	size_t		panel = (size_t) job->kernels->panel;
	size_t		steps = cpu_weight_steps(job->format, job->inputs);
	uint32_t   *packed = (uint32_t *) job->packed + (size_t) task * steps * panel;
	float		values[PACK_DEPTH + 1];
	uint32_t	words[PACK_DEPTH + 1];

	for (int k = 0; k < job->inputs; k += PACK_DEPTH)
	{
		int			length = job->inputs - k < PACK_DEPTH ? job->inputs - k : PACK_DEPTH;
		uint32_t   *block = packed + cpu_weight_steps(job->format, k) * panel;
		size_t		steps_here = cpu_weight_steps(job->format, length);

		for (size_t p = 0; p < panel; p++)
		{
			read_depths(job, task * job->kernels->panel + (int) p, k, length, values);
			if (job->format == TYPE_BF16)
				job->kernels->convert_bf16(length + 1, values, (uint16_t *) words);
			else
				memcpy(words, values, (size_t) length * sizeof(float));
			for (size_t i = 0; i < steps_here; i++)
				block[i * panel + p] = words[i];
		}
	}
}

/* Codes and scales of blocks of an output as a file has them, zeros behind what there is. */
typedef struct OutputBlocks
{
	uint8_t		codes[PACK_DEPTH];
	uint16_t	scales[PACK_DEPTH / QUANTIZED_BLOCK];
} OutputBlocks;

/*
 * Depths [k, k + length) of an output: taken over as they are stored, or else quantised. A code of
 * zero is 8 with 4 bits.
 */
static void
read_blocks(PackJob *job, int output, int k, int length, OutputBlocks *blocks)
{
	int			row = 0;
	const WeightPart *part = find_part(job, output, &row);
	float		values[PACK_DEPTH + 1];

	memset(blocks->codes, job->format == TYPE_Q4 ? 0x88 : 0, sizeof(blocks->codes));
	memset(blocks->scales, 0, sizeof(blocks->scales));
	if (part == NULL)
		return;
	if (part->type == job->format)
	{
		size_t		bytes = (size_t) quantized_row_bytes(part->type, job->inputs);
		size_t		first = (size_t) row * (size_t) quantized_blocks(job->inputs);

		memcpy(blocks->codes,
			   (const uint8_t *) part->data + (size_t) row * bytes +
				   quantized_row_bytes(part->type, k + 1) - 1,
			   (size_t) quantized_row_bytes(part->type, length));
		memcpy(blocks->scales,
			   (const char *) part->scales +
				   (first + (size_t) (k / QUANTIZED_BLOCK)) * sizeof(uint16_t),
			   (size_t) quantized_blocks(length) * sizeof(uint16_t));
		if (part->type == TYPE_Q4 && length % 2 != 0)	/* whatever the file has there */
			blocks->codes[length / 2] = (blocks->codes[length / 2] & 15) | 0x80;
		return;
	}
	read_depths(job, output, k, length, values);
	if (!quantize_values(job->format, length, values, blocks->codes, blocks->scales))
		job->bad = part;
}

/* The word of codes of one output, without sign, that kernels_quantized.h wants at this place. */
static uint32_t
code_word(DataType format, const uint8_t *codes, int word)
{
	uint32_t	result = 0;

	for (int i = 0; i < 4; i++)
	{
		int			low = 8 * word + i;
		int			high = low + 4;
		uint32_t	byte;

		if (format == TYPE_Q8)
			byte = codes[4 * word + i] ^ 0x80u;
		else
			byte = (codes[low / 2] >> low % 2 * 4 & 15u) |
				(codes[high / 2] >> high % 2 * 4 & 15u) << 4;
		result |= byte << 8 * i;
	}
	return result;
}

/* Pack one panel of a quantised weight. */
static void
pack_quantized_panel(void *argument, int task, int thread)
{
	PackJob    *job = argument;
	size_t		panel = (size_t) job->kernels->panel;
	size_t		block_bytes = cpu_quantized_block_bytes(job->format, job->kernels->panel);
	int			code_bytes = quantized_row_bytes(job->format, QUANTIZED_BLOCK);
	uint8_t    *packed = (uint8_t *) job->packed +
		(size_t) task * (size_t) quantized_blocks(job->inputs) * block_bytes;

	for (int k = 0; k < job->inputs; k += PACK_DEPTH)
	{
		int			length = job->inputs - k < PACK_DEPTH ? job->inputs - k : PACK_DEPTH;
		int			count = quantized_blocks(length);

		for (size_t p = 0; p < panel; p++)
		{
			OutputBlocks blocks;

			read_blocks(job, task * job->kernels->panel + (int) p, k, length, &blocks);
			for (int b = 0; b < count; b++)
			{
				uint8_t    *block = packed + (size_t) (k / QUANTIZED_BLOCK + b) * block_bytes;

				memcpy(block + p * sizeof(uint16_t), &blocks.scales[b], sizeof(uint16_t));
				block += panel * sizeof(uint16_t);
				for (int i = 0; i < code_bytes / 4; i++)
				{
					uint32_t	word = code_word(job->format, blocks.codes + b * code_bytes, i);

					memcpy(block + ((size_t) i * panel + p) * sizeof(word), &word, sizeof(word));
				}
			}
		}
	}
}

/*
 * Make the backend's buffer large enough for rows of x and, in training, of dy; what is never used
 * never becomes resident.
 */
static bool
grow_rounded(CpuBackend *cpu, DataType format, int outputs, int inputs, Status *status)
{
	size_t		pair = 2 * (size_t) cpu->kernels->rounded_size;
	int			depth = outputs > inputs ? outputs : inputs;
	size_t		row = cpu_rounded_stride((int) cpu_weight_steps(TYPE_BF16, depth)) * pair;
	size_t		quantized = (size_t) quantized_blocks(inputs) * sizeof(QuantizedBlock);

	if (format == TYPE_F32)
		return true;
	if (data_type_is_quantized(format) && quantized > row)
		row = quantized;
	return cpu_grow(&cpu->base, &cpu->rounded, &cpu->rounded_size, MATMUL_ROUNDED_ROWS * row, status);
}

bool
cpu_weight_create(Backend *backend, const WeightPart *parts, int count, int inputs, DataType format,
				  Weight *weight, Status *status)
{
	CpuBackend *cpu = (CpuBackend *) backend;
	bool		quantized = data_type_is_quantized(format);
	int			panel = cpu->kernels->panel;
	int			outputs = 0;
	int			panels;
	PackJob		job = {parts, count, inputs, cpu->kernels, format, NULL, NULL};

	if (format != TYPE_F32 && format != TYPE_BF16 && !quantized)
		return status_set(status, STATUS_NOT_SUPPORTED, "weights in %s are not supported",
						  data_type_name(format));
	for (int i = 0; i < count; i++)
		outputs += parts[i].outputs;
	if (!grow_rounded(cpu, format, outputs, inputs, status))
		return false;
	panels = (outputs + panel - 1) / panel;
	weight->outputs = outputs;
	weight->inputs = inputs;
	weight->type = format;
	weight->bytes = (size_t) panels *
		(quantized ? (size_t) quantized_blocks(inputs) * cpu_quantized_block_bytes(format, panel)
				   : cpu_weight_steps(format, inputs) * (size_t) panel * sizeof(uint32_t));
	if (!backend->ops->allocate(backend, weight->bytes, &weight->data, status))
		return false;
	job.packed = weight->data;
	cpu_run(cpu, quantized ? pack_quantized_panel : pack_panel, &job, panels,
			(double) outputs * inputs);
	if (job.bad == NULL)
		return true;
	cpu_weight_destroy(backend, weight);
	return status_set(status, STATUS_INVALID_MODEL,
					  "tensor \"%s\" holds a number that is not finite and can't be quantised",
					  job.bad->name == NULL ? "" : job.bad->name);
}

void
cpu_weight_destroy(Backend *backend, Weight *weight)
{
	backend->ops->release(backend, weight->data);
	weight->data = NULL;
}
