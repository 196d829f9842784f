/*
 * settings.h - the settings of the extension.
 *
 * settings.c alone writes them, through PostgreSQL's configuration.
 */
#ifndef MMGPT_SETTINGS_H
#define MMGPT_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

/* Of the engine: configuration file only; read by the supervisor. */
extern char *setting_model;				/* directory; empty: the demo model */
extern char *setting_device;			/* auto, cpu, cuda or a list cuda:0,cuda:1: an engine each */
extern bool setting_deterministic;		/* off: GPUs may sum in any order */
extern int	setting_threads;			/* 0: all cores */
extern int	setting_weight_format;		/* SettingWeightFormat */
extern int	setting_instruction_set;	/* SettingInstructionSet */
extern int	setting_training_share;		/* percent */
extern int	setting_memory_limit;		/* megabytes; 0: what the machine has, less a reserve */

/* Limits: superuser. */
extern int	setting_max_image_pixels;
extern int	setting_max_request_bytes;	/* bytes */

/* Of an answer: any session. */
extern int	setting_max_tokens;
extern double setting_temperature;
extern int	setting_top_k;
extern double setting_top_p;
extern char *setting_seed;				/* "none" or an integer of 64 bits */
extern int	setting_num_beams;
extern char *setting_adapter;			/* empty: none */

/* Define all settings and reserve their prefix. */
extern void settings_define(void);

/* Engines that mmgpt.device asks for, and the device of one of them, palloc'd. */
extern int	setting_engines(void);
extern char *setting_engine_device(int engine);

/* The words that the engine's command line takes for the two lists. */
extern const char *setting_weight_format_name(void);
extern const char *setting_instruction_set_name(void);

/* True, with *seed set, unless mmgpt.seed is none. */
extern bool setting_seed_value(int64_t *seed);

#endif
