# SPDX-License-Identifier: Apache-2.0
"""The first state of a run, on its mesh, with proof that what was to be kept arrived.

prepare.Prepared + mesh --first_state--> TrainState
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from midjax import checkpoint, log, trees
from midjax.model import hf, sharding, transformer
from midjax.train import guard as guard_lib
from midjax.train import prepare as prepare_lib
from midjax.train import start as start_lib
from midjax.train import step as step_lib
from midjax.train.optimizers import optimizer as optimizer_lib

# Two sums of the same squares, in another order on another mesh.
NORM_TOLERANCE = 1e-4


def first_state(prepared: prepare_lib.Prepared, mesh: jax.sharding.Mesh) -> step_lib.TrainState:
    """Parameters by the sharding table, moments as their parameters; each kept or fresh.

    Raises:
      checkpoint.DamagedError: the checkpoint is not what was saved.
      checkpoint.CheckpointError: it cannot be read.
      StartError: the restored norms are not those that were saved.
    """
    config, origin = prepared.config, prepared.origin
    abstract = abstract_state(prepared, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    init_opt = jax.jit(prepared.optimizer.init, out_shardings=shardings.opt_state)

    def count(number: int) -> jax.Array:  # a buffer of its own each time, as they are donated
        return jax.device_put(jnp.int32(number), shardings.step)

    with jax.set_mesh(mesh):
        if origin.run is not None:
            state = _restored(origin, abstract, init_opt, count, prepared.schedule_count)
            if state.guard is None:
                state = dataclasses.replace(state, guard=fresh_guard(config.spikes, mesh))
            return state
        if origin.huggingface is not None:
            _, params = hf.load(origin.huggingface, targets=abstract.params)
        else:
            init = functools.partial(transformer.init, config.model)
            made = jax.jit(init, out_shardings=shardings.params)
            params = made(jax.random.key(config.seed))
        return step_lib.TrainState(
            step=count(0),
            schedule_count=count(0),
            params=params,
            opt_state=init_opt(params),
            guard=fresh_guard(config.spikes, mesh),
        )


def abstract_state(prepared: prepare_lib.Prepared, mesh: jax.sharding.Mesh) -> step_lib.TrainState:
    """Shapes, dtypes and shardings of the state."""
    model = prepared.config.model
    replicated = jax.sharding.NamedSharding(mesh, sharding.spec(()))
    shapes = transformer.abstract(model)
    axes = transformer.logical_axes(model)
    param_shardings = sharding.tree(mesh, axes, shapes)
    opt_shapes = jax.eval_shape(prepared.optimizer.init, shapes)
    opt_axes = optimizer_lib.logical_axes(prepared.config.optimizer, axes, shapes)
    opt_shardings = sharding.tree(mesh, opt_axes, opt_shapes)

    def with_shardings(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
        )

    number: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return step_lib.TrainState(
        step=number,
        schedule_count=number,
        params=with_shardings(shapes, param_shardings),
        opt_state=with_shardings(opt_shapes, opt_shardings),
        guard=_abstract_guard(prepared.config.spikes, replicated),
    )


def _abstract_guard(spikes: guard_lib.Spikes | None, replicated: Any) -> guard_lib.State | None:
    if spikes is None:
        return None
    shapes = jax.eval_shape(functools.partial(guard_lib.fresh, spikes))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), shapes
    )


def fresh_guard(spikes: guard_lib.Spikes | None, mesh: jax.sharding.Mesh) -> guard_lib.State | None:
    """The history of a run that has seen no update; None without a rule."""
    if spikes is None:
        return None
    everywhere = jax.sharding.NamedSharding(mesh, sharding.spec(()))
    return jax.device_put(guard_lib.fresh(spikes), everywhere)


def saved_parts(state: step_lib.TrainState) -> dict[str, Any]:
    """The item `opt_state` of a checkpoint, of arrays or of their shapes."""
    return optimizer_lib.to_parts(state.opt_state) | {"schedule_count": state.schedule_count}


def _restored(
    origin: start_lib.Origin,
    abstract: step_lib.TrainState,
    init_opt: Any,
    count: Any,
    schedule_count: int,
) -> step_lib.TrainState:
    assert origin.run is not None and origin.step is not None
    targets = {"params": abstract.params}
    if "moments" in origin.parts:
        targets["opt_state"] = saved_parts(abstract)
    if history := _saved_history(origin, abstract.guard):
        targets["guard"] = history
    restored = checkpoint.restore(origin.run, origin.step, targets)
    if "moments" in origin.parts:
        opt_state = optimizer_lib.from_parts(abstract.opt_state, restored["opt_state"])
    else:
        opt_state = init_opt(restored["params"])
    state = step_lib.TrainState(
        step=count(origin.step if "step" in origin.parts else 0),
        schedule_count=count(schedule_count),
        params=restored["params"],
        opt_state=opt_state,
        guard=guard_lib.State(**restored["guard"]) if "guard" in restored else None,
    )
    prove(origin, state)
    return state


def _saved_history(origin: start_lib.Origin, history: guard_lib.State | None) -> Any:
    """The item `guard` of the checkpoint, if the run goes on with it."""
    if history is None or not {"step", "data"} <= origin.parts:
        return None
    item = guard_lib.to_item(history)
    if trees.mismatches(origin.manifest["arrays"], {"guard": item}):
        log.say(
            f"{origin.run}, step {origin.step}, holds no history of {len(history.loss)} updates: "
            "the one that spikes are told by begins anew"
        )
        return None
    return item


def prove(origin: start_lib.Origin, state: step_lib.TrainState) -> None:
    """Compares the norms of what was to be kept with those in the source's manifest.

    Raises:
      StartError: a restore that did nothing, or the wrong thing.
    """
    parts = optimizer_lib.to_parts(state.opt_state)
    arrays = {"params": state.params}
    if "moments" in origin.parts:
        arrays["opt_state"] = parts
    saved = origin.manifest["norms"]
    for name, norm in trees.norms(arrays).items():
        if not np.isclose(norm, saved[name], rtol=NORM_TOLERANCE, atol=0.0):
            raise start_lib.StartError(
                f"After restoring {origin.run}, step {origin.step}, the norm of {name} is "
                f"{norm:.8g} and was {saved[name]:.8g} when saved: the restore did not arrive. "
                "Nothing was trained."
            )
    if "adam_count" in origin.parts and int(parts["adam_count"]) != origin.manifest["adam_count"]:
        raise start_lib.StartError(
            f"After restoring {origin.run}, Adam's count is {int(parts['adam_count'])} and was "
            f"{origin.manifest['adam_count']} when saved."
        )
