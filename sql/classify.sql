-- one of several labels: an answer is one of them
SELECT name, mmgpt_classify(image, '{bicycles,birds,rabbits}') IN ('bicycles', 'birds', 'rabbits') AS one
FROM pictures ORDER BY name;
SELECT mmgpt_classify(image, '{birds}') FROM pictures WHERE name = 'birds';
-- it does not depend on the order, and another label only matters if it is more likely
SELECT count(DISTINCT mmgpt_classify(image, labels)) AS answers
FROM pictures, (VALUES ('{cat,bird,dog}'::text[]), ('{dog,bird,cat}'), ('{bird,dog,cat}')) AS l (labels) WHERE name = 'birds';

-- all labels that fit, in the order given
SELECT name, mmgpt_classify_multi(image, '{rabbit,bird,bicycle}') FROM pictures ORDER BY name;
SELECT mmgpt_classify_multi(image, '{c,a,b}', '{"threshold": 0}') AS all, mmgpt_classify_multi(image, '{c,a,b}', '{"threshold": 1}') AS none
FROM pictures WHERE name = 'birds';
-- each is judged by itself
SELECT bool_and((label = ANY (mmgpt_classify_multi(image, '{bird,rabbit,bicycle,tree}')))
                = (mmgpt_classify_multi(image, ARRAY[label]) = ARRAY[label])) AS alike
FROM pictures, unnest('{bird,rabbit,bicycle,tree}'::text[]) AS label WHERE image IS NOT NULL;

-- NULL
SELECT mmgpt_classify(NULL, '{a}') IS NULL AS image, mmgpt_classify(image, NULL) IS NULL AS labels,
       mmgpt_classify_multi(NULL, '{a}') IS NULL AS image, mmgpt_classify_multi(image, NULL) IS NULL AS labels,
       mmgpt_classify_multi(image, '{}') AS of_none
FROM pictures WHERE name = 'birds';

-- labels of a query, and those of any bounds
SELECT mmgpt_classify(image, array_agg(label)) = ANY (array_agg(label)) AS one
FROM pictures, (VALUES ('bird'), ('rabbit')) AS l (label) WHERE name = 'birds' GROUP BY image;
SELECT mmgpt_classify_multi(image, '[5:6]={a,b}', '{"threshold": 0}') FROM pictures WHERE name = 'birds';
-- further text for the prompt
SELECT mmgpt_classify(image, '{a}', '{"input": "Letters."}') AS one, mmgpt_classify_multi(image, '{a,b}', '{"input": "Letters.", "threshold": 0}') AS all
FROM pictures WHERE name = 'birds';
-- characters beyond ASCII come back as they went
SELECT mmgpt_classify_multi(image, ARRAY['Käse', '小鳥', E'a\nb', '"'], '{"threshold": 0}') FROM pictures WHERE name = 'birds';

-- what is wrong with a list is said by its place
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
CALL complain($$SELECT mmgpt_classify(image, '{}') FROM pictures$$);
CALL complain($$SELECT mmgpt_classify(image, '{a,""}') FROM pictures$$);
CALL complain($$SELECT mmgpt_classify_multi(image, '{a,b," "}') FROM pictures$$);
CALL complain($$SELECT mmgpt_classify(image, '{a,b,c,b,a}') FROM pictures$$);
CALL complain($$SELECT mmgpt_classify_multi(image, '{a,NULL}') FROM pictures$$);
CALL complain($$SELECT mmgpt_classify(image, '{{a,b},{c,d}}') FROM pictures$$);
CALL complain($$SELECT mmgpt_classify(image, ARRAY['a', repeat('b ', 3000)]) FROM pictures$$);
CALL complain($$SELECT mmgpt_classify(image, (SELECT array_agg(i::text) FROM generate_series(1, 70000) AS i)) FROM pictures$$);
CALL complain($$SELECT mmgpt_classify('no image', '{a}')$$);
CALL complain($$SELECT mmgpt_classify(image, '{a}', '{"threshold": 2}') FROM pictures$$);
SET mmgpt.max_request_bytes = '2kB';
CALL complain($$SELECT mmgpt_classify('', ARRAY[repeat('x', 1500), repeat('y', 1500)])$$);
RESET mmgpt.max_request_bytes;
DROP PROCEDURE complain;

-- how sure the model is of each token of a turn
SELECT jsonb_array_length(turn -> 'logprobs') > 0 AS tokens, (turn #> '{logprobs,-1}') ?& '{id,token,logprob}' AS keys,
       (SELECT bool_and((token ->> 'logprob')::float8 <= 0) FROM jsonb_array_elements(turn -> 'logprobs') AS token) AS logarithms
FROM (SELECT mmgpt_chat_turn(image, NULL, 'Describe the image.', '{"logprobs": true}') -> -1 FROM pictures WHERE name = 'birds') AS t (turn);
-- a history that has them is a history
SELECT jsonb_array_length(mmgpt_chat_turn(image, mmgpt_chat_turn(image, NULL, 'Describe the image.', '{"logprobs": true}'), 'Where is it?')) AS turns
FROM pictures WHERE name = 'birds';
SELECT mmgpt_ask(image, 'What is this?', '{"logprobs": true}') FROM pictures WHERE name = 'birds';
