# An engine that is lost in the middle of work costs nobody an answer, but for the
# one request that kills it twice.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

use constant ROWS => 50;
use constant INNOCENT => 15;

my $node = mmgpt_node('main', faults => 1);
my @cases = first_questions();
my %answer = map { ("$_->{picture}|$_->{prompt}" => $_->{text}) } @cases;

# The pid of the backend that runs the marked query.
sub backend_of
{
	my ($mark) = @_;

	return $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE query LIKE '%/* $mark */%' AND pid <> pg_backend_pid()");
}

# Start a new engine; and so that losses of earlier ones do not count, because after
# three that ended soon the supervisor refuses calls for a while.
sub fresh_engine
{
	$node->safe_psql('postgres', 'SELECT mmgpt_restart()');
	return;
}

$node->start;
load_pictures($node, 'postgres');
$node->safe_psql('postgres',
	'CREATE TABLE questions (id int PRIMARY KEY, name text, prompt text, expected text)');
for my $i (0 .. ROWS - 1)
{
	my $case = $cases[ $i % @cases ];

	$node->safe_psql('postgres', sprintf('INSERT INTO questions VALUES (%d, %s, %s, %s)',
		$i, quoted($case->{picture}), quoted($case->{prompt}), quoted($case->{text})));
}

# the engine is killed while a query over many rows runs, twice in different rows; some
# rows take long enough that the kill meets one
{
	my $began = postmaster_start($node);
	my $offset = -s $node->logfile;
	my $session = session_start($node, 'postgres', <<'SQL');
SELECT count(*), count(*) FILTER (WHERE answer = expected)
FROM (SELECT expected,
			 mmgpt_ask(img, prompt,
				CASE WHEN id % 20 = 10 THEN '{"fault": "slow"}'::jsonb END) AS answer
	  FROM questions JOIN pictures USING (name) ORDER BY id OFFSET 0) AS answers
SQL
	my ($status, $out, $err);

	# counted in pictures of the running engine; five mean that it is past the row that the
	# first one was lost in
	for my $pictures (1, 5)
	{
		my $engine;

		ok( wait_until(
				sub {
					my $now = eval { status($node) };

					return $now && $now->{images_encoded} >= $pictures && $now->{running} > 0;
				}),
			'the engine works on a row');
		$engine = engine_of($node);
		kill 'KILL', $engine;
		ok(wait_until(sub { !grep { $_ == $engine } engines($node) }), 'and is killed');
	}
	($status, $out, $err) = session_finish($session);
	is($err, '', 'a query over 50 rows survives the loss of two engines');
	is($out, ROWS . '|' . ROWS, 'with the right answer in every row');
	is(postmaster_start($node), $began, 'the server never restarted');
	is(log_count($node, qr/crash of another server process/, $offset), 0, 'no crash recovery');
}

# a request that kills the engine twice fails alone
{
	my $began = postmaster_start($node);
	my (@innocent, $guilty, $status, $out, $err);
	my $right = 0;

	fresh_engine();
	for my $i (0 .. INNOCENT - 1)
	{
		my $case = $cases[ $i % @cases ];
		my $ask = sprintf(
			"SELECT string_agg(mmgpt_ask(img, %s, jsonb_build_object('fault', 'slow', 'seed', i)), '|' ORDER BY i) "
			  . 'FROM pictures, generate_series(1, 2) AS i WHERE name = %s',
			quoted($case->{prompt}), quoted($case->{picture}));

		push @innocent, session_start($node, 'postgres', $ask);
	}
	$guilty = session_start($node, 'postgres',
		"SELECT mmgpt_ask((SELECT img FROM pictures LIMIT 1), 'x', '{\"fault\": \"abort\"}')");
	($status, $out, $err) = session_finish($guilty);
	isnt($status, 0, 'a request that kills the engine twice fails');
	like($err, qr/ERROR:  58000: /, 'with an error of its own');
	note($err);
	for my $i (0 .. INNOCENT - 1)
	{
		my $text = $cases[ $i % @cases ]->{text};

		($status, $out, $err) = session_finish($innocent[$i]);
		$right++ if $status == 0 && $out eq "$text|$text";
		note("session $i: $out $err") unless $status == 0 && $out eq "$text|$text";
	}
	is($right, INNOCENT, 'all the innocent sessions beside it get their right answers');
	is(postmaster_start($node), $began, 'the server never restarted');
	ok(defined engine_of($node), 'and an engine runs');
}

# the same in one session: it goes on
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $case = $cases[0];

	fresh_engine();
	$session->query(
		"SELECT mmgpt_ask((SELECT img FROM pictures LIMIT 1), 'x', '{\"fault\": \"abort\"}')");
	like($session->{stderr}, qr/ERROR/, 'a session whose request failed');
	$session->{stderr} = '';
	is( $session->query_safe(sprintf('SELECT mmgpt_ask(img, %s) FROM pictures WHERE name = %s',
				quoted($case->{prompt}), quoted($case->{picture}))),
		$case->{text}, 'asks the next question');
	$session->quit;
}

# an error of one request leaves the engine alone
{
	my $engine = engine_of($node);
	my ($status, $out, $err) = $node->psql('postgres',
		"SELECT mmgpt_ask((SELECT img FROM pictures LIMIT 1), 'x', '{\"fault\": \"out_of_memory\"}')",
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);

	like($err, qr/ERROR:  53200: /, 'out of memory is an error');
	is(engine_of($node), $engine, 'of an engine that lives on');
}

# the engine stands still in the middle of a request, and is cancelled, then killed
{
	my $engine;
	my $ask = "SELECT /* frozen */ mmgpt_ask((SELECT img FROM pictures LIMIT 1), 'x', '{\"fault\": \"hang\"}')";
	my ($session, $status, $out, $err, $backend);

	fresh_engine();
	$engine = engine_of($node);
	$session = session_start($node, 'postgres', $ask);
	ok(wait_until(sub { status($node)->{running} > 0 }), 'a request runs');
	$backend = backend_of('frozen');
	kill 'STOP', $engine;
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($backend)");
	($status, $out, $err) = session_finish($session);
	like($err, qr/57014/, 'a call can be cancelled while the engine stands still');
	$session = session_start($node, 'postgres',
		sprintf('SELECT mmgpt_ask(img, %s) FROM pictures WHERE name = %s',
			quoted($cases[0]->{prompt}), quoted($cases[0]->{picture})));
	kill 'KILL', $engine;
	($status, $out, $err) = session_finish($session);
	is($out, $cases[0]->{text}, 'a call that waits for it is answered by the next engine');
}

$node->stop;
done_testing();
