# A list of devices starts an engine for each: questions are spread over them, the loss of one
# costs nobody an answer, and one that does not start keeps nobody from those that do.
use strict;
use warnings;

use JSON::PP ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

use constant SESSIONS => 4;

my @cases = first_questions();
my $node = mmgpt_node('main', faults => 1, conf => "mmgpt.device = 'cpu,cpu'\nmmgpt.threads = 1\n");

# What each engine tells of itself.
sub engine_reports
{
	my $status = JSON::PP::decode_json($node->safe_psql('postgres', 'SELECT mmgpt_status()'));

	return @{ $status->{engines} // [] };
}

# How many engines were started in place of another.
sub restarts
{
	return $node->safe_psql('postgres', "SELECT mmgpt_status()->'restarts'");
}

# Change mmgpt.device and wait until so many engines run.
sub set_device
{
	my ($device, $engines) = @_;

	$node->safe_psql('postgres', qq{ALTER SYSTEM SET "mmgpt.device" = '$device'});
	$node->reload;
	return wait_until(sub { engines($node) == $engines });
}

# Sessions that ask all cases, some of them slowly; each gives the number of right answers.
sub start_sessions
{
	my $sql = <<'SQL';
SELECT count(*) FILTER (WHERE answer = expected)
FROM (SELECT expected,
			 mmgpt_ask(img, prompt, CASE WHEN id % 7 = 3 THEN '{"fault": "slow"}'::jsonb END) AS answer
	  FROM questions JOIN pictures USING (name) ORDER BY id OFFSET 0) AS answers
SQL

	return map { session_start($node, 'postgres', $sql) } 1 .. SESSIONS;
}

# Test that the sessions end with all answers right.
sub all_right
{
	my ($name, @sessions) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @results = map { my (undef, $out, $err) = session_finish($_); $err || $out } @sessions;

	return is("@results", join(' ', (scalar @cases) x SESSIONS), $name);
}

$node->start;
load_pictures($node, 'postgres');
$node->safe_psql('postgres',
	'CREATE TABLE questions (id serial PRIMARY KEY, name text, prompt text, expected text)');
$node->safe_psql('postgres', sprintf('INSERT INTO questions (name, prompt, expected) VALUES (%s, %s, %s)',
		quoted($_->{picture}), quoted($_->{prompt}), quoted($_->{text})))
  for @cases;

# two engines, which both work
{
	my @sessions = start_sessions();
	my @reports;

	all_right('answers are right, whichever engine gives them', @sessions);
	@reports = engine_reports();
	is(scalar @reports, 2, 'there are two engines');
	is($node->safe_psql('postgres', 'SELECT engine, pid FROM mmgpt_stat ORDER BY engine'),
		"0|$reports[0]{pid}\n1|$reports[1]{pid}", 'mmgpt_stat has a row for each');
	isnt($reports[0]{pid}, $reports[1]{pid}, 'which are processes of their own');
	cmp_ok($_->{requests}{done}, '>', 1, 'and one answers questions') for @reports;
}

# sessions that come one after another ask about a picture where it was encoded
{
	my $sum = sub { my ($key) = @_; my $sum = 0; $sum += $_->{scheduler}{$key} for engine_reports(); $sum };
	my ($encoded, $found);

	$node->safe_psql('postgres', 'CREATE ROLE another LOGIN; GRANT SELECT ON pictures TO another');
	($encoded, $found) = ($sum->('images_encoded'), $sum->('images_found'));
	session_run($node, question($cases[0]), user => 'another') for 1 .. 4;
	is($sum->('images_encoded') - $encoded, 1, 'a picture is encoded once');
	is($sum->('images_found') - $found, 3, 'and found by the questions that follow');
}

# the loss of one
{
	my @sessions = start_sessions();
	my ($victim) = engines($node);

	ok( wait_until(
			sub { grep { $_->{pid} == $victim && $_->{requests}{running} > 0 } engine_reports() }),
		'an engine works on questions');
	kill 'KILL', $victim;
	all_right('its loss costs no answer', @sessions);
	ok(wait_until(sub { engines($node) == 2 }), 'and it is replaced');
}

# restart, and lists that grow and shrink
{
	my %before = map { ($_ => 1) } engines($node);
	my $restarts;

	is($node->safe_psql('postgres', 'SELECT mmgpt_restart()'), 't', 'mmgpt_restart() waits for both');
	is(scalar(grep { $before{$_} } engines($node)), 0, 'and both are new');
	$restarts = restarts();
	is($restarts, 3, 'with the lost one these are counted');
	ok(set_device('cpu,cpu,cpu', 3), 'a longer list starts one more');
	is(scalar(engine_reports()), 3, 'which answers');
	ok(set_device('cpu', 1), 'a shorter one ends them');
	is_answered($node, $cases[0], 'and the last one answers');
	is(restarts(), $restarts, 'which was no restart of any');
	ok(!-e $node->data_dir . '/pg_stat_tmp/mmgpt.sock.2', 'the sockets of the others are gone');
}

# a device that is not there
{
	my @sessions;
	my ($out, $err);

	my $of_first = sub { $node->safe_psql('postgres', "SELECT $_[0] FROM mmgpt_stat WHERE engine = 0") };
	my $victim;

	set_device('cpu,cuda:77', 1);
	ok( wait_until(sub { log_count($node, qr/mmgpt engine: .*cuda:77/) >= 3 }),
		'the log says which device is missing');
	is($node->safe_psql('postgres', 'SELECT engine, state FROM mmgpt_stat ORDER BY engine'),
		"0|ready\n1|failed", 'mmgpt_stat shows both');
	like(JSON::PP::encode_json((engine_reports())[1]), qr/cuda:77/, 'mmgpt_status() says why');
	@sessions = start_sessions();
	all_right('the other engine answers everything', @sessions);

	# while that one is started anew nobody is sent to the one that does not start
	@sessions = start_sessions();
	$victim = $of_first->('pid');
	ok(wait_until(sub { $of_first->('running') > 0 }), 'it works on questions');
	kill 'KILL', $victim;
	all_right('its loss costs no answer either', @sessions);
	(undef, $out, $err) = session_run($node, 'SELECT mmgpt_restart()');
	like($err, qr/55000: .*\n.*cuda:77/, 'mmgpt_restart() says that one does not start');
}

# lists that can't be
for my $list ('cpu,', 'cpu,auto', 'cpu:1', join(',', ('cpu') x 17))
{
	my (undef, undef, $err) = session_run($node, qq{ALTER SYSTEM SET "mmgpt.device" = '$list'});

	like($err, qr/^ERROR:  22023: invalid value for parameter "mmgpt.device"/, "$list is refused");
}

$node->stop;
ok(wait_for_no_engine($node), 'no engine is left');

done_testing();
