-- who may do what
CREATE ROLE mmgpt_visitor;
SELECT p.oid::regprocedure AS function
FROM pg_proc p WHERE proname LIKE 'mmgpt%' AND NOT has_function_privilege('mmgpt_visitor', oid, 'EXECUTE');

SET ROLE mmgpt_visitor;
SELECT mmgpt_token_count('x') > 0 AS may_ask;
SELECT mmgpt_restart();
SET mmgpt.max_request_bytes = '1GB';
SET mmgpt.max_image_pixels = 1;
SET mmgpt.max_tokens = 5;
SELECT count(*) AS sees_the_path FROM pg_settings WHERE name = 'mmgpt.model';
RESET ROLE;

-- a superuser may let others restart the engine
GRANT EXECUTE ON FUNCTION mmgpt_restart() TO mmgpt_visitor;
SET ROLE mmgpt_visitor;
SELECT mmgpt_restart();
RESET ROLE;
REVOKE EXECUTE ON FUNCTION mmgpt_restart() FROM mmgpt_visitor;
DROP ROLE mmgpt_visitor;
