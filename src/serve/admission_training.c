/*
 * admission_training.c - the part of admission that sees to trainings.
 *
 * One training is open in the engine at most. It belongs to the connection that opened it, the
 * holder; other connections' TRAIN_OPENs wait here in order of arrival. Requests of a training
 * are handed on in their order and have no part in the queue of the others: they have no STARTED
 * and do not count among those at work, whose number is bounded.
 *
 * A request that runs alone waits until the model's thread has seen that it shall compute no slice,
 * and no training is opened meanwhile.
 */
#include <stdlib.h>

#include "request_training.h"
#include "server_internal.h"

/* Bytes of adapters that waiting TRAIN_OPENs bring, at most. They may wait for hours. */
#define OPENING_BUDGET ((size_t) 1 << 30)

/* ---- requests at work ---- */

static void
link_work(TrainingDesk *desk, Request *request)
{
	request->work_next = desk->work;
	request->work_link = &desk->work;
	if (desk->work != NULL)
		desk->work->work_link = &request->work_next;
	desk->work = request;
}

static void
unlink_work(Request *request)
{
	*request->work_link = request->work_next;
	if (request->work_next != NULL)
		request->work_next->work_link = request->work_link;
	request->work_link = NULL;
}

/* Hand a request of the open training on: to a preparer first, where something has to be read. */
static void
start(Server *server, Request *request)
{
	link_work(&server->training, request);
	if (request->kind == WIRE_KIND_TRAIN_OPEN || request->kind == WIRE_KIND_TRAIN_START)
		request_queue_push(&server->preparing, request);
	else
		request_queue_push(&server->host.inbox, request);
}

/* ---- beginning and end ---- */

/* The holder is gone or does not want its training: the model's thread frees it. */
static void
leave(Server *server)
{
	server->training.holder = NULL;
	server->training.opened = false;
	server->training.leaving = true;
	atomic_store(&server->host.abandon, true);
	request_queue_wake(&server->host.inbox);
}

static bool
is_opening(const Server *server, const Connection *connection)
{
	for (const Request *other = server->training.opening; other != NULL; other = other->next)
		if (other->connection == connection)
			return true;
	return server->training.holder == connection;
}

/* Let a TRAIN_OPEN wait for its turn. Its bytes don't count among the payloads meanwhile. */
static void
queue_opening(Server *server, Request *request)
{
	TrainingDesk *desk = &server->training;

	desk->opening_bytes += request->payload_size;
	server->payload_bytes -= request->payload_size;
	request->next = NULL;
	*desk->opening_end = request;
	desk->opening_end = &request->next;
}

/* Take the TRAIN_OPEN behind *link out of those that wait. */
static Request *
unlink_opening(Server *server, Request **link)
{
	TrainingDesk *desk = &server->training;
	Request    *request = *link;

	*link = request->next;
	if (desk->opening_end == &request->next)
		desk->opening_end = link;
	desk->opening_bytes -= request->payload_size;
	server->payload_bytes += request->payload_size;
	return request;
}

bool
training_take_request(Server *server, Request *request)
{
	TrainingDesk *desk = &server->training;

	if (request->kind != WIRE_KIND_TRAIN_OPEN)
	{
		if (desk->holder == NULL || desk->holder != request->connection || !desk->opened)
			return status_set(&request->status, STATUS_PROTOCOL,
							  "a request of a training on a connection that has none open");
		start(server, request);
		return true;
	}
	if (is_opening(server, request->connection))
		return status_set(&request->status, STATUS_PROTOCOL,
						  "a connection opened a second training");
	if (desk->opening_bytes + request->payload_size > OPENING_BUDGET)
		return status_set(&request->status, STATUS_OUT_OF_MEMORY,
						  "adapters of waiting trainings take %zu MB, and one more has %zu MB",
						  desk->opening_bytes >> 20, request->payload_size >> 20);
	queue_opening(server, request);
	return true;
}

Request *
training_next_refused(Server *server)
{
	return server->training.opening == NULL ? NULL
											: unlink_opening(server, &server->training.opening);
}

void
training_advance(Server *server)
{
	TrainingDesk *desk = &server->training;

	if (desk->leaving && desk->work == NULL && !atomic_load(&server->host.abandon))
		desk->leaving = false;
	if (desk->leaving || desk->holder != NULL || desk->opening == NULL || desk->hold % 2 == 1)
		return;
	desk->holder = desk->opening->connection;
	start(server, unlink_opening(server, &desk->opening));
}

bool
training_finish_request(Server *server, Request *request)
{
	TrainingDesk *desk = &server->training;
	bool		good = status_good(&request->status) && request->answered;

	if (request->work_link == NULL)
		return false;
	unlink_work(request);
	if (desk->leaving || request->connection != desk->holder)
		return true;
	if (request->kind == WIRE_KIND_TRAIN_CLOSE && good)
	{
		desk->holder = NULL;
		desk->opened = false;
	}
	else if (request->kind == WIRE_KIND_TRAIN_OPEN && good && atomic_load(&request->cancelled))
		leave(server);			/* nobody will hear that it is open */
	else if (request->kind == WIRE_KIND_TRAIN_OPEN)
	{
		desk->opened = good;
		if (!good)
			desk->holder = NULL;
	}
	return true;
}

/* ---- cancelling ---- */

Request *
training_unlink_opening(Server *server, const Connection *connection, uint64_t id, bool any)
{
	for (Request **link = &server->training.opening; *link != NULL; link = &(*link)->next)
		if ((*link)->connection == connection && (any || (*link)->id == id))
			return unlink_opening(server, link);
	return NULL;
}

void
training_cancel(Server *server, const Connection *connection, uint64_t id)
{
	for (Request *request = server->training.work; request != NULL; request = request->work_next)
		if (request->connection == connection && request->id == id)
			atomic_store(&request->cancelled, true);
}

void
training_forget(Server *server, const Connection *connection)
{
	for (Request *request = server->training.work; request != NULL; request = request->work_next)
		if (request->connection == connection)
		{
			atomic_store(&request->cancelled, true);
			request->connection = NULL;
		}
	if (server->training.holder == connection)
		leave(server);
}

/* ---- standing still ---- */

void
training_hold(Server *server, bool hold)
{
	TrainingDesk *desk = &server->training;

	if ((desk->hold % 2 == 1) == hold)
		return;
	atomic_store(&server->host.hold, ++desk->hold);
	request_queue_wake(&server->host.inbox);
}

bool
training_is_held(const Server *server)
{
	const TrainingDesk *desk = &server->training;

	return (desk->holder == NULL && !desk->leaving) ||
		(desk->hold % 2 == 1 && atomic_load(&server->host.hold_seen) == desk->hold);
}

int
training_count_waiting(const Server *server)
{
	int			count = 0;

	for (const Request *request = server->training.opening; request != NULL;
		 request = request->next)
		count++;
	return count;
}
