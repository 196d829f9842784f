# Whoever stops waiting stops at once, and the engine stops working for him.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

# Two ways to take minutes: an answer of a tenth of a second a token, which a
# temperature of 100 keeps from ending soon, and one that hangs until it is cancelled.
my %endless = (
	slow => q('{"fault": "slow", "temperature": 100, "seed": 1, "max_tokens": 1500}'),
	hang => q('{"fault": "hang"}'));
my $node = mmgpt_node('main', faults => 1);
my ($case) = first_questions();
my $picture = "(SELECT img FROM pictures WHERE name = " . quoted($case->{picture}) . ")";

# Nothing runs or waits in the engine any more.
sub engine_is_idle
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return ok(
		wait_until(
			sub {
				my $status = status($node);

				return $status->{running} == 0 && $status->{waiting} == 0;
			}),
		$name);
}

# The process id of the backend that runs the marked query, once the engine works for it.
sub backend_of
{
	my ($mark) = @_;

	ok( wait_until(sub { return status($node)->{running} > 0 }), 'the engine works on it');
	return $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE query LIKE '%/* $mark */%' AND pid <> pg_backend_pid()");
}

$node->start;
load_pictures($node, 'postgres');

for my $kind (sort keys %endless)
{
	my $ask = "SELECT /* $kind */ mmgpt_ask($picture, " . quoted($case->{prompt}) . ", $endless{$kind})";
	my $began = postmaster_start($node);
	my $engine = engine_of($node);
	my ($session, $backend, $status, $out, $err);

	$session = session_start($node, 'postgres', $ask);
	$backend = backend_of($kind);
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($backend)");
	($status, $out, $err) = session_finish($session);
	isnt($status, 0, "$kind: pg_cancel_backend ends the call");
	like($err, qr/57014: canceling statement due to user request/, 'with its own error');
	engine_is_idle('and the engine is idle');

	$session = session_start($node, 'postgres', $ask, settings => '-c statement_timeout=2s');
	($status, $out, $err) = session_finish($session);
	isnt($status, 0, "$kind: statement_timeout ends the call");
	like($err, qr/57014: canceling statement due to statement timeout/, 'with its own error');
	engine_is_idle('and the engine is idle');

	$session = session_start($node, 'postgres', $ask);
	$backend = backend_of($kind);
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($backend)");
	($status, $out, $err) = session_finish($session);
	isnt($status, 0, "$kind: pg_terminate_backend ends the session");
	like($err, qr/57P01: terminating connection/, 'with its own error');
	engine_is_idle('and the engine is idle');

	$session = session_start($node, 'postgres', $ask);
	$backend = backend_of($kind);
	$session->{run}->kill_kill(grace => 0);
	ok( $node->poll_query_until('postgres',
			"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $backend"),
		"$kind: a client that is gone ends its backend");
	engine_is_idle('and the engine is idle');

	is(engine_of($node), $engine, 'all that with one engine');
	is(postmaster_start($node), $began, 'and one server');
}

# the session of a cancelled call goes on
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my ($out, $failed);

	$session->query_safe("SET statement_timeout = '1s'");
	($out, $failed) = $session->query("SELECT mmgpt_ask($picture, 'x', $endless{hang})");
	like($session->{stderr}, qr/statement timeout/, 'a call is cancelled');
	$session->{stderr} = '';
	$session->query_safe('RESET statement_timeout');
	is($session->query_safe("SELECT mmgpt_ask($picture, " . quoted($case->{prompt}) . ")"),
		$case->{text}, 'and the next call of the same session is answered');
	$session->quit;
}

# a classification ends as fast, among however many labels
for my $function ('mmgpt_classify', 'mmgpt_classify_multi')
{
	my $ask = "SELECT /* $function */ $function($picture, "
	  . "(SELECT array_agg('label ' || i) FROM generate_series(1, 200) AS i), $endless{slow})";
	my $session = session_start($node, 'postgres', $ask);
	my ($status, $out, $err);

	$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . backend_of($function) . ')');
	($status, $out, $err) = session_finish($session);
	like($err, qr/57014: canceling statement due to user request/, "$function is cancelled");
	engine_is_idle('and the engine is idle');
}

# others are answered while an endless call runs
{
	my $session = session_start($node, 'postgres',
		"SELECT /* slow */ mmgpt_ask($picture, 'x', $endless{slow})");
	my $backend = backend_of('slow');

	is( $node->safe_psql('postgres', "SELECT mmgpt_ask($picture, " . quoted($case->{prompt}) . ")"),
		$case->{text}, 'a long answer does not keep others waiting');
	ok(status($node)->{running} > 0, 'while it goes on');
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($backend)");
	session_finish($session);
	engine_is_idle('the engine is idle at the end');
}

# calls that wait for an engine which does not answer at all
{
	my $engine = engine_of($node);
	my ($status, $out, $err);

	kill 'STOP', $engine;
	($status, $out, $err) = session_finish(
		session_start($node, 'postgres', "SELECT mmgpt_ask($picture, 'x')",
			settings => '-c statement_timeout=1s'));
	like($err, qr/statement timeout/, 'statement_timeout also where the engine does not move');
	kill 'CONT', $engine;
	engine_is_idle('and it is idle when it moves again');
	is(engine_of($node), $engine, 'the same engine');
}

$node->stop;
done_testing();
