-- Judge the answers in the table evaluation and show the shares that are right.
--
-- An answer is right when it is the expected one, letter for letter; a caption, when all up to
-- the background is; without a picture, when it holds the words that language.jsonl names. All of
-- it stays in the table:
--
--	SELECT * FROM evaluation WHERE NOT correct;
\set ON_ERROR_STOP on
\set QUIET on

INSERT INTO evaluation
SELECT 'caption, background too', photo, first, question, expected, answer
FROM evaluation WHERE task = 'caption';

UPDATE evaluation
SET correct = coalesce(CASE WHEN task = 'caption'
                            THEN split_part(answer, ' on a ', 1) = split_part(expected, ' on a ', 1)
                            WHEN task = 'language only'
                            THEN (SELECT bool_and(answer ILIKE '%' || word || '%')
                                  FROM jsonb_array_elements_text(expected::jsonb) AS word)
                            ELSE answer = expected END, false);

\pset linestyle unicode
\pset border 2
\pset footer off
SELECT task, count(*) AS n, count(*) FILTER (WHERE correct) AS right,
       round(100.0 * count(*) FILTER (WHERE correct) / count(*), 1) AS "%"
FROM evaluation
GROUP BY task
ORDER BY task = 'language only', task LIKE 'unknown%', task LIKE 'wordings%', task;
