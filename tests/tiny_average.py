# SPDX-License-Identifier: Apache-2.0
"""Runs with checkpoints that nobody trained, for averages of them."""

import dataclasses
import pathlib

import jax
import numpy as np
import tiny_model

from midjax import checkpoint, verbs
from midjax.average import ingredients, recipe
from midjax.model import sharding, transformer

ONE = sharding.Mesh(data=1, fsdp=1, tensor=1)
model = tiny_model.config
params = tiny_model.params


def write(folder: pathlib.Path, name: str, trees, config=None, *, tokenizer="abc", before=()):
    """Saves {step: parameters} as the checkpoints of folder/name; returns its path."""
    run_dir = str(folder / name)
    keep = checkpoint.Keep(every_steps=1, last=99, forever_every_steps=None)
    with checkpoint.Store(run_dir, keep) as store:
        for step, tree in trees.items():
            facts = {
                "model": dataclasses.asdict(config or model()),
                "tokenizer_hash": tokenizer,
                "lineage": [*before, {"run": run_dir, "step": step}],
            }
            store.save(step, params=tree, opt_state=None, data={}, facts=facts)
    return run_dir


def gathered(*checkpoints):
    return ingredients.gather(checkpoints, verbs.checkpoint_of)


def targets(config=None):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        transformer.abstract(config or model()),
    )


def average(output: pathlib.Path, method, mesh=ONE) -> recipe.Average:
    return recipe.Average(output=str(output), method=method, mesh=mesh)


def no_scorer(*_):
    raise AssertionError("nothing is to be scored")


def read(run_dir, step: int, config=None):
    """A checkpoint's parameters, as numpy arrays."""
    found = checkpoint.restore(str(run_dir), step, {"params": targets(config)})
    return jax.tree.map(np.asarray, found["params"])


def same_bits(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs
    )
