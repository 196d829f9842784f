# Fine-tuning jobs among transactions, roles and other jobs, and what becomes of them when the
# things that they need are dropped.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;
use MmgptJobs;

use constant SMALL => '{"micro_steps": 3, "r": 2, "target_modules": ["q_proj"]}';
use constant ENDLESS => '{"micro_steps": 100000000, "r": 2, "target_modules": ["q_proj"]}';

my $node = mmgpt_node('main', init => [ allows_streaming => 1 ]);

# Run SQL as a role; gives status, output and errors.
sub as_role
{
	my ($role, $sql) = @_;

	return session_run($node, $sql, user => $role);
}

# Begin a job that would never end, and wait until it computes.
sub endless
{
	my ($adapter, $database) = @_;
	my $job = finetune($node, $adapter, ENDLESS, $database);

	wait_until(sub { return job($node, $job, 'step > 0', $database) eq 't' })
	  or diag("job $job does not begin");
	return $job;
}

# Wait until no worker of jobs is left; true when that came.
sub no_workers
{
	return wait_until(
		sub {
			return $node->safe_psql('postgres',
				"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mmgpt job'") eq '0';
		});
}

$node->start;
load_pictures($node, 'postgres');
load_examples($node);
$node->safe_psql('postgres', q(
	CREATE ROLE one LOGIN; CREATE ROLE other LOGIN; CREATE ROLE team NOLOGIN; GRANT team TO one;
	ALTER ROLE one SET default_transaction_isolation = 'serializable';
	CREATE TABLE secret AS SELECT * FROM examples;));

# a job is part of its transaction
{
	my $session = $node->background_psql('postgres');
	my $job;

	$session->query_safe('BEGIN');
	$job = $session->query_safe("SELECT mmgpt_finetune('examples', 'mine', '${\SMALL}')");
	is(job_state($node, $job), '', 'others do not see a job before it is committed');
	is($session->query_safe("SELECT state FROM mmgpt_jobs WHERE id = $job"), 'queued', 'who began it does');
	$session->query_safe('ROLLBACK');
	is(job_state($node, $job), '', 'and none is left after ROLLBACK');
	ok(no_workers(), 'its worker leaves');

	$session->query_safe('BEGIN; SAVEPOINT s');
	$session->query_safe("SELECT mmgpt_finetune('examples', 'mine', '${\SMALL}'); ROLLBACK TO s");
	$job = $session->query_safe("SELECT mmgpt_finetune('examples', 'mine', '${\SMALL}')");
	$session->query_safe('COMMIT');
	$session->quit;
	is($node->safe_psql('postgres', "SELECT mmgpt_wait($job)"), 'done', 'one after a savepoint is done');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM mmgpt_jobs'), '1', 'one before it was rolled back to is not there');
	like($node->safe_psql('postgres', "SELECT mmgpt_generate('Say 1', NULL, '{\"adapter\": \"mine\"}')"),
		qr/./, 'the adapter answers');
}

# waiting: progress in notices, and not in the transaction that begins the job
{
	my ($status, $out, $err) = $node->psql('postgres',
		"BEGIN; SELECT mmgpt_finetune('examples', 'early', '${\SMALL}'); SELECT mmgpt_wait(max(id)) FROM mmgpt_jobs;");
	like($err, qr/cannot be waited for in the transaction that began it/, 'waiting in its own transaction is an error');
	my $job = endless('notices');
	($status, $out, $err) = $node->psql('postgres',
		"SET statement_timeout = '3s'; SELECT mmgpt_wait($job)");
	like($err, qr/NOTICE:  job $job: \[[#.]{20}\] step \d+ of 100000000, loss /, 'waiting shows progress');
	like($err, qr/canceling statement due to statement timeout/, 'and can be interrupted');
	is(job_state($node, $job), 'running', 'without harm to the job');
	like( $node->safe_psql('postgres',
			"SELECT application_name || ': ' || query FROM pg_stat_activity WHERE backend_type = 'mmgpt job'"),
		qr/^mmgpt job $job: mmgpt job $job: step \d+ of 100000000$/, 'pg_stat_activity shows the worker');
	like(job($node, $job, "tokens_per_second > 0 AND time_left > '0' AND learning_rate > 0"), qr/^t$/, 'the view shows its speed');

	# another job waits for its turn
	my $second = $node->safe_psql('postgres',
		"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT mmgpt_finetune('examples', 'second', '${\SMALL}'); COMMIT");
	my $waiting = session_start($node, 'postgres',
		"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT mmgpt_wait($second); COMMIT");
	wait_until(sub { return job($node, $second, "state = 'queued' AND rows > 0") eq 't' });
	is(job_state($node, $second), 'queued', 'a second job is queued');
	my $third = finetune($node, 'third', SMALL);
	wait_until(sub { return job($node, $third, "state = 'queued' AND rows > 0") eq 't' });
	is($node->safe_psql('postgres', "SELECT mmgpt_cancel($third)"), 't', 'one that is queued is cancelled');
	is(wait_for_job($node, $third), 'cancelled', 'though the first goes on');
	($status, $out, $err) = $node->psql('postgres', "SELECT mmgpt_finetune('examples', 'second')");
	like($err, qr/adapter "second" is being made by another job/, 'two jobs do not make one adapter');
	($status, $out, $err) = $node->psql('postgres', "SELECT mmgpt_job_delete($second)");
	like($err, qr/job $second is not over/, 'a job that is not over is not deleted');
	$node->safe_psql('postgres', "SELECT mmgpt_cancel($job)");
	is(wait_for_job($node, $job), 'cancelled', 'the first is cancelled');
	is(wait_for_job($node, $second), 'done', 'and the second has its turn');
	is((session_finish($waiting))[1], 'done', 'who waits sees that, whatever the transaction\'s snapshot');
	cmp_ok(job_leftovers($node, $job), '>', 0, 'a cancelled job keeps its rows');
	$node->safe_psql('postgres', "SELECT mmgpt_job_delete($job)");
	is(job_leftovers($node, $job), '0', 'until it is deleted');
}

# the share of a running job
{
	my $engine = "mmgpt_status()->'pid'";
	my $job = endless('shared');
	my $of_job = "mmgpt_status()->'training'->>'share'";
	my $pid = $node->safe_psql('postgres', "SELECT $engine");

	is($node->safe_psql('postgres', "SELECT $of_job"), '50', 'a job has its share of the time');
	$node->safe_psql('postgres', q(ALTER SYSTEM SET "mmgpt.training_share" = 80));
	$node->reload;
	ok(wait_until(sub { return $node->safe_psql('postgres', "SELECT $of_job") eq '80' }),
		'and another one while it runs');
	is($node->safe_psql('postgres', "SELECT $engine"), $pid, 'in the same engine');
	$node->safe_psql('postgres', q(ALTER SYSTEM RESET "mmgpt.training_share"));
	$node->reload;
	$node->safe_psql('postgres', "SELECT mmgpt_cancel($job)");
	is(wait_for_job($node, $job), 'cancelled', 'it can be cancelled as ever');
}

# rights
{
	my ($status, $out, $err) = as_role('one', "SELECT mmgpt_finetune('secret')");
	like($err, qr/42501.*permission denied for table secret/, 'who may not read a table does not train with it');
	($status, $out, $err) = as_role('one', "SELECT mmgpt_finetune('examples', 'mine', '{\"replace\": true}')");
	like($err, qr/42501.*must be owner of adapter "mine"/, 'nor replaces the adapter of another');
	($status, my $job, $err) = as_role('one', "SELECT mmgpt_finetune('examples', 'of one', '${\ENDLESS}')");
	like($job, qr/^\d+$/, 'a plain role begins a job') or diag($err);
	wait_until(sub { return job($node, $job, 'step > 0') eq 't' });
	is((as_role('other', 'SELECT count(*) FROM mmgpt_jobs'))[1], '0', 'others do not see it');
	is((as_role('other', 'SELECT count(*) FROM mmgpt_job_steps'))[1], '0', 'nor its steps');
	like((as_role('other', "SELECT mmgpt_cancel($job)"))[2], qr/42704.*job $job does not exist/, 'nor cancel it');
	like((as_role('one', 'SELECT * FROM mmgpt_job_row'))[2], qr/42501/, 'its rows are nobody\'s to read');
	is((as_role('one', "SELECT count(*) > 0 FROM mmgpt_job_steps WHERE job = $job"))[1], 't', 'its owner sees the steps');
	is( $node->safe_psql('postgres', "SELECT usename FROM pg_stat_activity WHERE backend_type = 'mmgpt job'"),
		'one', 'the worker is its owner\'s');

	# a right that is taken back: the rows were read already
	$node->safe_psql('postgres', 'REVOKE SELECT ON examples FROM PUBLIC');
	$node->safe_psql('postgres', "SELECT mmgpt_cancel($job)");
	is(wait_for_job($node, $job), 'cancelled', 'a superuser cancels it');
	is((as_role('one', "SELECT mmgpt_resume($job)"))[0], 0, 'it goes on with the rows that it has, though its owner may not read them any more');
	wait_until(sub { return job($node, $job, "state = 'running'") eq 't' });
	$node->safe_psql('postgres', "SELECT mmgpt_cancel($job)");
	is(wait_for_job($node, $job), 'cancelled', 'and is cancelled again');

	# ... or were not
	$node->safe_psql('postgres', 'GRANT SELECT ON examples TO PUBLIC');
	$node->safe_psql('postgres', "CREATE TABLE fleeting AS SELECT * FROM examples; GRANT SELECT ON fleeting TO one");
	my $session = $node->background_psql('postgres', extra_params => [ '-U', 'one' ]);
	$session->query_safe('BEGIN');
	$job = $session->query_safe("SELECT mmgpt_finetune('fleeting', 'lost', '${\SMALL}')");
	$node->safe_psql('postgres', 'REVOKE SELECT ON fleeting FROM one');
	$session->query_safe('COMMIT');
	$session->quit;
	is(wait_for_job($node, $job), 'failed', 'a right that is taken back before the rows are read');
	like(job_error($node, $job), qr/permission denied for table fleeting/, 'ends the job with that error');

	# SET ROLE to a role that may not log in
	($status, $job, $err) = as_role('one', "SET ROLE team; SELECT mmgpt_finetune('examples', 'of team', '${\SMALL}')");
	is(wait_for_job($node, $job), 'done', 'a job of a group') or diag(job_error($node, $job));
	is($node->safe_psql('postgres', "SELECT owner FROM mmgpt_adapters WHERE name = 'of team'"), 'team', 'makes the group\'s adapter');
}

# an administrator's way to cancel
{
	my $job = endless('stopped');

	$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . job($node, $job, 'pid') . ')');
	is(wait_for_job($node, $job), 'cancelled', 'pg_cancel_backend cancels a job');
}

# a foreign table, of rows whose pictures come twice
{
	my ($host, $port) = ($node->host, $node->port);

	$node->safe_psql('postgres', qq(
		CREATE VIEW doubled AS SELECT id, image, instruction, response FROM examples
			UNION ALL SELECT id + 1000, image, instruction, 'Again ' || response FROM examples;
		CREATE EXTENSION postgres_fdw;
		CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'postgres');
		CREATE USER MAPPING FOR CURRENT_USER SERVER far;
		CREATE FOREIGN TABLE far (id int, image bytea, instruction text, response text) SERVER far OPTIONS (table_name 'doubled');));
	my $job = $node->safe_psql('postgres', q(SELECT mmgpt_finetune('far', 'far', '{"key": "id", "micro_steps": 100000000, "r": 2}')));
	wait_until(sub { return job($node, $job, 'pictures > 0') eq 't' });
	is(job($node, $job, 'rows || \' \' || pictures'), '48 16', 'a foreign table, with each picture once');
	is($node->safe_psql('postgres', "SELECT count(*) FROM mmgpt_job_picture WHERE job = $job"), '16', 'kept once');
	$node->safe_psql('postgres', "SELECT mmgpt_cancel($job)");
	is(wait_for_job($node, $job), 'cancelled', 'it is cancelled');
}

# another model: an adapter of half one and half the other would be worth nothing
{
	my $model = copy_model();
	my $job = endless('other model');

	edit_safetensors($model, sub { $_[0]->{__metadata__} = { note => 'another' } });
	$node->safe_psql('postgres', "ALTER SYSTEM SET mmgpt.model = '$model'");
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	is(wait_for_job($node, $job), 'failed', 'a job fails when its model is changed');
	like(job_error($node, $job), qr/for another model than the one that is loaded/, 'and says so');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET mmgpt.model');
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	wait_until(sub { return $node->psql('postgres', "SELECT mmgpt_generate('Say 1')") == 0 });
}

# row-level security is that of the owner
{
	$node->safe_psql('postgres', q(
		CREATE TABLE guarded AS SELECT * FROM examples WHERE image IS NULL;
		ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
		CREATE POLICY seen ON guarded TO one USING (id > 104);
		GRANT SELECT ON guarded TO one;));
	my ($status, $job, $err) = as_role('one', "SELECT mmgpt_finetune('guarded', 'guarded', '${\SMALL}')");
	is(wait_for_job($node, $job), 'done', 'a job under row-level security');
	is(job($node, $job, 'rows'), '4', 'has the rows that its owner may see');
	is((as_role('one', "SELECT rows FROM mmgpt_evaluate('guarded', 'guarded')"))[1], '4', 'as an evaluation has');
}

# a role that is dropped
{
	$node->safe_psql('postgres', 'CREATE ROLE leaver LOGIN');
	my ($status, $job, $err) = as_role('leaver', "SELECT mmgpt_finetune('examples', 'leaver', '${\ENDLESS}')");
	wait_until(sub { return job($node, $job, 'step > 0') eq 't' });
	$node->safe_psql('postgres', 'DROP ROLE leaver');
	is(wait_for_job($node, $job), 'failed', 'a job whose owner is dropped fails');
	like(job_error($node, $job), qr/role of OID \d+, was dropped/, 'and says so');
}

# the name is taken when the job is done
{
	my $job = finetune($node, 'taken', '{"micro_steps": 60, "r": 2}');
	$node->safe_psql('postgres', "SELECT mmgpt_adapter_rename('mine', 'taken')");
	is(wait_for_job($node, $job), 'failed', 'a job whose adapter\'s name is taken meanwhile fails');
	like(job_error($node, $job), qr/adapter "taken" already exists/, 'and says so');
	$node->safe_psql('postgres', "SELECT mmgpt_adapter_rename('taken', 'mine'); SELECT mmgpt_resume($job)");
	is(wait_for_job($node, $job), 'done', 'it can be resumed when the name is free');
}

# the table is dropped
{
	$node->safe_psql('postgres', 'CREATE TABLE copied AS SELECT * FROM examples');
	my $job = $node->safe_psql('postgres', "SELECT mmgpt_finetune('copied', NULL, '{\"micro_steps\": 60, \"r\": 2}')");
	wait_until(sub { return job($node, $job, 'rows > 0') eq 't' });
	$node->safe_psql('postgres', 'DROP TABLE copied');
	is(wait_for_job($node, $job), 'done', 'a job does not need its table once its rows are read');
	is(job($node, $job, '"table"'), 'copied', 'and remembers its name');

	my $session = $node->background_psql('postgres');
	$node->safe_psql('postgres', 'CREATE TABLE copied AS SELECT * FROM examples');
	$session->query_safe('BEGIN');
	$job = $session->query_safe("SELECT mmgpt_finetune('copied', 'gone', '${\SMALL}')");
	$session->query_safe('DROP TABLE copied; COMMIT');
	$session->quit;
	is(wait_for_job($node, $job), 'failed', 'a table that is dropped before ends the job');
	like(job_error($node, $job), qr/table to train on, of OID \d+, does not exist/, 'with that error');
}

# there is no place for a worker
{
	$node->append_conf('postgresql.conf', 'max_worker_processes = 4');
	$node->restart;
	# what looks for jobs after a start needs a place too, for a moment
	for my $name ('full 1', 'full 2')
	{
		ok( wait_until(
				sub {
					return 0 == $node->psql('postgres',
						"SELECT mmgpt_finetune('examples', '$name', '${\ENDLESS}')");
				}),
			'there is a place for a worker');
	}
	my ($status, $out, $err) = $node->psql('postgres', "SELECT mmgpt_finetune('examples', 'full')");
	like($err, qr/all background workers are in use.*Increase max_worker_processes/s, 'no worker is free: an error at the call');
	is($node->safe_psql('postgres', "SELECT count(*) FROM mmgpt_jobs WHERE adapter = 'full'"), '0', 'and no job');
	$node->safe_psql('postgres', "SELECT mmgpt_cancel(id) FROM mmgpt_jobs WHERE adapter ~ 'full'");
	ok(no_workers(), 'they are cancelled');
	$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
	$node->restart;
}

# a standby
{
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$node->backup('base');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	$standby->start;
	like(($standby->psql('postgres', "SELECT mmgpt_finetune('examples', 'standby')"))[2],
		qr/cannot execute mmgpt_finetune\(\) in a read-only transaction/, 'a standby takes no jobs');
	is($standby->safe_psql('postgres', 'SELECT count(*) > 0 FROM mmgpt_jobs'), 't', 'and shows those of its primary');
	is($standby->safe_psql('postgres', "SELECT rows FROM mmgpt_evaluate('examples')"), '24', 'and evaluates');
	my $job = endless('moving');
	$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
	is(job_state($standby, $job), 'interrupted', 'it has no workers');
	$standby->promote;
	is(wait_for_state($standby, $job, 'running'), 'running', 'until it is promoted: then jobs go on there');
	$standby->stop;
	$node->safe_psql('postgres', "SELECT mmgpt_cancel($job)");
	is(wait_for_job($node, $job), 'cancelled', 'and the job of before is cancelled');
}

# dumps leave jobs out
{
	my ($dump) = run_command([ 'pg_dump', '-d', $node->connstr('postgres') ]);
	unlike($dump, qr/COPY [^\n]*mmgpt_job/, 'jobs are not dumped');
	like($dump, qr/COPY public\.mmgpt_adapter /, 'adapters are');
}

# the extension, and the database, are dropped
{
	$node->safe_psql('postgres', 'CREATE DATABASE doomed TEMPLATE postgres');
	my $job = finetune($node, 'doomed', ENDLESS, 'doomed');
	ok(wait_until(sub { return job($node, $job, 'step > 0', 'doomed') eq 't' }), 'a job in another database');
	like(($node->psql('postgres', 'DROP DATABASE doomed'))[2], qr/is being accessed by other users/,
		'its database is in use');
	is($node->psql('postgres', 'DROP DATABASE doomed WITH (FORCE)'), 0, 'but can be dropped by force');
	ok(no_workers(), 'which ends the worker');

	$job = endless('dropped');
	my $offset = -s $node->logfile;
	$node->safe_psql('postgres', 'DROP EXTENSION mmgpt');
	ok(no_workers(), 'a job ends when the extension is dropped');
	is(log_count($node, qr/mmgpt job $job ends: the extension was dropped/, $offset), 1, 'and the log tells it');
	$node->safe_psql('postgres', 'CREATE EXTENSION mmgpt');
	$job = finetune($node, 'anew', SMALL);
	is(wait_for_job($node, $job), 'done', 'a new extension has new jobs');
}

$node->stop;
done_testing();
