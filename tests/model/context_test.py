# SPDX-License-Identifier: Apache-2.0
"""The order itself; and that rows split over `context` give the numbers of one device.

What needs four devices runs in one process that poses as having them: this file as a script.
"""

import pathlib
import pickle
import sys

import devices
import jax
import numpy as np
import pytest
import tiny_model

from midjax.model import context, loss, sharding, transformer

# The smallest row that splash takes without padding on four shards: two chunks of 128 on each.
LENGTH = 1024
# kernel, mesh axes.
CASES = [
    ("blocked", {"context": 4}),
    ("blocked", {"context": 2, "tensor": 2}),
    ("splash_interpret", {"context": 2, "fsdp": 2}),
    ("splash_interpret", {"context": 4}),
]


def test_order_by_hand():
    np.testing.assert_array_equal(context.order(8, 2), [0, 1, 6, 7, 2, 3, 4, 5])
    np.testing.assert_array_equal(context.order(8, 4), [0, 7, 1, 6, 2, 5, 3, 4])
    np.testing.assert_array_equal(context.natural(8, 4), [0, 2, 4, 6, 7, 5, 3, 1])


def test_one_shard_changes_nothing():
    # Any length: there are no chunks.
    np.testing.assert_array_equal(context.order(7, 1), np.arange(7))
    np.testing.assert_array_equal(context.natural(7, 1), np.arange(7))


@pytest.mark.parametrize("shards", [2, 3, 16])
def test_every_shard_has_the_same_work(shards):
    """Keys that the queries of a shard see, under a causal mask."""
    seen = 1 + context.order(12 * 2 * shards, shards).reshape(shards, -1)
    assert len(set(seen.sum(axis=1))) == 1


@pytest.mark.parametrize("tokens, shards", [(24, 2), (24, 3), (1024, 4)])
def test_natural_undoes_order(tokens, shards):
    row = np.random.default_rng(0).permutation(tokens)
    placed = row[context.order(tokens, shards)]
    assert (placed != row).any()
    np.testing.assert_array_equal(placed[context.natural(tokens, shards)], row)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"12 tokens .* context 4.* multiple of 8, such as 16"):
        context.order(12, 4)


def test_arrange_and_restore_follow_the_mesh():
    mesh = {"fsdp": 1, "context": 2}
    rows = {"tokens": np.arange(16).reshape(2, 8), "weights": np.arange(8.0)[None]}
    placed = context.arrange(rows, mesh)
    np.testing.assert_array_equal(placed["tokens"][1], [8, 9, 14, 15, 10, 11, 12, 13])
    np.testing.assert_array_equal(placed["weights"], [[0, 1, 6, 7, 2, 3, 4, 5]])
    np.testing.assert_array_equal(context.restore(placed["tokens"], mesh), rows["tokens"])
    assert context.arrange(rows, {"fsdp": 2, "context": 1}) is rows


def batch():
    """Rows of documents that are cut by every shard's edge, and padding."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 96, (2, LENGTH)).astype(np.int32)
    ends = np.array([[90, 600, 1000], [300, 301, 900]])
    places = np.arange(LENGTH)
    documents = (places[None, :, None] >= ends[:, None, :]).sum(-1)
    starts = np.concatenate((np.zeros((2, 1), int), ends), axis=1)
    positions = places - np.take_along_axis(starts, documents, axis=1)
    padding = documents == 3
    return {
        "tokens": np.where(padding, 0, tokens),
        "targets": np.where(padding, 0, rng.integers(0, 96, tokens.shape)).astype(np.int32),
        "segments": np.where(padding, 0, documents + 1).astype(np.int32),
        "positions": np.where(padding, 0, positions).astype(np.int32),
        "weights": np.where(padding, 0.0, 1.0).astype(np.float32),
    }


def outcome(kernel, axes):
    """Loss, gradients and the loss of every place, in natural order."""
    config = tiny_model.config(
        layers=2, remat="full", loss_chunk_tokens=256, attention_kernel=kernel
    )
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | axes
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    mesh = sharding.make(sharding.Mesh(**sizes), devices)

    def objective(params, rows):
        hidden = transformer.hidden(
            config, params, rows["tokens"], rows["segments"], rows["positions"]
        )
        weights = rows["weights"] / rows["weights"].sum()
        value, (nll, _) = loss.objective(config, params, hidden, rows["targets"], weights, 0.0)
        return value, nll

    logical, shapes = transformer.logical_axes(config), transformer.abstract(config)
    params = jax.device_put(tiny_model.params(config), sharding.tree(mesh, logical, shapes))
    rows = jax.device_put(context.arrange(batch(), mesh.shape), sharding.batch(mesh, 2))
    with jax.set_mesh(mesh):
        (value, nll), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params, rows)
    nll = context.restore(np.asarray(nll), mesh.shape)
    return jax.tree.map(np.asarray, (value, nll, grads))


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """What `main` made on four emulated devices."""
    out = tmp_path_factory.mktemp("context") / "out.pickle"
    devices.run_script(__file__, out)
    return pickle.loads(out.read_bytes())  # noqa: S301 (our own, made a moment ago)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{k} {a}" for k, a in CASES])
def test_context_changes_no_number(case, four_devices):
    value, nll, grads = four_devices[case]
    want_value, want_nll, want_grads = four_devices["one"]
    assert value == pytest.approx(want_value, rel=1e-6)
    np.testing.assert_allclose(nll, want_nll, atol=1e-5)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def main(out):
    found = {"one": outcome("blocked", {})}
    for number, case in enumerate(CASES):
        found[number] = outcome(*case)
    pathlib.Path(out).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
