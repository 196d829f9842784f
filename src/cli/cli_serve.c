/*
 * cli_serve.c - the engine as a server; what the supervisor starts.
 */
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cli_common.h"
#include "engine_board.h"
#include "log.h"
#include "server.h"

#define MEGABYTE ((size_t) 1024 * 1024)
/* Beams of one request, which go into a step together. */
#define LEAST_STEP_TOKENS 16

static bool
read_log_level(const CliArguments *arguments, Status *status)
{
	static const char *const names[] = {"debug", "log", "warning", "error"};
	const char *text = cli_value(arguments, "--log-level");

	for (int i = 0; text != NULL && i < 4; i++)
		if (strcmp(text, names[i]) == 0)
		{
			log_set_level((EngineLogLevel) i);
			return true;
		}
	return text == NULL ||
		   status_set(status, STATUS_USAGE,
					  "--log-level must be debug, log, warning or error, not \"%s\"", text);
}

static bool
read_options(const CliArguments *arguments, ServerOptions *options, Status *status)
{
	long		threads;
	long		listen_fd;
	long		megabytes;
	long		share;
	long		slot;
	long		step_tokens;

	if (!cli_integer(arguments, "--threads", 0, 1024, 0, &threads, status) ||
		!cli_integer(arguments, "--listen-fd", 3, 1023, -1, &listen_fd, status) ||
		!cli_integer(arguments, "--memory-limit-mb", 0, 1L << 30, 0, &megabytes, status) ||
		!cli_integer(arguments, "--training-share", 1, 99, TRAINING_SHARE_DEFAULT, &share,
					 status) ||
		!cli_integer(arguments, "--board-slot", 0, ENGINES_MAX - 1, -1, &slot, status) ||
		!cli_integer(arguments, "--step-tokens", LEAST_STEP_TOKENS, 65536, 0, &step_tokens,
					 status) ||
		!cli_any_order(arguments, &options->host.device.any_order, status) ||
		!read_log_level(arguments, status))
		return false;
	if ((listen_fd < 0) == (cli_value(arguments, "--socket") == NULL))
		return status_set(status, STATUS_USAGE, "either --socket or --listen-fd has to be given");
	if (!weight_format_read(cli_value(arguments, "--weights"), &options->host.weights, status))
		return false;
	options->listen_fd = (int) listen_fd;
	options->socket_path = cli_value(arguments, "--socket");
	options->lifeline_fd = listen_fd < 0 ? -1 : STDIN_FILENO;
	options->board_slot = (int) slot;
	options->sandbox = true;
	options->host.directory = arguments->positional[0];
	options->host.device.device = cli_value(arguments, "--device");
	options->host.device.cpu.threads = (int) threads;
	options->host.device.cpu.instruction_set = cli_value(arguments, "--instruction-set");
	options->host.memory_limit = (size_t) megabytes * MEGABYTE;
	options->host.training_share = (int) share;
	options->host.step_tokens = (int) step_tokens;
	return true;
}

int
cli_serve(int argc, char **argv)
{
	static const char help[] =
		"Usage: mmgpt-engine serve MODEL (--socket PATH | --listen-fd N) [OPTION]...\n\n"
		"Answer backends over a Unix socket until SIGTERM.\n\nOptions:\n"
		"  --socket PATH              make a socket there, for this account only\n"
		"  --listen-fd N              use a listening socket that was inherited; standard input is "
		"then the lifeline,\n"
		"                             whose end ends the engine\n"
		"  --board-slot N             tell the load in this slot of the file inherited as "
		"descriptor 4\n"
		"  --device auto|cpu|cuda[:N] where to compute (default: auto)\n"
		"  --deterministic on|off     off: faster on a GPU, see docs/gpu.md (default: on)\n"
		"  --threads N                threads (default: all cores)\n"
		"  --weights f32|bf16|q8|q4   format to compute in (default: as stored)\n"
		"  --instruction-set NAME     auto, avx512bf16, avx512vnni, avx512, avx2 or portable\n"
		"                             (default: auto)\n"
		"  --memory-limit-mb N        megabytes for weights and all answers together (default: by "
		"the model)\n"
		"  --step-tokens N            tokens that are computed at once, at most, 16 or more; fewer "
		"take less memory\n"
		"                             (default: 512)\n"
		"  --training-share N         percent of the time for a training while others ask, 1 to 99,\n"
		"                             where the training names none (default: 50)\n"
		"  --log-level LEVEL          debug, log, warning or error (default: log)\n";
	CliOption	options[] = {{.name = "--socket", .has_value = true},
							 {.name = "--listen-fd", .has_value = true},
							 {.name = "--board-slot", .has_value = true},
							 {.name = "--device", .has_value = true},
							 {.name = "--deterministic", .has_value = true},
							 {.name = "--threads", .has_value = true},
							 {.name = "--weights", .has_value = true},
							 {.name = "--instruction-set", .has_value = true},
							 {.name = "--memory-limit-mb", .has_value = true},
							 {.name = "--step-tokens", .has_value = true},
							 {.name = "--training-share", .has_value = true},
							 {.name = "--log-level", .has_value = true},
							 {.name = NULL}};
	CliArguments arguments = {.options = options};
	ServerOptions server = {0};
	Status		status;
	int			result = 0;

	if (!cli_parse(argc, argv, &arguments, 1, help, &result))
		return result;
	if (!read_options(&arguments, &server, &status))
		return cli_fail(&status);
	if (!server_run(&server, &status))
		result = cli_fail(&status);
	/* other threads still work, and a lost device may hang: leave without tearing down anything */
	_exit(result);
}
