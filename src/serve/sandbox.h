/*
 * sandbox.h - what the serving engine may no longer do.
 *
 * The engine decodes bytes that anybody may have put into a table. Once it serves it
 * needs no new connections, no other programs and no other processes' memory, so it
 * gives these up for good: a picture that finds a fault in a decoder can neither
 * send data away nor start anything, change a file, or signal the server's processes, which
 * run under the same account. Files can still be read, for loading a model, and accepted
 * connections go on.
 */
#ifndef MMGPT_SANDBOX_H
#define MMGPT_SANDBOX_H

#include <stdbool.h>

#include "status.h"

/*
 * Give up sockets, programs, tracing, changing files and signalling others (they fail with
 * EPERM from now on), in the calling thread and all that it starts afterwards. Call after the
 * listening socket exists and before threads start, but for those that work with a GPU. False
 * where the kernel does not offer seccomp; the engine then works without it.
 */
extern bool sandbox_enter(Status *status);

#endif
