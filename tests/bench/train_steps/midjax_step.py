# SPDX-License-Identifier: Apache-2.0
"""midjax's train step as its loop builds it, on a batch that lies on the mesh already."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import contest
import jax
import numpy as np

from midjax import checkpoint
from midjax.batches import batch as batch_lib
from midjax.batches import loader, readers, shards
from midjax.mixture import stages
from midjax.model import architecture, rope, sharding
from midjax.train import loop, recipe, start, step
from midjax.train.optimizers import adamw
from midjax.train.schedules import phases


def model(size: contest.Size) -> architecture.TransformerConfig:
    return architecture.TransformerConfig(
        vocab_size=size.vocab_size, dim=size.dim, layers=size.layers, heads=size.heads,
        kv_heads=size.kv_heads, head_dim=size.head_dim, ffn_dim=size.ffn_dim,
        norm_eps=contest.NORM_EPS, tied_head=False, context_tokens=size.row_tokens,
        rope=rope.Rope(theta=contest.ROPE_THETA, scaling=rope.RopeScaling(kind="none")),
        initializer_std=contest.WEIGHT_STD, param_dtype="float32", compute_dtype="float32",
        remat="none", loss_chunk_tokens=size.row_tokens,
    )  # fmt: skip


def write_tokens(size: contest.Size, folder: str, *, documents: int, tokens: int) -> None:
    """One source of documents of so many random tokens."""
    rng = np.random.default_rng(2)
    made = (
        (str(i), 4 * tokens, rng.integers(0, size.vocab_size, tokens, np.int32))
        for i in range(documents)
    )
    facts = {"vocab_size": size.vocab_size, "tokenizer_hash": "none"}
    shards.write(folder, made, facts=facts, shard_tokens=1 << 22)


def config(
    size: contest.Size, tokens: str, run_dir: str, *, steps: int, save_every: int | None = None
) -> recipe.Train:
    """A recipe of `midjax train` that reads the folder `tokens`."""
    return recipe.Train(
        run_dir=run_dir,
        model=model(size),
        data=loader.Data(
            sources={"random": loader.Source(tokens=tokens, packing="concat")},
            mixture=stages.Mixture(
                stages=(stages.Stage(name="all", start_tokens=0, weights={"random": 1.0}),),
                max_epochs={"random": 1e6}, seed=0, block_rows=64,
            ),
            row_tokens=size.row_tokens,
            batch_rows=size.batch_rows,
        ),
        optimizer=adamw.AdamW(
            b1=contest.B1, b2=contest.B2, eps=contest.EPS, weight_decay=contest.WEIGHT_DECAY,
            clip_norm=contest.CLIP_NORM, mu_dtype="float32", nu_dtype="float32",
        ),
        schedule=phases.Schedule(
            peak_lr=contest.LR, start_lr=0.0, final_lr=0.0, warmup_steps=0, warmup_tokens=None,
            decay_steps=0, decay_tokens=None, decay_shape="linear",
        ),
        loss=step.Loss(z_loss_weight=0.0),
        start=start.Start(
            kind="fresh", run=None, step=None, huggingface=None, keep=(), reset=(),
            allow_lr_jump=None,
        ),
        train_tokens=steps * size.batch_tokens,
        batch_lr_rule="none",
        microbatches=1,
        max_consecutive_skips=3,
        mesh=sharding.Mesh(data=1, fsdp=-1, tensor=1),
        checkpoint=checkpoint.Keep(
            every_steps=save_every or steps, last=1, forever_every_steps=None
        ),
        seed=0,
    )  # fmt: skip


def params(size: contest.Size, like: Any) -> Any:
    """The weights that all contestants share, placed like `like`."""
    flat = contest.weights(size)

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        return jax.device_put(flat[path[-1].key].reshape(leaf.shape), leaf.sharding)

    return jax.tree_util.tree_map_with_path(one, like)


def batch(size: contest.Size) -> batch_lib.Batch:
    tokens, targets = contest.tokens(size)
    return batch_lib.Batch(
        tokens=tokens,
        targets=targets,
        segments=np.ones_like(tokens),
        positions=np.broadcast_to(np.arange(size.row_tokens, dtype=np.int32), tokens.shape),
        weights=np.ones(tokens.shape, np.float32),
        source=np.zeros_like(tokens),
    )


def make(size: contest.Size) -> tuple[Callable[[], float], int]:
    with tempfile.TemporaryDirectory() as folder:
        tokens = str(pathlib.Path(folder) / "tokens")
        write_tokens(size, tokens, documents=64, tokens=size.row_tokens)
        begun = loop.begin(config(size, tokens, f"{folder}/run", steps=4))
    (train_step,) = begun.early.steps.values()
    state = dataclasses.replace(begun.state, params=params(size, begun.state.params))
    placed = readers.place(batch(size), sharding.batch(begun.mesh))

    def update() -> float:
        nonlocal state
        with jax.set_mesh(begun.mesh):
            state, metrics = train_step(state, placed)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return update, sum(x.size for x in jax.tree.leaves(state.params))


if __name__ == "__main__":
    contest.serve(make)
