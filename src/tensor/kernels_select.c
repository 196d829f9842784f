/*
 * kernels_select.c - which instruction sets this machine has.
 *
 * The compiler's run-time check asks the processor and, through XGETBV, whether the
 * operating system saves the wide registers.
 */
#include "kernels.h"

#include <string.h>

typedef struct Candidate
{
	const Kernels *kernels;
	bool		(*supported) (void);
} Candidate;

static bool
always_supported(void)
{
	return true;
}

#if defined(__x86_64__)
static bool
avx2_supported(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool
avx512_supported(void)
{
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool
avx512vnni_supported(void)
{
	return avx512_supported() && __builtin_cpu_supports("avx512vnni");
}

static bool
avx512bf16_supported(void)
{
	return avx512vnni_supported() && __builtin_cpu_supports("avx512bf16");
}
#endif

/* Best first. */
static const Candidate candidates[] = {
#if defined(__x86_64__)
	{&kernels_avx512bf16, avx512bf16_supported},
	{&kernels_avx512vnni, avx512vnni_supported},
	{&kernels_avx512, avx512_supported},
	{&kernels_avx2, avx2_supported},
#endif
	{&kernels_portable, always_supported},
};

#define CANDIDATES ((int) (sizeof(candidates) / sizeof(candidates[0])))

const Kernels *
kernels_select(const char *name, Status *status)
{
	for (int i = 0; i < CANDIDATES; i++)
	{
		bool		any = name == NULL || strcmp(name, "auto") == 0;

		if (!any && strcmp(name, candidates[i].kernels->name) != 0)
			continue;
		if (candidates[i].supported())
			return candidates[i].kernels;
		if (!any)
		{
			status_set(status, STATUS_NOT_SUPPORTED,
					   "this machine does not have the instruction set \"%s\"", name);
			return NULL;
		}
	}
	status_set(status, STATUS_INVALID_ARGUMENT, "unknown instruction set \"%s\"", name);
	status_hint(status, "Use auto, avx512bf16, avx512vnni, avx512, avx2 or portable.");
	return NULL;
}

const char *
kernels_available(int i)
{
	for (int c = 0; c < CANDIDATES; c++)
		if (candidates[c].supported() && i-- == 0)
			return candidates[c].kernels->name;
	return NULL;
}
