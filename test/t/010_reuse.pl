# A picture asked about again is not encoded again, and a common beginning not computed again, except
# for another role or database.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

my $node = mmgpt_node('main');
my ($case) = first_questions();
my $picture = quoted($case->{picture});

# Images encoded and found by what a role asks in a database.
sub images
{
	my ($role, $database, $sql) = @_;
	my $before = status($node);
	my ($code, $out, $err) = session_finish(session_start($node, $database, $sql, user => $role));
	my $after = status($node);

	is($err, '', "$role asks in $database");
	return join(' ', map { $after->{$_} - $before->{$_} } qw(images_encoded images_found));
}

$node->start;
$node->safe_psql('postgres',
	'CREATE ROLE one LOGIN; CREATE ROLE other LOGIN; CREATE ROLE third LOGIN; CREATE DATABASE second');
for my $database ('postgres', 'second')
{
	load_pictures($node, $database);
	$node->safe_psql($database, 'GRANT SELECT ON pictures TO PUBLIC');
}

my $ask = "SELECT mmgpt_ask(img, 'Describe the image.') FROM pictures WHERE name = $picture";
my $count = "SELECT mmgpt_count(img, 'dogs') FROM pictures WHERE name = $picture";

is(images('one', 'postgres', $ask), '1 0', 'the first question encodes the picture');
is(images('one', 'postgres', $count), '0 1', 'the second one finds it');
is(images('one', 'postgres', "$ask; $count; $ask"), '0 3', 'so do further ones');
is(images('other', 'postgres', $ask), '1 0', 'another role finds nothing');
is(images('other', 'postgres', $count), '0 1', 'but its own');
is(images('one', 'second', $ask), '1 0', 'nor does the same role in another database');
is(images('one', 'postgres', 'SELECT count(mmgpt_ask(img, \'Describe the image.\')) FROM pictures'),
	'15 1', 'a table of 16 pictures, of which one is known');

# prompt tokens reused by what a role asks, on a fresh engine
sub reused
{
	my ($role, $sql) = @_;
	my $before = status($node);

	is((session_finish(session_start($node, 'postgres', $sql, user => $role)))[2], '', "$role asks");
	return status($node)->{prompt_tokens_reused} - $before->{prompt_tokens_reused};
}

$node->safe_psql('postgres', 'SELECT mmgpt_restart()');
is(reused('one', $ask), 0, 'nothing to begin with');
my $again = reused('one', $count);
cmp_ok($again, '>', 20, 'another question begins with template and picture');
is(reused('other', $count), 0, 'not for another role');
cmp_ok(reused('one', "SELECT mmgpt_chat(img, history, 'Where is it?') FROM pictures, "
	  . "mmgpt_chat_turn(img, NULL, 'Describe the image.') AS history WHERE name = $picture"),
	'>', 2 * $again, 'a further round begins with the whole last one');

# labels of a picture that was asked about: nothing is encoded, and only what differs is computed
{
	my $labels = 'ARRAY[' . join(', ', map { quoted("thing $_") } 1 .. 50) . ']';
	my $one = "SELECT mmgpt_classify(img, $labels) FROM pictures WHERE name = $picture";
	my $all = "SELECT mmgpt_classify_multi(img, $labels) FROM pictures WHERE name = $picture";

	is(images('one', 'postgres', "$one; $all"), '0 2', 'classification finds the picture');
	for my $ask ($one, $all)
	{
		my $before = status($node);
		my $after;

		cmp_ok(reused('one', $ask), '>', $again, 'and begins with what was computed');
		$after = status($node);
		# every label has tokens of its own, and they are computed together
		cmp_ok($after->{prompt_tokens_computed} - $before->{prompt_tokens_computed}, '>=', 50,
			'the labels are computed');
		cmp_ok($after->{rows} - $before->{rows}, '>=',
			8 * ($after->{steps} - $before->{steps}), 'many in each step');
		is(reused('third', $ask), 0, 'another role begins anew') if $ask eq $one;
	}
}

$node->stop;
done_testing();
