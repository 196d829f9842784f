/*
 * captions.c - captions of pictures by an engine, over its socket, by several connections at once,
 * each of which asks about every CONNECTIONS-th picture; for bench/sql.
 *
 *	captions SOCKET CONNECTIONS FILE...		prints the seconds that it took
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "wire_frame.h"
#include "wire_message.h"

/* A role that no session of the database has, so that neither side finds what the other left. */
#define ROLE 4242
/* As bench/sql has it. */
#define MAX_TOKENS 32
#define MOST_CONNECTIONS 256

static const char *socket_path;
static int	connections;
static int	count;
static struct {char *bytes; size_t length;} *pictures;

static void
give_up(const char *what)
{
	perror(what);
	exit(1);
}

static void
read_whole(int fd, void *bytes, size_t length)
{
	for (size_t got = 0; got < length;)
	{
		ssize_t		more = read(fd, (char *) bytes + got, length - got);

		if (more <= 0)
			give_up("the engine hung up");
		got += (size_t) more;
	}
}

/* Read frames until the answer to a request. */
static void
wait_for_answer(int fd, uint64_t id)
{
	static __thread uint8_t payload[65536];
	uint8_t		bytes[WIRE_HEADER_SIZE];
	WireHeader	header = {0};

	while (header.type != WIRE_ANSWER || header.id != id)
	{
		read_whole(fd, bytes, sizeof(bytes));
		if (!wire_header_read(bytes, &header) || header.type == WIRE_ERROR ||
			header.length > sizeof(payload))
			give_up("an error of the engine");
		read_whole(fd, payload, header.length);
	}
}

static void
ask(int fd, uint64_t id, int number)
{
	uint8_t		bytes[256 + WIRE_HEADER_SIZE];
	WireWriter	writer;
	WireHeader	header = {.type = WIRE_REQUEST, .id = id};
	uint32_t	field[2] = {WIRE_FIELD_IMAGE, (uint32_t) pictures[number].length};

	wire_writer_begin(&writer, bytes + WIRE_HEADER_SIZE, 256);
	wire_write_u32(&writer, WIRE_FIELD_FLAGS, 0);
	wire_write_u32(&writer, WIRE_FIELD_KIND, WIRE_KIND_CAPTION);
	wire_write_u32(&writer, WIRE_FIELD_DATABASE, ROLE);
	wire_write_u32(&writer, WIRE_FIELD_ROLE, ROLE);
	wire_write_u32(&writer, WIRE_FIELD_MAX_TOKENS, MAX_TOKENS);
	wire_write_bytes(&writer, WIRE_FIELD_PROMPT, "brief", 5);
	memcpy(writer.bytes + writer.used, field, sizeof(field));
	writer.used += sizeof(field);
	header.length = (uint32_t) (writer.used + pictures[number].length);
	wire_header_write(&header, bytes);
	if (send(fd, bytes, WIRE_HEADER_SIZE + writer.used, 0) < 0)
		give_up("send");
	for (size_t sent = 0; sent < pictures[number].length;)
	{
		ssize_t		more = send(fd, pictures[number].bytes + sent, pictures[number].length - sent,
								0);

		if (more < 0)
			give_up("send");
		sent += (size_t) more;
	}
	wait_for_answer(fd, id);
}

static void *
run(void *argument)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int			fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
	if (connect(fd, (struct sockaddr *) &address, sizeof(address)) != 0)
		give_up(socket_path);
	for (int i = (int) (intptr_t) argument; i < count; i += connections)
		ask(fd, (uint64_t) i + 1, i);
	close(fd);
	return NULL;
}

static void
read_file(const char *path, int number)
{
	FILE	   *file = fopen(path, "r");

	if (file == NULL || fseek(file, 0, SEEK_END) != 0)
		give_up(path);
	pictures[number].length = (size_t) ftell(file);
	pictures[number].bytes = malloc(pictures[number].length);
	rewind(file);
	if (fread(pictures[number].bytes, 1, pictures[number].length, file) != pictures[number].length)
		give_up(path);
	fclose(file);
}

int
main(int argc, char **argv)
{
	struct timespec begin;
	struct timespec end;
	pthread_t	threads[MOST_CONNECTIONS];

	socket_path = argv[1];
	connections = argc < 4 ? 0 : atoi(argv[2]);
	if (connections < 1 || connections > MOST_CONNECTIONS)
		return 2;
	count = argc - 3;
	pictures = calloc((size_t) count, sizeof(*pictures));
	for (int i = 0; i < count; i++)
		read_file(argv[3 + i], i);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int i = 0; i < connections; i++)
		pthread_create(&threads[i], NULL, run, (void *) (intptr_t) i);
	for (int i = 0; i < connections; i++)
		pthread_join(threads[i], NULL);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.4f\n", (double) (end.tv_sec - begin.tv_sec) +
		   (double) (end.tv_nsec - begin.tv_nsec) * 1e-9);
	return 0;
}
