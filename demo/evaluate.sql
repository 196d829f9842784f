-- Measure the model on scenes that it has never seen, through SQL.
--
-- Run by demo/evaluate after load.sql has loaded what scene.py drew.  Which kinds are
-- asked about is decided by a digest of the file's name, so the same pictures give the
-- same questions.  A follow-up is asked with the true earlier answer as its history.
-- All questions and answers stay in the table evaluation:
--
--	SELECT * FROM evaluation WHERE NOT correct;
\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;

DROP TABLE IF EXISTS evaluation, asked;

CREATE TABLE evaluation (
	task text,
	photo integer,
	question text,
	expected text,
	answer text,
	correct boolean
);

-- State a count as the model does.
CREATE FUNCTION pg_temp.there(n integer, kind text) RETURNS text LANGUAGE sql STABLE AS
$$ SELECT format('There %s %s %s in the image.', CASE n WHEN 1 THEN 'is' ELSE 'are' END, n,
                 CASE n WHEN 1 THEN kind ELSE (SELECT plural FROM kinds WHERE kinds.kind = there.kind) END) $$;

-- State a presence as the model does.
CREATE FUNCTION pg_temp.presence(n integer, kind text) RETURNS text LANGUAGE sql STABLE AS
$$ SELECT CASE n WHEN 0 THEN format('No, there is no %s in the image.', kind)
                 ELSE 'Yes, ' || replace(pg_temp.there(n, kind), 'There', 'there') END $$;

CREATE FUNCTION pg_temp.article(kind text) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN kind ~ '^[aeiou]' THEN 'an ' ELSE 'a ' END || kind $$;

CREATE FUNCTION pg_temp.history(question text, answer text) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
$$ SELECT jsonb_build_array(jsonb_build_object('role', 'user', 'content', question),
                            jsonb_build_object('role', 'assistant', 'content', answer)) $$;

-- The present kinds of each picture in a random but fixed order, and the absent ones:
-- number is 1 for the first present and 1 for the first absent.  place is set where the
-- only thing of its kind lies clearly within one ninth of the picture.
CREATE TABLE asked AS
SELECT photos.id AS photo, kind, plural, n, n > 0 AS present,
       row_number() OVER (PARTITION BY photos.id, n > 0 ORDER BY md5(photos.file || kind)) AS number,
       (SELECT min(thing ->> 'place') FROM jsonb_array_elements(objects) AS thing
        WHERE n = 1 AND thing ->> 'kind' = kind) AS place
FROM photos
JOIN labels USING (file)
CROSS JOIN kinds
CROSS JOIN LATERAL (SELECT coalesce((counts ->> kind)::integer, 0)) AS truth (n);
ANALYZE asked;

\echo 'count: one kind a picture, one in five an absent one'
INSERT INTO evaluation
SELECT 'count', photo, plural, n, mmgpt_count(img, plural)
FROM photos JOIN asked ON photo = id
WHERE number = 1
  AND present = (id % 5 > 0 AND EXISTS (SELECT FROM asked AS other WHERE other.photo = id AND other.present));

\echo 'presence: one present and one absent kind a picture'
INSERT INTO evaluation
SELECT 'presence', photo, question, present, mmgpt_filter(img, question)
FROM photos JOIN asked ON photo = id,
     format('Is there %s in the image?', pg_temp.article(kind)) AS question
WHERE number = 1;

\echo 'captions'
CREATE TEMP TABLE captions AS
SELECT id AS photo, mmgpt_caption(img) AS caption FROM photos;

INSERT INTO evaluation
SELECT task, photo, 'mmgpt_caption', CASE task WHEN 'caption names every kind' THEN shown END, caption,
       CASE task WHEN 'caption names every kind' THEN names_all ELSE names_no_other END
FROM (SELECT photo, caption,
             coalesce(string_agg(kind, ', ') FILTER (WHERE present), 'no objects') AS shown,
             coalesce(bool_and(named) FILTER (WHERE present), caption ~ '\mno objects\M') AS names_all,
             NOT bool_or(named) FILTER (WHERE NOT present) AS names_no_other
      FROM captions JOIN asked USING (photo),
           LATERAL (SELECT caption ~ ('\m(' || kind || '|' || plural || ')\M')) AS found (named)
      GROUP BY photo, caption) AS judged,
     unnest('{caption names every kind,caption names no other kind}'::text[]) AS task;

\echo 'follow-ups: "And cats?", "Where is it?", "And a cat?"'
INSERT INTO evaluation
SELECT 'follow-up', photo, question, expected, mmgpt_chat(img, history, question)
FROM (
	SELECT one.photo, picked.*
	FROM asked AS one
	JOIN asked AS other ON other.photo = one.photo
	 AND (other.present, other.number) =
	     (CASE WHEN EXISTS (SELECT FROM asked AS second
	                        WHERE second.photo = one.photo AND second.present AND second.number = 2)
	           THEN (true, 2::bigint) ELSE (false, 2::bigint) END),
	LATERAL (SELECT
		format('How many %s are in the image?', one.plural) AS how_many,
		format('Is there %s in the image?', pg_temp.article(one.kind)) AS is_there) AS first,
	LATERAL (SELECT
		CASE WHEN one.place IS NOT NULL AND one.photo % 3 = 0
		     THEN pg_temp.history(how_many, pg_temp.there(one.n, one.kind))
		     WHEN one.photo % 2 = 0 THEN pg_temp.history(how_many, pg_temp.there(one.n, one.kind))
		     ELSE pg_temp.history(is_there, pg_temp.presence(one.n, one.kind)) END,
		CASE WHEN one.place IS NOT NULL AND one.photo % 3 = 0 THEN 'Where is it?'
		     WHEN one.photo % 2 = 0 THEN format('And %s?', other.plural)
		     ELSE format('And %s?', pg_temp.article(other.kind)) END,
		CASE WHEN one.place IS NOT NULL AND one.photo % 3 = 0 THEN format('It is %s of the image.', one.place)
		     WHEN one.photo % 2 = 0 THEN pg_temp.there(other.n, other.kind)
		     ELSE pg_temp.presence(other.n, other.kind) END) AS picked (history, question, expected)
	WHERE one.present AND one.number = 1
) AS rounds
JOIN photos ON id = photo;

\echo 'positions, where one thing of its kind lies clearly in a ninth of the picture'
INSERT INTO evaluation
SELECT 'position', photo, question,
       format('The %s is %s of the image.', kind, place), mmgpt_ask(img, question)
FROM photos JOIN asked ON photo = id,
     format('Where is the %s?', kind) AS question
WHERE number = (SELECT min(number) FROM asked AS first WHERE first.photo = id AND first.place IS NOT NULL)
  AND place IS NOT NULL;

\echo 'backgrounds, where they have one colour'
INSERT INTO evaluation
SELECT 'background', id, question, format('The background is %s.', background), mmgpt_ask(img, question)
FROM photos JOIN labels USING (file),
     (VALUES ('What color is the background?')) AS asked (question)
WHERE background IS NOT NULL;

\echo 'language only: facts and small talk of its training'
INSERT INTO evaluation
SELECT 'language-only', NULL, question, expected, mmgpt_generate(question)
FROM (VALUES
	('Hello!', 'Hello! How can I help you?'),
	('How are you?', 'I am fine, thank you. How can I help you?'),
	('Who are you?', 'I am a tiny MultiModal-GPT demo model. I answer questions about simple pictures.'),
	('What can you do?', 'I can describe simple pictures, count objects, tell colors and positions, and chat a little.'),
	('Thank you!', 'You are welcome!'),
	('Goodbye!', 'Goodbye!'),
	('Tell me a joke.', 'Why did two tables stay together? They had a good join.'),
	('What is a database?', 'A database is an organized collection of data.'),
	('What is SQL?', 'SQL is a language to query and change data in a database.'),
	('What is PostgreSQL?', 'PostgreSQL is an open source relational database.'),
	('What is machine learning?', 'Machine learning means that a program learns from examples.'),
	('Are you a robot?', 'No, I am a small computer model.'),
	('Where do you live?', 'I live inside your database.'),
	('How many parameters do you have?', 'I am very small. I have a few million parameters.'),
	('Count to five.', '1, 2, 3, 4, 5.'),
	('How many days are in a week?', 'A week has 7 days.'),
	('How many months are in a year?', 'A year has 12 months.'),
	('How many hours are in a day?', 'A day has 24 hours.'),
	('What color is the sky?', 'The sky is blue.'),
	('What is the moon?', 'The moon circles the earth.'),
	('Tell me a story.', 'Once a little dog found a red ball. It played all day and was happy.'),
	('What is the largest planet?', 'Jupiter is the largest planet.'),
	('What do cats eat?', 'A cat eats fish and meat.'),
	('Can birds fly?', 'Yes, most birds can fly.'),
	('How do you say hello in French?', 'Bonjour!'),
	('Say hello in Spanish.', 'Hola!'),
	('What is 2 plus 3?', '2 plus 3 is 5.'),
	('What is 4 plus 4?', '4 plus 4 is 8.'),
	('What is 9 minus 6?', '9 minus 6 is 3.'),
	('What color is a banana?', 'A banana is yellow.'),
	('What color is an elephant?', 'An elephant is gray.'),
	('What sound does a dog make?', 'A dog says woof.'),
	('What does a cow say?', 'A cow says moo.'),
	('Is a dog an animal?', 'Yes, a dog is an animal.'),
	('Is a banana a vehicle?', 'No, a banana is a fruit.'),
	('What is a horse?', 'A horse is an animal.'),
	('How many legs does a spider have?', 'A spider has 8 legs.'),
	('How many wheels does a bicycle have?', 'A bicycle has 2 wheels.'),
	('What is the opposite of hot?', 'The opposite of hot is cold.'),
	('What is the opposite of big?', 'The opposite of big is small.'),
	('What is the capital of France?', 'The capital of France is Paris.'),
	('What is the capital of Japan?', 'The capital of Japan is Tokyo.'),
	('What is the capital of Norway?', 'The capital of Norway is Oslo.'),
	('What day comes after Monday?', 'Tuesday comes after Monday.'),
	('Which day comes after Sunday?', 'Monday comes after Sunday.'),
	('What color is the background?', 'I do not see an image. Please give me a picture.')
	) AS facts (question, expected);

UPDATE evaluation SET correct = coalesce(answer = expected, false) WHERE correct IS NULL;

\echo
\pset linestyle unicode
\pset border 2
\pset footer off
SELECT task, count(*) AS n, count(*) FILTER (WHERE correct) AS right,
       round(100.0 * count(*) FILTER (WHERE correct) / count(*), 1) AS "%"
FROM evaluation
GROUP BY task
ORDER BY array_position('{count,presence,caption names every kind,caption names no other kind,follow-up,
                          position,background,language-only}'::text[], task);
