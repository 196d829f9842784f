/* cli_serve.c - see below. */
#include "cli_common.h"
int
cli_serve(int argc, char **argv)
{
	return cli_unsupported(argc, argv);
}
