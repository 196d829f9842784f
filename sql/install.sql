-- the extension, its objects, and the pictures of all other tests
CREATE EXTENSION mmgpt;

SELECT extversion, extrelocatable FROM pg_extension WHERE extname = 'mmgpt';

SELECT p.oid::regprocedure AS function, p.provolatile AS volatile, p.proparallel AS parallel,
       p.proisstrict AS strict, p.proleakproof AS leakproof, p.procost AS cost
FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
     JOIN pg_extension e ON d.refobjid = e.oid AND d.refclassid = 'pg_extension'::regclass
WHERE e.extname = 'mmgpt' ORDER BY p.proname;

-- every function says what it does
SELECT count(*) FILTER (WHERE obj_description(oid, 'pg_proc') IS NULL) AS without_comment
FROM pg_proc WHERE proname LIKE 'mmgpt%';

-- pictures travel through psql, so that the server need not be able to read this directory
CREATE TABLE pictures (name text PRIMARY KEY, image bytea);
\set picture `base64 -w0 "${PG_ABS_SRCDIR:-.}/test/golden/demo/pictures/02.jpg"`
INSERT INTO pictures VALUES ('bicycles', decode(:'picture', 'base64'));
\set picture `base64 -w0 "${PG_ABS_SRCDIR:-.}/test/golden/demo/pictures/05.jpg"`
INSERT INTO pictures VALUES ('birds', decode(:'picture', 'base64'));
\set picture `base64 -w0 "${PG_ABS_SRCDIR:-.}/test/golden/demo/pictures/10.jpg"`
INSERT INTO pictures VALUES ('circle', decode(:'picture', 'base64'));
\set picture `base64 -w0 "${PG_ABS_SRCDIR:-.}/test/golden/demo/pictures/12.png"`
INSERT INTO pictures VALUES ('rabbits', decode(:'picture', 'base64'));
INSERT INTO pictures VALUES ('nothing', NULL);

-- the extension can live in any schema, and can be moved
CREATE SCHEMA elsewhere;
ALTER EXTENSION mmgpt SET SCHEMA elsewhere;
SELECT elsewhere.mmgpt_token_count('Describe the image.') > 0 AS moved;
ALTER EXTENSION mmgpt SET SCHEMA public;
DROP SCHEMA elsewhere;
