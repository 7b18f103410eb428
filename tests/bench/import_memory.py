# SPDX-License-Identifier: Apache-2.0
"""Host memory beyond the parameters while a 1B-class checkpoint is loaded.

A random checkpoint of the shape of Llama-3.2-1B (1.24 B parameters, bfloat16, files of 1 GB) is
written to build/bench/random_1b, then loaded in processes of their own: onto one device, and onto
four emulated devices (fsdp 2 x tensor 2) in float32. On a CPU the parameters themselves lie in host
memory and are subtracted. There is no peer: transformers maps the files into memory, where nothing
counts before it is used.

    python tests/bench/import_memory.py

Prints `figure | ours | peer | ratio | target | met`, writes build/bench/import.json, and exits with
1 where a target is missed: 1.5 times the largest tensor, in the dtype asked for, plus 1 GB.
"""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np

from midjax.model import architecture, hf, rope, tensor_files
from midjax.model.families import registry, table

FOLDER = pathlib.Path("build/bench/random_1b")
OUT = pathlib.Path("build/bench/import.json")
SCALING = rope.RopeScaling(
    kind="llama3",
    factor=32.0,
    original_context_tokens=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)
MODEL = architecture.TransformerConfig(
    vocab_size=128_256, dim=2048, layers=16, heads=32, kv_heads=8, head_dim=64, ffn_dim=8192,
    norm_eps=1e-5, tied_head=True, context_tokens=131_072,
    rope=rope.Rope(theta=500_000.0, scaling=SCALING), initializer_std=0.02,
    param_dtype="bfloat16", compute_dtype="bfloat16", remat="none", loss_chunk_tokens=1024,
)  # fmt: skip

# Prints peak - before - parameters, and the parameters, in bytes.
MEASURE = """
import pathlib, resource, sys

def now():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])

def report(before, size):
    print("RESULT", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before - size, size)
"""
OURS = (
    MEASURE
    + """
import jax
from midjax.model import hf, sharding, transformer
folder, fsdp, tensor = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = hf.read_config(folder)
mesh = sharding.make(sharding.Mesh(data=1, fsdp=fsdp, tensor=tensor))
shapes = transformer.abstract(config)
shardings = sharding.tree(mesh, transformer.logical_axes(config), shapes)
dtype = "bfloat16" if fsdp == 1 else "float32"

def target(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)

targets = jax.tree.map(target, shapes, shardings)
jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(8))())
before = now()
_, params = hf.load(folder, targets=targets)
report(before, sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards))
"""
)


def write() -> None:
    """The checkpoint, unless it is there."""
    if (FOLDER / "config.json").exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)

    def make(shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(math.prod(shape))
        return 0.02 * rng.standard_normal(shape, np.float32)

    named = [
        tensor_files.Named(t.name, t.shape, lambda t=t: [make(t.shape)])
        for t in table.tensors(registry.family(MODEL.family), MODEL)
    ]
    tensor_files.write_shards(str(FOLDER), named, "bfloat16", max_shard_bytes=10**9)
    theirs = hf.config_to_hf(MODEL)
    (FOLDER / "config.json").write_text(json.dumps(theirs))


def measured(code: str, *arguments: str, devices: int = 1) -> float:
    """Gigabytes beyond the parameters."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(FOLDER), *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "RESULT" not in done.stdout:
        raise RuntimeError(done.stderr[-3000:])
    return int(done.stdout.split("RESULT")[1].split()[0]) / 1e9


def main() -> int:
    write()
    largest = MODEL.vocab_size * MODEL.dim
    rows = []
    for name, sizes, devices, item_bytes in (
        ("one device, bfloat16", ("1", "1"), 1, 2),
        ("fsdp 2 x tensor 2, float32", ("2", "2"), 4, 4),
    ):
        target = 1.5 * largest * item_bytes / 1e9 + 1
        value = measured(OURS, *sizes, devices=devices)
        rows.append(
            {
                "figure": f"host memory beyond the parameters (GB), {name}",
                "value": round(value, 3),
                "peer": None,
                "target": f"<= {target:.3f}",
                "met": value <= target,
            }
        )
    print("figure | ours | peer | ratio | target | met")
    for row in rows:
        print(row["figure"], row["value"], "-", "-", row["target"], row["met"], sep=" | ")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1))
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
