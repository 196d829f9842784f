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
  mmgpt_node load_pictures first_questions quoted
  engines engine_of wait_until wait_for_no_engine wait_for_no_process
  status postmaster_start log_count
  session_start session_finish sessions_finish
  copy_model edit_safetensors
);

my $LIMIT_SECONDS = 180;
my $CASES = 'test/golden/demo/reference.json';
my $PICTURES = 'test/golden/demo/pictures';
my $LEAST_MARGIN = 0.1;    # between the best token and the next, of cases asked here

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

# Wait until the code gives something true, and give it back; undef at the limit.
sub wait_until
{
	my ($code) = @_;

	for (1 .. 20 * $LIMIT_SECONDS)
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

# mmgpt_status() as one hash, without its sections; rows is the sum that its mean
# (rows_per_step) comes from.
sub status
{
	my ($node, $database) = @_;
	my $whole = JSON::PP::decode_json(
		$node->safe_psql($database // 'postgres', 'SELECT mmgpt_status()'));
	my %flat = (%$whole, map { %{ $whole->{$_} // {} } } qw(requests scheduler memory));

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
