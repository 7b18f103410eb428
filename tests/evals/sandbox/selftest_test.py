# SPDX-License-Identifier: Apache-2.0
"""A sandbox with a hole must be found out."""

import dataclasses
import tempfile

import pytest
import sandboxes

from midjax.evals.sandbox import bubblewrap, limits, program, run, selftest


def test_here_a_sandbox_holds_or_code_is_refused_with_reasons():
    box = sandboxes.attempt()
    if isinstance(box, program.SandboxUnavailable):
        assert box.reasons and "refused" in str(box)
    else:
        assert selftest.failures(box) == []


def test_without_a_working_binary_it_is_refused(tmp_path):
    with pytest.raises(program.SandboxUnavailable, match="No such file"):
        selftest.open(bwrap=str(tmp_path / "bwrap"))
    with pytest.raises(program.SandboxUnavailable, match="bubblewrap does not start here"):
        selftest.open(bwrap="/bin/true", workers=1)


def test_on_another_system_it_is_refused(monkeypatch):
    monkeypatch.setattr(selftest.sys, "platform", "darwin")
    with pytest.raises(program.SandboxUnavailable, match="needs Linux"):
        selftest.open()


def without(option: str, values: int):
    return lambda line, at: line[:at] + line[at + 1 + values :]


def share_folders(line: list[str], at: int) -> list[str]:
    shared = tempfile.gettempdir()
    return [*line[:at], "--bind", shared, shared, "--ro-bind-try", "/etc", "/etc", *line[at:]]


# A hole -> the option at which it is torn, how, and the probes that must find it.
HOLES = {
    "network": ("--unshare-net", without("--unshare-net", 0), {"network"}),
    "system calls": ("--seccomp", without("--seccomp", 1), {"kernel interfaces"}),
    "environment": (
        "--remount-ro",
        lambda line, at: [*line[:at], "--setenv", "TOKEN", "x", *line[at:]],
        {"environment"},
    ),
    "folders": ("--remount-ro", share_folders, {"reading files", "writing files"}),
}


@pytest.mark.parametrize("hole", HOLES)
def test_holes_are_found(monkeypatch, hole):
    option, tear, expected = HOLES[hole]
    whole = bubblewrap.command

    def torn(*args, **kwargs):
        line = whole(*args, **kwargs)
        return tear(line, line.index(option))

    box = sandboxes.opened()
    monkeypatch.setattr(bubblewrap, "command", torn)
    with selftest.probes(box.limits) as attempts:
        aimed = [probe for probe in attempts if probe.name in expected]
    monkeypatch.setattr(selftest, "probes", _only(selftest.probes, expected))
    found = {reason.partition(":")[0] for reason in selftest.failures(box)}
    assert len(aimed) == len(expected) and found == expected


def _only(probes, names):
    """The probes of these names alone: the others are no news and cost time."""

    class Few:
        def __init__(self, given):
            self.whole = probes(given)

        def __enter__(self):
            return [probe for probe in self.whole.__enter__() if probe.name in names]

        def __exit__(self, *error):
            return self.whole.__exit__(*error)

    return Few


def test_missing_limits_are_found(monkeypatch):
    """A harness that sets no limits, as if the kernel did not enforce them."""
    free = run.harness()
    for name in ("RLIMIT_AS", "RLIMIT_NPROC"):
        start = free.index(f"resource.setrlimit(resource.{name}")
        free = free[:start] + "pass" + free[free.index("\n", start) :]
    monkeypatch.setattr(run, "harness", lambda: free)
    names = {"8 GB of memory", "fork storm"}
    monkeypatch.setattr(selftest, "probes", _only(selftest.probes, names))
    box = dataclasses.replace(sandboxes.opened(), limits=limits.Limits(memory_bytes=1 << 30))
    found = {reason.partition(":")[0] for reason in selftest.failures(box)}
    assert found == names
