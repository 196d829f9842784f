# Whatever ends, engine, backend or server, there is one engine while the server
# runs and none afterwards, and a lost engine never restarts the database.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

my $node = mmgpt_node('main');
my ($case) = first_questions();
my $question = "SELECT mmgpt_ask(img, " . quoted($case->{prompt}) . ") FROM pictures WHERE name = "
  . quoted($case->{picture});

# Ask the one question, which must be answered rightly.
sub answers
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is($node->safe_psql('postgres', $question), $case->{text}, $name);
}

# a sanitized engine would report the signal as a fault of its own
$ENV{ASAN_OPTIONS} = join(':', grep { defined } $ENV{ASAN_OPTIONS}, 'handle_segv=0');
$node->start;
load_pictures($node, 'postgres');
ok(defined engine_of($node), 'the engine comes up with the server');
answers('a preloaded engine answers');
is($node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mmgpt supervisor'"),
	'1', 'the supervisor shows in pg_stat_activity');

# the engine is killed, by several signals; mmgpt_restart in between, because three
# engines in a row that end soon would make the supervisor refuse calls for a while
for my $signal ('KILL', 'ABRT', 'SEGV', 'TERM')
{
	my $before;

	$node->safe_psql('postgres', 'SELECT mmgpt_restart()');
	$before = engine_of($node);
	my ($began, $offset, $after) = (postmaster_start($node), -s $node->logfile);

	kill $signal, $before;
	ok(wait_until(sub { !grep { $_ == $before } engines($node) }), "SIG$signal ends the engine");
	answers("the next call after SIG$signal is answered");
	$after = engine_of($node);
	isnt($after, $before, "by a new engine");
	is(postmaster_start($node), $began, 'the database went on');
	is(log_count($node, qr/engine[^\n]*\b$before\b[^\n]*\n/, $offset),
		1, 'the log says so in one line');
	is(log_count($node, qr/server process|reinitializing|crash of another/, $offset),
		0, 'and of no crash of the server');
}

# mmgpt_restart
{
	my $before = engine_of($node);

	$node->safe_psql('postgres', 'SELECT mmgpt_restart()');
	ok(wait_until(sub { my ($now) = engines($node); defined $now && $now != $before }),
		'mmgpt_restart starts a new engine');
	answers('which answers');
}

# a backend is killed: the server restarts its processes, and the engine with them
{
	my $before = engine_of($node);
	my $session = session_start($node, 'postgres', 'SELECT pg_sleep(3600)');
	my $offset = -s $node->logfile;
	my $backend = wait_until(
		sub {
			$node->safe_psql('postgres',
				"SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3600)'");
		});

	kill 'KILL', $backend;
	session_finish($session);
	$node->wait_for_log(qr/database system is ready to accept connections/, $offset);
	wait_until_ready($node);
	answers('a killed backend: the server comes back and answers');
	isnt(engine_of($node), $before, 'with an engine of its own');
	is(scalar engines($node), 1, 'and only that one');
}

# the supervisor ends at a request, and comes back
{
	my $supervisor = $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'mmgpt supervisor'");
	my $began = postmaster_start($node);

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($supervisor)");
	ok( $node->poll_query_until('postgres',
			"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'mmgpt supervisor' AND pid <> $supervisor"),
		'a terminated supervisor is started again');
	answers('and there are answers');
	is(scalar engines($node), 1, 'of one engine');
	is(postmaster_start($node), $began, 'without a restart of the database');
}

# the server stops
for my $mode ('smart', 'fast', 'immediate')
{
	$node->stop($mode);
	ok(wait_for_no_engine($node), "no engine is left after a stop, $mode");
	$node->start;
	answers("started again after $mode");
	is(scalar engines($node), 1, 'with one engine');
}

# the postmaster is killed
{
	my $postmaster;

	$node->stop;
	$postmaster = postmaster_start_by_hand($node);
	answers('a server that is started by hand');
	$postmaster->signal('KILL');
	$postmaster->finish;
	ok(wait_for_no_engine($node), 'no engine is left when the postmaster is killed');
	ok(wait_for_no_process($node), 'nor anything else');
	$node->start;
	answers('the server starts after that');
	is(scalar engines($node), 1, 'with one engine');
	$node->stop;
}

done_testing();
