/*
 * arguments.c - build requests; see arguments.h.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "adapter_table.h"
#include "arguments.h"
#include "pg_compat.h"
#include "settings.h"

#define FIELDS_START_SIZE WIRE_REQUEST_OVERHEAD

/* Make room for a text of length bytes beside the fields of fixed size. */
static void
reserve(EngineRequest *request, size_t length)
{
	WireWriter *writer = &request->writer;
	size_t		needed = writer->used + length + WIRE_REQUEST_OVERHEAD;

	if (needed <= writer->size)
		return;
	writer->size = Max(needed, 2 * writer->size);
	writer->bytes = repalloc(writer->bytes, writer->size);
}

/* Count more bytes of the image or a text; raise an error if the call has too many then. */
static void
count_content(EngineRequest *request, size_t bytes)
{
	request->content += bytes;
	if (request->content > (size_t) setting_max_request_bytes)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("image and texts of the call have %zu bytes, more than the %d allowed",
						request->content, setting_max_request_bytes),
				 errhint("A superuser can raise mmgpt.max_request_bytes.")));
}

void
request_begin(EngineRequest *request, WireKind kind)
{
	memset(request, 0, sizeof(*request));
	wire_writer_begin(&request->writer, palloc(FIELDS_START_SIZE), FIELDS_START_SIZE);
	wire_write_u32(&request->writer, WIRE_FIELD_FLAGS, 0);
	wire_write_u32(&request->writer, WIRE_FIELD_KIND, (uint32_t) kind);
	wire_write_u32(&request->writer, WIRE_FIELD_DATABASE, MyDatabaseId);
	wire_write_u32(&request->writer, WIRE_FIELD_ROLE, GetUserId());
}

/* Convert a text in the database's encoding; length goes to that of the result. */
static char *
convert_to_utf8(char *characters, size_t *length)
{
	char	   *utf8 = pg_server_to_any(characters, (int) *length, PG_UTF8);

	if (utf8 != characters)
		*length = strlen(utf8);
	return utf8;
}

/* A text in UTF-8; counts its bytes, and updates length. */
static char *
count_and_convert(EngineRequest *request, char *characters, size_t *length)
{
	count_content(request, *length);
	return convert_to_utf8(characters, length);
}

/* Add a text in the database's encoding. */
static void
add_characters(EngineRequest *request, WireField field, char *characters, size_t length)
{
	char	   *utf8 = count_and_convert(request, characters, &length);

	reserve(request, length);
	wire_write_bytes(&request->writer, field, utf8, length);
}

void
request_add_text(EngineRequest *request, WireField field, const text *value)
{
	add_characters(request, field, VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
}

void
request_add_texts(EngineRequest *request, WireField field, const Datum *texts, int count)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < count; i++)
	{
		text	   *value = DatumGetTextPP(texts[i]);
		size_t		length = VARSIZE_ANY_EXHDR(value);
		char	   *utf8 = count_and_convert(request, VARDATA_ANY(value), &length);

		enlargeStringInfo(&list, (int) length + WIRE_LIST_HEADER_SIZE);
		wire_list_add((uint8_t *) list.data + list.len, utf8, (uint32_t) length);
		list.len += (int) length + WIRE_LIST_HEADER_SIZE;
	}
	reserve(request, (size_t) list.len);
	wire_write_bytes(&request->writer, field, list.data, (size_t) list.len);
}

void
request_add_json(EngineRequest *request, WireField field, Jsonb *value)
{
	StringInfoData json;

	initStringInfo(&json);
	JsonbToCString(&json, &value->root, VARSIZE(value));
	add_characters(request, field, json.data, (size_t) json.len);
}

/*
 * The name of the adapter to use: the option's, where it is there, and otherwise the setting's;
 * NULL: none. An option of a wrong type is left to the engine, which names it.
 */
static char *
adapter_name(Jsonb *options, bool *of_setting)
{
	JsonbValue	value;

	*of_setting = false;
	if (options != NULL && JB_ROOT_IS_OBJECT(options) &&
		getKeyJsonValueFromContainer(&options->root, "adapter", strlen("adapter"), &value) != NULL)
		return value.type == jbvString && value.val.string.len > 0 ?
			pnstrdup(value.val.string.val, value.val.string.len) : NULL;
	*of_setting = true;
	return setting_adapter[0] != '\0' ? setting_adapter : NULL;
}

void
request_set_adapter(EngineRequest *request, const char *name, AdapterRow *row)
{
	size_t		length = strlen(name);
	char	   *utf8 = convert_to_utf8(pstrdup(name), &length);

	reserve(request, length);
	wire_write_bytes(&request->writer, WIRE_FIELD_ADAPTER, row->digest, strlen(row->digest));
	wire_write_bytes(&request->writer, WIRE_FIELD_ADAPTER_MODEL, row->base_model,
					 strlen(row->base_model));
	wire_write_bytes(&request->writer, WIRE_FIELD_ADAPTER_NAME, utf8, length);
	request->adapter = row;
}

/* Add the adapter that the session or the call chose. */
static void
add_adapter(EngineRequest *request, Jsonb *options)
{
	bool		of_setting;
	char	   *name = adapter_name(options, &of_setting);
	AdapterRow *row;

	if (name == NULL)
		return;
	row = palloc(sizeof(AdapterRow));
	adapter_find(name, of_setting ? "It is the value of the setting mmgpt.adapter." : NULL, row);
	request_set_adapter(request, name, row);
}

void
request_add_options(EngineRequest *request, Jsonb *options)
{
	WireWriter *writer = &request->writer;
	int64_t		seed;

	reserve(request, 0);
	wire_write_u64(writer, WIRE_FIELD_MAX_PIXELS, (uint64_t) setting_max_image_pixels);
	wire_write_u32(writer, WIRE_FIELD_MAX_TOKENS, (uint32_t) setting_max_tokens);
	wire_write_f64(writer, WIRE_FIELD_TEMPERATURE, setting_temperature);
	wire_write_u32(writer, WIRE_FIELD_TOP_K, (uint32_t) setting_top_k);
	wire_write_f64(writer, WIRE_FIELD_TOP_P, setting_top_p);
	wire_write_u32(writer, WIRE_FIELD_NUM_BEAMS, (uint32_t) setting_num_beams);
	if (setting_seed_value(&seed))
		wire_write_i64(writer, WIRE_FIELD_SEED, seed);
	if (options != NULL)
		request_add_json(request, WIRE_FIELD_OPTIONS, options);
	add_adapter(request, options);
}

char *
request_json_text(Jsonb *config, size_t *length)
{
	char	   *text = JsonbToCString(NULL, &config->root, VARSIZE(config));

	*length = strlen(text);
	return convert_to_utf8(text, length);
}

void
request_add_bytes(EngineRequest *request, WireField field, const void *bytes, size_t length)
{
	reserve(request, length);
	wire_write_bytes(&request->writer, field, bytes, length);
}

void
request_add_uncounted_json(EngineRequest *request, WireField field, Jsonb *value)
{
	size_t		length;
	char	   *text;

	if (value == NULL)
		return;
	text = request_json_text(value, &length);
	request_add_bytes(request, field, text, length);
}

void
request_set_tail(EngineRequest *request, WireField field, const void *bytes, size_t length)
{
	reserve(request, 0);
	request->image = bytes;
	request->image_length = length;
	wire_write_tail(&request->writer, field, length);
}

void
request_set_files(EngineRequest *request, const char *tensors, size_t size, Jsonb *config)
{
	request_add_uncounted_json(request, WIRE_FIELD_ADAPTER_CONFIG, config);
	request_set_tail(request, WIRE_FIELD_ADAPTER_TENSORS, tensors, size);
}

void
request_set_image(EngineRequest *request, Datum image)
{
	bytea	   *bytes;

	count_content(request, toast_raw_datum_size(image) - VARHDRSZ);
	bytes = DatumGetByteaPP(image);
	request_set_tail(request, WIRE_FIELD_IMAGE, VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes));
}
