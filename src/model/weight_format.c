/*
 * weight_format.c - in which format a model computes; see WeightFormat in model.h.
 */
#include <string.h>

#include "model_internal.h"

bool
weight_format_read(const char *name, WeightFormat *format, Status *status)
{
	static const char *const names[] = {"stored", "f32", "bf16"};
	static const char *const planned[] = {"q8", "q4"};

	*format = WEIGHTS_STORED;
	if (name == NULL)
		return true;
	for (int i = 0; i < 3; i++)
		if (strcmp(name, names[i]) == 0)
		{
			*format = (WeightFormat) i;
			return true;
		}
	for (int i = 0; i < 2; i++)
		if (strcmp(name, planned[i]) == 0)
			return status_set(status, STATUS_NOT_SUPPORTED, "weights \"%s\" are not supported yet",
							  name);
	status_set(status, STATUS_USAGE, "unknown weight format \"%s\"", name);
	return status_hint(status, "Use stored, f32 or bf16.");
}

DataType
weight_format_choose(WeightFormat format, const TensorStore *store)
{
	size_t		wide = 0;
	size_t		narrow = 0;

	if (format != WEIGHTS_STORED)
		return format == WEIGHTS_F32 ? TYPE_F32 : TYPE_BF16;
	for (int i = 0; i < tensor_store_count(store); i++)
	{
		const StoredTensor *tensor = tensor_store_at(store, i);

		if (tensor->type == TYPE_F32)
			wide += tensor->bytes / data_type_size(TYPE_F32);
		else
			narrow += tensor->bytes / data_type_size(tensor->type);
	}
	return narrow > wide ? TYPE_BF16 : TYPE_F32;
}
