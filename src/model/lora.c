/*
 * lora.c - low-rank adapters (Hu et al. 2021) in PEFT's files.
 *
 * An adapter holds pairs A [r, K] and B [N, r] for some matrices of some layers. They
 * are applied beside the base product, y += alpha/r B(A x), for the rows of the
 * sequences that use the adapter, so requests with different adapters share a batch.
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_internal.h"

typedef struct LoraPair
{
	bool		present;
	Weight		a;				/* [r, K] */
	Weight		b;				/* [N, r] */
} LoraPair;

typedef LoraPair LoraLayer[LORA_TARGETS];

struct Adapter
{
	Arena	   *arena;
	float		scale;			/* alpha / r */
	int			layers;
	LoraLayer  *pairs;			/* [layers] */
};

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

/* Outputs and inputs of a target's base matrix. */
static void
target_shape(const ModelConfig *config, LoraTarget target, int *outputs, int *inputs)
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

/* Read r and lora_alpha; refuse variants of LoRA that would need other arithmetic. */
static bool
read_adapter_config(Adapter *adapter, const char *directory, Status *status)
{
	static const char *const unsupported[] = {"use_rslora", "use_dora", "fan_in_fan_out"};
	size_t		length = strlen(directory) + sizeof("/adapter_config.json");
	char	   *path = arena_take(adapter->arena, length);
	json_error_t error;
	json_t	   *root;
	double		r;
	double		alpha;

	if (path == NULL)
		return status_out_of_memory(status, length);
	snprintf(path, length, "%s/adapter_config.json", directory);
	root = json_load_file(path, 0, &error);
	if (root == NULL)
	{
		status_set(status, STATUS_INVALID_MODEL, "could not read adapter file \"%s\"", path);
		return status_detail(status, "%s.", error.text);
	}
	r = json_number_value(json_object_get(root, "r"));
	alpha = json_number_value(json_object_get(root, "lora_alpha"));
	status_clear(status);
	if (!(r >= 1) || r > LORA_MAX_RANK || !isfinite(alpha) || !(alpha > 0))
		status_set(status, STATUS_INVALID_MODEL,
				   "\"r\" or \"lora_alpha\" in \"%s\" is missing or out of range", path);
	for (int i = 0; i < 3; i++)
		if (json_is_true(json_object_get(root, unsupported[i])))
			status_set(status, STATUS_NOT_SUPPORTED, "\"%s\" in \"%s\" is not supported",
					   unsupported[i], path);
	json_decref(root);
	adapter->scale = (float) (alpha / r);
	return status_good(status);
}

/*
 * Bring one tensor [outputs, inputs] to the device. Adapters compute in f32 whatever the model
 * does: they are small, were trained so, and would lose more by rounding than they cost.
 */
static bool
load_matrix(Model *model, const StoredTensor *stored, Weight *weight, Status *status)
{
	WeightPart	part = {stored->data, stored->type, stored->shape[0]};

	return model->backend->ops->weight_create(model->backend, &part, 1, stored->shape[1], TYPE_F32,
											  weight, status);
}

/* The pair of one target of one layer, if the files hold it. */
static bool
load_pair(Model *model, Adapter *adapter, TensorStore *store, int layer, LoraTarget target,
		  Status *status)
{
	LoraPair   *pair = &adapter->pairs[layer][target];
	char		name[128];
	StoredTensor *a;
	StoredTensor *b;
	int			outputs;
	int			inputs;

	snprintf(name, sizeof(name), "model.layers.%d.%s.lora_A.weight", layer, target_paths[target]);
	a = tensor_store_find(store, name);
	snprintf(name, sizeof(name), "model.layers.%d.%s.lora_B.weight", layer, target_paths[target]);
	b = tensor_store_find(store, name);
	if (a == NULL && b == NULL)
		return true;
	target_shape(&model->config, target, &outputs, &inputs);
	if (a == NULL || b == NULL || a->dimensions != 2 || b->dimensions != 2 ||
		a->shape[1] != inputs || b->shape[0] != outputs || a->shape[0] != b->shape[1] ||
		a->shape[0] > LORA_MAX_RANK)
	{
		status_set(status, STATUS_INVALID_MODEL,
				   "adapter tensors of \"model.layers.%d.%s\" do not fit the model", layer,
				   target_paths[target]);
		return status_detail(status, "lora_A must be [r, %d] and lora_B [%d, r].", inputs, outputs);
	}
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

static bool
load_pairs(Model *model, Adapter *adapter, TensorStore *store, Status *status)
{
	const StoredTensor *unused;

	for (int i = 0; i < adapter->layers; i++)
		for (int target = 0; target < LORA_TARGETS; target++)
		{
			bool		gated = target >= LORA_TO_Q;

			if (gated && model->weights.decoder.layers[i].gated == NULL)
				continue;
			if (!load_pair(model, adapter, store, i, (LoraTarget) target, status))
				return false;
		}
	unused = tensor_store_unused(store);
	if (unused == NULL)
		return true;
	status_set(status, STATUS_INVALID_MODEL, "adapter tensor \"%s\" has no place in the model",
			   unused->stored_name);
	return status_detail(status, "The file is \"%s\".", unused->file);
}

Adapter *
adapter_open(Model *model, const char *directory, Status *status)
{
	Arena	   *arena = arena_create();
	Adapter    *adapter = arena == NULL ? NULL : arena_take(arena, sizeof(Adapter));
	TensorStore *store;
	bool		good;

	if (adapter == NULL)
	{
		arena_free(arena);
		status_out_of_memory(status, sizeof(Adapter));
		return NULL;
	}
	adapter->arena = arena;
	adapter->layers = model->config.decoder.layers;
	adapter->pairs = arena_take_array(arena, (size_t) adapter->layers, sizeof(LoraLayer));
	if (adapter->pairs == NULL)
	{
		status_out_of_memory(status, (size_t) adapter->layers * sizeof(LoraLayer));
		arena_free(arena);
		return NULL;
	}
	good = read_adapter_config(adapter, directory, status);
	store = good ? tensor_store_open(directory, "adapter_model.safetensors", arena, status) : NULL;
	good = store != NULL && load_pairs(model, adapter, store, status);
	tensor_store_close(store);
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

void
lora_add(Model *model, const AdapterRuns *runs, int layer, LoraTarget target, Tensor y, Tensor x,
		 float factor)
{
	const BackendOps *ops = model->backend->ops;

	if (!lora_applies(runs, layer, target))
		return;
	for (int i = 0; i < runs->count; i++)
	{
		const AdapterRun *run = &runs->runs[i];
		int			count = run->first + run->count <= x.rows ? run->count : x.rows - run->first;
		const LoraPair *pair;
		Tensor		reduced;

		if (run->adapter == NULL || count < 1 || !run->adapter->pairs[layer][target].present)
			continue;
		pair = &run->adapter->pairs[layer][target];
		reduced = tensor_column_range(tensor_row_range(runs->reduced, run->first, count), 0,
									  pair->a.outputs);
		ops->matmul(model->backend, reduced, tensor_row_range(x, run->first, count), &pair->a,
					EPILOGUE_STORE);
		ops->matmul(model->backend, tensor_row_range(y, run->first, count), reduced, &pair->b,
					(Epilogue) {NULL, ACTIVATION_NONE, factor * run->adapter->scale, true});
	}
}
