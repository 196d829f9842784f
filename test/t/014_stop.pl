# The server stops as it is told, in every mode, whatever its engine does, and takes the engine
# along; started again it has one engine, with the server or with the first call.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Mmgpt;

my ($case) = first_questions();

for my $preload (1, 0)
{
	my $node = mmgpt_node("preload_$preload", preload => $preload);
	my $how = $preload ? 'preloaded' : 'on demand';
	my (%seen, $postmaster, $session, $engine);

	$node->start;
	load_pictures($node, 'postgres');

	# stops with an engine at rest, and with one that does not move; a smart stop: below
	for my $moves (1, 0)
	{
		for my $mode ('fast', 'immediate')
		{
			is_answered($node, $case, "$how: an answer");
			hold(engine_of($node)) unless $moves;
			$node->stop($mode);
			ok(wait_for_no_engine($node),
				"none is left after a stop, $mode" . ($moves ? '' : ', of one that stood still'));
			$node->start;
		}
	}

	# restarts
	for my $turn (1 .. 3)
	{
		$node->restart;
		is(scalar engines($node), 0, "$how: restart $turn waits for a first call") unless $preload;
		is_answered($node, $case, "$how: restart $turn");
		$engine = engine_of($node);
		ok(!$seen{$engine}++, 'one engine, a new one');
	}

	# a smart stop waits for sessions, and they are served as long as it waits
	$node->stop;
	$postmaster = postmaster_start_by_hand($node);
	$session = $node->background_psql('postgres');
	$session->query_safe('SELECT 1');
	$postmaster->signal('TERM');
	ok( wait_until(
			sub {
				my ($status, $out, $err) = session_run($node, 'SELECT 1');

				return $err =~ /the database system is shutting down/;
			}),
		"$how: a smart stop lets nobody in");
	is($session->query_safe(question($case)), $case->{text}, 'but who is in is answered');
	$engine = engine_of($node);
	kill 'KILL', $engine;
	ok(wait_until(sub { !grep { $_ == $engine } engines($node) }), 'when the engine is killed');
	is($session->query_safe(question($case)), $case->{text}, 'by another one as well');
	$session->quit;
	$postmaster->finish;
	is($postmaster->result(0), 0, 'and with the last session the server ends');
	ok(wait_for_no_process($node), 'and all that belongs to it');
}

done_testing();
