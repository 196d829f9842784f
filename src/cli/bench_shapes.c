/*
 * bench_shapes.c - sizes of models that everybody knows, for measuring without their weights.
 */
#include <string.h>

#include "cli_bench.h"

/* CLIP ViT-L/14 and the resampler, as the released MultiModal-GPT has them. */
#define EYES \
	"\"vision\": {\"image_size\": 224, \"patch_size\": 14, \"width\": 1024, \"layers\": 24," \
	" \"heads\": 16, \"output_dim\": 768}," \
	"\"perceiver\": {\"depth\": 6, \"heads\": 8, \"dim_head\": 64, \"num_latents\": 64}," \
	"\"cross_attention\": {\"every_n_layers\": 4, \"heads\": 8, \"dim_head\": 64}," \
	"\"max_position_embeddings\": 2048,"

typedef struct NamedShape
{
	const char *name;
	const char *config;
} NamedShape;

static const NamedShape shapes[] = {
	/* the released model: LLaMA-7B (Touvron and others 2023) */
	{"7b", "{" EYES
	 "\"llama\": {\"hidden_size\": 4096, \"intermediate_size\": 11008, \"num_hidden_layers\": 32,"
	 " \"num_attention_heads\": 32, \"base_vocab_size\": 32000}}"},
	/* the same around TinyLlama 1.1B (Zhang and others 2024) */
	{"1b", "{" EYES
	 "\"llama\": {\"hidden_size\": 2048, \"intermediate_size\": 5632, \"num_hidden_layers\": 22,"
	 " \"num_attention_heads\": 32, \"num_key_value_heads\": 4, \"base_vocab_size\": 32000}}"},
};

bool
bench_shape_read(const char *name, Arena *arena, ModelConfig *config, Status *status)
{
	size_t		length = strlen(name);

	for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
		if (strcmp(name, shapes[i].name) == 0)
			return model_config_read_text(shapes[i].config, name, arena, config, status);
	if (length > 5 && strcmp(name + length - 5, ".json") == 0)
		return model_config_read_file(name, arena, config, status);
	status_set(status, STATUS_USAGE, "unknown shape \"%s\"", name);
	return status_hint(status, "Use 7b, 1b, or a file FILE.json in the form of config.json.");
}
