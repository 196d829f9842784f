# MmgptJobs.pm - what the tests of fine-tuning jobs have in common.
#
# The table examples has 16 rows with pictures and 8 without. A job of few micro steps takes a
# second or two, the first of which encodes the pictures.
package MmgptJobs;

use strict;
use warnings;

use Exporter 'import';
use Test::More;

use Mmgpt;

our @EXPORT = qw(load_examples finetune job job_state wait_for_job wait_for_step wait_for_state
  job_error adapter_digest job_leftovers);

# Make the table of examples; load_pictures has been called.
sub load_examples
{
	my ($node, $database) = @_;

	$node->safe_psql($database // 'postgres', q(
		CREATE TABLE examples (id int PRIMARY KEY, image bytea, instruction text, response text);
		INSERT INTO examples SELECT row_number() OVER (ORDER BY name), img, 'Which one is it?',
			'Number ' || row_number() OVER (ORDER BY name) FROM pictures;
		INSERT INTO examples SELECT 100 + n, NULL, 'Say ' || n, 'I say ' || n FROM generate_series(1, 8) n;
		GRANT SELECT ON examples TO PUBLIC;));
	return;
}

# Begin a job and give its number. options is JSON.
sub finetune
{
	my ($node, $adapter, $options, $database) = @_;

	return $node->safe_psql($database // 'postgres',
		sprintf('SELECT mmgpt_finetune(%s, %s, %s)', quoted('examples'), quoted($adapter),
			quoted($options // '{}')));
}

# One column of the view of jobs; empty while the server does not let us in.
sub job
{
	my ($node, $job, $column, $database) = @_;
	my ($status, $out) = eval {
		$node->psql($database // 'postgres', "SELECT $column FROM mmgpt_jobs WHERE id = $job");
	};

	return defined $status && $status == 0 ? $out : '';
}

sub job_state
{
	my ($node, $job, $database) = @_;

	return job($node, $job, 'state', $database);
}

# Wait until a job is in a state that a pattern describes; gives the state.
sub wait_for_state
{
	my ($node, $job, $pattern, $database) = @_;

	return wait_until(
		sub {
			my $state = job_state($node, $job, $database);

			return $state =~ /^(?:$pattern)$/ ? $state : undef;
		}) // 'not ' . $pattern . ' but ' . job_state($node, $job, $database);
}

# Wait until a job is over; gives its state.
sub wait_for_job
{
	my ($node, $job, $database) = @_;

	return wait_for_state($node, $job, 'done|failed|cancelled', $database);
}

# Wait until a job has done so many micro steps and has a checkpoint; true when that came.
sub wait_for_step
{
	my ($node, $job, $step) = @_;

	return wait_until(
		sub {
			my ($status, $out) = $node->psql('postgres',
				"SELECT 1 FROM mmgpt_job j WHERE id = $job AND step >= $step AND "
				  . "EXISTS (SELECT FROM mmgpt_job_checkpoint WHERE job = j.id)");

			return $status == 0 && $out eq '1';
		});
}

sub job_error
{
	my ($node, $job, $database) = @_;

	return job($node, $job, 'error', $database);
}

# The digest of an adapter, empty where there is none.
sub adapter_digest
{
	my ($node, $adapter) = @_;

	return $node->safe_psql('postgres',
		'SELECT digest FROM mmgpt_adapters WHERE name = ' . quoted($adapter));
}

# How many rows, pictures and pieces of checkpoints there are of a job.
sub job_leftovers
{
	my ($node, $job) = @_;

	return $node->safe_psql('postgres',
		"SELECT (SELECT count(*) FROM mmgpt_job_row WHERE job = $job) + "
		  . "(SELECT count(*) FROM mmgpt_job_picture WHERE job = $job) + "
		  . "(SELECT count(*) FROM mmgpt_job_checkpoint WHERE job = $job)");
}

1;
