# SPDX-License-Identifier: Apache-2.0
"""The front: the state's layout and dtypes, and that every optimizer's survives a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_optimizer as tiny
import tiny_run

from midjax import checkpoint, trees
from midjax.train import loop
from midjax.train.optimizers import optimizer

EACH = pytest.mark.parametrize("kind", tiny.EVERY)


@EACH
def test_the_state_is_plain_and_named_by_kind_and_path(kind):
    made, params = optimizer.make(tiny.EVERY[kind]), tiny.tree(tiny.arrays(0))
    state = jax.eval_shape(made.init, params)
    parts = optimizer.to_parts(state)
    assert set(parts) == {"moments", "adam_count"}
    for moment, tree in parts["moments"].items():
        names = {name for name, leaf in trees.named_leaves(tree) if leaf.size}
        assert names and names <= set(tiny.SHAPES), moment
        nodes = jax.tree.leaves(tree, is_leaf=lambda node: not isinstance(node, dict))
        assert all(isinstance(node, jax.ShapeDtypeStruct) for node in nodes)
    directions, moved = jax.eval_shape(made.update, params, state, params)
    assert trees.describe(moved) == trees.describe(state)
    assert trees.describe(directions) == trees.describe(params)


@EACH
def test_parts_go_round(kind):
    shapes = jax.eval_shape(optimizer.make(tiny.EVERY[kind]).init, tiny.tree(tiny.arrays(0)))
    fresh, moved = (jax.tree.map(lambda x, n=n: np.full(x.shape, n), shapes) for n in (0, 1))
    rebuilt = optimizer.from_parts(fresh, optimizer.to_parts(moved))
    assert jax.tree.structure(rebuilt) == jax.tree.structure(moved)
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (rebuilt, moved)), strict=True))
    some = optimizer.from_parts(fresh, {"adam_count": moved["adam_count"]})
    assert int(some["adam_count"]) == 1
    assert not any(x.any() for x in jax.tree.leaves(some["moments"]))


@EACH
def test_logical_axes_have_the_shapes_of_the_state(kind):
    """Each array of the state has the axes that its sizes tell: all differ here."""
    sizes = {"a": 2, "b": 3, "c": 5, "d": 7}
    axes = {"embed": ("a", "b"), "final_norm": ("b",), "layers": {"wq": ("c", "b", "d", "a")}}
    shapes = jax.tree.map(
        lambda of: jax.ShapeDtypeStruct([sizes[axis] for axis in of], "float32"), axes,
        is_leaf=lambda node: isinstance(node, tuple),
    )  # fmt: skip
    state = jax.eval_shape(optimizer.make(tiny.EVERY[kind]).init, shapes)
    found = optimizer.logical_axes(tiny.EVERY[kind], axes, shapes)
    named = dict(trees.named_leaves(found, is_leaf=lambda node: isinstance(node, tuple)))
    for name, leaf in trees.named_leaves(state):
        assert tuple(sizes[axis] for axis in named.pop(name)) == leaf.shape, name
    assert not named


def test_moments_are_kept_in_their_dtypes_and_computed_in_float32():
    config = tiny.adamw_config(mu_dtype="bfloat16", nu_dtype="bfloat16", clip_norm=None)
    params = {"head": jnp.float32(tiny.arrays(0)["head"])}
    made = optimizer.make(config)
    state = made.init(params)
    mu = nu = np.zeros(tiny.SHAPES["head"], np.float32)
    for t, seed in enumerate((1, 2, 3), 1):
        g = tiny.arrays(seed)["head"].astype(np.float32)
        directions, state = made.update({"head": g}, state, params)
        mu, nu = 0.9 * mu + 0.1 * g, 0.95 * nu + 0.05 * g**2
        expected = mu / (1 - 0.9**t) / (np.sqrt(nu / (1 - 0.95**t)) + 1e-8)
        expected += 0.1 * tiny.arrays(0)["head"]
        np.testing.assert_allclose(directions["head"], expected, rtol=1e-5, atol=1e-6)
        mu, nu = (x.astype(jnp.bfloat16).astype(np.float32) for x in (mu, nu))
        for kind, x in (("mu", mu), ("nu", nu)):
            kept = state["moments"][kind]["head"]
            assert kept.dtype == jnp.bfloat16
            np.testing.assert_allclose(kept.astype(jnp.float32), x, rtol=2**-7)
    assert {x.dtype.name for x in jax.tree.leaves(directions)} == {"float32"}


@pytest.mark.parametrize(
    "config, kinds",
    [
        (tiny.muon_config(mu_dtype="bfloat16"), {"mu"}),
        (tiny.muon_config(nu_dtype="bfloat16"), {"nu"}),
        (tiny.lion_config(mu_dtype="bfloat16"), {"mu"}),
        (tiny.adafactor_config(b1=0.9, mu_dtype="bfloat16"), {"mu_update"}),
    ],
)
def test_each_kind_has_a_dtype_of_its_own(config, kinds):
    made, params = optimizer.make(config), tiny.tree(tiny.arrays(0))
    state = jax.eval_shape(made.init, params)
    _, moved = jax.eval_shape(made.update, params, state, params)
    assert trees.describe(moved) == trees.describe(state)
    for kind, tree in state["moments"].items():
        wanted = "bfloat16" if kind in kinds else "float32"
        assert {x.dtype.name for x in jax.tree.leaves(tree)} == {wanted}, kind


def test_a_mean_in_bfloat16_that_could_not_fall_is_refused():
    one = jnp.bfloat16(1)
    assert jnp.bfloat16(0.9985 * one.astype(jnp.float32)) == one  # what would happen
    with pytest.raises(ValueError, match=r"AdamW.b2 = 0.9985 is too slow for a mean in bfloat16"):
        tiny.adamw_config(b2=0.9985, nu_dtype="bfloat16")


def test_a_run_goes_on_bit_for_bit(tmp_path):
    """8 updates; then the last 4 of them again, from the checkpoint between."""
    tiny_run.write_tokens(tmp_path / "tokens")
    config = tiny_run.train(tmp_path, optimizer=tiny.EVERY["muon"])
    last = loop.run(config)
    digests = checkpoint.read_facts(config.run_dir, 8)["manifest"]["digests"]
    (tmp_path / "run" / "checkpoints" / "8").rename(tmp_path / "8")
    again = loop.run(config)
    assert {name: again[name] for name in ("loss", "grad_norm", "update_norm")} == {
        name: last[name] for name in ("loss", "grad_norm", "update_norm")
    }
    assert checkpoint.read_facts(config.run_dir, 8)["manifest"]["digests"] == digests
    assert any(name.startswith("opt_state/moments/mu") for name in digests)
