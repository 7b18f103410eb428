# SPDX-License-Identifier: Apache-2.0
"""Means against numpy's of the saved arrays, to the bit; on four devices too."""

import itertools
import pathlib
import sys

import devices
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_average as tiny

from midjax import foreign_item, verbs
from midjax.average import merge, methods, recipe
from midjax.model import sharding

STEPS = (2, 4, 6)
WEIGHTS = (0.5, 0.2, 0.3)
DTYPES = ("float32", "bfloat16")


def trees(config):
    return {step: tiny.params(config, seed) for seed, step in enumerate(STEPS)}


@pytest.fixture(scope="module", params=DTYPES)
def run(request, tmp_path_factory):
    config = tiny.model(param_dtype=request.param)
    return tiny.write(tmp_path_factory.mktemp("merge"), "run", trees(config), config), config


def mean(run, weights, steps=STEPS):
    run_dir, config = run
    found = tiny.gathered(*((run_dir, step) for step in steps))
    return merge.mean(found, weights, tiny.targets(config))


def numpys_mean(*arrays):
    return np.mean([x.astype(np.float64) for x in arrays], axis=0).astype(arrays[0].dtype)


def numpys_weighted(weights):
    def one(*arrays):
        total = sum(w * x.astype(np.float64) for w, x in zip(weights, arrays, strict=True))
        return (total / sum(weights)).astype(arrays[0].dtype)

    return one


@pytest.mark.parametrize(
    ("weights", "numpys"),
    [
        ((1.0, 1.0, 1.0), numpys_mean),
        (WEIGHTS, numpys_weighted(WEIGHTS)),
        ((2.0, -1.5, 0.5), numpys_weighted((2.0, -1.5, 0.5))),
    ],
)
def test_means_are_numpys_of_the_saved_arrays(run, weights, numpys):
    saved = [tiny.read(run[0], step, run[1]) for step in STEPS]
    expected = jax.tree.map(numpys, *saved)
    found = mean(run, weights)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype == run[1].param_dtype
        np.testing.assert_array_equal(ours, theirs)


def test_one_is_itself_bit_for_bit(run):
    config = run[1]
    assert tiny.same_bits(mean(run, [1.0], [4]), trees(config)[4])
    assert tiny.same_bits(mean(run, [1.0, 0.0], [4, 6]), trees(config)[4])


def test_zeros_subnormals_and_extremes_survive(tmp_path):
    strange = tiny.params(tiny.model())
    values = [-0.0, 0.0, 1e-45, -1e-40, 3e18, -3e18, 1 + 2**-23]
    strange["final_norm"] = np.resize(np.float32(values), strange["final_norm"].shape)
    found = tiny.gathered((tiny.write(tmp_path, "run", {1: strange}), 1))
    assert tiny.same_bits(merge.mean(found, [1.0], tiny.targets()), strange)


def test_the_order_does_not_matter(run):
    equal, weighted = mean(run, [1.0] * 3), mean(run, WEIGHTS)
    coarse = jnp.finfo(run[1].param_dtype).eps
    for order in itertools.permutations(range(3)):
        steps = [STEPS[i] for i in order]
        assert tiny.same_bits(mean(run, [1.0] * 3, steps), equal)  # these sums are exact
        again = mean(run, [WEIGHTS[i] for i in order], steps)
        for a, b in zip(jax.tree.leaves(weighted), jax.tree.leaves(again), strict=True):
            np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=coarse, atol=1e-15)


def test_the_sum_is_wider_than_the_parameters(tmp_path):
    """In float32, 1e8 + 1 - 1e8 is 0."""
    made = {}
    for step, value in zip(STEPS, (1e8, 1.0, -1e8), strict=True):
        made[step] = tiny.params(tiny.model())
        made[step]["embed"] = jnp.full_like(made[step]["embed"], value)
    run = tiny.write(tmp_path, "run", made), tiny.model()
    np.testing.assert_allclose(mean(run, [1.0] * 3)["embed"], 1 / 3, rtol=1e-7)


def test_chunks_cover_an_array_whose_size_they_do_not_divide(monkeypatch, run):
    whole = mean(run, WEIGHTS)
    monkeypatch.setattr(merge, "_CHUNK", 7)
    assert tiny.same_bits(mean(run, WEIGHTS), whole)


def test_memory_does_not_grow_with_the_ingredients(monkeypatch, tmp_path):
    """While arrays are read: the mean so far, and one array of one ingredient."""
    run_dir = tiny.write(tmp_path, "run", {i: tiny.params(tiny.model(), i) for i in range(1, 7)})
    found = tiny.gathered(*((run_dir, i) for i in range(1, 7)))
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(tiny.targets())]
    before, read, most = _alive(), foreign_item.ForeignItem.read, []

    def watched(item, shardings):
        arrays = read(item, shardings)
        most.append(_alive() - before)
        return arrays

    monkeypatch.setattr(foreign_item.ForeignItem, "read", watched)
    merge.mean(found, [1.0] * 6, tiny.targets())
    assert len(most) == 6 * len(sizes)
    assert max(most) <= sum(sizes) + 2 * max(sizes) < 2 * sum(sizes)


def _alive() -> int:
    return sum(x.nbytes for x in jax.live_arrays())


def on_four_devices(folder: pathlib.Path) -> None:
    """Run in a process of its own, which poses as having four devices."""
    mesh = sharding.Mesh(data=1, fsdp=2, tensor=2)
    for dtype in DTYPES:
        method = methods.LastN(
            run=str(folder / "run" / dtype), newest=3, steps=None, weights=WEIGHTS
        )
        root = tiny.average(folder / dtype, method, mesh)
        recipe.run(root, find=verbs.checkpoint_of, scorer=tiny.no_scorer)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    for dtype in DTYPES:
        config = tiny.model(param_dtype=dtype)
        tiny.write(folder / "run", dtype, trees(config), config)
    devices.run_script(__file__, folder)
    return folder


def test_four_devices_make_the_same(four, run):
    config = run[1]
    assert tiny.same_bits(tiny.read(four / config.param_dtype, 6, config), mean(run, WEIGHTS))


def test_bfloat16_is_rounded_once():
    """What the comparisons with numpy rest on: ml_dtypes rounds to the nearest."""
    assert np.float64(1 + 2**-9).astype(ml_dtypes.bfloat16) == 1
    assert np.float64(1 + 3 * 2**-9).astype(ml_dtypes.bfloat16) == 1 + 2**-7


if __name__ == "__main__":
    on_four_devices(pathlib.Path(sys.argv[1]))
