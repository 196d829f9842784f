-- What a role without any rights of its own may do with the extension.
BEGIN;

CREATE ROLE mmgpt_visitor;
CREATE ROLE mmgpt_operator;

SELECT plan(24);

SELECT ok(has_function_privilege('mmgpt_visitor', f, 'EXECUTE'), 'everybody may call ' || f)
FROM unnest(ARRAY[
	'mmgpt_chat(bytea, jsonb, text, jsonb)',
	'mmgpt_chat_turn(bytea, jsonb, text, jsonb)',
	'mmgpt_generate(text, bytea, jsonb)',
	'mmgpt_caption(bytea, text, jsonb)',
	'mmgpt_ask(bytea, text, jsonb)',
	'mmgpt_count(bytea, text, jsonb)',
	'mmgpt_score(bytea, text, jsonb)',
	'mmgpt_filter(bytea, text, jsonb)',
	'mmgpt_classify(bytea, text[], jsonb)',
	'mmgpt_classify_multi(bytea, text[], jsonb)',
	'mmgpt_image_info(bytea)',
	'mmgpt_token_count(text)',
	'mmgpt_status()',
	'mmgpt_version()']) AS f;
SELECT ok(NOT has_function_privilege('mmgpt_visitor', 'mmgpt_restart()', 'EXECUTE'),
	'but not mmgpt_restart()');

GRANT EXECUTE ON FUNCTION mmgpt_restart() TO mmgpt_operator;
SELECT ok(has_function_privilege('mmgpt_operator', 'mmgpt_restart()', 'EXECUTE'),
	'unless it was granted');

SET LOCAL ROLE mmgpt_visitor;
SELECT throws_ok('SELECT mmgpt_restart()', '42501', NULL, 'a visitor cannot restart the engine');
SELECT ok(mmgpt_token_count('dogs') > 0, 'a visitor gets answers');
SELECT throws_ok('SET mmgpt.max_image_pixels = 1', '42501', NULL,
	'a visitor cannot change the limit of pixels');
SELECT throws_ok('SET mmgpt.max_request_bytes = ''1GB''', '42501', NULL,
	'nor the limit of bytes');
SELECT lives_ok('SET LOCAL mmgpt.max_tokens = 5', 'a visitor chooses the length of answers');
SELECT is_empty($$SELECT 1 FROM pg_settings WHERE name = 'mmgpt.model'$$,
	'a visitor does not learn where the model lies');
RESET ROLE;

-- the extension runs code of its own: to install it is for superusers, whoever owns the database
DROP EXTENSION mmgpt;
GRANT CREATE ON DATABASE postgres TO mmgpt_visitor;
GRANT CREATE ON SCHEMA public TO mmgpt_visitor;
SET LOCAL ROLE mmgpt_visitor;
SELECT throws_ok('CREATE EXTENSION mmgpt', '42501', NULL, 'a visitor cannot install the extension');
RESET ROLE;
SELECT lives_ok('CREATE EXTENSION mmgpt', 'a superuser can');

SELECT * FROM finish();
ROLLBACK;
