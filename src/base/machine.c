/*
 * machine.c - see machine.h.
 */
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of the available memory, what is left for everything else. */
#define RESERVE_PART 10

size_t
machine_spare_memory(void)
{
	static const char key[] = "MemAvailable:";
	FILE	   *file = fopen("/proc/meminfo", "re");
	char		line[128];
	size_t		kilobytes = 0;

	if (file == NULL)
		return 0;
	while (kilobytes == 0 && fgets(line, sizeof(line), file) != NULL)
		if (strncmp(line, key, sizeof(key) - 1) == 0)
			kilobytes = strtoul(line + sizeof(key) - 1, NULL, 10);
	fclose(file);
	return (kilobytes - kilobytes / RESERVE_PART) * 1024;
}
