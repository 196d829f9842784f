/*
 * model_config.h - config.json: the sizes of every part, special ids, template and
 * prompts.
 */
#ifndef MMGPT_MODEL_CONFIG_H
#define MMGPT_MODEL_CONFIG_H

#include <stdbool.h>

#include "arena.h"
#include "status.h"

/* Words or prompts of config.json, NUL-terminated UTF-8. */
typedef struct WordList
{
	const char *const *words;
	int			count;
} WordList;

typedef struct VisionConfig
{
	int			image_size;		/* S, pixels of a side */
	int			patch_size;		/* P */
	int			width;			/* of tokens */
	int			layers;
	int			heads;
	int			mlp;			/* width of the MLP: mlp_ratio * width */
	int			output_dim;		/* of the unused projection */
	float		epsilon;
	float		mean[3];		/* of red, green, blue in 0..1 */
	float		deviation[3];
} VisionConfig;

typedef struct ResamplerConfig
{
	int			depth;
	int			heads;
	int			head_size;
	int			latents;		/* tokens that an image becomes */
	int			mlp;			/* ff_mult * vision width */
	float		epsilon;
} ResamplerConfig;

typedef struct CrossAttentionConfig
{
	/* a gated block stands before layer i where (i + 1) mod every = 0 */
	int			every;
	int			heads;
	int			head_size;
	int			mlp;			/* ff_mult * hidden size */
	float		epsilon;
} CrossAttentionConfig;

typedef struct DecoderConfig
{
	int			hidden;
	int			mlp;
	int			layers;
	int			heads;
	int			kv_heads;		/* heads where the config does not tell */
	int			head_size;
	int			base_vocabulary;
	int			vocabulary;		/* with the three added tokens */
	int			context;		/* positions: prompt and answer together */
	float		epsilon;
	float		rope_theta;
} DecoderConfig;

/* What the task functions ask; the first "{}" is replaced by what the user gave. */
typedef struct PromptConfig
{
	const char *caption_brief;
	const char *caption_detailed;
	const char *count;
	const char *filter;
	const char *classify;		/* "{}": all labels, with commas between */
	const char *classify_answer;	/* how the model says a label; holds "{}" */
	const char *classify_multi;	/* "{}": one label; the question is asked through filter */
	WordList	yes_words;
	WordList	no_words;
} PromptConfig;

typedef struct ModelConfig
{
	VisionConfig vision;
	ResamplerConfig resampler;
	CrossAttentionConfig cross_attention;
	DecoderConfig decoder;
	PromptConfig prompts;
	int			unk, bos, eos, endofchunk, image, pad;	/* special ids */
	bool		attend_previous;	/* media mode: preceding (true) or following */
	bool		history_eos;
	const char *introduction;	/* template strings, see text/prompt_template.h */
	const char *separator;
	const char *user_prefix;
	const char *ai_prefix;
} ModelConfig;

/*
 * Read DIR/config.json into config; strings live in the arena. STATUS_INVALID_MODEL
 * names the file and the key.
 */
extern bool model_config_read(const char *directory, Arena *arena, ModelConfig *config,
							  Status *status);

/* The same from a file of any name, and from a text; name stands in messages. */
extern bool model_config_read_file(const char *path, Arena *arena, ModelConfig *config,
								   Status *status);
extern bool model_config_read_text(const char *text, const char *name, Arena *arena,
								   ModelConfig *config, Status *status);

#endif
