/*
 * machine.h - what the machine has.
 */
#ifndef MMGPT_MACHINE_H
#define MMGPT_MACHINE_H

#include <stddef.h>

/*
 * Bytes of memory that a large piece of work may take now: what the system could give without
 * swapping, less a tenth for everything else. 0 where the system does not tell.
 */
extern size_t machine_spare_memory(void);

#endif
