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

-- adapters
--
-- An adapter is a row of mmgpt_adapter and its safetensors file in pieces, which keeps
-- every value far below the limit of a field, also in a dump. Everybody may read the
-- tables, and row-level security leaves the rows that they may use; only the functions
-- below write. Owners and roles are regrole, which a dump writes as names.

CREATE TABLE mmgpt_adapter (
	id bigserial PRIMARY KEY,
	name text NOT NULL UNIQUE CHECK (octet_length(name) BETWEEN 1 AND 63),
	owner regrole NOT NULL,
	shared_with regrole[] NOT NULL DEFAULT '{}',
	created timestamptz NOT NULL DEFAULT now(),
	digest text NOT NULL,
	base_model text NOT NULL,
	bytes bigint NOT NULL,
	parameters bigint NOT NULL,
	rank integer NOT NULL,
	alpha double precision NOT NULL,
	targets text[] NOT NULL,
	config jsonb NOT NULL
);

COMMENT ON TABLE mmgpt_adapter IS
'LoRA adapters: what mmgpt_adapters shows, and the adapter_config.json of each. Written by the functions mmgpt_adapter_... only.';
COMMENT ON COLUMN mmgpt_adapter.id IS 'Key of mmgpt_adapter_piece.';
COMMENT ON COLUMN mmgpt_adapter.name IS 'Unique in the database; 1 to 63 bytes.';
COMMENT ON COLUMN mmgpt_adapter.owner IS 'May use, share, rename and drop the adapter.';
COMMENT ON COLUMN mmgpt_adapter.shared_with IS 'Roles that may use it beside the owner; - is everybody.';
COMMENT ON COLUMN mmgpt_adapter.created IS 'When it was imported, or replaced.';
COMMENT ON COLUMN mmgpt_adapter.digest IS 'SHA-256 of both of its files, in hexadecimal.';
COMMENT ON COLUMN mmgpt_adapter.base_model IS 'Digest of the model that it was checked against, as in mmgpt_status().';
COMMENT ON COLUMN mmgpt_adapter.bytes IS 'Size of its safetensors file.';
COMMENT ON COLUMN mmgpt_adapter.parameters IS 'Numbers in all of its matrices.';
COMMENT ON COLUMN mmgpt_adapter.rank IS 'r: inner size of each pair of matrices.';
COMMENT ON COLUMN mmgpt_adapter.alpha IS 'lora_alpha: the product of a pair counts alpha / r times.';
COMMENT ON COLUMN mmgpt_adapter.targets IS 'Matrices of the model that it changes.';
COMMENT ON COLUMN mmgpt_adapter.config IS 'adapter_config.json.';

COMMENT ON SEQUENCE mmgpt_adapter_id_seq IS 'Numbers of adapters.';

CREATE TABLE mmgpt_adapter_piece (
	adapter bigint NOT NULL REFERENCES mmgpt_adapter ON DELETE CASCADE,
	number integer NOT NULL,
	bytes bytea NOT NULL,
	PRIMARY KEY (adapter, number)
);
-- numbers that were trained do not compress
ALTER TABLE mmgpt_adapter_piece ALTER bytes SET STORAGE EXTERNAL;

COMMENT ON TABLE mmgpt_adapter_piece IS
'The adapter_model.safetensors of each adapter in pieces of 1 MB.';
COMMENT ON COLUMN mmgpt_adapter_piece.adapter IS 'mmgpt_adapter.id.';
COMMENT ON COLUMN mmgpt_adapter_piece.number IS 'Place in the file, from 0.';
COMMENT ON COLUMN mmgpt_adapter_piece.bytes IS 'The piece; all but the last have 1 MB.';

ALTER TABLE mmgpt_adapter ENABLE ROW LEVEL SECURITY;
ALTER TABLE mmgpt_adapter_piece ENABLE ROW LEVEL SECURITY;

CREATE POLICY usable ON mmgpt_adapter FOR SELECT
USING (pg_has_role(owner, 'USAGE') OR
	   EXISTS (SELECT FROM unnest(shared_with) AS r(role) WHERE role = 0 OR pg_has_role(role, 'USAGE')));
COMMENT ON POLICY usable ON mmgpt_adapter IS 'Owners, and roles that it is shared with.';

CREATE POLICY usable ON mmgpt_adapter_piece FOR SELECT
USING (EXISTS (SELECT FROM mmgpt_adapter a WHERE a.id = adapter));
COMMENT ON POLICY usable ON mmgpt_adapter_piece IS 'Whoever may use the adapter.';

-- The condition again, because the view reads the table with its owner's rights
-- (security_invoker came with PostgreSQL 15).
CREATE VIEW mmgpt_adapters WITH (security_barrier) AS
SELECT name, owner, shared_with, created, digest, base_model, bytes, parameters, rank, alpha, targets
FROM mmgpt_adapter
WHERE pg_has_role(owner, 'USAGE') OR
	  EXISTS (SELECT FROM unnest(shared_with) AS r(role) WHERE role = 0 OR pg_has_role(role, 'USAGE'));

COMMENT ON VIEW mmgpt_adapters IS
'The LoRA adapters that you may use: their own names for mmgpt.adapter and the option "adapter".';

-- the sequence too, or only superusers could dump the database
GRANT SELECT ON mmgpt_adapter, mmgpt_adapter_piece, mmgpt_adapters, mmgpt_adapter_id_seq TO PUBLIC;

SELECT pg_extension_config_dump('mmgpt_adapter', '');
SELECT pg_extension_config_dump('mmgpt_adapter_piece', '');
SELECT pg_extension_config_dump('mmgpt_adapter_id_seq', '');

CREATE FUNCTION mmgpt_adapter_import(name text, tensors bytea, config jsonb, replace boolean DEFAULT false)
RETURNS text
AS 'MODULE_PATHNAME', 'mmgpt_adapter_import'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_adapter_import(text, bytea, jsonb, boolean) IS
'Stores an adapter of PEFT: the bytes of its adapter_model.safetensors and its adapter_config.json. The engine checks that every tensor has a place in the loaded model. You become its owner; replace: an adapter of that name, which must be yours, gets these files and keeps owner and grants. Returns the digest of the files. Errors: 22P03 wrong files or tensors that do not fit the model, 0A000 a variant of LoRA that is not supported, 42710 the name is taken, 42602 no valid name, 55000 no model is loaded.';

CREATE FUNCTION mmgpt_adapter_export(name text, OUT tensors bytea, OUT config jsonb)
AS 'MODULE_PATHNAME', 'mmgpt_adapter_export'
LANGUAGE C STABLE PARALLEL SAFE;

COMMENT ON FUNCTION mmgpt_adapter_export(text) IS
'The files of an adapter as PEFT reads them: adapter_model.safetensors, byte by byte as it was imported, and adapter_config.json. Errors: 42704 no such adapter, 42501 you may not use it, 54000 larger than a value can be (read mmgpt_adapter_piece instead), XX001 damaged.';

CREATE FUNCTION mmgpt_adapter_drop(name text, if_exists boolean DEFAULT false)
RETURNS void
AS 'MODULE_PATHNAME', 'mmgpt_adapter_drop'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_adapter_drop(text, boolean) IS
'Removes an adapter of yours; if_exists: one that is not there is a notice. Errors: 42704 no such adapter, 42501 not yours.';

CREATE FUNCTION mmgpt_adapter_rename(name text, new_name text)
RETURNS void
AS 'MODULE_PATHNAME', 'mmgpt_adapter_rename'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_adapter_rename(text, text) IS
'Gives an adapter of yours another name. Errors: 42704 no such adapter, 42501 not yours, 42710 the name is taken, 42602 no valid name.';

CREATE FUNCTION mmgpt_adapter_grant(name text, role name)
RETURNS void
AS 'MODULE_PATHNAME', 'mmgpt_adapter_grant'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_adapter_grant(text, name) IS
'Lets a role and its members, or public, use and export an adapter of yours. Errors: 42704 no such adapter or role, 42501 not yours.';

CREATE FUNCTION mmgpt_adapter_revoke(name text, role name)
RETURNS void
AS 'MODULE_PATHNAME', 'mmgpt_adapter_revoke'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_adapter_revoke(text, name) IS
'Takes back what mmgpt_adapter_grant gave to a role, or to public. Errors as of mmgpt_adapter_grant.';

CREATE FUNCTION mmgpt_adapter_set_owner(name text, role name)
RETURNS void
AS 'MODULE_PATHNAME', 'mmgpt_adapter_set_owner'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_adapter_set_owner(text, name) IS
'Gives an adapter of yours to a role that you are a member of; a superuser may give any to anybody. Errors: 42704 no such adapter or role, 42501 not yours, or not a member.';

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
