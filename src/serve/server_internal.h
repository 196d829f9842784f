/*
 * server_internal.h - the server's state, shared by its IO files. All of it belongs to the
 * IO thread, but for the queues.
 */
#ifndef MMGPT_SERVER_INTERNAL_H
#define MMGPT_SERVER_INTERNAL_H

#include <signal.h>

#include "connection.h"
#include "server.h"

/* Requests at work at once; as many as the scheduler runs. */
#define MAX_STARTED 64
/* Payloads held in memory at once; connections wait with theirs until it is less. */
#define PAYLOAD_BUDGET ((size_t) 512 * 1024 * 1024)
/*
 * The same for files of adapters. A budget of their own, or requests that fill the other one while
 * they wait for their adapters would wait for ever.
 */
#define FILE_BUDGET ((size_t) 256 * 1024 * 1024)

/* The training that is open, and those that wait for its end (admission_training.c). */
typedef struct TrainingDesk
{
	Connection *holder;			/* whose training is open or being opened; NULL: nobody's */
	bool		opened;			/* TRAIN_OPEN was answered */
	bool		leaving;		/* the holder is gone, and the model's thread frees its training */
	Request    *opening;		/* TRAIN_OPENs in order of arrival */
	Request   **opening_end;
	size_t		opening_bytes;	/* of their payloads */
	Request    *work;			/* requests of the training at work on other threads */
	uint32_t	hold;			/* odd: no slice may be computed */
} TrainingDesk;

typedef struct Server
{
	ServerOptions options;
	int32_t		told_load;		/* what the board says */
	int			epoll_fd;
	int			wake_fd;
	bool		stop;
	sigset_t	wait_mask;		/* signals blocked while the loop waits: not SIGTERM */
	bool		full;			/* no descriptors left: nobody is accepted until somebody goes */
	Connection *connections;
	uint64_t	accepted;		/* connections so far */
	size_t		payload_bytes;	/* of all requests and frames being read */
	atomic_size_t file_bytes;	/* of adapters' files, read or being read */
	bool		any_paused;

	Request    *waiting;		/* in order of arrival, not started */
	Request   **waiting_end;
	Request    *needing;		/* asked for their adapters */
	bool		impatient;		/* a waiting request counts on what another one will bring */
	Request   **started;		/* [MAX_STARTED]: at work on another thread */
	int			started_count;
	bool		alone;			/* the one started request runs alone */
	TrainingDesk training;
	int			encoding;		/* TRAIN_ENCODEs at work */
	int			preparers;

	ModelHost	host;
	RequestQueue preparing;

	uint64_t	begin_ns;
	uint64_t	done;
	uint64_t	errors;
	uint64_t	cancelled;
	uint64_t	latency_ns;		/* sum over done */
} Server;

/* ---- admission.c ---- */

/* A complete frame arrived. */
extern void admission_take_frame(Server *server, Connection *connection, const WireHeader *header,
								 uint8_t *payload);

/* Start whoever may start now; answer or refuse by the state of the model. */
extern void admission_advance(Server *server);

/* A request came back from another thread. */
extern void admission_finish(Server *server, Request *request);

/* A client is gone: forget its waiting requests, cancel the others. */
extern void admission_forget(Server *server, Connection *connection);

/* Tell all waiting requests how far the model is loaded. */
extern void admission_report_progress(Server *server);

/* The hello frame of a new connection. */
extern void admission_greet(Server *server, Connection *connection);

/* Send a frame; a connection that is broken is closed at the end of the turn. */
extern void admission_send(Connection *connection, WireType type, uint64_t id,
						   const void *payload, size_t length);

/* ---- admission_adapters.c ---- */

typedef enum AdapterTurn
{
	ADAPTER_READY,				/* the request may start: taken, brought, or none is wanted */
	ADAPTER_COMING,				/* another request brings it */
	ADAPTER_MISSING,			/* it has to be asked for */
	ADAPTER_REFUSED				/* never; see the request's status */
} AdapterTurn;

/* What a request whose turn it is needs first. */
extern AdapterTurn adapters_turn(Server *server, Request *request);

/* Ask for the adapter of a request that is in no list, and keep it among those that need one. */
extern void adapters_ask(Server *server, Request *request);

/* Take a request out of those that need an adapter: this one, or any of the connection's. */
extern Request *adapters_unlink(Server *server, const Connection *connection, uint64_t id,
								bool any);

/*
 * An adapter's files arrived. Returns the request that they are for, which is in no list now; NULL
 * if nobody wants them any more.
 */
extern Request *adapters_take_frame(Server *server, const Connection *connection,
									const WireHeader *header, uint8_t *payload);

/* ---- admission_training.c ---- */

/*
 * A request of a training arrived: it is handed on, or a TRAIN_OPEN waits for its turn. False: it
 * is refused, see its status.
 */
extern bool training_take_request(Server *server, Request *request);

/* Open the next training, if it may be opened now. */
extern void training_advance(Server *server);

/* A TRAIN_OPEN that waits, taken out; NULL: none does. For a model that can't be loaded. */
extern Request *training_next_refused(Server *server);

/* A request came back from another thread; false where it is not of a training. */
extern bool training_finish_request(Server *server, Request *request);

/* Take a waiting TRAIN_OPEN out: this one, or any of the connection's. NULL: there is none. */
extern Request *training_unlink_opening(Server *server, const Connection *connection, uint64_t id,
										bool any);

/* Cancel a request of a training that is at work. */
extern void training_cancel(Server *server, const Connection *connection, uint64_t id);

/* A client is gone: cancel its requests at work and free its training. */
extern void training_forget(Server *server, const Connection *connection);

/* Let the training stand still, or go on. */
extern void training_hold(Server *server, bool hold);

/* Whether no slice is computed until the training may go on. */
extern bool training_is_held(const Server *server);

/* TRAIN_OPENs that wait. */
extern int	training_count_waiting(const Server *server);

/* ---- metrics.c ---- */

/* Answer a status or version request. */
extern void metrics_answer_status(Server *server, Request *request);
extern void metrics_answer_version(Server *server, Request *request);

/* Requests that have come and were not answered, and trainings. */
extern int	metrics_load(const Server *server);

/* "1.0.0 (cpu avx512, 2 threads, f32)" into buffer. */
extern void metrics_version_text(Server *server, char *buffer, size_t size);

#endif
