# Nightly fine-tuning with the real pg_cron, by a plain role: the recipe of docs/finetuning.md. pg_cron
# begins a job at the next full minute, so this takes up to a minute of waiting.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;
use MmgptJobs;

if (!-e "$ENV{MMGPT_SHARE}/extension/pg_cron.control")
{
	plan skip_all => 'pg_cron is not installed';
}

my $node = mmgpt_node('main', conf => <<'CONF');
shared_preload_libraries = 'mmgpt,pg_cron'
cron.use_background_workers = on
CONF

# Run SQL as the role whose table it is.
sub as_trainer
{
	my ($sql) = @_;
	my ($status, $out, $err) = session_run($node, $sql, user => 'trainer');

	is($status, 0, 'the role may do this') or diag("$sql: $err");
	return $out;
}

$node->start;
$node->safe_psql('postgres', q(
	CREATE EXTENSION mmgpt;
	CREATE EXTENSION pg_cron;
	CREATE ROLE trainer LOGIN;
	GRANT USAGE ON SCHEMA cron TO trainer;
	CREATE SCHEMA school AUTHORIZATION trainer;));

as_trainer(q(
	CREATE TABLE school.lessons (id bigserial PRIMARY KEY, instruction text, response text, trained_by bigint);
	CREATE VIEW school.lessons_tonight AS
	SELECT id, instruction, response FROM school.lessons
	WHERE trained_by = (SELECT max(trained_by) FROM school.lessons);

	CREATE FUNCTION school.train_tonight() RETURNS bigint LANGUAGE plpgsql AS $$
	DECLARE
		job bigint;
	BEGIN
		PERFORM FROM school.lessons l LEFT JOIN mmgpt_jobs j ON j.id = l.trained_by
		WHERE l.trained_by IS NULL OR j.state IN ('failed', 'cancelled');
		IF NOT FOUND THEN
			RETURN NULL;
		END IF;
		job := mmgpt_finetune('school.lessons_tonight', 'lessons',
			jsonb_build_object('key', 'id', 'replace', true, 'r', 2, 'epochs', 2, 'initial_adapter',
				(SELECT name FROM mmgpt_adapters WHERE name = 'lessons')));
		UPDATE school.lessons l SET trained_by = job
		WHERE l.trained_by IS NULL
			OR EXISTS (SELECT FROM mmgpt_jobs j WHERE j.id = l.trained_by AND j.state IN ('failed', 'cancelled'));
		RETURN job;
	END $$;
	INSERT INTO school.lessons (instruction, response) SELECT 'Say ' || n, 'I say ' || n FROM generate_series(1, 5) n;));

# the first night has nothing to go on from
my $first = as_trainer('SELECT school.train_tonight()');
is(wait_for_job($node, $first), 'done', 'the first job is done') or diag(job_error($node, $first));
is(job($node, $first, 'rows'), '5', 'with all rows');
is(as_trainer('SELECT school.train_tonight()'), '', 'without new rows there is no job');

# the next one comes from pg_cron and goes on with what is new
as_trainer("INSERT INTO school.lessons (instruction, response) VALUES ('Say six', 'I say six'), ('Say seven', 'I say seven')");
as_trainer("SELECT cron.schedule('train', '* * * * *', 'SELECT school.train_tonight()')");
my $second = wait_until(
	sub {
		my $job = $node->safe_psql('postgres', "SELECT id FROM mmgpt_jobs WHERE id > $first ORDER BY id LIMIT 1");

		return $job ne '' ? $job : undef;
	});
isnt($second, undef, 'pg_cron begins a job');
is(wait_for_job($node, $second), 'done', 'which is done') or diag(job_error($node, $second));
is(job($node, $second, 'rows'), '2', 'with the new rows');
is(job($node, $second, 'owner'), 'trainer', 'for its role');
is( $node->safe_psql('postgres', "SELECT initial_digest FROM mmgpt_job WHERE id = $second"),
	job($node, $first, 'digest'), 'from the adapter of before');
is(adapter_digest($node, 'lessons'), job($node, $second, 'digest'), 'which is replaced');
is($node->safe_psql('postgres', "SELECT owner FROM mmgpt_adapters WHERE name = 'lessons'"), 'trainer', 'and keeps its owner');
like( $node->safe_psql('postgres', "SELECT string_agg(DISTINCT status, ',') FROM cron.job_run_details WHERE status <> 'running'"),
	qr/^succeeded$/, 'pg_cron is content');

$node->stop;
done_testing();
