# Many sessions at once: everybody gets his own answer, and the engine works on all
# of them together.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

use constant SESSIONS => 20;
use constant TOGETHER => 16;
use constant RACERS => 20;
use constant QUESTIONS => 3;
use constant LEAST_ROWS_A_STEP => 8;

my @cases = first_questions();

# SQL that asks one case of the reference.
sub ask
{
	my ($case) = @_;

	return sprintf('SELECT mmgpt_ask(img, %s) FROM pictures WHERE name = %s',
		quoted($case->{prompt}), quoted($case->{picture}));
}

# Finish sessions; gives how many answered as their cases say.
sub count_right
{
	my ($sessions, $expected) = @_;
	my $right = 0;

	for my $i (0 .. $#$sessions)
	{
		my ($status, $out, $err) = session_finish($sessions->[$i]);

		$right++ if $status == 0 && $out eq $expected->[$i];
		note("session $i: $out $err, not $expected->[$i]") unless $status == 0 && $out eq $expected->[$i];
	}
	return $right;
}

my $node = mmgpt_node('main', faults => 1);

$node->start;
load_pictures($node, 'postgres');
$node->safe_psql('postgres', 'CREATE DATABASE second');
load_pictures($node, 'second');
ok(@cases >= 10, 'there are enough certain questions');

# sessions with different questions, in two databases
{
	my (@sessions, @expected);

	for my $i (0 .. SESSIONS - 1)
	{
		my $case = $cases[ $i % @cases ];

		push @sessions, session_start($node, $i % 2 ? 'second' : 'postgres', ask($case));
		push @expected, $case->{text};
	}
	is(count_right(\@sessions, \@expected), SESSIONS,
		SESSIONS . ' sessions in two databases, every answer right');
	is(scalar engines($node), 1, 'from one engine');
}

# sessions that run at the same time share the engine's steps: all wait for one lock, and each is
# a role of its own, so that none finds what another one's questions left. One more session keeps
# every step as long as a step of a large model, however small and fast this one is.
{
	my (@sessions, @expected, $before, $after, $steps, $rows);
	my $gate = $node->background_psql('postgres');
	my @asked = @cases[ 0 .. QUESTIONS - 1 ];
	my $questions = join(', ', map { '(' . join(', ', map { quoted($_) } @$_{qw(picture prompt text)}) . ')' } @asked);
	my $slow = session_start($node, 'postgres', 'SELECT /* slow */ mmgpt_generate(\'x\', NULL, '
		  . '\'{"fault": "slow", "temperature": 100, "seed": 1, "max_tokens": 1500}\')');

	$gate->query_safe('SELECT pg_advisory_lock(1)');
	for my $i (0 .. TOGETHER - 1)
	{
		$node->safe_psql('postgres', "CREATE ROLE asker$i LOGIN; GRANT SELECT ON pictures TO asker$i");
		push @sessions, session_start($node, 'postgres',
			'SELECT pg_advisory_lock_shared(1); '
			  . 'SELECT count(*) FILTER (WHERE mmgpt_ask(img, prompt) = answer) '
			  . "FROM (VALUES $questions) AS asked (name, prompt, answer) JOIN pictures USING (name)",
			user => "asker$i");
		push @expected, "\n" . QUESTIONS;
	}
	ok( $node->poll_query_until('postgres',
			"SELECT count(*) = " . TOGETHER . " FROM pg_stat_activity WHERE wait_event = 'advisory'"),
		TOGETHER . ' sessions are ready');
	ok($node->poll_query_until('postgres', "SELECT (mmgpt_status()->'requests'->>'running')::int = 1"),
		'the slow one runs');
	$before = status($node);
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	is(count_right(\@sessions, \@expected), TOGETHER, 'all their answers are right');
	$after = status($node);
	$steps = $after->{steps} - $before->{steps};
	$rows = $after->{rows} - $before->{rows};
	note("$rows rows in $steps steps");
	cmp_ok($rows, '>=', LEAST_ROWS_A_STEP * $steps,
		'at least ' . LEAST_ROWS_A_STEP . ' rows a step in the mean');
	cmp_ok($steps, '>', 0, 'by more than none');
	$node->safe_psql('postgres',
		"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%/* slow */%' AND pid <> pg_backend_pid()");
	session_finish($slow);
	ok($node->poll_query_until('postgres', "SELECT (mmgpt_status()->'requests'->>'running')::int = 0"),
		'nothing runs at the end');
	is(status($node)->{waiting}, 0, 'and nothing waits');
	$gate->quit;
}

# the same question gives the same bits alone and in company
{
	my $score = sprintf("SELECT mmgpt_score(img, 'Is there a dog in the image?') FROM pictures WHERE name = %s",
		quoted($cases[0]{picture}));
	my $alone = $node->safe_psql('postgres', "SET extra_float_digits = 3; $score");
	my @company =
	  map { session_start($node, 'postgres', ask($cases[ $_ % @cases ])) } (1 .. TOGETHER - 1);
	my $together = $node->safe_psql('postgres', "SET extra_float_digits = 3; $score");

	sessions_finish(@company);
	is($together, $alone, 'a score is the same number in company as alone');
}

# prepared statements, PL/pgSQL
{
	is( $node->safe_psql('postgres', sprintf(
				'PREPARE ask(text) AS SELECT mmgpt_ask(img, %s) FROM pictures WHERE name = $1; '
				  . 'EXECUTE ask(%s)', quoted($cases[0]{prompt}), quoted($cases[0]{picture}))),
		$cases[0]{text}, 'a prepared statement asks');
	like( $node->safe_psql('postgres', sprintf(
				'DO $do$ BEGIN IF (%s) <> %s THEN RAISE EXCEPTION $$wrong$$; END IF; END $do$; SELECT $$right$$',
				ask($cases[0]), quoted($cases[0]{text}))),
		qr/right/, 'PL/pgSQL asks');
}
$node->stop;

# first calls that race for starting the engine, in a server with room for one supervisor: all wait
# for a lock, of which each database has its own
{
	my $other = mmgpt_node('on_demand', preload => 0,
		conf => "max_logical_replication_workers = 0\nmax_worker_processes = 1\n");
	my (@gates, @sessions, @expected);

	$other->start;
	load_pictures($other, 'postgres');
	$other->safe_psql('postgres', 'CREATE DATABASE second');
	load_pictures($other, 'second');
	is(scalar engines($other), 0, 'without a call there is no engine');
	@gates = map { $other->background_psql($_) } ('postgres', 'second');
	$_->query_safe('SELECT pg_advisory_lock(1)') for @gates;
	for my $i (0 .. RACERS - 1)
	{
		my $case = $cases[ $i % @cases ];

		push @sessions, session_start($other, $i % 2 ? 'second' : 'postgres',
			'SELECT pg_advisory_lock_shared(1); ' . ask($case));
		push @expected, "\n$case->{text}";
	}
	ok( $other->poll_query_until('postgres', 'SELECT count(*) = ' . RACERS
			  . " FROM pg_stat_activity WHERE wait_event = 'advisory'"),
		RACERS . ' sessions in two databases are ready for their first call');
	is(scalar engines($other), 0, 'and there is still no engine');
	$_->query_safe('SELECT pg_advisory_unlock(1)') for @gates;
	is(count_right(\@sessions, \@expected), RACERS, 'all calls are answered');
	is(log_count($other, qr/mmgpt engine started/), 1, 'by the only engine that was started');
	$_->quit for @gates;
	is( $other->safe_psql('postgres',
			"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'mmgpt supervisor'"),
		'1', 'of one supervisor');
	$other->restart;
	is(scalar engines($other), 0, 'after a restart there is none');
	is($other->safe_psql('second', ask($cases[0])), $cases[0]{text}, 'until it is called');
	$other->stop;
	ok(wait_for_no_engine($other), 'it ends with the server');
}

done_testing();
