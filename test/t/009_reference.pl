# The dialogues of the reference, asked through SQL from the pictures' files: every
# answer that the original code was sure of is the same here, in every round. The original
# computed in f32; the model's file is bf16, so by default the engine does, and can be held to
# clear answers only.
use strict;
use warnings;

use JSON::PP ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

# between the original's best token and the next, by format
my %least_margin = (f32 => 0.01, bf16 => 0.25, q8 => 0.25, q4 => 1);

my $node = mmgpt_node('main', conf => "mmgpt.weight_format = 'f32'");
my $cases = JSON::PP::decode_json(slurp_file('test/golden/demo/reference.json'))->{cases};
my $json = JSON::PP->new->utf8;

# The history of a case as mmgpt_chat takes it: a literal of SQL.
sub history_of
{
	my ($case) = @_;
	my @turns;

	for my $round (@{ $case->{history} })
	{
		push @turns, { role => 'user', content => $round->[0] };
		push @turns, { role => 'assistant', content => $round->[1] };
	}
	return quoted($json->encode(\@turns));
}

# The picture of a case: an expression of SQL.
sub picture_of
{
	my ($case) = @_;

	return 'NULL' unless defined $case->{picture};
	return '(SELECT img FROM pictures WHERE name = ' . quoted($case->{picture}) . ')';
}

$node->start;
load_pictures($node, 'postgres');
for my $format ('f32', 'bf16', 'q8', 'q4')
{
	if ($format ne 'f32')
	{
		$node->append_conf('postgresql.conf',
			'mmgpt.weight_format = ' . ($format eq 'bf16' ? 'stored' : $format));
		$node->restart;
	}
	for my $case (@$cases)
	{
		my $round = @{ $case->{history} } + 1;
		my $name = ($case->{picture} // 'no picture') . ", $format, round $round: $case->{prompt}";

		next unless $case->{min_top1_top2_margin} > $least_margin{$format};
		is( $node->safe_psql('postgres',
				sprintf('SELECT mmgpt_chat(%s, %s, %s)', picture_of($case), history_of($case),
					quoted($case->{prompt}))),
			$case->{text}, $name);
	}
	like($node->safe_psql('postgres', 'SELECT mmgpt_version()'), qr/, $format\)$/,
		"the version tells the format $format");
	is($node->safe_psql('postgres', "SELECT mmgpt_status() ->> 'weight_format'"), $format,
		'and so does the status');
}

# a dialogue that is led here, each turn appended to the history
{
	my @dialogue = grep { ($_->{picture} // '') eq $cases->[0]{picture} } @$cases;
	my $history = '[]';

	for my $case (@dialogue)
	{
		$history = $node->safe_psql('postgres',
			sprintf('SELECT mmgpt_chat_turn(%s, %s, %s)', picture_of($case), quoted($history),
				quoted($case->{prompt})));
	}
	is_deeply(
		$json->decode($history),
		[ map { ({ role => 'user', content => $_->{prompt} }, { role => 'assistant',
			content => $_->{text} }) } @dialogue ],
		'mmgpt_chat_turn leads a dialogue');
}

$node->stop;
done_testing();
