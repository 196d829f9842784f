/*
 * model.h - a MultiModal-GPT that is open: the front of src/model.
 *
 * Callers see images go in and choices come out, never a tensor. A model is
 * driven by one thread at a time. The life of an answer:
 *
 *	model_encode_images		pixels -> Media: the latents of each picture
 *	sequence_open			an empty sequence that may look at a Media
 *	model_step				computes any number of new tokens of any number of
 *							sequences at once (a ragged batch)
 *	model_choose			the next token of the rows whose logits were asked for
 *	sequence_close, media_release
 *
 * Sequences of all users go through the same model_step; the numbers of one
 * never depend on which others were there.
 */
#ifndef MMGPT_MODEL_H
#define MMGPT_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend.h"
#include "digest.h"
#include "model_config.h"
#include "status.h"

typedef struct Model Model;
typedef struct Media Media;			/* encoded pictures of one request */
typedef struct Sequence Sequence;	/* tokens with their cached keys and values */
typedef struct Adapter Adapter;		/* LoRA matrices on the device */

/*
 * The format of products and of cached keys and values. f32: everything is f32. bf16: both operands
 * of a product are rounded to bf16, and so are keys and values; all else is f32. q8, q4: the weights
 * have 8 or 4 bits and a scale for each block of inputs, the other operand is rounded to 8 bits in
 * the same blocks, keys and values are bf16.
 */
typedef enum WeightFormat
{
	/* as quantised; else bf16 if most parameters are stored in 16 bits, else f32 */
	WEIGHTS_STORED,
	WEIGHTS_F32,
	WEIGHTS_BF16,
	WEIGHTS_Q8,
	WEIGHTS_Q4
} WeightFormat;

/* By its name, in lower case; NULL means stored. STATUS_USAGE for other names. */
extern bool weight_format_read(const char *name, WeightFormat *format, Status *status);

typedef struct ModelOptions
{
	WeightFormat weights;
	int			attend_previous;	/* -1: as config.json says; 0, 1: overridden */
	int			max_step_tokens;	/* most new tokens of one model_step; 0: 512 */
	int			max_step_logits;	/* most rows with logits of one model_step; 0: 64 */
	int			max_images;			/* most pictures of one model_encode_images; 0: 4 */
	/*
	 * Bytes of everything on the device: the keys and values of sequences take what the rest
	 * leaves. 0: they get 32 whole contexts, at most 1 GB.
	 */
	size_t		memory_limit;
	/* without memory_limit: tokens that they have room for in any case; 0: one context */
	int			cache_tokens;
	size_t		adapter_bytes;		/* of memory_limit, set aside for adapters */
	/* set a quarter of what memory_limit leaves beside one context aside for a training */
	bool		training;
	/* of keys and values of pictures; 0: enough for 64 pictures, at most 512 MB */
	size_t		media_bytes;
	/* NULL: none; called while weights are packed */
	void		(*progress) (void *argument, double fraction);
	void	   *argument;
	/* set by another thread: give up loading (STATUS_CANCELLED); NULL: never */
	const volatile bool *cancel;
} ModelOptions;

/*
 * Open a model directory: config.json and *.safetensors, mapped into memory and
 * checked tensor by tensor (STATUS_INVALID_MODEL names file and tensor). The tokenizer is not
 * needed here.
 */
extern Model *model_open(const char *directory, Backend *backend, const ModelOptions *options,
						 Status *status);

/*
 * A model of this shape whose weights are random numbers, for measuring; "as stored" is bf16. What
 * the config points to must outlive it.
 */
extern Model *model_open_random(const ModelConfig *config, Backend *backend,
								const ModelOptions *options, Status *status);
extern void model_close(Model *model);

/* How a model is quantised. */
typedef struct QuantizeOptions
{
	WeightFormat format;		/* WEIGHTS_Q8 or WEIGHTS_Q4 */
	int			threads;		/* 0: all cores this process may use */
	/* NULL: none; called while tensors are written */
	void		(*progress) (void *argument, double fraction);
	void	   *argument;
} QuantizeOptions;

/*
 * Write a model directory whose matrices are quantised: config.json, tokenizer.model and one
 * model.safetensors, in a directory that is made or holds no model yet. The form is described in
 * MODEL.md. STATUS_INVALID_MODEL names the tensor that can't be quantised.
 */
extern bool model_quantize(const char *directory, const char *output,
						   const QuantizeOptions *options, Status *status);

extern const ModelConfig *model_config(const Model *model);

/* What the model computes in: TYPE_F32, TYPE_BF16, TYPE_Q8 or TYPE_Q4. */
extern DataType model_format(const Model *model);

/*
 * SHA-256 over config.json, tokenizer.model, and of each safetensors file its header, size and
 * samples of its data.
 */
extern const char *model_digest(const Model *model);	/* 64 hexadecimal digits */

typedef struct ModelDescription
{
	uint64_t	parameters_vision;
	uint64_t	parameters_resampler;
	uint64_t	parameters_cross_attention;
	uint64_t	parameters_decoder;		/* embedding and output matrix included */
	size_t		weight_bytes;			/* on the device */
	size_t		cache_bytes;			/* keys and values of sequences */
	size_t		media_bytes;
	size_t		workspace_bytes;
	size_t		training_bytes;			/* set aside for a training; 0: no memory limit, or none */
	int			cache_pages;
	int			media_pictures;			/* that fit */
} ModelDescription;

extern void model_describe(const Model *model, ModelDescription *description);

/* ---- adapters ---- */

/* Read a PEFT directory (adapter_config.json, adapter_model.safetensors). */
extern Adapter *adapter_open(Model *model, const char *directory, Status *status);
extern void adapter_close(Model *model, Adapter *adapter);

/* PEFT's two files in memory. */
typedef struct AdapterContent
{
	const char *config;			/* adapter_config.json */
	size_t		config_length;
	const uint8_t *tensors;		/* adapter_model.safetensors */
	size_t		tensors_length;
} AdapterContent;

/* What an adapter consists of. */
typedef struct AdapterDescription
{
	int			rank;
	double		alpha;
	uint64_t	parameters;
	unsigned	targets;		/* bits, by adapter_target_name */
} AdapterDescription;

/* SHA-256 of both files. */
extern void adapter_content_digest(const AdapterContent *content, uint8_t digest[DIGEST_SIZE]);

/*
 * Check files against the model without bringing them to the device; may run beside the model's
 * thread. STATUS_INVALID_MODEL or STATUS_NOT_SUPPORTED names the key of the config, or the tensor.
 */
extern bool adapter_check_content(const Model *model, const AdapterContent *content,
								  AdapterDescription *description, Status *status);

/* Bring the files' adapter to the device, after the same checks but that of the numbers. */
extern Adapter *adapter_open_content(Model *model, const AdapterContent *content, Status *status);

/* The name of the target of bit i of AdapterDescription.targets; NULL past the last. */
extern const char *adapter_target_name(int i);

/*
 * What identifies an adapter: the SHA-256 of its files, or of a directory's as of a model's;
 * zeros for NULL, and for one that does not come from files, which no cache may be asked about.
 * Caches compare this rather than addresses, which come back.
 */
extern void adapter_identity(const Adapter *adapter, uint8_t digest[DIGEST_SIZE]);

/* Bytes on the device. */
extern size_t adapter_bytes(const Adapter *adapter);

/*
 * Whether encoded pictures differ with the adapter: the encoder never does, but LoRA on to_kv
 * changes the keys and values that the gated blocks make of its latents.
 */
extern bool adapter_changes_pictures(const Adapter *adapter);

/* ---- pictures ---- */

/* One picture: pixels u8 [S, S, 3], or normalised f32 [3, S, S]. Exactly one pointer is set. */
typedef struct Picture
{
	const uint8_t *pixels;
	const float *normalised;
} Picture;

/* Room for this many more pictures, whether of one request or of several? */
extern bool media_has_room(const Model *model, int pictures);

/*
 * Encode pictures for several requests at once. Request r has counts[r] pictures, the
 * next ones in order; adapters[r] may be NULL; medias[r] receives its Media. The sum
 * of counts is at most max_images of the options (more: STATUS_INTERNAL). Fails with
 * STATUS_OUT_OF_MEMORY when there is no room; then no Media was made.
 */
extern bool model_encode_images(Model *model, int requests, const int *counts,
								Adapter *const *adapters, const Picture *pictures, Media **medias,
								Status *status);
extern void media_release(Model *model, Media *media);

/* ---- sequences ---- */

/*
 * Begin a sequence; media NULL: language only (gated blocks are skipped). The Media and the
 * adapter must outlive it. ids of the whole prompt are given because in the "following"
 * mode a token's image depends on the marks after it; they are copied.
 */
extern Sequence *sequence_open(Model *model, Media *media, Adapter *adapter, const int32_t *ids,
							   int count, Status *status);
extern void sequence_close(Model *model, Sequence *sequence);

/*
 * A second sequence with the same tokens so far. Full pages are shared; the last one, if it
 * is not full, is copied into a page of its own (STATUS_OUT_OF_MEMORY when none is free).
 */
extern Sequence *sequence_fork(Model *model, const Sequence *sequence, Status *status);

/*
 * Let an empty sequence begin with the first tokens that another one has computed, as far as
 * they attend to the same pictures; the tokens must be the same. Full pages are shared, a last
 * part of a page is copied if a page is free. Returns the tokens that it now has.
 */
extern int	sequence_adopt(Model *model, Sequence *sequence, const Sequence *from, int tokens);

/* Tokens whose keys and values are cached, that is computed by model_step. */
extern int	sequence_length(const Sequence *sequence);

/* Free pages of the cache, and the pages that a sequence of this many tokens needs. */
extern int	model_free_pages(const Model *model);
extern int	model_pages_for(const Model *model, int tokens);

/*
 * Take now the pages that the sequence needs for this many tokens in all; false
 * (STATUS_OUT_OF_MEMORY) leaves it as it was.
 */
extern bool sequence_reserve(Model *model, Sequence *sequence, int tokens, Status *status);

/* Give back pages past the first tokens (computed tokens beyond are forgotten). */
extern void sequence_truncate(Model *model, Sequence *sequence, int tokens);

/* ---- steps ---- */

/* New tokens of one sequence, following those computed already. */
typedef struct StepItem
{
	Sequence   *sequence;
	const int32_t *ids;			/* [count] */
	int			count;
	int			logits;			/* the last `logits` of these tokens get logits, 0 .. count */
} StepItem;

/*
 * Compute the items. Rows of logits are numbered item by item in their order.
 * Pages must have been reserved. A token equal to the <image> mark that was not part
 * of the prompt is refused (STATUS_INTERNAL): such a sequence has to be opened anew.
 */
extern bool model_step(Model *model, const StepItem *items, int count, Status *status);

/* What the model was opened for: most tokens, rows of logits and pictures of one call. */
extern void model_step_limits(const Model *model, int *tokens, int *logits, int *images);

/* Choose a token for each of the first `rows` rows of the last step's logits. */
extern bool model_choose(Model *model, int rows, const ChoiceRule *rules, Choice *choices,
						 Status *status);

/*
 * The count most likely tokens of rows [first, first + rows) of the last step's logits, into
 * choices [rows, count].
 */
extern bool model_best(Model *model, int first, int rows, const ChoiceRule *rules, int count,
					   Choice *choices, Status *status);

/*
 * The log-probabilities of given tokens in rows of the last step's logits, by the softmax over the
 * whole vocabulary, into [count]. Targets are in order of rows.
 */
extern bool model_score(Model *model, const ScoreTarget *targets, int count,
						float *log_probabilities, Status *status);

/* Copy rows of the last step's logits to host memory f32 [rows, vocabulary]. */
extern bool model_read_logits(Model *model, int rows, float *logits, Status *status);

/* ---- looking inside ---- */

/*
 * Called with the name of a result and its values f32 [rows, columns] on the host, while it is
 * computed.
 */
typedef void (*TapFunction)(void *argument, const char *name, int rows, int columns,
							const float *values);

/*
 * Report "vision" (patch tokens), "latents", "hidden_00" (embedding), "hidden_01" (after layer 0)
 * ... and
 * "cross_01" (the cross attention of layer 1 before its gate) to the function; NULL ends it.
 */
extern void model_set_tap(Model *model, TapFunction function, void *argument);

#endif
