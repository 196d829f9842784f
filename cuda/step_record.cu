/*
 * step_record.cu - steps that come again, as CUDA graphs.
 *
 * A decoding step of a 7B model is some seven hundred small launches; given to the device one by
 * one they take about as long as reading the weights. So a step whose key comes a second time is
 * captured into a graph, and from then on launched whole. The first time it runs plainly, which
 * also makes every scratch buffer large enough: nothing may be allocated while capturing.
 *
 * Graphs hold addresses. Whatever gives memory back forgets them all.
 */
#include "cuda_backend.h"

#include <stdlib.h>
#include <string.h>

static void
forget_step(CudaBackend *cuda, StepRecord *step)
{
	if (step->graph != nullptr)
		cuda_note(cuda, cudaGraphExecDestroy(step->graph));
	free(step->key);
	*step = StepRecord();
}

void
cuda_forget_steps(CudaBackend *cuda)
{
	for (int i = 0; i < MOST_STEPS; i++)
		forget_step(cuda, &cuda->steps[i]);
	if (cuda->recording != nullptr)	/* memory moved below a record: it can't be used */
		cuda->records_nothing = true;
}

/* The record of a key; NULL: there is none. */
static StepRecord *
find_step(CudaBackend *cuda, const void *key, size_t key_bytes)
{
	for (int i = 0; i < MOST_STEPS; i++)
		if (cuda->steps[i].key != nullptr && cuda->steps[i].key_bytes == key_bytes &&
			memcmp(cuda->steps[i].key, key, key_bytes) == 0)
			return &cuda->steps[i];
	return nullptr;
}

/* Remember a key, in the place of the one that was not used for longest. */
static void
remember_step(CudaBackend *cuda, const void *key, size_t key_bytes)
{
	StepRecord *oldest = &cuda->steps[0];

	for (int i = 1; i < MOST_STEPS; i++)
		if (cuda->steps[i].last_use < oldest->last_use)
			oldest = &cuda->steps[i];
	forget_step(cuda, oldest);
	oldest->key = malloc(key_bytes);
	if (oldest->key == nullptr)
		return;
	memcpy(oldest->key, key, key_bytes);
	oldest->key_bytes = key_bytes;
	oldest->last_use = cuda->step_count;
}

bool
cuda_step_begin(Backend *backend, const void *key, size_t key_bytes)
{
	CudaBackend *cuda = cuda_use(backend);
	StepRecord *step = find_step(cuda, key, key_bytes);

	cuda->step_count++;
	if (cuda->records_nothing)
		return false;
	if (step == nullptr)
	{
		remember_step(cuda, key, key_bytes);
		return false;
	}
	step->last_use = cuda->step_count;
	if (step->graph != nullptr)
	{
		cuda_note(cuda, cudaGraphLaunch(step->graph, cuda->stream));
		return true;
	}
	if (cuda_note(cuda, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal)))
		cuda->recording = step;
	return false;
}

/*
 * What was captured has not run yet. An operation that failed is missing in it, so it must not run
 * now, nor ever. A record that failed fails its step, and is the last one.
 */
void
cuda_step_end(Backend *backend)
{
	CudaBackend *cuda = cuda_use(backend);
	StepRecord *step = cuda->recording;
	cudaGraph_t graph = nullptr;

	if (step == nullptr)
		return;
	cuda->recording = nullptr;
	cuda_note(cuda, cudaGetLastError());	/* of launches */
	cuda_note(cuda, cudaStreamEndCapture(cuda->stream, &graph));
	if (cuda->error != cudaSuccess || cuda->cublas_error != CUBLAS_STATUS_SUCCESS ||
		!cuda_note(cuda, cudaGraphInstantiate(&step->graph, graph, 0)) ||
		!cuda_note(cuda, cudaGraphLaunch(step->graph, cuda->stream)))
	{
		forget_step(cuda, step);
		cuda->records_nothing = true;
	}
	if (graph != nullptr)
		cuda_note(cuda, cudaGraphDestroy(graph));
}
