/*
 * admission_adapters.c - the part of admission that sees to adapters.
 *
 * When a request's turn comes and its adapter is not on the device, its backend is asked for
 * the files (NEED) and the request leaves the queue, so that others go on. It comes back to
 * the front of the queue with the files (ADAPTER).
 *
 * Where many sessions of a role want the same adapter at once, as after a restart of the engine,
 * one is asked and the others wait for what it brings; if it takes its time, the next is
 * asked too.
 */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "server_internal.h"

/* How long the others wait for the one that was asked. */
#define PATIENCE_NANOSECONDS UINT64_C(500000000)

static bool
same_adapter(const Request *a, const Request *b)
{
	return a != b && a->wants_adapter && a->adapter_key.owner == b->adapter_key.owner &&
		memcmp(a->adapter_key.digest, b->adapter_key.digest, DIGEST_SIZE) == 0;
}

/* Whether another request will bring the adapter soon. */
static bool
somebody_brings(const Server *server, const Request *request)
{
	uint64_t	now = clock_now_ns();

	for (const Request *other = server->needing; other != NULL; other = other->next)
		if (same_adapter(other, request) && now - other->asked_ns < PATIENCE_NANOSECONDS)
			return true;
	for (const Request *other = server->waiting; other != NULL; other = other->next)
		if (same_adapter(other, request) && other->brings_adapter)
			return true;
	for (int i = 0; i < server->started_count; i++)
		if (same_adapter(server->started[i], request) && server->started[i]->brings_adapter)
			return true;
	return false;
}

AdapterTurn
adapters_turn(Server *server, Request *request)
{
	if (!request->wants_adapter || request->adapter != NULL)
		return ADAPTER_READY;
	if (!request_fits_model(request, model_digest(server->host.model)))
		return ADAPTER_REFUSED;
	request->adapter = adapter_set_take(server->host.adapters, &request->adapter_key);
	if (request->adapter != NULL)
	{
		request_drop_files(request);
		return ADAPTER_READY;
	}
	if (request->brings_adapter)
		return ADAPTER_READY;
	if (!somebody_brings(server, request))
		return ADAPTER_MISSING;
	server->impatient = true;
	return ADAPTER_COMING;
}

void
adapters_ask(Server *server, Request *request)
{
	request->asked_ns = clock_now_ns();
	request->next = server->needing;
	server->needing = request;
	admission_send(request->connection, WIRE_NEED, request->id, NULL, 0);
}

Request *
adapters_unlink(Server *server, const Connection *connection, uint64_t id, bool any)
{
	for (Request **link = &server->needing; *link != NULL; link = &(*link)->next)
		if ((*link)->connection == connection && (any || (*link)->id == id))
		{
			Request    *request = *link;

			*link = request->next;
			return request;
		}
	return NULL;
}

Request *
adapters_take_frame(Server *server, const Connection *connection, const WireHeader *header,
					uint8_t *payload)
{
	Request    *request = adapters_unlink(server, connection, header->id, false);

	if (request == NULL)		/* it was cancelled while this came */
	{
		free(payload);
		atomic_fetch_sub(&server->file_bytes, header->length);
		return NULL;
	}
	request->brings_adapter = true;
	request_take_files(request, payload, header->length, &server->file_bytes);
	return request;
}
