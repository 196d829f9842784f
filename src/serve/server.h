/*
 * server.h - the engine as a server of backends.
 *
 * Threads: the IO thread (the caller) reads and writes all connections and decides who
 * starts; preparers read JSON, pictures and texts; the model's host computes. A
 * request travels IO -> preparer -> host -> IO through queues.
 */
#ifndef MMGPT_SERVER_H
#define MMGPT_SERVER_H

#include "model_host.h"

typedef struct ServerOptions
{
	int			listen_fd;		/* a listening socket; -1: make one at socket_path */
	const char *socket_path;
	int			lifeline_fd;	/* its end of file ends the server; -1: none */
	int			board_slot;		/* where the load is told (engine_board.h); -1: nowhere */
	bool		sandbox;		/* give up what serving does not need */
	ModelHostOptions host;
} ServerOptions;

/* Serve until SIGTERM or the end of the lifeline. False when it could not begin. */
extern bool server_run(const ServerOptions *options, Status *status);

#endif
