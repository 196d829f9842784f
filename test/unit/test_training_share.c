/*
 * test_training_share.c - who has the next turn, a training or the requests, under a clock that the
 * test itself moves: no time is measured.
 */
#include "training_share.h"
#include "unit.h"

#define MILLISECONDS UINT64_C(1000000)
#define SECONDS (1000 * MILLISECONDS)

/* How long both computed so far. */
typedef struct Turns
{
	TrainingShare share;
	uint64_t	training_ns;
	uint64_t	requests_ns;
} Turns;

/* One turn of the model's thread; wanted: requests have work. Returns whether they had it. */
static bool
turn(Turns *turns, bool wanted, uint64_t slice_ns, uint64_t step_ns)
{
	if (wanted && share_requests_first(&turns->share))
	{
		share_count_requests(&turns->share, step_ns);
		turns->requests_ns += step_ns;
		return true;
	}
	share_count_training(&turns->share, slice_ns);
	turns->training_ns += slice_ns;
	return false;
}

/* Those who ask without pause leave the training its share, however long slices and steps are. */
UNIT_TEST(without_pause_both_get_their_share)
{
	static const int percents[] = {1, 25, 50, 90, 99};
	static const uint64_t lengths[][2] = {
		{5 * MILLISECONDS, 5 * MILLISECONDS},
		{MILLISECONDS / 10, 30 * MILLISECONDS},
		{40 * MILLISECONDS, 2 * MILLISECONDS},
		{300 * MILLISECONDS, 4 * SECONDS},
	};

	for (size_t i = 0; i < sizeof(percents) / sizeof(percents[0]); i++)
		for (size_t j = 0; j < sizeof(lengths) / sizeof(lengths[0]); j++)
		{
			Turns		turns = {.training_ns = 0};
			double		both;

			share_begin(&turns.share, percents[i]);
			while (turns.training_ns + turns.requests_ns < 3600 * SECONDS)
				turn(&turns, true, lengths[j][0], lengths[j][1]);
			both = (double) (turns.training_ns + turns.requests_ns);
			UNIT_NEAR((double) turns.training_ns / both, percents[i] / 100.0, 0.01);
		}
}

/* A tenth of a second every second: answered without a slice in between. */
UNIT_TEST(now_and_then_requests_go_first)
{
	Turns		turns = {.training_ns = 0};

	share_begin(&turns.share, 50);
	for (int second = 0; second < 100; second++)
	{
		for (int slice = 0; slice < 180; slice++)
			UNIT_CHECK(!turn(&turns, false, 5 * MILLISECONDS, 0));
		for (int step = 0; step < 10; step++)
			UNIT_CHECK(turn(&turns, true, 5 * MILLISECONDS, 10 * MILLISECONDS));
	}
	UNIT_CHECK(turns.training_ns == 90 * SECONDS);
}

/* After a night without questions the training does not stand still for as long. */
UNIT_TEST(credit_is_bounded)
{
	Turns		turns = {.training_ns = 0};

	share_begin(&turns.share, 10);
	while (turns.training_ns < 36000 * SECONDS)
		turn(&turns, false, 20 * MILLISECONDS, 0);
	while (turn(&turns, true, 20 * MILLISECONDS, 10 * MILLISECONDS))
		;
	UNIT_CHECK(turns.requests_ns == SECONDS);
}

/*
 * Somebody is always preparing a request: the training stands still for a twentieth of its time.
 * And after a quiet time it does not do so for longer than a tenth of a second at once.
 */
UNIT_TEST(standing_still_is_bounded)
{
	TrainingShare share;
	uint64_t	training_ns = 0;
	uint64_t	still_ns = 0;

	share_begin(&share, 50);
	UNIT_CHECK(share_patience(&share) == 0);
	while (training_ns < 100 * SECONDS)
	{
		uint64_t	patience = share_patience(&share);

		if (patience > MILLISECONDS / 2)
		{
			share_count_patience(&share, MILLISECONDS);
			still_ns += MILLISECONDS;
			continue;
		}
		share_count_training(&share, 2 * MILLISECONDS);
		training_ns += 2 * MILLISECONDS;
	}
	UNIT_NEAR((double) still_ns / (double) training_ns, 0.05, 0.001);
	share_count_training(&share, 1000 * SECONDS);
	UNIT_CHECK(share_patience(&share) == 100 * MILLISECONDS);
}

/* A question every second is waited for while it is prepared, though that takes a while. */
UNIT_TEST(now_and_then_requests_are_waited_for)
{
	TrainingShare share;

	share_begin(&share, 50);
	for (int second = 0; second < 100; second++)
	{
		share_count_training(&share, 950 * MILLISECONDS);
		UNIT_CHECK(share_patience(&share) >= 40 * MILLISECONDS);
		share_count_patience(&share, 40 * MILLISECONDS);
		share_count_requests(&share, 10 * MILLISECONDS);
	}
}

/* A step of many seconds is paid back. */
UNIT_TEST(debt_is_not_bounded)
{
	Turns		turns = {.training_ns = 0};
	uint64_t	before;

	share_begin(&turns.share, 50);
	UNIT_CHECK(!turn(&turns, true, 5 * MILLISECONDS, 0));
	UNIT_CHECK(turn(&turns, true, 0, 30 * SECONDS));
	before = turns.training_ns;
	while (!turn(&turns, true, 5 * MILLISECONDS, MILLISECONDS))
		;
	UNIT_NEAR((double) (turns.training_ns - before), 30e9, 1e7);
}

int
main(int argc, char **argv)
{
	return unit_run(argc, argv);
}
