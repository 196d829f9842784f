/*
 * engine_choice.h - which of several engines answers a request.
 */
#ifndef MMGPT_ENGINE_CHOICE_H
#define MMGPT_ENGINE_CHOICE_H

#include "engine_client.h"

/*
 * The number of an engine, 0 where there is only one. request: NULL for work that is not about one
 * picture, such as a training.
 */
extern int	engine_choose(const EngineRequest *request);

#endif
