/*
 * weight_format.c - in which format a model computes, and each of its matrices; see WeightFormat in
 * model.h.
 */
#include <string.h>

#include "model_internal.h"
#include "quantize.h"

bool
weight_format_read(const char *name, WeightFormat *format, Status *status)
{
	static const char *const names[] = {"stored", "f32", "bf16", "q8", "q4"};

	*format = WEIGHTS_STORED;
	if (name == NULL)
		return true;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(name, names[i]) == 0)
		{
			*format = (WeightFormat) i;
			return true;
		}
	status_set(status, STATUS_USAGE, "unknown weight format \"%s\"", name);
	return status_hint(status, "Use stored, f32, bf16, q8 or q4.");
}

DataType
weight_format_type(WeightFormat format)
{
	static const DataType types[] = {TYPE_BF16, TYPE_F32, TYPE_BF16, TYPE_Q8, TYPE_Q4};

	return types[format];
}

DataType
weight_format_choose(WeightFormat format, const TensorStore *store)
{
	size_t		wide = 0;
	size_t		narrow = 0;
	bool		eight = false;

	if (format != WEIGHTS_STORED)
		return weight_format_type(format);
	for (int i = 0; i < tensor_store_count(store); i++)
	{
		const StoredTensor *tensor = tensor_store_at(store, i);

		if (tensor->type == TYPE_U8)
			return TYPE_Q4;
		if (tensor->type == TYPE_I8)
			eight = true;
		else if (tensor->type == TYPE_F32)
			wide += tensor->bytes / data_type_size(TYPE_F32);
		else
			narrow += tensor->bytes / data_type_size(tensor->type);
	}
	if (eight)
		return TYPE_Q8;
	return narrow > wide ? TYPE_BF16 : TYPE_F32;
}

static bool
begins_with(const char *name, const char *prefix)
{
	return strncmp(name, prefix, strlen(prefix)) == 0;
}

static bool
ends_with(const char *name, const char *end)
{
	size_t		length = strlen(name);

	return length >= strlen(end) && strcmp(name + length - strlen(end), end) == 0;
}

DataType
weight_format_of_matrix(DataType format, const char *name)
{
	if (!data_type_is_quantized(format))
		return format;
	if (!ends_with(name, ".weight") && !ends_with(name, ".in_proj_weight"))
		return TYPE_BF16;
	if (begins_with(name, "model.layers."))
		return format;
	if (begins_with(name, "vision_encoder.visual.transformer.") ||
		begins_with(name, "perceiver.layers.") || strcmp(name, "lm_head.weight") == 0)
		return TYPE_Q8;
	return TYPE_BF16;
}
