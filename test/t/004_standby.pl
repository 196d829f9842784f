# A hot standby answers, with an engine of its own, and goes on after promotion.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

my $primary = mmgpt_node('primary', init => [ allows_streaming => 1 ]);
my ($case) = first_questions();
my $question = "SELECT mmgpt_ask(img, " . quoted($case->{prompt}) . ") FROM pictures WHERE name = "
  . quoted($case->{picture});

$primary->start;
$primary->backup('base');
for my $preload (1, 0)
{
	my $standby = PostgreSQL::Test::Cluster->new("standby_$preload");
	my ($engine, $supervisor);

	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	$standby->append_conf('postgresql.conf',
		"shared_preload_libraries = '" . ($preload ? 'mmgpt' : '') . "'");
	$standby->start;
	load_pictures($primary, 'postgres') if $preload;
	$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
	is($standby->safe_psql('postgres', 'SELECT pg_is_in_recovery()'), 't', 'a hot standby');
	is(scalar engines($standby), 0, 'without preloading it has no engine') unless $preload;
	is($standby->safe_psql('postgres', $question), $case->{text},
		$preload ? 'answers' : 'until it is asked, and answers');
	is(scalar engines($standby), 1, 'with one engine');
	is($standby->safe_psql('postgres',
		"SET default_transaction_read_only = on; SELECT mmgpt_status() IS NOT NULL"),
		't', 'and tells its status');
	$engine = engine_of($standby);
	isnt($engine, engine_of($primary), 'its own, not that of the primary');
	kill 'KILL', $engine;
	is($standby->safe_psql('postgres', $question), $case->{text}, 'which is replaced when killed');
	isnt(engine_of($standby), $engine, 'by another one');
	$supervisor = supervisor_of($standby);
	$standby->promote;
	is($standby->safe_psql('postgres', $question), $case->{text}, 'a promoted standby answers');
	is(supervisor_of($standby), $supervisor, 'with the supervisor that it had');
	$standby->safe_psql('postgres', 'CREATE TABLE changed (); SELECT mmgpt_restart()');
	is($standby->safe_psql('postgres', $question), $case->{text}, 'and with a new engine');
	$standby->stop;
	ok(wait_for_no_engine($standby), 'no engine is left of it');
}
is($primary->safe_psql('postgres', $question), $case->{text}, 'the primary answers');
$primary->stop;

done_testing();
