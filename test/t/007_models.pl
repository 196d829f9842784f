# A model that cannot be loaded never keeps the database from starting nor callers
# waiting: calls say what is wrong, and work after the repair.
use strict;
use warnings;

use File::Copy qw(copy);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

my ($case) = first_questions();
my $question = "SELECT mmgpt_ask(img, " . quoted($case->{prompt}) . ") FROM pictures WHERE name = "
  . quoted($case->{picture});
my $tensor;

# Each damage: what it is called, code that does it, patterns that the error must match.
my @damages = (
	[
		'no directory',
		sub { my ($model) = @_; rename $model, "$model.away" or die $! },
		[qr/model/]
	],
	[
		'no config.json',
		sub { my ($model) = @_; unlink "$model/config.json" or die $! },
		[qr/config\.json/]
	],
	[
		'a config.json that is no JSON',
		sub { my ($model) = @_; append_to_file("$model/config.json", '}') },
		[qr/config\.json/]
	],
	[
		'no tokenizer',
		sub { my ($model) = @_; unlink "$model/tokenizer.model" or die $! },
		[qr/tokenizer\.model/]
	],
	[
		'no weights',
		sub { my ($model) = @_; unlink "$model/model.safetensors" or die $! },
		[qr/safetensors/]
	],
	[
		'a missing tensor',
		sub {
			my ($model) = @_;

			edit_safetensors($model, sub { delete $_[0]{$tensor} });
		},
		# the name has more than one spelling, and the error may give another one
		[qr/tensor "[^"]*layers\.0\.[^"]*self_attn\.q_proj\.weight" is missing.*safetensors/]
	],
	[
		'a wrong shape',
		sub {
			my ($model) = @_;

			edit_safetensors($model, sub {
					my $shape = $_[0]{$tensor}{shape};

					# the same number of elements, so that only the shape is wrong
					$_[0]{$tensor}{shape} = [ $shape->[0] * 2, $shape->[1] / 2 ];
				});
		},
		[ sub { qr/\Q$tensor\E/ }, qr/shape/, qr/model\.safetensors/ ]
	],
	[
		'offsets beyond the file',
		sub {
			my ($model) = @_;

			edit_safetensors($model, sub { $_ += 1 << 40 for @{ $_[0]{$tensor}{data_offsets} } });
		},
		[qr/model\.safetensors/]
	],
	[
		'a truncated file',
		sub { my ($model) = @_; truncate("$model/model.safetensors", 3_000_000) or die $! },
		[qr/model\.safetensors/]
	],
	[
		'an empty file',
		sub { my ($model) = @_; truncate("$model/model.safetensors", 0) or die $! },
		[qr/model\.safetensors/]
	]);

my $model = copy_model();
my $node = mmgpt_node('main', conf => "mmgpt.model = '$model'\n");

# Find a matrix of the decoder to damage.
edit_safetensors($model, sub {
		($tensor) = grep { /self_attn\.q_proj\.weight$/ } sort keys %{ $_[0] };
	});
ok(defined $tensor, 'the model has a tensor to damage');

$node->start;
load_pictures($node, 'postgres');
is($node->safe_psql('postgres', $question), $case->{text}, 'a model of one\'s own answers');

for my $damage (@damages)
{
	my ($name, $break, $patterns) = @$damage;
	my $whole = copy_model();
	my ($status, $out, $err, $engine);

	$break->($model);
	$node->restart;
	ok(1, "$name: the server starts");
	($status, $out, $err) = $node->psql('postgres', $question,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($err, qr/ERROR:  55000: /, 'a call is an error at once');
	for my $pattern (@$patterns)
	{
		like($err, ref $pattern eq 'CODE' ? $pattern->() : $pattern, 'that says what is wrong');
	}
	note($err);
	is($node->safe_psql('postgres',
		'SELECT mmgpt_status() IS NOT NULL, mmgpt_version() IS NOT NULL'),
		't|t', 'status and version are told');
	is($node->safe_psql('postgres',
			"SELECT mmgpt_image_info(img)->>'format' FROM pictures WHERE name = '00.png'"),
		'png', 'what needs no model works');
	$engine = engine_of($node);
	ok(defined $engine, 'the engine stays up');

	system_or_bail('rm', '-rf', $model, "$model.away");
	system_or_bail('cp', '-R', $whole, $model);
	$node->safe_psql('postgres', 'SELECT mmgpt_restart()');
	is($node->safe_psql('postgres', $question), $case->{text},
		'mmgpt_restart() after the repair: answered');
}

# the setting changes while the server runs
{
	my ($status, $out, $err);

	$node->safe_psql('postgres', "ALTER SYSTEM SET mmgpt.model = '/nowhere/at/all'");
	$node->reload;
	ok( wait_until(
			sub {
				($status, $out, $err) = $node->psql('postgres', $question);
				return $err =~ m{/nowhere/at/all};
			}),
		'a reload brings another model, here one that is not there');
	like($err, qr/mmgpt\.model/, 'and the error names the setting');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET mmgpt.model');
	$node->reload;
	ok( wait_until(
			sub {
				($status, $out, $err) = $node->psql('postgres', $question);
				return $out eq $case->{text};
			}),
		'and another reload the first one');
}

# a setting that the engine refuses is told to the caller in the engine's words
{
	my ($status, $out, $err);

	$node->safe_psql('postgres', "ALTER SYSTEM SET mmgpt.device = 'cuda:99'");
	$node->restart;
	($status, $out, $err) = $node->psql('postgres', $question);
	like($err, qr/no CUDA (library|device)/, 'a device that the installation can not serve: told so');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET mmgpt.device');
	$node->restart;
	is($node->safe_psql('postgres', $question), $case->{text}, 'and answered without it');
}

$node->stop;
done_testing();
