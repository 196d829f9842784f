# Who may do what: asking is everybody's, administering is the superuser's.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

my $node = mmgpt_node('main');
my ($case) = first_questions();
my $ask = "mmgpt_ask(img, " . quoted($case->{prompt}) . ")";
my $where = "WHERE name = " . quoted($case->{picture});

# Run SQL as a role; gives status, output and errors.
sub as_role
{
	my ($role, $sql) = @_;

	return session_finish(session_start($node, 'postgres', $sql, user => $role));
}

# SQL must fail for the role with this SQLSTATE.
sub refused
{
	my ($role, $sql, $state, $name) = @_;
	my ($status, $out, $err) = as_role($role, $sql);
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return like($err, qr/ERROR:  $state: /, $name);
}

$node->start;
load_pictures($node, 'postgres');
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE plain LOGIN;
CREATE ROLE team NOLOGIN;
CREATE ROLE member LOGIN;
GRANT team TO member;
GRANT SELECT ON pictures TO plain;
CREATE TABLE secret AS SELECT * FROM pictures;
GRANT SELECT ON secret TO team;
SQL
$node->safe_psql('postgres', <<"SQL");
CREATE FUNCTION answer_for_all(wanted text) RETURNS text LANGUAGE sql SECURITY DEFINER
AS \$\$ SELECT $ask FROM secret WHERE name = wanted \$\$;
SQL

is((as_role('plain', "SELECT $ask FROM pictures $where"))[1], $case->{text}, 'a plain role asks');
refused('plain', "SELECT $ask FROM secret $where", '42501', 'about tables that it may read');
is((as_role('plain', "SELECT answer_for_all(" . quoted($case->{picture}) . ")"))[1],
	$case->{text}, 'or through a function of somebody who may');
is((as_role('member', "SET ROLE team; SELECT $ask FROM secret $where"))[1],
	$case->{text}, 'a role that cannot log in asks');
is((as_role('plain', 'SELECT mmgpt_status() IS NOT NULL, mmgpt_version() IS NOT NULL'))[1],
	't|t', 'status and version are for all');
is((as_role('plain', q(SELECT mmgpt_status() ? 'model', mmgpt_status() ? 'state')))[1],
	'f|t', 'but where the model lies is told only to');
is($node->safe_psql('postgres', q(SELECT mmgpt_status() ? 'model')), 't', 'those who may see the setting');

{
	my $engine = engine_of($node);

	refused('plain', 'SELECT mmgpt_restart()', '42501', 'mmgpt_restart is not for a plain role');
	is(engine_of($node), $engine, 'and did not happen');
	$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION mmgpt_restart() TO team');
	is((as_role('member', 'SELECT mmgpt_restart()'))[0], 0, 'it can be granted');
	ok(wait_until(sub { my ($now) = engines($node); defined $now && $now != $engine }),
		'and happens');
}

# settings
for my $setting ('model', 'device', 'threads', 'weight_format', 'instruction_set', 'memory_limit')
{
	my $value = $setting eq 'model' ? '/etc' : $setting eq 'device' ? 'cpu' : $setting eq 'weight_format' ? 'f32'
	  : $setting eq 'instruction_set' ? 'portable' : '1';

	refused('plain', "SELECT mmgpt_version(); SET mmgpt.$setting = '$value'", '(?:55P02|42501)',
		"a plain role does not set mmgpt.$setting");
	my ($status, $out, $err) = $node->psql('postgres',
		"SELECT mmgpt_version(); SET mmgpt.$setting = '$value'");
	like($err, qr/cannot be changed now/, 'neither does a superuser in a session');
	refused('plain', "ALTER SYSTEM SET mmgpt.$setting = '$value'", '42501',
		'nor a plain role for the server');
	refused('plain', "ALTER ROLE plain SET mmgpt.$setting = '$value'", '(?:55P02|42501)',
		'nor for itself');
}
for my $setting ('max_image_pixels', 'max_request_bytes')
{
	refused('plain', "SET mmgpt.$setting = 100000", '42501',
		"a plain role does not set mmgpt.$setting");
	is(($node->psql('postgres', "SET mmgpt.$setting = 100000"))[0], 0, 'a superuser does');
}
for my $setting ('max_tokens = 7', 'temperature = 0.5', 'top_k = 5', 'top_p = 0.9', "seed = '3'",
	'num_beams = 1')
{
	is((as_role('plain', "SET mmgpt.$setting"))[0], 0, "anybody sets mmgpt.$setting");
}
refused('plain', 'SET mmgpt.max_tokens = 0', '22023', 'within its range');
refused('plain', 'SET mmgpt.maxtokens = 7', '42602', 'and with its right name');
refused('plain', 'SHOW mmgpt.model', '42501', 'a plain role does not see where the model lies');

# a placeholder that was set before the library came has no effect
{
	my $other = mmgpt_node('other', preload => 0);
	my ($status, $out, $err);

	$other->start;
	load_pictures($other, 'postgres');
	$other->safe_psql('postgres', 'CREATE ROLE plain LOGIN; GRANT SELECT ON pictures TO plain');
	($status, $out, $err) = session_finish(
		session_start($other, 'postgres',
			"SET mmgpt.model = '/etc'; SELECT $ask FROM pictures $where",
			user => 'plain'));
	is($out, $case->{text}, 'a setting made before the library was loaded does not count');
	$other->stop;
}

$node->stop;
done_testing();
