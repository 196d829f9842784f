/*
 * metrics.c - what the engine tells about itself.
 *
 * Keys of mmgpt_status(): version, state (loading, ready, failed), failure, progress, model,
 * model_digest, device, weight_format, pid, uptime_seconds;
 * requests: running, waiting, done, failed, cancelled, mean_milliseconds; without those of a
 * training;
 * scheduler: steps, rows_per_step (mean number of sequences that took part in a step),
 * tokens_per_step, prompt_tokens_computed (of prompts, and of labels and words that are scored),
 * prompt_tokens_reused, new_tokens, images_encoded, images_found;
 * training: open, waiting (trainings that wait for its end), share (percent of the time that it has
 * while requests wait), micro_step (done) and micro_steps, tokens (that went through it), seconds
 * (that it computed), slices (of all trainings so far);
 * adapters: adapters_held, adapters_loaded, adapters_evicted;
 * memory (bytes): weights, cache, pictures, workspace, adapters, adapters_limit, resident,
 * peak_resident.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "server_internal.h"
#include "version.h"

void
metrics_version_text(Server *server, char *buffer, size_t size)
{
	if (atomic_load(&server->host.state) == HOST_READY)
		snprintf(buffer, size, "%s (%s, %s)", MMGPT_VERSION,
				 server->host.backend->ops->describe(server->host.backend),
				 data_type_name(model_format(server->host.model)));
	else
		snprintf(buffer, size, "%s", MMGPT_VERSION);
}

/* A line of /proc/self/status in bytes; 0 where there is none. */
static json_int_t
process_memory(const char *key)
{
	char		line[256];
	long		kilobytes = 0;
	FILE	   *file = fopen("/proc/self/status", "re");

	if (file == NULL)
		return 0;
	while (kilobytes == 0 && fgets(line, sizeof(line), file) != NULL)
		if (strncmp(line, key, strlen(key)) == 0)
			kilobytes = atol(line + strlen(key));
	fclose(file);
	return (json_int_t) kilobytes * 1024;
}

static int
count_waiting(const Server *server)
{
	int			count = 0;

	for (const Request *request = server->waiting; request != NULL; request = request->next)
		count++;
	for (const Request *request = server->needing; request != NULL; request = request->next)
		count++;
	return count;
}

int
metrics_load(const Server *server)
{
	return count_waiting(server) + server->started_count + training_count_waiting(server) +
		(server->training.holder != NULL ? 1 : 0);
}

static double
mean(double sum, uint64_t count)
{
	return count > 0 ? sum / (double) count : 0;
}

static json_t *
requests_json(const Server *server)
{
	return json_pack("{s:i, s:i, s:I, s:I, s:I, s:f}", "running", server->started_count, "waiting",
					 count_waiting(server), "done", (json_int_t) server->done, "failed",
					 (json_int_t) server->errors, "cancelled", (json_int_t) server->cancelled,
					 "mean_milliseconds", mean((double) server->latency_ns * 1e-6, server->done));
}

static json_t *
scheduler_json(Server *server)
{
	SchedulerCounters counters;
	TrainingCounters training;

	model_host_counters(&server->host, &counters, &training);
	return json_pack("{s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:I}", "steps",
					 (json_int_t) counters.steps, "rows_per_step",
					 mean((double) counters.rows, counters.steps), "tokens_per_step",
					 mean((double) counters.tokens, counters.steps), "prompt_tokens_computed",
					 (json_int_t) counters.prompt_tokens, "prompt_tokens_reused",
					 (json_int_t) counters.prompt_tokens_reused,
					 "new_tokens", (json_int_t) counters.new_tokens, "images_encoded",
					 (json_int_t) counters.images_encoded, "images_found",
					 (json_int_t) counters.images_found);
}

static json_t *
training_json(Server *server)
{
	SchedulerCounters scheduler;
	TrainingCounters counters;

	model_host_counters(&server->host, &scheduler, &counters);
	return json_pack("{s:b, s:i, s:i, s:i, s:i, s:I, s:f, s:I}", "open", counters.open, "waiting",
					 training_count_waiting(server), "share", counters.share, "micro_step",
					 counters.micro_step, "micro_steps", counters.micro_steps, "tokens",
					 (json_int_t) counters.tokens, "seconds",
					 (double) counters.compute_ns * 1e-9, "slices",
					 (json_int_t) counters.slices);
}

static json_t *
adapters_json(const AdapterCounters *counters)
{
	return json_pack("{s:i, s:I, s:I}", "adapters_held", counters->held, "adapters_loaded",
					 (json_int_t) counters->loaded, "adapters_evicted",
					 (json_int_t) counters->evicted);
}

static json_t *
memory_json(Server *server, bool ready, const AdapterCounters *adapters)
{
	ModelDescription description = {0};

	if (ready)
		model_describe(server->host.model, &description);
	return json_pack(
		"{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "weights",
		(json_int_t) description.weight_bytes, "cache", (json_int_t) description.cache_bytes,
		"pictures", (json_int_t) description.media_bytes, "workspace",
		(json_int_t) description.workspace_bytes, "adapters", (json_int_t) adapters->bytes,
		"adapters_limit", (json_int_t) adapters->limit, "resident", process_memory("VmRSS:"),
		"peak_resident", process_memory("VmHWM:"));
}

static json_t *
status_json(Server *server)
{
	static const char *const states[] = {"loading", "ready", "failed"};
	HostState	state = atomic_load(&server->host.state);
	bool		ready = state == HOST_READY;
	AdapterCounters adapters = {0};
	json_t	   *root = json_pack("{s:s, s:s, s:s, s:i, s:f}", "version", MMGPT_VERSION, "state",
								 states[state], "model", server->options.host.directory, "pid",
								 (int) getpid(), "uptime_seconds",
								 (double) (clock_now_ns() - server->begin_ns) * 1e-9);

	if (ready)
	{
		adapter_set_counters(server->host.adapters, &adapters);
		json_object_set_new(root, "weight_format",
							json_string(data_type_name(model_format(server->host.model))));
		json_object_set_new(root, "model_digest", json_string(model_digest(server->host.model)));
		json_object_set_new(root, "device",
							json_string(server->host.backend->ops->describe(server->host.backend)));
	}
	else if (state == HOST_LOADING)
		json_object_set_new(root, "progress",
							json_real(atomic_load(&server->host.progress) / 1000.0));
	else
		json_object_set_new(root, "failure", json_string(server->host.failure.detail));
	json_object_set_new(root, "requests", requests_json(server));
	json_object_set_new(root, "scheduler", scheduler_json(server));
	json_object_set_new(root, "training", training_json(server));
	json_object_set_new(root, "adapters", adapters_json(&adapters));
	json_object_set_new(root, "memory", memory_json(server, ready, &adapters));
	return root;
}

void
metrics_answer_status(Server *server, Request *request)
{
	json_t	   *root = status_json(server);
	char	   *text = json_dumps(root, JSON_COMPACT);

	if (text == NULL)
		status_out_of_memory(&request->status, 0);
	else if (request_begin_answer(request, strlen(text) + WIRE_REQUEST_OVERHEAD))
		wire_write_bytes(&request->answer, WIRE_FIELD_JSON, text, strlen(text));
	free(text);
	json_decref(root);
}

void
metrics_answer_version(Server *server, Request *request)
{
	char		text[128];

	metrics_version_text(server, text, sizeof(text));
	if (request_begin_answer(request, sizeof(text) + WIRE_REQUEST_OVERHEAD))
		wire_write_bytes(&request->answer, WIRE_FIELD_TEXT, text, strlen(text));
}
