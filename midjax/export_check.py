# SPDX-License-Identifier: Apache-2.0
"""Logits of an exported folder against those of the run, on the devices where the parameters lie.

    folder --transformers (where installed, and the model fits the host)--> logits --\\
    parameters on their mesh ----------------------------------------------> logits -- largest
    config.json of the folder, same parameters (where transformers is not) -> logits --/ difference

That the numbers in the folder are the parameters' is not its business: see `model.hf_check`.
"""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from midjax import files
from midjax.model import architecture, by_layer, context, hf_check, sharding, transformer

# transformers holds a model in float32; as much again is for ours, where a CPU is the device, and a
# half for what both compute.
HOST_BYTES_PER_PARAMETER = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """How the logits were compared.

    Attributes:
      reader: who read the folder: "transformers 5.23.0"; or "midjax", which computed with the
        folder's config.json and the parameters on the mesh.
      why_not: why transformers was not the one; None where it was.
      difference: the largest absolute one of a logit.
    """

    reader: str
    why_not: str | None
    difference: float


def logits(
    folder: str,
    config: architecture.TransformerConfig,
    params: transformer.Params,
    dtype: architecture.Dtype,
    tokens_BT: Int[np.ndarray, "B T"],
    mesh: jax.sharding.Mesh,
) -> Compared:
    """Compares on some text, in float32.

    Args:
      folder: the export.
      config, params: what was exported; params on `mesh`.
      dtype: of the folder's tensors.
      tokens_BT: the text.
      mesh: from `sharding.make`. Weights are gathered and converted a layer at a time; where
        transformers reads the folder and `dtype` is narrower than params, they are copied to it.
    """
    why_not = _without_transformers(transformer.parameter_count(config))
    difference = np.float32(0)
    with jax.default_matmul_precision("float32"):
        if why_not is None:
            params = jax.tree.map(lambda x: _rounded(x, dtype), params)
            reader, whole_BTV = _transformers(folder, tokens_BT)
        else:
            reader, read = "midjax", hf_check.config_of(folder, config)
            others = on_mesh(read, params, tokens_BT, mesh)
        for begin, piece in on_mesh(config, params, tokens_BT, mesh):
            if why_not is None:
                other = whole_BTV[..., begin : begin + piece.shape[-1]]
            else:
                other = next(others)[1]
            # Unlike max, it keeps what is not a number.
            difference = np.maximum(difference, np.abs(piece - other).max())
    return Compared(reader=reader, why_not=why_not, difference=float(difference))


def _rounded(leaf: Any, dtype: architecture.Dtype) -> Any:
    """To what the folder holds; a wider folder holds the same numbers."""
    return leaf.astype(dtype) if jnp.dtype(dtype).itemsize < leaf.dtype.itemsize else leaf


def _without_transformers(parameters: int) -> str | None:
    """Why transformers cannot read the folder here; None where it can."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return "PyTorch and transformers are not installed"
    needed, free = HOST_BYTES_PER_PARAMETER * parameters, free_host_bytes()
    if needed > free:
        return (
            f"transformers would need {needed / 1e9:.1f} GB of host memory "
            f"({HOST_BYTES_PER_PARAMETER} bytes per parameter), {free / 1e9:.1f} GB are free"
        )
    return None


def free_host_bytes() -> int:
    """Host memory that is free, or can be freed, within the limit of this process's group."""
    meminfo = files.path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    free = 1024 * int(meminfo.read_text().split("MemAvailable:")[1].split()[0])
    group = files.path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (group / "memory.current").exists():
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    return max(0, free)


def on_mesh(
    config: architecture.TransformerConfig,
    params: transformer.Params,
    tokens_BT: Int[np.ndarray, "B T"],
    mesh: jax.sharding.Mesh,
) -> Iterator[tuple[int, Float[np.ndarray, "B T n"]]]:
    """Logits in float32 throughout, of parameters on a mesh: (first token, n logits) at a time."""
    # Any length, which the TPU's attention kernel does not take.
    exact = dataclasses.replace(
        config,
        compute_dtype="float32",
        head_dtype=None,
        remat="none",
        attention_kernel="blocked",
        quantization=None,
    )
    rows, length = tokens_BT.shape
    parts = math.prod(mesh.shape[axis] for axis in sharding.TABLE["batch"])
    unit = 2 * context.shards(mesh.shape)
    padded_BT = np.zeros((-(-rows // parts) * parts, -(-length // unit) * unit), np.int32)
    segments_BT = np.zeros_like(padded_BT)
    padded_BT[:rows, :length], segments_BT[:rows, :length] = tokens_BT, 1
    positions_BT = np.broadcast_to(np.arange(padded_BT.shape[1], dtype=np.int32), padded_BT.shape)
    given = context.arrange((padded_BT, segments_BT, positions_BT), mesh.shape)
    hidden_BTD = by_layer.hidden(exact, params, given[0], given[1], given[2], mesh)
    natural = context.natural(padded_BT.shape[1], context.shards(mesh.shape))
    return by_layer.logits(exact, params, hidden_BTD[:rows, natural[:length]])


def _transformers(
    folder: str, tokens_BT: Int[np.ndarray, "B T"]
) -> tuple[str, Float[np.ndarray, "B T V"]]:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        found = model(torch.from_numpy(tokens_BT.astype(np.int64))).logits
    return f"transformers {transformers.__version__}", found.numpy()
