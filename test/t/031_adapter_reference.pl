# The golden adapter through SQL: the same answers as from the command line, whose logits are
# held against the original's (test/unit/test_golden.c).
use strict;
use warnings;

use Cwd ();
use JSON::PP ();
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;
use MmgptAdapter;

my $model = Cwd::getcwd() . '/test/golden/model-a';
my $engine = "$ENV{MMGPT_STAGE}$ENV{MMGPT_LIBRARIES}/mmgpt-engine";
my $node = mmgpt_node('main', conf => "mmgpt.model = '$model'\n");
my $directory = PostgreSQL::Test::Utils::tempdir();
my $tensors = slurp_file("$model/lora_forward.safetensors");
my $config = adapter_config(rank => 4, alpha => 8);
my $options = '{"max_tokens": 12}';
my $different = 0;

# The command line's answer to a question.
sub command_line
{
	my ($prompt, $picture, @adapter) = @_;
	my ($out, $err) = run_command(
		[
			$engine, 'generate', $model, '--prompt', $prompt, '--options', $options, @adapter,
			defined $picture ? ('--image', "test/golden/demo/pictures/$picture") : ()
		]);

	is($err, '', "command line: $prompt");
	return JSON::PP::decode_json($out)->{text};
}

append_to_file("$directory/adapter_model.safetensors", $tensors);
append_to_file("$directory/adapter_config.json", $config);

$node->start;
load_pictures($node, 'postgres');
$node->safe_psql('postgres', sprintf("SELECT mmgpt_adapter_import('golden', decode('%s', 'base64'), '%s')",
	encode_base64($tensors, ''), $config));
is($node->safe_psql('postgres', "SELECT rank, alpha, parameters, targets FROM mmgpt_adapters"),
	'4|8|24064|{q_proj,k_proj,v_proj,o_proj,to_q,to_kv,to_out,ff.1,ff.3}', 'described as it is');

for my $prompt ('What is in the picture?', 'Hello.', 'How many dogs are there, and where?')
{
	for my $picture ('00.png', '02.jpg', undef)
	{
		my $image = defined $picture ? "(SELECT img FROM pictures WHERE name = '$picture')" : 'NULL';
		my $ask = sub {
			my $text = $node->safe_psql('postgres', "SET mmgpt.adapter = '$_[0]'; "
				. 'SELECT mmgpt_generate(' . quoted($prompt) . ", $image, '$options')");

			utf8::decode($text);
			return $text;
		};
		my $adapted = command_line($prompt, $picture, '--adapter', $directory);

		is($ask->('golden'), $adapted, 'SQL gives the same with the adapter');
		is($ask->(''), my $plain = command_line($prompt, $picture), 'and without');
		$different++ if $adapted ne $plain;
	}
}
cmp_ok($different, '>', 6, 'which are not the same answers');

$node->stop;
done_testing();
