# SPDX-License-Identifier: Apache-2.0
"""The filter, run by a small BPF machine; the kernel itself runs it in selftest_test."""

import errno
import struct

import pytest

from midjax.evals.sandbox import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
X86, ARM = 0xC000003E, 0xC00000B7


def run(filter_bytes: bytes, arch: int, number: int, argument: int = 0) -> int:
    """The filter's return value for one system call (linux/filter.h)."""
    data = struct.pack("<iIQ6Q", number, arch, 0, argument, 0, 0, 0, 0, 0)
    code = list(struct.iter_unpack("<HBBI", filter_bytes))
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == 0x06:
            return k
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
            continue
        jumps = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}
        at += if_true if jumps[operation] else if_false


def refused(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize(
    ("machine", "arch", "read", "ptrace", "clone", "socket"),
    [("x86_64", X86, 0, 101, 56, 41), ("aarch64", ARM, 63, 117, 220, 198)],
)
def test_calls_are_told_apart(machine, arch, read, ptrace, clone, socket):
    rules = seccomp.program(machine)
    assert run(rules, arch, read) == ALLOW
    assert run(rules, arch, ptrace) == refused(errno.EPERM)
    assert run(rules, arch, 435) == refused(errno.ENOSYS)  # clone3
    assert run(rules, arch, clone, 17) == ALLOW  # SIGCHLD: an ordinary fork
    assert run(rules, arch, clone, 0x003D0F00) == ALLOW  # a thread, as glibc makes it
    assert run(rules, arch, clone, 17 | 0x10000000) == refused(errno.EPERM)  # CLONE_NEWUSER
    for family in (1, 2, 10):
        assert run(rules, arch, socket, family) == ALLOW
    for family in (16, 17, 40):  # netlink, packet, vsock
        assert run(rules, arch, socket, family) == refused(errno.EAFNOSUPPORT)


def test_another_architecture_than_the_filters_is_killed():
    assert run(seccomp.program("x86_64"), 0x40000003, 0) == KILL  # 32-bit calls on x86_64
    assert run(seccomp.program("x86_64"), X86, 0x40000000) == refused(errno.ENOSYS)  # x32


def test_an_unknown_machine_is_refused():
    with pytest.raises(ValueError, match="'riscv64'"):
        seccomp.program("riscv64")
