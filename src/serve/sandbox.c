/*
 * sandbox.c - a seccomp filter that refuses a short list of system calls; see sandbox.h.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <string.h>

/* Calls that would let data out, change files, run programs, or reach into other processes. */
static const char *const refused_calls[] = {
	"socket", "socketpair", "connect", "bind", "listen",
	"execve", "execveat", "fork", "vfork",
	"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd",
	"mount", "umount2", "pivot_root", "chroot", "unshare", "setns",
	"unlink", "unlinkat", "rename", "renameat", "renameat2", "truncate",
	"bpf", "keyctl", "add_key", "request_key", "perf_event_open", "userfaultfd",
	"init_module", "finit_module", "delete_module", "kexec_load", "reboot",
};

/* Refuse to open files for writing: flags are argument 1 of open and 2 of openat. */
static int
refuse_writing(scmp_filter_ctx filter)
{
	static const int modes[] = {O_WRONLY, O_RDWR};
	int			result = 0;

	for (int i = 0; i < 2 && result == 0; i++)
	{
		result = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(openat), 1,
								  SCMP_A2(SCMP_CMP_MASKED_EQ, O_ACCMODE, (scmp_datum_t) modes[i]));
		if (result == 0)
			result = seccomp_rule_add(
				filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(open), 1,
				SCMP_A1(SCMP_CMP_MASKED_EQ, O_ACCMODE, (scmp_datum_t) modes[i]));
	}
	return result;
}

bool
sandbox_enter(Status *status)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
	int			result = 0;

	if (filter == NULL)
		return status_set(status, STATUS_NOT_SUPPORTED, "could not make a system call filter");
	for (size_t i = 0; i < sizeof(refused_calls) / sizeof(refused_calls[0]) && result == 0; i++)
	{
		int			call = seccomp_syscall_resolve_name(refused_calls[i]);

		/* A call that this architecture does not have needs no refusal. */
		if (call != __NR_SCMP_ERROR)
			result = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), call, 0);
	}
	if (result == 0)
		result = refuse_writing(filter);
	if (result == 0)
		result = seccomp_load(filter);
	seccomp_release(filter);
	if (result != 0)
		return status_set(status, STATUS_NOT_SUPPORTED, "could not load the system call filter: %s",
						  strerror(-result));
	return true;
}
