# SPDX-License-Identifier: Apache-2.0
"""Four devices against one, with every remat policy; what is sent, and what is kept."""

import collections
import math
import pathlib
import pickle
import re
import sys

import devices
import jax
import numpy as np
import pytest
import tiny_model

from midjax.model import context, fsdp, sharding, torus, transformer

POLICIES = ("none", "dots", "full", "save_projections")
MESHES = {
    "fsdp": {"fsdp": 4},
    "copies": {"data": 2, "fsdp": 2},
    "torus": {"fsdp": 4},
    "cut rows": {"fsdp": 2, "context": 2},
    "cut rows, torus": {"fsdp": 2, "context": 2},
    "cut rows alone": {"context": 4},
    "cut rows, copies": {"data": 2, "context": 2},
}
RUNS = [
    *(("fsdp", policy) for policy in POLICIES),
    *((name, "save_projections") for name in MESHES if name != "fsdp"),
]
FLAT = torus.Torus()
TORI = dict.fromkeys(("torus", "cut rows, torus"), torus.Torus(sizes=(2, 2), sparse_cores=True))
# Biases of queries, keys and values are matrices [N, H] that nothing splits.
MODEL = {"layers": 2, "loss_chunk_tokens": 10, "qkv_bias": True, "qk_norm": "head"}


def objective(config, params, tokens_BT, segments_BT, positions_BT):
    hidden_BTD = transformer.hidden(config, params, tokens_BT, segments_BT, positions_BT)
    return tiny_model.mean_loss(config, params, hidden_BTD, tokens_BT, 1e-3)


def mesh_of(axes):
    return sharding.make(sharding.Mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | axes)))


def outcome(policy, axes=None, here=FLAT):
    """Loss, gradients and the compiled program."""
    config = tiny_model.config(**MODEL, remat=policy)
    params, rows = tiny_model.params(config), tiny_model.rows(4, 24)
    of_params = torus.traced_on(here, jax.value_and_grad(objective, argnums=1))
    compute = jax.jit(of_params, static_argnums=0)
    if axes is None:
        return *jax.device_get(compute(config, params, *rows)), ""
    mesh = mesh_of(axes)
    shapes = transformer.abstract(config)
    params = jax.device_put(params, sharding.tree(mesh, transformer.logical_axes(config), shapes))
    rows = jax.device_put(context.arrange(rows, mesh.shape), sharding.batch(mesh))
    with jax.set_mesh(mesh):
        made = compute.lower(config, params, *rows).compile()
        return *jax.device_get(made(params, *rows)), made.as_text()


def where_it_applies():
    others = (
        {"tensor": 2, "fsdp": 2},
        {"tensor": 2, "context": 2},
        {"data": 4},
        {"expert": 2, "fsdp": 2},
    )
    found = {}
    for axes in (*MESHES.values(), *others):
        with jax.set_mesh(mesh_of(axes)):
            found[tuple(axes.items())] = fsdp.applies()
    return found


def main(out):
    found = {
        (name, policy): outcome(policy, MESHES[name], TORI.get(name, FLAT)) for name, policy in RUNS
    }
    found["applies"] = where_it_applies()
    pathlib.Path(out).write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """What `main` made on four emulated devices."""
    out = tmp_path_factory.mktemp("fsdp") / "out.pickle"
    devices.run_script(__file__, out)
    return pickle.loads(out.read_bytes())  # noqa: S301 (our own, made a moment ago)


@pytest.fixture(scope="module")
def one_device():
    return outcome("none")


@pytest.mark.parametrize(("mesh", "policy"), RUNS)
def test_the_mesh_changes_no_number(mesh, policy, four_devices, one_device):
    value, grads, _ = four_devices[mesh, policy]
    want, wants, _ = one_device
    assert value == pytest.approx(float(want), rel=1e-6)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wants), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-7)


def gathers(program):
    """All-gathers of weights written out, forward and backward."""
    names = re.findall(r" all-gather\(.*op_name=\"([^\"]*)\"", program)
    inside = [name for name in names if "shard_map" in name]
    backward = sum("transpose(jvp" in name for name in inside)
    return len(inside) - backward, backward


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_keeps_whole_weights(policy, four_devices):
    """They are gathered again for the backward pass, and their gradients are scattered."""
    if policy == "none":  # keeps everything, so its layers are left to the compiler
        assert gathers(four_devices["fsdp", policy][2]) == (1, 0)  # the head
        return
    program = four_devices["fsdp", policy][2]
    forward, backward = gathers(program)
    # Of 7 matrices and the head, which is gathered once; the last product needs none again.
    assert forward >= 8 and backward >= 6
    assert len(re.findall(r" reduce-scatter\(", program)) >= 8


def test_cut_rows_scatter_gradients_too(four_devices):
    """Seven matrices, the head and the embedding; no gradient of a matrix is summed in full."""
    program = four_devices["cut rows", "save_projections"][2]
    assert len(re.findall(r" reduce-scatter\(", program)) >= 9
    summed = re.findall(r" = (\S+|\([^)]*\)) all-reduce\(", program)
    config = tiny_model.config(**MODEL)
    of_matrix = min(config.kv_heads * config.head_dim, config.ffn_dim) * config.dim
    sizes = [
        math.prod(int(size) for size in shape.split(",") if size)
        for shapes in summed
        for shape in re.findall(r"f32\[([\d,]*)\]", shapes)
    ]
    assert sizes and max(sizes) < of_matrix


@pytest.mark.parametrize("name", TORI)
def test_on_a_torus_they_go_along_one_dimension_after_the_other(name, four_devices):
    program = four_devices[name, "save_projections"][2]
    kinds = r" (all-gather|reduce-scatter)\(.*?replica_groups=(\S+?), "
    found = collections.Counter(re.findall(kinds, program))
    inner, outer = "{{0,1},{2,3}}", "{{0,2},{1,3}}"
    # Seven matrices and the head, of which the last product needs no second gather.
    assert min(found["reduce-scatter", where] for where in (inner, outer)) >= 8
    assert min(found["all-gather", where] for where in (inner, outer)) >= 14
    assert {where for kind, where in found if kind == "reduce-scatter"} == {inner, outer}


def test_it_is_for_meshes_that_split_nothing_but_tokens(four_devices):
    of_tokens = {tuple(axes.items()) for axes in MESHES.values()}
    assert {axes for axes, applies in four_devices["applies"].items() if applies} == of_tokens
    assert len(four_devices["applies"]) == len(of_tokens) + 4
    assert not fsdp.applies()  # no mesh


if __name__ == "__main__":
    main(sys.argv[1])
