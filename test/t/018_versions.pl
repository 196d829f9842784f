# After an upgrade under a running server, library and engine may be of different versions for a
# while: calls are refused then, and told what to do, which helps.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

# An engine of another version: says hello, and leaves the rest to the caller.
my $other_engine = <<'PERL';
#!/usr/bin/perl
# fields of hello: the version of the protocol
my $fields = pack('L L L', 64, 4, VERSION);
my @callers;

open(my $listener, '+<&=', 3) or die;
while (1)
{
	vec(my $ready = '', 3, 1) = 1;
	select($ready, undef, undef, undef);
	accept(my $caller, $listener) or next;
	syswrite($caller, pack('L L Q', length($fields), 1, 0) . $fields);
	push @callers, $caller;
}
PERL
my %version = (newer => 1000, older => 0);
my ($case) = first_questions();
my $copy = PostgreSQL::Test::Utils::tempdir() . '/stage';

# Put a program in the engine's place, as an installation does.
sub install_engine
{
	my ($content) = @_;
	my $path = "$copy$ENV{MMGPT_LIBRARIES}/mmgpt-engine";
	my $file;

	open($file, '>:raw', "$path.new") or die "could not write $path.new: $!";
	print $file $content;
	close($file) or die "could not write $path.new: $!";
	chmod(0755, "$path.new") or die "could not change $path.new: $!";
	rename("$path.new", $path) or die "could not rename $path.new: $!";
	return;
}

system_or_bail('cp', '-R', $ENV{MMGPT_STAGE}, $copy);
local $ENV{MMGPT_STAGE} = $copy;
my $engine = slurp_file("$copy$ENV{MMGPT_LIBRARIES}/mmgpt-engine");
my $node = mmgpt_node('main');

$node->start;
load_pictures($node, 'postgres');
is_answered($node, $case, 'an answer');
for my $preload (1, 0)
{
	my $how = $preload ? 'preloaded' : 'on demand';

	unless ($preload)
	{
		$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
		$node->restart;
	}
	for my $age ('newer', 'older')
	{
		my $hint =
			$age eq 'older' ? qr/Restart the engine with mmgpt_restart\(\)\./
		  : $preload ? qr/Restart the server, which loaded the library at its start\./
		  :            qr/Reconnect, so that the session loads the new library\./;
		my ($status, $out, $err);

		# the new engine starts when something makes the supervisor start it, an accident here
		is_answered($node, $case, "$how: before the upgrade");
		install_engine($other_engine =~ s/VERSION/$version{$age}/r);
		kill 'KILL', engine_of($node);
		ok( wait_until(
				sub {
					($status, $out, $err) = session_run($node, question($case));
					return $status != 0;
				}),
			"a call of an engine that is $age is refused");
		like($err, qr/ERROR:  55000: .* engine and .* library are of different versions/,
			'because of its version');
		like($err, qr/DETAIL:  The engine speaks version $version{$age} of their protocol/,
			'which is told');
		like($err, qr/HINT:  $hint\n/, 'and what to do');
		install_engine($engine);
		is($node->safe_psql('postgres', 'SELECT mmgpt_restart()'),
			't', 'the engine that belongs to the library is installed and started');
		is_answered($node, $case, 'there are answers again');
	}
}

$node->stop;
done_testing();
