# The engine holds nothing of the server's: not its descriptors, nor its environment, nor its
# handling of signals; and it leaves no core and goes first when memory runs out.
use strict;
use warnings;

use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

# Variables that an engine may have; the last two are for sanitized ones.
my %allowed = map { ($_ => 1) }
  qw(PATH LC_ALL CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_CACHE_PATH CUDA_MPS_PIPE_DIRECTORY
  LD_LIBRARY_PATH TZ ASAN_OPTIONS UBSAN_OPTIONS);
my ($case) = first_questions();

# What the descriptors of a process are: { number => target }.
sub descriptors
{
	my ($process) = @_;
	my %target;

	for my $link (glob("/proc/$process/fd/*"))
	{
		my $target = readlink($link);

		# one that was closed meanwhile has none
		$target{ ($link =~ m{(\d+)$})[0] } = $target if defined $target;
	}
	return \%target;
}

# The file /proc/PID/NAME.
sub process_file
{
	my ($process, $name) = @_;

	return slurp_file("/proc/$process/$name");
}

# Signals of a mask of /proc/PID/status, of those that programs are sent.
sub signals
{
	my ($process, $key) = @_;
	my $mask = hex(process_status($process, $key));
	my @names = qw(HUP INT QUIT ABRT USR1 SEGV USR2 PIPE ALRM TERM CHLD);
	no strict 'refs';

	return join(' ', grep { $mask & (1 << (&{"POSIX::SIG$_"}() - 1)) } @names);
}

for my $preload (1, 0)
{
	my $node = mmgpt_node("preload_$preload", preload => $preload);
	my $how = $preload ? 'preloaded' : 'on demand';
	my ($engine, $supervisor, $postmaster, $theirs, $ours, $directory, %held, @foreign);

	{
		local $ENV{PGPASSWORD} = 'secret';

		$node->start;
	}
	load_pictures($node, 'postgres');
	is_answered($node, $case, "$how: an answer");
	$engine = engine_of($node);
	$supervisor = supervisor_of($node);

	# descriptors
	$theirs = descriptors($supervisor);
	$ours = descriptors($engine);
	$directory = readlink("/proc/$engine/cwd");
	%held = map { ($_ => 1) } values %$theirs;
	like($ours->{0}, qr/^pipe:/, "$how: descriptor 0 is a pipe");
	like($ours->{1}, qr/^pipe:/, 'and 1 another');
	isnt($ours->{1}, $ours->{0}, 'not the same');
	is($ours->{2}, $ours->{1}, 'which is 2 as well');
	ok($held{ $ours->{0} } && $held{ $ours->{1} }, 'both of the supervisor, at their other ends');
	like($ours->{3}, qr/^socket:/, 'descriptor 3 is a socket');
	ok($held{ $ours->{3} }, 'of the supervisor too');
	is($ours->{4}, "$directory/pg_stat_tmp/mmgpt.lock", 'descriptor 4 is the locked file');
	@foreign = grep {
		$_ > 4
		  && !($ours->{$_} =~ /^anon_inode:\[event(poll|fd)\]$/)
		  && !($ours->{$_} =~ /^socket:/ && !$held{ $ours->{$_} })
	} sort keys %$ours;
	is("@{[ map { $ours->{$_} } @foreign ]}", '',
		'the others are its own event loop and connections');
	is(scalar(grep { $ours->{$_} eq 'anon_inode:[eventpoll]' } keys %$ours),
		1, 'with one event loop, not that of the supervisor as well');
	cmp_ok(scalar keys %$theirs, '>', 5, 'while the supervisor has more than it gave');

	# environment
	($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	ok(process_file($postmaster, 'environ') =~ /\bPGPASSWORD=secret\0/,
		"$how: the server has what its caller had");
	@foreign = grep { !$allowed{$_} } process_file($engine, 'environ') =~ /(?:^|\0)([^=\0]+)/g;
	is("@foreign", '', 'the engine only what it needs');

	# limits
	like(process_file($engine, 'limits'), qr/^Max core file size\s+0\s+0\s/m, "$how: no core");
	is(process_file($engine, 'oom_score_adj') + 0, 500, 'first choice of the out-of-memory killer');
	is(process_status($engine, 'Seccomp'), 2, 'behind a filter of system calls');
	is(process_status($engine, 'NoNewPrivs'), 1, 'for good');

	# signals; SIGTERM is blocked but while the loop waits, and taken then
	is(signals($engine, 'SigIgn'), 'HUP INT PIPE',
		"$how: it ignores a reload, a cancel and lost clients");
	like(signals($engine, 'SigCgt'), qr/\bTERM\b/, 'catches the request to end');
	like(signals($engine, 'SigBlk'), qr/^(TERM)?$/, 'and blocks nothing else');
	is(getpgrp($engine), $supervisor, 'and is in the group that the postmaster signals');
	$node->stop;
}

done_testing();
