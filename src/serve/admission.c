/*
 * admission.c - who starts when.
 *
 * Nothing in a request is looked at before its STARTED frame was written, so a backend
 * whose engine is lost knows whether its request can have been the reason. A request
 * that was lost once comes back with WIRE_FLAG_ALONE: it starts when nothing else is at
 * work, and nothing starts while it is.
 *
 * Questions about the engine itself (status, version) are answered at once, by the IO
 * thread; small pictures' headers and short texts' tokens too.
 */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "request_training.h"
#include "server_internal.h"
#include "version.h"

/* Payload of an ERROR frame at most. */
#define ERROR_SIZE 2048
/* Answers of this size are not copied on their way out: checkpoints and adapters. */
#define LARGE_ANSWER ((size_t) 256 * 1024)
/* Requests at work that a connection may have before it counts that others have fewer. */
#define FAIR_PART 4
/* Larger pictures and texts go to a preparer, so that no other connection waits for them. */
#define QUICK_PAYLOAD ((size_t) 64 * 1024)

void
admission_send(Connection *connection, WireType type, uint64_t id, const void *payload,
			   size_t length)
{
	if (!connection_send(connection, type, id, payload, length))
		connection->closing = true;
}

static void
release_request(void *argument)
{
	request_free(argument);
}

/* Send the answer of a request and free it, when it was sent if that takes long. */
static void
send_answer(Request *request)
{
	Connection *connection = request->connection;
	const WireWriter *payload = &request->answer;

	if (payload->used < LARGE_ANSWER)
	{
		admission_send(connection, WIRE_ANSWER, request->id, payload->bytes, payload->used);
		request_free(request);
	}
	else if (!connection_send_held(connection, WIRE_ANSWER, request->id, payload->bytes,
								   payload->used, release_request, request))
		connection->closing = true;
}

/* Count a request that ends. Those of a training are many and no answers, or wait for hours. */
static void
count_end(Server *server, const Request *request)
{
	if (request_is_training(request))
		return;
	if (atomic_load(&request->cancelled) || request->connection == NULL)
		server->cancelled++;
	else if (status_good(&request->status) && request->answered)
	{
		server->done++;
		server->latency_ns += clock_now_ns() - request->received_ns;
	}
	else
		server->errors++;
}

/* Send what came out of a request and free it. */
static void
answer(Server *server, Request *request)
{
	Connection *connection = request->connection;
	uint8_t		error[ERROR_SIZE];
	WireWriter	writer;

	server->payload_bytes -= request->payload_size;
	if (request->adapter != NULL)
	{
		adapter_set_release(server->host.adapters, request->adapter);
		request_queue_wake(&server->host.inbox);	/* somebody may wait for its room */
	}
	count_end(server, request);
	if (atomic_load(&request->cancelled) || connection == NULL)
		;						/* nobody waits for it */
	else if (status_good(&request->status) && request->answered)
	{
		send_answer(request);
		return;
	}
	else
	{
		if (status_good(&request->status))
			status_set(&request->status, STATUS_INTERNAL, "a request ended without an answer");
		wire_writer_begin(&writer, error, sizeof(error));
		wire_write_status(&writer, &request->status);
		admission_send(connection, WIRE_ERROR, request->id, writer.bytes, writer.used);
	}
	request_free(request);
}

void
admission_greet(Server *server, Connection *connection)
{
	uint8_t		payload[512];
	char		version[128];
	const char *digest = atomic_load(&server->host.state) == HOST_READY
							 ? model_digest(server->host.model)
							 : "";
	WireWriter	writer;

	metrics_version_text(server, version, sizeof(version));
	wire_writer_begin(&writer, payload, sizeof(payload));
	wire_write_u32(&writer, WIRE_FIELD_WIRE_VERSION, WIRE_VERSION);
	wire_write_bytes(&writer, WIRE_FIELD_ENGINE_VERSION, version, strlen(version));
	wire_write_bytes(&writer, WIRE_FIELD_MODEL_DIGEST, digest, strlen(digest));
	admission_send(connection, WIRE_HELLO, 0, writer.bytes, writer.used);
}

/* Take a request out of those at work. */
static void
remove_started(Server *server, Request *request)
{
	for (int i = 0; i < server->started_count; i++)
		if (server->started[i] == request)
		{
			server->started[i] = server->started[--server->started_count];
			break;
		}
	if (request->connection != NULL)
		((Connection *) request->connection)->started--;
	if (request->kind == WIRE_KIND_TRAIN_ENCODE)
		server->encoding--;
	if (server->started_count == 0)
		server->alone = false;
}

void
admission_finish(Server *server, Request *request)
{
	if (!training_finish_request(server, request))
		remove_started(server, request);
	answer(server, request);
}

/* Announce a request and hand it to a preparer. */
static void
start(Server *server, Request *request)
{
	server->alone = request->alone;
	server->encoding += request->kind == WIRE_KIND_TRAIN_ENCODE;
	admission_send(request->connection, WIRE_STARTED, request->id, NULL, 0);
	server->started[server->started_count++] = request;
	((Connection *) request->connection)->started++;
	model_host_announce(&server->host, request);
	request_queue_push(&server->preparing, request);
}

/* Whether the request may start now. */
static bool
may_start(const Server *server, const Request *request)
{
	if (server->alone || server->started_count == MAX_STARTED)
		return false;
	if (request->alone && (server->started_count > 0 || !training_is_held(server)))
		return false;
	return !request_needs_model(request) || atomic_load(&server->host.state) == HOST_READY;
}

/*
 * Whether others go first because the request is one of many rows that are encoded: a preparer
 * stays free for those who wait for an answer.
 */
static bool
may_be_passed(const Server *server, const Request *request)
{
	return request->kind == WIRE_KIND_TRAIN_ENCODE && !request->alone && !server->alone &&
		server->encoding > 0 && server->encoding >= server->preparers - 1;
}

/*
 * The fewest requests at work of a connection that waits for more and could start one now; those
 * behind one alone can't.
 */
static int
fewest_started(const Server *server)
{
	int			fewest = MAX_STARTED;

	for (const Request *request = server->waiting; request != NULL && !request->alone;
		 request = request->next)
	{
		const Connection *connection = request->connection;

		if (connection->started < fewest && !may_be_passed(server, request))
			fewest = connection->started;
	}
	return fewest;
}

/* Whether others go first because the request's connection has its part, and one has less. */
static bool
has_its_part(const Request *request, int fewest)
{
	const Connection *connection = request->connection;

	return !request->alone && connection->started >= FAIR_PART && connection->started > fewest;
}

/* Take the request behind *link out of the waiting ones. */
static Request *
unlink_waiting(Server *server, Request **link)
{
	Request    *request = *link;

	*link = request->next;
	if (server->waiting_end == &request->next)
		server->waiting_end = link;
	return request;
}

/*
 * Start the request behind *link, whose turn it is, or see to its adapter first. *link goes to the
 * next one.
 */
static void
take_turn(Server *server, Request ***link)
{
	Request    *request = **link;

	switch (adapters_turn(server, request))
	{
		case ADAPTER_READY:
			start(server, unlink_waiting(server, *link));
			break;
		case ADAPTER_COMING:
			*link = &request->next;
			break;
		case ADAPTER_MISSING:
			adapters_ask(server, unlink_waiting(server, *link));
			break;
		case ADAPTER_REFUSED:
			answer(server, unlink_waiting(server, *link));
			break;
	}
}

/* Let the training stand still while a request runs alone, or is the next to do so. */
static void
hold_training(Server *server)
{
	training_hold(server, server->alone || (server->waiting != NULL && server->waiting->alone));
}

/*
 * Start whoever may start, in order of arrival but for those whose turn it is not. True if it is to
 * be done once more, as turns have changed.
 */
static bool
start_waiting(Server *server, HostState state)
{
	Request   **link = &server->waiting;
	int			fewest = server->started_count < MAX_STARTED ? fewest_started(server) : 0;
	int			before = server->started_count;
	bool		passed = false;

	while (*link != NULL)
	{
		Request    *request = *link;

		if (state == HOST_FAILED && request_needs_model(request))
		{
			request = unlink_waiting(server, link);
			request->status = server->host.failure;
			answer(server, request);
		}
		else if (may_be_passed(server, request))
			link = &request->next;
		else if (may_start(server, request) && has_its_part(request, fewest))
		{
			passed = true;
			link = &request->next;
		}
		else if (may_start(server, request))
			take_turn(server, &link);
		else if (state == HOST_LOADING)
			link = &request->next;	/* somebody behind may not need the model */
		else
			break;				/* in order, so that a request that has to be alone gets its turn */
	}
	return passed && server->started_count > before;
}

void
admission_advance(Server *server)
{
	HostState	state = atomic_load(&server->host.state);
	Request    *refused;

	while (state == HOST_FAILED && (refused = training_next_refused(server)) != NULL)
	{
		refused->status = server->host.failure;
		answer(server, refused);
	}
	hold_training(server);
	if (state == HOST_READY)
		training_advance(server);
	server->impatient = false;
	while (start_waiting(server, state))
		;
	hold_training(server);		/* those before one that has to be alone may be gone now */
}

/*
 * Whether the IO thread itself may look into the request: it takes microseconds, and nobody has to
 * be alone.
 */
static bool
is_quick(const Server *server, const Request *request)
{
	if (request->alone || server->alone || request->payload_size > QUICK_PAYLOAD)
		return false;
	return request->kind == WIRE_KIND_IMAGE_INFO ||
		(request->kind == WIRE_KIND_TOKEN_COUNT && atomic_load(&server->host.state) == HOST_READY);
}

/* Answer what needs neither a model nor another thread. */
static bool
answer_at_once(Server *server, Request *request)
{
	if (status_good(&request->status))
	{
		if (request->kind == WIRE_KIND_STATUS)
			metrics_answer_status(server, request);
		else if (request->kind == WIRE_KIND_VERSION)
			metrics_answer_version(server, request);
		else if (is_quick(server, request))
		{
			admission_send(request->connection, WIRE_STARTED, request->id, NULL, 0);
			request_answer_without_model(request, &server->host.context);
		}
		else
			return false;
	}
	answer(server, request);
	return true;
}

static void
cancel(Server *server, const Connection *connection, uint64_t id)
{
	Request   **link = &server->waiting;
	Request    *found = adapters_unlink(server, connection, id, false);

	if (found == NULL)
		found = training_unlink_opening(server, connection, id, false);
	if (found != NULL)
	{
		atomic_store(&found->cancelled, true);
		answer(server, found);
		return;
	}
	while (*link != NULL)
	{
		if ((*link)->connection == connection && (*link)->id == id)
		{
			Request    *request = unlink_waiting(server, link);

			atomic_store(&request->cancelled, true);
			answer(server, request);
			return;
		}
		link = &(*link)->next;
	}
	for (int i = 0; i < server->started_count; i++)
		if (server->started[i]->connection == connection && server->started[i]->id == id)
			atomic_store(&server->started[i]->cancelled, true);
	training_cancel(server, connection, id);
}

/* The files of an adapter came: their request has its turn next. */
static void
take_files(Server *server, const Connection *connection, const WireHeader *header,
		   uint8_t *payload)
{
	Request    *request = adapters_take_frame(server, connection, header, payload);

	if (request == NULL)
		return;
	if (!status_good(&request->status))
	{
		answer(server, request);
		return;
	}
	request->next = server->waiting;
	if (server->waiting == NULL)
		server->waiting_end = &request->next;
	server->waiting = request;
}

void
admission_take_frame(Server *server, Connection *connection, const WireHeader *header,
					 uint8_t *payload)
{
	Request    *request;

	if (header->type == WIRE_ADAPTER)
	{
		take_files(server, connection, header, payload);
		return;
	}
	if (header->type == WIRE_REQUEST)
	{
		request = request_create(header->id, payload, header->length, connection);
		if (request != NULL)
		{
			request->session = connection->number;
			if (answer_at_once(server, request))
				return;
			if (request_is_training(request))
			{
				if (!training_take_request(server, request))
					answer(server, request);
				return;
			}
			request->next = NULL;
			*server->waiting_end = request;
			server->waiting_end = &request->next;
			return;
		}
		log_write(ENGINE_WARNING, "out of memory for a request of %u bytes", header->length);
		connection->closing = true;
	}
	else if (header->type == WIRE_CANCEL)
		cancel(server, connection, header->id);
	else
	{
		log_write(ENGINE_WARNING, "a connection sent a frame of type %u and is closed",
				  header->type);
		connection->closing = true;
	}
	free(payload);
	server->payload_bytes -= header->length;
}

void
admission_forget(Server *server, Connection *connection)
{
	Request   **link = &server->waiting;
	Request    *waiting;

	while ((waiting = adapters_unlink(server, connection, 0, true)) != NULL ||
		   (waiting = training_unlink_opening(server, connection, 0, true)) != NULL)
	{
		waiting->connection = NULL;
		answer(server, waiting);
	}
	training_forget(server, connection);
	while (*link != NULL)
	{
		if ((*link)->connection == connection)
		{
			Request    *request = unlink_waiting(server, link);

			request->connection = NULL;
			answer(server, request);
		}
		else
			link = &(*link)->next;
	}
	for (int i = 0; i < server->started_count; i++)
		if (server->started[i]->connection == connection)
		{
			atomic_store(&server->started[i]->cancelled, true);
			server->started[i]->connection = NULL;
		}
}

void
admission_report_progress(Server *server)
{
	uint8_t		payload[64];
	WireWriter	writer;

	wire_writer_begin(&writer, payload, sizeof(payload));
	wire_write_f64(&writer, WIRE_FIELD_FRACTION, atomic_load(&server->host.progress) / 1000.0);
	for (Request *request = server->waiting; request != NULL; request = request->next)
		admission_send(request->connection, WIRE_PROGRESS, request->id, writer.bytes, writer.used);
	for (Request *request = server->training.opening; request != NULL; request = request->next)
		admission_send(request->connection, WIRE_PROGRESS, request->id, writer.bytes, writer.used);
}
