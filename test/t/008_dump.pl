# What an administrator does with databases and clusters: dump and restore, other
# encodings, long paths, base backups, dropping and making the extension again.
use strict;
use warnings;

use Cwd ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

use constant LONG_PATH => 110;    # more than the address of a socket can hold

my $node = mmgpt_node('a_name_that_makes_the_path_of_the_data_directory_longer_than_what_the_address_of_a_socket_holds',
	init => [ allows_streaming => 1 ]);
my ($case) = first_questions();
my $question = "SELECT mmgpt_ask(img, " . quoted($case->{prompt}) . ") FROM pictures WHERE name = "
  . quoted($case->{picture});

$node->start;
cmp_ok(length(Cwd::realpath($node->data_dir)), '>', LONG_PATH,
	'the data directory has a long path');
load_pictures($node, 'postgres');
is($node->safe_psql('postgres', $question), $case->{text}, 'and the engine is reached in it');

# dump and restore
{
	my $file = PostgreSQL::Test::Utils::tempdir() . '/dump';

	$node->safe_psql('postgres',
		"CREATE VIEW captions AS SELECT name, mmgpt_caption(img) AS caption FROM pictures;
		CREATE TABLE answers (name text, answer text);
		CREATE INDEX ON answers (name)");
	$node->command_ok(
		[ 'pg_dump', '-Fc', '-f', $file, $node->connstr('postgres') ], 'pg_dump');
	$node->safe_psql('postgres', 'CREATE DATABASE restored');
	$node->command_ok(
		[ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $file ], 'pg_restore');
	is($node->safe_psql('restored', $question), $case->{text}, 'the restored database answers');
	is( $node->safe_psql('restored',
		'SELECT string_agg(caption, $$|$$ ORDER BY name) FROM captions'),
		$node->safe_psql('postgres',
			'SELECT string_agg(caption, $$|$$ ORDER BY name) FROM captions'),
		'its view gives the same captions');
	is( $node->safe_psql('restored', q(SELECT has_function_privilege('public', 'mmgpt_restart()', 'EXECUTE'))),
		'f', 'and rights are as they were');
}

# a database in another encoding
{
	my ($status, $out, $err);

	$node->safe_psql('postgres',
		"CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
	load_pictures($node, 'latin');
	is($node->safe_psql('latin', $question), $case->{text}, 'a LATIN1 database answers');
	is( $node->safe_psql('latin',
		"SET client_encoding = 'UTF8'; SELECT mmgpt_token_count(U&'caf\\00e9 na\\00efve')"),
		$node->safe_psql('postgres',
			"SET client_encoding = 'UTF8'; SELECT mmgpt_token_count(U&'caf\\00e9 na\\00efve')"),
		'a text counts the same tokens in both encodings');
	is( $node->safe_psql('latin',
		"SELECT mmgpt_chat_turn(NULL, NULL, chr(233), '{\"max_tokens\": 1}')->0->>'content' = chr(233)"),
		't', 'a letter beyond ASCII comes back as it went');
	($status, $out, $err) = $node->psql('latin',
		"SELECT mmgpt_ask(img, 'x', jsonb_build_object(chr(233), 1)) FROM pictures LIMIT 1");
	like($err, qr/option/, 'also in an error');

	$node->safe_psql('postgres',
		"CREATE DATABASE plain ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
	load_pictures($node, 'plain');
	is($node->safe_psql('plain', $question), $case->{text}, 'a SQL_ASCII database answers');
	($status, $out, $err) = $node->psql('plain', "SELECT mmgpt_token_count(E'\\xe9')");
	like($err, qr/ERROR/, 'a byte that is no UTF-8 is an error there');
	is($node->safe_psql('plain', $question), $case->{text}, 'and nothing is lost by it');
}

# a base backup
{
	my $path = $node->backup_dir . '/taken';
	my ($out, $err) = run_command(
		[ 'pg_basebackup', '-D', $path, '-d', $node->connstr('postgres'), '--checkpoint', 'fast',
			'--no-sync' ]);
	my $backup = PostgreSQL::Test::Cluster->new('backup');

	is($err, '', 'pg_basebackup has nothing to complain of');
	ok(!-e "$path/pg_stat_tmp/mmgpt.sock", 'the socket is not in it');
	is(log_count($node, qr/skipping special file/), 0, 'nor in the log');
	$backup->init_from_backup($node, 'taken');
	$backup->start;
	is($backup->safe_psql('postgres', $question), $case->{text}, 'the backup answers');
	isnt(engine_of($backup), engine_of($node), 'with an engine of its own');
	$backup->stop;
}

# the extension goes and comes, also in another schema
{
	my $engine = engine_of($node);

	$node->safe_psql('postgres', 'DROP EXTENSION mmgpt CASCADE');
	my ($status, $out, $err) = $node->psql('postgres', $question);
	like($err, qr/does not exist/, 'without the extension there are no functions');
	$node->safe_psql('postgres', 'CREATE SCHEMA vision; CREATE EXTENSION mmgpt SCHEMA vision');
	is($node->safe_psql('postgres', "SET search_path = public, vision; $question"), $case->{text},
		'in another schema');
	$node->safe_psql('postgres', 'ALTER EXTENSION mmgpt SET SCHEMA public');
	is($node->safe_psql('postgres', $question), $case->{text}, 'moved back');
	is(engine_of($node), $engine, 'all the time the same engine');
}

# a database can be dropped and copied while the supervisor is connected
{
	my ($status, $out, $err) = $node->psql('postgres', 'DROP DATABASE restored');

	is($err, '', 'the supervisor holds no database');
	($status, $out, $err) = $node->psql('postgres', 'CREATE DATABASE copy TEMPLATE latin');
	is($err, '', 'nor keeps one from being copied');
}

$node->stop;
done_testing();
