# SPDX-License-Identifier: Apache-2.0
"""The system calls that the sandbox refuses, as the classic BPF program that bwrap loads.

Namespaces already hide files, processes and the network. This closes what they leave: looking into
another process of the sandbox (the tests' from the solution's), new namespaces and mounts, kernel
interfaces with a long history of faults, and socket families that no network namespace contains
(vsock reaches the host of a virtual machine).

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux;
the format: linux/filter.h, linux/seccomp.h.
"""

import errno
import struct

# name -> (x86_64, aarch64)
REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
CLONE = (56, 220)
CLONE3 = (435, 435)  # flags lie in memory, where BPF can't look: libc falls back to clone
SOCKET = (41, 198)
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
CLONE_NEW = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*
X32_BIT = 0x40000000

_LOAD, _RETURN, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET = 0x20, 0x06, 0x15, 0x35, 0x45
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little endian
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def program(machine: str) -> bytes:
    """The filter for `machine` (`os.uname().machine`), as an array of struct sock_filter.

    Raises:
      ValueError: for another machine than x86_64 or aarch64, whose numbers are not known here.
    """
    if machine not in ARCHES:
        raise ValueError(f"No system call table for {machine!r}, only for {sorted(ARCHES)}.")
    column, arch = ARCHES[machine]

    def op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("<HBBI", code, if_true, if_false, value)

    def refuse(number: int) -> bytes:
        return op(_RETURN, _ERRNO | number)

    parts = [
        op(_LOAD, _ARCH),
        op(_JUMP_EQUAL, arch, 1, 0),
        op(_RETURN, _KILL),  # the numbers would mean other calls
        op(_LOAD, _NUMBER),
        op(_JUMP_GREATER_EQUAL, X32_BIT, 0, 1),
        refuse(errno.ENOSYS),
    ]
    for numbers in REFUSED.values():
        parts += [op(_JUMP_EQUAL, numbers[column], 0, 1), refuse(errno.EPERM)]
    parts += [
        op(_JUMP_EQUAL, CLONE3[column], 0, 1),
        refuse(errno.ENOSYS),
        op(_JUMP_EQUAL, CLONE[column], 0, 4),
        op(_LOAD, _FIRST_ARGUMENT),
        op(_JUMP_SET, CLONE_NEW, 0, 1),
        refuse(errno.EPERM),
        op(_RETURN, _ALLOW),
        op(_JUMP_EQUAL, SOCKET[column], 0, len(FAMILIES) + 2),
        op(_LOAD, _FIRST_ARGUMENT),
    ]
    for index, family in enumerate(FAMILIES):
        parts.append(op(_JUMP_EQUAL, family, len(FAMILIES) - index, 0))
    parts += [refuse(errno.EAFNOSUPPORT), op(_RETURN, _ALLOW)]
    return b"".join(parts)
