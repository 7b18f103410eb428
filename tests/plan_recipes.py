# SPDX-License-Identifier: Apache-2.0
"""Recipes that a plan's tests compile in seconds. Their token folders do not exist."""

import importlib.util
import pathlib

import pytest
import tiny_run

from midjax.model import sharding
from midjax.plan import recipe as plan_lib
from midjax.train import recipe

NOWHERE = pathlib.Path("/nowhere")
TOKENS = 128  # of a row
FSDP = sharding.Mesh(data=1, fsdp=-1, tensor=1)


def train(rows: int = 4, *, mesh: sharding.Mesh = FSDP, **kwargs) -> recipe.Train:
    """A model of two layers, in rows of 128 tokens."""
    model = tiny_run.model(
        vocab_size=256, dim=128, heads=2, kv_heads=1, head_dim=64, ffn_dim=256, layers=2,
        context_tokens=TOKENS, loss_chunk_tokens=TOKENS, compute_dtype="bfloat16", remat="full",
        attention_kernel="blocked",
    )  # fmt: skip
    given = {
        "model": model,
        "data": tiny_run.data(NOWHERE, row_tokens=TOKENS, batch_rows=rows),
        "train_tokens": 10 * rows * TOKENS,
        "mesh": mesh,
    }
    return tiny_run.train(NOWHERE, **(given | kwargs))


def plan(config: recipe.Train | None = None, **kwargs) -> plan_lib.Plan:
    """Of four v5e chips."""
    return plan_lib.Plan(**({"train": config or train(), "slices": ("v5e-4",)} | kwargs))


def need_compiler() -> None:
    """Skips where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'midjax[tpu]'")
