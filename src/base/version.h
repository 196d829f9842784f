/*
 * version.h - the version of this release, as in META.json and mmgpt.control.
 */
#ifndef MMGPT_VERSION_H
#define MMGPT_VERSION_H

#define MMGPT_VERSION "1.0.0"

#endif
