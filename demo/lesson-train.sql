-- Start the training of the new skill.
--
-- Run by demo/run after lesson.sql. The job goes on by itself; meanwhile one session waits for it
-- and another has captions written (lesson-meanwhile.sql).
\set ON_ERROR_STOP on
\set QUIET on
\set ECHO queries
SELECT mmgpt_finetune('lessons', 'numbers',
                      '{"batch_size": 16, "epochs": 6, "learning_rate": 0.001, "warmup_steps": 10,
                        "replace": true}') AS job;
