# SPDX-License-Identifier: Apache-2.0
"""What a TPU multiplies when a model trains in bfloat16, int8 or float8.

No TPU is needed: libtpu compiles forward and backward for a described topology, on a mesh of
fsdp 2 x tensor 2, and the products of its program are counted by the dtypes of their operands.

    make bench-low-precision        (2 cores: 1 to 8 minutes)

Prints a line per chip and format; exits with 1 where a layer's product is in another one.
"""

import collections
import os
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from midjax.model import architecture, loss, rope, sharding, transformer

TOPOLOGIES = ("v6e:2x2", "v5p:2x2x1")
FORMATS = {
    "bfloat16": None,
    "int8, inputs": architecture.Quantization(dtype="int8"),
    "int8, all": architecture.Quantization(dtype="int8", gradients="all"),
    "float8, all": architecture.Quantization(dtype="float8", gradients="all"),
}
# The head's product and its two gradients; with "inputs" also the gradients of seven matrices.
MOST_16_BIT = {"int8, inputs": 3 + 7, "int8, all": 3, "float8, all": 3}
TOKENS = 512


def model(how: architecture.Quantization | None) -> architecture.TransformerConfig:
    """Four layers in a loop, with remat."""
    return architecture.TransformerConfig(
        vocab_size=1024,
        dim=512,
        layers=4,
        heads=8,
        kv_heads=4,
        head_dim=128,
        ffn_dim=1024,
        norm_eps=1e-5,
        tied_head=False,
        context_tokens=TOKENS,
        rope=rope.Rope(theta=10_000.0, scaling=rope.RopeScaling(kind="none")),
        initializer_std=0.02,
        param_dtype="float32",
        compute_dtype="bfloat16",
        remat="full",
        loss_chunk_tokens=TOKENS,
        quantization=how,
    )


def program(config: architecture.TransformerConfig, mesh: jax.sharding.Mesh) -> str:
    """Loss and gradients, as the TPU runs them."""

    def objective(params, tokens, segments, positions):  # type: ignore[no-untyped-def]
        hidden_BTD = transformer.hidden(config, params, tokens, segments, positions)
        weights = jnp.full(tokens.shape, 1 / tokens.size)
        return loss.objective(config, params, hidden_BTD, tokens, weights, 0.0)[0]

    shapes = transformer.abstract(config)
    places = sharding.tree(mesh, transformer.logical_axes(config), shapes)
    params = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )
    row = jax.ShapeDtypeStruct((4, TOKENS), jnp.int32, sharding=sharding.batch(mesh))
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(objective)).lower(params, row, row, row).compile().as_text()


def products(text: str) -> collections.Counter[str]:
    """ "a x b -> result" -> how many; a TPU's matrix products are convolutions in its program."""
    dtypes = dict(re.findall(r"%([\w.\-]+) = (\w+)\[", text))
    found: collections.Counter[str] = collections.Counter()
    for result, operands in re.findall(r"= (\w+)\[[^\n]*? (?:convolution|dot)\(([^)]*)\)", text):
        names = re.findall(r"%([\w.\-]+)", operands)
        found[f"{' x '.join(dtypes[name] for name in names)} -> {result}"] += 1
    return found


def main() -> int:
    failed = False
    for topology in TOPOLOGIES:
        devices = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
        mesh = sharding.make(sharding.Mesh(data=1, fsdp=2, tensor=2), devices[:4])
        for name, how in FORMATS.items():
            found = products(program(model(how), mesh))
            wide = sum(count for key, count in found.items() if "bf16 x bf16" in key)
            wrong = any("f32 x" in key or "x f32" in key for key in found)
            wrong |= wide > MOST_16_BIT.get(name, sys.maxsize)
            failed |= wrong
            listed = ", ".join(f"{key}: {count}" for key, count in sorted(found.items()))
            print(f"{topology} | {name} | {listed} | {'FAILED' if wrong else 'met'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
