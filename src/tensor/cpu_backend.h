/*
 * cpu_backend.h - what the files of the processor's backend share.
 */
#ifndef MMGPT_CPU_BACKEND_H
#define MMGPT_CPU_BACKEND_H

#include "backend.h"
#include "kernels.h"
#include "thread_pool.h"

/*
 * Rows whose sums a thread keeps while a panel of weights goes by; a multiple of every tile_rows.
 */
#define MATMUL_ROW_BLOCK 96
/* Rows of a product that are rounded before they are multiplied; the next ones follow. */
#define MATMUL_ROUNDED_ROWS (4 * MATMUL_ROW_BLOCK)
/* Widest panel of any kernel set. */
#define MATMUL_MAX_PANEL 64

/*
 * Training: steps along the outputs whose turned weights a thread keeps, a multiple of every panel,
 * and rows of a task. 512 * 64 * 4 bytes of weights and 384 * 64 * 4 bytes of sums stay in the
 * second-level cache.
 */
#define BACKWARD_STEPS 512
#define BACKWARD_ROW_BLOCK MATMUL_ROUNDED_ROWS
/* Floats of both for a thread. */
#define BACKWARD_SCRATCH ((BACKWARD_STEPS + BACKWARD_ROW_BLOCK) * MATMUL_MAX_PANEL)

/* Below this many multiply-adds, or the like, waking other threads costs more than it saves. */
#define SMALL_WORK 32768.0

typedef struct CpuBackend
{
	Backend		base;
	ThreadPool *pool;
	const Kernels *kernels;
	float	   *sums;			/* [threads, MATMUL_ROW_BLOCK * MATMUL_MAX_PANEL] */

	/* Grown when weights and pools in bf16 are made, so that products find them large enough. */
	/* x of a product by round_row or quantize_row, or dy on its way back: [MATMUL_ROUNDED_ROWS, ..] */
	void	   *rounded;
	size_t		rounded_size;
	void	   *queries;		/* of attention, for each thread: ATTEND_SCRATCH */
	size_t		queries_size;

	float	   *backward;		/* [threads, BACKWARD_SCRATCH] */
	char		description[64];
} CpuBackend;

/* Run tasks on the pool, or here when all of them together are small. */
extern void cpu_run(CpuBackend *cpu, TaskFunction function, void *argument, int tasks, double work);

/* Make a buffer of the backend at least so large; what it held is lost. */
extern bool cpu_grow(Backend *backend, void **buffer, size_t *size, size_t need, Status *status);

/* Row r of an f32 tensor. */
static inline float *
cpu_row(Tensor tensor, int r)
{
	return (float *) tensor.data + (size_t) r * (size_t) tensor.stride;
}

/* Ask for elements [column, column + columns) of some rows, which will be written soon. */
static inline __attribute__((always_inline)) void
cpu_expect_rows(Tensor y, int first_row, int rows, int column, int columns)
{
	for (int r = first_row; r < first_row + rows; r++)
		for (int i = 0; i < columns; i += CACHE_LINE / (int) sizeof(float))
			__builtin_prefetch(cpu_row(y, r) + column + i, 1);
}

/* Words of 32 bits along a depth of a packed weight, f32 or bf16: each an f32, or two bf16. */
static inline size_t
cpu_weight_steps(DataType format, int depth)
{
	return format == TYPE_BF16 ? ((size_t) depth + 1) / 2 : (size_t) depth;
}

/*
 * Steps from one rounded row to the next: an odd number of cache lines. Rows that lie a power of
 * two apart would share a few places of a cache.
 */
static inline size_t
cpu_rounded_stride(int steps)
{
	size_t		line = CACHE_LINE / sizeof(uint32_t);

	return (((size_t) steps + line - 1) / line | 1) * line;
}

/* Bytes of a block of inputs of one panel of a quantised weight, see kernels_quantized.h. */
static inline size_t
cpu_quantized_block_bytes(DataType format, int panel)
{
	return (size_t) panel * (sizeof(uint16_t) + (size_t) quantized_row_bytes(format, QUANTIZED_BLOCK));
}

/* cpu_weight.c */
extern bool cpu_weight_create(Backend *backend, const WeightPart *parts, int count, int inputs,
							  DataType format, Weight *weight, Status *status);
extern void cpu_weight_destroy(Backend *backend, Weight *weight);

/* cpu_matmul.c */
extern void cpu_matmul(Backend *backend, Tensor y, Tensor x, const Weight *weight,
					   Epilogue epilogue);
extern void cpu_low_rank(Backend *backend, Tensor y, Tensor x, Tensor reduced,
						 const LowRankGroup *groups, int count);

/* cpu_attention.c */
extern bool cpu_kv_create(Backend *backend, DataType type, int layers, int pages, int heads,
						  int head_size, KvPool *pool, Status *status);
extern size_t cpu_kv_page_size(DataType type, int layers, int heads, int head_size);
extern void cpu_kv_destroy(Backend *backend, KvPool *pool);
extern void cpu_kv_write(Backend *backend, const KvPool *pool, int layer, Tensor keys,
						 Tensor values, Tensor slots);
extern void cpu_kv_copy(Backend *backend, const KvPool *pool, int from, int to);
extern void cpu_attention(Backend *backend, Tensor y, Tensor q, const KvPool *pool, int layer,
						  const AttentionPlan *plan);

/* cpu_rows.c */
extern void cpu_embed(Backend *backend, Tensor y, Tensor table, Tensor ids);
extern void cpu_gather(Backend *backend, Tensor y, Tensor x, Tensor index);
extern void cpu_layer_norm(Backend *backend, Tensor y, Tensor x, Tensor weight, Tensor bias,
						   float epsilon);
extern void cpu_rms_norm(Backend *backend, Tensor y, Tensor x, Tensor weight, float epsilon);
extern void cpu_activate(Backend *backend, Tensor x, Activation activation);
extern void cpu_swiglu(Backend *backend, Tensor y, Tensor gate_up);
extern void cpu_rotary(Backend *backend, Tensor x, int heads, Tensor positions, Tensor table);
extern void cpu_patches(Backend *backend, Tensor y, Tensor pixels, int image_size, int patch_size,
						const float mean[3], const float deviation[3]);
extern void cpu_vision_tokens(Backend *backend, Tensor y, Tensor patches, Tensor class_token,
							  Tensor positions);

/* cpu_choose.c */
extern void cpu_choose(Backend *backend, Tensor logits, const ChoiceRule *rules, Choice *choices);
extern void cpu_best(Backend *backend, Tensor logits, const ChoiceRule *rules, int count,
					 Choice *choices);
extern void cpu_score(Backend *backend, Tensor logits, const ScoreTarget *targets, int count,
					  float *log_probabilities);

/* cpu_backward.c */
extern void cpu_copy_tensor(Backend *backend, Tensor y, Tensor x);
extern void cpu_scale(Backend *backend, Tensor x, float factor);
extern void cpu_scatter(Backend *backend, Tensor y, Tensor x, Tensor index);
extern void cpu_matmul_backward(Backend *backend, Tensor dx, Tensor dy, const Weight *weight,
								float factor, bool accumulate);
extern void cpu_add_product(Backend *backend, Tensor sum, Tensor a, Tensor b);
extern void cpu_weight_update(Backend *backend, Weight *weight, Tensor values, bool transposed);
extern void cpu_layer_norm_backward(Backend *backend, Tensor dx, Tensor dy, Tensor x,
									Tensor weight, float epsilon);
extern void cpu_rms_norm_backward(Backend *backend, Tensor dx, Tensor dy, Tensor x, Tensor weight,
								  float epsilon);
extern void cpu_activate_backward(Backend *backend, Tensor dx, Tensor x, Activation activation);
extern void cpu_swiglu_backward(Backend *backend, Tensor d_gate_up, Tensor dy, Tensor gate_up);
extern void cpu_rotary_backward(Backend *backend, Tensor dx, int heads, Tensor positions,
								Tensor table);
extern void cpu_cross_entropy(Backend *backend, Tensor logits, Tensor losses, Tensor targets,
							  Tensor weights);
extern void cpu_square_sums(Backend *backend, Tensor sums, Tensor x);
extern void cpu_adamw(Backend *backend, Tensor values, Tensor gradient, Tensor mean, Tensor square,
					  const AdamwRule *rule);

/* cpu_attention_backward.c */
extern size_t cpu_attention_backward_size(Backend *backend, int keys, int head_size);
extern void cpu_attention_backward(Backend *backend, const AttentionGradient *gradient);

#endif
