# Parallel workers ask the engine themselves, each over a connection of its own, and what they get
# is what one process gets; whatever ends the query ends them all.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

use constant WORKERS => 3;

my ($case) = first_questions();
my $node = mmgpt_node('main', preload => 0);
my $force = int($node->pg_version) >= 16 ? 'debug_parallel_query' : 'force_parallel_mode';
my $parallel = join(' ', map { "-c $_" } 'parallel_setup_cost=0', 'parallel_tuple_cost=0',
	'min_parallel_table_scan_size=0', 'max_parallel_workers_per_gather=' . WORKERS);
# The call stands in what is selected, which workers compute; under an aggregate the leader would.
my $query = sprintf("SELECT name || ': ' || mmgpt_ask(img, %s) FROM wide", quoted($case->{prompt}));

# Lines in the order of names, as workers give them in any.
sub sorted
{
	return join("\n", sort split /\n/, $_[0]);
}

# Start the query with parallel workers, under a mark.
sub start
{
	my ($mark, $settings) = @_;

	return session_start($node, 'postgres', "/* $mark */ $query",
		settings => $settings // $parallel);
}

# Connections that the engine has.
sub connections
{
	my $engine = engine_of($node);

	return scalar grep { (readlink($_) // '') =~ /^socket:/ } glob("/proc/$engine/fd/*");
}

$node->start;
load_pictures($node, 'postgres');
# a page for each row, so that each worker gets some
$node->safe_psql('postgres', sprintf(<<'SQL', WORKERS));
CREATE TABLE wide (name text, img bytea, filler text) WITH (parallel_workers = %d);
ALTER TABLE wide ALTER filler SET STORAGE PLAIN;
INSERT INTO wide SELECT name, img, repeat('x', 5000) FROM pictures;
ANALYZE wide;
SQL

# the first calls of the server are those of parallel workers alone
my ($status, $out, $err) =
  session_finish(start('first', "$parallel -c parallel_leader_participation=off"));
my $expected = sorted(
	$node->safe_psql('postgres', "SET max_parallel_workers_per_gather = 0; $query"));
is($err, '', 'parallel workers start the engine');
is(sorted($out), $expected, 'and have the same answers as one process');
like($expected, qr/^\Q$case->{picture}: $case->{text}\E$/m, 'right ones');
is(scalar engines($node), 1, 'of one engine');

# the whole query in a worker
($status, $out, $err) =
  session_finish(start('forced', "-c $force=on -c max_parallel_workers_per_gather=0"));
is(sorted($out), $expected, 'a query that runs in a worker as a whole has them too');
($status, $out, $err) =
  session_run($node, q(SELECT mmgpt_ask('no picture', 'x')), settings => "-c $force=on");
like($err, qr/ERROR:  22P03: .*\n(?:.*\n)*CONTEXT:  parallel worker/, 'and errors of their own');

# with an engine that stands still, all of them can be seen to wait
{
	my $idle = connections();
	my $engine = engine_of($node);
	my ($session, $processes, @waiters);

	hold($engine);
	$session = start('cancelled');
	@waiters = wait_for_waiters($node, 'cancelled', 1 + WORKERS);
	$processes = join(', ', @waiters);
	is(scalar @waiters, 1 + WORKERS, 'leader and workers wait for the engine at the same time');
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($waiters[0])");
	($status, $out, $err) = session_finish($session);
	like($err, qr/ERROR:  57014: canceling statement due to user request/,
		'a cancel ends the query');
	ok( $node->poll_query_until('postgres',
			"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = ANY ('{$processes}')"),
		'and every process of it');
	$session = start('released');
	wait_for_waiters($node, 'released', 1 + WORKERS);
	release($engine);
	is(sorted((session_finish($session))[1]), $expected, 'when the engine goes on, so do they');

	hold($engine);
	$session = start('killed');
	wait_for_waiters($node, 'killed', 1 + WORKERS);
	kill 'KILL', $engine;
	($status, $out, $err) = session_finish($session);
	is(sorted($out), $expected, 'and when it is killed, all are answered by the next one');
	ok(wait_until(sub { connections() <= $idle }), 'whose connections end with the workers');
}

$node->stop;
done_testing();
