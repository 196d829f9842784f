/*
 * job_options.c - see job_options.h.
 */
#include "job_options.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#include "pg_compat.h"

#define DEFAULT_CHECKPOINT_SECONDS 60
#define GREATEST_CHECKPOINT_SECONDS (24 * 60 * 60)

const char *const row_column_names[ROW_COLUMNS] = {
	"image", "instruction", "input", "response", "conversation"
};

/* Options that are read here; the others are the engine's. */
static const char *const own_keys[] = {
	"columns", "key", "image_rules", "initial_adapter", "replace", "checkpoint_seconds"
};

/* Options that mmgpt_evaluate has; max_length is the engine's, unusable is read by both. */
static const char *const evaluation_keys[] = {
	"columns", "key", "image_rules", "unusable", "max_length"
};

/* Raise the error for a value that is not what it must be. */
static void
raise_wrong(const char *key, const char *must, JsonbValue *value)
{
	Jsonb	   *json = JsonbValueToJsonb(value);

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"%s\" must be %s, not %.64s", key, must,
					JsonbToCString(NULL, &json->root, VARSIZE(json)))));
}

/* The value of a key; NULL where it is absent or null. */
static JsonbValue *
find(Jsonb *json, const char *key)
{
	JsonbValue *value = getKeyJsonValueFromContainer(&json->root, key, (int) strlen(key), NULL);

	return value == NULL || value->type == jbvNull ? NULL : value;
}

/* A text that is not empty. */
static const char *
read_text(const char *key, const char *must, JsonbValue *value)
{
	if (value->type != jbvString || value->val.string.len == 0)
		raise_wrong(key, must, value);
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/* The column that a name in "columns" stands for. */
static RowColumn
find_column(const JsonbValue *name)
{
	for (int i = 0; i < ROW_COLUMNS; i++)
		if (strlen(row_column_names[i]) == (size_t) name->val.string.len &&
			memcmp(row_column_names[i], name->val.string.val, name->val.string.len) == 0)
			return (RowColumn) i;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"columns\" names \"%.*s\", which no row has", name->val.string.len,
					name->val.string.val),
			 errhint("It has any of image, instruction, input, response, conversation.")));
	pg_unreachable();
}

/* {"image": "photo", "input": null, ...} */
static void
read_columns(JsonbValue *value, JobOptions *options)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	item;
	RowColumn	column = COLUMN_IMAGE;

	if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		raise_wrong("columns", "an object such as {\"image\": \"photo\"}", value);
	iterator = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &item, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			column = find_column(&item);
		else if (token == WJB_VALUE && item.type == jbvNull)
			options->unused[column] = true;
		else if (token == WJB_VALUE)
			options->columns[column] = read_text("columns", "made of names of columns", &item);
	}
}

/* "id", or ["day", "number"] */
static void
read_key(JsonbValue *value, JobOptions *options)
{
	const char *must = "the name of a column or an array of such names";
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	item;

	if (value->type == jbvString)
	{
		options->key = list_make1(unconstify(char *, read_text("key", must, value)));
		return;
	}
	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		raise_wrong("key", must, value);
	iterator = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &item, true)) != WJB_DONE)
		if (token == WJB_ELEM)
			options->key = lappend(options->key,
								   unconstify(char *, read_text("key", must, &item)));
}

static bool
read_boolean(const char *key, JsonbValue *value)
{
	if (value->type != jbvBool)
		raise_wrong(key, "true or false", value);
	return value->val.boolean;
}

static int
read_seconds(const char *key, JsonbValue *value)
{
	double		number = -1;

	if (value->type == jbvNumeric)
		number = DatumGetFloat8(DirectFunctionCall1(numeric_float8,
													NumericGetDatum(value->val.numeric)));
	if (!(number >= 0 && number <= GREATEST_CHECKPOINT_SECONDS) || number != (int) number)
		raise_wrong(key, psprintf("an integer between 0 and %d", GREATEST_CHECKPOINT_SECONDS),
					value);
	return (int) number;
}

static const char *
read_rules(JsonbValue *value)
{
	const char *must = "\"display\" or \"original\"";
	const char *rules = read_text("image_rules", must, value);

	if (strcmp(rules, "display") != 0 && strcmp(rules, "original") != 0)
		raise_wrong("image_rules", must, value);
	return rules;
}

/* The options without those that are read here; NULL where none is left. */
static Jsonb *
without_own(Jsonb *json)
{
	Datum		keys[lengthof(own_keys)];
	ArrayType  *array;
	Jsonb	   *left;

	for (size_t i = 0; i < lengthof(own_keys); i++)
		keys[i] = CStringGetTextDatum(own_keys[i]);
	array = construct_array(keys, lengthof(own_keys), TEXTOID, -1, false, TYPALIGN_INT);
	left = DatumGetJsonbP(DirectFunctionCall2(jsonb_delete_array, JsonbPGetDatum(json),
											  PointerGetDatum(array)));
	return JB_ROOT_COUNT(left) > 0 ? left : NULL;
}

void
job_options_read(Jsonb *json, JobOptions *options)
{
	JsonbValue *value;

	memset(options, 0, sizeof(*options));
	options->image_rules = "display";
	options->checkpoint_seconds = DEFAULT_CHECKPOINT_SECONDS;
	if (json == NULL)
		return;
	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options are not a JSON object"),
				 errhint("Write them as {\"epochs\": 3, \"learning_rate\": 0.0002}.")));
	if ((value = find(json, "columns")) != NULL)
		read_columns(value, options);
	if ((value = find(json, "key")) != NULL)
		read_key(value, options);
	if ((value = find(json, "image_rules")) != NULL)
		options->image_rules = read_rules(value);
	if ((value = find(json, "initial_adapter")) != NULL)
		options->initial_adapter = read_text("initial_adapter", "the name of an adapter", value);
	if ((value = find(json, "replace")) != NULL)
		options->replace = read_boolean("replace", value);
	if ((value = find(json, "checkpoint_seconds")) != NULL)
		options->checkpoint_seconds = read_seconds("checkpoint_seconds", value);
	if ((value = find(json, "unusable")) != NULL)
		options->fail_unusable = value->type == jbvString && value->val.string.len == 4 &&
			memcmp(value->val.string.val, "fail", 4) == 0;
	options->training = without_own(json);
}

void
job_options_read_evaluation(Jsonb *json, JobOptions *options)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	key;

	job_options_read(json, options);
	if (json == NULL)
		return;
	iterator = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&iterator, &key, true)) != WJB_DONE)
	{
		bool		known = token != WJB_KEY;

		for (size_t i = 0; i < lengthof(evaluation_keys) && !known; i++)
			known = strlen(evaluation_keys[i]) == (size_t) key.val.string.len &&
				memcmp(evaluation_keys[i], key.val.string.val, key.val.string.len) == 0;
		if (!known)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown option \"%.*s\" of an evaluation",
							Min(key.val.string.len, 64), key.val.string.val),
					 errhint("Options are columns, key, image_rules, unusable, max_length.")));
	}
}
