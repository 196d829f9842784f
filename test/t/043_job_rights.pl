# Whose rights what runs for a fine-tuning job has: a role's own functions and operators, and what
# the views and triggers of its tables do, never run with more than its own.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;
use MmgptJobs;

use constant SMALL => '{"micro_steps": 3, "r": 2, "target_modules": ["q_proj"]}';

my $node = mmgpt_node('main');

# Run SQL as the role eve; gives status, output and errors.
sub as_eve
{
	my ($sql) = @_;

	return session_run($node, $sql, user => 'eve');
}

$node->start;

# an extension made where others had made functions that fit better than those of pg_catalog
$node->safe_psql('postgres', q(
	CREATE FUNCTION pg_has_role(regrole, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
	CREATE FUNCTION unnest(regrole[]) RETURNS SETOF regrole LANGUAGE sql AS 'SELECT 0::regrole';
	CREATE FUNCTION equal(regrole, integer) RETURNS boolean LANGUAGE sql AS 'SELECT true';
	CREATE FUNCTION equal(float8, integer) RETURNS boolean LANGUAGE sql AS 'SELECT true';
	CREATE FUNCTION divide(bigint, float8) RETURNS float8 LANGUAGE sql AS 'SELECT $2';
	CREATE FUNCTION divide(interval, integer) RETURNS interval LANGUAGE sql AS 'SELECT $1';
	CREATE FUNCTION divide(float8, integer) RETURNS float8 LANGUAGE sql AS 'SELECT $1';
	CREATE FUNCTION multiply(integer, interval) RETURNS interval LANGUAGE sql AS 'SELECT $2';
	CREATE OPERATOR = (FUNCTION = equal, LEFTARG = regrole, RIGHTARG = integer);
	CREATE OPERATOR = (FUNCTION = equal, LEFTARG = float8, RIGHTARG = integer);
	CREATE OPERATOR / (FUNCTION = divide, LEFTARG = bigint, RIGHTARG = float8);
	CREATE OPERATOR / (FUNCTION = divide, LEFTARG = interval, RIGHTARG = integer);
	CREATE OPERATOR / (FUNCTION = divide, LEFTARG = float8, RIGHTARG = integer);
	CREATE OPERATOR * (FUNCTION = multiply, LEFTARG = integer, RIGHTARG = interval);
	CREATE EXTENSION mmgpt;));
is( $node->safe_psql('postgres', q(
		SELECT string_agg(DISTINCT pg_describe_object(refclassid, refobjid, 0), ', ') FROM pg_depend d
		WHERE (pg_identify_object(refclassid, refobjid, 0)).schema = 'public'
			AND classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass)
			AND refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
			AND NOT EXISTS (SELECT FROM pg_depend e
				WHERE e.classid = d.refclassid AND e.objid = d.refobjid AND e.deptype = 'e'))),
	'', 'views and policies use nothing but pg_catalog and the extension itself');

$node->safe_psql('postgres', q(CREATE ROLE eve LOGIN; CREATE SCHEMA eve AUTHORIZATION eve;));
as_eve(q(
	CREATE TABLE eve.rows (id int PRIMARY KEY, instruction text, response text);
	INSERT INTO eve.rows SELECT n, 'Say ' || n, 'I say ' || n FROM generate_series(1, 20) n;
	CREATE TABLE eve.seen (who text);
	GRANT ALL ON SCHEMA eve TO PUBLIC; GRANT ALL ON eve.seen TO PUBLIC;

	CREATE FUNCTION eve.join(a text, b text) RETURNS text LANGUAGE sql
		AS $$INSERT INTO eve.seen VALUES (current_user); SELECT 'mine'$$;
	CREATE OPERATOR eve.|| (FUNCTION = eve.join, LEFTARG = text, RIGHTARG = text);
	CREATE FUNCTION eve.least(a int, b int) RETURNS int LANGUAGE sql
		AS $$INSERT INTO eve.seen VALUES (current_user); SELECT 0$$;
	CREATE AGGREGATE eve.min(int) (SFUNC = eve.least, STYPE = int);
	ALTER ROLE eve SET search_path = eve, pg_catalog, public;));

# operators and functions that stand before those of pg_catalog
{
	my ($status, $job, $err) = as_eve(
		q(SELECT mmgpt_finetune('eve.rows', 'path', '{"micro_steps": 60, "r": 2, "checkpoint_seconds": 0}')));

	is((as_eve("SELECT mmgpt_wait($job)"))[1], 'done', 'a job of a role with functions of its own') or diag($err);
	is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT who, ' ') FROM eve.seen WHERE who <> 'eve'"),
		'', 'which never run with the rights of another');
	as_eve('ALTER ROLE eve RESET search_path; TRUNCATE eve.seen');
}

# a view that leaves a trigger to be fired at the end of the transaction, read by the job of a
# function that a superuser is made to call
{
	as_eve(q(
		CREATE FUNCTION eve.late() RETURNS trigger LANGUAGE plpgsql
			AS $$BEGIN INSERT INTO eve.seen VALUES (current_user); RETURN NULL; END$$;
		CREATE TABLE eve.bait (n int);
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON eve.bait DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION eve.late();
		CREATE FUNCTION eve.drop_bait(n int) RETURNS int LANGUAGE sql
			AS 'INSERT INTO eve.bait VALUES (n); SELECT n';
		CREATE VIEW eve.trap AS SELECT eve.drop_bait(id) AS id, instruction, response FROM eve.rows;
		CREATE FUNCTION eve.begin() RETURNS bigint LANGUAGE sql SECURITY DEFINER
			AS $$SELECT public.mmgpt_finetune('eve.trap', 'trap', '{"micro_steps": 3, "r": 2}')$$;));
	my $job = $node->safe_psql('postgres', 'SELECT eve.begin()');

	is(wait_for_job($node, $job), 'failed', 'a job that leaves something to be done later');
	like(job_error($node, $job), qr/deferred trigger within security-restricted operation/, 'fails');
	is($node->safe_psql('postgres', "SELECT string_agg(who, ' ') FROM eve.seen"), '', 'and nothing is done');
}

# what administrators run for others begins no jobs
{
	my ($status, $out, $err) = as_eve(q(
		CREATE FUNCTION eve.of_index(n int) RETURNS bigint IMMUTABLE LANGUAGE plpgsql
			AS $$BEGIN RETURN public.mmgpt_finetune('eve.rows', 'indexed'); END$$;
		CREATE TABLE eve.indexed AS SELECT 1 AS n;
		CREATE INDEX ON eve.indexed (eve.of_index(n));));

	like($err, qr/42501: cannot call mmgpt_finetune\(\) within security-restricted operation/, 'an index begins no job');
}

# a table that the worker could not read
like((as_eve("CREATE TEMP TABLE t AS TABLE eve.rows; SELECT mmgpt_finetune('t')"))[2],
	qr/42809: "t" is temporary/, 'a temporary table is an error of the call');

# cancelling a job that reads its rows: it does not wait until they are read
{
	my ($status, $job, $err) = as_eve(q(
		CREATE FUNCTION eve.slow(n int) RETURNS int LANGUAGE plpgsql
			AS $$BEGIN PERFORM pg_sleep(CASE WHEN n > 2 THEN 1000 ELSE 0 END); RETURN n; END$$;
		CREATE VIEW eve.endless AS SELECT eve.slow(id) AS id, instruction, response FROM eve.rows;
		SELECT mmgpt_finetune('eve.endless', 'endless')));

	ok( wait_until(
			sub {
				return $node->safe_psql('postgres',
					"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mmgpt job' AND wait_event = 'PgSleep'");
			}),
		'a job reads its rows');
	is((session_run($node, "SET statement_timeout = '60s'; SELECT mmgpt_cancel($job)", user => 'eve'))[1],
		't', 'it can be cancelled meanwhile');
	$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . job($node, $job, 'pid') . ')');
	is(wait_for_job($node, $job), 'cancelled', 'and is');
	$node->safe_psql('postgres', 'ALTER ROLE eve NOLOGIN');
	like(($node->psql('postgres', "SELECT mmgpt_resume($job)"))[2],
		qr/role "eve" may not log in, as the job's worker would/, 'it is not resumed for who may not log in');
}

$node->stop;
done_testing();
