-- tokens: plain text, without the mark of the beginning
SELECT mmgpt_token_count(''), mmgpt_token_count('Describe the image.'), mmgpt_token_count(NULL);
-- spellings of special tokens are text
SELECT mmgpt_token_count('</s>') > 1 AS "</s>", mmgpt_token_count('<image>') > 1 AS "<image>";

-- the engine, described
SELECT jsonb_typeof(mmgpt_status()) AS status, length(mmgpt_version()) > 0 AS version;
SELECT (mmgpt_status()->>'pid')::int > 0 AS engine, (mmgpt_status()->>'restarts')::int >= 0 AS restarts;
SELECT engine, state, device = mmgpt_status()->>'device' AS device, uptime > interval '0' AS uptime, done > 0 AS done, failed >= 0 AS failed, resident_bytes > 0 AS resident
FROM mmgpt_stat;

-- a new engine
SELECT (mmgpt_status()->>'pid')::int AS before \gset
SELECT mmgpt_restart();
SELECT (mmgpt_status()->>'pid')::int <> :before AS new_engine;
SELECT mmgpt_token_count('Describe the image.') > 0 AS answers;
