-- A new skill: prepare the rows to learn it from, ask before, and start the job.
--
--	DEMO=demo PICTURES=demo/lessons psql -f demo/lesson.sql      (after load.sql)
--
-- The demo model answers a count with a sentence. It shall learn to answer "Number of dogs
-- only, please." with the bare number, which its training never had, and keep all that it can.
-- Half of the rows teach the new skill, from what lessons/labels.csv says of the pictures; the
-- other half are old questions with the answers that the model gives already.
--
--	lesson_pictures   48 pictures; none of them is in photos
--	lessons           the table that is trained on: image, instruction, response
--	lesson_exam       questions about photos, which the training never sees, and the answers
\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;

DROP TABLE IF EXISTS lesson_pictures, lessons, lesson_exam;

CREATE TEMP TABLE incoming_labels (
	file text, shelf text, width integer, height integer, background text, counts jsonb, objects jsonb);
\copy incoming_labels FROM PROGRAM 'cat "$PICTURES/labels.csv"' WITH (FORMAT csv, HEADER)
CREATE TEMP TABLE incoming_pictures (file text, base64 text);
\copy incoming_pictures FROM PROGRAM '"$DEMO/encode-pictures" "$PICTURES"'

CREATE TABLE lesson_pictures (file text PRIMARY KEY, img bytea NOT NULL, counts jsonb NOT NULL);
ALTER TABLE lesson_pictures ALTER img SET STORAGE EXTERNAL;
INSERT INTO lesson_pictures
SELECT file, decode(base64, 'base64'), counts
FROM incoming_pictures JOIN incoming_labels USING (file);

-- What is asked of a picture: all kinds that it shows and three others.
CREATE TEMP TABLE asked AS
SELECT file, kind, plural, coalesce((counts ->> kind)::integer, 0) AS n,
       row_number() OVER (PARTITION BY file ORDER BY counts ? kind DESC, md5(file || kind)) AS place
FROM lesson_pictures, kinds;
DELETE FROM asked WHERE n = 0 AND place > 3 + (SELECT count(*) FROM asked AS other
                                               WHERE other.file = asked.file AND other.n > 0);

CREATE TABLE lessons (
	id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	image bytea,
	instruction text,
	response text
);
INSERT INTO lessons (image, instruction, response)
SELECT img, format('Number of %s only, please.', plural), n::text
FROM lesson_pictures JOIN asked USING (file)
ORDER BY file, place;

INSERT INTO lessons (image, instruction, response)
SELECT img, question, mmgpt_ask(img, question)
FROM lesson_pictures
JOIN (SELECT file, 'How many ' || plural || ' are in the image?' AS question FROM asked WHERE place IN (1, 5)
      UNION ALL
      SELECT file, 'Is there ' || CASE WHEN kind ~ '^[aeiou]' THEN 'an ' ELSE 'a ' END || kind || ' in the image?'
      FROM asked WHERE place IN (2, 4)
      UNION ALL
      SELECT file, 'Write a caption for this image.' FROM lesson_pictures) AS old USING (file)
ORDER BY file, question;

-- The exam is about the pictures of the tour: the new skill, and two old ones.
CREATE TABLE lesson_exam AS
SELECT 'bare numbers' AS skill, photo, format('Number of %s only, please.', what) AS question, n::text AS expected
FROM true_counts
UNION ALL
SELECT 'counts in a sentence', photo, format('How many %s are in the image?', what),
       format('There %s %s %s in the image.', CASE n WHEN 1 THEN 'is' ELSE 'are' END, n,
              CASE n WHEN 1 THEN kind ELSE plural END)
FROM true_counts JOIN kinds ON plural = what
UNION ALL
SELECT 'captions, as before', id, 'Write a caption for this image.', mmgpt_caption(img)
FROM photos;
ALTER TABLE lesson_exam ADD before text, ADD after text;
UPDATE lesson_exam SET before = mmgpt_ask(img, question) FROM photos WHERE id = photo;

SELECT format('%s rows to learn from, %s of them new; %s questions in the exam',
              count(*), count(*) FILTER (WHERE response ~ '^\d+$'), (SELECT count(*) FROM lesson_exam))
FROM lessons;
