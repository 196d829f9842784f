/*
 * request_adapter.c - the adapter of a request: which one, its files where the engine
 * had to ask for them, and what is read of them on which thread.
 *
 *	IO			request_read_adapter, request_take_files
 *	preparer	request_verify_files; request_check_adapter for an import
 *	model		request_load_adapter
 */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "request_training.h"

/* The value of a hexadecimal digit; -1: it is none. */
static int
hex_value(uint8_t digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* Read a digest of 64 digits. */
static bool
read_digest(const WireFields *fields, WireField field, uint8_t digest[DIGEST_SIZE])
{
	const uint8_t *text = fields->bytes[field];

	if (text == NULL || fields->length[field] != 2 * DIGEST_SIZE)
		return false;
	for (int i = 0; i < DIGEST_SIZE; i++)
	{
		int			high = hex_value(text[2 * i]);
		int			low = hex_value(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return false;
		digest[i] = (uint8_t) (high << 4 | low);
	}
	return true;
}

/* The adapter's name for a message, cut where it is long. */
static const char *
adapter_name(const Request *request, char name[REQUEST_NAME_SIZE])
{
	size_t		length = request->fields.length[WIRE_FIELD_ADAPTER_NAME];

	if (length > REQUEST_NAME_SIZE - 1)
		length = REQUEST_NAME_SIZE - 1;
	if (length > 0)
		memcpy(name, request->fields.bytes[WIRE_FIELD_ADAPTER_NAME], length);
	name[length] = '\0';
	return name;
}

bool
request_read_adapter(Request *request)
{
	uint8_t		model[DIGEST_SIZE];

	if (!wire_has(&request->fields, WIRE_FIELD_ADAPTER) || !request_needs_model(request) ||
		request_is_training(request))
		return true;
	if (!read_digest(&request->fields, WIRE_FIELD_ADAPTER, request->adapter_key.digest) ||
		!read_digest(&request->fields, WIRE_FIELD_ADAPTER_MODEL, model))
		return status_set(&request->status, STATUS_PROTOCOL,
						  "a request with an adapter lacks a digest");
	request->wants_adapter = true;
	request->adapter_key.owner = request->owner;
	return true;
}

bool
request_fits_model(Request *request, const char *digest)
{
	char		name[REQUEST_NAME_SIZE];
	const char *wanted = (const char *) request->fields.bytes[WIRE_FIELD_ADAPTER_MODEL];

	if (memcmp(wanted, digest, 2 * DIGEST_SIZE) == 0)
		return true;
	status_set(&request->status, STATUS_OTHER_MODEL,
			   "adapter \"%s\" was made for another model than the loaded one",
			   adapter_name(request, name));
	status_detail(&request->status, "Its model has the digest %.64s, the loaded one %s.", wanted,
				  digest);
	return status_hint(&request->status,
					   "If the models differ in format only, import what mmgpt_adapter_export() "
					   "gives under another name: that checks it against the loaded one.");
}

bool
request_read_content(const WireFields *fields, AdapterContent *content, Status *status)
{
	content->config = (const char *) fields->bytes[WIRE_FIELD_ADAPTER_CONFIG];
	content->config_length = fields->length[WIRE_FIELD_ADAPTER_CONFIG];
	content->tensors = fields->bytes[WIRE_FIELD_ADAPTER_TENSORS];
	content->tensors_length = fields->length[WIRE_FIELD_ADAPTER_TENSORS];
	return (content->config != NULL && content->tensors != NULL) ||
		status_set(status, STATUS_PROTOCOL, "the files of an adapter are incomplete");
}

bool
request_take_files(Request *request, uint8_t *payload, size_t size, atomic_size_t *counter)
{
	WireFields	fields;

	request->files = payload;
	request->files_size = size;
	request->files_counter = counter;
	return wire_fields_read(payload, size, &fields, &request->status) &&
		request_read_content(&fields, &request->content, &request->status);
}

void
request_drop_files(Request *request)
{
	if (request->files == NULL)
		return;
	free(request->files);
	request->files = NULL;
	atomic_fetch_sub(request->files_counter, request->files_size);
}

bool
request_verify_files(Request *request)
{
	uint8_t		digest[DIGEST_SIZE];
	char		name[REQUEST_NAME_SIZE];
	char		hex[DIGEST_HEX_SIZE];

	if (request->files == NULL)
		return true;
	adapter_content_digest(&request->content, digest);
	if (memcmp(digest, request->adapter_key.digest, DIGEST_SIZE) == 0)
		return true;
	digest_to_hex(digest, hex);
	status_set(&request->status, STATUS_DAMAGED_ADAPTER, "adapter \"%s\" is damaged",
			   adapter_name(request, name));
	status_detail(&request->status, "Its files have the digest %s, and %.64s is stored with them.",
				  hex, (const char *) request->fields.bytes[WIRE_FIELD_ADAPTER]);
	return status_hint(&request->status, "Import it again.");
}

bool
request_load_adapter(Request *request, AdapterSet *set, Model *model)
{
	if (!request->wants_adapter)
		return true;
	if (request->adapter == NULL &&
		!adapter_set_load(set, model, &request->adapter_key, &request->content, &request->adapter,
						  &request->status))
		return false;
	request_drop_files(request);
	request->options.adapter = request->adapter;
	if (adapter_changes_pictures(request->adapter))
		request->pictures.adapter = request->adapter;
	return true;
}

/* ---- an adapter that is to be imported ---- */

json_t *
request_target_names(unsigned targets)
{
	json_t	   *names = json_array();

	for (int i = 0; adapter_target_name(i) != NULL; i++)
		if ((targets >> i & 1) != 0)
			json_array_append_new(names, json_string(adapter_target_name(i)));
	return names;
}

/* The description as JSON text; NULL: out of memory. */
static char *
description_text(const char *model, const char *digest, const AdapterDescription *description)
{
	json_t	   *root = json_pack("{s:s, s:s, s:I, s:i, s:f, s:o}", "digest", digest, "base_model",
								 model, "parameters", (json_int_t) description->parameters, "rank",
								 description->rank, "alpha", description->alpha, "targets",
								 request_target_names(description->targets));
	char	   *text = root == NULL ? NULL : json_dumps(root, JSON_COMPACT);

	json_decref(root);
	return text;
}

char *
request_describe_adapter(Request *request, const ModelContext *context,
						 const AdapterContent *content)
{
	AdapterDescription description;
	uint8_t		digest[DIGEST_SIZE];
	char		hex[DIGEST_HEX_SIZE];
	char	   *text;

	if (!adapter_check_content(context->model, content, &description, &request->status))
	{
		if (request->status.code == STATUS_INVALID_MODEL)
			request->status.code = STATUS_INVALID_ADAPTER;
		return NULL;
	}
	if (!adapter_set_allows(context->adapters, description.parameters * sizeof(float),
							&request->status))
		return NULL;
	adapter_content_digest(content, digest);
	digest_to_hex(digest, hex);
	text = description_text(model_digest(context->model), hex, &description);
	if (text == NULL)
		status_out_of_memory(&request->status, 0);
	return text;
}

void
request_check_adapter(Request *request, const ModelContext *context)
{
	AdapterContent content;
	char	   *text;

	if (!request_read_content(&request->fields, &content, &request->status))
		return;
	text = request_describe_adapter(request, context, &content);
	if (text != NULL && request_begin_answer(request, strlen(text) + WIRE_REQUEST_OVERHEAD))
		wire_write_bytes(&request->answer, WIRE_FIELD_JSON, text, strlen(text));
	free(text);
}
