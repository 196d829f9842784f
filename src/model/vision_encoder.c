/*
 * vision_encoder.c - CLIP's vision transformer (Radford et al. 2021; open_clip's
 * VisionTransformer), up to the last block.
 *
 *	x = [class, conv1(picture)] + positions;  x = ln_pre(x)
 *	each block:  x += out(attention(ln_1(x)));  x += c_proj(quick_gelu(c_fc(ln_2(x))))
 *
 * The result are the patch tokens of the last block: the class token is dropped and
 * neither ln_post nor the projection is applied (paper, section 3.2; OpenFlamingo's
 * use of CLIP).
 */
#include "model_internal.h"

int
vision_patches(const VisionConfig *config)
{
	int			across = config->image_size / config->patch_size;

	return across * across;
}

VisionTensors
vision_take_tensors(Workspace *workspace, const VisionConfig *config, int images)
{
	int			patches = vision_patches(config);
	int			rows = images * (1 + patches);
	int			size = config->image_size;
	VisionTensors t;

	t.pixels = workspace_floats(workspace, images, 3 * size * size);
	t.patches = workspace_floats(workspace, images * patches,
								 3 * config->patch_size * config->patch_size);
	t.embedded = workspace_floats(workspace, images * patches, config->width);
	t.x = workspace_floats(workspace, rows, config->width);
	t.normed = workspace_floats(workspace, rows, config->width);
	t.qkv = workspace_floats(workspace, rows, 3 * config->width);
	t.attended = workspace_floats(workspace, rows, config->width);
	t.mlp = workspace_floats(workspace, rows, config->mlp);
	t.tokens = workspace_floats(workspace, images * patches, config->width);
	t.slots = workspace_integers(workspace, 1, rows);
	t.index = workspace_integers(workspace, 1, images * patches);
	t.spans = workspace_integers(workspace, rows, ATTENTION_SPAN_FIELDS);
	t.lists = workspace_integers(workspace, 1, images * group_pages(1 + patches));
	return t;
}

/*
 * Bring pictures [first, first + count), all stored the same way, to the device and cut them into
 * patches.
 */
static void
load_pictures(Model *model, const Picture *pictures, int first, int count, VisionTensors *t)
{
	const BackendOps *ops = model->backend->ops;
	const VisionConfig *config = &model->config.vision;
	int			elements = 3 * config->image_size * config->image_size;
	int			patches = vision_patches(config);
	DataType	type = pictures[first].pixels != NULL ? TYPE_U8 : TYPE_F32;
	Tensor		pixels = tensor_make(t->pixels.data, type, count, elements);

	for (int i = 0; i < count; i++)
	{
		const Picture *picture = &pictures[first + i];
		const void *values = type == TYPE_U8 ? (const void *) picture->pixels
											 : (const void *) picture->normalised;

		ops->upload(model->backend, tensor_row_range(pixels, i, 1).data, values,
					(size_t) elements * data_type_size(type));
	}
	ops->patches(model->backend, tensor_row_range(t->patches, first * patches, count * patches),
				 pixels, config->image_size, config->patch_size, config->mean, config->deviation);
}

static void
embed_pictures(Model *model, const Picture *pictures, int images, VisionTensors *t)
{
	const BackendOps *ops = model->backend->ops;
	const VisionWeights *weights = &model->weights.vision;
	int			first = 0;

	while (first < images)
	{
		int			count = 1;

		while (first + count < images &&
			   (pictures[first].pixels != NULL) == (pictures[first + count].pixels != NULL))
			count++;
		load_pictures(model, pictures, first, count, t);
		first += count;
	}
	ops->matmul(model->backend, t->embedded, t->patches, &weights->conv1, EPILOGUE_STORE);
	ops->vision_tokens(model->backend, t->x, t->embedded, weights->class_embedding,
					   weights->positions);
	ops->layer_norm(model->backend, t->x, t->x, weights->ln_pre.weight, weights->ln_pre.bias,
					model->config.vision.epsilon);
}

static void
vision_block_forward(Model *model, const VisionBlock *block, const AttentionPlan *plan,
					 VisionTensors *t)
{
	const BackendOps *ops = model->backend->ops;
	Backend    *backend = model->backend;
	int			width = model->config.vision.width;
	float		epsilon = model->config.vision.epsilon;

	ops->layer_norm(backend, t->normed, t->x, block->ln_1.weight, block->ln_1.bias, epsilon);
	ops->matmul(backend, t->qkv, t->normed, &block->qkv,
				(Epilogue) {&block->qkv_bias, ACTIVATION_NONE, 1.0f, false});
	ops->kv_write(backend, &model->vision_scratch, 0, tensor_column_range(t->qkv, width, width),
				  tensor_column_range(t->qkv, 2 * width, width), t->slots);
	ops->attention(backend, t->attended, tensor_column_range(t->qkv, 0, width),
				   &model->vision_scratch, 0, plan);
	ops->matmul(backend, t->x, t->attended, &block->out,
				(Epilogue){&block->out_bias, ACTIVATION_NONE, 1.0f, true});

	ops->layer_norm(backend, t->normed, t->x, block->ln_2.weight, block->ln_2.bias, epsilon);
	ops->matmul(backend, t->mlp, t->normed, &block->c_fc,
				(Epilogue) {&block->c_fc_bias, ACTIVATION_QUICK_GELU, 1.0f, false});
	ops->matmul(backend, t->x, t->mlp, &block->c_proj,
				(Epilogue) {&block->c_proj_bias, ACTIVATION_NONE, 1.0f, true});
}

/* Copy x's rows to tokens, without the class tokens. */
static void
drop_class_tokens(Model *model, int images, VisionTensors *t)
{
	int			patches = vision_patches(&model->config.vision);

	for (int i = 0; i < images * patches; i++)
		model->staging[i] = i / patches * (1 + patches) + 1 + i % patches;
	model->backend->ops->upload(model->backend, t->index.data, model->staging,
								(size_t) (images * patches) * sizeof(int32_t));
	model->backend->ops->gather(model->backend, t->tokens, t->x, t->index);
}

void
vision_encoder_forward(Model *model, const Picture *pictures, int images, VisionTensors *t)
{
	const VisionConfig *config = &model->config.vision;
	int			tokens = 1 + vision_patches(config);
	AttentionPlan plan = group_plan(model, t->spans, t->lists, images, tokens, tokens,
									config->heads, config->width / config->heads);

	group_slots(model, t->slots, images, tokens, 0, tokens);
	embed_pictures(model, pictures, images, t);
	for (int i = 0; i < config->layers; i++)
		vision_block_forward(model, &model->weights.vision.blocks[i], &plan, t);
	drop_class_tokens(model, images, t);
	model_tap(model, "vision", -1, t->tokens);
}
