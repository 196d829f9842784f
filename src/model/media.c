/*
 * media.c - from pixels to what the gated blocks attend to.
 *
 * Pictures of several requests go through vision encoder and resampler together. Each
 * gated block then projects the latents to its keys and values, once, so that no
 * later token pays for them; LoRA on to_kv is the request's own.
 */
#include <stdlib.h>

#include "model_internal.h"

/* Pages for the latents of this many pictures. */
static int
media_pages(const Model *model, int pictures)
{
	return pages_for_keys(pictures * model->config.resampler.latents);
}

bool
media_has_room(const Model *model, int pictures)
{
	return pictures * media_pages(model, 1) <= model->media_pages.free_count;
}

static Media *
media_open(Model *model, int pictures, Status *status)
{
	int			pages = media_pages(model, pictures);
	size_t		bytes = sizeof(Media) + (size_t) pages * sizeof(int32_t);
	Media	   *media = calloc(1, bytes);

	if (media == NULL)
	{
		status_out_of_memory(status, bytes);
		return NULL;
	}
	media->pictures = pictures;
	media->pages.pages = (int32_t *) (media + 1);
	media->pages.capacity = pages;
	if (pages_take(&model->media_pages, &media->pages, pages))
		return media;
	status_set(status, STATUS_OUT_OF_MEMORY, "no room for %d more encoded picture%s", pictures,
			   pictures == 1 ? "" : "s");
	free(media);
	return NULL;
}

void
media_release(Model *model, Media *media)
{
	if (media == NULL)
		return;
	pages_give_back(&model->media_pages, &media->pages, 0);
	free(media);
}

typedef struct MediaTensors
{
	VisionTensors vision;
	ResamplerTensors resampler;
	Tensor		kv;				/* [images L, 2I] of one gated block */
	Tensor		slots;			/* i32 [1, images L] */
	Tensor		reduced;		/* [images L, LORA_MAX_RANK] */
} MediaTensors;

static MediaTensors
media_take_tensors(Workspace *workspace, const ModelConfig *config, int images)
{
	int			latents = images * config->resampler.latents;
	int			inner = config->cross_attention.heads * config->cross_attention.head_size;
	MediaTensors t;

	t.vision = vision_take_tensors(workspace, &config->vision, images);
	t.resampler = resampler_take_tensors(workspace, config, images);
	t.kv = workspace_floats(workspace, latents, 2 * inner);
	t.slots = workspace_integers(workspace, 1, latents);
	t.reduced = workspace_floats(workspace, latents, LORA_MAX_RANK);
	return t;
}

size_t
media_workspace_size(const ModelConfig *config, int images)
{
	Workspace	measure = {0};

	media_take_tensors(&measure, config, images);
	return measure.peak;
}

/* Where the latents of all medias go, and whose adapter each uses. */
static void
plan_media(Model *model, int requests, Adapter *const *adapters, Media **medias, MediaTensors *t,
		   AdapterRuns *runs)
{
	int			latents = model->config.resampler.latents;
	int			row = 0;

	runs->runs = model->runs;
	runs->count = requests;
	runs->any = false;
	runs->reduced = t->reduced;
	for (int r = 0; r < requests; r++)
	{
		int			count = medias[r]->pictures * latents;

		runs->runs[r] = (AdapterRun) {row, count, adapters == NULL ? NULL : adapters[r]};
		runs->any = runs->any || runs->runs[r].adapter != NULL;
		for (int i = 0; i < count; i++)
			model->staging[row++] = page_list_slot(&medias[r]->pages, i);
	}
	model->backend->ops->upload(model->backend, t->slots.data, model->staging,
								(size_t) row * sizeof(int32_t));
}

/* Keys and values of the latents in every gated block. */
static void
project_latents(Model *model, const AdapterRuns *runs, MediaTensors *t)
{
	const BackendOps *ops = model->backend->ops;
	int			inner = model->config.cross_attention.heads *
						model->config.cross_attention.head_size;
	Tensor		keys = tensor_column_range(t->kv, 0, inner);
	Tensor		values = tensor_column_range(t->kv, inner, inner);
	int			block = 0;

	for (int i = 0; i < model->config.decoder.layers; i++)
	{
		const GatedBlock *gated = model->weights.decoder.layers[i].gated;

		if (gated == NULL)
			continue;
		ops->matmul(model->backend, t->kv, t->resampler.latents, &gated->to_kv, EPILOGUE_STORE);
		lora_add(model, runs, i, LORA_TO_KV, t->kv, t->resampler.latents, 1.0f);
		ops->kv_write(model->backend, &model->media, block, keys, values, t->slots);
		block++;
	}
}

bool
model_encode_latents(Model *model, const Picture *pictures, int images, Tensor latents,
					 Status *status)
{
	MediaTensors t;

	if (images < 1 || images > model->options.max_images)
		return status_set(status, STATUS_INTERNAL,
						  "%d pictures at once, the model was opened for %d", images,
						  model->options.max_images);
	model->workspace.used = 0;
	t = media_take_tensors(&model->workspace, &model->config, images);
	vision_encoder_forward(model, pictures, images, &t.vision);
	resampler_forward(model, t.vision.tokens, images, &t.resampler);
	model->backend->ops->copy(model->backend, latents, t.resampler.latents);
	model->logits_rows = 0;
	return model->backend->ops->synchronize(model->backend, status);
}

bool
model_encode_images(Model *model, int requests, const int *counts, Adapter *const *adapters,
					const Picture *pictures, Media **medias, Status *status)
{
	MediaTensors t;
	AdapterRuns runs;
	int			images = 0;

	for (int r = 0; r < requests; r++)
		images += counts[r];
	if (images < 1 || images > model->options.max_images)
		return status_set(status, STATUS_INTERNAL,
						  "%d pictures at once, the model was opened for %d", images,
						  model->options.max_images);
	for (int r = 0; r < requests; r++)
	{
		medias[r] = media_open(model, counts[r], status);
		if (medias[r] != NULL)
			continue;
		while (r-- > 0)
			media_release(model, medias[r]);
		return false;
	}
	model->workspace.used = 0;
	t = media_take_tensors(&model->workspace, &model->config, images);
	vision_encoder_forward(model, pictures, images, &t.vision);
	resampler_forward(model, t.vision.tokens, images, &t.resampler);
	plan_media(model, requests, adapters, medias, &t, &runs);
	project_latents(model, &runs, &t);
	model->logits_rows = 0;
	if (model->backend->ops->synchronize(model->backend, status))
		return true;
	for (int r = 0; r < requests; r++)
		media_release(model, medias[r]);
	return false;
}
