/*
 * sentencepiece_shim.cc - libsentencepiece behind C; see sentencepiece_shim.h.
 *
 * The only C++ of the engine. Each function turns the library's errors and
 * exceptions (memory that is out is the one to be expected) into a Status.
 */
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include <sentencepiece_processor.h>

#include "sentencepiece_shim.h"

namespace sentencepiece
{
namespace logging
{
/* Exported by the library; its header common.h, which declares it, is not installed. */
void SetMinLogLevel(int level);
}
}

/* Above the library's highest level (FATAL, 4): nothing is printed. */
static const int LOG_NOTHING = 5;

struct SentencePieceModel
{
	sentencepiece::SentencePieceProcessor processor;
};

/* Set the Status of the exception that is being handled. Always returns false. */
static bool
set_from_exception(size_t size, Status *status)
{
	try
	{
		throw;
	}
	catch (const std::bad_alloc &)
	{
		return status_out_of_memory(status, size);
	}
	catch (const std::exception &e)
	{
		return status_set(status, STATUS_INTERNAL, "the SentencePiece library failed: %s",
						  e.what());
	}
	catch (...)
	{
		return status_set(status, STATUS_INTERNAL, "the SentencePiece library failed");
	}
}

SentencePieceModel *
sentencepiece_open(const void *data, size_t size, Status *status)
{
	try
	{
		std::unique_ptr<SentencePieceModel> model(new SentencePieceModel);

		sentencepiece::logging::SetMinLogLevel(LOG_NOTHING);
		const auto	result = model->processor.LoadFromSerializedProto(
			std::string_view(static_cast<const char *>(data), size));
		if (!result.ok() || model->processor.GetPieceSize() <= 0)
		{
			status_set(status, STATUS_INVALID_MODEL, "not a SentencePiece model");
			return NULL;
		}
		return model.release();
	}
	catch (...)
	{
		set_from_exception(size, status);
		return NULL;
	}
}

void
sentencepiece_close(SentencePieceModel *model)
{
	delete model;
}

bool
sentencepiece_encode(const SentencePieceModel *model, const char *text, size_t length,
					 TokenList *ids, Status *status)
{
	try
	{
		std::vector<int> result;
		const auto	outcome = model->processor.Encode(std::string_view(text, length), &result);

		if (!outcome.ok())
			return status_set(status, STATUS_INTERNAL, "could not encode text: %s",
							  outcome.error_message());
		for (int id : result)
			if (!token_list_add(ids, id, status))
				return false;
		return true;
	}
	catch (...)
	{
		return set_from_exception(length, status);
	}
}

char *
sentencepiece_decode(const SentencePieceModel *model, const int32_t *ids, int count,
					 Arena *arena, size_t *length, Status *status)
{
	try
	{
		const std::vector<int> list(ids, ids + count);
		std::string text;
		const auto	outcome = model->processor.Decode(list, &text);
		char	   *copy;

		if (!outcome.ok())
		{
			status_set(status, STATUS_INTERNAL, "could not decode token ids: %s",
					   outcome.error_message());
			return NULL;
		}
		copy = arena_copy_text(arena, text.data(), text.size());
		if (copy == NULL)
			status_out_of_memory(status, text.size());
		else
			*length = text.size();
		return copy;
	}
	catch (...)
	{
		set_from_exception(static_cast<size_t>(count), status);
		return NULL;
	}
}

int
sentencepiece_size(const SentencePieceModel *model)
{
	return model->processor.GetPieceSize();
}

const char *
sentencepiece_piece(const SentencePieceModel *model, int32_t id)
{
	if (id < 0 || id >= model->processor.GetPieceSize())
		return NULL;
	return model->processor.IdToPiece(id).c_str();
}

void
sentencepiece_marks(const SentencePieceModel *model, int *unk, int *bos, int *eos)
{
	*unk = model->processor.unk_id();
	*bos = model->processor.bos_id();
	*eos = model->processor.eos_id();
}
