/*
 * lora_parameters.c - what is trained: the matrices A and B of all targets.
 *
 * All values lie in one flat tensor, their gradients and AdamW's means in others of the
 * same form, so that norm, clipping and optimizer are one operation each. The gated
 * blocks' matrices come first, because they alone decay (golden README, Facts 6). For
 * products, values are packed into an adapter as any other's; so training runs the very
 * forward pass that answers come from.
 *
 * B is kept transposed, [r, N]: its gradient is then a sum over rows whose lanes run
 * over outputs.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer_internal.h"

bool
lora_trains(const Trainer *trainer, int layer, LoraTarget target)
{
	return trainer->parameters.pairs[layer][target].present;
}

/* Floats rounded up to whole rows of the flat tensors. */
static size_t
whole_rows(size_t floats)
{
	return (floats + PARAMETER_COLUMNS - 1) / PARAMETER_COLUMNS * PARAMETER_COLUMNS;
}

/* Give places to the targets of gated blocks, or to those of the decoder. */
static size_t
lay_out_part(Trainer *trainer, bool gated, size_t floats)
{
	LoraParameters *p = &trainer->parameters;

	for (int layer = 0; layer < trainer->model->config.decoder.layers; layer++)
		for (int target = 0; target < LORA_TARGETS; target++)
		{
			PairPlace  *pair = &p->pairs[layer][target];
			int			outputs;
			int			inputs;

			if ((p->shape.targets >> target & 1) == 0 || (target >= LORA_TO_Q) != gated ||
				!lora_target_exists(trainer->model, layer, (LoraTarget) target))
				continue;
			lora_target_shape(&trainer->model->config, (LoraTarget) target, &outputs, &inputs);
			pair->present = true;
			pair->a = floats;
			pair->b = floats + (size_t) p->shape.r * (size_t) inputs;
			floats = pair->b + (size_t) p->shape.r * (size_t) outputs;
		}
	return whole_rows(floats);
}

bool
lora_parameters_lay_out(Trainer *trainer, Status *status)
{
	LoraParameters *p = &trainer->parameters;
	size_t		decayed;
	size_t		floats;

	p->scale = (float) (p->shape.alpha / p->shape.r);
	p->pairs = arena_take_array(trainer->store.arena,
								(size_t) trainer->model->config.decoder.layers,
								sizeof(*p->pairs));
	if (p->pairs == NULL)
		return status_out_of_memory(status, sizeof(*p->pairs));
	decayed = lay_out_part(trainer, true, 0);
	floats = lay_out_part(trainer, false, decayed);
	if (floats == 0)
		return status_set(status, STATUS_INVALID_ARGUMENT,
						  "the model has none of the matrices in target_modules");
	if (floats / PARAMETER_COLUMNS > INT32_MAX / 2)
		return status_out_of_memory(status, floats * sizeof(float));
	p->decayed_rows = (int) (decayed / PARAMETER_COLUMNS);
	p->rows = (int) (floats / PARAMETER_COLUMNS);
	return true;
}

size_t
lora_parameters_bytes(const Trainer *trainer)
{
	size_t		row = PARAMETER_COLUMNS * sizeof(float);
	size_t		flats = trainer->options.early_stopping > 0 ? 6 : 5;

	/* values, gradient, mean, square, maybe best; and the packed values, about as large again */
	return (size_t) trainer->parameters.rows * (flats * row + 2 * sizeof(float));
}

static bool
take_memory(Trainer *trainer, Status *status)
{
	LoraParameters *p = &trainer->parameters;
	const BackendOps *ops = trainer->model->backend->ops;
	Tensor	   *flats[] = {&p->values, &p->gradient, &p->mean, &p->square, &p->best};
	size_t		count = trainer->options.early_stopping > 0 ? 5 : 4;
	size_t		flat = (size_t) p->rows * PARAMETER_COLUMNS * sizeof(float);

	p->host_sums = calloc((size_t) p->rows, sizeof(float));
	if (p->host_sums == NULL)
		return status_out_of_memory(status, (size_t) p->rows * sizeof(float));
	if (!ops->allocate(trainer->model->backend, count * flat + (size_t) p->rows * sizeof(float),
					   &p->memory, status))
		return false;
	for (size_t i = 0; i < count; i++)
	{
		*flats[i] = tensor_make((char *) p->memory + i * flat, TYPE_F32, p->rows,
								PARAMETER_COLUMNS);
		ops->scale(trainer->model->backend, *flats[i], 0.0f);
	}
	p->sums = tensor_make((char *) p->memory + count * flat, TYPE_F32, 1, p->rows);
	return true;
}

Tensor
lora_matrix(const Trainer *trainer, Tensor flat, int layer, LoraTarget target, bool b)
{
	const LoraParameters *p = &trainer->parameters;
	const PairPlace *pair = &p->pairs[layer][target];
	int			outputs;
	int			inputs;

	lora_target_shape(&trainer->model->config, target, &outputs, &inputs);
	return tensor_make((char *) flat.data + (b ? pair->b : pair->a) * sizeof(float), TYPE_F32,
					   p->shape.r, b ? outputs : inputs);
}

/* Put a matrix, as files hold it, into the flat values. */
static void
take_values(void *argument, const AdapterMatrix *matrix, float *values)
{
	Trainer    *trainer = argument;
	const BackendOps *ops = trainer->model->backend->ops;
	Tensor		place = lora_matrix(trainer, trainer->parameters.values, matrix->layer,
									matrix->target, matrix->b);
	float		row[PARAMETER_COLUMNS];

	if (!matrix->b)
	{
		ops->upload(trainer->model->backend, place.data, values,
					(size_t) matrix->rows * (size_t) matrix->columns * sizeof(float));
		return;
	}
	for (int j = 0; j < matrix->columns; j++)
		for (int n = 0; n < matrix->rows; n += PARAMETER_COLUMNS)
		{
			int			count = matrix->rows - n < PARAMETER_COLUMNS ? matrix->rows - n
																	 : PARAMETER_COLUMNS;

			for (int i = 0; i < count; i++)
				row[i] = values[(size_t) (n + i) * (size_t) matrix->columns + (size_t) j];
			ops->upload(trainer->model->backend,
						(float *) tensor_row_range(place, j, 1).data + n, row,
						(size_t) count * sizeof(float));
		}
}

/*
 * The first values of LoRA: A uniform in +-1/sqrt(inputs) (Kaiming, a = sqrt 5), B zero. Each
 * matrix has random numbers of its own, so they don't depend on which others are trained.
 */
static bool
make_first_values(Trainer *trainer, Status *status)
{
	LoraParameters *p = &trainer->parameters;

	for (int layer = 0; layer < trainer->model->config.decoder.layers; layer++)
		for (int target = 0; target < LORA_TARGETS; target++)
		{
			uint64_t	first = (uint64_t) (layer * LORA_TARGETS + target) << 32;
			Tensor		a;
			size_t		count;
			double		bound;
			float	   *values;

			if (!lora_trains(trainer, layer, (LoraTarget) target))
				continue;
			a = lora_matrix(trainer, p->values, layer, (LoraTarget) target, false);
			count = (size_t) a.rows * (size_t) a.columns;
			bound = 1.0 / sqrt((double) a.columns);
			values = malloc(count * sizeof(float));
			if (values == NULL)
				return status_out_of_memory(status, count * sizeof(float));
			for (size_t i = 0; i < count; i++)
				values[i] = (float) ((2 * train_random(trainer->options.seed, RANDOM_VALUES,
													   first + i) - 1) * bound);
			trainer->model->backend->ops->upload(trainer->model->backend, a.data, values,
												 count * sizeof(float));
			free(values);
		}
	return true;
}

bool
lora_parameters_begin(Trainer *trainer, const AdapterSource *initial_adapter, Status *status)
{
	LoraParameters *p = &trainer->parameters;

	if (!take_memory(trainer, status))
		return false;
	if (initial_adapter != NULL
			? !adapter_files_read(trainer->model, initial_adapter, &p->shape, take_values, trainer,
								  status)
			: !make_first_values(trainer, status))
		return false;
	p->adapter = adapter_create(trainer->model, p->shape.r, p->scale, p->shape.targets, status);
	if (p->adapter == NULL)
		return false;
	lora_parameters_publish(trainer);
	return true;
}

void
lora_parameters_free(Trainer *trainer)
{
	LoraParameters *p = &trainer->parameters;

	adapter_close(trainer->model, p->adapter);
	trainer->model->backend->ops->release(trainer->model->backend, p->memory);
	free(p->host_sums);
}

void
lora_parameters_publish(Trainer *trainer)
{
	const LoraParameters *p = &trainer->parameters;
	const BackendOps *ops = trainer->model->backend->ops;

	for (int layer = 0; layer < trainer->model->config.decoder.layers; layer++)
		for (int target = 0; target < LORA_TARGETS; target++)
		{
			LoraPair   *pair = &p->adapter->pairs[layer][target];

			if (!pair->present)
				continue;
			ops->weight_update(trainer->model->backend, &pair->a,
							   lora_matrix(trainer, p->values, layer, (LoraTarget) target, false),
							   false);
			ops->weight_update(trainer->model->backend, &pair->b,
							   lora_matrix(trainer, p->values, layer, (LoraTarget) target, true),
							   true);
		}
}

void
lora_backward(Trainer *trainer, int layer, LoraTarget target, Tensor dx, Tensor dy, Tensor x,
			  float factor)
{
	const LoraParameters *p = &trainer->parameters;
	const BackendOps *ops = trainer->model->backend->ops;
	Backend    *backend = trainer->model->backend;
	const LoraPair *pair = &p->adapter->pairs[layer][target];
	float		scale = factor * p->scale;
	Tensor		z = tensor_row_range(trainer->tensors.z, 0, x.rows);
	Tensor		dz = tensor_row_range(trainer->tensors.dz, 0, x.rows);

	if (!lora_trains(trainer, layer, target))
		return;
	ops->matmul(backend, z, x, &pair->a, (Epilogue) {NULL, ACTIVATION_NONE, scale, false});
	ops->add_product(backend, lora_matrix(trainer, p->gradient, layer, target, true), z, dy);
	ops->matmul_backward(backend, dz, dy, &pair->b, scale, false);
	ops->add_product(backend, lora_matrix(trainer, p->gradient, layer, target, false), dz, x);
	if (dx.data != NULL)
		ops->matmul_backward(backend, dx, dz, &pair->a, 1.0f, true);
}
