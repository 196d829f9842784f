/*
 * cli_unsupported.c - commands that are named already and not there yet.
 */
#include <stdio.h>
#include <string.h>

#include "cli_common.h"

int
cli_unsupported(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "--help") == 0)
	{
		printf("mmgpt-engine %s is not supported by this version.\n", argv[0]);
		return 0;
	}
	fprintf(stderr, "mmgpt-engine: %s is not supported yet\n", argv[0]);
	return 2;
}
