/*
 * results.c - answers to Datums; see results.h.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "results.h"
#include "utf8.h"

#define REPLACEMENT '?'

/* Copy a text, replacing what is not UTF-8 and U+0000; length is updated. */
static char *
copy_valid(const char *utf8, size_t *length)
{
	char	   *copy;

	if (utf8_valid_prefix(utf8, *length) == *length && memchr(utf8, '\0', *length) == NULL)
		return pnstrdup(utf8, *length);
	copy = palloc(3 * *length + 1);
	*length = utf8_repair(utf8, *length, copy);
	copy[*length] = '\0';
	return copy;
}

/* Convert well-formed UTF-8 by a conversion procedure, with "?" for what it cannot convert. */
static char *
convert_with_replacement(Oid procedure, int encoding, const char *utf8, size_t length)
{
	size_t		room = length * MAX_CONVERSION_GROWTH + 1;
	char	   *converted = palloc(room);
	size_t		filled = 0;
	size_t		done = 0;

	while (done < length)
	{
		done += (size_t) pg_do_encoding_conversion_buf(procedure, PG_UTF8, encoding,
													   (unsigned char *) utf8 + done,
													   (int) (length - done),
													   (unsigned char *) converted + filled,
													   (int) (room - filled), true);
		filled += strlen(converted + filled);
		if (done < length)
		{
			done += utf8_character_length(utf8 + done, length - done);
			converted[filled++] = REPLACEMENT;
		}
	}
	converted[filled] = '\0';
	return converted;
}

/* Replace all that is not ASCII, which is the same in all encodings of servers. */
static char *
keep_ascii(char *text)
{
	for (char *c = text; *c != '\0'; c++)
		if (IS_HIGHBIT_SET(*c))
			*c = REPLACEMENT;
	return text;
}

char *
result_text_to_server(const char *utf8, size_t length)
{
	int			encoding = GetDatabaseEncoding();
	char	   *valid = copy_valid(utf8, &length);
	Oid			procedure;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII || length == 0)
		return valid;
	if (!IsTransactionState())
		return keep_ascii(valid);
	procedure = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(procedure))
		return pg_any_to_server(valid, (int) length, PG_UTF8);
	return convert_with_replacement(procedure, encoding, valid, length);
}

/* Raise an error unless the answer has the field. */
static void
check_field(const EngineAnswer *answer, WireField field)
{
	if (!wire_has(&answer->fields, field))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the answer of the mmgpt engine lacks field %d", (int) field)));
}

/* A text field in the database's encoding. */
static char *
field_characters(const EngineAnswer *answer, WireField field)
{
	check_field(answer, field);
	return result_text_to_server((const char *) answer->fields.bytes[field],
								 answer->fields.length[field]);
}

Datum
result_text(const EngineAnswer *answer)
{
	return CStringGetTextDatum(field_characters(answer, WIRE_FIELD_TEXT));
}

Datum
result_jsonb(const EngineAnswer *answer)
{
	return DirectFunctionCall1(jsonb_in,
							   CStringGetDatum(field_characters(answer, WIRE_FIELD_JSON)));
}

char *
result_json_field(Datum json, const char *key)
{
	return TextDatumGetCString(DirectFunctionCall2(jsonb_object_field_text, json,
												   CStringGetTextDatum(key)));
}

Datum
result_integer(const EngineAnswer *answer)
{
	int64_t		value;

	check_field(answer, WIRE_FIELD_INTEGER);
	value = wire_get_i64(&answer->fields, WIRE_FIELD_INTEGER, 0);
	if (value < PG_INT32_MIN || value > PG_INT32_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("the model's answer %lld is out of range for type integer",
						(long long) value)));
	return Int32GetDatum((int32) value);
}

Datum
result_real(const EngineAnswer *answer)
{
	check_field(answer, WIRE_FIELD_REAL);
	return Float4GetDatum((float4) wire_get_f64(&answer->fields, WIRE_FIELD_REAL, NAN));
}

Datum
result_boolean(const EngineAnswer *answer)
{
	check_field(answer, WIRE_FIELD_BOOLEAN);
	return BoolGetDatum(wire_get_u32(&answer->fields, WIRE_FIELD_BOOLEAN, 0) != 0);
}

/* Raise an error for a place that is not one of count. */
static void
check_place(int64_t place, int64_t first, int count)
{
	if (place < first || place >= count)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the answer of the mmgpt engine names element %lld of %d",
						(long long) place + 1, count)));
}

int
result_place(const EngineAnswer *answer, int count)
{
	int64_t		place;

	check_field(answer, WIRE_FIELD_INTEGER);
	place = wire_get_i64(&answer->fields, WIRE_FIELD_INTEGER, -1);
	check_place(place, 0, count);
	return (int) place;
}

int *
result_places(const EngineAnswer *answer, int count, int *chosen)
{
	size_t		length;
	int		   *places;

	check_field(answer, WIRE_FIELD_PLACES);
	length = answer->fields.length[WIRE_FIELD_PLACES] / sizeof(uint32_t);
	places = palloc(length * sizeof(int) + 1);
	for (size_t i = 0; i < length; i++)
	{
		uint32_t	place;

		memcpy(&place, answer->fields.bytes[WIRE_FIELD_PLACES] + i * sizeof(uint32_t),
			   sizeof(uint32_t));
		check_place(place, i == 0 ? 0 : places[i - 1] + 1, count);
		places[i] = (int) place;
	}
	*chosen = (int) length;
	return places;
}
