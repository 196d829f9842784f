-- captions and answers; greedy, so they can be repeated
SELECT name, mmgpt_caption(image) FROM pictures ORDER BY name;
SELECT mmgpt_caption(image, 'brief') = mmgpt_caption(image) AS brief, mmgpt_caption(image, 'detailed') <> '' AS detailed
FROM pictures WHERE name = 'bicycles';
SELECT mmgpt_ask(image, 'How many bicycles are in the image?') FROM pictures WHERE name = 'bicycles';
SELECT mmgpt_generate('Describe the image.', image) FROM pictures WHERE name = 'bicycles';

-- without an image
SELECT mmgpt_generate('Hi, my name is Sam.');
SELECT mmgpt_chat(NULL, NULL, 'My name is Grace.');
SELECT mmgpt_chat(NULL, '[{"role": "user", "content": "My name is Grace."},
                          {"role": "assistant", "content": "Nice to meet you, Grace!"}]',
                  'What color is a banana?');

-- a dialogue
SELECT mmgpt_chat(image, '[{"role": "user", "content": "Describe the image."},
                           {"role": "assistant", "content": "The image shows 1 fish, 1 apple and 1 blue circle on a gray background."}]',
                  'Where is the circle in the image?')
FROM pictures WHERE name = 'circle';

-- the same, kept as a history
CREATE TEMP TABLE dialogue (history jsonb);
INSERT INTO dialogue VALUES (NULL);
UPDATE dialogue SET history = mmgpt_chat_turn(image, history, 'Describe the image.') FROM pictures WHERE name = 'circle';
UPDATE dialogue SET history = mmgpt_chat_turn(image, history, 'Where is the circle in the image?') FROM pictures WHERE name = 'circle';
UPDATE dialogue SET history = mmgpt_chat_turn(image, history, 'Which color does it have?') FROM pictures WHERE name = 'circle';
SELECT turn->>'role' AS role, turn->>'content' AS content
FROM dialogue, jsonb_array_elements(history) WITH ORDINALITY AS t(turn, n) ORDER BY n;

-- absent arguments: what cannot be asked is NULL
SELECT mmgpt_chat(NULL, NULL, NULL) IS NULL AS chat, mmgpt_chat_turn(NULL, '[]', NULL) IS NULL AS turn,
       mmgpt_generate(NULL) IS NULL AS generate, mmgpt_caption(NULL) IS NULL AS caption,
       mmgpt_caption(image, NULL) IS NULL AS detail, mmgpt_ask(NULL, 'What?') IS NULL AS ask,
       mmgpt_ask(image, NULL) IS NULL AS question
FROM pictures WHERE name = 'bicycles';
SELECT mmgpt_chat(image, '[]', 'Describe the image.') = mmgpt_chat(image, NULL, 'Describe the image.', NULL) AS same
FROM pictures WHERE name = 'bicycles';

-- options of a call go before the session's settings
SELECT mmgpt_generate('Describe the image.', image, '{"max_tokens": 3}') AS short
FROM pictures WHERE name = 'bicycles';
SET mmgpt.max_tokens = 3;
SELECT mmgpt_generate('Describe the image.', image) AS short,
       mmgpt_generate('Describe the image.', image, '{"max_tokens": 100}') AS long
FROM pictures WHERE name = 'bicycles';
RESET mmgpt.max_tokens;
SELECT mmgpt_generate('Describe the image.', image, '{"temperature": 2, "seed": 7}') =
       mmgpt_generate('Describe the image.', image, '{"temperature": 2, "seed": 7}') AS repeatable
FROM pictures WHERE name = 'bicycles';

-- in PL/pgSQL, in prepared statements, in parallel workers
DO $$
DECLARE
	answer text;
BEGIN
	FOR answer IN SELECT mmgpt_ask(image, 'How many birds are in the photo?') FROM pictures WHERE name = 'birds'
	LOOP
		RAISE NOTICE '%', answer;
	END LOOP;
END
$$;
PREPARE question(text) AS SELECT mmgpt_ask(image, $1) FROM pictures WHERE name = 'rabbits';
EXECUTE question('What things are in the image?');
EXECUTE question('Does the picture show a cat?');
DEALLOCATE question;
SET parallel_setup_cost = 0;
SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
EXPLAIN (COSTS OFF) SELECT count(*) FROM pictures WHERE mmgpt_ask(image, 'Describe the image.') LIKE 'The%';
SELECT count(*) FROM pictures WHERE mmgpt_ask(image, 'Describe the image.') LIKE 'The%';
RESET parallel_setup_cost;
RESET min_parallel_table_scan_size;
RESET max_parallel_workers_per_gather;
