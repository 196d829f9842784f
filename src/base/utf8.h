/*
 * utf8.h - UTF-8 as RFC 3629 defines it.
 */
#ifndef MMGPT_UTF8_H
#define MMGPT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Length in bytes of the well-formed character at text (1 to 4), or 0 where
 * the next byte does not begin one. left is the number of bytes from text on.
 */
extern size_t utf8_character_length(const char *text, size_t left);

/* Offset of the first byte that is not well-formed UTF-8, or length if there is none. */
extern size_t utf8_valid_prefix(const char *text, size_t length);

/*
 * Copy text to out with every byte that is not part of a well-formed character
 * and every U+0000 replaced by U+FFFD. out needs room for 3 * length bytes (no
 * NUL is added). Returns the bytes written.
 */
extern size_t utf8_repair(const char *text, size_t length, char *out);

/* The code point of the well-formed character of the given length at text. */
extern uint32_t utf8_code_point(const char *text, size_t length);

#endif
