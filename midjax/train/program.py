# SPDX-License-Identifier: Apache-2.0
"""The jitted train step of a recipe: what `train` runs and what `plan` compiles are this one.

recipe + mesh --state--> shapes and shardings --steps--> rows of a batch -> jitted step
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from midjax.batches import batch as batch_lib
from midjax.model import context, fsdp, sharding, torus
from midjax.train import placement, recipe, restore
from midjax.train import step as step_lib
from midjax.train.schedules import curve as curve_lib


def check(config: recipe.Train, mesh: jax.sharding.Mesh, sizes: Iterable[int]) -> None:
    """Refuses a recipe whose batches, rows or memories do not fit the mesh.

    Args:
      config: the recipe.
      mesh: of the devices that it would run on.
      sizes: rows of its batches.

    Raises:
      ValueError: says which axis does not divide, or what the devices lack.
    """
    placement.check(mesh, config.state_memory)
    for rows in sizes:
        part = (rows // config.parts(rows),)
        sharding.check_divides("A microbatch", part, ("batch",), mesh.shape)
    context.order(config.data.row_tokens, context.shards(mesh.shape))  # or is refused


def state(
    config: recipe.Train, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> step_lib.TrainState:
    """Shapes, dtypes and shardings of the state: neither data nor a checkpoint is read."""
    return restore.abstract(config, optimizer, mesh)


def batch(mesh: jax.sharding.Mesh, rows: int, row_tokens: int) -> batch_lib.Batch:
    """Shapes, dtypes and shardings of a batch on the mesh.

    Raises:
      ValueError: its rows do not divide over the mesh.
    """
    place = sharding.batch(mesh, rows)

    def field(name: str) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if name == "weights" else jnp.int32
        return jax.ShapeDtypeStruct((rows, row_tokens), dtype, sharding=place)

    fields: dict[str, Any] = {name: field(name) for name in batch_lib.FIELDS}
    return batch_lib.Batch(**fields)


def steps(
    config: recipe.Train,
    optimizer: optax.GradientTransformation,
    schedule: curve_lib.Curve,
    like: step_lib.TrainState,
    mesh: jax.sharding.Mesh,
    sizes: Iterable[int],
) -> dict[int, Any]:
    """Rows of a batch -> the jitted step: a state, which is used up, and a batch on the mesh.

    Args:
      config: the recipe; of its data only the names of the sources are looked at.
      optimizer, schedule: made of it.
      like: a state, or its shapes, with the shardings that every state has.
      mesh: of the state.
      sizes: rows of the batches. A batch of another size is another program.
    """

    def one(rows: int) -> Any:
        made = step_lib.make_train_step(
            config.model,
            config.loss,
            optimizer,
            curve_lib.learning_rate(schedule),
            sources=len(config.data.mixture.names),
            microbatches=config.parts(rows),
            spikes=config.spikes,
            layer_norms_every_steps=config.layer_norms_every_steps,
            noise_every_steps=config.noise_scale_every_steps,
            ema=config.ema,
        )
        return jitted(made, like, mesh, config.fsdp_sums)

    return {rows: one(rows) for rows in set(sizes)}


def jitted(step: Any, like: step_lib.TrainState, mesh: jax.sharding.Mesh, sums: torus.Sums) -> Any:
    """A pure step as one program: the state it is given is used up, and stays where it is.

    Args:
      step: (state, batch) -> (state, metrics).
      like: a state, or its shapes, with its shardings.
      mesh: of the state.
      sums: how FSDP sums gradients over the torus.
    """
    replicated = jax.sharding.NamedSharding(mesh, sharding.spec(()))
    shardings = (jax.tree.map(lambda x: x.sharding, like), replicated)
    here = torus.traced_on(torus.of(mesh, fsdp.AXES, sums), step)
    near = placement.near(here, shardings[0])
    return jax.jit(near, donate_argnums=0, out_shardings=shardings)
