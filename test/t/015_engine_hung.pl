# An engine that hangs, before a request, in the middle of one or of a frame, holds nobody who
# wants to leave, and costs nobody who waits an answer.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

# What a picture is lengthened by, so that its frame is more than a socket holds.
use constant PADDING => 8 * 1024 * 1024;

my $node = mmgpt_node('main', preload => 0);
my ($case) = first_questions();
my $ask = question($case);
my $ask_large = 'SELECT mmgpt_ask(img, ' . quoted($case->{prompt}) . ') FROM large';

# Start a session that asks under a mark.
sub start
{
	my ($mark, $sql, $settings) = @_;

	return session_start($node, 'postgres', "/* $mark */ $sql", settings => $settings);
}

# The process id of the backend that waits under a mark.
sub waiter
{
	my ($mark) = @_;
	my ($backend) = wait_for_waiters($node, $mark, 1);

	return $backend // die "no backend waits for $mark";
}

# The backend is gone.
sub is_gone
{
	my ($backend, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return ok(wait_until(
			sub {
				$node->safe_psql('postgres',
					"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $backend") eq 't';
			}),
		$name);
}

# The engine has nothing to do, which is told only by one that moves.
sub is_idle
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return ok(wait_until(
			sub {
				my $status = status($node);

				return $status->{running} == 0 && $status->{waiting} == 0;
			}),
		$name);
}

$node->start;
load_pictures($node, 'postgres');
$node->safe_psql('postgres', sprintf(<<'SQL', PADDING, quoted($case->{picture})));
CREATE TABLE large (img bytea);
INSERT INTO large SELECT img || decode(repeat('00', %d), 'hex') FROM pictures WHERE name = %s;
SQL
is_answered($node, $case, 'an answer');
is($node->safe_psql('postgres', $ask_large),
	$case->{text}, 'the same of a file with more behind the picture');

# who waits can leave in every way, and who does not leave is answered when it goes on
for my $what ('request', 'frame')
{
	my $sql = $what eq 'frame' ? $ask_large : $ask;
	my $engine = engine_of($node);
	my $began = postmaster_start($node);
	my %settings = ('timed out' => '-c statement_timeout=1s',
		'gone, looked for' => '-c client_connection_check_interval=200ms');
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my (%session, %backend, $status, $out, $err);

	# one that had a connection before, and will be told to cancel
	is($session->query_safe($ask), $case->{text}, "$what: a session asks");
	hold($engine);
	$session->query_until(qr/sent/, "\\echo sent\n/* kept */ $sql;\n");
	for my $mark ('patient', 'timed out', 'terminated', 'gone', 'gone, looked for')
	{
		$session{$mark} = start($mark, $sql, $settings{$mark});
		$backend{$mark} = waiter($mark) unless $mark eq 'timed out';
	}
	$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . waiter('kept') . ')');
	# the session is at the next query when that one has failed
	$session->query('SELECT 1');
	like($session->{stderr}, qr/canceling statement due to user request/, 'and can be cancelled');
	$session->{stderr} = '';
	($status, $out, $err) = session_finish($session{'timed out'});
	like($err, qr/57014: canceling statement due to statement timeout/,
		"$what: a timeout ends the wait");
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($backend{terminated})");
	($status, $out, $err) = session_finish($session{terminated});
	like($err, qr/57P01: terminating connection/, "$what: termination does");
	for my $mark ('gone', 'gone, looked for')
	{
		$session{$mark}{run}->kill_kill(grace => 0);
		is_gone($backend{$mark}, "$what: so does a client that is $mark");
	}
	is(waiter('patient'), $backend{patient}, 'who is patient waits');
	is(process_status($engine, 'State'), 'T (stopped)', 'for the engine still stands');

	release($engine);
	is((session_finish($session{patient}))[1],
		$case->{text}, "$what: and is answered when it moves");
	is($session->query_safe($sql), $case->{text}, 'as is the session that was cancelled');
	$session->quit;
	is_idle('nothing is left over');
	is(engine_of($node), $engine, 'in the same engine');
	is(postmaster_start($node), $began, 'of the same server');
}

# an engine that hangs is replaced, and whoever waited for it is answered by the next one
for my $what ('request', 'frame')
{
	my $engine = engine_of($node);
	my $session;

	hold($engine);
	$session = start('patient', $what eq 'frame' ? $ask_large : $ask);
	waiter('patient');
	is($node->safe_psql('postgres', 'SELECT mmgpt_restart()'),
		't', "$what: mmgpt_restart ends an engine that does not move");
	is((session_finish($session))[1], $case->{text}, 'who waited is answered');
	isnt(engine_of($node), $engine, 'by a new one');
}

$node->stop;
done_testing();
