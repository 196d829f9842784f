/*
 * engine_choice.c - see engine_choice.h.
 *
 * Engines keep what they computed about a picture, so questions about a picture should meet the
 * same one: a hash of the picture names the engine. Where that one has clearly more to do than
 * another the question goes to the least busy one, which encodes the picture anew, and so less work
 * waits. Requests without a picture stay with the engine that the session's number names, where the
 * beginning of their dialogues is. Engines that have not come up are left out as long as another
 * has.
 *
 * The answer is the same whichever engine gives it (docs/architecture.md), so a choice by loads that
 * are a moment old does no harm.
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

/* The same for the same picture; without one, the same for a session. */
static uint32
request_hash(const EngineRequest *request)
{
	size_t		part;

	if (request == NULL || request->image_length == 0)
		return hash_bytes_uint32((uint32) MyProcPid);
	part = Min(request->image_length, HASHED_BYTES);
	return hash_bytes(request->image, (int) part) ^
		hash_bytes(request->image + request->image_length - part, (int) part) ^
		hash_bytes_uint32((uint32) request->image_length);
}

/* Whether an engine may be chosen, given the best state that any is in. */
static int
slot_rank(const EngineSlot *slot)
{
	return slot->process == 0 ? 0 : slot->ready ? 2 : 1;
}

int
engine_choose(const EngineRequest *request)
{
	EngineBoard board;
	int			engines = setting_engines();
	int			best_rank = 0;
	int			least = -1;
	int			named;

	if (engines == 1)
		return 0;
	named = (int) (request_hash(request) % (uint32) engines);
	if (!supervisor_file_read_board(&board))
		return 0;				/* whose socket every supervisor makes */
	for (int i = 0; i < engines; i++)
		best_rank = Max(best_rank, slot_rank(&board.slots[i]));
	if (best_rank == 0)
		return 0;
	for (int i = 0; i < engines; i++)
	{
		int			engine = (named + i) % engines;

		if (slot_rank(&board.slots[engine]) == best_rank &&
			(least < 0 || board.slots[engine].load < board.slots[least].load))
			least = engine;
	}
	if (request != NULL && slot_rank(&board.slots[named]) == best_rank &&
		board.slots[named].load <= board.slots[least].load + SLACK)
		return named;
	return least;
}
