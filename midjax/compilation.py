# SPDX-License-Identifier: Apache-2.0
"""Compiled programs that are kept between runs, by JAX's persistent compilation cache.

An entry's name is a hash of the program, of the versions of JAX and XLA, of XLA's flags and of the
kind of device, so that a program is never taken for another. Processes may share a folder: an entry
that cannot be read, as one that another process is still writing, is compiled again and warned of.
"""

import hashlib
import os
import pathlib
import platform

import jax
from jax.experimental.compilation_cache import compilation_cache

# Of JAX's own settings: nothing is too quick or too small to be kept, as a run has few programs.
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def keep(folder: str | None) -> None:
    """Keeps what this process compiles from now on, and takes what is kept already.

    Args:
      folder: where; devices of each kind have a folder of their own in it. None keeps nothing.
        JAX's variable JAX_COMPILATION_CACHE_DIR, where it is set, is used instead, as it stands.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    place = None if folder is None else os.path.join(os.path.expanduser(folder), kind())
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", place)
    compilation_cache.reset_cache()  # JAX looks at its settings when it first compiles, and no more


def kind() -> str:
    """What programs are compiled for, such as "tpu-v5p" or "cpu-" and a hash of its instructions.

    Code for a CPU uses all instructions that it has, and another may lack some: machines of two
    kinds must not meet in a folder that they share.
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind.lower().replace(" ", "-")
    facts = [platform.machine(), *_instructions()]
    return f"cpu-{hashlib.sha256(' '.join(facts).encode()).hexdigest()[:12]}"


def _instructions() -> list[str]:
    """Flags of the first processor, as Linux lists them; elsewhere the processor's name."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):  # x86, Arm
                return sorted(value.split())
    return [platform.processor()]
