# Whatever happens to the supervisor, there are never two engines, none that it left, and a new
# pair where the server goes on.
use strict;
use warnings;

use IO::Socket::UNIX;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

use constant LOG_LINES => 2000;      # of the engine, more than a pipe holds
use constant FILL_SECONDS => 180;    # that only a hanging engine takes

my ($case) = first_questions();
my %how = (1 => 'preloaded', 0 => 'on demand');
my %node = map { ($_ => mmgpt_node("preload_$_", preload => $_)) } (1, 0);
my %postmaster;

# Wait for the server's recovery from a crash, which the log tells from an offset on.
sub wait_for_recovery
{
	my ($node, $offset) = @_;

	$node->wait_for_log(qr/database system is ready to accept connections/, $offset);
	return wait_until_ready($node);
}

# Exactly one engine runs, a child of the one supervisor, and neither is an old one.
sub is_fresh_pair
{
	my ($node, @old) = @_;
	my $supervisor = supervisor_of($node);
	my $engine = engine_of($node);
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(process_status($engine, 'PPid'), $supervisor, 'by one engine of one supervisor');
	return is(scalar(grep { $_ == $supervisor || $_ == $engine } @old), 0, 'both new');
}

# Make the engine write more to its log than the pipe to the supervisor holds. It does for each
# connection whose first frame is one that only engines send, and hangs up then.
sub fill_log
{
	my ($node) = @_;
	my $path = PostgreSQL::Test::Utils::tempdir_short() . '/d';

	# through a short name, as the path of the data directory may be too long for an address
	symlink($node->data_dir, $path) or die "could not link $path: $!";
	local $SIG{ALRM} = sub { die 'the engine does not move' };
	alarm(FILL_SECONDS);
	for (1 .. LOG_LINES)
	{
		my $socket = IO::Socket::UNIX->new(Peer => "$path/pg_stat_tmp/mmgpt.sock")
		  or die "no socket: $!";

		$socket->syswrite(pack('L L Q', 0, 5, 0));
		1 while $socket->sysread(my $hello, 4096);
	}
	alarm(0);
	return;
}

for my $preload (1, 0)
{
	my $node = $node{$preload};

	$node->start;
	load_pictures($node, 'postgres');
	is_answered($node, $case, "$how{$preload}: an answer");
	$node->stop;
	$postmaster{$preload} = postmaster_start_by_hand($node);
	is_answered($node, $case, 'another one');
}

for my $preload (1, 0)
{
	my $node = $node{$preload};
	my $how = $how{$preload};
	my $supervisor = supervisor_of($node);
	my $engine = engine_of($node);
	my ($offset, $session, $backend);

	# a cancel, which its whole process group gets
	is($node->safe_psql('postgres', "SELECT pg_cancel_backend($supervisor)"),
		't', "$how: the supervisor is sent a cancel");
	is_answered($node, $case, 'answers go on');
	is(supervisor_of($node), $supervisor, 'of the same supervisor');
	is(engine_of($node), $engine, 'and engine');

	# it stands still, in which the engine does not need it
	$offset = -s $node->logfile;
	hold($supervisor);
	fill_log($node);
	is_answered($node, $case, "$how: the engine answers while nobody reads its log");
	kill 'KILL', $engine;
	ok(wait_until(sub { !engines($node) }), 'and is killed');
	$session = session_start($node, 'postgres', '/* queued */ ' . question($case));
	($backend) = wait_for_waiters($node, 'queued', 1);
	ok(defined $backend, 'a call waits for the next one');
	release($supervisor);
	is((session_finish($session))[1], $case->{text}, 'which comes when the supervisor goes on');
	cmp_ok(log_count($node, qr/engine: a connection sent a frame of type 5/, $offset),
		'<', LOG_LINES, 'and reads what the pipe took of the log');
	is(supervisor_of($node), $supervisor, 'the same');
	$engine = engine_of($node);

	# it is killed; so that the engine cannot notice by itself, it stands still
	$offset = -s $node->logfile;
	hold($engine);
	kill 'KILL', $supervisor;
	wait_for_recovery($node, $offset);
	is(log_count($node, qr/all server processes terminated; reinitializing/, $offset),
		1, "$how: a killed supervisor makes the server recover");
	is_answered($node, $case, 'and there are answers');
	is_fresh_pair($node, $supervisor, $engine);

	# a plain backend is killed
	($supervisor, $engine) = (supervisor_of($node), engine_of($node));
	$offset = -s $node->logfile;
	$session = session_start($node, 'postgres', 'SELECT pg_sleep(3600)');
	$backend = wait_until(
		sub {
			$node->safe_psql('postgres',
				"SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3600)'");
		});
	kill 'KILL', $backend;
	session_finish($session);
	wait_for_recovery($node, $offset);
	is_answered($node, $case, "$how: a killed backend: answers after the recovery");
	is_fresh_pair($node, $supervisor, $engine);
}

# the supervisor stands still when the postmaster is killed: it stays, and its engine with it, and
# as long as they do the server does not start
for my $preload (1, 0)
{
	my $node = $node{$preload};
	my $supervisor = supervisor_of($node);
	my $engine = engine_of($node);
	my $offset = -s $node->logfile;

	hold($supervisor);
	$postmaster{$preload}->signal('KILL');
	$postmaster{$preload}->finish;
	is($node->start(fail_ok => 1), 0, "$how{$preload}: no new server beside an old supervisor");
	is(log_count($node, qr/FATAL:  pre-existing shared memory block/, $offset),
		1, 'the log says why');
	is(join(' ', engines($node)), $engine, 'the old engine is the only one');
	release($supervisor);
	ok(wait_for_no_process($node), 'and goes with its supervisor');
	$postmaster{$preload} = postmaster_start_by_hand($node);
	is_answered($node, $case, 'a new server starts then');
	is_fresh_pair($node, $supervisor, $engine);
}

# the same at an immediate shutdown: the engine hears of it itself, and the postmaster kills the
# supervisor after some seconds, here both at the same time
{
	hold(map { supervisor_of($node{$_}) } (1, 0));
	$_->signal('QUIT') for values %postmaster;
	for my $preload (1, 0)
	{
		ok(wait_for_no_engine($node{$preload}), "$how{$preload}: the engine ends");
	}
	for my $preload (1, 0)
	{
		$postmaster{$preload}->finish;
		ok(wait_for_no_process($node{$preload}), "$how{$preload}: and all else");
		$node{$preload}->start;
		is_answered($node{$preload}, $case, 'and the server starts again');
		$node{$preload}->stop;
	}
}

done_testing();
