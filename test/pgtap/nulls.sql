-- What NULL means for each argument: a question without its subject has no answer, while an
-- image, a history or options may be left out where that makes sense.
BEGIN;

-- a picture of one pixel
CREATE TEMPORARY TABLE picture AS SELECT decode(
	'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNw018IAAHVARdp7kDEAAAAAElFTkSuQmCC',
	'base64') AS image;

SET LOCAL mmgpt.max_tokens = 3;

SELECT plan(45);

-- without a prompt
SELECT is(mmgpt_chat(image, NULL, NULL), NULL, 'chat without a prompt') FROM picture;
SELECT is(mmgpt_chat_turn(image, '[]', NULL), NULL, 'chat_turn without a prompt') FROM picture;
SELECT is(mmgpt_generate(NULL), NULL, 'generate without a prompt');
SELECT is(mmgpt_generate(NULL, image), NULL, 'generate with an image only') FROM picture;
SELECT is(mmgpt_ask(image, NULL), NULL, 'ask without a question') FROM picture;
SELECT is(mmgpt_caption(image, NULL), NULL, 'caption without a detail') FROM picture;
SELECT is(mmgpt_count(image, NULL), NULL, 'count of nothing') FROM picture;
SELECT is(mmgpt_score(image, NULL), NULL, 'score without a condition') FROM picture;
SELECT is(mmgpt_filter(image, NULL), NULL, 'filter without a condition') FROM picture;
SELECT is(mmgpt_classify(image, NULL), NULL, 'classify without labels') FROM picture;
SELECT is(mmgpt_classify_multi(image, NULL), NULL, 'classify_multi without labels') FROM picture;
SELECT is(mmgpt_token_count(NULL), NULL, 'token_count of NULL');

-- without an image
SELECT is(mmgpt_ask(NULL, 'What is this?'), NULL, 'ask about no image');
SELECT is(mmgpt_caption(NULL), NULL, 'caption of no image');
SELECT is(mmgpt_count(NULL, 'dogs'), NULL, 'count in no image');
SELECT is(mmgpt_score(NULL, 'Is it red?'), NULL, 'score of no image');
SELECT is(mmgpt_filter(NULL, 'Is it red?'), NULL, 'filter of no image');
SELECT is(mmgpt_classify(NULL, '{red}'), NULL, 'classify of no image');
SELECT is(mmgpt_classify_multi(NULL, '{red}'), NULL, 'classify_multi of no image');
SELECT is(mmgpt_image_info(NULL), NULL, 'image_info of no image');
SELECT isnt(mmgpt_chat(NULL, NULL, 'Hi.'), NULL, 'chat answers without an image');
SELECT is(jsonb_array_length(mmgpt_chat_turn(NULL, NULL, 'Hi.')), 2, 'and so does chat_turn');
SELECT isnt(mmgpt_generate('Hi.', NULL), NULL, 'and generate');

-- without a history
SELECT is(mmgpt_chat(image, NULL, 'Is it red?'), mmgpt_chat(image, '[]', 'Is it red?'),
	'no history is an empty history') FROM picture;
SELECT is(mmgpt_chat_turn(image, NULL, 'Is it red?') -> 0,
	'{"role": "user", "content": "Is it red?"}', 'chat_turn begins one') FROM picture;

-- without options
SELECT is(mmgpt_chat(image, NULL, 'Is it red?', NULL), mmgpt_chat(image, NULL, 'Is it red?'),
	'chat') FROM picture;
SELECT is(mmgpt_generate('Hi.', NULL, NULL), mmgpt_generate('Hi.'), 'generate');
SELECT is(mmgpt_ask(image, 'Is it red?', NULL), mmgpt_ask(image, 'Is it red?'), 'ask') FROM picture;
SELECT is(mmgpt_caption(image, 'brief', NULL), mmgpt_caption(image), 'caption') FROM picture;
SELECT is(mmgpt_count(image, 'dogs', NULL), mmgpt_count(image, 'dogs'), 'count') FROM picture;
SELECT is(mmgpt_score(image, 'Is it red?', NULL), mmgpt_score(image, 'Is it red?', '{}'), 'score')
FROM picture;
SELECT is(mmgpt_filter(image, 'Is it red?', NULL), mmgpt_filter(image, 'Is it red?'), 'filter')
FROM picture;
SELECT is(mmgpt_classify(image, '{red,blue}', NULL), mmgpt_classify(image, '{red,blue}'),
	'classify') FROM picture;
SELECT is(mmgpt_classify_multi(image, '{red,blue}', NULL),
	mmgpt_classify_multi(image, '{red,blue}'), 'classify_multi') FROM picture;

-- a label is no argument of its own: one that is NULL is a mistake
SELECT throws_ok('SELECT mmgpt_classify(image, ''{red,NULL}'') FROM picture', '22004',
	'label 2 is null', 'classify with a null label');
SELECT throws_ok('SELECT mmgpt_classify_multi(image, ''{NULL}'') FROM picture', '22004',
	'label 1 is null', 'classify_multi with a null label');

-- answers are there where nothing is NULL
SELECT isnt(mmgpt_ask(image, 'Is it red?'), NULL, 'ask answers') FROM picture;
SELECT isnt(mmgpt_caption(image), NULL, 'caption answers') FROM picture;
SELECT ok(mmgpt_count(image, 'dogs') >= 0, 'count answers') FROM picture;
SELECT ok(mmgpt_score(image, 'Is it red?') BETWEEN 0 AND 1, 'score answers') FROM picture;
SELECT is(mmgpt_filter(image, 'Is it red?'), mmgpt_score(image, 'Is it red?') >= 0.5,
	'filter is a score of a half at least') FROM picture;
SELECT is(mmgpt_classify(image, '{red}'), 'red', 'of one label classify chooses it') FROM picture;
SELECT is(mmgpt_classify_multi(image, '{}'), '{}', 'of no labels classify_multi chooses none')
FROM picture;
SELECT is(mmgpt_classify_multi(image, '{red,blue}', '{"threshold": 0}'), '{red,blue}',
	'classify_multi keeps the order') FROM picture;
SELECT is(mmgpt_image_info(image) ->> 'width', '1', 'image_info answers') FROM picture;

SELECT * FROM finish();
ROLLBACK;
