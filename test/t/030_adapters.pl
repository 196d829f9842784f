# Adapters in a whole cluster: transactions, roles, an engine that is killed, cancelling while an
# adapter is sent, dump and restore, a standby.
use strict;
use warnings;

use Digest::MD5 ();
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;
use MmgptAdapter;

use constant SESSIONS => 6;
use constant LARGE_RANK => 128;    # gives more than one piece of 1 MB

my $node = mmgpt_node('main', init => [ allows_streaming => 1 ]);
my ($case) = first_questions();
my $picture = quoted($case->{picture});

# SQL that imports an adapter of random numbers; options are those of adapter_files.
sub import_sql
{
	my ($name, %options) = @_;
	my ($tensors, $config) = adapter_files('demo/model', %options);

	return sprintf("SELECT mmgpt_adapter_import(%s, decode('%s', 'base64'), %s);",
		quoted($name), encode_base64($tensors, ''), quoted($config));
}

# What an adapter makes of the picture.
sub caption_sql
{
	my ($adapter) = @_;

	return "SELECT mmgpt_caption(img, 'brief', jsonb_build_object('adapter', '$adapter')) "
	  . "FROM pictures WHERE name = $picture";
}

# Run SQL as a role; gives status, output and errors.
sub as_role
{
	my ($role, $sql) = @_;

	return session_finish(session_start($node, 'postgres', $sql, user => $role));
}

# How often adapters were loaded, by the engine that runs now.
sub loaded
{
	return status($node)->{adapters_loaded};
}

$node->start;
load_pictures($node, 'postgres');
$node->safe_psql('postgres', 'CREATE ROLE one LOGIN; CREATE ROLE other LOGIN; GRANT SELECT ON pictures TO PUBLIC');

# a transaction's adapter is its own until it commits
my $importing = $node->background_psql('postgres');
$importing->query_safe('BEGIN');
$importing->query_safe(import_sql('mine', seed => 1));
my $mine = $importing->query_safe(caption_sql('mine'));
isnt($mine, $node->safe_psql('postgres', "SELECT mmgpt_caption(img) FROM pictures WHERE name = $picture"),
	'usable in its transaction');
like(($node->psql('postgres', caption_sql('mine')))[2], qr/adapter "mine" does not exist/, 'not there for others');
$importing->query_safe('ROLLBACK');
like(($node->psql('postgres', caption_sql('mine')))[2], qr/adapter "mine" does not exist/, 'gone after ROLLBACK');
is($node->safe_psql('postgres', 'SELECT count(*) FROM mmgpt_adapter_piece'), '0', 'with its file');
$importing->query_safe('BEGIN');
$importing->query_safe(import_sql('mine', seed => 1));
$importing->query_safe('COMMIT');
$importing->quit;
is($node->safe_psql('postgres', caption_sql('mine')), $mine, 'there after COMMIT');

# a large one comes in pieces and goes out as it came
{
	my ($tensors) = adapter_files('demo/model', seed => 2, rank => LARGE_RANK);

	$node->safe_psql('postgres', import_sql('large', seed => 2, rank => LARGE_RANK));
	cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM mmgpt_adapter_piece JOIN mmgpt_adapter ON id = adapter WHERE name = 'large'"),
		'>', 1, 'an adapter of several pieces');
	is($node->safe_psql('postgres', "SELECT md5(tensors) FROM mmgpt_adapter_export('large')"),
		Digest::MD5::md5_hex($tensors), 'comes out as it went in');
}
my $large = $node->safe_psql('postgres', caption_sql('large'));

# roles
{
	my ($status, $out, $err) = as_role('one', caption_sql('mine'));
	my $before = loaded();

	like($err, qr/ERROR:  42501: permission denied for adapter "mine"/, 'another role may not use it');
	$node->safe_psql('postgres', "SELECT mmgpt_adapter_grant('mine', 'one')");
	is((as_role('one', caption_sql('mine')))[1], $mine, 'before it is shared');
	is(loaded(), $before + 1, 'the role brings it itself');
	is((as_role('one', caption_sql('mine')))[1], $mine, 'the next session');
	is(loaded(), $before + 1, 'finds it');
	like((as_role('other', caption_sql('mine')))[2], qr/42501/, 'others still may not');
	$node->safe_psql('postgres', "SELECT mmgpt_adapter_revoke('mine', 'one')");
	like((as_role('one', caption_sql('mine')))[2], qr/42501/,
		'a grant that is taken back ends at once, though the engine still has the adapter');
}

# many sessions with three adapters, and none, while the engine is killed
{
	my @adapters = ('mine', 'large', '');
	my $start = postmaster_start($node);
	my (@expected, @sessions);

	for my $adapter (@adapters)
	{
		push @expected, $node->safe_psql('postgres',
			"SET mmgpt.adapter = '$adapter'; SELECT md5(string_agg(mmgpt_caption(img), '|' ORDER BY name)) FROM pictures");
	}
	for my $i (0 .. SESSIONS - 1)
	{
		push @sessions, session_start($node, 'postgres',
			"SELECT md5(string_agg(mmgpt_caption(img), '|' ORDER BY name)) FROM pictures, generate_series(1, 3) AS n GROUP BY n",
			settings => "-c mmgpt.adapter=$adapters[$i % @adapters]");
	}
	for my $kill (1 .. 2)
	{
		my $requests = status($node)->{done};
		my $engine = engine_of($node);

		# so many that nobody repeats a call any more, which a second loss would end
		wait_until(sub { return status($node)->{done} > $requests + 40
				|| !grep { $_->{run}->pumpable } @sessions });
		kill 'KILL', $engine;
		wait_until(sub { my ($now) = engines($node); return defined $now && $now != $engine });
	}
	for my $i (0 .. SESSIONS - 1)
	{
		my ($status, $out, $err) = session_finish($sessions[$i]);

		is($out, join("\n", ($expected[ $i % @adapters ]) x 3),
			"session $i has all answers of its adapter") or diag($err);
	}
	is(postmaster_start($node), $start, 'the server did not notice');
}

# cancelled, killed, dropped in the middle of sending: the table is locked while a backend reads it
{
	my $lock = $node->background_psql('postgres');
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $waiting = sub {
		return wait_until(
			sub {
				return $node->safe_psql('postgres',
					q(SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%mmgpt_caption%')) eq '1';
			});
	};

	$node->safe_psql('postgres', 'SELECT mmgpt_restart()');
	$lock->query_safe('BEGIN; LOCK mmgpt_adapter_piece');
	$session->query("SET statement_timeout = '200ms'");
	$session->query(caption_sql('large'));
	like($session->{stderr}, qr/statement timeout/, 'cancelled while it sends an adapter');
	$session->{stderr} = '';
	$session->query('RESET statement_timeout');
	is(status($node)->{waiting}, 0, 'the engine waits for nothing');
	$lock->query_safe('COMMIT');
	is($session->query(caption_sql('large')), $large, 'the session goes on');

	$node->safe_psql('postgres', 'SELECT mmgpt_restart()');
	$lock->query_safe('BEGIN; LOCK mmgpt_adapter_piece');
	my $asking = session_start($node, 'postgres', caption_sql('large'));
	ok($waiting->(), 'a backend is sending');
	my $engine = engine_of($node);
	kill 'KILL', $engine;
	$lock->query_safe('COMMIT');
	is((session_finish($asking))[1], $large, 'an engine that dies meanwhile is asked again');

	$node->safe_psql('postgres', 'SELECT mmgpt_restart()');
	$lock->query_safe('BEGIN; LOCK mmgpt_adapter_piece');
	$asking = session_start($node, 'postgres', caption_sql('large'));
	ok($waiting->(), 'a backend is sending');
	is($node->safe_psql('postgres', "SELECT mmgpt_generate('Hi, my name is Sam.') <> ''"), 't',
		'others are answered meanwhile');
	$node->safe_psql('postgres',
		q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%mmgpt_caption%'));
	like((session_finish($asking))[2], qr/terminating connection/, 'a backend that ends while it sends');
	$lock->query_safe('COMMIT');
	is($node->safe_psql('postgres', caption_sql('large')), $large, 'leaves the engine in order');
	$lock->quit;
	$session->quit;
}

# dump and restore: content, owner, grants, and the next number
{
	my $file = PostgreSQL::Test::Utils::tempdir() . '/dump';
	my $list = 'SELECT name, owner, shared_with, digest, created FROM mmgpt_adapters ORDER BY name';

	$node->safe_psql('postgres',
		"SELECT mmgpt_adapter_set_owner('mine', 'one'), mmgpt_adapter_grant('mine', 'other'), mmgpt_adapter_grant('large', 'public')");
	$node->command_ok([ 'pg_dump', '-Fc', '-f', $file, $node->connstr('postgres') ], 'pg_dump');
	$node->safe_psql('postgres', 'CREATE DATABASE restored');
	$node->command_ok(
		[ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $file ], 'pg_restore');
	is($node->safe_psql('restored', $list), $node->safe_psql('postgres', $list), 'the adapters are there');
	is($node->safe_psql('restored', caption_sql('mine')), $mine, 'and work');
	is( (session_finish(session_start($node, 'restored', caption_sql('mine'), user => 'other')))[1],
		$mine, 'for whom they were shared with');
	like(
		(session_finish(session_start($node, 'restored', caption_sql('none'), user => 'other')))[2],
		qr/42704/, 'others are not there');
	$node->safe_psql('restored', import_sql('new', seed => 4));
	is($node->safe_psql('restored', 'SELECT count(*) FROM mmgpt_adapters'), '3', 'new ones get new numbers');
	is( $node->safe_psql('restored',
		"SELECT count(*) FROM pg_policy WHERE polrelid IN ('mmgpt_adapter'::regclass, 'mmgpt_adapter_piece'::regclass)"),
		'2', 'with one policy for each table');

	# a role that is no superuser dumps what it may use
	my @dump = ('pg_dump', '-d', $node->connstr('postgres'), '-U', 'one', '-t', 'pictures', '-e', 'mmgpt');
	$node->command_fails_like(\@dump, qr/row-level security/, 'a plain role does not dump adapters of others unnoticed');
	$node->command_like([ @dump, '--enable-row-security' ], qr/\nCOPY public\.mmgpt_adapter [^\n]*\n\d+\tmine\t[^\n]*\n\d+\tlarge\t[^\n]*\n\\\.\n/,
		'but its own and those shared with it');
}

# a standby
{
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$node->backup('base');
	$standby->init_from_backup($node, 'base', has_streaming => 1);
	$standby->start;
	$node->safe_psql('postgres', import_sql('late', seed => 5));
	my $late = $node->safe_psql('postgres', caption_sql('late'));
	$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
	is($standby->safe_psql('postgres', caption_sql('mine')), $mine, 'a standby answers with an adapter of its backup');
	is($standby->safe_psql('postgres', caption_sql('late')), $late, 'and with one that came later');
	like(($standby->psql('postgres', import_sql('x', seed => 6)))[2],
		qr/cannot execute mmgpt_adapter_import\(\) in a read-only transaction/, 'it takes no new ones');
	$node->safe_psql('postgres', "SELECT mmgpt_adapter_drop('late')");
	$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
	like(($standby->psql('postgres', caption_sql('late')))[2], qr/does not exist/, 'what is dropped is dropped there too');
	$standby->stop;
}

$node->stop;
done_testing();
