/*
 * engine_choice.c - see engine_choice.h.
 *
 * Engines keep what they computed about a picture, so questions about a picture should meet the
 * same one: a hash of the picture names the engine. Where that one has clearly more to do than
 * another the question goes to the least busy one, which encodes the picture anew, and so less work
 * waits. Requests without a picture stay with the engine that the session's number names, where the
 * beginning of their dialogues is. Only engines in the best state that any is in are chosen: one
 * that is about to start goes before one that doesn't start, or has no model.
 *
 * The answer is the same whichever engine gives it (docs/architecture.md), so a choice by loads
 * that are a moment old does no harm.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"

#include "engine_choice.h"
#include "settings.h"
#include "supervisor_file.h"

/* So many requests more than the least busy engine has do not move a question away. */
#define SLACK 2
/* Bytes at either end of a picture that are hashed; files of pictures differ there. */
#define HASHED_BYTES 512
#define NO_ENGINE (-1)

/* The same for the same picture; without one, the same for a session. */
static uint32
request_hash(const EngineRequest *request)
{
	size_t		part;

	if (request == NULL || request->image_length == 0)
		return hash_bytes_uint32((uint32) MyProcPid);
	part = Min(request->image_length, HASHED_BYTES);
	return hash_combine(hash_bytes(request->image, (int) part),
						hash_bytes(request->image + request->image_length - part, (int) part));
}

/* Choose as engine_choose does; `avoided` is known not to start or to have no model. */
static int
choose(const EngineRequest *request, int avoided)
{
	EngineBoard board;
	int			engines = setting_engines();
	int			best = ENGINE_NONE;
	int			least = -1;
	int			named;

	if (engines == 1 || !supervisor_file_read_board(&board))
		return 0;				/* whose socket every supervisor makes */
	named = (int) (request_hash(request) % (uint32_t) engines);
	if (avoided >= 0)
		board.slots[avoided].state = Min(board.slots[avoided].state, ENGINE_FAILING);
	for (int i = 0; i < engines; i++)
		best = Max(best, board.slots[i].state);
	if (best == ENGINE_NONE)
		return 0;
	for (int i = 0; i < engines; i++)
	{
		int			engine = (named + i) % engines;

		if (board.slots[engine].state == best &&
			(least < 0 || board.slots[engine].load < board.slots[least].load))
			least = engine;
	}
	if (request != NULL && board.slots[named].state == best &&
		board.slots[named].load <= board.slots[least].load + SLACK)
		return named;
	return least;
}

int
engine_choose(const EngineRequest *request)
{
	return choose(request, NO_ENGINE);
}

bool
engine_choose_again(const EngineRequest *request, const Status *status, int *tries, int *engine)
{
	int			other;

	if (status->code != STATUS_MODEL_UNAVAILABLE || ++*tries >= setting_engines())
		return false;
	other = choose(request, *engine);
	if (other == *engine)
		return false;
	*engine = other;
	return true;
}
