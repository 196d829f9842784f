-- Fine-tuning: what mmgpt_finetune and mmgpt_evaluate take and refuse. What becomes of jobs is
-- tested in clusters (test/t/040_jobs.pl, 041_job_crashes.pl).
\set VERBOSITY terse
\set SHOW_CONTEXT never
SET client_min_messages = warning;

CREATE TABLE lessons (id int PRIMARY KEY, instruction text, input text, response text);
INSERT INTO lessons SELECT n, 'Say the number ' || n, NULL, 'It is ' || n FROM generate_series(1, 6) n;

-- a job from its beginning to its end
SELECT mmgpt_finetune('lessons', options => '{"micro_steps": 4, "r": 2, "target_modules": ["q_proj"], "validation": 0.2}') AS job \gset
SELECT mmgpt_wait(:job);
SELECT id = :job AS id, "table", adapter, owner = current_role::regrole AS mine, state, step, steps, rows, unusable,
	loss_vision, loss_language > 0 AS loss_language, validation_loss_language > 0 AS validation, error, restarts,
	length(digest) AS digest, finished > created AS finished
FROM mmgpt_jobs;
SELECT job = :job AS job, step, loss_vision, loss_language > 0 AS loss, grad_norm > 0 AS norm, learning_rate > 0 AS rate
FROM mmgpt_job_steps ORDER BY step;
SELECT name, rank, targets FROM mmgpt_adapters;
SELECT count(*) FROM mmgpt_job_row;
SELECT mmgpt_cancel(:job);
SELECT mmgpt_resume(:job);
SELECT mmgpt_job_delete(:job);
SELECT count(*) FROM mmgpt_jobs;

-- the same rows and options make the same adapter; another one goes on from it
SELECT mmgpt_finetune('lessons', 'again', '{"micro_steps": 4, "r": 2, "target_modules": ["q_proj"], "validation": 0.2}') AS job \gset
SELECT mmgpt_wait(:job);
SELECT count(DISTINCT digest) FROM mmgpt_adapters;
SELECT mmgpt_finetune('lessons', 'again', '{"micro_steps": 4, "initial_adapter": "again", "replace": true}') AS job \gset
SELECT mmgpt_wait(:job);
SELECT count(DISTINCT digest), max(rank) AS rank FROM mmgpt_adapters;

-- options
\set VERBOSITY default
SELECT mmgpt_finetune('lessons', 'x', '[]');
SELECT mmgpt_finetune('lessons', 'x', '{"epoch": 1}');
SELECT mmgpt_finetune('lessons', 'x', '{"epochs": 0}');
SELECT mmgpt_finetune('lessons', 'x', '{"replace": 1}');
SELECT mmgpt_finetune('lessons', 'x', '{"checkpoint_seconds": -1}');
SELECT mmgpt_finetune('lessons', 'x', '{"image_rules": "mine"}');
SELECT mmgpt_finetune('lessons', 'x', '{"key": 3}');
SELECT mmgpt_finetune('lessons', 'x', '{"key": "nr"}');
SELECT mmgpt_finetune('lessons', 'x', '{"columns": ["image"]}');
SELECT mmgpt_finetune('lessons', 'x', '{"columns": {"picture": "img"}}');
SELECT mmgpt_finetune('lessons', 'x', '{"columns": {"image": "img"}}');
SELECT mmgpt_finetune('lessons', 'x', '{"columns": {"image": "instruction"}}');
SELECT mmgpt_finetune('lessons', 'x', '{"columns": {"response": "id"}}');
SELECT mmgpt_finetune('lessons', 'x', '{"columns": {"response": null}}');
SELECT mmgpt_finetune('lessons', 'x', '{"initial_adapter": "missing"}');
SELECT mmgpt_finetune('lessons', 'again');
SELECT mmgpt_finetune('lessons', '');
SELECT mmgpt_finetune('lessons', repeat('x', 64));
SELECT mmgpt_finetune(NULL);
SELECT mmgpt_finetune('mmgpt_job_id_seq', 'x');
SELECT mmgpt_finetune(0, 'x');
SELECT mmgpt_wait(NULL);
SELECT mmgpt_wait(0);
SELECT mmgpt_cancel(0);
SELECT mmgpt_resume(0);
SELECT mmgpt_job_delete(0);
BEGIN READ ONLY;
SELECT mmgpt_finetune('lessons', 'x');
ROLLBACK;
SELECT count(*) AS jobs_of_errors FROM mmgpt_jobs WHERE adapter = 'x';
\set VERBOSITY terse

-- rows that can't be used are counted and listed, or end the job
CREATE TABLE mixed (day date, nr int, picture bytea, question varchar, answer text, talk jsonb, PRIMARY KEY (nr, day));
INSERT INTO mixed VALUES
('2024-05-01', 1, NULL, 'Say one', 'One', NULL),
('2024-05-01', 2, 'nothing', 'What is it?', 'A cat', NULL),
('2024-05-01', 3, NULL, 'Say three', NULL, NULL),
('2024-05-01', 4, NULL, NULL, 'Four', NULL),
('2024-05-01', 5, NULL, NULL, NULL, '[{"role": "user", "content": "Say five"}, {"role": "assistant", "content": "Five"}]'),
('2024-05-01', 6, NULL, NULL, NULL, '[{"role": "user", "content": "Say six"}]'),
('2024-05-01', 7, NULL, 'Say seven', '', NULL),
('2024-05-01', 8, NULL, repeat('very ', 400) || 'long', 'Eight', NULL);
SELECT mmgpt_finetune('mixed', 'mixed', '{"micro_steps": 1, "r": 1, "target_modules": ["q_proj"], "max_length": 100,
	"columns": {"image": "picture", "instruction": "question", "response": "answer", "conversation": "talk"}}') AS job \gset
SELECT mmgpt_wait(:job);
SELECT state, rows, unusable FROM mmgpt_jobs WHERE id = :job;
SELECT number, key, reason FROM mmgpt_job_unusable_rows WHERE job = :job ORDER BY number;
SELECT mmgpt_finetune('mixed', 'fails', '{"unusable": "fail",
	"columns": {"image": "picture", "instruction": "question", "response": "answer", "conversation": "talk"}}') AS job \gset
SELECT mmgpt_wait(:job);
SELECT state, error FROM mmgpt_jobs WHERE id = :job;
-- a table of which no row can be used
CREATE VIEW hopeless AS SELECT day, nr, question AS instruction, answer AS response FROM mixed WHERE nr IN (3, 4);
SELECT mmgpt_finetune('hopeless', options => '{"key": ["nr", "day"]}') AS job \gset
SELECT mmgpt_wait(:job);
SELECT number, key, reason FROM mmgpt_job_unusable_rows WHERE job = :job ORDER BY number;

-- views, partitions, materialized views and tables without a key; adapters that differ in nothing are the same
CREATE TABLE parted (LIKE lessons) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (1) TO (4);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (4) TO (10);
INSERT INTO parted SELECT * FROM lessons ORDER BY id DESC;
CREATE VIEW backwards AS SELECT * FROM lessons ORDER BY id DESC;
CREATE MATERIALIZED VIEW kept AS SELECT * FROM lessons ORDER BY id;
SELECT mmgpt_finetune('parted', 'parted', '{"key": "id", "micro_steps": 1, "r": 1}') AS parted,
	mmgpt_finetune('backwards', 'backwards', '{"key": "id", "micro_steps": 1, "r": 1}') AS backwards,
	mmgpt_finetune('kept', 'kept', '{"micro_steps": 1, "r": 1}') AS kept \gset
SELECT mmgpt_wait(:parted), mmgpt_wait(:backwards), mmgpt_wait(:kept);
SELECT count(DISTINCT digest), min(rows) AS rows FROM mmgpt_jobs WHERE id IN (:parted, :backwards, :kept);

-- evaluation
SELECT mmgpt_finetune('lessons', 'learned', '{"epochs": 40, "r": 8, "learning_rate": 0.004}') AS job \gset
SELECT mmgpt_wait(:job);
SELECT rows, unusable, loss > 1 AS loss, exact_match FROM mmgpt_evaluate('lessons');
SELECT rows, unusable, loss < 0.5 AS loss, exact_match >= 0.5 AS exact_match FROM mmgpt_evaluate('lessons', 'learned');
SET mmgpt.adapter = 'learned';
SELECT (SELECT loss FROM mmgpt_evaluate('lessons')) = (SELECT loss FROM mmgpt_evaluate('lessons', 'learned')) AS of_setting,
	(SELECT loss FROM mmgpt_evaluate('lessons', '')) > 1 AS of_none;
RESET mmgpt.adapter;
SELECT * FROM mmgpt_evaluate('hopeless');
SELECT rows, unusable FROM mmgpt_evaluate('lessons', options => '{"max_length": 2}');
\set VERBOSITY default
SELECT * FROM mmgpt_evaluate('mixed');
SELECT * FROM mmgpt_evaluate('hopeless', options => '{"unusable": "fail"}');
SELECT * FROM mmgpt_evaluate('lessons', options => '{"epochs": 3}');
SELECT * FROM mmgpt_evaluate('lessons', 'missing');
SELECT * FROM mmgpt_evaluate(NULL);

SELECT mmgpt_adapter_drop(name) FROM mmgpt_adapters \g /dev/null
SELECT mmgpt_job_delete(id) FROM mmgpt_jobs \g /dev/null
SELECT count(*) FROM mmgpt_job_step;
DROP TABLE lessons, mixed, parted CASCADE;
