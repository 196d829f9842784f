# What an engine that was started on demand leaves in the data directory: sockets work however long
# its path is, nobody else's account may use them, and base backups neither hold nor mention them.
use strict;
use warnings;

use File::Find ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

use constant SOCKET_PATH_SIZE => 108;    # what the address of a Unix socket has room for

my ($case) = first_questions();
my $node = mmgpt_node('long_' . 'x' x SOCKET_PATH_SIZE,
	preload => 0, init => [ allows_streaming => 1 ]);
my $files = $node->data_dir . '/pg_stat_tmp';
my $copy = PostgreSQL::Test::Utils::tempdir() . '/copy';
my ($out, $err, @found);

cmp_ok(length($files), '>', SOCKET_PATH_SIZE, 'the path of the data directory is long');
$node->start;
load_pictures($node, 'postgres');
is_answered($node, $case, 'which is no hindrance');
ok(defined engine_of($node), 'for one engine');

for my $file (
	[ '', '0700' ],
	[ '/mmgpt.sock', '0600' ],
	[ '/mmgpt.lock', '0600' ],
	[ '/mmgpt.turn', '0600' ])
{
	my ($name, $mode) = @$file;

	is(sprintf('%04o', (stat "$files$name")[2] & 07777),
		$mode, "pg_stat_tmp$name is for the server's account only");
}

($out, $err) = run_command([ 'pg_basebackup', '-D', $copy, '-d', $node->connstr('postgres'),
		'--no-sync', '--checkpoint', 'fast' ]);
is($err, '', 'a base backup says nothing of special files');
File::Find::find(sub { push @found, $File::Find::name if /mmgpt/ || -S $_ || -p $_ }, $copy);
is("@found", '', 'and has none of ours');
ok(-f "$copy/backup_manifest", 'though it is whole');

$node->restart('immediate');
is_answered($node, $case, 'what an engine left harms no further one');
$node->stop;

done_testing();
