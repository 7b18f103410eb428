# SPDX-License-Identifier: Apache-2.0
"""A process that poses as having several devices: JAX decides on their number when it starts."""

import os
import pathlib
import subprocess
import sys

import quick_compilation

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Against a process that hangs in a collective; on a loaded machine the longest takes minutes.
TIMEOUT_SECONDS = 900


def environment(count: int, *flags: str) -> dict[str, str]:
    """Of a process with that many emulated CPU devices, which finds midjax and the helpers here."""
    all_flags = (
        f"--xla_force_host_platform_device_count={count}",
        # 40 seconds by default, after which XLA ends the process: less than what a device may have
        # to wait for the others where tests run side by side.
        f"--xla_cpu_collective_call_terminate_timeout_seconds={TIMEOUT_SECONDS}",
        f"--xla_cpu_collective_call_warn_stuck_timeout_seconds={TIMEOUT_SECONDS}",
        *quick_compilation.XLA_FLAGS,
        *flags,
    )
    path = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests"))
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(all_flags),
        "PYTHONPATH": path,
    }


def run_script(script: str, output: pathlib.Path, *, count: int = 4) -> None:
    """Runs a test file as a script, `script output`, on emulated CPU devices."""
    subprocess.run(
        [sys.executable, script, str(output)],
        env=environment(count),
        check=True,
        timeout=TIMEOUT_SECONDS,
    )
