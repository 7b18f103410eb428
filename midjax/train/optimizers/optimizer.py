# SPDX-License-Identifier: Apache-2.0
"""The front: an optimizer's config -> an Optax transformation with a plain state.

    gradients -> clip -> the config's `direction` -> + decay -> direction, float32

The state is {"moments": {kind: tree}, "adam_count": int32}, where a kind's tree has the paths of
the parameters that have it, and nothing in place of the others. `adam_count` is the age of the
moments in updates. AdamW (bias correction) and Adafactor (decay of its means) compute with it, Lion
and Muon's own parameters do not, and all of them count. It survives an anneal; the position on the
learning rate curve is another number, which an anneal resets.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from midjax import trees
from midjax.train.optimizers import adafactor, adamw, common, lion, muon, rules

Optimizer = adamw.AdamW | adafactor.Adafactor | lion.Lion | muon.Muon


def make(config: Optimizer) -> optax.GradientTransformation:
    """The transformation; the caller multiplies what it gives by minus the learning rate.

    Both of its functions raise ValueError for a parameter without exactly one rule.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()

    def init(params: Any) -> dict[str, Any]:
        leaves = dict(trees.named_leaves(params))
        decay(config, leaves)
        kept = config.moments({name: leaf.shape for name, leaf in leaves.items()})
        moments: dict[str, dict[str, jax.Array]] = {}
        for name, of in kept.items():
            for kind, moment in of.items():
                shape = [leaves[name].shape[i] for i in moment.axes]
                moments.setdefault(kind, {})[name] = jnp.zeros(shape, moment.dtype)
        return _state(moments, jnp.int32(0))

    def update(gradients: Any, state: Any, params: Any) -> tuple[Any, dict[str, Any]]:
        gradients, _ = clip.update(gradients, clip.init(params))
        flat, values = _float32(gradients), _float32(params)
        before = {kind: _float32(tree) for kind, tree in state["moments"].items()}
        count = state["adam_count"]
        directions, after = config.direction(flat, before, count, values)
        for name, rate in decay(config, values).items():
            if rate:
                directions[name] = directions[name] + rate * values[name]
        kept = config.moments({name: leaf.shape for name, leaf in values.items()})
        moments = {
            kind: {name: leaf.astype(kept[name][kind].dtype) for name, leaf in tree.items()}
            for kind, tree in after.items()
        }
        count = optax.safe_increment(count)
        return trees.nested(directions), _state(moments, count)

    return optax.GradientTransformation(init, update)


def decay(config: Optimizer, names: Iterable[str]) -> dict[str, float]:
    """Path of each parameter -> its weight decay, to be multiplied by the learning rate.

    Raises:
      ValueError: a parameter that no rule matches, or more than one.
    """
    where = f"{type(config).__name__}.decay_rules"
    of = rules.assign(config.decay_rules, names, where)
    return {name: config.weight_decay * multiplier for name, multiplier in of.items()}


def logical_axes(config: Optimizer, axes: Any, shapes: Any) -> dict[str, Any]:
    """The logical axes of the state, for `sharding.tree`: of each moment those that it has kept.

    Args:
      config: the optimizer.
      axes: of the parameters, as `transformer.logical_axes` gives them.
      shapes: the parameters, or their shapes.
    """
    leaves = dict(trees.named_leaves(shapes))
    named = dict(trees.named_leaves(axes, is_leaf=lambda node: isinstance(node, tuple)))
    moments: dict[str, dict[str, Any]] = {}
    for name, of in config.moments({name: leaf.shape for name, leaf in leaves.items()}).items():
        for kind, moment in of.items():
            moments.setdefault(kind, {})[name] = tuple(named[name][i] for i in moment.axes)
    return _state(moments, ())


def to_parts(opt_state: Any) -> dict[str, Any]:
    """What a checkpoint keeps of the state, by name: {"moments": {kind: tree}, "adam_count"}."""
    return dict(opt_state)


def from_parts(opt_state: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    """`opt_state` with the parts that are given in their places."""
    return opt_state | {name: parts[name] for name in ("moments", "adam_count") if name in parts}


def _state(moments: Mapping[str, Mapping[str, Any]], count: Any) -> dict[str, Any]:
    of_kinds = {kind: trees.nested(tree) for kind, tree in moments.items()}
    return {"moments": of_kinds, "adam_count": count}


def _float32(tree: Any) -> common.Flat:
    return {name: leaf.astype(jnp.float32) for name, leaf in trees.named_leaves(tree)}
