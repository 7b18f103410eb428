# SPDX-License-Identifier: Apache-2.0
"""`tpu/pods/*.env`: what a shell needs to know of a slice, written from the tables."""

import os

from midjax import files
from midjax.hardware import flags, slices
from midjax.launch import spec

# Slice -> a zone that offers its chip: cloud.google.com/tpu/docs/regions-zones.
PODS = {
    "v4-32": "us-central2-b",
    "v4-128": "us-central2-b",
    "v5e-16": "us-west4-a",
    "v5e-256": "us-west4-a",
    "v5p-128": "us-east5-a",
    "v5p-512": "us-east5-a",
    "v6e-16": "us-east5-b",
    "v6e-256": "us-east5-b",
}


def text(name: str) -> str:
    """The file of one slice, for bash to source."""
    tpu = slices.parse(name)
    lines = [
        f"# {tpu.name}: {tpu.chips} {tpu.chip.name} chips, torus {tpu.torus_name}, on {tpu.hosts} "
        "machines. Written by `make pods` from",
        "# midjax/hardware/, where flags are changed; tpu/run.sh and tpu/launch.sh read it.",
        f"SLICE={tpu.name}",
        f"ACCELERATOR_TYPE={tpu.accelerator_type}",
        f"RUNTIME_VERSION={spec.RUNTIMES[tpu.chip.name]}",
        "# One that offers the chip; yours may be another.",
        f"ZONE={PODS[name]}",
        "# Without TPUs the run fails, in the place of going on with the CPU.",
        "JAX_PLATFORMS=tpu",
        "LIBTPU_INIT_ARGS=",
    ]
    dense = flags.flags(tpu.chip.name)
    for flag in dense:
        lines += [f"# {flag.why} ({flag.source})", f'LIBTPU_INIT_ARGS+=" {flag.text}"']
    for flag in flags.flags(tpu.chip.name, dense=False):
        if flag not in dense:
            lines += [f"# A mixture of experts takes, in the place of its like: {flag.text}"]
    return "\n".join([*lines, ""])


def write(folder: str | os.PathLike[str]) -> None:
    """Writes the file of every slice of `PODS`."""
    for name in PODS:
        files.write_text(files.path(folder) / f"{name}.env", text(name))
