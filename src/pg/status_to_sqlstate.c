/*
 * status_to_sqlstate.c - see status_to_sqlstate.h.
 */
#include "postgres.h"

#include "results.h"
#include "status_to_sqlstate.h"

int
status_to_sqlstate(StatusCode code)
{
	switch (code)
	{
		case STATUS_INVALID_ARGUMENT:
		case STATUS_USAGE:
			return ERRCODE_INVALID_PARAMETER_VALUE;
		case STATUS_INVALID_JSON:
			return ERRCODE_INVALID_JSON_TEXT;
		case STATUS_INVALID_IMAGE:
		case STATUS_INVALID_ADAPTER:
			return ERRCODE_INVALID_BINARY_REPRESENTATION;
		case STATUS_IMAGE_TOO_LARGE:
		case STATUS_PROMPT_TOO_LONG:
			return ERRCODE_PROGRAM_LIMIT_EXCEEDED;
		case STATUS_INVALID_TEXT:
			return ERRCODE_CHARACTER_NOT_IN_REPERTOIRE;
		case STATUS_OUT_OF_MEMORY:
			return ERRCODE_OUT_OF_MEMORY;
		case STATUS_MODEL_UNAVAILABLE:
		case STATUS_INVALID_MODEL:
		case STATUS_OTHER_MODEL:
			return ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
		case STATUS_CANCELLED:
			return ERRCODE_QUERY_CANCELED;
		case STATUS_ENGINE_LOST:
			return ERRCODE_SYSTEM_ERROR;
		case STATUS_PROTOCOL:
			return ERRCODE_PROTOCOL_VIOLATION;
		case STATUS_NOT_SUPPORTED:
			return ERRCODE_FEATURE_NOT_SUPPORTED;
		case STATUS_IO:
			return ERRCODE_IO_ERROR;
		case STATUS_DAMAGED_ADAPTER:
			return ERRCODE_DATA_CORRUPTED;
		case STATUS_SUCCESS:
		case STATUS_INTERNAL:
			break;
	}
	return ERRCODE_INTERNAL_ERROR;
}

void
status_raise(const Status *status)
{
	const char *message = result_text_to_server(status->message, strlen(status->message));
	const char *detail = result_text_to_server(status->detail, strlen(status->detail));
	const char *hint = result_text_to_server(status->hint, strlen(status->hint));

	ereport(ERROR,
			(errcode(status_to_sqlstate(status->code)),
			 errmsg("%s", message),
			 detail[0] != '\0' ? errdetail("%s", detail) : 0,
			 hint[0] != '\0' ? errhint("%s", hint) : 0));
	pg_unreachable();
}
