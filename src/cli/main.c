/*
 * main.c - the program mmgpt-engine: one command a run.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli_common.h"
#include "version.h"

typedef struct Command
{
	const char *name;
	int			(*run) (int argc, char **argv);
	const char *summary;
} Command;

static const Command commands[] = {
	{"info", cli_info, "describe a model: sizes, parameters, prompts"},
	{"preprocess", cli_preprocess, "show what the vision encoder sees of a picture"},
	{"tokenize", cli_tokenize, "text to token ids"},
	{"detokenize", cli_detokenize, "token ids to text"},
	{"forward", cli_forward, "one forward pass: logits of every token"},
	{"generate", cli_generate, "answer a prompt about pictures"},
	{"finetune", cli_finetune, "train a LoRA adapter on rows of a file"},
	{"serve", cli_serve, "answer the backends of a PostgreSQL server"},
	{"quantize", cli_quantize, "make 8-bit or 4-bit weights"},
	{"bench", cli_bench, "measure speed"},
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void
print_help(FILE *file)
{
	fputs("mmgpt-engine answers questions about pictures with a MultiModal-GPT model.\n\n"
		  "Usage: mmgpt-engine COMMAND [ARGUMENT]...\n\nCommands:\n", file);
	for (size_t i = 0; i < COMMANDS; i++)
		fprintf(file, "  %-12s %s\n", commands[i].name, commands[i].summary);
	fputs("\nOptions:\n  --help       this text; after a command, its own\n  --version    the "
		  "version\n\n"
		  "Exit status: 0 right, 1 failed, 2 wrong usage or not supported.\n",
		  file);
}

/* Run a command; a result that could not be written, to a full disk say, is a failure. */
static int
run_command(const Command *command, int argc, char **argv)
{
	int			result = command->run(argc, argv);

	if (fflush(stdout) == 0 && !ferror(stdout))
		return result;
	fprintf(stderr, "mmgpt-engine: could not write to standard output: %s\n", strerror(errno));
	return result != 0 ? result : 1;
}

int
main(int argc, char **argv)
{
	if (argc < 2)
	{
		print_help(stderr);
		return 2;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
		strcmp(argv[1], "help") == 0)
	{
		print_help(stdout);
		return 0;
	}
	if (strcmp(argv[1], "--version") == 0)
	{
		printf("mmgpt-engine %s\n", MMGPT_VERSION);
		return 0;
	}
	for (size_t i = 0; i < COMMANDS; i++)
		if (strcmp(argv[1], commands[i].name) == 0)
			return run_command(&commands[i], argc - 1, argv + 1);
	fprintf(stderr, "mmgpt-engine: unknown command \"%s\"\nhint: Try \"mmgpt-engine --help\".\n",
			argv[1]);
	return 2;
}
