/*
 * cli_run.h - commands of mmgpt-engine in child processes whose standard streams are files.
 */
#ifndef MMGPT_CLI_RUN_H
#define MMGPT_CLI_RUN_H

#include <sys/wait.h>
#include <unistd.h>

#include "cli_common.h"
#include "engine.h"

#define MAX_ARGUMENTS 24

typedef int (*CommandFunction) (int argc, char **argv);

/* What a command left behind. */
typedef struct Outcome
{
	int			status;			/* exit status; -1: it was killed */
	char	   *output;
	char	   *messages;
} Outcome;

/* A new empty file whose name is put into path, a template of mkstemp. */
static UNIT_UNUSED int
make_file(char *path)
{
	int			file = mkstemp(path);

	if (file < 0)
		engine_bail(path, NULL);
	return file;
}

/* Run a command in a child: its standard streams are the three files. Does not return. */
static UNIT_UNUSED void
run_child(CommandFunction command, int argc, char **argv, const int files[3])
{
	int			result;

	for (int i = 0; i < 3; i++)
		dup2(files[i], i);
	result = command(argc, argv);
	fflush(NULL);
	_exit(result);
}

/* Run a command with arguments up to a NULL and the given standard input. */
static UNIT_UNUSED Outcome
run(CommandFunction command, const char *input, const char *const *arguments)
{
	char		paths[3][32] = {"/tmp/mmgpt-cli-in-XXXXXX", "/tmp/mmgpt-cli-out-XXXXXX",
								"/tmp/mmgpt-cli-err-XXXXXX"};
	int			files[3];
	char	   *argv[MAX_ARGUMENTS + 1] = {NULL};
	int			argc = 0;
	int			wait_status;
	Outcome		outcome;
	pid_t		child;

	while (arguments[argc] != NULL && argc < MAX_ARGUMENTS)
	{
		argv[argc] = strdup(arguments[argc]);
		argc++;
	}
	for (int i = 0; i < 3; i++)
		files[i] = make_file(paths[i]);
	if (write(files[0], input, strlen(input)) != (ssize_t) strlen(input) ||
		lseek(files[0], 0, SEEK_SET) != 0)
		engine_bail(paths[0], NULL);
	fflush(NULL);
	child = fork();
	if (child == 0)
		run_child(command, argc, argv, files);
	if (child < 0 || waitpid(child, &wait_status, 0) != child)
		engine_bail("child", NULL);
	outcome.status = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1;
	outcome.output = unit_read_file(paths[1], NULL);
	outcome.messages = unit_read_file(paths[2], NULL);
	for (int i = 0; i < 3; i++)
	{
		close(files[i]);
		unlink(paths[i]);
	}
	for (int i = 0; i < argc; i++)
		free(argv[i]);
	return outcome;
}

static UNIT_UNUSED void
forget(Outcome *outcome)
{
	free(outcome->output);
	free(outcome->messages);
}

/*
 * Run a command that has to fail with a status and a message that holds a part, and print nothing.
 */
#define CHECK_FAILS(command, expected_status, part, ...) \
	do { \
		const char *arguments_[] = {__VA_ARGS__, NULL}; \
		Outcome		outcome_ = run(command, "", arguments_); \
		UNIT_EQUAL_INT(outcome_.status, expected_status); \
		UNIT_CONTAINS(outcome_.messages, part); \
		UNIT_EQUAL_TEXT(outcome_.output, ""); \
		forget(&outcome_); \
	} while (0)

/* Run a command that has to succeed with exactly this output. */
#define CHECK_PRINTS(command, input, expected, ...) \
	do { \
		const char *arguments_[] = {__VA_ARGS__, NULL}; \
		Outcome		outcome_ = run(command, input, arguments_); \
		UNIT_EQUAL_INT(outcome_.status, 0); \
		UNIT_EQUAL_TEXT(outcome_.output, expected); \
		UNIT_EQUAL_TEXT(outcome_.messages, ""); \
		forget(&outcome_); \
	} while (0)

/* ---- the command line ---- */

#endif
