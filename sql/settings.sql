-- all settings, their units, and who may change them
SELECT mmgpt_token_count('x') > 0 AS loaded;
SELECT name, boot_val, unit, context, vartype, min_val, max_val
FROM pg_settings WHERE name LIKE 'mmgpt.%' ORDER BY name COLLATE "C";
SELECT count(*) AS without_description FROM pg_settings WHERE name LIKE 'mmgpt.%' AND short_desc IS NULL;

-- configuration only
SET mmgpt.model = '/somewhere';
SET mmgpt.threads = 1;

-- ranges
SET mmgpt.max_tokens = 0;
SET mmgpt.temperature = -1;
SET mmgpt.top_p = 1.5;
SET mmgpt.top_p = 0;
SET mmgpt.top_k = -1;
SET mmgpt.num_beams = 0;
SET mmgpt.seed = 'yesterday';
SET mmgpt.seed = '9223372036854775808';
SET mmgpt.seed = -5;
SHOW mmgpt.seed;
SET mmgpt.seed = none;
SET mmgpt.max_request_bytes = '1 MB';
SHOW mmgpt.max_request_bytes;
SET mmgpt.adapter = 'mine';
SET mmgpt.adapter = '';

-- misspelt
SET mmgpt.max_token = 5;

-- for a function
CREATE FUNCTION brief_answer(prompt text) RETURNS text LANGUAGE sql SET mmgpt.max_tokens = 3
AS 'SELECT mmgpt_generate(prompt)';
SELECT brief_answer('Hi, my name is Sam.'), mmgpt_generate('Hi, my name is Sam.');
DROP FUNCTION brief_answer;
