/*
 * serve_client.h - a client of a running engine, for tests: frames over a Unix socket.
 *
 * The engine is this very test program, run again with "--serve": it executes the command
 * serve with the remaining arguments. So the tests need no path to another program, and
 * a sanitized test runs a sanitized server.
 */
#ifndef MMGPT_TEST_SERVE_CLIENT_H
#define MMGPT_TEST_SERVE_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli_common.h"
#include "unit.h"
#include "wire_frame.h"
#include "wire_message.h"

/* A test that waits longer for a frame has found a hang. */
#define CLIENT_PATIENCE_SECONDS 120

/* A running engine. */
typedef struct ServedEngine
{
	pid_t		pid;
	char		directory[32];
	char		path[64];		/* of its socket */
} ServedEngine;

/* A frame that was read; payload on the heap. */
typedef struct ClientFrame
{
	WireHeader	header;			/* type 0: the connection was closed */
	uint8_t    *payload;
	WireFields	fields;
} ClientFrame;

/* The other half of main: become the server. Returns only where this is the test itself. */
static UNIT_UNUSED void
serve_if_asked(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "--serve") == 0)
		_exit(cli_serve(argc - 1, argv + 1));
}

/* Connect; -1 while nobody listens. */
static UNIT_UNUSED int
client_connect(const ServedEngine *engine)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval patience = {CLIENT_PATIENCE_SECONDS, 0};
	int			fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, engine->path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *) &address, sizeof(address)) == 0)
		return fd;
	close(fd);
	return -1;
}

/* Options of serve at most, names and values. */
#define MOST_OPTIONS 16

/*
 * Start an engine for a model directory, with options up to a NULL, and wait until it listens.
 */
static UNIT_UNUSED ServedEngine
engine_serve_options(const char *model, const char *const *options)
{
	ServedEngine engine = {.directory = "/tmp/mmgpt-serve-XXXXXX"};
	struct timespec pause = {0, 2000000};
	int			fd = -1;

	if (mkdtemp(engine.directory) == NULL)
	{
		printf("Bail out! no temporary directory\n");
		exit(2);
	}
	snprintf(engine.path, sizeof(engine.path), "%s/socket", engine.directory);
	fflush(stdout);
	engine.pid = fork();
	if (engine.pid == 0)
	{
		const char *arguments[8 + MOST_OPTIONS] = {"test", "--serve", model, "--socket",
			engine.path, "--log-level", "error"};

		for (int i = 0; i < MOST_OPTIONS && options[i] != NULL; i++)
			arguments[7 + i] = options[i];
		execv("/proc/self/exe", (char **) arguments);
		_exit(127);
	}
	for (int i = 0; i < 15000 && fd < 0; i++)
	{
		fd = client_connect(&engine);
		if (fd < 0)
			nanosleep(&pause, NULL);
	}
	UNIT_CHECK(fd >= 0);
	close(fd);
	return engine;
}

/* The same with one option. */
static UNIT_UNUSED ServedEngine
engine_serve_with(const char *model, const char *option, const char *value)
{
	return engine_serve_options(model, (const char *const[]) {option, value, NULL});
}

/* The same without an option. */
static UNIT_UNUSED ServedEngine
engine_serve(const char *model)
{
	return engine_serve_with(model, "--threads", "0");
}

/* End the engine; returns its exit status, or -1 where it did not end by itself. */
static UNIT_UNUSED int
engine_end(ServedEngine *engine)
{
	int			status = 0;

	kill(engine->pid, SIGTERM);
	waitpid(engine->pid, &status, 0);
	unlink(engine->path);
	rmdir(engine->directory);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Send bytes whole; false when the engine hung up. */
static UNIT_UNUSED bool
client_send_bytes(int fd, const void *bytes, size_t length)
{
	const uint8_t *at = bytes;

	while (length > 0)
	{
		ssize_t		sent = send(fd, at, length, MSG_NOSIGNAL);

		if (sent <= 0)
			return false;
		at += sent;
		length -= (size_t) sent;
	}
	return true;
}

static UNIT_UNUSED bool
client_send_frame(int fd, uint32_t type, uint64_t id, const void *payload, size_t length)
{
	WireHeader	header = {(uint32_t) length, type, id};
	uint8_t		bytes[WIRE_HEADER_SIZE];

	wire_header_write(&header, bytes);
	return client_send_bytes(fd, bytes, sizeof(bytes)) && client_send_bytes(fd, payload, length);
}

static UNIT_UNUSED bool
client_read_bytes(int fd, void *bytes, size_t length)
{
	uint8_t    *at = bytes;

	while (length > 0)
	{
		ssize_t		count = recv(fd, at, length, 0);

		if (count <= 0)
			return false;
		at += count;
		length -= (size_t) count;
	}
	return true;
}

/* Read one frame; free its payload with free. */
static UNIT_UNUSED ClientFrame
client_read_frame(int fd)
{
	ClientFrame frame;
	uint8_t		bytes[WIRE_HEADER_SIZE];
	Status		status;

	memset(&frame, 0, sizeof(frame));
	if (!client_read_bytes(fd, bytes, sizeof(bytes)))
		return frame;
	if (!UNIT_CHECK(wire_header_read(bytes, &frame.header)))
		return frame;
	frame.payload = malloc((size_t) frame.header.length + 1);
	if (!client_read_bytes(fd, frame.payload, frame.header.length) ||
		!UNIT_CHECK(wire_fields_read(frame.payload, frame.header.length, &frame.fields, &status)))
		frame.header.type = 0;
	return frame;
}

/* Connect and read the greeting. */
static UNIT_UNUSED int
client_open(const ServedEngine *engine)
{
	int			fd = client_connect(engine);
	ClientFrame frame = client_read_frame(fd);

	UNIT_EQUAL_INT(frame.header.type, WIRE_HELLO);
	UNIT_EQUAL_INT(wire_get_u32(&frame.fields, WIRE_FIELD_WIRE_VERSION, 0), WIRE_VERSION);
	free(frame.payload);
	return fd;
}

/* What is asked. */
typedef struct ClientQuestion
{
	WireKind	kind;
	const char *prompt;			/* NULL: none */
	const char *options;		/* NULL: none */
	const char *const *labels;	/* up to a NULL; NULL: none */
	const void *image;			/* NULL: none */
	size_t		image_length;
	uint32_t	flags;
} ClientQuestion;

/* Texts up to a NULL as a list; room for 65536 bytes of it. */
static UNIT_UNUSED void
client_write_labels(WireWriter *writer, const char *const *labels)
{
	uint8_t    *list = malloc(65536);
	uint8_t    *end = list;

	for (; *labels != NULL; labels++)
		end = wire_list_add(end, *labels, (uint32_t) strlen(*labels));
	wire_write_bytes(writer, WIRE_FIELD_LABELS, list, (size_t) (end - list));
	free(list);
}

static UNIT_UNUSED bool
client_send_question(int fd, uint64_t id, const ClientQuestion *question)
{
	size_t		size = question->image_length + 2 * 65536;
	uint8_t    *bytes = malloc(size);
	WireWriter	writer;
	bool		sent;

	wire_writer_begin(&writer, bytes, size);
	wire_write_u32(&writer, WIRE_FIELD_FLAGS, question->flags);
	wire_write_u32(&writer, WIRE_FIELD_KIND, question->kind);
	if (question->prompt != NULL)
		wire_write_bytes(&writer, WIRE_FIELD_PROMPT, question->prompt, strlen(question->prompt));
	if (question->options != NULL)
		wire_write_bytes(&writer, WIRE_FIELD_OPTIONS, question->options, strlen(question->options));
	if (question->labels != NULL)
		client_write_labels(&writer, question->labels);
	if (question->image != NULL)
		wire_write_bytes(&writer, WIRE_FIELD_IMAGE, question->image, question->image_length);
	sent = client_send_frame(fd, WIRE_REQUEST, id, writer.bytes, writer.used);
	free(bytes);
	return sent;
}

/*
 * Read frames until the one that ends a request; others are dropped. started tells whether STARTED
 * came.
 */
static UNIT_UNUSED ClientFrame
client_read_end(int fd, uint64_t id, bool *started)
{
	*started = false;
	for (;;)
	{
		ClientFrame frame = client_read_frame(fd);

		if (frame.header.type == 0)
			return frame;
		if (frame.header.id == id &&
			(frame.header.type == WIRE_ANSWER || frame.header.type == WIRE_ERROR))
			return frame;
		if (frame.header.id == id && frame.header.type == WIRE_STARTED)
			*started = true;
		free(frame.payload);
	}
}

/* Ask and wait for the end. */
static UNIT_UNUSED ClientFrame
client_ask(int fd, uint64_t id, const ClientQuestion *question)
{
	bool		started;

	UNIT_CHECK(client_send_question(fd, id, question));
	return client_read_end(fd, id, &started);
}

#endif
