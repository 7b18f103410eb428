# SPDX-License-Identifier: Apache-2.0
"""A process that poses as having several devices: JAX decides on their number when it starts."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Against a process that hangs in a collective; on a loaded machine the longest takes minutes.
_TIMEOUT_SECONDS = 900


def run_script(script: str, output: pathlib.Path, *, count: int = 4) -> None:
    """Runs a test file as a script, `script output`, on emulated CPU devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Nothing runs long enough here to be worth optimising.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} "
        "--xla_backend_optimization_level=0",
        "PYTHONPATH": os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests")),
    }
    subprocess.run(
        [sys.executable, script, str(output)], env=environment, check=True, timeout=_TIMEOUT_SECONDS
    )
