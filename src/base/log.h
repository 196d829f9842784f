/*
 * log.h - messages of the engine to its log.
 *
 * One line a message on standard error, "LEVEL: text". The supervisor reads
 * these lines through a pipe and reports them to PostgreSQL's log at the same
 * level. Prompts, answers and pictures are logged at no level above LOG_DEBUG.
 */
#ifndef MMGPT_LOG_H
#define MMGPT_LOG_H

typedef enum EngineLogLevel
{
	ENGINE_DEBUG,
	ENGINE_LOG,
	ENGINE_WARNING,
	ENGINE_ERROR
} EngineLogLevel;

#define ENGINE_LOG_LINE_SIZE 1024	/* bytes of a line, line feed included; longer ones are cut */

/* Messages below the level are dropped; ENGINE_LOG at start. Call before threads start. */
extern void log_set_level(EngineLogLevel level);

/*
 * Write one line with one write(2), so that lines of several threads do not
 * mix. Line feeds inside become spaces. A full pipe drops the line: the engine
 * never waits for its log.
 */
extern void log_write(EngineLogLevel level, const char *format, ...)
#if defined(__GNUC__)
	__attribute__((format(printf, 2, 3)))
#endif
	;

/* The word in front of a line of this level ("DEBUG", "LOG", "WARNING", "ERROR"). */
extern const char *log_level_name(EngineLogLevel level);

#endif
