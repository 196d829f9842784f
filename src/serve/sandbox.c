/*
 * sandbox.c - a seccomp filter that refuses a short list of system calls; see sandbox.h.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <string.h>
#include <unistd.h>

/*
 * Calls that would let data out, change files, run programs, or reach into other
 * processes. io_uring would make any of them unseen by the filter, openat2 hides its
 * flags from it.
 */
static const char *const refused_calls[] = {
	"socket", "socketpair", "connect", "bind", "listen",
	"execve", "execveat", "fork", "vfork",
	"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd",
	"pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "tkill",
	"mount", "umount2", "pivot_root", "chroot", "unshare", "setns",
	"unlink", "unlinkat", "rename", "renameat", "renameat2", "truncate",
	"creat", "openat2", "open_by_handle_at", "io_uring_setup",
	"mkdir", "mkdirat", "rmdir", "mknod", "mknodat",
	"link", "linkat", "symlink", "symlinkat",
	"chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat",
	"bpf", "keyctl", "add_key", "request_key", "perf_event_open", "userfaultfd",
	"init_module", "finit_module", "delete_module", "kexec_load", "reboot",
};

/* Refuse a call where an argument, of which mask leaves some bits, has a value. */
static int
refuse_bits(scmp_filter_ctx filter, int call, unsigned int argument, int mask, int value)
{
	return seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), call, 1,
							SCMP_CMP(argument, SCMP_CMP_MASKED_EQ, (scmp_datum_t) mask,
									 (scmp_datum_t) value));
}

/* Refuse to open files for writing: flags are argument 1 of open and 2 of openat. */
static int
refuse_writing(scmp_filter_ctx filter)
{
	static const struct
	{
		int			mask;
		int			value;
	}			writing[] = {
		{O_ACCMODE, O_WRONLY}, {O_ACCMODE, O_RDWR}, {O_CREAT, O_CREAT}, {O_TRUNC, O_TRUNC}
	};
	int			result = 0;

	for (size_t i = 0; i < sizeof(writing) / sizeof(writing[0]) && result == 0; i++)
	{
		result = refuse_bits(filter, SCMP_SYS(openat), 2, writing[i].mask, writing[i].value);
		if (result == 0)
			result = refuse_bits(filter, SCMP_SYS(open), 1, writing[i].mask, writing[i].value);
	}
	return result;
}

/* Refuse signals to others: the server's processes run under the same account. */
static int
refuse_signals(scmp_filter_ctx filter)
{
	static const char *const calls[] = {"kill", "tgkill"};
	int			result = 0;

	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]) && result == 0; i++)
		result = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM),
								  seccomp_syscall_resolve_name(calls[i]), 1,
								  SCMP_A0(SCMP_CMP_NE, (scmp_datum_t) getpid()));
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
		result = refuse_signals(filter);
	if (result == 0)
		result = seccomp_load(filter);
	seccomp_release(filter);
	if (result != 0)
		return status_set(status, STATUS_NOT_SUPPORTED, "could not load the system call filter: %s",
						  strerror(-result));
	return true;
}
