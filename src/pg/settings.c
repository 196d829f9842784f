/*
 * settings.c - definitions of all settings; see settings.h.
 *
 * Three kinds. What the engine is started with can come from the configuration
 * only (ALTER SYSTEM counts as such): a session must not choose which files the
 * server reads. Limits belong to superusers, because they protect the server.
 * How an answer is made is anybody's choice, for a session, a role or a database.
 *
 * None is PGC_POSTMASTER: such a setting could not be defined by a library that
 * is loaded after the server's start. The supervisor instead restarts the engine
 * when a reload changes what it was started with.
 */
#include "postgres.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include "engine_board.h"
#include "pg_compat.h"
#include "settings.h"

#define MAX_THREADS 1024
#define DEFAULT_TRAINING_SHARE 50
#define DEFAULT_MAX_IMAGE_PIXELS (100 * 1000 * 1000)
#define DEFAULT_MAX_REQUEST_BYTES (64 * 1024 * 1024)
#define LEAST_MAX_REQUEST_BYTES 1024
#define GREATEST_MAX_REQUEST_BYTES (1024 * 1024 * 1024)		/* what a bytea can hold */
#define DEFAULT_MAX_TOKENS 256
#define GREATEST_MAX_TOKENS (1000 * 1000)
#define GREATEST_TOP_K (1000 * 1000)
#define GREATEST_TEMPERATURE 100.0
#define GREATEST_NUM_BEAMS 16
#define NO_SEED "none"

char	   *setting_model = NULL;
char	   *setting_device = NULL;
bool		setting_deterministic = true;
int			setting_threads = 0;
int			setting_weight_format = 0;
int			setting_instruction_set = 0;
int			setting_memory_limit = 0;
int			setting_training_share = DEFAULT_TRAINING_SHARE;
int			setting_max_image_pixels = DEFAULT_MAX_IMAGE_PIXELS;
int			setting_max_request_bytes = DEFAULT_MAX_REQUEST_BYTES;
int			setting_max_tokens = DEFAULT_MAX_TOKENS;
double		setting_temperature = 0.0;
int			setting_top_k = 0;
double		setting_top_p = 1.0;
char	   *setting_seed = NULL;
int			setting_num_beams = 1;
char	   *setting_adapter = NULL;

static const struct config_enum_entry weight_formats[] = {
	{"stored", 0, false},
	{"f32", 1, false},
	{"bf16", 2, false},
	{"q8", 3, false},
	{"q4", 4, false},
	{NULL, 0, false}
};

static const struct config_enum_entry instruction_sets[] = {
	{"auto", 0, false},
	{"portable", 1, false},
	{"avx2", 2, false},
	{"avx512", 3, false},
	{"avx512bf16", 4, false},
	{"avx512vnni", 5, false},
	{NULL, 0, false}
};

const char *
setting_weight_format_name(void)
{
	return weight_formats[setting_weight_format].name;
}

const char *
setting_instruction_set_name(void)
{
	return instruction_sets[setting_instruction_set].name;
}

/* Read a whole text as an integer of 64 bits. */
static bool
parse_integer(const char *text, int64_t *value)
{
	char	   *end;

	errno = 0;
	*value = strtoll(text, &end, 10);
	return errno == 0 && end != text && *end == '\0';
}

bool
setting_seed_value(int64_t *seed)
{
	return setting_seed != NULL && parse_integer(setting_seed, seed);
}

/* Accept an integer of 64 bits or "none". */
static bool
check_seed(char **value, void **extra, GucSource source)
{
	int64_t		seed;

	if (strcmp(*value, NO_SEED) == 0 || parse_integer(*value, &seed))
		return true;
	GUC_check_errdetail("The seed is an integer of 64 bits, or \"none\".");
	return false;
}

/* Accept any probability but 0, which would leave no token to choose. */
static bool
check_top_p(double *value, void **extra, GucSource source)
{
	if (*value > 0.0)
		return true;
	GUC_check_errdetail("It must be above 0.");
	return false;
}

/* The length of one device at the start of text (cpu, cuda or cuda:N), or 0. */
static size_t
device_length(const char *text)
{
	size_t		length = strlen("cuda");

	if (strncmp(text, "cpu", strlen("cpu")) == 0)
		return strlen("cpu");
	if (strncmp(text, "cuda", length) != 0)
		return 0;
	if (text[length] != ':')
		return length;
	if (text[length + 1] < '0' || text[length + 1] > '9')
		return 0;
	length++;
	while (text[length] >= '0' && text[length] <= '9')
		length++;
	return length;
}

/* Accept auto, or devices separated by commas. */
static bool
check_device(char **value, void **extra, GucSource source)
{
	const char *at = *value;

	if (strcmp(at, "auto") == 0)
		return true;
	for (int engines = 1;; engines++)
	{
		size_t		length = device_length(at);

		if (length == 0 || (at[length] != ',' && at[length] != '\0'))
			break;
		if (engines > ENGINES_MAX)
		{
			GUC_check_errdetail("A list has at most %d devices.", ENGINES_MAX);
			return false;
		}
		if (at[length] == '\0')
			return true;
		at += length + 1;
	}
	GUC_check_errdetail("A device is auto, cpu, cuda, or a list such as cuda:0,cuda:1.");
	return false;
}

int
setting_engines(void)
{
	int			count = 1;

	for (const char *at = strchr(setting_device, ','); at != NULL; at = strchr(at + 1, ','))
		count++;
	return count;
}

char *
setting_engine_device(int engine)
{
	const char *at = setting_device;

	for (; engine > 0; engine--)
		at = strchr(at, ',') + 1;
	return pnstrdup(at, strcspn(at, ","));
}

/* Define what the engine is started with. */
static void
define_engine_settings(void)
{
	DefineCustomStringVariable("mmgpt.model",
							   "Directory of the model.",
							   "Empty: the demo model that is installed with the extension.",
							   &setting_model, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("mmgpt.device",
							   "Device that computes the model.",
							   "auto, cpu, cuda, or a list such as cuda:0,cuda:1, which starts an "
							   "engine for each.",
							   &setting_device, "auto", PGC_SIGHUP, 0,
							   check_device, NULL, NULL);
	DefineCustomBoolVariable("mmgpt.deterministic",
							 "Whether an answer depends on its own request only, on a GPU too.",
							 "off: GPUs multiply in the fastest way for the number of rows. Answers "
							 "may then differ, by rounding, with what is computed beside them.",
							 &setting_deterministic, true, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("mmgpt.threads",
							"Threads that compute the model on the CPU.",
							"0: one for each core.",
							&setting_threads, 0, 0, MAX_THREADS, PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomEnumVariable("mmgpt.weight_format",
							 "Format that the model computes in.",
							 "stored: as the files are quantised, else bf16 if they hold 16-bit numbers, "
							 "else f32.",
							 &setting_weight_format, 0, weight_formats, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomEnumVariable("mmgpt.instruction_set",
							 "Instruction set that the CPU's kernels use.",
							 "auto: the best one of this machine. Machines that must give the same "
							 "answers bit by bit can be set to a common one.",
							 &setting_instruction_set, 0, instruction_sets, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("mmgpt.memory_limit",
							"Memory that the engine may take.",
							"0: no limit; the model decides what it takes.",
							&setting_memory_limit, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MB,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mmgpt.training_share",
							"Share of the engine's time that fine-tuning has while questions wait.",
							"In percent. While none wait, fine-tuning has all of it.",
							&setting_training_share, DEFAULT_TRAINING_SHARE, 1, 99, PGC_SIGHUP, 0,
							NULL, NULL, NULL);
}

/* Define the limits that protect the server. */
static void
define_limits(void)
{
	DefineCustomIntVariable("mmgpt.max_image_pixels",
							"Largest number of pixels of an image.",
							"An image whose header claims more is refused before it is decoded.",
							&setting_max_image_pixels, DEFAULT_MAX_IMAGE_PIXELS, 1, INT_MAX,
							PGC_SUSET, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mmgpt.max_request_bytes",
							"Largest size of the image and texts of one call.",
							"Larger calls are refused before anything is sent to the engine.",
							&setting_max_request_bytes, DEFAULT_MAX_REQUEST_BYTES,
							LEAST_MAX_REQUEST_BYTES, GREATEST_MAX_REQUEST_BYTES,
							PGC_SUSET, GUC_UNIT_BYTE,
							NULL, NULL, NULL);
}

/* Define how an answer is made; options of a call override these. */
static void
define_answer_settings(void)
{
	DefineCustomIntVariable("mmgpt.max_tokens",
							"Largest number of tokens of an answer.", NULL,
							&setting_max_tokens, DEFAULT_MAX_TOKENS, 1, GREATEST_MAX_TOKENS,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomRealVariable("mmgpt.temperature",
							 "Temperature of sampling.",
							 "0: always the most probable token, so that answers can be repeated.",
							 &setting_temperature, 0.0, 0.0, GREATEST_TEMPERATURE,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("mmgpt.top_k",
							"Number of most probable tokens that are sampled from.",
							"0: all tokens.",
							&setting_top_k, 0, 0, GREATEST_TOP_K,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomRealVariable("mmgpt.top_p",
							 "Probability of the most probable tokens that are sampled from.",
							 "1: all tokens.",
							 &setting_top_p, 1.0, 0.0, 1.0,
							 PGC_USERSET, 0, check_top_p, NULL, NULL);
	DefineCustomStringVariable(
		"mmgpt.seed", "Seed of sampling.",
		"none: derived from the call, so that the same call gives the same answer.", &setting_seed,
		NO_SEED, PGC_USERSET, 0, check_seed, NULL, NULL);
	DefineCustomIntVariable("mmgpt.num_beams",
							"Number of beams of beam search.",
							"1: no beam search.",
							&setting_num_beams, 1, 1, GREATEST_NUM_BEAMS,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("mmgpt.adapter",
							   "LoRA adapter that answers use.",
							   "A name of the view mmgpt_adapters; empty: none.",
							   &setting_adapter, "", PGC_USERSET, 0,
							   NULL, NULL, NULL);
}

void
settings_define(void)
{
	define_engine_settings();
	define_limits();
	define_answer_settings();
	compat_reserve_prefix("mmgpt");
}
