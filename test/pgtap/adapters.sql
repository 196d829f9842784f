-- Adapters: who may use, see, change and share them; what is kept of them.
BEGIN;

\set tensors `perl test/t/MmgptAdapter.pm demo/model seed=1`

CREATE TEMPORARY TABLE peft AS SELECT decode(:'tensors', 'base64') AS tensors,
	'{"r": 2, "lora_alpha": 4}'::jsonb AS config;
GRANT SELECT ON peft TO PUBLIC;
SET LOCAL mmgpt.max_tokens = 3;

CREATE ROLE mmgpt_owner;
CREATE ROLE mmgpt_team;
CREATE ROLE mmgpt_member;
CREATE ROLE mmgpt_aloof NOINHERIT;
CREATE ROLE mmgpt_visitor;
CREATE SCHEMA mmgpt_evil AUTHORIZATION mmgpt_visitor;
GRANT mmgpt_team TO mmgpt_member, mmgpt_aloof;

SELECT plan(65);

-- tables
SELECT has_table(t, t || ' is there') FROM unnest(ARRAY['mmgpt_adapter', 'mmgpt_adapter_piece']::name[]) AS t;
SELECT has_view('mmgpt_adapters');
SELECT is(relrowsecurity, true, relname || ' has row-level security')
FROM pg_class WHERE relname IN ('mmgpt_adapter', 'mmgpt_adapter_piece');
SELECT ok(has_table_privilege('mmgpt_visitor', t, 'SELECT'), 'everybody may look into ' || t)
FROM unnest(ARRAY['mmgpt_adapter', 'mmgpt_adapter_piece', 'mmgpt_adapters']) AS t;
SELECT ok(NOT has_table_privilege('mmgpt_visitor', t, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'),
	'and nobody writes it')
FROM unnest(ARRAY['mmgpt_adapter', 'mmgpt_adapter_piece', 'mmgpt_adapters']) AS t;
SELECT ok(NOT has_sequence_privilege('mmgpt_visitor', 'mmgpt_adapter_id_seq', 'USAGE, UPDATE'), 'nor the sequence');
SELECT is_empty($$SELECT attrelid::regclass, attname FROM pg_attribute
	WHERE attrelid IN ('mmgpt_adapter'::regclass, 'mmgpt_adapter_piece'::regclass) AND attnum > 0
		AND coalesce(col_description(attrelid, attnum), '') !~ '\.$'$$, 'every column is explained');
SELECT is_empty($$SELECT relname FROM pg_class WHERE relname IN ('mmgpt_adapter', 'mmgpt_adapter_piece', 'mmgpt_adapters', 'mmgpt_adapter_id_seq')
	AND coalesce(obj_description(oid, 'pg_class'), '') !~ '\.$'$$, 'so is every table');
SELECT set_eq($$SELECT unnest(extconfig)::regclass::text FROM pg_extension WHERE extname = 'mmgpt'$$,
	ARRAY['mmgpt_adapter', 'mmgpt_adapter_piece', 'mmgpt_adapter_id_seq'], 'all is dumped, also the sequence');
SELECT is(attstorage::text, 'e', 'numbers are not compressed in vain')
FROM pg_attribute WHERE attrelid = 'mmgpt_adapter_piece'::regclass AND attname = 'bytes';

-- the owner
SET LOCAL ROLE mmgpt_owner;
SELECT is(length(mmgpt_adapter_import('mine', tensors, config)), 64, 'a plain role imports') FROM peft;
SELECT is(owner, 'mmgpt_owner'::regrole, 'and becomes the owner') FROM mmgpt_adapters;
SELECT is(mmgpt_adapter_export('mine'), (tensors, config), 'exports') FROM peft;
SELECT isnt(mmgpt_generate('Hi.', NULL, '{"adapter": "mine"}'), NULL, 'and uses it');
SELECT throws_ok($$DELETE FROM mmgpt_adapter$$, '42501', NULL, 'by the functions only');
RESET ROLE;
SELECT isnt_empty($$SELECT 1 FROM mmgpt_adapters$$, 'a superuser sees it');

-- a stranger
SET LOCAL ROLE mmgpt_visitor;
SELECT is_empty($$SELECT 1 FROM mmgpt_adapters$$, 'a stranger does not see it');
SELECT is_empty($$SELECT 1 FROM mmgpt_adapter$$, 'nor its row');
SELECT is_empty($$SELECT 1 FROM mmgpt_adapter_piece$$, 'nor its file');
SELECT throws_ok($$SELECT mmgpt_generate('Hi.', NULL, '{"adapter": "mine"}')$$, '42501',
	'permission denied for adapter "mine"', 'does not use it');
SELECT throws_ok($$SELECT mmgpt_adapter_export('mine')$$, '42501', NULL, 'export it');
SELECT throws_ok($$SELECT mmgpt_adapter_drop('mine')$$, '42501', 'must be owner of adapter "mine"', 'drop it');
SELECT throws_ok($$SELECT mmgpt_adapter_drop('mine', true)$$, '42501', NULL, 'even if it exists');
SELECT throws_ok($$SELECT mmgpt_adapter_rename('mine', 'yours')$$, '42501', NULL, 'rename it');
SELECT throws_ok($$SELECT mmgpt_adapter_grant('mine', 'mmgpt_visitor')$$, '42501', NULL, 'share it');
SELECT throws_ok($$SELECT mmgpt_adapter_revoke('mine', 'mmgpt_owner')$$, '42501', NULL, 'revoke it');
SELECT throws_ok($$SELECT mmgpt_adapter_set_owner('mine', 'mmgpt_visitor')$$, '42501', NULL, 'take it');
SELECT throws_ok($$SELECT mmgpt_adapter_import('mine', tensors, config) FROM peft$$, '42710', NULL, 'take its name');
SELECT throws_ok($$SELECT mmgpt_adapter_import('mine', tensors, config, true) FROM peft$$, '42501', NULL, 'or replace it');
SELECT throws_ok($$SELECT mmgpt_generate('Hi.', NULL, '{"adapter": "none"}')$$, '42704', NULL, 'one that is not there is another error');
-- functions that look at rows cannot be made to look behind the barrier
CREATE TEMPORARY TABLE seen (name text);
CREATE FUNCTION mmgpt_evil.spy(name text) RETURNS boolean LANGUAGE sql COST 0.0000001 AS
'INSERT INTO seen VALUES (name) RETURNING true';
SELECT is_empty($$SELECT 1 FROM mmgpt_adapters WHERE mmgpt_evil.spy(name)$$, 'a function in a condition on the view');
SELECT is_empty($$SELECT 1 FROM mmgpt_adapter WHERE mmgpt_evil.spy(name)$$, 'or on the table');
SELECT is_empty($$SELECT 1 FROM seen$$, 'sees nothing that is hidden');
-- nor operators that stand in front of those of PostgreSQL
CREATE FUNCTION mmgpt_evil.equal(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR mmgpt_evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = mmgpt_evil.equal);
SET LOCAL search_path = mmgpt_evil, pg_catalog, public;
SELECT throws_ok($$SELECT mmgpt_generate('Hi.', NULL, '{"adapter": "none"}')$$, '42704', NULL, 'a search_path leads nowhere else');
SELECT throws_ok($$SELECT mmgpt_adapter_drop('none')$$, '42704', NULL, 'also where the tables'' owner works');
SET LOCAL search_path = public;
RESET ROLE;

-- sharing with a role
SET LOCAL ROLE mmgpt_owner;
SELECT lives_ok($$SELECT mmgpt_adapter_grant('mine', 'mmgpt_team')$$, 'the owner shares it with a role');
SELECT lives_ok($$SELECT mmgpt_adapter_grant('mine', 'mmgpt_team')$$, 'twice');
SELECT is(shared_with, ARRAY['mmgpt_team'::regrole], 'which is noted once') FROM mmgpt_adapters;
RESET ROLE;
SET LOCAL ROLE mmgpt_member;
SELECT isnt(mmgpt_generate('Hi.', NULL, '{"adapter": "mine"}'), NULL, 'a member uses it');
SELECT is(mmgpt_adapter_export('mine'), (tensors, config), 'exports it') FROM peft;
SELECT throws_ok($$SELECT mmgpt_adapter_drop('mine')$$, '42501', NULL, 'and does not own it');
SELECT throws_ok($$SELECT mmgpt_adapter_grant('mine', 'public')$$, '42501', NULL, 'nor shares it');
RESET ROLE;
SET LOCAL ROLE mmgpt_aloof;
SELECT throws_ok($$SELECT mmgpt_generate('Hi.', NULL, '{"adapter": "mine"}')$$, '42501', NULL, 'a member that does not inherit does not');
RESET ROLE;
SET LOCAL ROLE mmgpt_visitor;
SELECT is_empty($$SELECT 1 FROM mmgpt_adapters$$, 'a stranger still sees nothing');
RESET ROLE;

-- with everybody, and with nobody
SET LOCAL ROLE mmgpt_owner;
SELECT lives_ok($$SELECT mmgpt_adapter_revoke('mine', 'mmgpt_team'), mmgpt_adapter_grant('mine', 'public')$$, 'shared with all');
RESET ROLE;
SET LOCAL ROLE mmgpt_visitor;
SELECT isnt(mmgpt_generate('Hi.', NULL, '{"adapter": "mine"}'), NULL, 'a stranger uses it');
SELECT isnt_empty($$SELECT 1 FROM mmgpt_adapters$$, 'sees it');
SELECT isnt_empty($$SELECT 1 FROM mmgpt_adapter_piece$$, 'and its file');
RESET ROLE;
SELECT lives_ok($$SELECT mmgpt_adapter_revoke('mine', 'public')$$, 'a superuser takes it back');
SET LOCAL ROLE mmgpt_member;
SELECT throws_ok($$SELECT mmgpt_generate('Hi.', NULL, '{"adapter": "mine"}')$$, '42501', NULL, 'from everybody');
RESET ROLE;

-- rights of functions
CREATE FUNCTION mmgpt_say(prompt text) RETURNS text LANGUAGE sql SECURITY DEFINER SET mmgpt.adapter = 'mine'
AS 'SELECT mmgpt_generate(prompt)';
ALTER FUNCTION mmgpt_say OWNER TO mmgpt_owner;
SET LOCAL ROLE mmgpt_visitor;
SELECT isnt(mmgpt_say('Hi.'), NULL, 'a function of the owner uses it for others');
RESET ROLE;

-- owners
SET LOCAL ROLE mmgpt_owner;
SELECT throws_ok($$SELECT mmgpt_adapter_set_owner('mine', 'mmgpt_visitor')$$, '42501', NULL, 'the owner cannot give it to a stranger');
RESET ROLE;
GRANT mmgpt_team TO mmgpt_owner;
SET LOCAL ROLE mmgpt_owner;
SELECT lives_ok($$SELECT mmgpt_adapter_set_owner('mine', 'mmgpt_team')$$, 'but to a role that it is a member of');
SELECT is(owner, 'mmgpt_team'::regrole, 'as is seen') FROM mmgpt_adapters;
RESET ROLE;
SET LOCAL ROLE mmgpt_member;
SELECT lives_ok($$SELECT mmgpt_adapter_rename('mine', 'ours')$$, 'whose members are owners then');
RESET ROLE;
SELECT lives_ok($$SELECT mmgpt_adapter_set_owner('ours', 'mmgpt_visitor')$$, 'a superuser gives it to anybody');

-- administrators may keep roles from storing adapters
REVOKE EXECUTE ON FUNCTION mmgpt_adapter_import FROM PUBLIC;
SET LOCAL ROLE mmgpt_visitor;
SELECT throws_ok($$SELECT mmgpt_adapter_import('x', tensors, config) FROM peft$$, '42501', NULL, 'import can be revoked');
SELECT lives_ok($$SELECT mmgpt_adapter_drop('ours')$$, 'the last owner drops it');
RESET ROLE;
SELECT is((SELECT count(*) FROM mmgpt_adapter_piece), 0::bigint, 'and nothing is left');

SELECT * FROM finish();
ROLLBACK;
