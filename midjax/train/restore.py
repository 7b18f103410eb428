# SPDX-License-Identifier: Apache-2.0
"""The first state of a run, on its mesh, with proof that what was to be kept arrived.

prepare.Prepared + mesh --first_state--> TrainState
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from midjax import checkpoint, log, trees
from midjax.model import hf, sharding, transformer
from midjax.train import ema as ema_lib
from midjax.train import guard as guard_lib
from midjax.train import placement
from midjax.train import prepare as prepare_lib
from midjax.train import recipe as recipe_lib
from midjax.train import start as start_lib
from midjax.train import step as step_lib
from midjax.train.optimizers import optimizer as optimizer_lib

# Two sums of the same squares, in another order on another mesh.
NORM_TOLERANCE = 1e-4
_COUNT = "opt_state/adam_count"
_ITEMS = {
    "guard": "history, of the length that is asked for, that spikes are told by",
    "ema": "average of its parameters",
}


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
    init_opt = jax.jit(
        prepared.optimizer.init, out_shardings=shardings.opt_state, compiler_options=_quick(mesh)
    )

    def count(number: int) -> jax.Array:  # a buffer of its own each time, as they are donated
        return jax.make_array_from_callback(
            (), shardings.step, lambda _: np.array(number, np.int32)
        )

    with jax.set_mesh(mesh):
        if origin.run is not None:
            found, opt_state = _restored(prepared, abstract, init_opt)
            params, history, average = found["params"], found.get("guard"), found.get("ema")
            return step_lib.TrainState(
                step=count(prepared.first_step),
                schedule_count=count(prepared.schedule_count),
                params=params,
                opt_state=opt_state,
                guard=guard_lib.State(**history) if history else fresh_guard(config.spikes, mesh),
                ema=_fresh_ema(params, shardings.ema) if average is None else average,
            )
        if origin.huggingface is not None:
            _, params = hf.load(origin.huggingface, targets=abstract.params)
        else:
            params = _fresh_params(config, shardings.params, mesh)
        return step_lib.TrainState(
            step=count(0),
            schedule_count=count(0),
            params=params,
            opt_state=init_opt(params),
            guard=fresh_guard(config.spikes, mesh),
            ema=_fresh_ema(params, shardings.ema),
        )


def _fresh_params(
    config: recipe_lib.Train, shardings: Any, mesh: jax.sharding.Mesh
) -> transformer.Params:
    """Random parameters, as `jax.random.key(config.seed)` gives them."""

    def init(seed: jax.Array) -> transformer.Params:  # a key of its own would be another program
        return transformer.init(config.model, jax.random.key(seed))

    made = jax.jit(init, out_shardings=shardings, compiler_options=_quick(mesh))
    return made(np.int64(config.seed).astype(np.int32))  # the bits that JAX takes of it


def _quick(mesh: jax.sharding.Mesh) -> dict[str, Any] | None:
    """Options of the compiler for what runs once.

    Random numbers take LLVM longer than anything else at a start. With fewer of its passes the bits
    are the same, in a third of the time.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 1} if on_cpu else None


def abstract_state(prepared: prepare_lib.Prepared, mesh: jax.sharding.Mesh) -> step_lib.TrainState:
    """Shapes, dtypes and shardings of the state."""
    return abstract(prepared.config, prepared.optimizer, mesh)


def abstract(
    config: recipe_lib.Train, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> step_lib.TrainState:
    """`abstract_state` of a recipe, for which nothing has been read."""
    model = config.model
    replicated = jax.sharding.NamedSharding(mesh, sharding.spec(()))
    shapes = transformer.abstract(model)
    axes = transformer.logical_axes(model)
    param_shardings = sharding.tree(mesh, axes, shapes)
    opt_shapes = jax.eval_shape(optimizer.init, shapes)
    opt_axes = optimizer_lib.logical_axes(config.optimizer, axes, shapes)
    opt_shardings = sharding.tree(mesh, opt_axes, opt_shapes)

    def with_shardings(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
        )

    number: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    state = step_lib.TrainState(
        step=number,
        schedule_count=number,
        params=with_shardings(shapes, param_shardings),
        opt_state=with_shardings(opt_shapes, opt_shardings),
        guard=_abstract_guard(config.spikes, replicated),
        ema=None
        if config.ema is None
        else with_shardings(jax.eval_shape(ema_lib.begin, shapes), param_shardings),
    )
    return placement.placed(state, config.state_sharding, config.state_memory)


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
    return jax.jit(functools.partial(guard_lib.fresh, spikes), out_shardings=everywhere)()


def _fresh_ema(params: Any, shardings: Any) -> Any:
    """The average of a run that has seen no update; None without one."""
    if shardings is None:
        return None
    return jax.jit(ema_lib.begin, out_shardings=shardings)(params)


def saved_parts(state: step_lib.TrainState) -> dict[str, Any]:
    """The item `opt_state` of a checkpoint, of arrays or of their shapes."""
    return optimizer_lib.to_parts(state.opt_state) | {"schedule_count": state.schedule_count}


def _restored(
    prepared: prepare_lib.Prepared, abstract: step_lib.TrainState, init_opt: Any
) -> tuple[Any, Any]:
    """(items besides the optimizer's as they were saved, optimizer state with what is kept)."""
    origin, moments = prepared.origin, prepared.taken.moments
    assert origin.run is not None and origin.step is not None
    wanted = dict(trees.named_leaves({"opt_state": optimizer_lib.to_parts(abstract.opt_state)}))
    kept: tuple[str, ...] = moments.kept if moments else ()
    if moments and moments.count_kept:
        kept = (*kept, _COUNT)
    targets = {"params": abstract.params} | _continued(origin, abstract)
    targets |= trees.nested({name: wanted[name] for name in kept})
    saved = origin.manifest["arrays"]
    found = checkpoint.restore(
        origin.run,
        origin.step,
        trees.as_saved(saved, targets),  # digests and norms are of that dtype
        unused=[name for name in saved if name.startswith("opt_state/") and name not in kept],
    )
    prove(origin, found)
    found = trees.cast(found, targets)
    if not kept:
        return found, init_opt(found["params"])
    rest = {name: target for name, target in wanted.items() if name not in kept}
    zeros = jax.jit(
        lambda: {name: jnp.zeros(target.shape, target.dtype) for name, target in rest.items()},
        out_shardings={name: target.sharding for name, target in rest.items()},
    )
    whole = trees.nested(zeros() | dict(trees.named_leaves({"opt_state": found["opt_state"]})))
    return found, optimizer_lib.from_parts(abstract.opt_state, whole["opt_state"])


def _continued(origin: start_lib.Origin, state: step_lib.TrainState) -> dict[str, Any]:
    """The items `guard` and `ema` of the checkpoint, where the run goes on with them."""
    wanted: dict[str, Any] = {}
    if state.guard is not None and {"step", "data"} <= origin.parts:
        wanted["guard"] = guard_lib.to_item(state.guard)
    if state.ema is not None and "step" in origin.parts:
        wanted["ema"] = state.ema
    found = {}
    for item, target in wanted.items():
        saved = {n: what for n, what in origin.manifest["arrays"].items() if n.startswith(item)}
        if saved == trees.describe({item: target}):
            found[item] = target
        else:
            log.say(f"{origin.run}, step {origin.step}, holds no {_ITEMS[item]}: it begins anew")
    return found


def prove(origin: start_lib.Origin, restored: Mapping[str, Any]) -> None:
    """Compares the norms of what was to be kept with those in the source's manifest.

    Args:
      origin: the checkpoint.
      restored: its items, in the dtypes in which they were saved.

    Raises:
      StartError: a restore that did nothing, or the wrong thing.
    """
    saved, whole = origin.manifest["norms"], _whole(origin.manifest["arrays"], restored)
    for name, norm in trees.norms(whole).items():
        if not np.isclose(norm, saved[name], rtol=NORM_TOLERANCE, atol=0.0):
            raise start_lib.StartError(
                f"After restoring {origin.run}, step {origin.step}, the norm of {name} is "
                f"{norm:.8g} and was {saved[name]:.8g} when saved: the restore did not arrive. "
                "Nothing was trained."
            )
    if "adam_count" not in restored.get("opt_state", {}):
        return
    count, was = int(restored["opt_state"]["adam_count"]), origin.manifest["adam_count"]
    if count != was:
        raise start_lib.StartError(
            f"After restoring {origin.run}, Adam's count is {count} and was {was} when saved."
        )


def _whole(saved: Mapping[str, str], restored: Mapping[str, Any]) -> dict[str, Any]:
    """`restored` without the kinds of moments of which only a part was kept: norms are of all."""
    there = trees.describe(dict(restored))
    moments = {
        kind: tree
        for kind, tree in restored.get("opt_state", {}).get("moments", {}).items()
        if all(name in there for name in saved if name.startswith(f"opt_state/moments/{kind}/"))
    }
    return {"params": restored["params"], "opt_state": {"moments": moments}}
