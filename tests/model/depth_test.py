# SPDX-License-Identifier: Apache-2.0
"""Folding over layers: every one in its turn with its own weights, however few are written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from midjax.model import architecture, depth, transformer

EXPERTS = architecture.Experts(count=2, per_token=1, ffn_dim=4)
MODELS = {
    "alike": {"layers": 11},
    "few": {"layers": 3},
    "pattern, and a rest": {"layers": 11, "layer_pattern": ("window", "window", "full"),
                            "window_tokens": 4},
    "first ones dense": {"layers": 12, "experts": EXPERTS, "dense_layers": (0, 1)},
    "no order": {"layers": 9, "experts": EXPERTS, "dense_layers": (1, 2, 6)},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_comes_in_its_turn(name):
    config = tiny_model.config(**MODELS[name])
    members = transformer.layers_of(config)
    # A weight is 1000 times its number in the alphabet, and its layer.
    number = {weight: 1000 * i for i, weight in enumerate(sorted(members))}
    stacks = {w: jnp.array(having) + number[w] for w, having in members.items()}

    def each(layer, carry, weights):
        assert set(weights) == {w for w, having in members.items() if layer in having}
        of_each = jnp.stack([value - number[w] for w, value in sorted(weights.items())])
        at, wrong = carry
        kind = layer % len(config.layer_pattern)
        wrong += jnp.sum(of_each != at) + (at % len(config.layer_pattern) != kind)
        found = of_each[0] if config.has_experts(layer) else None
        return (at + 1, wrong), found

    fold = jax.jit(lambda stacks: depth.fold(config, members, stacks, each, (0, 0)))
    (count, wrong), found = fold(stacks)
    assert (count, wrong) == (config.layers, 0)
    having = [i for i in range(config.layers) if config.has_experts(i)]
    if having:
        np.testing.assert_array_equal(found, having)
    else:
        assert found is None


def test_long_models_are_loops():
    assert depth.flat(tiny_model.config(layers=8))
    assert not depth.flat(tiny_model.config(layers=9))
    assert not depth.flat(tiny_model.config(layers=8, remat="full"))


def test_no_second_stack_of_weights_is_kept_for_the_backward_pass():
    """The loop over layers gives back what their backward pass needs; the weights are at hand."""
    config = tiny_model.config(layers=10, remat="full")
    params, rows = tiny_model.params(config), tiny_model.rows(2, 16)

    def total(params):
        return transformer.hidden(config, params, *rows).astype(jnp.float32).sum()

    program = jax.make_jaxpr(jax.grad(total))(params).jaxpr
    forward = next(eqn for eqn in program.eqns if eqn.primitive.name == "scan")
    stacks = {leaf.shape for leaf in params["layers"].values()}
    assert not [v.aval.shape for v in forward.outvars if v.aval.shape in stacks]
    assert (10, 2, 16, config.dim) in [v.aval.shape for v in forward.outvars]
