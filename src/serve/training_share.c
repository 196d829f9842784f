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
	share->credit_ns += (double) nanoseconds * (100 - share->percent) / share->percent;
	if (share->credit_ns > MOST_CREDIT_NS)
		share->credit_ns = MOST_CREDIT_NS;
}

void
share_count_requests(TrainingShare *share, uint64_t nanoseconds)
{
	share->credit_ns -= (double) nanoseconds;
}
