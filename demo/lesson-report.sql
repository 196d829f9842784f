-- The exam again, with the adapter that lesson-train.sql made.
\set ON_ERROR_STOP on
\set QUIET on
\pset linestyle unicode
\pset border 2
SET mmgpt.adapter = 'numbers';
UPDATE lesson_exam SET after = mmgpt_ask(img, question) FROM photos WHERE id = photo;

\set ECHO queries
SELECT skill, count(*) AS questions,
       count(*) FILTER (WHERE before = expected) AS "right before",
       count(*) FILTER (WHERE after = expected) AS "right after"
FROM lesson_exam
GROUP BY skill;

RESET mmgpt.adapter;
SELECT mmgpt_ask(img, 'Number of trees only, please.') AS "without the adapter",
       mmgpt_ask(img, 'Number of trees only, please.', '{"adapter": "numbers"}') AS "with it"
FROM photos
WHERE file = 'street-4.jpg';
