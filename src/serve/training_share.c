/*
 * training_share.c - see training_share.h.
 */
#include "training_share.h"

#define MOST_CREDIT_NS 1e9

void
share_begin(TrainingShare *share, int percent)
{
	share->percent = percent;
	share->credit_ns = 0;
}

bool
share_requests_first(const TrainingShare *share)
{
	return share->credit_ns > 0;
}

void
share_count_training(TrainingShare *share, uint64_t nanoseconds)
{
	double		earned = (double) nanoseconds * (100 - share->percent) / share->percent;
	double		most = earned > MOST_CREDIT_NS ? earned : MOST_CREDIT_NS;

	share->credit_ns += earned;
	if (share->credit_ns > most)
		share->credit_ns = most;
}

void
share_count_requests(TrainingShare *share, uint64_t nanoseconds)
{
	share->credit_ns -= (double) nanoseconds;
}
