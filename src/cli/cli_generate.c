/*
 * cli_generate.c - an answer from the command line, by the server's own scheduler.
 */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "beam_search.h"
#include "cli_common.h"
#include "generation.h"
#include "logprobs.h"
#include "model_text.h"
#include "request_options.h"
#include "scheduler.h"

typedef struct GenerateJob
{
	CliModel	opened;
	Tokenizer  *tokenizer;
	ModelConfig config;
	RequestOptions options;
	PictureSet	pictures;
	int32_t    *ids;
	int			count;
	Scheduler  *scheduler;
	Generation	generation;
	bool		done;
} GenerateJob;

static void
note_finished(Generation *generation, void *argument)
{
	*(bool *) argument = true;
}

/* Token ids of --prompt with --history, by the template. */
static bool
encode_prompt(GenerateJob *job, const CliArguments *arguments, Status *status)
{
	const char *prompt = cli_value(arguments, "--prompt");
	const char *history = cli_value(arguments, "--history");
	PromptTemplate prompt_template = model_text_template(&job->config);
	TextPart	question = {prompt, strlen(prompt)};
	TextPart	input = {job->options.input, job->options.input_length};
	Dialogue	dialogue;
	TokenList	ids;

	token_list_begin(&ids, job->opened.arena);
	if (!dialogue_read(history, history == NULL ? 0 : strlen(history), question, input,
					   job->pictures.count > 0, job->opened.arena, &dialogue, status) ||
		!prompt_encode(job->tokenizer, &prompt_template, &dialogue, &ids, status))
		return false;
	job->ids = ids.ids;
	job->count = ids.count;
	return true;
}

/* Everything that needs no weights. */
static bool
read_request(GenerateJob *job, const CliArguments *arguments, int argc, char **argv, Status *status)
{
	const char *ids = cli_value(arguments, "--ids");
	const char *options = cli_value(arguments, "--options");
	Arena	   *arena = job->opened.arena;

	if ((ids == NULL) == (cli_value(arguments, "--prompt") == NULL))
		return status_set(status, STATUS_USAGE, "either --prompt or --ids has to be given");
	request_options_defaults(&job->options);
	job->tokenizer = cli_open_tokenizer(arguments->positional[0], arena, &job->config, status);
	if (job->tokenizer == NULL ||
		!request_options_read(options, options == NULL ? 0 : strlen(options), true, arena,
							  &job->options, status) ||
		!cli_read_pictures(arguments, argc, argv, &job->config.vision, arena,
						   &job->pictures.pictures, &job->pictures.count, status))
		return false;
	if (job->options.adapter_name != NULL)
		return status_set(status, STATUS_USAGE, "an adapter is given with --adapter here");
	if (ids != NULL)
		return cli_parse_ids(ids, job->config.decoder.vocabulary, arena, &job->ids, &job->count,
							 status);
	return encode_prompt(job, arguments, status);
}

static bool
run_generation(GenerateJob *job, bool plain_ids, Status *status)
{
	SchedulerOptions options = {.max_running = 1};
	Generation *generation = &job->generation;

	job->pictures.adapter = job->opened.adapter;
	job->options.adapter = job->opened.adapter;
	if (!generation_begin(generation, job->opened.arena, model_config(job->opened.model), job->ids,
						  job->count, job->pictures.count > 0 ? &job->pictures : NULL,
						  &job->options, status))
		return false;
	/* ids are continued up to the end token, unless stop strings are asked for */
	generation->allow_special = plain_ids && job->options.stop_count == 0;
	generation->finished = note_finished;
	generation->argument = &job->done;
	job->scheduler = scheduler_create(job->opened.model, job->tokenizer, &options, status);
	if (job->scheduler == NULL)
		return false;
	scheduler_submit(job->scheduler, generation);
	while (!job->done)
		scheduler_step(job->scheduler);
	scheduler_release_pictures(job->scheduler, &job->pictures);
	if (generation->finish == FINISH_FAILED)
		*status = generation->status;
	return generation->finish != FINISH_FAILED;
}

/* Token ids as JSON. */
static json_t *
ids_json(const int32_t *tokens, int count)
{
	json_t	   *ids = json_array();

	for (int i = 0; i < count; i++)
		json_array_append_new(ids, json_integer(tokens[i]));
	return ids;
}

/* All finished answers of a beam search, best first. */
static json_t *
sequences_json(const BeamSearch *search)
{
	json_t	   *sequences = json_array();

	for (int i = 0; i < search->finished_count; i++)
	{
		const Hypothesis *answer = &search->finished[i];
		int			count = answer->count + (answer->finish == FINISH_EOS ? 1 : 0);

		json_array_append_new(sequences, json_pack("{s:o, s:f}", "ids",
												   ids_json(answer->tokens, count), "score",
												   answer->score));
	}
	return sequences;
}

static bool
print_answer(const GenerateJob *job, Status *status)
{
	const Generation *generation = &job->generation;
	size_t		length;
	char	   *text = generation_text(generation, job->tokenizer, &length, status);
	json_t	   *root;

	if (text == NULL)
		return false;
	root = json_pack("{s:o, s:o, s:s}", "ids",
					 ids_json(generation->tokens, generation->count),
					 "text", json_stringn(text, length), "finish",
					 finish_name(generation->finish));
	if (generation->search != NULL)
		json_object_set_new(root, "sequences", sequences_json(generation->search));
	if (job->options.logprobs)
		json_object_set_new(root, "logprobs", logprobs_json(generation, job->tokenizer));
	json_dumpf(root, stdout, 0);
	putchar('\n');
	json_decref(root);
	return true;
}

int
cli_generate(int argc, char **argv)
{
	static const char help[] =
		"Usage: mmgpt-engine generate MODEL (--prompt TEXT | --ids \"1 2 3\") [OPTION]...\n\n"
		"Answer a prompt: JSON {\"ids\", \"text\", \"finish\"}.\n\nOptions:\n"
		"  --prompt TEXT              the question; the model's template is put around it\n"
		"  --history JSON             earlier rounds: [{\"role\": \"user\", \"content\": ...}, "
		"...]\n"
		"  --ids \"1 2 3\"              token ids instead, used as they are\n"
		"  --image FILE               the picture; may be repeated with --ids\n"
		"  --pixels FILE.npy          the same, float32 [3, S, S] already normalised\n"
		"  --image-rules RULES        display or original (default: display)\n"
		"  --options JSON             max_tokens, temperature, top_k, top_p, seed, stop, input, "
		"logprobs,\n"
		"                             ...\n" CLI_MODEL_HELP;
	CliOption options[] = {CLI_MODEL_OPTIONS,
						   {.name = "--prompt", .has_value = true},
						   {.name = "--history", .has_value = true},
						   {.name = "--ids", .has_value = true},
						   {.name = "--image", .has_value = true},
						   {.name = "--pixels", .has_value = true},
						   {.name = "--image-rules", .has_value = true},
						   {.name = "--options", .has_value = true},
						   {.name = NULL}};
	CliArguments arguments = {.options = options};
	GenerateJob job = {.opened = {0}};
	ModelOptions model_options = {0};
	Status		status;
	int			result = 0;

	if (!cli_parse(argc, argv, &arguments, 1, help, &result))
		return result;
	job.opened.arena = arena_create();
	if (job.opened.arena == NULL)
		return 1;
	if (!read_request(&job, &arguments, argc, argv, &status))
		result = cli_fail(&status);
	else
	{
		model_options.max_images = job.pictures.count;
		if (!cli_open_model(&arguments, arguments.positional[0], &model_options, &job.opened,
							&status) ||
			!run_generation(&job, cli_value(&arguments, "--ids") != NULL, &status) ||
			!print_answer(&job, &status))
			result = cli_fail(&status);
	}
	scheduler_free(job.scheduler);
	cli_close_model(&job.opened);
	tokenizer_close(job.tokenizer);
	return result;
}
