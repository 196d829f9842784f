/*
 * lora.c - low-rank adapters (Hu et al. 2021); adapter_content.c reads their files.
 *
 * An adapter holds pairs A [r, K] and B [N, r] for some matrices of some layers. They
 * are applied beside the base product, y += alpha/r B(A x), for the rows of the
 * sequences that use the adapter, so requests with different adapters share a batch.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_internal.h"

/* Where each target stands below "model.layers.N.". */
static const char *const target_paths[LORA_TARGETS] = {"self_attn.q_proj",
													   "self_attn.k_proj",
													   "self_attn.v_proj",
													   "self_attn.o_proj",
													   "mlp.gate_proj",
													   "mlp.up_proj",
													   "mlp.down_proj",
													   "gated_cross_attn_layer.attn.to_q",
													   "gated_cross_attn_layer.attn.to_kv",
													   "gated_cross_attn_layer.attn.to_out",
													   "gated_cross_attn_layer.ff.1",
													   "gated_cross_attn_layer.ff.3"};

void
lora_target_shape(const ModelConfig *config, LoraTarget target, int *outputs, int *inputs)
{
	int			hidden = config->decoder.hidden;
	int			q = config->decoder.heads * config->decoder.head_size;
	int			kv = config->decoder.kv_heads * config->decoder.head_size;
	int			inner = config->cross_attention.heads * config->cross_attention.head_size;
	const int shapes[LORA_TARGETS][2] = {[LORA_Q_PROJ] = {q, hidden},
										 [LORA_K_PROJ] = {kv, hidden},
										 [LORA_V_PROJ] = {kv, hidden},
										 [LORA_O_PROJ] = {hidden, q},
										 [LORA_GATE_PROJ] = {config->decoder.mlp, hidden},
										 [LORA_UP_PROJ] = {config->decoder.mlp, hidden},
										 [LORA_DOWN_PROJ] = {hidden, config->decoder.mlp},
										 [LORA_TO_Q] = {inner, hidden},
										 [LORA_TO_KV] = {2 * inner, config->vision.width},
										 [LORA_TO_OUT] = {hidden, inner},
										 [LORA_FF_1] = {config->cross_attention.mlp, hidden},
										 [LORA_FF_3] = {hidden, config->cross_attention.mlp}};

	*outputs = shapes[target][0];
	*inputs = shapes[target][1];
}

const char *
lora_target_path(LoraTarget target)
{
	return target_paths[target];
}

const char *
lora_target_name(LoraTarget target)
{
	/* PEFT matches the end of a module's path; ff.1 and ff.3 are two words of it */
	static const size_t prefixes[] = {sizeof("self_attn.") - 1, sizeof("mlp.") - 1,
		sizeof("gated_cross_attn_layer.") - 1, sizeof("gated_cross_attn_layer.attn.") - 1};

	return target_paths[target] + prefixes[target <= LORA_O_PROJ ? 0 : target <= LORA_DOWN_PROJ ? 1
										   : target >= LORA_FF_1 ? 2 : 3];
}

bool
lora_target_exists(const Model *model, int layer, LoraTarget target)
{
	return target < LORA_TO_Q || model->weights.decoder.layers[layer].gated != NULL;
}

void
lora_tensor_name(int layer, LoraTarget target, bool b, char name[LORA_NAME_SIZE])
{
	snprintf(name, LORA_NAME_SIZE, "model.layers.%d.%s.lora_%c.weight", layer,
			 target_paths[target], b ? 'B' : 'A');
}

/*
 * Bring one tensor [outputs, inputs] to the device. Adapters compute in f32 whatever the model
 * does: they are small, were trained so, and would lose more by rounding than they cost.
 */
static bool
load_matrix(Model *model, const StoredTensor *stored, Weight *weight, Status *status)
{
	WeightPart	part = {.data = stored->data, .type = stored->type, .outputs = stored->shape[0],
		.name = stored->stored_name};

	return model->backend->ops->weight_create(model->backend, &part, 1, stored->shape[1], TYPE_F32,
											  weight, status);
}

bool
lora_find_tensors(const Model *model, TensorStore *store, int layer, LoraTarget target,
				  const StoredTensor **a, const StoredTensor **b, Status *status)
{
	char		name[LORA_NAME_SIZE];
	int			outputs;
	int			inputs;

	lora_tensor_name(layer, target, false, name);
	*a = tensor_store_find(store, name);
	lora_tensor_name(layer, target, true, name);
	*b = tensor_store_find(store, name);
	if (*a == NULL && *b == NULL)
		return true;
	for (int i = 0; i < 2; i++)
	{
		const StoredTensor *tensor = i == 0 ? *a : *b;

		if (tensor != NULL && !stored_tensor_is_floating(tensor))
			return status_set(status, STATUS_INVALID_MODEL,
							  "adapter tensor \"%s\" has a type other than F32, F16 and BF16",
							  tensor->stored_name);
	}
	lora_target_shape(&model->config, target, &outputs, &inputs);
	if (*a != NULL && *b != NULL && (*a)->dimensions == 2 && (*b)->dimensions == 2 &&
		(*a)->shape[1] == inputs && (*b)->shape[0] == outputs &&
		(*a)->shape[0] == (*b)->shape[1] && (*a)->shape[0] <= LORA_MAX_RANK)
		return true;
	status_set(status, STATUS_INVALID_MODEL,
			   "adapter tensors of \"model.layers.%d.%s\" do not fit the model", layer,
			   target_paths[target]);
	if (*a == NULL || *b == NULL)
		return status_detail(status, "\"%s\" has no lora_%c beside it.",
							 *a != NULL ? (*a)->stored_name : (*b)->stored_name,
							 *a != NULL ? 'B' : 'A');
	return status_detail(status,
						 "lora_A must be [r, %d] and lora_B [%d, r], r at most %d; in \"%s\" they "
						 "are [%d, %d] and [%d, %d].", inputs, outputs, LORA_MAX_RANK,
						 (*a)->stored_name, (*a)->shape[0], (*a)->shape[1], (*b)->shape[0],
						 (*b)->shape[1]);
}

/* The pair of one target of one layer, if the files hold it. */
static bool
load_pair(Model *model, Adapter *adapter, TensorStore *store, int layer, LoraTarget target,
		  Status *status)
{
	LoraPair   *pair = &adapter->pairs[layer][target];
	const StoredTensor *a;
	const StoredTensor *b;

	if (!lora_find_tensors(model, store, layer, target, &a, &b, status))
		return false;
	if (a == NULL)
		return true;
	if (!load_matrix(model, a, &pair->a, status))
		return false;
	if (!load_matrix(model, b, &pair->b, status))
	{
		model->backend->ops->weight_destroy(model->backend, &pair->a);
		return false;
	}
	pair->present = true;
	return true;
}

bool
lora_load_pairs(Model *model, Adapter *adapter, TensorStore *store, Status *status)
{
	for (int i = 0; i < adapter->layers; i++)
		for (int target = 0; target < LORA_TARGETS; target++)
		{
			if (!lora_target_exists(model, i, (LoraTarget) target))
				continue;
			if (!load_pair(model, adapter, store, i, (LoraTarget) target, status))
				return false;
		}
	return lora_all_used(store, status);
}

bool
lora_all_used(const TensorStore *store, Status *status)
{
	const StoredTensor *unused = tensor_store_unused(store);

	if (unused == NULL)
		return true;
	status_set(status, STATUS_INVALID_MODEL, "adapter tensor \"%s\" has no place in the model",
			   unused->stored_name);
	return status_detail(status, "The file is \"%s\".", unused->file);
}

Adapter *
adapter_allocate(const Model *model, Status *status)
{
	Arena	   *arena = arena_create();
	Adapter    *adapter = arena == NULL ? NULL : arena_take(arena, sizeof(Adapter));
	int			layers = model->config.decoder.layers;

	if (adapter != NULL)
		adapter->pairs = arena_take_array(arena, (size_t) layers, sizeof(LoraLayer));
	if (adapter == NULL || adapter->pairs == NULL)
	{
		status_out_of_memory(status, (size_t) layers * sizeof(LoraLayer));
		arena_free(arena);
		return NULL;
	}
	adapter->arena = arena;
	adapter->layers = layers;
	return adapter;
}

/* A pair of zeros; values is a host buffer of zeros as large as either matrix. */
static bool
create_pair(Model *model, LoraPair *pair, LoraTarget target, int r, const float *zeros,
			Status *status)
{
	const BackendOps *ops = model->backend->ops;
	WeightPart	part = {.data = zeros, .type = TYPE_F32, .outputs = r};
	int			outputs;
	int			inputs;

	lora_target_shape(&model->config, target, &outputs, &inputs);
	if (!ops->weight_create(model->backend, &part, 1, inputs, TYPE_F32, &pair->a, status))
		return false;
	part.outputs = outputs;
	pair->present = ops->weight_create(model->backend, &part, 1, r, TYPE_F32, &pair->b, status);
	if (!pair->present)
		ops->weight_destroy(model->backend, &pair->a);
	return pair->present;
}

Adapter *
adapter_create(Model *model, int r, float scale, unsigned targets, Status *status)
{
	Adapter    *adapter = adapter_allocate(model, status);
	size_t		largest = 0;
	float	   *zeros;
	bool		good;

	if (adapter == NULL)
		return NULL;
	adapter->scale = scale;
	for (int target = 0; target < LORA_TARGETS; target++)
	{
		int			outputs;
		int			inputs;
		size_t		size;

		lora_target_shape(&model->config, (LoraTarget) target, &outputs, &inputs);
		size = (size_t) (outputs > inputs ? outputs : inputs) * (size_t) r;
		largest = size > largest ? size : largest;
	}
	zeros = calloc(largest, sizeof(float));
	good = zeros != NULL || status_out_of_memory(status, largest * sizeof(float));
	for (int i = 0; i < adapter->layers; i++)
		for (int target = 0; target < LORA_TARGETS; target++)
			if ((targets >> target & 1) != 0 && lora_target_exists(model, i, (LoraTarget) target))
				good = good && create_pair(model, &adapter->pairs[i][target], (LoraTarget) target,
										   r, zeros, status);
	free(zeros);
	if (good)
		return adapter;
	adapter_close(model, adapter);
	return NULL;
}

void
adapter_close(Model *model, Adapter *adapter)
{
	if (adapter == NULL)
		return;
	for (int i = 0; i < adapter->layers; i++)
		for (int target = 0; target < LORA_TARGETS; target++)
			if (adapter->pairs[i][target].present)
			{
				model->backend->ops->weight_destroy(model->backend, &adapter->pairs[i][target].a);
				model->backend->ops->weight_destroy(model->backend, &adapter->pairs[i][target].b);
			}
	arena_free(adapter->arena);
}

bool
lora_applies(const AdapterRuns *runs, int layer, LoraTarget target)
{
	if (!runs->any)
		return false;
	for (int i = 0; i < runs->count; i++)
		if (runs->runs[i].adapter != NULL && runs->runs[i].adapter->pairs[layer][target].present)
			return true;
	return false;
}

/* The next groups among runs with this target, from run *next on: how many. */
static int
gather_groups(const AdapterRuns *runs, int *next, int layer, LoraTarget target, int rows,
			  float factor, LowRankGroup *groups)
{
	int			gathered = 0;

	for (; *next < runs->count && gathered < LOW_RANK_GROUPS; ++*next)
	{
		const AdapterRun *run = &runs->runs[*next];
		int			count = run->first + run->count <= rows ? run->count : rows - run->first;
		const LoraPair *pair;

		if (run->adapter == NULL || count < 1 || !run->adapter->pairs[layer][target].present)
			continue;
		pair = &run->adapter->pairs[layer][target];
		groups[gathered++] = (LowRankGroup) {run->first, count, &pair->a, &pair->b,
			factor * run->adapter->scale};
	}
	return gathered;
}

void
lora_add(Model *model, const AdapterRuns *runs, int layer, LoraTarget target, Tensor y, Tensor x,
		 float factor)
{
	LowRankGroup groups[LOW_RANK_GROUPS];
	int			next = 0;
	int			count;

	if (!runs->any)
		return;
	while ((count = gather_groups(runs, &next, layer, target, x.rows, factor, groups)) > 0)
		model->backend->ops->low_rank(model->backend, y, x, runs->reduced, groups, count);
}
