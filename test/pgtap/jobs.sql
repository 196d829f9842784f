-- The tables and views of fine-tuning jobs: what they hold, who may read them, what a dump takes.
BEGIN;

CREATE ROLE mmgpt_visitor;

SELECT plan(14);

SELECT columns_are('mmgpt_jobs', ARRAY['id', 'table', 'adapter', 'owner', 'state', 'step', 'steps',
	'loss_vision', 'loss_language', 'validation_loss_vision', 'validation_loss_language',
	'learning_rate', 'tokens_per_second', 'time_left', 'rows', 'unusable', 'pictures',
	'pictures_encoded', 'error', 'created', 'started', 'finished', 'restarts', 'digest', 'options',
	'pid']);
SELECT columns_are('mmgpt_job_steps', ARRAY['job', 'step', 'loss_vision', 'loss_language', 'grad_norm',
	'learning_rate', 'validation_loss_vision', 'validation_loss_language']);
SELECT columns_are('mmgpt_job_unusable_rows', ARRAY['job', 'number', 'key', 'reason']);
SELECT is_empty(
	$$SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
	  WHERE c.relname ~ '^mmgpt_job' AND c.relkind = 'r' AND a.attnum > 0
		AND coalesce(col_description(c.oid, a.attnum), '') !~ '\.$'$$,
	'every column of the tables has its comment');
SELECT is_empty(
	$$SELECT relname FROM pg_class
	  WHERE relname ~ '^mmgpt_job' AND relkind IN ('r', 'v', 'S') AND coalesce(obj_description(oid), '') !~ '\.$'$$,
	'every table, view and sequence has its comment');
SELECT is_empty(
	$$SELECT extconfig FROM pg_extension e, pg_class c
	  WHERE extname = 'mmgpt' AND c.oid = ANY (extconfig) AND c.relname ~ '^mmgpt_job'$$,
	'a dump leaves jobs out');

-- two jobs, one of a role that the visitor is no member of
INSERT INTO mmgpt_job (table_id, table_name, adapter, owner, login, state) VALUES
(0, 't', 'a', 'mmgpt_visitor', 'mmgpt_visitor', 'done'), (0, 't', 'b', current_role::regrole, current_role::regrole, 'running'),
(0, 't', 'c', 'mmgpt_visitor', 'mmgpt_visitor', 'queued');
INSERT INTO mmgpt_job_step (job, step, grad_norm, learning_rate) SELECT id, 1, 1, 1 FROM mmgpt_job;
INSERT INTO mmgpt_job_unusable (job, number, reason) SELECT id, 1, 'why' FROM mmgpt_job;

SELECT results_eq('SELECT adapter, state FROM mmgpt_jobs ORDER BY adapter',
	$$VALUES ('a', 'done'), ('b', 'interrupted'), ('c', 'queued')$$,
	'a running job without a worker is interrupted; a new one is waited for');
SELECT throws_ok($$INSERT INTO mmgpt_job (table_id, table_name, adapter, owner, login)
	VALUES (0, 't', 'b', current_role::regrole, current_role::regrole)$$,
	'23505', NULL, 'two jobs that are not over do not make one adapter');

SET LOCAL ROLE mmgpt_visitor;
SELECT results_eq('SELECT adapter FROM mmgpt_jobs ORDER BY adapter', ARRAY['a', 'c'], 'a role sees its own jobs');
SELECT is((SELECT count(*)::int FROM mmgpt_job_steps), 2, 'and their steps');
SELECT is((SELECT count(*)::int FROM mmgpt_job_unusable_rows), 2, 'and their rows that were left out');
SELECT throws_ok('SELECT * FROM mmgpt_job', '42501', NULL, 'the tables are nobody''s to read');
SELECT throws_ok('SELECT * FROM mmgpt_job_row', '42501', NULL, 'least of all the rows');
SELECT throws_ok('UPDATE mmgpt_jobs SET state = ''done''', NULL, NULL, 'nor to write through views');

SELECT * FROM finish();
ROLLBACK;
