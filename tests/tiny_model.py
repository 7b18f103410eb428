# SPDX-License-Identifier: Apache-2.0
"""Models small enough for tests, with grouped queries and a head size that is not dim / heads."""

import jax
import jax.numpy as jnp
import numpy as np

from midjax.model import architecture, loss, rope, transformer

NONE = rope.Rope(theta=10000.0, scaling=rope.RopeScaling(kind="none"))
PI = rope.Rope(theta=10000.0, scaling=rope.RopeScaling(kind="pi", factor=4.0))
NTK = rope.Rope(theta=10000.0, scaling=rope.RopeScaling(kind="ntk", factor=4.0))
YARN = rope.Rope(
    theta=10000.0,
    scaling=rope.RopeScaling(
        kind="yarn",
        factor=4.0,
        original_context_tokens=64,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=True,
    ),
)
LLAMA3 = rope.Rope(
    theta=50000.0,
    scaling=rope.RopeScaling(
        kind="llama3",
        factor=8.0,
        original_context_tokens=64,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    ),
)
ROPES = {"none": NONE, "pi": PI, "ntk": NTK, "yarn": YARN, "llama3": LLAMA3}


def config(**kwargs) -> architecture.TransformerConfig:
    given = {
        "vocab_size": 96, "dim": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 16,
        "ffn_dim": 48, "norm_eps": 1e-5, "tied_head": False, "context_tokens": 256, "rope": NONE,
        "initializer_std": 0.1, "param_dtype": "float32", "compute_dtype": "float32",
        "remat": "none", "loss_chunk_tokens": 256,
    }  # fmt: skip
    return architecture.TransformerConfig(**(given | kwargs))


def params(model: architecture.TransformerConfig, seed: int = 0) -> transformer.Params:
    """Random in every entry: norms are not all ones either."""
    made = jax.jit(transformer.init, static_argnums=0)(model, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    for tree, names in ((made, ("final_norm",)), (made["layers"], ("attn_norm", "mlp_norm"))):
        for name in names:
            noise = 0.2 * rng.standard_normal(tree[name].shape)
            tree[name] = (tree[name] + noise).astype(tree[name].dtype)
    return made


def rows(batch: int, length: int, vocab: int = 96, seed: int = 0):
    """Tokens, segments and positions of rows that hold three documents and some padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (batch, length)).astype(np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row in range(batch):
        ends = np.sort(rng.choice(np.arange(1, length), 3, replace=False))
        for number, (begin, end) in enumerate(zip((0, *ends[:2]), ends, strict=True)):
            segments[row, begin:end] = number + 1
            positions[row, begin:end] = np.arange(end - begin)
    return tuple(jax.numpy.asarray(x) for x in (tokens, segments, positions))


def mean_loss(model, params, hidden_BTD, targets_BT, z_loss_weight: float = 0.0) -> jax.Array:
    """The objective of a batch whose tokens all weigh the same."""
    weights_BT = jnp.full(targets_BT.shape, 1 / targets_BT.size)
    return loss.objective(model, params, hidden_BTD, targets_BT, weights_BT, z_loss_weight)[0]
