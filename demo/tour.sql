-- The tour: questions about pictures, asked where the pictures are.
-- Run by `make demo` after load.sql; the README shows its output.
\set ON_ERROR_STOP on
\set QUIET on
\pset linestyle unicode
\pset border 2
\pset null '·'
\set ECHO queries

\echo
\echo '\033[1mCaptions.\033[0m  An image column becomes text.'
\echo
SELECT file, mmgpt_caption(img) AS caption
FROM photos
ORDER BY id;

\echo '\033[1mCounts in a report.\033[0m  Beside each sum, the truth.'
\echo
SELECT shelf,
       count(DISTINCT id) AS pictures,
       what,
       sum(mmgpt_count(img, what)) AS counted,
       sum(n) AS truly
FROM photos JOIN true_counts ON photo = id
WHERE what IN ('mushrooms', 'clocks', 'trees', 'planes')
GROUP BY shelf, what
ORDER BY shelf, what;

\echo '\033[1mA filter.\033[0m  WHERE, with a question in it.'
\echo
SELECT file, shelf, mmgpt_count(img, 'mushrooms') AS mushrooms
FROM photos
WHERE mmgpt_filter(img, 'Is there a mushroom in the image?')
ORDER BY file;

\echo '\033[1mLabels.\033[0m  All that fit, or the one that fits best.'
\echo
SELECT file,
       mmgpt_classify_multi(img, '{cat,bird,turtle,tree}') AS shows,
       mmgpt_classify(img, '{cat,bird,turtle,tree}') AS most_likely
FROM photos
WHERE shelf = 'garden'
ORDER BY file;

\echo '\033[1mA dialogue of three rounds.\033[0m  The history is a jsonb value; each round appends to it.'
\echo
SELECT turn ->> 'role' AS role, turn ->> 'content' AS content
FROM photos,
     mmgpt_chat_turn(img, NULL, 'What do you see?') AS first,
     mmgpt_chat_turn(img, first, 'How many bicycles are there?') AS second,
     mmgpt_chat_turn(img, second, 'And umbrellas?') AS third,
     jsonb_array_elements(third) WITH ORDINALITY AS turns (turn, position)
WHERE file = 'street-4.jpg'
ORDER BY position;

\echo '\033[1mOne question to go on with.\033[0m  Or keep the history yourself.'
\echo
SELECT mmgpt_chat(img,
                  '[{"role": "user",      "content": "Is there an umbrella in the image?"},
                    {"role": "assistant", "content": "Yes, there is 1 umbrella in the image."}]',
                  'Where is it?')
FROM photos
WHERE file = 'street-4.jpg';

\echo '\033[1mAccuracy.\033[0m  Every count of every kind, against the table of true counts.'
\echo
SELECT shelf,
       count(*) AS questions,
       count(*) FILTER (WHERE mmgpt_count(img, what) = n) AS right,
       round(100.0 * count(*) FILTER (WHERE mmgpt_count(img, what) = n) / count(*), 1) AS "%"
FROM photos JOIN true_counts ON photo = id
GROUP BY ROLLUP (shelf)
ORDER BY shelf NULLS LAST;

\set ECHO none
