# Fine-tuning in databases whose encoding is not UTF8.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;
use MmgptJobs;

use constant SMALL => '{"micro_steps": 3, "r": 2, "target_modules": ["q_proj"]}';

my $node = mmgpt_node('main');

# Make a database of an encoding, and run SQL in it.
sub make_database
{
	my ($encoding, $sql) = @_;

	$node->safe_psql('postgres',
		"CREATE DATABASE $encoding ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
	$node->safe_psql($encoding, "SET client_encoding = 'SQL_ASCII'; CREATE EXTENSION mmgpt; $sql");
	return;
}

$node->start;

# the same rows in UTF8 and LATIN1 are the same to the model
make_database('utf8', q(
	CREATE TABLE examples (id int PRIMARY KEY, instruction text, response text);
	INSERT INTO examples SELECT n, U&'O\00F9 est le caf\00E9 ' || n, U&'L\00E0, \00E0 c\00F4t\00E9' FROM generate_series(1, 8) n;));
make_database('latin1', q(
	CREATE TABLE examples (id int PRIMARY KEY, instruction text, response text, conversation jsonb);
	INSERT INTO examples SELECT n, U&'O\00F9 est le caf\00E9 ' || n, U&'L\00E0, \00E0 c\00F4t\00E9' FROM generate_series(1, 8) n;));
{
	my @digests;

	for my $database ('utf8', 'latin1')
	{
		my $job = finetune($node, 'words', SMALL, $database);

		is(wait_for_job($node, $job, $database), 'done', "a job in $database")
		  or diag(job_error($node, $job, $database));
		push @digests, $node->safe_psql($database, 'SELECT digest FROM mmgpt_adapters');
	}
	is($digests[0], $digests[1], 'the same texts make the same adapter, whatever their encoding');
}

# any bytes are text in SQL_ASCII; those that no model knows are a row that can't be used
make_database('sql_ascii', q(
	CREATE TABLE examples (id int PRIMARY KEY, instruction text, response text);
	INSERT INTO examples VALUES (1, 'Say 1', 'one'), (2, E'Say \351', 'two'), (3, 'Say 3', E'caf\303\251');));
{
	my $job = finetune($node, 'bytes', SMALL, 'sql_ascii');

	is(wait_for_job($node, $job, 'sql_ascii'), 'done', 'a job in SQL_ASCII')
	  or diag(job_error($node, $job, 'sql_ascii'));
	is($node->safe_psql('sql_ascii', 'SELECT key, reason FROM mmgpt_job_unusable_rows'),
		'2|a text is not valid in encoding UTF8', 'leaves out rows that are not UTF-8');
}

$node->stop;
done_testing();
