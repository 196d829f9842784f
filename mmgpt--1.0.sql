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
USING (pg_catalog.pg_has_role(owner, 'USAGE') OR
	   EXISTS (SELECT FROM pg_catalog.unnest(shared_with) AS r(role)
			   WHERE role OPERATOR(pg_catalog.=) 0 OR pg_catalog.pg_has_role(role, 'USAGE')));
COMMENT ON POLICY usable ON mmgpt_adapter IS 'Owners, and roles that it is shared with.';

CREATE POLICY usable ON mmgpt_adapter_piece FOR SELECT
USING (EXISTS (SELECT FROM mmgpt_adapter a WHERE a.id = adapter));
COMMENT ON POLICY usable ON mmgpt_adapter_piece IS 'Whoever may use the adapter.';

-- The condition again, because the view reads the table with its owner's rights
-- (security_invoker came with PostgreSQL 15).
CREATE VIEW mmgpt_adapters WITH (security_barrier) AS
SELECT name, owner, shared_with, created, digest, base_model, bytes, parameters, rank, alpha, targets
FROM mmgpt_adapter
WHERE pg_catalog.pg_has_role(owner, 'USAGE') OR
	  EXISTS (SELECT FROM pg_catalog.unnest(shared_with) AS r(role)
			  WHERE role OPERATOR(pg_catalog.=) 0 OR pg_catalog.pg_has_role(role, 'USAGE'));

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

-- fine-tuning
--
-- A job is a row of mmgpt_job. A background worker reads the table once, keeps what the engine
-- makes of its rows in mmgpt_job_row and mmgpt_job_picture, trains with these, and writes steps
-- and checkpoints, all under the owner's rights. Nobody else reads or writes these tables, which
-- have no grants: people look at jobs through the views, and change them by the functions below.
-- None is dumped: a job is the work of one cluster. What it leaves, the adapter, is.

CREATE TABLE mmgpt_job (
	id bigserial PRIMARY KEY,
	table_id oid NOT NULL,
	table_name text NOT NULL,
	adapter text NOT NULL,
	owner regrole NOT NULL,
	login regrole NOT NULL,
	options jsonb,
	state text NOT NULL DEFAULT 'queued'
		CHECK (state IN ('queued', 'preparing', 'running', 'done', 'failed', 'cancelled')),
	cancel boolean NOT NULL DEFAULT false,
	created timestamptz NOT NULL DEFAULT clock_timestamp(),
	queued timestamptz NOT NULL DEFAULT clock_timestamp(),
	started timestamptz,
	finished timestamptz,
	restarts integer NOT NULL DEFAULT 0,
	prepared boolean NOT NULL DEFAULT false,
	rows bigint,
	unusable bigint,
	initial_digest text,
	model text,
	step integer NOT NULL DEFAULT 0,
	steps integer,
	optimizer_steps integer,
	pictures integer,
	pictures_encoded integer,
	tokens bigint,
	seconds double precision,
	run_started timestamptz,
	run_step integer,
	digest text,
	error_code text,
	error text,
	error_detail text,
	error_hint text
);

-- two jobs can't make the same adapter
CREATE UNIQUE INDEX mmgpt_job_active ON mmgpt_job (adapter)
	WHERE state IN ('queued', 'preparing', 'running');

COMMENT ON TABLE mmgpt_job IS 'Fine-tuning jobs; read them in the view mmgpt_jobs.';
COMMENT ON COLUMN mmgpt_job.id IS 'What mmgpt_finetune() returned.';
COMMENT ON COLUMN mmgpt_job.table_id IS 'The table to train on, which may be gone since.';
COMMENT ON COLUMN mmgpt_job.table_name IS 'Its name when the job was made.';
COMMENT ON COLUMN mmgpt_job.adapter IS 'Name of the adapter that the job makes.';
COMMENT ON COLUMN mmgpt_job.owner IS 'Whose rights the job has, and who owns the adapter.';
COMMENT ON COLUMN mmgpt_job.login IS 'The role that the worker connects as: who had logged in.';
COMMENT ON COLUMN mmgpt_job.options IS 'As they were given.';
COMMENT ON COLUMN mmgpt_job.state IS 'queued, preparing, running, done, failed or cancelled.';
COMMENT ON COLUMN mmgpt_job.cancel IS 'The job is asked to end.';
COMMENT ON COLUMN mmgpt_job.created IS 'When mmgpt_finetune() was called.';
COMMENT ON COLUMN mmgpt_job.queued IS 'When its worker was last asked for.';
COMMENT ON COLUMN mmgpt_job.started IS 'When its rows began to be read.';
COMMENT ON COLUMN mmgpt_job.finished IS 'When it was done, failed or cancelled.';
COMMENT ON COLUMN mmgpt_job.restarts IS 'How often it got another worker.';
COMMENT ON COLUMN mmgpt_job.prepared IS 'Its rows are complete; the table is not needed any more.';
COMMENT ON COLUMN mmgpt_job.rows IS 'Rows to train on, those held out included.';
COMMENT ON COLUMN mmgpt_job.unusable IS 'Rows that were left out; see mmgpt_job_unusable_rows.';
COMMENT ON COLUMN mmgpt_job.initial_digest IS 'Digest of the adapter that it goes on from.';
COMMENT ON COLUMN mmgpt_job.model IS 'Digest of the model that it trains an adapter for.';
COMMENT ON COLUMN mmgpt_job.step IS 'Micro steps done.';
COMMENT ON COLUMN mmgpt_job.steps IS 'Micro steps in all.';
COMMENT ON COLUMN mmgpt_job.optimizer_steps IS 'Optimizer steps done.';
COMMENT ON COLUMN mmgpt_job.pictures IS 'Different pictures.';
COMMENT ON COLUMN mmgpt_job.pictures_encoded IS 'Those that the vision encoder has seen.';
COMMENT ON COLUMN mmgpt_job.tokens IS 'Tokens trained on since the training was last opened.';
COMMENT ON COLUMN mmgpt_job.seconds IS 'Seconds of computing for them.';
COMMENT ON COLUMN mmgpt_job.run_started IS 'When the training last began to compute steps.';
COMMENT ON COLUMN mmgpt_job.run_step IS 'Micro steps done then.';
COMMENT ON COLUMN mmgpt_job.digest IS 'Digest of the adapter that it made.';
COMMENT ON COLUMN mmgpt_job.error_code IS 'SQLSTATE of the error that ended it.';
COMMENT ON COLUMN mmgpt_job.error IS 'Its message.';
COMMENT ON COLUMN mmgpt_job.error_detail IS 'Its detail.';
COMMENT ON COLUMN mmgpt_job.error_hint IS 'Its hint.';
COMMENT ON SEQUENCE mmgpt_job_id_seq IS 'Numbers of jobs.';

CREATE TABLE mmgpt_job_picture (
	job bigint NOT NULL REFERENCES mmgpt_job ON DELETE CASCADE,
	digest bytea NOT NULL,
	pixels bytea NOT NULL,
	PRIMARY KEY (job, digest)
);
ALTER TABLE mmgpt_job_picture ALTER pixels SET STORAGE EXTERNAL;

COMMENT ON TABLE mmgpt_job_picture IS 'The different pictures of a job''s rows, as the model takes them; gone when the job is done.';
COMMENT ON COLUMN mmgpt_job_picture.job IS 'mmgpt_job.id.';
COMMENT ON COLUMN mmgpt_job_picture.digest IS 'SHA-256 of the pixels.';
COMMENT ON COLUMN mmgpt_job_picture.pixels IS 'S x S x 3 bytes: rows, columns, red green blue.';

CREATE TABLE mmgpt_job_row (
	job bigint NOT NULL REFERENCES mmgpt_job ON DELETE CASCADE,
	number bigint NOT NULL,
	tokens bytea NOT NULL,
	targets bytea NOT NULL,
	picture bytea,
	PRIMARY KEY (job, number)
);

COMMENT ON TABLE mmgpt_job_row IS 'What a job trains on, made of its table''s rows; gone when the job is done.';
COMMENT ON COLUMN mmgpt_job_row.job IS 'mmgpt_job.id.';
COMMENT ON COLUMN mmgpt_job_row.number IS 'Place among the rows that were read, from 1.';
COMMENT ON COLUMN mmgpt_job_row.tokens IS 'Token ids, integers of 32 bits in the machine''s order.';
COMMENT ON COLUMN mmgpt_job_row.targets IS 'The token where it is trained, negative where not, in the same form.';
COMMENT ON COLUMN mmgpt_job_row.picture IS 'mmgpt_job_picture.digest; NULL: language only.';

CREATE TABLE mmgpt_job_unusable (
	job bigint NOT NULL REFERENCES mmgpt_job ON DELETE CASCADE,
	number bigint NOT NULL,
	key text,
	reason text NOT NULL,
	PRIMARY KEY (job, number)
);

COMMENT ON TABLE mmgpt_job_unusable IS 'Rows that jobs could not use; read them in the view mmgpt_job_unusable_rows.';
COMMENT ON COLUMN mmgpt_job_unusable.job IS 'mmgpt_job.id.';
COMMENT ON COLUMN mmgpt_job_unusable.number IS 'Place among the rows that were read, from 1.';
COMMENT ON COLUMN mmgpt_job_unusable.key IS 'Primary key, or what the option key named, or ctid.';
COMMENT ON COLUMN mmgpt_job_unusable.reason IS 'Why.';

CREATE TABLE mmgpt_job_checkpoint (
	job bigint NOT NULL REFERENCES mmgpt_job ON DELETE CASCADE,
	step integer NOT NULL,
	number integer NOT NULL,
	bytes bytea NOT NULL,
	PRIMARY KEY (job, step, number)
);
ALTER TABLE mmgpt_job_checkpoint ALTER bytes SET STORAGE EXTERNAL;

COMMENT ON TABLE mmgpt_job_checkpoint IS 'The last two states of each training, in pieces of 1 MB; gone when the job is done.';
COMMENT ON COLUMN mmgpt_job_checkpoint.job IS 'mmgpt_job.id.';
COMMENT ON COLUMN mmgpt_job_checkpoint.step IS 'Micro steps done.';
COMMENT ON COLUMN mmgpt_job_checkpoint.number IS 'Place in the checkpoint, from 0.';
COMMENT ON COLUMN mmgpt_job_checkpoint.bytes IS 'The piece; all but the last have 1 MB.';

CREATE TABLE mmgpt_job_step (
	job bigint NOT NULL REFERENCES mmgpt_job ON DELETE CASCADE,
	step integer NOT NULL,
	loss_vision double precision,
	loss_language double precision,
	grad_norm double precision NOT NULL,
	learning_rate double precision NOT NULL,
	validation_loss_vision double precision,
	validation_loss_language double precision,
	PRIMARY KEY (job, step)
);

COMMENT ON TABLE mmgpt_job_step IS 'Losses of jobs; read them in the view mmgpt_job_steps.';
COMMENT ON COLUMN mmgpt_job_step.job IS 'mmgpt_job.id.';
COMMENT ON COLUMN mmgpt_job_step.step IS 'Micro step, from 1.';
COMMENT ON COLUMN mmgpt_job_step.loss_vision IS 'Mean loss of the rows with pictures; NULL: there were none.';
COMMENT ON COLUMN mmgpt_job_step.loss_language IS 'Mean loss of the language-only rows; NULL: there were none.';
COMMENT ON COLUMN mmgpt_job_step.grad_norm IS 'Norm of the gradients, before clipping.';
COMMENT ON COLUMN mmgpt_job_step.learning_rate IS 'Learning rate.';
COMMENT ON COLUMN mmgpt_job_step.validation_loss_vision IS 'Of held-out rows with pictures, where it was measured after this step.';
COMMENT ON COLUMN mmgpt_job_step.validation_loss_language IS 'Of held-out language-only rows, where it was measured after this step.';

-- A worker holds an advisory lock, of a class of its own that no SQL function can take, as long as
-- it lives: a job whose lock is free has none.
CREATE VIEW mmgpt_jobs WITH (security_barrier) AS
SELECT j.id, j.table_name AS "table", j.adapter, j.owner,
	CASE WHEN l.pid IS NULL AND (j.state IN ('preparing', 'running') OR
								 j.state = 'queued' AND j.queued < clock_timestamp() - interval '10 s')
		THEN 'interrupted' ELSE j.state END AS state,
	j.step, j.steps,
	s.loss_vision, s.loss_language, v.validation_loss_vision, v.validation_loss_language,
	s.learning_rate,
	j.tokens::float8 / nullif(j.seconds, 0::float8) AS tokens_per_second,
	CASE WHEN j.state = 'running' AND j.step > j.run_step
		THEN (clock_timestamp() - j.run_started) * ((j.steps - j.step)::float8 / (j.step - j.run_step)::float8)
		END AS time_left,
	j.rows, j.unusable, j.pictures, j.pictures_encoded, j.error,
	j.created, j.started, j.finished, j.restarts, j.digest, j.options, l.pid
FROM mmgpt_job j
	LEFT JOIN pg_locks l ON l.locktype = 'advisory' AND l.objsubid = 28013 AND l.granted
		AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
		AND l.classid::bigint = j.id >> 32 AND l.objid::bigint = j.id & 4294967295
	LEFT JOIN mmgpt_job_step s ON s.job = j.id AND s.step = j.step
	LEFT JOIN LATERAL (
		SELECT p.validation_loss_vision, p.validation_loss_language
		FROM mmgpt_job_step p
		WHERE p.job = j.id AND p.step <= j.step
			AND (p.validation_loss_vision IS NOT NULL OR p.validation_loss_language IS NOT NULL)
		ORDER BY p.step DESC LIMIT 1) v ON true
WHERE pg_catalog.pg_has_role(j.owner, 'USAGE');

COMMENT ON VIEW mmgpt_jobs IS
'Your fine-tuning jobs. state: queued (waits for its worker, or for its turn in the engine), preparing (reads the rows), running, done, failed (error says why), cancelled, interrupted (its worker is gone; it goes on after the server''s next start or mmgpt_resume). step and steps are micro steps; losses are those of the last one; rows are used rows.';

CREATE VIEW mmgpt_job_steps WITH (security_barrier) AS
SELECT s.job, s.step, s.loss_vision, s.loss_language, s.grad_norm, s.learning_rate,
	s.validation_loss_vision, s.validation_loss_language
FROM mmgpt_job_step s JOIN mmgpt_job j ON j.id = s.job
WHERE pg_catalog.pg_has_role(j.owner, 'USAGE');

COMMENT ON VIEW mmgpt_job_steps IS
'The loss curve of your fine-tuning jobs: one row for each micro step. Losses of validations are there for the steps after which they were measured.';

CREATE VIEW mmgpt_job_unusable_rows WITH (security_barrier) AS
SELECT u.job, u.number, u.key, u.reason
FROM mmgpt_job_unusable u JOIN mmgpt_job j ON j.id = u.job
WHERE pg_catalog.pg_has_role(j.owner, 'USAGE');

COMMENT ON VIEW mmgpt_job_unusable_rows IS
'Rows that your fine-tuning jobs could not use: the place among the rows read, the primary key (or what the option key names, or ctid), and why.';

GRANT SELECT ON mmgpt_jobs, mmgpt_job_steps, mmgpt_job_unusable_rows TO PUBLIC;

CREATE FUNCTION mmgpt_finetune("table" regclass, adapter text DEFAULT NULL, options jsonb DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'mmgpt_finetune'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_finetune(regclass, text, jsonb) IS
'Begins to train a LoRA adapter on the rows of a table or view (columns image, instruction, input, response; or conversation) and returns the number of the job at once. The job begins when the transaction commits, runs with your rights in the background, and stores the adapter, by default under the name of the table, when it is done. Errors: 42501 you may not read the table, 42703 no columns to train on, 42710 the adapter exists, 55006 another job makes it, 22023 wrong option, 53400 no background worker is free.';

CREATE FUNCTION mmgpt_wait(job bigint)
RETURNS text
AS 'MODULE_PATHNAME', 'mmgpt_wait'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_wait(bigint) IS
'Waits for the end of a fine-tuning job of yours, with a progress bar in notices, and returns its state: done, cancelled or interrupted. A job that failed raises its own error. Errors: 42704 no such job, 55000 the job was begun in this transaction.';

CREATE FUNCTION mmgpt_cancel(job bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'mmgpt_cancel'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_cancel(bigint) IS
'Asks a fine-tuning job of yours to end, when the transaction commits; false where it is over already. Its rows and checkpoints stay, so that mmgpt_resume can go on. Errors: 42704 no such job.';

CREATE FUNCTION mmgpt_resume(job bigint)
RETURNS void
AS 'MODULE_PATHNAME', 'mmgpt_resume'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_resume(bigint) IS
'Lets a fine-tuning job of yours that was cancelled or interrupted or failed go on from its last checkpoint, when the transaction commits. The result is that of a job that was never stopped. Errors: 42704 no such job, 55006 it is running, or another job makes its adapter, 55000 it is done.';

CREATE FUNCTION mmgpt_job_delete(job bigint)
RETURNS void
AS 'MODULE_PATHNAME', 'mmgpt_job_delete'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION mmgpt_job_delete(bigint) IS
'Deletes a fine-tuning job of yours that is over, with its steps, rows and checkpoints; the adapter stays. Errors: 42704 no such job, 55006 it is not over.';

CREATE FUNCTION mmgpt_evaluate("table" regclass, adapter text DEFAULT NULL, options jsonb DEFAULT NULL,
	OUT rows bigint, OUT unusable bigint, OUT loss double precision, OUT exact_match double precision)
AS 'MODULE_PATHNAME', 'mmgpt_evaluate'
LANGUAGE C STABLE PARALLEL RESTRICTED;

COMMENT ON FUNCTION mmgpt_evaluate(regclass, text, jsonb) IS
'How well the model knows the responses of a table such as mmgpt_finetune takes: rows used and not usable, the mean loss of a response''s token (natural logarithm), and the share of rows whose response is exactly what the model would answer. adapter: NULL is that of the setting mmgpt.adapter, an empty text none. Errors as of mmgpt_finetune.';

-- the engine

CREATE FUNCTION mmgpt_status()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'mmgpt_status'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION mmgpt_status() IS
'What the engine does and has done since it was started: the model (its directory only for pg_read_all_settings) and how far it is loaded, requests running and waiting, steps, rows of a step, images and tokens computed and reused, restarts. With several engines (a list in mmgpt.device) there is an object for each in the array "engines".';

CREATE VIEW mmgpt_stat AS
SELECT e.number OPERATOR(pg_catalog.-) 1 AS engine,
	(s.report->>'pid')::integer AS pid,
	s.report->>'state' AS state,
	s.report->>'device' AS device,
	s.report->>'weight_format' AS weight_format,
	pg_catalog.make_interval(secs => (s.report->>'uptime_seconds')::double precision) AS uptime,
	(s.requests->>'running')::integer AS running,
	(s.requests->>'waiting')::integer AS waiting,
	(s.requests->>'done')::bigint AS done,
	(s.requests->>'failed')::bigint AS failed,
	(s.requests->>'cancelled')::bigint AS cancelled,
	(s.requests->>'mean_milliseconds')::double precision AS mean_milliseconds,
	(s.scheduler->>'steps')::bigint AS steps,
	(s.scheduler->>'rows_per_step')::double precision AS rows_per_step,
	(s.scheduler->>'new_tokens')::bigint AS new_tokens,
	(s.scheduler->>'prompt_tokens_computed')::bigint AS prompt_tokens_computed,
	(s.scheduler->>'prompt_tokens_reused')::bigint AS prompt_tokens_reused,
	(s.scheduler->>'images_encoded')::bigint AS images_encoded,
	(s.scheduler->>'images_found')::bigint AS images_found,
	(s.report->'training'->>'tokens')::bigint AS training_tokens,
	(s.report->'memory'->>'resident')::bigint AS resident_bytes
FROM (SELECT mmgpt_status() AS whole OFFSET 0) AS w
	CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(
		coalesce(w.whole->'engines', pg_catalog.jsonb_build_array(w.whole))) WITH ORDINALITY AS e(report, number)
	CROSS JOIN LATERAL (SELECT e.report, e.report->'requests' AS requests, e.report->'scheduler' AS scheduler) AS s;

COMMENT ON VIEW mmgpt_stat IS
'What each engine has done since it was started, from mmgpt_status(): a row for each; there is one unless mmgpt.device is a list.';
COMMENT ON COLUMN mmgpt_stat.engine IS 'Its place in mmgpt.device, from 0.';
COMMENT ON COLUMN mmgpt_stat.pid IS 'Process id.';
COMMENT ON COLUMN mmgpt_stat.state IS 'loading, ready, or failed: the model cannot be loaded or the engine does not start, and most columns are NULL.';
COMMENT ON COLUMN mmgpt_stat.device IS 'What it computes on; NULL until the model is loaded.';
COMMENT ON COLUMN mmgpt_stat.weight_format IS 'f32, bf16, q8 or q4; NULL until the model is loaded.';
COMMENT ON COLUMN mmgpt_stat.uptime IS 'Time since its start.';
COMMENT ON COLUMN mmgpt_stat.running IS 'Requests that it works on.';
COMMENT ON COLUMN mmgpt_stat.waiting IS 'Requests that wait for their turn.';
COMMENT ON COLUMN mmgpt_stat.done IS 'Requests answered; the supervisor''s first one counts too.';
COMMENT ON COLUMN mmgpt_stat.failed IS 'Requests answered with an error.';
COMMENT ON COLUMN mmgpt_stat.cancelled IS 'Requests that nobody waited for any more.';
COMMENT ON COLUMN mmgpt_stat.mean_milliseconds IS 'Mean time from arrival to answer.';
COMMENT ON COLUMN mmgpt_stat.steps IS 'Passes through the decoder.';
COMMENT ON COLUMN mmgpt_stat.rows_per_step IS 'Sequences that took part in a step, on average.';
COMMENT ON COLUMN mmgpt_stat.new_tokens IS 'Tokens of answers.';
COMMENT ON COLUMN mmgpt_stat.prompt_tokens_computed IS 'Tokens of prompts, and of labels and words that were scored.';
COMMENT ON COLUMN mmgpt_stat.prompt_tokens_reused IS 'Tokens of prompts whose keys and values were there already.';
COMMENT ON COLUMN mmgpt_stat.images_encoded IS 'Pictures that went through the vision encoder.';
COMMENT ON COLUMN mmgpt_stat.images_found IS 'Requests whose picture was encoded already.';
COMMENT ON COLUMN mmgpt_stat.training_tokens IS 'Tokens that the open training has learned from.';
COMMENT ON COLUMN mmgpt_stat.resident_bytes IS 'Memory of its process.';

GRANT SELECT ON mmgpt_stat TO PUBLIC;

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
