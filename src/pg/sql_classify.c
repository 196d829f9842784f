/*
 * sql_classify.c - the functions that choose among given labels.
 *
 * Both take (image, labels, options) and give NULL where image or labels is NULL. Labels are
 * checked here for what only an array can have wrong (dimensions, null elements), and by the
 * engine for the rest. The engine answers with places in the array, so that the caller
 * gets his own labels back, whatever the database's encoding.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"

#include "arguments.h"
#include "pg_compat.h"
#include "results.h"

SQL_FUNCTION(mmgpt_classify);
SQL_FUNCTION(mmgpt_classify_multi);

/* The elements of a labels array; raises an error where it is no list of texts. */
static Datum *
label_elements(ArrayType *labels, int *count)
{
	Datum	   *elements;
	bool	   *nulls;

	if (ARR_NDIM(labels) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("labels must be a one-dimensional array, not one of %d dimensions",
						ARR_NDIM(labels))));
	deconstruct_array(labels, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, count);
	for (int i = 0; i < *count; i++)
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("label %d is null", i + 1),
					 errhint("array_remove(labels, NULL) leaves null elements out.")));
	return elements;
}

/* Ask which of the labels fit an image. */
static void
classify(FunctionCallInfo fcinfo, WireKind kind, const Datum *labels, int count,
		 EngineAnswer *answer)
{
	EngineRequest request;

	request_begin(&request, kind);
	request_add_texts(&request, WIRE_FIELD_LABELS, labels, count);
	request_add_options(&request, PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2));
	request_set_image(&request, PG_GETARG_DATUM(0));
	engine_ask(&request, answer);
}

/* mmgpt_classify(image, labels, options) -> text */
Datum
mmgpt_classify(PG_FUNCTION_ARGS)
{
	EngineAnswer answer;
	Datum	   *labels;
	int			count;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	labels = label_elements(PG_GETARG_ARRAYTYPE_P(1), &count);
	classify(fcinfo, WIRE_KIND_CLASSIFY, labels, count, &answer);
	return labels[result_place(&answer, count)];
}

/* mmgpt_classify_multi(image, labels, options) -> text[] */
Datum
mmgpt_classify_multi(PG_FUNCTION_ARGS)
{
	EngineAnswer answer;
	Datum	   *labels;
	int		   *places;
	int			count;
	int			chosen;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	labels = label_elements(PG_GETARG_ARRAYTYPE_P(1), &count);
	if (count == 0)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(TEXTOID));
	classify(fcinfo, WIRE_KIND_CLASSIFY_MULTI, labels, count, &answer);
	places = result_places(&answer, count, &chosen);
	for (int i = 0; i < chosen; i++)
		labels[i] = labels[places[i]];	/* places ascend */
	PG_RETURN_ARRAYTYPE_P(construct_array(labels, chosen, TEXTOID, -1, false, TYPALIGN_INT));
}
