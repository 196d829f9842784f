/*
 * model_internal.h - what the files of src/model share: the open model, the parts of
 * a forward pass, and who calls whom.
 *
 *	model.c				open, close, describe
 *	media.c				pixels -> vision_encoder -> resampler -> gated blocks' keys, values
 *	sequence.c			ids, pages, and which picture each token looks at
 *	step.c				a ragged batch -> decoder (gated_cross_attention, lora) -> logits
 */
#ifndef MMGPT_MODEL_INTERNAL_H
#define MMGPT_MODEL_INTERNAL_H

#include "arena.h"
#include "backend.h"
#include "kv_cache.h"
#include "model.h"
#include "model_weights.h"
#include "workspace.h"

/* Matrices that LoRA can be applied to, by the names of design and PEFT. */
typedef enum LoraTarget
{
	LORA_Q_PROJ,
	LORA_K_PROJ,
	LORA_V_PROJ,
	LORA_O_PROJ,
	LORA_GATE_PROJ,
	LORA_UP_PROJ,
	LORA_DOWN_PROJ,
	LORA_TO_Q,
	LORA_TO_KV,
	LORA_TO_OUT,
	LORA_FF_1,
	LORA_FF_3,
	LORA_TARGETS
} LoraTarget;

/* Largest rank of an adapter. */
#define LORA_MAX_RANK 256

/* Low-rank matrices beside one base matrix [N, K]. */
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
	uint8_t		digest[DIGEST_SIZE];	/* of its files */
	float		scale;			/* alpha / r */
	int			layers;
	LoraLayer  *pairs;			/* [layers] */
};

/* Rows [first, first + count) use one adapter (NULL: none). */
typedef struct AdapterRun
{
	int			first;
	int			count;
	Adapter    *adapter;
} AdapterRun;

typedef struct AdapterRuns
{
	AdapterRun *runs;
	int			count;
	bool		any;			/* one of them has an adapter */
	Tensor		reduced;		/* f32 [R, LORA_MAX_RANK]: scratch for A x */
} AdapterRuns;

struct Model
{
	Arena	   *arena;			/* lives as long as the model */
	Backend    *backend;
	ModelConfig config;
	ModelOptions options;
	DataType	format;			/* of products, and of keys and values */
	ModelWeights weights;
	char		digest[DIGEST_HEX_SIZE];

	size_t		training_bytes;	/* of the memory limit, set aside */
	KvPool		cache;			/* keys and values of sequences, a layer each decoder layer */
	PageAllocator cache_pages;
	KvPool		media;			/* of pictures, a layer each gated block */
	PageAllocator media_pages;
	KvPool		vision_scratch;	/* of the pictures being encoded, one layer */
	KvPool		resampler_scratch;

	Workspace	workspace;
	int32_t    *staging;		/* host integers on their way to the device */
	AdapterRun *runs;			/* of the current step */

	Tensor		logits;			/* of the last step: f32 [logits_rows, V] */
	int			logits_rows;

	TapFunction tap;
	void	   *tap_argument;
	float	   *tap_values;		/* host copy for the tap; grown while a tap is set */
	size_t		tap_size;
};

/*
 * Encoded pictures: the keys and values of their latents in every gated block, one after another.
 */
struct Media
{
	int			pictures;
	PageList	pages;
};

struct Sequence
{
	Media	   *media;
	Adapter    *adapter;
	PageList	pages;
	int			length;			/* tokens computed */
	int			prompt;			/* tokens whose picture was worked out at the start */
	int			marks;			/* <image> marks among them */
	int32_t    *ids;			/* [prompt] */
	int32_t    *pictures;		/* [prompt]: which picture a token attends to, from 1; 0: none */
};

/* ---- vision_encoder.c ---- */

typedef struct VisionTensors
{
	Tensor		pixels;			/* u8 [images, S S 3], or f32 [images, 3 S S] in the same place */
	Tensor		patches;		/* [images P, 3 p p] */
	Tensor		embedded;		/* [images P, W] */
	Tensor		x;				/* [images (1 + P), W] */
	Tensor		normed;			/* the same */
	Tensor		qkv;			/* [images (1 + P), 3W] */
	Tensor		attended;		/* [images (1 + P), W] */
	Tensor		mlp;			/* [images (1 + P), 4W] */
	Tensor		tokens;			/* [images P, W]: the result */
	Tensor		slots;			/* i32 [1, images (1 + P)] */
	Tensor		index;			/* i32 [1, images P]: rows of x without class tokens */
	Tensor		spans;
	Tensor		lists;
} VisionTensors;

extern VisionTensors vision_take_tensors(Workspace *workspace, const VisionConfig *config,
										 int images);
extern void vision_encoder_forward(Model *model, const Picture *pictures, int images,
								   VisionTensors *t);

/* Patches of a picture. */
extern int	vision_patches(const VisionConfig *config);

/* ---- resampler.c ---- */

typedef struct ResamplerTensors
{
	Tensor		latents;		/* [images L, W]: the result */
	Tensor		media;			/* [images P, W]: normed tokens */
	Tensor		normed;			/* [images L, W] */
	Tensor		q;				/* [images L, I] */
	Tensor		media_kv;		/* [images P, 2I] */
	Tensor		latents_kv;		/* [images L, 2I] */
	Tensor		attended;		/* [images L, I] */
	Tensor		ff;				/* [images L, 4W] */
	Tensor		index;			/* i32 [1, images L] */
	Tensor		media_slots;
	Tensor		latents_slots;
	Tensor		spans;
	Tensor		lists;
} ResamplerTensors;

extern ResamplerTensors resampler_take_tensors(Workspace *workspace, const ModelConfig *config,
											   int images);
extern void resampler_forward(Model *model, Tensor tokens, int images, ResamplerTensors *t);

/* ---- media.c ---- */

/*
 * The resampler's output [images L, W] for at most max_images pictures, for whoever keeps it;
 * latents is a dense f32 tensor of the device.
 */
extern bool model_encode_latents(Model *model, const Picture *pictures, int images, Tensor latents,
								 Status *status);

/* Bytes of workspace that encoding this many pictures takes. */
extern size_t media_workspace_size(const ModelConfig *config, int images);

/* ---- attention_groups.c: every row of a group sees all keys of its group ---- */

/* Integers that the lists of groups need. */
extern int	group_pages(int keys);
/* Spans [groups * queries] and lists for groups of `keys` keys in pages of their own. */
extern AttentionPlan group_plan(Model *model, Tensor spans, Tensor lists, int groups, int queries,
								int keys, int heads, int head_size);
/* Slots of keys [first, first + count) of each group of `keys` keys. */
extern void group_slots(Model *model, Tensor slots, int groups, int keys, int first, int count);

/* ---- decoder.c, gated_cross_attention.c ---- */

typedef struct DecoderTensors
{
	Tensor		ids;			/* i32 [1, R] */
	Tensor		positions;		/* i32 [1, R] */
	Tensor		slots;			/* i32 [1, R] */
	Tensor		spans;			/* of self attention */
	Tensor		lists;
	Tensor		media_spans;	/* of cross attention, the first media_rows rows */
	Tensor		media_lists;
	Tensor		logits_index;	/* i32 [1, logits rows] */
	Tensor		x;				/* [R, h]: the residual stream */
	Tensor		normed;			/* [R, h] */
	Tensor		qkv;			/* [R, (heads + 2 kv_heads) D] */
	Tensor		attended;		/* [R, heads D] */
	Tensor		gate_up;		/* [R, 2 mlp] */
	Tensor		mlp;			/* [R, mlp] */
	Tensor		cross_q;		/* [R, I] */
	Tensor		cross_attended;	/* [R, I] */
	Tensor		cross_ff;		/* [R, 4h] */
	Tensor		cross_ff_input;	/* [R, 4h] before the activation; no data: it is not kept */
	Tensor		reduced;		/* [R, LORA_MAX_RANK] */
	Tensor		last;			/* [logits rows, h] */
	Tensor		logits;			/* [logits rows, V] */
} DecoderTensors;

/* One step's rows: those of sequences with pictures come first. */
typedef struct DecoderBatch
{
	int			rows;
	int			media_rows;
	int			logits_rows;
	/* where keys and values go; a pool of one layer serves all layers in turn */
	const KvPool *cache;
	const KvPool *media;
	AdapterRuns adapters;
	AttentionPlan self_attention;
	AttentionPlan cross_attention;
} DecoderBatch;

/*
 * Pages that the lists of one sequence and of its pictures hold at most; sequences may share
 * pages.
 */
extern int	step_list_pages(const Model *model);
extern int	step_media_pages(const Model *model);

extern DecoderTensors decoder_take_tensors(Workspace *workspace, const Model *model, int rows,
										   int media_rows, int logits_rows);
extern void decoder_forward(Model *model, const DecoderBatch *batch, DecoderTensors *t);

/* The two halves of a layer, each of which adds to t->x. */
extern void decoder_attention_forward(Model *model, int layer, const DecoderBatch *batch,
									  DecoderTensors *t);
extern void decoder_mlp_forward(Model *model, int layer, const DecoderBatch *batch,
								DecoderTensors *t);

/*
 * Gated cross attention and gated feed-forward of the block before a layer, on the first
 * media_rows rows. block is its number among the gated ones.
 */
extern void gated_attention_forward(Model *model, int layer, int block, const DecoderBatch *batch,
									DecoderTensors *t);
extern void gated_feed_forward(Model *model, int layer, const DecoderBatch *batch,
							   DecoderTensors *t);

/* The layer of a pool that belongs to layer number `layer`. */
static inline int
pool_layer(const KvPool *pool, int layer)
{
	return pool->layers == 1 ? 0 : layer;
}

/* ---- sequence.c ---- */

/* The picture that the token at a position attends to, from 1; 0: none. */
extern int	sequence_picture(const Model *model, const Sequence *sequence, int position);

/*
 * Fill in pictures [count]: the picture that each of the tokens attends to, from 1; 0: none.
 * Returns the number of <image> marks.
 */
extern int	sequence_assign_pictures(const ModelConfig *config, const int32_t *ids, int count,
									 int32_t *pictures);

/* What a token that attends to a picture (from 1; 0: none) sees of the latents of `pictures`. */
extern void sequence_media_span(const ModelConfig *config, int picture, int pictures,
								int32_t *span);

/* ---- model.c ---- */

/* What keys and values are kept in: TYPE_F32 or TYPE_BF16. */
extern DataType model_cache_type(const Model *model);

/* ---- weight_format.c ---- */

/* What to compute these files in: TYPE_F32, TYPE_BF16, TYPE_Q8 or TYPE_Q4. */
extern DataType weight_format_choose(WeightFormat format, const TensorStore *store);

/* The same without files; "as stored" is bf16. */
extern DataType weight_format_type(WeightFormat format);

/* ---- lora.c ---- */

/*
 * y += factor * (alpha/r) B (A x) for the rows that have an adapter with this target; rows of y and
 * x from 0.
 */
extern void lora_add(Model *model, const AdapterRuns *runs, int layer, LoraTarget target, Tensor y,
					 Tensor x, float factor);

/* True if some run has an adapter with this target. */
extern bool lora_applies(const AdapterRuns *runs, int layer, LoraTarget target);

/* Where a target stands below "model.layers.N." ("self_attn.q_proj"), and its name ("q_proj"). */
extern const char *lora_target_path(LoraTarget target);
extern const char *lora_target_name(LoraTarget target);

/* Bytes of a tensor's name, and the name: "model.layers.N.PATH.lora_A.weight", or lora_B. */
#define LORA_NAME_SIZE 128
extern void lora_tensor_name(int layer, LoraTarget target, bool b, char name[LORA_NAME_SIZE]);

/* Outputs N and inputs K of a target's base matrix. */
extern void lora_target_shape(const ModelConfig *config, LoraTarget target, int *outputs,
							  int *inputs);

/* Does the model have this matrix in this layer? Gated blocks stand in some layers only. */
extern bool lora_target_exists(const Model *model, int layer, LoraTarget target);

/* ---- adapter_content.c ---- */

/*
 * r and alpha of DIR/adapter_config.json; variants of LoRA with other arithmetic are refused
 * (STATUS_NOT_SUPPORTED).
 */
extern bool adapter_read_config(const char *directory, int *r, double *alpha, Status *status);

/* The same of files in memory. */
extern bool adapter_parse_config(const AdapterContent *content, int *r, double *alpha,
								 Status *status);

/*
 * The pair of a target in an adapter's files, NULL both if it is not there; checked to fit the
 * model.
 */
extern bool lora_find_tensors(const Model *model, TensorStore *store, int layer, LoraTarget target,
							  const StoredTensor **a, const StoredTensor **b, Status *status);

/* An adapter without pairs; freed with adapter_close. */
extern Adapter *adapter_allocate(const Model *model, Status *status);

/* Bring all pairs of the files to the device. Every tensor must have a place in the model. */
extern bool lora_load_pairs(Model *model, Adapter *adapter, TensorStore *store, Status *status);

/* Fail with the name of a tensor that nobody asked for, if there is one. */
extern bool lora_all_used(const TensorStore *store, Status *status);

/*
 * An adapter on the targets (bits 1 << LoraTarget) of all layers, of zeros: to be filled with
 * weight_update. Freed with adapter_close.
 */
extern Adapter *adapter_create(Model *model, int r, float scale, unsigned targets, Status *status);

/* ---- model.c ---- */

/*
 * Give a tensor's values to the tap, if one is set, as name with two digits of number behind it
 * (-1: none).
 */
extern void model_tap(Model *model, const char *name, int number, Tensor tensor);

#endif
