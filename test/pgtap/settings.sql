-- Settings: who may change each, units and ranges, and that each explains itself.
BEGIN;

CREATE TEMPORARY VIEW ours AS SELECT * FROM pg_settings WHERE name LIKE 'mmgpt.%';

CREATE TEMPORARY TABLE wanted (name text, context text, vartype text, unit text,
							   min_val text, max_val text, boot_val text);
INSERT INTO wanted VALUES
('mmgpt.model', 'sighup', 'string', NULL, NULL, NULL, ''),
('mmgpt.device', 'sighup', 'string', NULL, NULL, NULL, 'auto'),
('mmgpt.deterministic', 'sighup', 'bool', NULL, NULL, NULL, 'on'),
('mmgpt.threads', 'sighup', 'integer', NULL, '0', '1024', '0'),
('mmgpt.weight_format', 'sighup', 'enum', NULL, NULL, NULL, 'stored'),
('mmgpt.instruction_set', 'sighup', 'enum', NULL, NULL, NULL, 'auto'),
('mmgpt.memory_limit', 'sighup', 'integer', 'MB', '0', '2147483647', '0'),
('mmgpt.training_share', 'sighup', 'integer', NULL, '1', '99', '50'),
('mmgpt.max_image_pixels', 'superuser', 'integer', NULL, '1', '2147483647', '100000000'),
('mmgpt.max_request_bytes', 'superuser', 'integer', 'B', '1024', '1073741824', '67108864'),
('mmgpt.max_tokens', 'user', 'integer', NULL, '1', '1000000', '256'),
('mmgpt.temperature', 'user', 'real', NULL, '0', '100', '0'),
('mmgpt.top_k', 'user', 'integer', NULL, '0', '1000000', '0'),
('mmgpt.top_p', 'user', 'real', NULL, '0', '1', '1'),
('mmgpt.seed', 'user', 'string', NULL, NULL, NULL, 'none'),
('mmgpt.num_beams', 'user', 'integer', NULL, '1', '16', '1'),
('mmgpt.adapter', 'user', 'string', NULL, NULL, NULL, '');

SELECT plan((SELECT count(*)::int FROM wanted) * 2 + 12);

SELECT set_eq('SELECT name FROM ours', 'SELECT name FROM wanted', 'these settings exist');
SELECT is(s.context, w.context, w.name || ' has the right context')
FROM wanted w LEFT JOIN ours s USING (name);
SELECT is(ROW(s.vartype, s.unit, s.min_val, s.max_val, s.boot_val)::text,
	ROW(w.vartype, w.unit, w.min_val, w.max_val, w.boot_val)::text,
	w.name || ' has the right type, unit, range and default')
FROM wanted w LEFT JOIN ours s USING (name);
SELECT is_empty($$SELECT name FROM ours WHERE coalesce(short_desc, '') !~ '^[A-Z].*\.$'$$,
	'each is described by a whole sentence');
SELECT is((SELECT enumvals FROM ours WHERE name = 'mmgpt.weight_format'),
	ARRAY['stored', 'f32', 'bf16', 'q8', 'q4'], 'formats of weights');
SELECT is((SELECT enumvals FROM ours WHERE name = 'mmgpt.instruction_set'),
	ARRAY['auto', 'portable', 'avx2', 'avx512', 'avx512bf16', 'avx512vnni'], 'instruction sets');

-- a session cannot choose which files the server reads
SELECT throws_ok('SET mmgpt.model = ''/etc''', '55P02', NULL, 'the model is no session''s choice');
SELECT throws_ok('SET mmgpt.max_tokens = 0', '22023', NULL, 'an answer has a token at least');
SELECT throws_ok('SET mmgpt.temperature = -1', '22023', NULL, 'no temperature is below 0');
SELECT throws_ok('SET mmgpt.top_p = 0', '22023', NULL, 'top_p leaves a token to choose');
SELECT throws_ok('SET mmgpt.seed = ''yesterday''', '22023', NULL, 'a seed is a number or none');
SELECT lives_ok('SET LOCAL mmgpt.seed = ''-9223372036854775808''', 'of 64 bits');
SELECT lives_ok('SET LOCAL mmgpt.adapter = ''mine''', 'an adapter is looked for when it is used');
SELECT throws_ok('SET mmgpt.max_token = 5', '42602', NULL, 'a misspelt setting is refused');

SELECT * FROM finish();
ROLLBACK;
