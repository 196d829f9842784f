# Mmgpt.pm - what the tests of whole clusters have in common.
#
# Clusters are PostgreSQL::Test::Cluster's. They find the extension in the stage that
# test/run installed into: MMGPT_STAGE, or MMGPT_STAGE_FAULTS, which differs only in
# an engine that obeys the option "fault". Engines are found by looking through /proc
# for programs of that stage whose working directory is the node's data directory, so
# that one which lost its supervisor is found too.
#
# Nothing here depends on time taken: what must happen is waited for, up to a limit
# that only a hanging test reaches.
package Mmgpt;

use strict;
use warnings;

use Cwd ();
use Exporter 'import';
use IPC::Run ();
use JSON::PP ();
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(
  mmgpt_node load_pictures first_questions question is_answered quoted
  engines engine_of supervisor_of wait_until wait_for_no_engine wait_for_no_process
  wait_until_ready hold release process_status wait_for_waiters postmaster_start_by_hand
  status postmaster_start log_count
  session_start session_finish session_run sessions_finish
  copy_model edit_safetensors
);

my $LIMIT_SECONDS = 180;
my $CASES = 'test/golden/demo/reference.json';
my $PICTURES = 'test/golden/demo/pictures';
my $LEAST_MARGIN = 0.25;    # between the best token and the next, of cases asked here

# Make a node that has the extension at hand; not started. Options: preload (default
# 1), faults (0), init (list for init), conf (lines of postgresql.conf).
sub mmgpt_node
{
	my ($name, %options) = @_;
	my $stage = $options{faults} ? $ENV{MMGPT_STAGE_FAULTS} : $ENV{MMGPT_STAGE};
	my $node = PostgreSQL::Test::Cluster->new($name);
	my $preload = ($options{preload} // 1) ? 'mmgpt' : '';
	my $path =
	  int($node->pg_version) >= 18
	  ? "extension_control_path = '$stage$ENV{MMGPT_SHARE}:\$system'"
	  : "extension_destdir = '$stage'";

	$node->init(@{ $options{init} // [] });
	$node->append_conf('postgresql.conf', <<"CONF");
$path
dynamic_library_path = '$stage$ENV{MMGPT_LIBRARIES}:\$libdir'
shared_preload_libraries = '$preload'
max_connections = 60
restart_after_crash = on
statement_timeout = 600s
CONF
	$node->append_conf('postgresql.conf', $options{conf}) if defined $options{conf};
	return $node;
}

# A text as a literal of SQL.
sub quoted
{
	my ($text) = @_;

	$text =~ s/'/''/g;
	return "'$text'";
}

# Make the extension and a table pictures (name, img) in a database.
sub load_pictures
{
	my ($node, $database) = @_;
	my $sql = "CREATE EXTENSION mmgpt;\nCREATE TABLE pictures (name text PRIMARY KEY, img bytea);\n";

	for my $file (sort glob("$PICTURES/*.*"))
	{
		my $bytes = slurp_file($file);
		my ($name) = $file =~ m{([^/]+)$};

		$sql .= sprintf("INSERT INTO pictures VALUES (%s, decode('%s', 'base64'));\n",
			quoted($name), encode_base64($bytes, ''));
	}
	$node->safe_psql($database, $sql);
	return;
}

# The reference's questions about a picture that begin a dialogue and whose answers are certain: a
# list of { picture, prompt, text }.
sub first_questions
{
	my $cases = JSON::PP::decode_json(slurp_file($CASES))->{cases};

	return grep {
		     defined $_->{picture}
		  && !@{ $_->{history} }
		  && $_->{min_top1_top2_margin} > $LEAST_MARGIN
	} @$cases;
}

# SQL that asks a case of the reference.
sub question
{
	my ($case) = @_;

	return sprintf('SELECT mmgpt_ask(img, %s) FROM pictures WHERE name = %s',
		quoted($case->{prompt}), quoted($case->{picture}));
}

# Test that a case of the reference is answered rightly.
sub is_answered
{
	my ($node, $case, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is($node->safe_psql('postgres', question($case)), $case->{text}, $name);
}

# Process ids of the engines; with a node, of those in its data directory.
sub engines
{
	my ($node) = @_;
	my @found;

	for my $process (glob('/proc/[0-9]*'))
	{
		my $directory = readlink("$process/cwd");
		my ($command, $file);

		open($file, '<', "$process/cmdline") or next;
		$command = do { local $/; <$file> };
		close $file;
		next unless defined $command && $command =~ m{^\Q$ENV{MMGPT_STAGE}\E[^\0]*/mmgpt-engine\0};
		next if defined $node && (!defined $directory || $directory ne real_data_directory($node));
		push @found, $process =~ m{(\d+)$};
	}
	return @found;
}

# The data directory as the kernel names it.
sub real_data_directory
{
	my ($node) = @_;

	return Cwd::realpath($node->data_dir);
}

# Wait until the code gives something true, and give it back; undef at the limit, which is
# so many seconds or the one of all tests.
sub wait_until
{
	my ($code, $seconds) = @_;

	for (1 .. 20 * ($seconds // $LIMIT_SECONDS))
	{
		my $result = $code->();

		return $result if $result;
		usleep(50_000);
	}
	return undef;
}

# Wait until exactly one engine runs, and give its process id.
sub engine_of
{
	my ($node) = @_;

	return wait_until(
		sub {
			my @found = engines($node);

			return @found == 1 ? $found[0] : undef;
		});
}

# Wait until no engine is left; true when that came.
sub wait_for_no_engine
{
	my ($node) = @_;

	return wait_until(sub { return engines($node) == 0 });
}

# Wait until no process works in the node's data directory; true when that came.
sub wait_for_no_process
{
	my ($node) = @_;
	my $directory = real_data_directory($node);

	return wait_until(
		sub {
			return !grep { (readlink("$_/cwd") // '') eq $directory } glob('/proc/[0-9]*');
		});
}

# The one value that a query gives, or undef where the server does not let us in. The node's own
# functions write the query to psql's input, and die where psql has left already.
sub query_if_ready
{
	my ($node, $sql) = @_;
	my $out = '';
	my @command = ($node->installed_command('psql'), '-XAtq', '-d', $node->connstr('postgres'));
	my $good = IPC::Run::run([ @command, '-c', $sql ], '<', \undef, '>', \$out, '2>', \my $err);

	chomp $out;
	return $good ? $out : undef;
}

# Wait until the server lets us in; true when that came.
sub wait_until_ready
{
	my ($node) = @_;

	return wait_until(sub { return query_if_ready($node, 'SELECT 1') });
}

# Wait until the server lets us in and exactly one supervisor runs, and give its process id.
sub supervisor_of
{
	my ($node) = @_;

	return wait_until(
		sub {
			my $found = query_if_ready($node,
				"SELECT pid FROM pg_stat_activity WHERE backend_type = 'mmgpt supervisor'");

			return defined $found && $found =~ /^\d+$/ ? $found : undef;
		});
}

# A line of /proc/PID/status; undef where the process is gone.
sub process_status
{
	my ($process, $key) = @_;
	my ($file, @lines);

	open($file, '<', "/proc/$process/status") or return undef;
	@lines = map { /^$key:\s*(.*)/ ? $1 : () } <$file>;
	close $file;
	return $lines[0];
}

# Make processes stand still, all their threads, until they are released or killed.
sub hold
{
	for my $process (@_)
	{
		kill 'STOP', $process;
		wait_until(sub { return (process_status($process, 'State') // '') =~ /^[Tt]/ })
		  or die "process $process does not stop";
	}
	return;
}

# Let them go on.
sub release
{
	kill 'CONT', @_;
	return;
}

# Wait until so many processes that run the query marked with a comment wait for the engine;
# gives their process ids, leader of parallel workers first.
sub wait_for_waiters
{
	my ($node, $mark, $count) = @_;
	my $found = wait_until(
		sub {
			my @waiters = split /\n/, $node->safe_psql('postgres',
				"SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Extension' "
				  . "AND query LIKE '%/* $mark */%' AND pid <> pg_backend_pid() "
				  . 'ORDER BY leader_pid NULLS FIRST, pid');

			return @waiters == $count ? \@waiters : undef;
		});

	return defined $found ? @$found : ();
}

# Start the server as a child of the test, which takes note of its end when finish is called
# on what is returned: a killed one must not stay in the way of the next as a process that
# nobody waited for. For the node the server is down.
sub postmaster_start_by_hand
{
	my ($node) = @_;
	my $run = IPC::Run::start([ $node->installed_command('postgres'), '-D', $node->data_dir ],
		'<', \undef, '>>', $node->logfile, '2>&1');

	wait_until_ready($node) or die 'the server does not start';
	return $run;
}

# mmgpt_status() as one hash, without its sections; rows is the sum that its mean
# (rows_per_step) comes from.
sub status
{
	my ($node, $database) = @_;
	my $whole = JSON::PP::decode_json(
		$node->safe_psql($database // 'postgres', 'SELECT mmgpt_status()'));
	my %flat = (%$whole, map { %{ $whole->{$_} // {} } } qw(requests scheduler memory adapters));

	$flat{rows} = $flat{steps} * $flat{rows_per_step};
	return \%flat;
}

# When the server began; changes also when it went through crash recovery.
sub postmaster_start
{
	my ($node) = @_;

	return $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
}

# How often a pattern stands in the log from an offset on.
sub log_count
{
	my ($node, $pattern, $offset) = @_;
	my $log = slurp_file($node->logfile, $offset // 0);
	my @matches = $log =~ /$pattern/g;

	return scalar @matches;
}

# Start psql with commands in the background. Options: user, settings (PGOPTIONS).
sub session_start
{
	my ($node, $database, $sql, %options) = @_;
	my $user = defined $options{user} ? " user=$options{user}" : '';
	my $session = { out => '', err => '' };
	my @command = (
		$node->installed_command('psql'), '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose',
		'-d', $node->connstr($database) . $user, '-c', $sql);

	local $ENV{PGOPTIONS} = $options{settings} // '';
	$session->{run} = IPC::Run::start(\@command, '<', \'', '>', \$session->{out},
		'2>', \$session->{err}, IPC::Run::timeout(4 * $LIMIT_SECONDS));
	return $session;
}

# Wait for the end of a session; gives exit status, output, errors.
sub session_finish
{
	my ($session) = @_;

	$session->{run}->finish;
	$session->{status} = $session->{run}->result(0);
	chomp($session->{out}, $session->{err});
	return ($session->{status}, $session->{out}, $session->{err});
}

# Run commands in a session of the database postgres; gives and takes what those above do.
sub session_run
{
	my ($node, $sql, %options) = @_;

	return session_finish(session_start($node, 'postgres', $sql, %options));
}

# Wait for the end of many sessions.
sub sessions_finish
{
	session_finish($_) for @_;
	return;
}

# Copy the demo model into a new directory and give its path.
sub copy_model
{
	my $directory = PostgreSQL::Test::Utils::tempdir();
	my $model = "$directory/model";

	PostgreSQL::Test::RecursiveCopy::copypath('demo/model', $model);
	return $model;
}

# Change the header of a model's safetensors file: the code gets and changes the
# decoded header; tensors' bytes stay as they are.
sub edit_safetensors
{
	my ($model, $code) = @_;
	my $path = "$model/model.safetensors";
	my $bytes = slurp_file($path);
	my $length = unpack('Q<', $bytes);
	my $header = JSON::PP::decode_json(substr($bytes, 8, $length));
	my ($text, $file);

	$code->($header);
	$text = JSON::PP->new->utf8->canonical->encode($header);
	$text .= ' ' x (-length($text) % 8);
	open($file, '>:raw', $path) or die "could not write $path: $!";
	print $file pack('Q<', length($text)), $text, substr($bytes, 8 + $length);
	close($file) or die "could not write $path: $!";
	return;
}

1;
