-- How the functions of the extension are declared: what the planner, other roles and
-- the documentation of psql are told about them.
BEGIN;

-- all functions of the extension
CREATE TEMPORARY VIEW ours AS
SELECT p.*
FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
WHERE e.extname = 'mmgpt';

-- those that ask the model about a row
CREATE TEMPORARY VIEW questions AS
SELECT * FROM ours
WHERE proname IN ('mmgpt_chat', 'mmgpt_chat_turn', 'mmgpt_generate', 'mmgpt_caption', 'mmgpt_ask',
				  'mmgpt_count', 'mmgpt_score', 'mmgpt_filter', 'mmgpt_classify',
				  'mmgpt_classify_multi');

SELECT plan(24);

SELECT has_extension('mmgpt');
SELECT is((SELECT count(*)::int FROM questions), 10, 'ten functions ask about rows');
SELECT function_returns('mmgpt_chat', ARRAY['bytea', 'jsonb', 'text', 'jsonb'], 'text');
SELECT function_returns('mmgpt_chat_turn', ARRAY['bytea', 'jsonb', 'text', 'jsonb'], 'jsonb');
SELECT function_returns('mmgpt_generate', ARRAY['text', 'bytea', 'jsonb'], 'text');
SELECT function_returns('mmgpt_caption', ARRAY['bytea', 'text', 'jsonb'], 'text');
SELECT function_returns('mmgpt_ask', ARRAY['bytea', 'text', 'jsonb'], 'text');
SELECT function_returns('mmgpt_count', ARRAY['bytea', 'text', 'jsonb'], 'integer');
SELECT function_returns('mmgpt_score', ARRAY['bytea', 'text', 'jsonb'], 'real');
SELECT function_returns('mmgpt_filter', ARRAY['bytea', 'text', 'jsonb'], 'boolean');
SELECT function_returns('mmgpt_classify', ARRAY['bytea', 'text[]', 'jsonb'], 'text');
SELECT function_returns('mmgpt_classify_multi', ARRAY['bytea', 'text[]', 'jsonb'], 'text[]');
SELECT function_returns('mmgpt_image_info', ARRAY['bytea'], 'jsonb');
SELECT function_returns('mmgpt_token_count', ARRAY['text'], 'integer');
SELECT function_returns('mmgpt_status', ARRAY[]::name[], 'jsonb');
SELECT function_returns('mmgpt_version', ARRAY[]::name[], 'text');

SELECT is_empty($$SELECT proname FROM questions WHERE provolatile <> 's'$$,
	'questions are STABLE, so that the planner neither folds nor repeats them');
SELECT is_empty($$SELECT proname FROM questions WHERE proparallel <> 's'$$,
	'and work in parallel workers');
SELECT is_empty($$SELECT proname FROM questions WHERE procost < 10000$$,
	'and are known to be expensive');
SELECT is_empty($$SELECT proname FROM questions WHERE proisstrict$$,
	'each decides itself what NULL means');
SELECT is_empty($$SELECT proname FROM ours WHERE proleakproof$$,
	'none is leakproof');
SELECT is_empty($$SELECT proname FROM ours WHERE obj_description(oid, 'pg_proc') IS NULL$$,
	'all have a comment');
SELECT set_eq(
	$$SELECT proname FROM ours WHERE NOT has_function_privilege('public', oid, 'EXECUTE')$$,
	ARRAY['mmgpt_restart']::name[],
	'administering is not for everybody');
SELECT results_eq(
	$$SELECT provolatile::text || proparallel::text FROM ours
	  WHERE proname IN ('mmgpt_status', 'mmgpt_restart') ORDER BY proname$$,
	ARRAY['vr', 'vr'],
	'what reports or changes state is volatile');

SELECT * FROM finish();
ROLLBACK;
