-- LoRA adapters, made of random numbers for the demo model
\set tensors `perl "${PG_ABS_SRCDIR:-.}/test/t/MmgptAdapter.pm" "${PG_ABS_SRCDIR:-.}/demo/model" seed=1`
\set others `perl "${PG_ABS_SRCDIR:-.}/test/t/MmgptAdapter.pm" "${PG_ABS_SRCDIR:-.}/demo/model" seed=2`
-- one that changes nothing: every B is zero
\set zeros `perl "${PG_ABS_SRCDIR:-.}/test/t/MmgptAdapter.pm" "${PG_ABS_SRCDIR:-.}/demo/model" seed=3 zero=1`
CREATE TABLE peft (name text PRIMARY KEY, tensors bytea, config jsonb);
INSERT INTO peft VALUES
('mine', decode(:'tensors', 'base64'), '{"r": 2, "lora_alpha": 4, "peft_type": "LORA", "target_modules": ["q_proj", "v_proj", "to_kv"]}'),
('other', decode(:'others', 'base64'), '{"r": 2, "lora_alpha": 4, "peft_type": "LORA", "target_modules": ["q_proj", "v_proj", "to_kv"]}'),
('zeros', decode(:'zeros', 'base64'), '{"r": 2, "lora_alpha": 4, "peft_type": "LORA", "target_modules": ["q_proj", "v_proj", "to_kv"]}');

-- in, and out again byte by byte
SELECT name, length(mmgpt_adapter_import(name, tensors, config)) FROM peft ORDER BY name;
SELECT name, owner = current_user::regrole AS my_own, shared_with, created > now() - interval '1 hour' AS just_now, base_model = mmgpt_status()->>'model_digest' AS this_model,
       rank, alpha, targets, parameters > 0 AS counted
FROM mmgpt_adapters ORDER BY name;
SELECT peft.name, a.bytes = length(peft.tensors) AS size, e.tensors = peft.tensors AS tensors, e.config = peft.config AS config
FROM peft JOIN mmgpt_adapters a USING (name), mmgpt_adapter_export(peft.name) e ORDER BY name;
SELECT count(DISTINCT digest) FROM mmgpt_adapters;

-- answers: by option, by setting, and none
CREATE TEMP TABLE said AS
SELECT picture.name, mmgpt_caption(image) AS plain,
       mmgpt_caption(image, 'brief', '{"adapter": "mine"}') AS mine,
       mmgpt_caption(image, 'brief', '{"adapter": "other"}') AS other,
       mmgpt_caption(image, 'brief', '{"adapter": "zeros"}') AS zeros
FROM pictures AS picture WHERE image IS NOT NULL;
SELECT name, zeros = plain AS zeros_change_nothing, mine <> plain AS mine_does, other NOT IN (plain, mine) AS other_does
FROM said ORDER BY name;
SET mmgpt.adapter = 'mine';
SELECT count(*) FILTER (WHERE mmgpt_caption(image) = mine) AS mine,
       count(*) FILTER (WHERE mmgpt_caption(image, 'brief', '{"adapter": "other"}') = other) AS other,
       count(*) FILTER (WHERE mmgpt_caption(image, 'brief', '{"adapter": null}') = plain) AS plain,
       count(*) FILTER (WHERE mmgpt_caption(image, 'brief', '{"adapter": ""}') = plain) AS plain
FROM said JOIN pictures USING (name);
RESET mmgpt.adapter;
SELECT count(*) FILTER (WHERE mmgpt_caption(image) = plain) AS plain FROM said JOIN pictures USING (name);

-- with every kind of question, and without a picture
SELECT mmgpt_ask(image, 'Describe the image.', '{"adapter": "mine"}') <> mmgpt_ask(image, 'Describe the image.') AS ask,
       mmgpt_chat(image, NULL, 'Describe the image.', '{"adapter": "mine"}') <> mmgpt_chat(image, NULL, 'Describe the image.') AS chat,
       mmgpt_chat_turn(image, NULL, 'Describe the image.', '{"adapter": "mine"}')->1 <> mmgpt_chat_turn(image, NULL, 'Describe the image.')->1 AS turn,
       mmgpt_score(image, 'Is there a bird in the image?', '{"adapter": "mine"}') <> mmgpt_score(image, 'Is there a bird in the image?') AS score,
       mmgpt_score(image, 'Is there a bird in the image?', '{"adapter": "zeros"}') = mmgpt_score(image, 'Is there a bird in the image?') AS zeros,
       mmgpt_count(image, 'birds', '{"adapter": "zeros"}') = mmgpt_count(image, 'birds') AS count,
       mmgpt_classify(image, ARRAY['cat', 'bird', 'tree'], '{"adapter": "zeros"}') = mmgpt_classify(image, ARRAY['cat', 'bird', 'tree']) AS classify,
       mmgpt_chat_turn(image, NULL, 'Where is it?', '{"adapter": "zeros", "logprobs": true}') = mmgpt_chat_turn(image, NULL, 'Where is it?', '{"logprobs": true}') AS logprobs,
       mmgpt_chat_turn(image, NULL, 'Where is it?', '{"adapter": "mine", "logprobs": true}') <> mmgpt_chat_turn(image, NULL, 'Where is it?', '{"logprobs": true}') AS logprobs,
       mmgpt_generate('Hi, my name is Sam.', NULL, '{"adapter": "mine"}') <> mmgpt_generate('Hi, my name is Sam.') AS generate
FROM pictures WHERE name = 'birds';

-- in PL/pgSQL, in prepared statements, in functions, in parallel workers
DO $$
DECLARE
	answer text;
BEGIN
	FOR answer IN SELECT CASE WHEN mmgpt_caption(image, 'brief', '{"adapter": "mine"}') = mine THEN 'the same' END FROM said JOIN pictures USING (name)
	LOOP
		RAISE NOTICE '%', answer;
	END LOOP;
END
$$;
PREPARE caption(jsonb) AS SELECT count(*) FROM said JOIN pictures USING (name) WHERE mmgpt_caption(image, 'brief', $1) = mine;
EXECUTE caption('{"adapter": "mine"}');
EXECUTE caption('{"adapter": "other"}');
DEALLOCATE caption;
CREATE FUNCTION my_caption(image bytea) RETURNS text LANGUAGE sql SET mmgpt.adapter = 'mine' AS 'SELECT mmgpt_caption(image)';
SELECT count(*) FILTER (WHERE my_caption(image) = mine) AS mine, count(*) FILTER (WHERE mmgpt_caption(image) = plain) AS plain
FROM said JOIN pictures USING (name);
DROP FUNCTION my_caption;
CREATE TABLE many AS SELECT image FROM pictures, generate_series(1, 8) WHERE image IS NOT NULL;
ALTER TABLE many SET (parallel_workers = 2);
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET mmgpt.adapter = 'mine';
EXPLAIN (COSTS OFF) SELECT count(*) FROM many WHERE mmgpt_caption(image) <> '';
SELECT count(*), count(DISTINCT caption) = (SELECT count(DISTINCT mine) FROM said) AS same FROM (SELECT mmgpt_caption(image) AS caption FROM many) AS c;
RESET mmgpt.adapter;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
DROP TABLE many;

-- names, and changes of them
SELECT mmgpt_adapter_rename('other', 'Another Name');
SELECT mmgpt_caption(image, 'brief', '{"adapter": "Another Name"}') = other AS found FROM said JOIN pictures USING (name) WHERE name = 'birds';
SELECT mmgpt_adapter_import('zeros', tensors, config, replace => true) = (SELECT digest FROM mmgpt_adapters WHERE name = 'mine') AS replaced
FROM peft WHERE name = 'mine';
SELECT mmgpt_caption(image, 'brief', '{"adapter": "zeros"}') = mine AS replaced FROM said JOIN pictures USING (name) WHERE name = 'birds';
SELECT mmgpt_adapter_drop('Another Name');
SELECT mmgpt_adapter_drop('Another Name', if_exists => true);
SELECT name FROM mmgpt_adapters ORDER BY name;
SELECT count(*) AS pieces_without_adapter FROM mmgpt_adapter_piece WHERE adapter NOT IN (SELECT id FROM mmgpt_adapter);

-- part of the transaction
BEGIN;
SELECT mmgpt_adapter_import('passing', tensors, config) <> '' AS imported FROM peft WHERE name = 'other';
SELECT mmgpt_caption(image, 'brief', '{"adapter": "passing"}') = other AS usable_at_once FROM said JOIN pictures USING (name) WHERE name = 'birds';
SAVEPOINT before;
SELECT mmgpt_adapter_drop('mine');
ROLLBACK TO before;
SELECT mmgpt_caption(image, 'brief', '{"adapter": "mine"}') = mine AS still_there FROM said JOIN pictures USING (name) WHERE name = 'birds';
ROLLBACK;
SELECT name FROM mmgpt_adapters ORDER BY name;

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
	-- digests and sizes are those of the demo model
	RAISE NOTICE '%', regexp_replace(regexp_replace(concat_ws(E'\n\t', SQLSTATE || ' ' || what, nullif(why, ''), nullif(advice, '')),
		'[0-9a-f]{64}', '<digest>', 'g'), '[0-9]{4,}(?= bytes|\.)', '<size>', 'g');
END
$$;
CALL complain($$SELECT mmgpt_generate('x', NULL, '{"adapter": "none"}')$$);
CALL complain($$SELECT mmgpt_generate('x', NULL, '{"adapter": 5}')$$);
CALL complain($$SELECT mmgpt_adapter_export('none')$$);
CALL complain($$SELECT mmgpt_adapter_drop('none')$$);
CALL complain($$SELECT mmgpt_adapter_rename('none', 'other')$$);
CALL complain($$SELECT mmgpt_adapter_rename('mine', 'zeros')$$);
CALL complain($$SELECT mmgpt_adapter_rename('mine', repeat('x', 64))$$);
CALL complain($$SELECT mmgpt_adapter_grant('none', 'public')$$);
CALL complain($$SELECT mmgpt_adapter_grant('mine', 'nobody at all')$$);
CALL complain($$SELECT mmgpt_adapter_set_owner('mine', 'public')$$);
CALL complain($$SELECT mmgpt_adapter_import('mine', tensors, config) FROM peft WHERE name = 'other'$$);
CALL complain($$SELECT mmgpt_adapter_import('', tensors, config) FROM peft WHERE name = 'other'$$);
CALL complain($$SELECT mmgpt_adapter_import(NULL, tensors, config) FROM peft WHERE name = 'other'$$);
CALL complain($$SELECT mmgpt_adapter_import('x', NULL, config) FROM peft WHERE name = 'other'$$);
CALL complain($$SELECT mmgpt_adapter_import('x', tensors, NULL) FROM peft WHERE name = 'other'$$);
CALL complain($$SELECT mmgpt_adapter_import('x', substr(tensors, 1, 5000), config) FROM peft WHERE name = 'other'$$);
CALL complain($$SELECT mmgpt_adapter_import('x', '\x00', config) FROM peft WHERE name = 'other'$$);
CALL complain($$SELECT mmgpt_adapter_import('x', tensors, '{}') FROM peft WHERE name = 'other'$$);
CALL complain($$SELECT mmgpt_adapter_import('x', tensors, config || '{"r": 4}') FROM peft WHERE name = 'other'$$);
CALL complain($$SELECT mmgpt_adapter_import('x', tensors, config || '{"use_dora": true}') FROM peft WHERE name = 'other'$$);
-- a matrix that the model has not
CALL complain($$SELECT mmgpt_adapter_import('x', decode(replace(encode(tensors, 'escape'), 'v_proj', 'x_proj'), 'escape'), config) FROM peft WHERE name = 'other'$$);
BEGIN TRANSACTION READ ONLY;
CALL complain($$SELECT mmgpt_adapter_import('x', tensors, config) FROM peft WHERE name = 'other'$$);
CALL complain($$SELECT mmgpt_adapter_drop('mine')$$);
SELECT mmgpt_caption(image, 'brief', '{"adapter": "mine"}') = mine AS readable FROM said JOIN pictures USING (name) WHERE name = 'birds';
COMMIT;
SET mmgpt.adapter = 'none';
CALL complain($$SELECT mmgpt_generate('x')$$);
SELECT mmgpt_token_count('x') > 0 AS needs_none;
RESET mmgpt.adapter;

-- what a superuser can break; the engine that has it does not notice before it is restarted
UPDATE mmgpt_adapter_piece SET bytes = set_byte(bytes, length(bytes) - 2, 7)
WHERE adapter = (SELECT id FROM mmgpt_adapter WHERE name = 'zeros');
SELECT mmgpt_restart();
CALL complain($$SELECT mmgpt_generate('x', NULL, '{"adapter": "zeros"}')$$);
UPDATE mmgpt_adapter_piece SET bytes = substr(bytes, 2)
WHERE adapter = (SELECT id FROM mmgpt_adapter WHERE name = 'zeros');
CALL complain($$SELECT mmgpt_generate('x', NULL, '{"adapter": "zeros"}')$$);
CALL complain($$SELECT mmgpt_adapter_export('zeros')$$);
DELETE FROM mmgpt_adapter_piece WHERE adapter = (SELECT id FROM mmgpt_adapter WHERE name = 'zeros');
CALL complain($$SELECT mmgpt_generate('x', NULL, '{"adapter": "zeros"}')$$);
UPDATE mmgpt_adapter SET base_model = repeat('0', 64) WHERE name = 'zeros';
CALL complain($$SELECT mmgpt_generate('x', NULL, '{"adapter": "zeros"}')$$);
-- a restarted engine is given the adapter again, without anybody noticing
SELECT mmgpt_caption(image, 'brief', '{"adapter": "mine"}') = mine AS after_restart FROM said JOIN pictures USING (name) WHERE name = 'birds';

-- the extension moves with its tables
CREATE SCHEMA "Else Where";
ALTER EXTENSION mmgpt SET SCHEMA "Else Where";
SELECT "Else Where".mmgpt_caption(image, 'brief', '{"adapter": "mine"}') = mine AS moved FROM said JOIN pictures USING (name) WHERE name = 'birds';
ALTER EXTENSION mmgpt SET SCHEMA public;
DROP SCHEMA "Else Where";
SELECT mmgpt_caption(image, 'brief', '{"adapter": "mine"}') = mine AS moved_back FROM said JOIN pictures USING (name) WHERE name = 'birds';

SELECT mmgpt_adapter_drop(name) FROM mmgpt_adapters ORDER BY name;
DROP PROCEDURE complain;
DROP TABLE peft;
