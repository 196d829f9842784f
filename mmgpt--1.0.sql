-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION mmgpt" to load this file. \quit

-- questions about rows
--
-- STABLE: an answer is a function of its arguments, the model and the settings;
-- IMMUTABLE would ask the model when a query is planned. COST tells the planner
-- to evaluate every other condition first. None is STRICT: what is NULL without
-- being asked differs from argument to argument.

CREATE FUNCTION mmgpt_chat(image bytea, history jsonb, prompt text, options jsonb DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'mmgpt_chat'
LANGUAGE C STABLE PARALLEL SAFE COST 10000;

COMMENT ON FUNCTION mmgpt_chat(bytea, jsonb, text, jsonb) IS
'The next answer of a dialogue about an image (JPEG or PNG; NULL: a dialogue without one). history: [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...], alternating; NULL: the dialogue begins. A NULL prompt gives NULL. Errors: 22P03 not an image, 54000 too large or too long, 22032 history malformed, 22023 unknown option.';

CREATE FUNCTION mmgpt_chat_turn(image bytea, history jsonb, prompt text, options jsonb DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'mmgpt_chat_turn'
LANGUAGE C STABLE PARALLEL SAFE COST 10000;

COMMENT ON FUNCTION mmgpt_chat_turn(bytea, jsonb, text, jsonb) IS
'The history of a dialogue with the prompt and its answer appended, ready to be the history of the next turn. Arguments and errors as of mmgpt_chat.';

CREATE FUNCTION mmgpt_generate(prompt text, image bytea DEFAULT NULL, options jsonb DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'mmgpt_generate'
LANGUAGE C STABLE PARALLEL SAFE COST 10000;

COMMENT ON FUNCTION mmgpt_generate(text, bytea, jsonb) IS
'The answer to one instruction, with an image (JPEG or PNG) or without. A NULL prompt gives NULL. Errors as of mmgpt_chat.';

CREATE FUNCTION mmgpt_caption(image bytea, detail text DEFAULT 'brief', options jsonb DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'mmgpt_caption'
LANGUAGE C STABLE PARALLEL SAFE COST 10000;

COMMENT ON FUNCTION mmgpt_caption(bytea, text, jsonb) IS
'A description of an image (JPEG or PNG); detail: ''brief'' or ''detailed''. A NULL image or detail gives NULL. Errors as of mmgpt_chat.';

CREATE FUNCTION mmgpt_ask(image bytea, question text, options jsonb DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'mmgpt_ask'
LANGUAGE C STABLE PARALLEL SAFE COST 10000;

COMMENT ON FUNCTION mmgpt_ask(bytea, text, jsonb) IS
'The answer to a question about an image (JPEG or PNG). A NULL image or question gives NULL. Errors as of mmgpt_chat.';

CREATE FUNCTION mmgpt_count(image bytea, what text, options jsonb DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'mmgpt_count'
LANGUAGE C STABLE PARALLEL SAFE COST 10000;

COMMENT ON FUNCTION mmgpt_count(bytea, text, jsonb) IS
'How many of what (in the plural: ''dogs'') the model sees in an image (JPEG or PNG). A NULL image or what gives NULL. Errors as of mmgpt_chat.';

CREATE FUNCTION mmgpt_score(image bytea, condition text, options jsonb DEFAULT NULL)
RETURNS real
AS 'MODULE_PATHNAME', 'mmgpt_score'
LANGUAGE C STABLE PARALLEL SAFE COST 10000;

COMMENT ON FUNCTION mmgpt_score(bytea, text, jsonb) IS
'How sure the model is, from 0 to 1, that a condition (a question or statement) holds for an image (JPEG or PNG): the probability of yes among yes and no. A NULL image or condition gives NULL. Errors as of mmgpt_chat.';

CREATE FUNCTION mmgpt_filter(image bytea, condition text, options jsonb DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'mmgpt_filter'
LANGUAGE C STABLE PARALLEL SAFE COST 10000;

COMMENT ON FUNCTION mmgpt_filter(bytea, text, jsonb) IS
'Whether a condition (a question or statement) holds for an image (JPEG or PNG): mmgpt_score of at least the option threshold, 0.5 by default. A NULL image or condition gives NULL. Errors as of mmgpt_chat.';

CREATE FUNCTION mmgpt_classify(image bytea, labels text[], options jsonb DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'mmgpt_classify'
LANGUAGE C STABLE PARALLEL SAFE COST 10000;

COMMENT ON FUNCTION mmgpt_classify(bytea, text[], jsonb) IS
'The label that fits an image (JPEG or PNG) best: the most likely one as the whole answer to the model''s classify prompt, the first one of those that are equally likely. A NULL image or array gives NULL. Errors: 22023 no labels, an empty label, or one that comes twice, 22004 a null label, 2202E an array of several dimensions, and those of mmgpt_chat.';

CREATE FUNCTION mmgpt_classify_multi(image bytea, labels text[], options jsonb DEFAULT NULL)
RETURNS text[]
AS 'MODULE_PATHNAME', 'mmgpt_classify_multi'
LANGUAGE C STABLE PARALLEL SAFE COST 10000;

COMMENT ON FUNCTION mmgpt_classify_multi(bytea, text[], jsonb) IS
'All labels that fit an image (JPEG or PNG), in the order given: each is asked about by itself, as by mmgpt_score, and has to reach the option threshold, 0.5 by default. No label: an empty array. A NULL image or array gives NULL. Errors as of mmgpt_classify.';

-- what needs no answer of the model

CREATE FUNCTION mmgpt_image_info(image bytea)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'mmgpt_image_info'
LANGUAGE C STABLE PARALLEL SAFE COST 100;

COMMENT ON FUNCTION mmgpt_image_info(bytea) IS
'What the header of an image (JPEG or PNG) says: format, width and height in pixels, channels, color, bits of a channel, orientation (EXIF), bytes. Errors: 22P03 not an image, 54000 too large.';

CREATE FUNCTION mmgpt_token_count(value text)
RETURNS integer
AS 'MODULE_PATHNAME', 'mmgpt_token_count'
LANGUAGE C STABLE PARALLEL SAFE COST 100;

COMMENT ON FUNCTION mmgpt_token_count(text) IS
'How many tokens a text has as the model reads it, as plain text and without the mark of the beginning.';

-- the engine

CREATE FUNCTION mmgpt_status()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'mmgpt_status'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION mmgpt_status() IS
'What the engine does and has done since it was started: the model (its directory only for pg_read_all_settings) and how far it is loaded, requests running and waiting, steps, rows of a step, images and tokens computed and reused, restarts.';

CREATE FUNCTION mmgpt_version()
RETURNS text
AS 'MODULE_PATHNAME', 'mmgpt_version'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION mmgpt_version() IS
'What answers depend on beside their arguments and settings: version of the engine, device, instruction set, threads, weight format. The model''s digest is in mmgpt_status().';

CREATE FUNCTION mmgpt_restart()
RETURNS boolean
AS 'MODULE_PATHNAME', 'mmgpt_restart'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION mmgpt_restart() IS
'Ends the engine, starts a new one and waits until it has loaded its model, then returns true. Calls that were running are asked again. Error: 55000 the model cannot be loaded, with the reason.';

-- restarting takes time from everybody
REVOKE ALL ON FUNCTION mmgpt_restart() FROM PUBLIC;
