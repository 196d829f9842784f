# Fine-tuning jobs whose engine, worker or server is lost in the middle: each goes on by itself
# and makes the very adapter that an undisturbed job makes.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;
use MmgptJobs;

use constant STEPS => 100;
use constant MIDDLE => 5;

# checkpoints as often as can be, so that there is one to go on from
my $options = sprintf('{"micro_steps": %d, "r": 2, "target_modules": ["q_proj", "to_kv"], "validation": 0.25, "checkpoint_seconds": 0}', STEPS);
my $node = mmgpt_node('main');

# Test that a job comes to its end as if nothing had happened.
sub is_undisturbed
{
	my ($job, $digest, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(wait_for_job($node, $job), 'done', "$name: the job is done") or diag(job_error($node, $job));
	is(job($node, $job, 'digest'), $digest, "$name: its adapter is the same, to the bit");
	is( $node->safe_psql('postgres', "SELECT count(*), max(step) FROM mmgpt_job_steps WHERE job = $job"),
		STEPS . '|' . STEPS, "$name: each step is there once");
	is(job_leftovers($node, $job), '0', "$name: rows and checkpoints are gone");
	return;
}

$node->start;
load_pictures($node, 'postgres');
load_examples($node);

# undisturbed, but for questions that are asked meanwhile
my $calm = finetune($node, 'calm', $options);
is(wait_for_job($node, $calm), 'done', 'a job is done');
my $digest = job($node, $calm, 'digest');
like($digest, qr/^[0-9a-f]{64}$/, 'it has made an adapter');
is(adapter_digest($node, 'calm'), $digest, 'which is stored');

my $busy = finetune($node, 'busy', $options);
my $asked = 0;
while (job_state($node, $busy) =~ /^(queued|preparing|running)$/)
{
	$node->safe_psql('postgres', 'SELECT count(mmgpt_caption(img)) FROM pictures');
	$asked++;
}
cmp_ok($asked, '>', 0, 'questions are answered while a job runs');
is_undisturbed($busy, $digest, 'questions meanwhile');

# the engine, twice: the worker goes on with the next one
{
	my $start = postmaster_start($node);
	my $job = finetune($node, 'engine', $options);

	for my $step (MIDDLE, 2 * MIDDLE)
	{
		ok(wait_for_step($node, $job, $step), 'a job is in the middle');
		my $engine = engine_of($node);
		kill 'KILL', $engine;
		wait_until(sub { my ($now) = engines($node); return defined $now && $now != $engine });
	}
	is_undisturbed($job, $digest, 'engine killed');
	is(job($node, $job, 'restarts'), '0', 'it kept its worker');
	is(postmaster_start($node), $start, 'and the server did not notice');
}

# the engine, while rows are read: with the next one the rows are sent again
{
	my $job = finetune($node, 'reading', $options);

	kill 'KILL', engine_of($node);
	is_undisturbed($job, $digest, 'engine killed at the start');
}

# the worker: the server goes through crash recovery, and the supervisor gives the job another one
{
	my $job = finetune($node, 'worker', $options);

	ok(wait_for_step($node, $job, MIDDLE), 'a job is in the middle');
	kill 'KILL', job($node, $job, 'pid');
	wait_until(sub { return job($node, $job, 'restarts') eq '1' });
	is_undisturbed($job, $digest, 'worker killed');
	is(job($node, $job, 'restarts'), '1', 'by another worker');
}

# a restart of the server, which ends workers in order
{
	my $job = finetune($node, 'restart', $options);

	ok(wait_for_step($node, $job, MIDDLE), 'a job is in the middle');
	$node->restart;
	is($node->safe_psql('postgres', "SELECT mmgpt_wait($job)"), 'done', 'a job can be waited for after a restart');
	is_undisturbed($job, $digest, 'server restarted');
}

# the postmaster
{
	$node->stop;
	my $server = postmaster_start_by_hand($node);
	my $job = job_after_crash($server);

	is_undisturbed($job, $digest, 'postmaster killed');
}

# Begin a job, kill the postmaster in its middle, and start the server again.
sub job_after_crash
{
	my ($server) = @_;
	my ($out, $err);
	my $connection = $node->connstr('postgres');

	$node->run_log([ 'psql', '-XAtq', '-d', $connection, '-c',
			"SELECT mmgpt_finetune('examples', 'postmaster', '$options')" ]);
	my $job = $node->safe_psql('postgres', 'SELECT max(id) FROM mmgpt_jobs');
	ok(wait_for_step($node, $job, MIDDLE), 'a job is in the middle');
	my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	kill 'KILL', $postmaster;
	$server->finish;
	ok(wait_for_no_process($node), 'all processes of the server are gone');
	$node->start;
	return $job;
}

# a worker that an administrator ends: the job waits for somebody who wants it to go on
{
	my $job = finetune($node, 'terminated', $options);

	ok(wait_for_step($node, $job, MIDDLE), 'a job is in the middle');
	$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . job($node, $job, 'pid') . ', 10000)');
	is(wait_for_state($node, $job, 'interrupted'), 'interrupted', 'a job without its worker is interrupted');
	$node->safe_psql('postgres', "SELECT mmgpt_resume($job)");
	is_undisturbed($job, $digest, 'worker terminated and resumed');
}

# cancelled and resumed
{
	my $job = finetune($node, 'cancelled', $options);

	ok(wait_for_step($node, $job, MIDDLE), 'a job is in the middle');
	is($node->safe_psql('postgres', "SELECT mmgpt_cancel($job)"), 't', 'it is asked to end');
	is(wait_for_job($node, $job), 'cancelled', 'and ends');
	cmp_ok(job($node, $job, 'step'), '<', STEPS, 'before its last step');
	is(adapter_digest($node, 'cancelled'), '', 'without an adapter');
	is($node->safe_psql('postgres', "SELECT mmgpt_cancel($job)"), 'f', 'there is nothing more to end');
	$node->safe_psql('postgres', "SELECT mmgpt_resume($job)");
	is_undisturbed($job, $digest, 'cancelled and resumed');
}

# checkpoints are pieces in a table: a damaged one is passed over for the one before it
{
	my $job = finetune($node, 'damaged', $options);

	ok( wait_until(
			sub {
				return $node->safe_psql('postgres',
					"SELECT count(DISTINCT step) FROM mmgpt_job_checkpoint WHERE job = $job") eq '2';
			}),
		'a job keeps two checkpoints');
	$node->safe_psql('postgres', "SELECT mmgpt_cancel($job)");
	is(wait_for_job($node, $job), 'cancelled', 'it is cancelled');
	$node->safe_psql('postgres',
		"UPDATE mmgpt_job_checkpoint SET bytes = overlay(bytes PLACING '\\xdeadbeef' FROM 2000) "
		  . "WHERE job = $job AND number = 0 AND step = (SELECT max(step) FROM mmgpt_job_checkpoint WHERE job = $job)");
	my $offset = -s $node->logfile;
	$node->safe_psql('postgres', "SELECT mmgpt_resume($job)");
	is_undisturbed($job, $digest, 'checkpoint damaged');
	is(log_count($node, qr/goes back behind its checkpoint/, $offset), 1, 'the log tells it');
}

# an engine that can't be kept running ends the job, which can be resumed
{
	my $job = finetune($node, 'lost', '{"micro_steps": 100000, "r": 4}');
	my $killed = 0;

	wait_until(sub { return job($node, $job, 'step > 0') eq 't' });
	while (job_state($node, $job) =~ /^(queued|running)$/ && $killed < 20)
	{
		my $engine = engine_of($node);

		kill 'KILL', $engine;
		$killed++;
		wait_until(
			sub {
				my ($now) = engines($node);

				return (defined $now && $now != $engine) || job_state($node, $job) eq 'failed';
			});
		wait_until(sub { return job($node, $job, "state = 'failed' OR pid IS NOT NULL") eq 't' });
		wait_until(sub { return job_state($node, $job) =~ /^(failed|running)$/ }, 20);
	}
	is(job_state($node, $job), 'failed', 'a job whose engines end again and again fails');
	like(job_error($node, $job), qr/engine ended \d+ times before the job came to its next checkpoint/, 'and says why');
	my ($status, $out, $err) = $node->psql('postgres', "SELECT mmgpt_wait($job)");
	like($err, qr/job $job failed: the mmgpt engine ended/, 'who waits for it gets its error');
}

$node->stop;
done_testing();
