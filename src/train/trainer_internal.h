/*
 * trainer_internal.h - what the files of src/train share.
 *
 *	row_store.c			rows and distinct pictures, streams, shuffling, rows held out
 *	lora_parameters.c	values, gradients and optimizer state of all matrices
 *	train_memory.c		the tensors of a pass, measured and taken; the plan of memory
 *	pass_plan.c			rows of a micro step -> passes -> integers on the device
 *	train_forward.c		a layer forward with what the way back needs; the loss
 *	layer_backward.c	a layer backward
 *	optimizer.c			norm, clipping, learning rate, AdamW
 *	early_stopping.c	when validations end a training, and which values were the best
 *	checkpoint.c		state to bytes and back
 *	trainer.c			create, start, and the slices
 */
#ifndef MMGPT_TRAINER_INTERNAL_H
#define MMGPT_TRAINER_INTERNAL_H

#include "model_internal.h"
#include "trainer.h"

/* ---- rows ---- */

typedef struct StoredRow
{
	int32_t    *ids;			/* [count] */
	int32_t    *labels;			/* [count] */
	int32_t    *looks_at;		/* [count]: the picture that a token attends to, from 1; 0: none */
	int			count;
	int			trained;		/* labels that count */
	int		   *pictures;		/* [picture_count]: indices of distinct pictures */
	int			picture_count;
} StoredRow;

typedef struct StoredPicture
{
	uint8_t		digest[DIGEST_SIZE];
	Picture		picture;		/* copies on the heap; both NULL once it was encoded */
} StoredPicture;

typedef enum RowKind
{
	ROWS_IMAGE,
	ROWS_LANGUAGE,
	ROW_KINDS
} RowKind;

/* The rows of one kind, in the order in which they pass by. */
typedef struct RowStream
{
	int		   *trained;		/* [trained_count]: indices of rows */
	int			trained_count;
	int		   *held_out;
	int			held_out_count;
	int		   *order;			/* [trained_count]: of the epoch; indices into trained */
	int64_t		epoch;			/* that order belongs to; -1: none yet */
} RowStream;

typedef struct RowStore
{
	Arena	   *arena;
	StoredRow  *rows;
	int			count;
	int			capacity;
	StoredPicture *pictures;
	int			picture_count;
	int			picture_capacity;
	int		   *buckets;		/* [bucket_count]: picture index + 1; 0: empty */
	int			bucket_count;
	size_t		bytes;
	RowStream	streams[ROW_KINDS];
	DigestState digest_state;	/* of the rows so far */
	uint8_t		digest[DIGEST_SIZE];	/* of all rows in their order */
} RowStore;

extern bool row_store_begin(RowStore *store, Status *status);
extern void row_store_free(RowStore *store);
extern bool row_store_add(RowStore *store, const ModelConfig *config, const TrainingRow *row,
						  int max_length, Status *status);
/* Form the streams and hold rows out. */
extern bool row_store_finish(RowStore *store, const TrainOptions *options, Status *status);
/* The row at a position of a stream, from 0 on for ever; epochs follow one another. */
extern int	row_stream_at(RowStream *stream, const TrainOptions *options, RowKind kind,
						  int64_t position);
/* Rows of this kind in each micro step. */
extern int	row_stream_batch(const RowStream *stream, const TrainOptions *options);
extern void stored_picture_forget(StoredPicture *picture);

/* Streams of random numbers under one seed. */
enum
{
	RANDOM_SHUFFLE_IMAGE,
	RANDOM_SHUFFLE_LANGUAGE,
	RANDOM_HOLD_OUT_IMAGE,
	RANDOM_HOLD_OUT_LANGUAGE,
	RANDOM_VALUES
};

/* The counter-th random number of a stream, uniform in [0, 1). */
extern double train_random(uint64_t seed, int stream, uint64_t counter);

/* ---- parameters ---- */

/* Floats of a row of the flat tensors. */
#define PARAMETER_COLUMNS 1024

/* One pair of matrices: places in the flat tensors, in floats. */
typedef struct PairPlace
{
	bool		present;
	size_t		a;				/* [r, K] */
	size_t		b;				/* [r, N]: B is kept transposed */
} PairPlace;

typedef struct LoraParameters
{
	AdapterShape shape;
	float		scale;			/* alpha / r */
	PairPlace (*pairs)[LORA_TARGETS];	/* [layers] */
	int			rows;			/* of the flat tensors */
	int			decayed_rows;	/* the first rows: the gated blocks' matrices */
	void	   *memory;
	Tensor		values;			/* f32 [rows, PARAMETER_COLUMNS] */
	Tensor		gradient;
	Tensor		mean;			/* AdamW's running means of gradients and of their squares */
	Tensor		square;
	Tensor		best;			/* values of the best validation; no data without early_stopping */
	Tensor		sums;			/* f32 [1, rows]: scratch of the norm */
	float	   *host_sums;		/* [rows] */
	Adapter    *adapter;		/* the values, packed for products */
} LoraParameters;

/* Lay the matrices out, without memory for them. */
extern bool lora_parameters_lay_out(Trainer *trainer, Status *status);
extern size_t lora_parameters_bytes(const Trainer *trainer);
/* Take memory; values from an adapter, or the first values of LoRA where it is NULL. */
extern bool lora_parameters_begin(Trainer *trainer, const AdapterSource *initial_adapter,
								  Status *status);
extern void lora_parameters_free(Trainer *trainer);
/* Pack the values for products. */
extern void lora_parameters_publish(Trainer *trainer);
/* A matrix [r, N or K] of one of the flat tensors. */
extern Tensor lora_matrix(const Trainer *trainer, Tensor flat, int layer, LoraTarget target,
						  bool b);
/*
 * The way back through y += factor * alpha/r B(A x): gradients of A and B, and dx += its
 * gradient unless dx has no data. Rows of dy, x and dx correspond.
 */
extern void lora_backward(Trainer *trainer, int layer, LoraTarget target, Tensor dx, Tensor dy,
						  Tensor x, float factor);
/* Is there a pair? */
extern bool lora_trains(const Trainer *trainer, int layer, LoraTarget target);

/* ---- the tensors of a pass ---- */

/* Rows whose logits exist at a time. */
#define HEAD_ROWS 256

/* What the way back through a layer needs of the way forward. Rm rows look at pictures. */
typedef struct LayerActivations
{
	Tensor		x_gated;		/* [Rm, h]: before the gated attention */
	Tensor		media_kv;		/* [latents, 2I] */
	Tensor		cross_q;		/* [Rm, I] */
	Tensor		cross_attended;	/* [Rm, I] */
	Tensor		x_ff;			/* [Rm, h]: before the gated feed-forward */
	Tensor		ff_input;		/* [Rm, 4h]: before its activation */
	Tensor		x_attention;	/* [R, h]: before the attention */
	Tensor		qkv;			/* [R, (heads + 2 kv_heads) D], after rotary */
	Tensor		attended;		/* [R, heads D] */
	Tensor		x_mlp;			/* [R, h]: before the MLP */
	Tensor		gate_up;		/* [R, 2 mlp] */
} LayerActivations;

/* Most of everything that a pass may hold. */
typedef struct PassLimits
{
	int			rows;
	int			sequences;
	int			latents;		/* rows of latents, of all its sequences */
	int			media_rows;		/* rows that look at pictures */
	int			keys;			/* tokens of the longest sequence */
	int			media_keys;		/* latents of one sequence */
} PassLimits;

/* All tensors of a pass; rows as in PassLimits, cut to what a pass holds when it begins. */
typedef struct PassTensors
{
	DecoderTensors t;			/* of the forward pass; qkv etc. lie in the layer's activations */
	LayerActivations *kept;		/* [kept layers], the topmost */
	LayerActivations shared;	/* of the layer that is being computed, where it is not kept */
	Tensor	   *starts;			/* [trained layers - kept]: [R, h], x before a layer */
	Tensor		latents;		/* [latents, W] */
	Tensor		latents_index;	/* i32 [1, latents] */
	Tensor		media_slots;	/* i32 [1, latents] */
	Tensor		groups;			/* i32 [sequences, ATTENTION_GROUP_FIELDS] */
	Tensor		media_groups;
	Tensor		label_index;	/* i32 [1, R]: rows whose next token is a label */
	Tensor		targets;		/* i32 [1, R]: these labels */
	Tensor		weights;		/* f32 [1, R]: what each counts in the loss */
	Tensor		losses;			/* f32 [1, R] */
	Tensor		media_reduced;	/* [latents, LORA_MAX_RANK] */
	Tensor		z;				/* [max(R, latents), r]: A x of the way back */
	Tensor		dz;
	Tensor		dx;				/* [R, h]: gradient of the residual stream */
	Tensor		d_normed;		/* [R, h] */
	void	   *attention_scratch;

	/* these lie in one place, as only one stage is computed at a time */
	Tensor		head_x;			/* [HEAD_ROWS, h] */
	Tensor		head_normed;
	Tensor		head_logits;	/* [HEAD_ROWS, V] */
	Tensor		head_d_normed;
	Tensor		head_dx;
	Tensor		d_mlp;			/* [R, mlp] */
	Tensor		d_gate_up;		/* [R, 2 mlp] */
	Tensor		d_attended;		/* [R, heads D] */
	Tensor		d_qkv;			/* [R, (heads + 2 kv_heads) D] */
	Tensor		d_ff;			/* [Rm, 4h] */
	Tensor		d_cross_attended;	/* [Rm, I] */
	Tensor		d_cross_q;		/* [Rm, I] */
	Tensor		d_media_kv;		/* [latents, 2I] */
} PassTensors;

/* Choose pass size and kept layers within the limit, and take the memory. */
extern bool train_memory_take(Trainer *trainer, size_t limit, Status *status);
extern void train_memory_free(Trainer *trainer);
/* The tensors, cut to the rows of the pass that begins. */
extern void train_memory_begin_pass(Trainer *trainer);
/* The activations of a layer: kept, or shared. */
extern LayerActivations *layer_activations(Trainer *trainer, int layer);
/* Are they of this layer still? */
extern bool layer_is_kept(const Trainer *trainer, int layer);

/* ---- passes ---- */

/* A sequence of a micro step. */
typedef struct BatchRow
{
	int			row;			/* in the store */
	RowKind		kind;
} BatchRow;

/* The rows that go through the model together. */
typedef struct Pass
{
	const BatchRow *sequences;	/* those with pictures first */
	int			count;
	int			rows;
	int			media_rows;
	int			media_sequences;
	int			latents;
	int			labels;
	double		label_weight[ROW_KINDS];	/* of one label in the loss */
	int			image_labels;	/* the first labels are of image rows */
	int			first_stage;	/* where its way back ends, as in Trainer */
	DecoderBatch batch;
} Pass;

/* Sequences from `first` on that fit one pass; returns how many. */
extern int	pass_count_sequences(const Trainer *trainer, const BatchRow *sequences, int count);
/* Write the integers of a pass to the device; x becomes the tokens' embeddings. */
extern void pass_begin(Trainer *trainer, const BatchRow *sequences, int count);

/* ---- stages of a layer, in their order; a parameter belongs to one of them ---- */

enum
{
	STAGE_GATED_ATTENTION,
	STAGE_GATED_FF,
	STAGE_ATTENTION,
	STAGE_MLP,
	LAYER_STAGES
};

#define NO_STAGE INT32_MAX

/* One layer forward, with its activations. */
extern void layer_forward(Trainer *trainer, int layer);
/* Losses of all labels, added to loss_sums; with `backward`, dx becomes their gradient. */
extern bool head_forward(Trainer *trainer, bool backward, Status *status);
/* One layer backward: dx before it from dx behind it, as far as any gradient below needs it. */
extern void layer_backward(Trainer *trainer, int layer);

/* ---- optimizer ---- */

/* Learning rate of an optimizer step, from 0. */
extern double schedule_learning_rate(const TrainOptions *options, int64_t step, int64_t total);
/* Measure the gradients' norm and clip them. */
extern bool optimizer_clip(Trainer *trainer, Status *status);
/* A step of AdamW over all parameters, and gradients cleared. */
extern void optimizer_step(Trainer *trainer);
extern void optimizer_clear_gradients(Trainer *trainer);

/* ---- early stopping ---- */

typedef struct EarlyStopping
{
	double		best_loss;
	int			best_micro_step;	/* 0: there was no validation */
	int			without;		/* validations since, none of which was better */
	bool		stopped;
} EarlyStopping;

/* A validation is done: keep the values if it was the best, or stop. */
extern void early_stopping_judge(Trainer *trainer);
/* The training is over: the best values are its result. */
extern void early_stopping_finish(Trainer *trainer);

/* ---- the trainer ---- */

typedef enum TrainerPhase
{
	PHASE_ADDING,				/* rows */
	PHASE_PICTURES,
	PHASE_BEGIN,				/* of a micro step, or the end */
	PHASE_PASS,					/* begin the next pass */
	PHASE_FORWARD,
	PHASE_HEAD,
	PHASE_BACKWARD,
	PHASE_CLIP,
	PHASE_DONE
} TrainerPhase;

struct Trainer
{
	Model	   *model;
	TrainOptions options;
	RowStore	store;
	LoraParameters parameters;
	TrainerMemory memory;
	PassLimits	limits;
	/*
	 * layer * LAYER_STAGES + stage of the lowest parameter; and of the lowest outside of gated
	 * blocks, which is where the way back of a pass without pictures ends. NO_STAGE: there is none
	 */
	int			first_stage;
	int			first_language_stage;
	int			micro_steps;
	int			epoch_steps;	/* micro steps of an epoch */
	int			optimizer_total;	/* that the schedule is laid out for */

	void	   *device_memory;	/* of passes */
	Workspace	workspace;
	KvPool		cache;			/* of one layer */
	KvPool		media;
	void	   *latents_memory;
	Tensor		latents;		/* [pictures L, W] */
	PassTensors tensors;
	int32_t    *staging;
	float	   *host_floats;	/* [limits.rows] */
	AdapterRun	run;			/* all rows of a pass use the adapter */
	AdapterRun	media_run;

	TrainerPhase phase;
	int			slice_pictures;	/* encoded in a slice, at most */
	int			next_picture;
	int			micro_step;		/* done */
	int			optimizer_steps;
	uint64_t	tokens;
	BatchRow   *batch;			/* rows of the micro step, or those held out */
	int			batch_count;
	int			next_sequence;	/* of the batch, for the next pass */
	bool		validating;
	Pass		pass;
	int			layer;			/* next to compute */
	int			layer_in_shared;	/* whose activations lie in the shared place; -1: none's */
	double		loss_sums[ROW_KINDS];
	int			label_counts[ROW_KINDS];	/* of the micro step, or of the rows held out */
	EarlyStopping early;
	TrainerReport report;
};

#endif
