-- Ask the questions that demo/training/exam.py wrote about pictures that the model has never seen.
--
-- Run by demo/evaluate, several times at once: session number :session of :sessions asks about its
-- share of the pictures. Counts are asked with mmgpt_count, presence with mmgpt_filter, captions
-- with mmgpt_caption, labels with mmgpt_classify, the rest in plain words; the first round of a
-- follow-up is the model's own.
\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;

INSERT INTO evaluation (task, photo, first, question, expected, answer)
SELECT task, id, first, question, expected,
       CASE
           WHEN task LIKE 'count%' OR task = 'unknown thing, counted'
               THEN mmgpt_count(img, question)::text
           WHEN task IN ('presence', 'unknown thing, asked for')
               THEN mmgpt_filter(img, question)::text
           WHEN task = 'classify'
               THEN mmgpt_classify(img, string_to_array(question, ', '))
           WHEN task = 'caption'
               THEN mmgpt_caption(img)
           WHEN first <> ''
               THEN mmgpt_chat(img, mmgpt_chat_turn(img, NULL, first), question)
           ELSE mmgpt_ask(img, question)
       END
FROM questions JOIN photos USING (file)
WHERE id % :sessions = :session
ORDER BY id;

INSERT INTO evaluation (task, question, expected, answer)
SELECT 'language only', request ->> 'prompt', request ->> 'words', mmgpt_generate(request ->> 'prompt')
FROM language
WHERE number % :sessions = :session;
