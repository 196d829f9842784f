# MmgptAdapter.pm - LoRA adapters with random numbers for a model, in PEFT's files.
#
# As a module: adapter_files(MODEL, seed => 1, ...) gives the bytes of an
# adapter_model.safetensors and the text of an adapter_config.json. As a program, for psql:
#
#	perl test/t/MmgptAdapter.pm MODEL [seed=1] [zero=1] ...
#
# prints the first in base64.
package MmgptAdapter;

use strict;
use warnings;

use Exporter 'import';
use JSON::PP ();
use MIME::Base64 qw(encode_base64);

our @EXPORT = qw(adapter_files adapter_config);

# Outputs, inputs and path of each target that is made here, by the config of a model.
sub target_shapes
{
	my ($config) = @_;
	my $hidden = $config->{llama}{hidden_size};
	my $cross = $config->{cross_attention};
	my $inner = $cross->{heads} * $cross->{dim_head};

	return (
		q_proj => [ $hidden, $hidden, 'decoder_layer.self_attn.q_proj' ],
		v_proj => [ $hidden, $hidden, 'decoder_layer.self_attn.v_proj' ],
		to_kv => [ 2 * $inner, $config->{vision}{width}, 'gated_cross_attn_layer.attn.to_kv' ]);
}

# Little-endian floats around zero.
sub numbers
{
	my ($count, $largest) = @_;

	return pack('f<*', map { $largest * (2 * rand() - 1) } 1 .. $count);
}

# adapter_config.json. Options: rank, alpha, targets.
sub adapter_config
{
	my (%options) = @_;

	return JSON::PP->new->canonical->encode(
		{
			peft_type => 'LORA', bias => 'none', r => $options{rank} // 2,
			lora_alpha => $options{alpha} // 4,
			target_modules => $options{targets} // [ 'q_proj', 'v_proj', 'to_kv' ]
		});
}

# Both files. Options: seed, rank, alpha, targets (names), zero (B is zero: nothing changes),
# largest (of the numbers in B).
sub adapter_files
{
	my ($model, %options) = @_;
	my $file;

	open($file, '<', "$model/config.json") or die "could not read $model/config.json: $!";
	my $config = JSON::PP::decode_json(do { local $/; <$file> });
	my %shapes = target_shapes($config);
	my $rank = $options{rank} // 2;
	my (%header, $text);
	my $data = '';

	srand($options{seed} // 1);
	for my $layer (0 .. $config->{llama}{num_hidden_layers} - 1)
	{
		for my $target (@{ $options{targets} // [ 'q_proj', 'v_proj', 'to_kv' ] })
		{
			my ($outputs, $inputs, $path) = @{ $shapes{$target} };
			my %pair = (
				A => [ $rank, $inputs, 1 ],
				B => [ $outputs, $rank, $options{zero} ? 0 : $options{largest} // 1 ]);

			next if $path =~ /gated/ && ($layer + 1) % $config->{cross_attention}{every_n_layers};
			for my $matrix ('A', 'B')
			{
				my ($rows, $columns, $largest) = @{ $pair{$matrix} };
				my $bytes = numbers($rows * $columns, $largest);

				$header{"base_model.model.model.layers.$layer.$path.lora_$matrix.weight"} = {
					dtype => 'F32', shape => [ $rows, $columns ],
					data_offsets => [ length($data), length($data) + length($bytes) ]
				};
				$data .= $bytes;
			}
		}
	}
	$text = JSON::PP->new->canonical->encode(\%header);
	$text .= ' ' x (-length($text) % 8);
	return (pack('Q<', length($text)) . $text . $data, adapter_config(%options));
}

unless (caller)
{
	my ($model, @options) = @ARGV;
	my ($tensors) = adapter_files($model, map { split(/=/, $_, 2) } @options);

	print encode_base64($tensors, '');
}

1;
