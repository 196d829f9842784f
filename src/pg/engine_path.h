/*
 * engine_path.h - where the engine and the demo model are installed.
 */
#ifndef MMGPT_ENGINE_PATH_H
#define MMGPT_ENGINE_PATH_H

#include <stddef.h>

/* Write the path of the program mmgpt-engine: beside this library. path: MAXPGPATH bytes. */
extern void engine_path_program(char *path);

/* Write the directory of the demo model, installed with the extension. path: MAXPGPATH bytes. */
extern void engine_path_demo_model(char *path);

#endif
