/*
 * training_share.c - see training_share.h.
 */
#include "training_share.h"

#define MOST_CREDIT_NS 1e9
/* What the training stands still for requests that are prepared: of its time, and at once. */
#define PATIENCE_PART 0.05
#define MOST_PATIENCE_NS 1e8

void
share_begin(TrainingShare *share, int percent)
{
	share->percent = percent;
	share->credit_ns = 0;
	share->patience_ns = 0;
}

bool
share_requests_first(const TrainingShare *share)
{
	return share->credit_ns > 0;
}

uint64_t
share_patience(const TrainingShare *share)
{
	return share->patience_ns > 0 ? (uint64_t) share->patience_ns : 0;
}

void
share_count_patience(TrainingShare *share, uint64_t nanoseconds)
{
	share->patience_ns -= (double) nanoseconds;
}

void
share_count_training(TrainingShare *share, uint64_t nanoseconds)
{
	double		earned = (double) nanoseconds * (100 - share->percent) / share->percent;
	double		most = earned > MOST_CREDIT_NS ? earned : MOST_CREDIT_NS;

	share->credit_ns += earned;
	if (share->credit_ns > most)
		share->credit_ns = most;
	share->patience_ns += (double) nanoseconds * PATIENCE_PART;
	if (share->patience_ns > MOST_PATIENCE_NS)
		share->patience_ns = MOST_PATIENCE_NS;
}

void
share_count_requests(TrainingShare *share, uint64_t nanoseconds)
{
	share->credit_ns -= (double) nanoseconds;
}
