# SPDX-License-Identifier: Apache-2.0
"""The TPU's compiler takes the kernels' blocks: they fit the VMEM of v4, which is the smallest."""

import jax
import jax.numpy as jnp
import plan_recipes
import pytest

from midjax.hardware import slices
from midjax.model import splash
from midjax.plan import program


def compiled(kind, monkeypatch, *, head_dim, dtype, window, softcap):
    """Forward and backward, of two rows of 4,096 tokens and blocks for `kind`, compiled for v4."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    place = jax.sharding.SingleDeviceSharding(program.devices(slices.parse("v4-8"))[0])
    B, T, N, K, H = 2, 4096, 4, 2, head_dim
    made = splash.kernel(
        tokens=T, shards=1, heads=N, kv_heads=K, head_dim=H, itemsize=jnp.dtype(dtype).itemsize,
        window_tokens=window, softcap=softcap, device_kind=kind, name="x", interpret=False,
    )  # fmt: skip

    def loss(q, k, v, segments):
        out = splash.attend(made, q, k, v, segments, segments, 0.1)
        return out.astype(jnp.float32).sum()

    q, kv = (jax.ShapeDtypeStruct((B, T, heads, H), dtype, sharding=place) for heads in (N, K))
    segments = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=place)
    jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, kv, kv, segments).compile()


@pytest.mark.parametrize(
    "case",
    [
        {"head_dim": 128, "dtype": "bfloat16", "window": None, "softcap": None},
        {"head_dim": 256, "dtype": "bfloat16", "window": None, "softcap": 50.0},
        {"head_dim": 128, "dtype": "bfloat16", "window": 4096, "softcap": 30.0},
        {"head_dim": 256, "dtype": "float32", "window": None, "softcap": None},
    ],
)
def test_blocks_for_v4_fit(case, monkeypatch):
    plan_recipes.need_compiler()
    compiled("TPU v4", monkeypatch, **case)


def test_those_of_other_chips_do_not(monkeypatch):
    plan_recipes.need_compiler()
    case = {"head_dim": 128, "dtype": "bfloat16", "window": 4096, "softcap": 30.0}
    with pytest.raises(Exception, match="memory space vmem"):
        compiled("TPU v5", monkeypatch, **case)
