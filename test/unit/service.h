/*
 * service.h - requests without sockets, for unit tests: payloads as a backend sends them,
 * prepared and run by a scheduler in this thread.
 */
#ifndef MMGPT_TEST_SERVICE_H
#define MMGPT_TEST_SERVICE_H

#include "engine.h"
#include "request.h"

#define PAYLOAD_SIZE (4u << 20)

/* A payload being written, as a backend would. */
static UNIT_UNUSED WireWriter
payload_begin(WireKind kind)
{
	WireWriter	writer;

	wire_writer_begin(&writer, malloc(PAYLOAD_SIZE), PAYLOAD_SIZE);
	wire_write_u32(&writer, WIRE_FIELD_FLAGS, 0);
	wire_write_u32(&writer, WIRE_FIELD_KIND, kind);
	return writer;
}

static UNIT_UNUSED void
payload_text(WireWriter *writer, WireField field, const char *text)
{
	wire_write_bytes(writer, field, text, strlen(text));
}

/* Texts up to a NULL as the request's labels. */
static UNIT_UNUSED void
payload_labels(WireWriter *writer, const char *const *labels)
{
	uint8_t    *list = malloc(PAYLOAD_SIZE);
	uint8_t    *end = list;

	for (; *labels != NULL; labels++)
		end = wire_list_add(end, *labels, (uint32_t) strlen(*labels));
	wire_write_bytes(writer, WIRE_FIELD_LABELS, list, (size_t) (end - list));
	free(list);
}

/* A picture of a file. */
static UNIT_UNUSED void
payload_file(WireWriter *writer, const char *path)
{
	size_t		length;
	char	   *bytes = unit_read_file(path, &length);

	wire_write_bytes(writer, WIRE_FIELD_IMAGE, bytes, length);
	free(bytes);
}

static UNIT_UNUSED Request *
payload_request(WireWriter *writer)
{
	UNIT_CHECK(!writer->overflow);
	return request_create(1, writer->bytes, writer->used, NULL);
}

static UNIT_UNUSED void
service_note_done(Request *request, void *argument)
{
	*(bool *) argument = true;
}

/* Prepare a request and run it to its end on a scheduler. */
static UNIT_UNUSED void
service_run(Engine *engine, Scheduler *scheduler, Request *request)
{
	ModelContext context;
	bool		done = false;

	UNIT_CHECK(model_context_create(&context, engine->config, engine->tokenizer, engine->arena,
									&engine->status));
	if (!request_prepare(request, &context) || request->answered)
		return;
	request_run(request, scheduler, service_note_done, &done);
	while (!done && scheduler_step(scheduler))
		;
	UNIT_CHECK(done);
}

static UNIT_UNUSED Scheduler *
service_scheduler(Engine *engine)
{
	Scheduler  *scheduler = scheduler_create(engine->model, engine->tokenizer,
											 &(SchedulerOptions) {0}, &engine->status);

	if (scheduler == NULL)
		engine_bail("scheduler", &engine->status);
	return scheduler;
}

/* The same on a scheduler of its own. */
static UNIT_UNUSED void
run_request(Engine *engine, Request *request)
{
	Scheduler  *scheduler = service_scheduler(engine);

	service_run(engine, scheduler, request);
	scheduler_free(scheduler);
}

static UNIT_UNUSED WireFields
answer_fields(const Request *request)
{
	WireFields	fields;
	Status		status;

	if (!UNIT_CHECK(status_good(&request->status) && request->answered))
		printf("# %s\n", request->status.message);
	memset(&fields, 0, sizeof(fields));
	if (request->answered)
		UNIT_CHECK(wire_fields_read(request->answer.bytes, request->answer.used, &fields, &status));
	return fields;
}

#endif
