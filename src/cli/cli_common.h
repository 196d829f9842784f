/*
 * cli_common.h - what the commands share: options, opening a model, messages.
 *
 * Results go to standard output or to -o, messages to standard error. Exit status 0: right,
 * 1: failed, 2: wrong usage or not supported.
 */
#ifndef MMGPT_CLI_COMMON_H
#define MMGPT_CLI_COMMON_H

#include "arena.h"
#include "backend.h"
#include "image.h"
#include "model.h"
#include "prompt_template.h"
#include "status.h"
#include "tokenizer.h"

#define CLI_MAX_VALUES 64

/* One option of a command. */
typedef struct CliOption
{
	const char *name;			/* "--threads", or "-o" */
	bool		has_value;
	const char *values[CLI_MAX_VALUES];	/* as given, in order */
	int			count;			/* how often it was given */
} CliOption;

/* The arguments of a command, sorted. */
typedef struct CliArguments
{
	const char *command;
	CliOption  *options;		/* ended by one without a name */
	const char *positional[8];
	int			positional_count;
	int			optional;		/* how many of them may be missing */
} CliArguments;

/* Options of every command that opens a model. */
#define CLI_MODEL_OPTIONS \
	{.name = "--device", .has_value = true}, {.name = "--deterministic", .has_value = true}, \
	{.name = "--threads", .has_value = true}, \
	{.name = "--weights", .has_value = true}, {.name = "--instruction-set", .has_value = true}, \
	{.name = "--attend-previous", .has_value = true}, {.name = "--adapter", .has_value = true}

/* Their help, and that of commands that take no adapter. */
#define CLI_COMPUTE_HELP \
	"  --device auto|cpu|cuda[:N] where to compute (default: auto)\n" \
	"  --deterministic on|off     off: faster on a GPU, see docs/gpu.md (default: on)\n" \
	"  --threads N                threads (default: all cores)\n" \
	"  --weights f32|bf16|q8|q4   format to compute in (default: as stored)\n" \
	"  --instruction-set NAME     auto, avx512bf16, avx512vnni, avx512, avx2 or portable\n" \
	"                             (default: auto)\n" \
	"  --attend-previous 0|1      media mode: following or preceding (default: the model's)\n"

#define CLI_MODEL_HELP \
	CLI_COMPUTE_HELP "  --adapter DIR              LoRA adapter in PEFT's format\n"

/*
 * Sort argv[1 ..] into options and positional arguments. Prints help and returns false with
 * *result 0 for --help; prints what is wrong and returns false with *result 2 for an unknown
 * option, a missing value or a wrong number of positional arguments.
 */
extern bool cli_parse(int argc, char **argv, CliArguments *arguments, int positional,
					  const char *help, int *result);

/* The last value of an option; NULL when it was not given. */
extern const char *cli_value(const CliArguments *arguments, const char *name);
extern const CliOption *cli_option(const CliArguments *arguments, const char *name);

/* An integer value of an option within a range; STATUS_USAGE names option and value. */
extern bool cli_integer(const CliArguments *arguments, const char *name, long low, long high,
						long fallback, long *value, Status *status);

/* --image-rules; display where it was not given. */
extern bool cli_image_rules(const CliArguments *arguments, ImageRules *rules, Status *status);

/* Print a failure to standard error; returns the exit status that belongs to it. */
extern int	cli_fail(const Status *status);

/* A model that is open, with what it needs. */
typedef struct CliModel
{
	Arena	   *arena;
	Backend    *backend;
	Model	   *model;
	Adapter    *adapter;		/* NULL: none */
} CliModel;

/* Whether --deterministic is off; true for DeviceOptions.any_order. */
extern bool cli_any_order(const CliArguments *arguments, bool *any_order, Status *status);

/* Open what the common options say; options may hold larger limits. */
extern bool cli_open_backend(const CliArguments *arguments, CliModel *opened, Status *status);
extern bool cli_open_model(const CliArguments *arguments, const char *directory,
						   ModelOptions *options, CliModel *opened, Status *status);

/* The same for a model of this shape with random weights; no adapter. */
extern bool cli_open_random_model(const CliArguments *arguments, const ModelConfig *config,
								  ModelOptions *options, CliModel *opened, Status *status);
extern void cli_close_model(CliModel *opened);

/* The tokenizer of a model directory; needs config.json and tokenizer.model only. */
extern Tokenizer *cli_open_tokenizer(const char *directory, Arena *arena, ModelConfig *config,
									 Status *status);

/* A whole file in the arena. */
extern bool cli_read_file(const char *path, Arena *arena, uint8_t **bytes, size_t *length,
						  Status *status);

/* Token ids written with blanks or commas between. */
extern bool cli_parse_ids(const char *text, int vocabulary, Arena *arena, int32_t **ids, int *count,
						  Status *status);

/* Decode and resize one picture file. */
extern bool cli_read_image(const char *path, ImageRules rules, const VisionConfig *config,
						   Arena *arena, Picture *picture, Status *status);

/* Read float32 [3, S, S] from a .npy file, normalised already. */
extern bool cli_read_normalised(const char *path, const VisionConfig *config, Arena *arena,
								Picture *picture, Status *status);

/* The pictures of --image and --pixels in the order given on the command line. */
extern bool cli_read_pictures(const CliArguments *arguments, int argc, char **argv,
							  const VisionConfig *config, Arena *arena, Picture **pictures,
							  int *count, Status *status);

/* The commands. argv[0] is the command's name. */
extern int	cli_info(int argc, char **argv);
extern int	cli_preprocess(int argc, char **argv);
extern int	cli_tokenize(int argc, char **argv);
extern int	cli_detokenize(int argc, char **argv);
extern int	cli_forward(int argc, char **argv);
extern int	cli_generate(int argc, char **argv);
extern int	cli_finetune(int argc, char **argv);
extern int	cli_serve(int argc, char **argv);
extern int	cli_bench(int argc, char **argv);
extern int	cli_quantize(int argc, char **argv);

#endif
