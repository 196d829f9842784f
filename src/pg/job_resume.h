/*
 * job_resume.h - give jobs that lost their workers new ones.
 */
#ifndef MMGPT_JOB_RESUME_H
#define MMGPT_JOB_RESUME_H

#include "postgres.h"

#include "postmaster/bgworker.h"

/*
 * Register a background worker that looks for such jobs in a database; InvalidOid: in all of them,
 * one after the other. False when max_worker_processes leaves no room. handle may be NULL.
 */
extern bool job_resume_register(Oid database, BackgroundWorkerHandle **handle);

#endif
