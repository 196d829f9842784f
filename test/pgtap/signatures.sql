-- What callers write: names, order, types and defaults of all arguments, so that a change of
-- any of them, which breaks stored queries and views, is made on purpose only.
BEGIN;

CREATE TEMPORARY VIEW ours AS
SELECT p.*
FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
WHERE e.extname = 'mmgpt';

CREATE TEMPORARY TABLE wanted (name name, arguments text, result text, behaviour text, cost real);
INSERT INTO wanted VALUES
('mmgpt_chat', 'image bytea, history jsonb, prompt text, options jsonb DEFAULT NULL::jsonb',
	'text', 'stable safe', 10000),
('mmgpt_chat_turn', 'image bytea, history jsonb, prompt text, options jsonb DEFAULT NULL::jsonb',
	'jsonb', 'stable safe', 10000),
('mmgpt_generate',
	'prompt text, image bytea DEFAULT NULL::bytea, options jsonb DEFAULT NULL::jsonb',
	'text', 'stable safe', 10000),
('mmgpt_caption',
	'image bytea, detail text DEFAULT ''brief''::text, options jsonb DEFAULT NULL::jsonb',
	'text', 'stable safe', 10000),
('mmgpt_ask', 'image bytea, question text, options jsonb DEFAULT NULL::jsonb',
	'text', 'stable safe', 10000),
('mmgpt_count', 'image bytea, what text, options jsonb DEFAULT NULL::jsonb',
	'integer', 'stable safe', 10000),
('mmgpt_score', 'image bytea, condition text, options jsonb DEFAULT NULL::jsonb',
	'real', 'stable safe', 10000),
('mmgpt_filter', 'image bytea, condition text, options jsonb DEFAULT NULL::jsonb',
	'boolean', 'stable safe', 10000),
('mmgpt_classify', 'image bytea, labels text[], options jsonb DEFAULT NULL::jsonb',
	'text', 'stable safe', 10000),
('mmgpt_classify_multi', 'image bytea, labels text[], options jsonb DEFAULT NULL::jsonb',
	'text[]', 'stable safe', 10000),
('mmgpt_adapter_import',
	'name text, tensors bytea, config jsonb, replace boolean DEFAULT false', 'text', 'volatile unsafe', 1),
('mmgpt_adapter_export', 'name text, OUT tensors bytea, OUT config jsonb', 'record', 'stable safe', 1),
('mmgpt_adapter_drop', 'name text, if_exists boolean DEFAULT false', 'void', 'volatile unsafe', 1),
('mmgpt_adapter_rename', 'name text, new_name text', 'void', 'volatile unsafe', 1),
('mmgpt_adapter_grant', 'name text, role name', 'void', 'volatile unsafe', 1),
('mmgpt_adapter_revoke', 'name text, role name', 'void', 'volatile unsafe', 1),
('mmgpt_adapter_set_owner', 'name text, role name', 'void', 'volatile unsafe', 1),
('mmgpt_finetune',
	'"table" regclass, adapter text DEFAULT NULL::text, options jsonb DEFAULT NULL::jsonb',
	'bigint', 'volatile unsafe', 1),
('mmgpt_wait', 'job bigint', 'text', 'volatile unsafe', 1),
('mmgpt_cancel', 'job bigint', 'boolean', 'volatile unsafe', 1),
('mmgpt_resume', 'job bigint', 'void', 'volatile unsafe', 1),
('mmgpt_job_delete', 'job bigint', 'void', 'volatile unsafe', 1),
('mmgpt_evaluate',
	'"table" regclass, adapter text DEFAULT NULL::text, options jsonb DEFAULT NULL::jsonb, '
	'OUT rows bigint, OUT unusable bigint, OUT loss double precision, OUT exact_match double precision',
	'record', 'stable restricted', 1),
('mmgpt_image_info', 'image bytea', 'jsonb', 'stable safe', 100),
('mmgpt_token_count', 'value text', 'integer', 'stable safe', 100),
('mmgpt_status', '', 'jsonb', 'volatile restricted', 1),
('mmgpt_version', '', 'text', 'volatile restricted', 1),
('mmgpt_restart', '', 'boolean', 'volatile restricted', 1);

SELECT plan((SELECT count(*)::int FROM wanted) * 4 + 8);

SELECT is(pg_get_function_arguments(o.oid), w.arguments, 'arguments of ' || w.name)
FROM wanted w LEFT JOIN ours o ON o.proname = w.name;
SELECT is(pg_get_function_result(o.oid), w.result, 'result of ' || w.name)
FROM wanted w LEFT JOIN ours o ON o.proname = w.name;
SELECT is(
	CASE o.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END
	|| ' ' ||
	CASE o.proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END,
	w.behaviour, 'volatility and parallel label of ' || w.name)
FROM wanted w LEFT JOIN ours o ON o.proname = w.name;
SELECT is(o.procost, w.cost, 'cost of ' || w.name)
FROM wanted w LEFT JOIN ours o ON o.proname = w.name;

SELECT set_eq('SELECT proname FROM ours', 'SELECT name FROM wanted',
	'there are no functions beside these, and none is overloaded');
SELECT is((SELECT count(*) FROM ours), (SELECT count(*) FROM wanted), 'each is there once');
SELECT is_empty($$SELECT proname FROM ours WHERE proisstrict OR proleakproof OR prosecdef$$,
	'none is strict, leakproof, or runs with the rights of another role');
SELECT is_empty($$SELECT proname FROM ours WHERE coalesce(obj_description(oid), '') !~ '\.$'$$,
	'every comment is made of whole sentences');
SELECT set_eq(
	$$SELECT d.classid::regclass || ' ' || coalesce(c.relname, t.typname)
	  FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
		LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
		LEFT JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid
	  WHERE e.extname = 'mmgpt' AND d.deptype = 'e' AND d.classid <> 'pg_proc'::regclass
		AND t.typname IS NULL$$,
	ARRAY['pg_class mmgpt_adapter', 'pg_class mmgpt_adapter_piece', 'pg_class mmgpt_adapter_id_seq',
		'pg_class mmgpt_adapters', 'pg_class mmgpt_job', 'pg_class mmgpt_job_id_seq',
		'pg_class mmgpt_job_picture', 'pg_class mmgpt_job_row', 'pg_class mmgpt_job_unusable',
		'pg_class mmgpt_job_checkpoint', 'pg_class mmgpt_job_step', 'pg_class mmgpt_jobs',
		'pg_class mmgpt_job_steps', 'pg_class mmgpt_job_unusable_rows', 'pg_class mmgpt_stat'],
	'beside functions the extension holds the tables of adapters and jobs, and views');

SELECT is(obj_description(oid, 'pg_extension'),
	'ask a vision-and-language model about images in tables', 'the extension has its comment')
FROM pg_extension WHERE extname = 'mmgpt';
SELECT ok(extrelocatable, 'the extension can be moved to another schema')
FROM pg_extension WHERE extname = 'mmgpt';
SELECT is(extversion, '1.0', 'its version is 1.0') FROM pg_extension WHERE extname = 'mmgpt';

SELECT * FROM finish();
ROLLBACK;
