/*
 * backend.h - the operations that the model is written in.
 *
 * src/model is written once, over this table; the processor (backend_cpu.c) and
 * the CUDA library implement it. Operations work on tensors that lie on the
 * device and may run later than the call: only synchronize, download and those that
 * read logits (choose, best, score) wait. They do not fail one by one: a device error
 * shows at the next synchronize.
 *
 * The promise that every implementation keeps: each element of a result is
 * computed in one fixed order that depends on its own row only, never on how many
 * rows there are, which neighbours they have or how many threads work. An
 * answer is a function of its request.
 *
 * Names of dimensions: R rows (tokens of all sequences of a step), N outputs,
 * K inputs, H heads, D elements of a head, V vocabulary.
 */
#ifndef MMGPT_BACKEND_H
#define MMGPT_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"
#include "tensor.h"

/* Raised with every change of this file; a library of another version is refused. */
#define BACKEND_VERSION 10

/* Keys in one page of a KvPool. */
#define KV_PAGE_KEYS 32

typedef struct Backend Backend;

/* A weight matrix [N, K] in the layout that the device multiplies from. */
typedef struct Weight
{
	void	   *data;
	DataType	type;
	int			outputs;		/* N */
	int			inputs;			/* K */
	size_t		bytes;			/* on the device */
} Weight;

/* Rows of a weight matrix as they lie in a file: [outputs, K], row-major, on the host. */
typedef struct WeightPart
{
	const void *data;
	DataType	type;			/* f32, f16, bf16; q8 or q4: data are codes, see quantize.h */
	int			outputs;
	const void *scales;			/* q8, q4: bf16 [outputs, quantized_blocks(K)] */
	const char *name;			/* for messages; NULL: none */
} WeightPart;

typedef enum Activation
{
	ACTIVATION_NONE,
	ACTIVATION_QUICK_GELU,		/* x * sigmoid(1.702 x): CLIP */
	ACTIVATION_GELU				/* x * Phi(x), the exact one (erf): resampler and gated blocks */
} Activation;

/* What happens to a product before it is stored: y = [y +] scale * activation(x W^T + bias). */
typedef struct Epilogue
{
	const Tensor *bias;			/* f32 [1, N]; NULL: none */
	Activation	activation;
	float		scale;
	bool		accumulate;		/* add to what y holds */
} Epilogue;

/* Store the plain product. */
#define EPILOGUE_STORE ((Epilogue) {NULL, ACTIVATION_NONE, 1.0f, false})
/* Add the plain product: residual connections. */
#define EPILOGUE_ADD ((Epilogue) {NULL, ACTIVATION_NONE, 1.0f, true})

/* Rows [first, first + count) with low-rank matrices of their own, as an adapter has them. */
typedef struct LowRankGroup
{
	int			first;
	int			count;			/* at least 1 */
	const Weight *a;			/* f32 [r, K] */
	const Weight *b;			/* f32 [N, r] */
	float		scale;
} LowRankGroup;

/* Groups of one low_rank at most: those of a step that is recorded (src/model/step.c). */
#define LOW_RANK_GROUPS 64

/*
 * Keys and values of attention, in pages of KV_PAGE_KEYS keys. One page number
 * means the same place in every layer. A sequence is a list of pages: key j lies
 * in page list[j / KV_PAGE_KEYS].
 */
typedef struct KvPool
{
	void	   *data;
	DataType	type;			/* f32 or bf16 */
	int			layers;
	int			pages;
	int			heads;			/* of keys and values */
	int			head_size;		/* D */
	size_t		bytes;
} KvPool;

/* Which keys each row of an attention sees. */
typedef struct AttentionPlan
{
	Tensor		page_lists;		/* i32 [1, ...]: the lists of all sequences, one after another */
	Tensor		spans;			/* i32 [R, ATTENTION_SPAN_FIELDS] */
	int			heads;			/* of the queries; a multiple of the pool's heads */
	float		scale;			/* of the scores: D^-1/2 */
	int			most_keys;		/* no row sees keys from this place on */
} AttentionPlan;

/* Columns of AttentionPlan.spans. */
enum
{
	SPAN_LIST,					/* where the row's list begins in page_lists */
	SPAN_FIRST,					/* first key it sees */
	SPAN_COUNT,					/* keys it sees; 0: the result is zero */
	SPAN_UNIFORM,				/* 1: all scores count as equal (golden README, Facts 1) */
	ATTENTION_SPAN_FIELDS
};

/* How to choose one token from a row of logits. */
typedef struct ChoiceRule
{
	bool		skipped;		/* nothing is chosen from the row; its choice stays as it was */
	float		temperature;	/* 0: the largest logit, ties to the lowest id */
	int			top_k;			/* 0: all */
	float		top_p;			/* 1: all */
	uint64_t	seed;
	uint64_t	counter;		/* which random number of the seed's sequence */
	const uint32_t *allowed;	/* host bits [V]: tokens that may be chosen; NULL: all */
	/* host [banned_count]: tokens that may not be chosen, though they count in the softmax */
	const int32_t *banned;
	int			banned_count;
	int			least_kept;		/* tokens that top_k and top_p leave at least; 0: 1 */
} ChoiceRule;

typedef struct Choice
{
	int32_t		token;
	/* of the token by the whole softmax, before temperature and filters; over the allowed tokens */
	float		log_probability;
} Choice;

/* A token of a row of logits whose log-probability is wanted. */
typedef struct ScoreTarget
{
	int32_t		row;
	int32_t		token;
} ScoreTarget;

/*
 * Attention to go back through. Rows come in groups, each with keys of its own: a sequence with
 * its tokens, or with the latents of its pictures. The spans of the plan are those of the forward
 * pass; SPAN_FIRST counts from the group's first key, and SPAN_LIST is not looked at.
 */
typedef struct AttentionGradient
{
	const AttentionPlan *plan;
	DataType	type;			/* bf16: factors of products may be rounded to it */
	int			kv_heads;
	int			head_size;		/* D */
	Tensor		groups;			/* i32 [G, ATTENTION_GROUP_FIELDS] */
	Tensor		q;				/* [R, heads D] */
	Tensor		k;				/* [keys, kv_heads D] */
	Tensor		v;				/* the same */
	Tensor		dy;				/* [R, heads D]: gradient of the attention's result */
	Tensor		dq;				/* [R, heads D]: written for the rows of groups */
	Tensor		dk;				/* [keys, kv_heads D]: written for the keys of groups; no data: */
	Tensor		dv;				/* ... gradients of keys and values are not wanted */
	void	   *scratch;		/* attention_backward_size bytes for the largest group */
} AttentionGradient;

/* Columns of AttentionGradient.groups. */
enum
{
	GROUP_FIRST_ROW,
	GROUP_ROWS,
	GROUP_FIRST_KEY,
	GROUP_KEYS,
	ATTENTION_GROUP_FIELDS
};

/* One step of AdamW (Loshchilov, Hutter 2019), its numbers worked out for the step. */
typedef struct AdamwRule
{
	float		keep;			/* 1 - learning rate * weight decay */
	float		beta1;
	float		beta2;
	float		epsilon;
	float		step_size;		/* learning rate / (1 - beta1^t) */
	float		correction;		/* sqrt(1 - beta2^t) */
} AdamwRule;

typedef struct BackendOps
{
	int			version;		/* BACKEND_VERSION */

	/* What runs: "cpu avx512 2 threads". The text lives as long as the backend. */
	const char *(*describe) (Backend *backend);
	void		(*close) (Backend *backend);
	/*
	 * False once the device failed for good. Nothing that it computes counts any more, and only a
	 * new process can use it again.
	 */
	bool		(*alive) (Backend *backend);

	/* ---- memory ---- */

	/*
	 * Bytes that a model may take now, less what the backend needs for itself; 0: the backend sets
	 * no limit (the processor).
	 */
	size_t		(*memory_room) (Backend *backend);
	bool		(*allocate) (Backend *backend, size_t bytes, void **address, Status *status);
	void		(*release) (Backend *backend, void *address);
	void		(*upload) (Backend *backend, void *to, const void *from, size_t bytes);
	void		(*download) (Backend *backend, void *to, const void *from, size_t bytes);
	bool		(*synchronize) (Backend *backend, Status *status);

	/*
	 * Stack the parts and lay them out for products in the given format, TYPE_F32, TYPE_BF16, TYPE_Q8
	 * or TYPE_Q4. A product with a bf16 weight rounds x to bf16 too, and sums in f32; one with a
	 * quantised weight quantises x to 8 bits, multiplies integers, and sums blocks of inputs in f32.
	 * STATUS_INVALID_MODEL: a number to be quantised is not finite.
	 */
	bool		(*weight_create) (Backend *backend, const WeightPart *parts, int count, int inputs,
						  DataType format, Weight *weight, Status *status);
	void		(*weight_destroy) (Backend *backend, Weight *weight);
	/*
	 * Pages for keys and values in TYPE_F32 or TYPE_BF16. Attention over a bf16 pool rounds queries
	 * and softmax weights to bf16 too; scores, softmax and sums are f32.
	 */
	bool		(*kv_create) (Backend *backend, DataType type, int layers, int pages, int heads,
							  int head_size, KvPool *pool, Status *status);
	/* Bytes of one page in all layers of such a pool. */
	size_t		(*kv_page_size) (DataType type, int layers, int heads, int head_size);
	void		(*kv_destroy) (Backend *backend, KvPool *pool);

	/* ---- products ---- */

	/* y [R, N] from x [R, K] and weight [N, K]. y and x do not overlap. */
	void		(*matmul) (Backend *backend, Tensor y, Tensor x, const Weight *weight, Epilogue epilogue);
	/*
	 * y [R, N] += scale * B (A x) for the rows of each group, x [R, K]; ranks r may differ. reduced
	 * f32 [R, the largest r or more, a multiple of 4] is scratch with rows of whole 16 bytes. y, x
	 * and reduced do not overlap, nor do groups.
	 */
	void		(*low_rank) (Backend *backend, Tensor y, Tensor x, Tensor reduced,
							 const LowRankGroup *groups, int count);

	/* ---- rows ---- */

	/* y [R, K] = table [V, K] at ids i32 [1, R]. */
	void		(*embed) (Backend *backend, Tensor y, Tensor table, Tensor ids);
	/* y [R, K] = x's rows at index i32 [1, R]. */
	void		(*gather) (Backend *backend, Tensor y, Tensor x, Tensor index);
	/*
	 * y = (x - mean) / sqrt(variance + epsilon) * weight + bias; weight, bias f32 [1, K]. y may be
	 * x.
	 */
	void		(*layer_norm) (Backend *backend, Tensor y, Tensor x, Tensor weight, Tensor bias,
					   float epsilon);
	/* y = x / sqrt(mean(x^2) + epsilon) * weight. y may be x. */
	void		(*rms_norm) (Backend *backend, Tensor y, Tensor x, Tensor weight, float epsilon);
	/* x = activation(x) in place, where something had to be added before it. */
	void		(*activate) (Backend *backend, Tensor x, Activation activation);
	/* y [R, F] = silu(gate) * up, with both in gate_up [R, 2F], gate first. */
	void		(*swiglu) (Backend *backend, Tensor y, Tensor gate_up);
	/*
	 * Rotate each of the heads of x [R, heads * D] in place, half-split form, by
	 * the angles of positions i32 [1, R]; table f32 [positions, D]: D/2 cosines, D/2 sines.
	 */
	void		(*rotary) (Backend *backend, Tensor x, int heads, Tensor positions, Tensor table);

	/* ---- attention ---- */

	/*
	 * Put keys and values [R, heads * D] at slots i32 [1, R] (page * KV_PAGE_KEYS + place) of one
	 * layer.
	 */
	void		(*kv_write) (Backend *backend, const KvPool *pool, int layer, Tensor keys, Tensor values,
					 Tensor slots);
	/* Copy one page of all layers to another. */
	void		(*kv_copy) (Backend *backend, const KvPool *pool, int from, int to);
	/* y [R, heads * D] = softmax(scale q k^T) v over each row's span of one layer. */
	void		(*attention) (Backend *backend, Tensor y, Tensor q, const KvPool *pool, int layer,
							  const AttentionPlan *plan);

	/* ---- pictures ---- */

	/*
	 * y [images * (S/P)^2, 3 P P] from pixels, one image a row: u8 [S, S, 3], which is
	 * normalised by mean and deviation of each channel (of 0..1), or f32 [3, S, S]
	 * already normalised. Patches row by row; inside, channel, row, column.
	 */
	void		(*patches) (Backend *backend, Tensor y, Tensor pixels, int image_size, int patch_size,
					const float mean[3], const float deviation[3]);
	/*
	 * y [images * (1 + P), W] = class token in front of each image's P embedded patches, plus
	 * positions [1 + P, W].
	 */
	void		(*vision_tokens) (Backend *backend, Tensor y, Tensor patches, Tensor class_token,
						  Tensor positions);

	/* ---- steps that come again ---- */

	/*
	 * Begin the operations of a step that are the same, with the same tensors, whenever the key is:
	 * only what was uploaded before differs. True: the backend has recorded them, and has begun to run
	 * its record; the caller leaves them out, and step_end too. Between the two calls nothing is
	 * allocated, uploaded or waited for.
	 */
	bool		(*step_begin) (Backend *backend, const void *key, size_t key_bytes);
	void		(*step_end) (Backend *backend);

	/* ---- the end of a step ---- */

	/* A choice for each row of logits f32 [R, V] into host memory. Waits for the device. */
	void		(*choose) (Backend *backend, Tensor logits, const ChoiceRule *rules, Choice *choices);
	/*
	 * The count most likely tokens of each row, most likely first, ties by id, into choices
	 * [R, count]; token -1 where there are fewer. Of the rules only allowed and banned count. Waits.
	 */
	void		(*best) (Backend *backend, Tensor logits, const ChoiceRule *rules, int count,
						 Choice *choices);
	/*
	 * The logarithm of the softmax over all tokens of logits f32 [R, V], at the targets, into
	 * host memory [count]. Targets are in order of rows; any number of them may share one. Waits.
	 */
	void		(*score) (Backend *backend, Tensor logits, const ScoreTarget *targets, int count,
						  float *log_probabilities);

	/*
	 * ---- training: gradients of the operations that LoRA's gradients pass through ----
	 *
	 * dx is the gradient of the loss for x. All of f32; sums over rows go in the rows' order.
	 */

	/* y = x, of the same shape. */
	void		(*copy) (Backend *backend, Tensor y, Tensor x);
	/* x = factor * x; a factor of 0 clears whatever x held. */
	void		(*scale) (Backend *backend, Tensor x, float factor);
	/* y's rows at index i32 [1, R] = x [R, K]; no row comes twice. */
	void		(*scatter) (Backend *backend, Tensor y, Tensor x, Tensor index);
	/*
	 * dx [R, K] = [dx +] factor * dy [R, N] W: through matmul, from the very same packed weight
	 * [N, K]. With a bf16 or quantised weight the product is one of bf16: dy and the weight's values
	 * are rounded.
	 */
	void		(*matmul_backward) (Backend *backend, Tensor dx, Tensor dy, const Weight *weight,
						   float factor, bool accumulate);
	/*
	 * sum [M, N] += a^T b with a [R, M], b [R, N]: the gradient of a weight. Each element is one
	 * chain of multiply-adds over the rows that begins with what sum holds, so the rows may come
	 * in one call or in many.
	 */
	void		(*add_product) (Backend *backend, Tensor sum, Tensor a, Tensor b);
	/* Give an f32 weight [N, K] new values, f32 [N, K] or, transposed, [K, N] on the device. */
	void		(*weight_update) (Backend *backend, Weight *weight, Tensor values, bool transposed);
	/* dx += gradient of layer_norm at x for dy; weight f32 [1, K]. */
	void		(*layer_norm_backward) (Backend *backend, Tensor dx, Tensor dy, Tensor x,
							   Tensor weight, float epsilon);
	/* dx += gradient of rms_norm at x for dy. */
	void		(*rms_norm_backward) (Backend *backend, Tensor dx, Tensor dy, Tensor x,
							 Tensor weight, float epsilon);
	/* dx = activation'(x) * dx in place; ACTIVATION_GELU only. */
	void		(*activate_backward) (Backend *backend, Tensor dx, Tensor x, Activation activation);
	/* d_gate_up [R, 2F] = gradient of swiglu at gate_up for dy [R, F]. */
	void		(*swiglu_backward) (Backend *backend, Tensor d_gate_up, Tensor dy, Tensor gate_up);
	/* Rotate gradients back, in place: rotary with the angles' signs turned. */
	void		(*rotary_backward) (Backend *backend, Tensor dx, int heads, Tensor positions,
						   Tensor table);
	/* Bytes of scratch that attention_backward needs for groups of at most `keys` keys. */
	size_t		(*attention_backward_size) (Backend *backend, int keys, int head_size);
	/* dq, dk, dv of attention; see AttentionGradient. */
	void		(*attention_backward) (Backend *backend, const AttentionGradient *gradient);
	/*
	 * losses f32 [1, R] = -log softmax(logits [R, V]) at targets i32 [1, R]; and logits become
	 * their gradient, weights f32 [1, R] times (softmax - target).
	 */
	void		(*cross_entropy) (Backend *backend, Tensor logits, Tensor losses, Tensor targets,
						 Tensor weights);
	/* sums f32 [1, R] = the sum of squares of each row of x. */
	void		(*square_sums) (Backend *backend, Tensor sums, Tensor x);
	/* One step of AdamW; all of one shape: values, their gradient and its two running means. */
	void		(*adamw) (Backend *backend, Tensor values, Tensor gradient, Tensor mean,
					  Tensor square, const AdamwRule *rule);
} BackendOps;

struct Backend
{
	const BackendOps *ops;
};

typedef struct CpuOptions
{
	int			threads;		/* 0: all cores this process may use */
	/* NULL or "auto": the best; "portable", "avx2", "avx512", "avx512vnni", "avx512bf16" */
	const char *instruction_set;
} CpuOptions;

/*
 * Open the backend of the processor. STATUS_NOT_SUPPORTED names an instruction set that the machine
 * lacks.
 */
extern Backend *backend_open_cpu(const CpuOptions *options, Status *status);

typedef struct DeviceOptions
{
	/* "cuda" or "cuda:N", "cpu"; NULL and "auto": the first CUDA device where there is one */
	const char *device;
	/*
	 * CUDA devices may choose how to multiply by the number of rows, which is faster; an answer then
	 * depends, by rounding, on what is computed beside it.
	 */
	bool		any_order;
	CpuOptions	cpu;			/* where that is the processor */
} DeviceOptions;

/*
 * Open the CUDA device that the options mean. *backend is NULL after success when the processor is
 * meant. STATUS_NOT_SUPPORTED: the library mmgpt_cuda.so is missing beside the program, of another
 * version, or finds no such device; STATUS_USAGE: device is none of the above. (backend_load.c)
 */
extern bool backend_open_cuda(const DeviceOptions *options, Backend **backend, Status *status);

/* Open the backend of a device. */
extern Backend *backend_open(const DeviceOptions *options, Status *status);

#endif
