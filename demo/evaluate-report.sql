-- Judge the answers in the table evaluation and show the shares that are right.
--
-- An answer is right when it is the expected one, letter for letter; a caption, when all kinds,
-- counts and colours are, in any order; without a picture, when it holds the words that
-- language.jsonl names. To a wording never trained on the answer is right when it states the
-- same: "I see 2 dogs" is as good as "The image shows 2 dogs on a blue background". The share
-- that is right letter for letter stands beside it. All stays in the table:
--
--	SELECT * FROM evaluation WHERE NOT correct;
\set ON_ERROR_STOP on
\set QUIET on

-- What an answer states, without the words around it and in whatever order it names things.
CREATE FUNCTION pg_temp.facts(answer text, background boolean) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT string_agg(part, ', ' ORDER BY part)
	FROM (SELECT regexp_replace(rtrim(answer, '.'),
								'^(The image shows|I see|There is|There are) | in the image$', '', 'g')) AS x(bare),
		 regexp_split_to_table(CASE WHEN background THEN regexp_replace(bare, ' on (an? \w+ background)$', ', \1')
									ELSE regexp_replace(bare, ' on an? \w+ background$', '') END,
							   ', | and ') AS part
$$;

INSERT INTO evaluation
SELECT 'wordings never trained on, letter for letter', photo, first, question, expected, answer
FROM evaluation WHERE task = 'wordings never trained on';

INSERT INTO evaluation
SELECT 'caption, background too', photo, first, question, expected, answer
FROM evaluation WHERE task = 'caption';

UPDATE evaluation
SET correct = coalesce(CASE WHEN task = 'caption'
                            THEN pg_temp.facts(answer, false) = pg_temp.facts(expected, false)
                            WHEN task = 'caption, background too'
                            THEN pg_temp.facts(answer, true) = pg_temp.facts(expected, true)
                            WHEN task = 'wordings never trained on'
                            THEN pg_temp.facts(answer, expected ~ 'background') =
                                 pg_temp.facts(expected, expected ~ 'background')
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
