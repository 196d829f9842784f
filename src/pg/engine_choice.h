/*
 * engine_choice.h - which of several engines answers a request.
 */
#ifndef MMGPT_ENGINE_CHOICE_H
#define MMGPT_ENGINE_CHOICE_H

#include "engine_client.h"
#include "status.h"

/*
 * The number of an engine, 0 where there is only one. request: NULL for work that is not about one
 * picture, such as a training.
 */
extern int	engine_choose(const EngineRequest *request);

/*
 * Choose once more for a request that *engine refused: it does not start, or could not load its
 * model, and was not known to be so when it was chosen. *tries: 0 at first. False where the refusal
 * stands.
 */
extern bool engine_choose_again(const EngineRequest *request, const Status *status, int *tries,
								int *engine);

#endif
