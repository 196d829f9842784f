/*
 * clock.h - monotonic time.
 */
#ifndef MMGPT_CLOCK_H
#define MMGPT_CLOCK_H

#include <stdint.h>

/* Nanoseconds since an arbitrary point; never goes back. */
extern uint64_t clock_now_ns(void);

#endif
