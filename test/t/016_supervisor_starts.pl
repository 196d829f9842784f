# Whoever starts supervisors, the postmaster and any number of sessions at the same time, one is
# left; and where none can be started, the error says so.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

use constant ATTEMPTS => 20;           # to have a call meet the second between two supervisors
use constant ATTEMPT_SECONDS => 10;
use constant COMPANY => 5;

my ($case) = first_questions();
my $worker = 'mmgpt supervisor';

# True when two or more supervisors were started since an offset of the log, and all but one left.
sub one_of_several_is_left
{
	my ($node, $offset) = @_;
	my $started = log_count($node, qr/starting background worker process "$worker"/, $offset);
	my $left = log_count($node, qr/"$worker" \(PID \d+\) exited with exit code 0/, $offset);

	return $started > 1 && $left == $started - 1;
}

# A supervisor that is told to end is started again by the postmaster, a second later; until then
# calls start others.
for my $preload (1, 0)
{
	my $how = $preload ? 'preloaded' : 'on demand';
	my $node = mmgpt_node("preload_$preload",
		preload => $preload, conf => "log_min_messages = debug1\n");
	my ($raced, $began);

	$node->start;
	load_pictures($node, 'postgres');
	is_answered($node, $case, "$how: an answer");
	$began = postmaster_start($node);
	for (1 .. ATTEMPTS)
	{
		my $supervisor = supervisor_of($node);
		my $offset = -s $node->logfile;
		my @company = map { session_start($node, 'postgres', question($case)) } 1 .. COMPANY;
		my $call = session_start($node, 'postgres',
			"SELECT pg_terminate_backend($supervisor, 60000); " . question($case));

		is((session_finish($call))[1], "t\n$case->{text}", "$how: a call between two supervisors");
		is((session_finish($_))[1], $case->{text}, 'and one about that time') for @company;
		$raced = wait_until(sub { return one_of_several_is_left($node, $offset) }, ATTEMPT_SECONDS);
		next unless $raced;
		is(log_count($node, qr/mmgpt engine started/, $offset), 1,
			"$how: of all the supervisors one starts an engine");
		isnt(supervisor_of($node), $supervisor, 'and is not the old one');
		ok(defined engine_of($node), 'nor are there two engines');
		last;
	}
	ok($raced, 'several supervisors were started');
	is_answered($node, $case, 'and there are answers');
	is(postmaster_start($node), $began, 'of the same server');
	$node->stop;
}

# no background worker is left for a supervisor
{
	my $node = mmgpt_node('full', preload => 0,
		conf => "max_logical_replication_workers = 0\nmax_worker_processes = 1\n");
	my $sleep = 'SELECT pg_sleep(3600)';
	my $force = int($node->pg_version) >= 16 ? 'debug_parallel_query' : 'force_parallel_mode';
	my ($session, $status, $out, $err);

	$node->start;
	load_pictures($node, 'postgres');
	$session = session_start($node, 'postgres', $sleep, settings => "-c $force=on");
	ok( $node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pg_stat_activity '
			  . "WHERE backend_type = 'parallel worker' AND wait_event = 'PgSleep'"),
		'a parallel query has the only background worker');
	($status, $out, $err) = session_run($node, question($case));
	like($err, qr/ERROR:  53400: could not start the mmgpt supervisor/, 'a call is refused');
	like($err, qr/HINT:  Increase max_worker_processes, or add mmgpt to shared_preload/,
		'with a hint');
	$node->safe_psql('postgres',
		"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query = '$sleep'");
	session_finish($session);
	is_answered($node, $case, 'and answered when the parallel query is over');
	ok(defined engine_of($node), 'by an engine');

	# the same, of a supervisor started by a call, which keeps its place while it is restarted
	($status, $out, $err) = session_run($node,
		'SELECT pg_terminate_backend(' . supervisor_of($node) . ', 60000); ' . question($case));
	is($out, "t\n$case->{text}", 'also while its supervisor is between two lives');

	# preloaded, it comes first; a server without workers cannot have it all the same
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'mmgpt'");
	$node->restart;
	ok(defined supervisor_of($node), 'a preloaded supervisor needs no call to get the only worker');
	is_answered($node, $case, 'and an answer');
	($status, $out, $err) = session_run($node,
		'SELECT pg_terminate_backend(' . supervisor_of($node) . ', 60000); ' . question($case));
	is($out, "t\n$case->{text}", 'also while it is between two lives');
	$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
	$node->restart;
	($status, $out, $err) = session_run($node, question($case));
	like($err, qr/ERROR:  53400: /, 'without any worker a call is refused');
	like($err, qr/HINT:  Increase max_worker_processes\.\n/,
		'and not told to preload what is preloaded');
	$node->stop;
}

done_testing();
