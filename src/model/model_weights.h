/*
 * model_weights.h - the weights of every part on the device, named as in the papers.
 *
 * Shapes stand beside each field: W vision width, L latents, h hidden size, I
 * inner size of an attention (heads * head size), V vocabulary. Vectors are f32 [1, n].
 */
#ifndef MMGPT_MODEL_WEIGHTS_H
#define MMGPT_MODEL_WEIGHTS_H

#include "arena.h"
#include "backend.h"
#include "model_config.h"
#include "safetensors.h"
#include "status.h"

typedef struct Norm
{
	Tensor		weight;
	Tensor		bias;			/* no data for an RMS norm */
} Norm;

/* LayerNorm, Linear, GELU, Linear: the feed-forward of resampler and gated block. */
typedef struct FeedForward
{
	Norm		norm;			/* .0 */
	Weight		up;				/* .1 [ff, n] */
	Weight		down;			/* .3 [n, ff] */
} FeedForward;

typedef struct VisionBlock
{
	Norm		ln_1;
	Weight		qkv;			/* [3W, W]: q, k, v */
	Tensor		qkv_bias;		/* [3W] */
	Weight		out;			/* [W, W] */
	Tensor		out_bias;
	Norm		ln_2;
	Weight		c_fc;			/* [4W, W] */
	Tensor		c_fc_bias;
	Weight		c_proj;			/* [W, 4W] */
	Tensor		c_proj_bias;
} VisionBlock;

typedef struct VisionWeights
{
	Weight		conv1;			/* [W, 3 P P] */
	Tensor		class_embedding;	/* [W] */
	Tensor		positions;		/* [1 + patches, W] */
	Norm		ln_pre;
	VisionBlock *blocks;
} VisionWeights;

typedef struct ResamplerLayer
{
	Norm		norm_media;
	Norm		norm_latents;
	Weight		to_q;			/* [I, W] */
	Weight		to_kv;			/* [2I, W]: k, v */
	Weight		to_out;			/* [W, I] */
	FeedForward ff;
} ResamplerLayer;

typedef struct ResamplerWeights
{
	Tensor		latents;		/* [L, W] */
	ResamplerLayer *layers;
	Norm		norm;
} ResamplerWeights;

/* A gated cross-attention block (Flamingo, section 3.1.2). */
typedef struct GatedBlock
{
	Norm		norm;			/* attn.norm */
	Weight		to_q;			/* [I, h] */
	Weight		to_kv;			/* [2I, W] */
	Weight		to_out;			/* [h, I] */
	float		attn_gate;		/* tanh of the stored number */
	FeedForward ff;
	float		ff_gate;		/* tanh of the stored number */
} GatedBlock;

typedef struct DecoderLayer
{
	GatedBlock *gated;			/* in front of the layer; NULL where there is none */
	Norm		input_norm;
	Weight		qkv;			/* [(heads + 2 kv_heads) D, h] */
	Weight		o_proj;			/* [h, heads D] */
	Norm		post_norm;
	Weight		gate_up;		/* [2 mlp, h] */
	Weight		down_proj;		/* [h, mlp] */
} DecoderLayer;

typedef struct DecoderWeights
{
	Tensor		embed_tokens;	/* [V, h], as stored */
	DecoderLayer *layers;
	Norm		norm;
	Weight		lm_head;		/* [V, h] */
	Tensor		rotary;			/* [context, D]: cosines, sines */
} DecoderWeights;

typedef struct ModelWeights
{
	VisionWeights vision;
	ResamplerWeights resampler;
	DecoderWeights decoder;
	int			gated_blocks;
	size_t		bytes;			/* on the device */

	/* What has to be given back, in the arena. */
	struct WeightOwner *owned;
} ModelWeights;

/*
 * What a matrix of a model that computes in `format` is kept in, by the tensor's name. Of a
 * quantised model the output matrix, vision encoder and resampler have 8 bits, whatever the decoder
 * has, and what is no matrix of a linear layer has TYPE_BF16. weight_format.c.
 */
extern DataType weight_format_of_matrix(DataType format, const char *name);

typedef struct LoadProgress
{
	void		(*report) (void *argument, double fraction);
	void	   *argument;
	const volatile bool *cancel;
} LoadProgress;

/*
 * Bring all weights from the store to the device. STATUS_INVALID_MODEL names the
 * tensor that is missing, has another shape or is not known.
 */
extern bool model_weights_load(const ModelConfig *config, TensorStore *store, Backend *backend,
							   DataType format, const LoadProgress *progress, Arena *arena,
							   ModelWeights *weights, Status *status);

/* The same with random numbers in all tensors. */
extern bool model_weights_draw(const ModelConfig *config, Backend *backend, DataType format,
							   const LoadProgress *progress, Arena *arena, ModelWeights *weights,
							   Status *status);
extern void model_weights_free(ModelWeights *weights, Backend *backend);

#endif
