/*
 * cuda_backend.h - what the files of the CUDA library share.
 *
 * All work goes into one stream in the order of the calls, and nothing waits but synchronize,
 * download and the operations that read logits. An error of the device is remembered in `error`;
 * the next synchronize tells it. One thread at a time uses a backend.
 */
#ifndef MMGPT_CUDA_BACKEND_H
#define MMGPT_CUDA_BACKEND_H

#include "cublas.h"
#include "kernel.h"

extern "C"
{
#include "backend.h"
#include "cuda_library.h"
#include "quantize.h"
}

/* Bytes of each of the two halves of the pinned buffer that uploads go through. */
#define STAGING_BYTES ((size_t) 8 << 20)

/* Device memory of the backend's own that grows when it has to. */
typedef struct CudaScratch
{
	void	   *data;
	size_t		bytes;
} CudaScratch;

/* Steps that are remembered; the one that was not used for longest goes. */
#define MOST_STEPS 96

/* A step that came before. */
typedef struct StepRecord
{
	void	   *key;			/* on the heap; NULL: the place is free */
	size_t		key_bytes;
	cudaGraphExec_t graph;		/* NULL: not recorded yet */
	uint64_t	last_use;
} StepRecord;

typedef struct CudaBackend
{
	Backend		base;
	int			device;
	cudaStream_t stream;
	cudaError_t error;			/* the first one since the last synchronize */
	cublasStatus_t cublas_error;
	bool		any_order;		/* as in DeviceOptions */
	bool		lost;			/* an error that only a new process ends */

	/* Uploads are copied to one half while the device reads the other. */
	char	   *staging;		/* pinned, two halves */
	cudaEvent_t staging_read[2];	/* the half has been read */
	int			half;
	size_t		half_used;

	char	   *landing;		/* pinned, STAGING_BYTES: downloads arrive here */

	CublasLt	cublas;
	cublasLtHandle_t handle;
	void	   *workspace;		/* of cuBLASLt */

	CudaScratch rounded;		/* x of a product, rounded or quantised */
	CudaScratch values;			/* quantised weights as bf16 */
	CudaScratch sums;			/* of a product whose activation is added to y */
	CudaScratch reading;		/* what choose, best and score need */
	CudaScratch statistics;		/* of rows, for the gradient of attention */
	CudaScratch products;		/* of cuBLASLt, where y does not lie well */
	CudaScratch pieces;			/* of attention */

	StepRecord	steps[MOST_STEPS];
	StepRecord *recording;		/* one of them, or NULL */
	uint64_t	step_count;
	bool		records_nothing;	/* a record failed */

	int			multiprocessors;
	char		description[320];
} CudaBackend;

/* Rows of a product that are rounded or quantised before they are multiplied; the next ones follow. */
#define PASS_ROWS 8192

/* Outputs of a quantised weight that are turned into bf16 at a time. */
#define DEQUANTIZED_OUTPUTS 4096

/* Sizes of cuBLASLt's products are multiples of this: vectors of bf16. */
#define PRODUCT_UNIT 8

static inline int
product_size(int size)
{
	return (size + PRODUCT_UNIT - 1) / PRODUCT_UNIT * PRODUCT_UNIT;
}

/* Rows of quantised weights, and of x for them, are padded to whole steps of so many inputs. */
#define QUANTIZED_STEP 128

/*
 * Where the code of an input lies in its row. A tensor core wants eight inputs of each block in
 * each of four lanes; a vector of 16 bytes is all that one lane needs of two blocks in 8 bits, or
 * of four in 4 bits. In 8 bits, the byte:
 */
__host__ __device__ static inline int64_t
place_of_q8(int64_t input)
{
	return input / 64 * 64 + input % 32 / 8 * 16 + input % 64 / 32 * 8 + input % 8;
}

/*
 * In 4 bits, the byte with the code, plus 8, of this input in the low half or, from the fifth of
 * each eight inputs on, in the high half.
 */
__host__ __device__ static inline int64_t
place_of_q4(int64_t input)
{
	return input / 128 * 64 + input % 32 / 8 * 16 + input % 128 / 32 * 4 + input % 4;
}

/* A weight on the device; Weight.data points to it. N here is product_size of its outputs. */
typedef struct CudaWeight
{
	/* [N, stride]: f32, bf16, or codes where place_of_q8 and place_of_q4 say */
	void	   *values;
	uint16_t   *scales;			/* q8, q4: bf16 [N, stride / QUANTIZED_BLOCK] */
	int64_t		stride;			/* inputs from row to row, zeros behind the last */
	/* for any number of rows; forward of bf16 only, backward of quantised values as bf16 */
	cublasLtMatmulAlgo_t forward;
	cublasLtMatmulAlgo_t backward;
} CudaWeight;

/* The backend, with its device made the calling thread's. */
extern CudaBackend *cuda_use(Backend *backend);

/* Remember an error of the runtime; false if it is one. */
extern bool cuda_note(CudaBackend *cuda, cudaError_t error);

/* Device memory of at least so many bytes; NULL, and the error remembered, when there is none. */
extern void *cuda_scratch(CudaBackend *cuda, CudaScratch *scratch, size_t bytes);

static inline Rows
cuda_rows(Tensor tensor)
{
	return Rows{static_cast<float *>(tensor.data), tensor.rows, tensor.columns, tensor.stride};
}

/* ---- grids of elements: a thread each, a row of blocks for each row ---- */

/* Call launch(first row, rows) for ranges of rows that one grid may have. */
template <typename Launch>
static inline void
for_row_ranges(int rows, Launch launch)
{
	for (int first = 0; first < rows; first += MOST_GRID_ROWS)
		launch(first, rows - first < MOST_GRID_ROWS ? rows - first : MOST_GRID_ROWS);
}

static inline dim3
element_grid(int64_t columns, int rows)
{
	return dim3(blocks_for(columns, ROW_THREADS), static_cast<unsigned>(rows));
}

template <typename Element>
__global__ static void
element_kernel(Element element, int first_row, int columns)
{
	int			column = own_column();

	if (column < columns)
		element(first_row + static_cast<int64_t>(blockIdx.y), column);
}

/* Run element(row, column), a device lambda that takes what it needs by value, for each element. */
template <typename Element>
static inline void
for_each_element(CudaBackend *cuda, int rows, int columns, Element element)
{
	for_row_ranges(rows, [&](int first, int count) {
		LAUNCH(element_kernel<Element>, element_grid(columns, count), ROW_THREADS, 0,
			   cuda->stream, element, first, columns);
	});
}

/* memory.cu */
extern bool cuda_memory_begin(CudaBackend *cuda, Status *status);
extern void cuda_memory_end(CudaBackend *cuda);
extern bool cuda_alive(Backend *backend);
extern size_t cuda_memory_room(Backend *backend);
extern bool cuda_allocate(Backend *backend, size_t bytes, void **address, Status *status);
extern void cuda_release(Backend *backend, void *address);
extern void cuda_upload(Backend *backend, void *to, const void *from, size_t bytes);
extern void cuda_download(Backend *backend, void *to, const void *from, size_t bytes);
extern bool cuda_synchronize(Backend *backend, Status *status);

/* step_record.cu */
extern bool cuda_step_begin(Backend *backend, const void *key, size_t key_bytes);
extern void cuda_step_end(Backend *backend);
/* Forget all records: memory that they use is given back or moves. */
extern void cuda_forget_steps(CudaBackend *cuda);

/* weight.cu */
extern bool cuda_weight_create(Backend *backend, const WeightPart *parts, int count, int inputs,
							   DataType format, Weight *weight, Status *status);
extern void cuda_weight_destroy(Backend *backend, Weight *weight);
extern void cuda_weight_update(Backend *backend, Weight *weight, Tensor values, bool transposed);
/*
 * Outputs [first, first + count) of a quantised weight as bf16 [product_size(count), stride]; NULL:
 * no memory.
 */
extern uint16_t *cuda_weight_as_bf16(CudaBackend *cuda, const Weight *weight, int first, int count);

/* cublas_product.cu */
/*
 * y [R, M] = factor * x [R, D] a + beta * y, a [D, M] or, transposed, [M, D]; x and a bf16. D is a
 * multiple of PRODUCT_UNIT, a may be read up to the next one from M on; x and a, and their rows,
 * begin at multiples of 16 bytes.
 */
typedef struct CublasProduct
{
	Tensor		y;
	const uint16_t *x;			/* [R, x_stride] */
	int64_t		x_stride;
	const uint16_t *a;
	int64_t		a_stride;
	bool		a_transposed;
	int			depth;			/* D */
	float		factor;
	float		beta;
	const cublasLtMatmulAlgo_t *algorithm;
} CublasProduct;

extern bool cublas_begin(CudaBackend *cuda, Status *status);
extern void cublas_end(CudaBackend *cuda);
extern void cublas_multiply(CudaBackend *cuda, const CublasProduct *product);
/* The algorithm for all products with a weight of this shape. */
extern bool cublas_pin(CudaBackend *cuda, int outputs, int depth, int64_t a_stride,
					   bool a_transposed, cublasLtMatmulAlgo_t *algorithm, Status *status);

/* matmul.cu */
/*
 * x rounded to bf16 [R, stride], zeros behind its columns; valid until the next product. NULL: no
 * memory.
 */
extern uint16_t *cuda_round_rows(CudaBackend *cuda, Tensor x, int64_t stride);
extern void cuda_matmul(Backend *backend, Tensor y, Tensor x, const Weight *weight,
						Epilogue epilogue);

/* lora.cu */
extern void cuda_low_rank(Backend *backend, Tensor y, Tensor x, Tensor reduced,
						  const LowRankGroup *groups, int count);
/* quantized_product.cu */
extern bool cuda_quantized_begin(CudaBackend *cuda, Status *status);
/* cuda_matmul for a weight in 8 or 4 bits and a limited number of rows. */
extern void cuda_quantized_product(CudaBackend *cuda, Tensor y, Tensor x, const Weight *weight,
								   const Epilogue *epilogue);

/* rows.cu */
extern void cuda_embed(Backend *backend, Tensor y, Tensor table, Tensor ids);
extern void cuda_gather(Backend *backend, Tensor y, Tensor x, Tensor index);
extern void cuda_layer_norm(Backend *backend, Tensor y, Tensor x, Tensor weight, Tensor bias,
							float epsilon);
extern void cuda_rms_norm(Backend *backend, Tensor y, Tensor x, Tensor weight, float epsilon);
extern void cuda_activate(Backend *backend, Tensor x, Activation activation);
extern void cuda_swiglu(Backend *backend, Tensor y, Tensor gate_up);
extern void cuda_rotary(Backend *backend, Tensor x, int heads, Tensor positions, Tensor table);
extern void cuda_rotary_backward(Backend *backend, Tensor dx, int heads, Tensor positions,
								 Tensor table);
extern void cuda_patches(Backend *backend, Tensor y, Tensor pixels, int image_size, int patch_size,
						 const float mean[3], const float deviation[3]);
extern void cuda_vision_tokens(Backend *backend, Tensor y, Tensor patches, Tensor class_token,
							   Tensor positions);
extern void cuda_copy(Backend *backend, Tensor y, Tensor x);
extern void cuda_scale(Backend *backend, Tensor x, float factor);
extern void cuda_scatter(Backend *backend, Tensor y, Tensor x, Tensor index);

/* kv_pages.cu */
extern bool cuda_kv_create(Backend *backend, DataType type, int layers, int pages, int heads,
						   int head_size, KvPool *pool, Status *status);
extern size_t cuda_kv_page_size(DataType type, int layers, int heads, int head_size);
extern void cuda_kv_destroy(Backend *backend, KvPool *pool);
extern void cuda_kv_write(Backend *backend, const KvPool *pool, int layer, Tensor keys,
						  Tensor values, Tensor slots);
extern void cuda_kv_copy(Backend *backend, const KvPool *pool, int from, int to);

/* attention.cu */
extern void cuda_attention(Backend *backend, Tensor y, Tensor q, const KvPool *pool, int layer,
						   const AttentionPlan *plan);

/* choose.cu */
extern void cuda_choose(Backend *backend, Tensor logits, const ChoiceRule *rules, Choice *choices);
extern void cuda_best(Backend *backend, Tensor logits, const ChoiceRule *rules, int count,
					  Choice *choices);
extern void cuda_score(Backend *backend, Tensor logits, const ScoreTarget *targets, int count,
					   float *log_probabilities);

/* backward.cu */
extern void cuda_matmul_backward(Backend *backend, Tensor dx, Tensor dy, const Weight *weight,
								 float factor, bool accumulate);
extern void cuda_add_product(Backend *backend, Tensor sum, Tensor a, Tensor b);
extern void cuda_layer_norm_backward(Backend *backend, Tensor dx, Tensor dy, Tensor x,
									 Tensor weight, float epsilon);
extern void cuda_rms_norm_backward(Backend *backend, Tensor dx, Tensor dy, Tensor x,
								   Tensor weight, float epsilon);
extern void cuda_activate_backward(Backend *backend, Tensor dx, Tensor x, Activation activation);
extern void cuda_swiglu_backward(Backend *backend, Tensor d_gate_up, Tensor dy, Tensor gate_up);
extern void cuda_cross_entropy(Backend *backend, Tensor logits, Tensor losses, Tensor targets,
							   Tensor weights);
extern void cuda_square_sums(Backend *backend, Tensor sums, Tensor x);
extern void cuda_adamw(Backend *backend, Tensor values, Tensor gradient, Tensor mean,
					   Tensor square, const AdamwRule *rule);

/* attention_backward.cu */
extern size_t cuda_attention_backward_size(Backend *backend, int keys, int head_size);
extern void cuda_attention_backward(Backend *backend, const AttentionGradient *gradient);

#endif
