-- each failing statement prints its SQLSTATE and message, its detail and its hint
CREATE PROCEDURE complain(statement text) LANGUAGE plpgsql AS $$
DECLARE
	what text;
	why text;
	advice text;
BEGIN
	EXECUTE statement;
	RAISE NOTICE 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS what = MESSAGE_TEXT, why = PG_EXCEPTION_DETAIL, advice = PG_EXCEPTION_HINT;
	RAISE NOTICE '%', concat_ws(E'\n\t', SQLSTATE || ' ' || what, nullif(why, ''), nullif(advice, ''));
END
$$;

-- images
CALL complain($$SELECT mmgpt_caption('')$$);
CALL complain($$SELECT mmgpt_caption('no image at all')$$);
CALL complain($$SELECT mmgpt_image_info('\x00010203')$$);
CALL complain($$SELECT mmgpt_caption(substr(image, 1, length(image) / 2)) FROM pictures WHERE name = 'rabbits'$$);
CALL complain($$SELECT mmgpt_caption(substr(image, 1, 20)) FROM pictures WHERE name = 'bicycles'$$);
-- a header that claims 60000 x 60000 pixels
CALL complain($$SELECT mmgpt_caption(overlay(image placing '\x0000ea600000ea6008020000000fb0e215' from 17)) FROM pictures WHERE name = 'rabbits'$$);
SET mmgpt.max_image_pixels = 1000;
CALL complain($$SELECT mmgpt_caption(image) FROM pictures WHERE name = 'bicycles'$$);
RESET mmgpt.max_image_pixels;

-- requests
SET mmgpt.max_request_bytes = '2kB';
CALL complain($$SELECT mmgpt_generate(repeat('x', 3000))$$);
CALL complain($$SELECT mmgpt_generate('x', decode(repeat('00', 3000), 'hex'))$$);
CALL complain($$SELECT mmgpt_generate(repeat('x', 1500), decode(repeat('00', 1000), 'hex'))$$);
RESET mmgpt.max_request_bytes;
CALL complain($$SELECT mmgpt_generate(repeat('word ', 1000))$$);

-- histories
CALL complain($$SELECT mmgpt_chat(NULL, '{}', 'x')$$);
CALL complain($$SELECT mmgpt_chat(NULL, '[1]', 'x')$$);
CALL complain($$SELECT mmgpt_chat(NULL, '[{"role": "robot", "content": "x"}]', 'x')$$);
CALL complain($$SELECT mmgpt_chat(NULL, '[{"role": "user"}]', 'x')$$);
CALL complain($$SELECT mmgpt_chat(NULL, '[{"role": "user", "content": "x"}]', 'x')$$);
CALL complain($$SELECT mmgpt_chat(NULL, '[{"role": "assistant", "content": "x"}]', 'x')$$);

-- options
CALL complain($$SELECT mmgpt_generate('x', NULL, '{"max_token": 1}')$$);
CALL complain($$SELECT mmgpt_generate('x', NULL, '{"max_tokens": 0}')$$);
CALL complain($$SELECT mmgpt_generate('x', NULL, '{"temperature": "hot"}')$$);
CALL complain($$SELECT mmgpt_generate('x', NULL, '[]')$$);
CALL complain($$SELECT mmgpt_filter(image, 'x', '{"threshold": 2}') FROM pictures WHERE name = 'bicycles'$$);
CALL complain($$SELECT mmgpt_caption(image, 'long') FROM pictures WHERE name = 'bicycles'$$);

-- nothing was lost
SELECT mmgpt_token_count('x') > 0 AS well;

-- a cancelled call leaves the connection usable
SET statement_timeout = '1ms';
SELECT count(mmgpt_ask(image, 'Describe the image.')) FROM pictures, generate_series(1, 1000);
RESET statement_timeout;
SELECT mmgpt_token_count('x') > 0 AS well;

DROP PROCEDURE complain;
