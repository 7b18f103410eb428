# SPDX-License-Identifier: Apache-2.0
"""Host memory beyond the parameters while a 1B-class checkpoint is loaded, and exported.

A random checkpoint of the shape of Llama-3.2-1B (1.24 B parameters, bfloat16, files of 1 GB) is
written to build/bench/random_1b, then loaded in processes of their own: onto one device, and onto
four emulated devices (fsdp 2 x tensor 2) in float32; and exported from there, in bfloat16, read
back and compared. One with experts (of Mixtral's shape, a quarter as wide) is loaded onto four
devices that share the experts. On a CPU the parameters themselves lie in host memory and are
subtracted. There is no peer: transformers maps the files into memory, where nothing counts before
it is used.

    python tests/bench/import_memory.py

Prints `figure | ours | peer | ratio | target | met`, writes build/bench/import.json, and exits with
1 where a target is missed: 1.5 times the largest tensor, in the dtype asked for, plus 1 GB.
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np

from midjax.model import architecture, hf, rope, tensor_files
from midjax.model.families import registry, table

FOLDER = pathlib.Path("build/bench/random_1b")
EXPERTS_FOLDER = pathlib.Path("build/bench/random_experts")
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

MIXTURE = architecture.TransformerConfig(
    vocab_size=32_000, dim=2048, layers=4, heads=16, kv_heads=4, head_dim=128, ffn_dim=7168,
    norm_eps=1e-5, tied_head=False, context_tokens=32_768,
    rope=rope.Rope(theta=1e6, scaling=rope.RopeScaling(kind="none")), initializer_std=0.02,
    param_dtype="bfloat16", compute_dtype="bfloat16", remat="none", loss_chunk_tokens=1024,
    family="mixtral",
    experts=architecture.Experts(count=8, per_token=2, ffn_dim=7168, normalized=True),
)  # fmt: skip

# Prints peak - before - parameters, in bytes. The peak is counted anew from where `now` is called.
MEASURE = """
import json, pathlib, sys

def status(key):
    return 1024 * int(pathlib.Path("/proc/self/status").read_text().split(key)[1].split()[0])

def now():
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS:")

def report(before, size):
    print("RESULT", status("VmHWM:") - before - size)

import jax
from midjax import export
from midjax.model import hf, sharding, transformer
folder, sizes, dtype = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
config = hf.read_config(folder)
own = sharding.Mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | sizes))
shapes = transformer.abstract(config)
shardings = sharding.tree(sharding.make(own), transformer.logical_axes(config), shapes)

def target(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)

targets = jax.tree.map(target, shapes, shardings)
jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(8))())
"""
IMPORT = (
    MEASURE
    + """
before = now()
_, params = hf.load(folder, targets=targets)
report(before, sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards))
"""
)
# As where PyTorch is not installed: its model is no part of what is measured.
EXPORT = (
    MEASURE
    + """
sys.modules["torch"] = None
config, params = hf.load(folder, targets=targets)
out = export.Export(
    run="random", step=None, output=sys.argv[4], tokenizer="package:demo_data/tokenizer",
    dtype="bfloat16", mesh=own,
)
before = now()
export.run(out, config, params, {})
report(before, 0)
"""
)


def write(folder: pathlib.Path, model: architecture.TransformerConfig) -> None:
    """A random checkpoint, unless it is there."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)

    def make(shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(math.prod(shape))
        return 0.02 * rng.standard_normal(shape, np.float32)

    named = [
        tensor_files.Named(t.name, t.shape, lambda t=t: [make(t.shape)])
        for t in table.tensors(registry.family(model.family), model)
    ]
    tensor_files.write_shards(str(folder), named, "bfloat16", max_shard_bytes=10**9)
    theirs = hf.config_to_hf(model)
    (folder / "config.json").write_text(json.dumps(theirs))


def measured(code: str, *arguments: str, devices: int = 1) -> float:
    """Gigabytes beyond the parameters."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=900",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "RESULT" not in done.stdout:
        raise RuntimeError(done.stderr[-3000:])
    return int(done.stdout.split("RESULT")[1].split()[0]) / 1e9


def main() -> int:
    write(FOLDER, MODEL)
    write(EXPERTS_FOLDER, MIXTURE)
    rows = []
    for figure, code, folder, model, sizes, dtype in (
        ("import", IMPORT, FOLDER, MODEL, {}, "bfloat16"),
        ("import", IMPORT, FOLDER, MODEL, {"fsdp": 2, "tensor": 2}, "float32"),
        ("import of experts", IMPORT, EXPERTS_FOLDER, MIXTURE, {"expert": 4}, "float32"),
        ("export", EXPORT, FOLDER, MODEL, {}, "bfloat16"),
        ("export", EXPORT, FOLDER, MODEL, {"fsdp": 2, "tensor": 2}, "float32"),
    ):
        shapes = [t.shape for t in table.tensors(registry.family(model.family), model)]
        item_bytes = {"bfloat16": 2, "float32": 4}[dtype]
        target = 1.5 * max(map(math.prod, shapes)) * item_bytes / 1e9 + 1
        out = str(folder.parent / "exported")
        shutil.rmtree(out, ignore_errors=True)
        value = measured(
            code, str(folder), json.dumps(sizes), dtype, out, devices=math.prod(sizes.values())
        )
        shutil.rmtree(out, ignore_errors=True)
        place = " x ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one device"
        rows.append(
            {
                "figure": f"{figure}: host memory beyond the parameters (GB), {place}, {dtype}",
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
