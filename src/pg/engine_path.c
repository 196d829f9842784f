/*
 * engine_path.c - paths relative to the library; see engine_path.h.
 *
 * The library asks the loader where it lies itself and looks from there, so
 * that an installation into a staging directory (make install DESTDIR=...) uses
 * its own engine and model and not those of the machine. The two directories
 * that PostgreSQL was configured with are known at compile time:
 *
 *	library		<stage>MMGPT_PKGLIBDIR/mmgpt.so
 *	engine		<stage>MMGPT_PKGLIBDIR/mmgpt-engine
 *	demo model	<stage>MMGPT_SHAREDIR/extension/mmgpt/demo-model
 */
#include "postgres.h"

#include <dlfcn.h>

#include "miscadmin.h"
#include "port.h"

#include "engine_path.h"

#define ENGINE_PROGRAM "mmgpt-engine"
#define DEMO_MODEL "extension/mmgpt/demo-model"

/* Write the directory that this library was loaded from. */
static void
library_directory(char *directory)
{
	Dl_info		info;

	if (dladdr((void *) library_directory, &info) == 0 || info.dli_fname == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not find out where the mmgpt library lies")));
	strlcpy(directory, info.dli_fname, MAXPGPATH);
	canonicalize_path(directory);
	get_parent_directory(directory);
}

void
engine_path_program(char *path)
{
	char		directory[MAXPGPATH];

	library_directory(directory);
	snprintf(path, MAXPGPATH, "%s/%s", directory, ENGINE_PROGRAM);
}

void
engine_path_demo_model(char *path)
{
	char		directory[MAXPGPATH];
	char		share[MAXPGPATH];
	size_t		length;
	size_t		suffix = strlen(MMGPT_PKGLIBDIR);

	library_directory(directory);
	length = strlen(directory);
	if (length >= suffix && strcmp(directory + length - suffix, MMGPT_PKGLIBDIR) == 0)
		snprintf(path, MAXPGPATH, "%.*s%s/%s", (int) (length - suffix), directory,
				 MMGPT_SHAREDIR, DEMO_MODEL);
	else
	{
		/* a server that was moved as a whole knows where its files are now */
		get_share_path(my_exec_path, share);
		snprintf(path, MAXPGPATH, "%s/%s", share, DEMO_MODEL);
	}
}
