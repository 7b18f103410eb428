# SPDX-License-Identifier: Apache-2.0
"""The axis table, its refusals, and that the mesh does not change the numbers.

What needs four devices runs in one process that poses as having them: this file as a script.
"""

import contextlib
import pathlib
import pickle
import re
import sys

import devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from jax.sharding import PartitionSpec as P

from midjax.model import loss, sharding, transformer

# Dimensions that every mesh below divides.
CONFIG = tiny_model.config(tied_head=True, layers=2, loss_chunk_tokens=10)
MESHES = [(1, 2, 1), (1, 2, 2), (2, 2, 1)]


def made(data, fsdp, tensor):
    devices = jax.devices()[: data * fsdp * tensor]
    return sharding.make(sharding.Mesh(data=data, fsdp=fsdp, tensor=tensor), devices)


def test_spec_follows_the_table():
    batch = ("data", "fsdp", "expert")
    assert sharding.spec(("batch", "length", None)) == P(batch, "context", None)
    axes = ("layers", "embed", "heads", "head_dim")
    assert sharding.spec(axes) == P(None, ("fsdp", "context", "expert"), "tensor", None)
    axes = ("experts", "expert_embed", "mlp")
    assert sharding.spec(axes) == P("expert", ("fsdp", "context"), "tensor")


def test_colliding_axes_name_both():
    with pytest.raises(
        ValueError, match=r"'batch' goes to \('data', 'fsdp', 'expert'\) and 'embed' to"
    ):
        sharding.spec(("batch", "embed"))


def test_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="Unknown logical axis 'width'"):
        sharding.spec(("width",))


def test_mesh_is_filled_and_checked():
    assert sharding.sizes(sharding.Mesh(data=2, fsdp=-1, tensor=2), 8) == (2, 2, 1, 1, 2)
    assert sharding.sizes(sharding.Mesh(data=1, fsdp=2, tensor=1, context=-1, expert=2), 16) == (
        1,
        2,
        4,
        2,
        1,
    )
    with pytest.raises(ValueError, match="does not fit 1 devices"):
        sharding.make(sharding.Mesh(data=1, fsdp=3, tensor=1), jax.devices()[:1])
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        sharding.sizes(sharding.Mesh(data=3, fsdp=-1, tensor=1), 8)
    with pytest.raises(ValueError, match="does not fit 2 devices"):
        sharding.sizes(sharding.Mesh(data=3, fsdp=-1, tensor=1), 2)
    with pytest.raises(ValueError, match="Only one axis"):
        sharding.Mesh(data=-1, fsdp=-1, tensor=1)
    with pytest.raises(ValueError, match=r"Mesh\.tensor must be 1 or more"):
        sharding.Mesh(data=1, fsdp=1, tensor=0)


def test_what_does_not_divide_is_refused():
    shape = {"data": 1, "fsdp": 2, "context": 1, "expert": 1, "tensor": 2}
    with pytest.raises(ValueError, match=r"wq: axis 'heads' of size 1 .* tensor 2"):
        sharding.check_divides("wq", (8, 1, 4), ("embed", "heads", "head_dim"), shape)
    with pytest.raises(ValueError, match="has 1 dimensions"):
        sharding.check_divides("wk", (8,), ("embed", None), shape)


def test_vocabulary_and_key_heads_may_stay_whole():
    """A checkpoint has fixed them; what does not divide is copied, not refused."""
    shape = {"data": 1, "fsdp": 2, "context": 1, "expert": 1, "tensor": 2}
    axes = ("vocab", "embed")
    sharding.check_divides("embed", (101, 8), axes, shape)
    embed = ("fsdp", "context", "expert")
    assert sharding.spec(axes, (101, 8), shape) == P(None, embed)
    assert sharding.spec(axes, (102, 8), shape) == P("tensor", embed)
    axes = ("embed", "kv_heads", "head_dim")
    assert sharding.spec(axes, (8, 1, 4), shape) == P(embed, None, None)


def test_constrain_without_a_mesh_is_nothing():
    x = jnp.ones((3, 2))
    assert sharding.constrain(x, ("batch", None)) is x


def test_which_axis_is_the_only_one():
    def only(**sizes):
        sizes = {"data": 1, "fsdp": 1, "context": 1, "expert": 1, "tensor": 1} | sizes
        mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
        with jax.sharding.use_abstract_mesh(mesh):
            return sharding.only_splits(("batch", "embed"), "fsdp")

    assert only(fsdp=4) and only(data=2, fsdp=4)
    assert not only() and not only(data=4)
    assert not only(fsdp=4, tensor=2) and not only(fsdp=4, context=2) and not only(tensor=4)


def outcome(mesh):
    """Parameters, logits, losses and gradients as made under a mesh."""
    tokens, segments, positions = tiny_model.rows(4, 24)

    def objective(params, tokens, segments, positions):
        hidden = transformer.hidden(CONFIG, params, tokens, segments, positions)
        weights = jnp.full(tokens.shape, 1 / tokens.size)
        value, (nll, _) = loss.objective(CONFIG, params, hidden, tokens, weights, 1e-2)
        return value, (transformer.logits(CONFIG, params, hidden), nll)

    context, shardings = contextlib.nullcontext(), None
    if mesh is not None:
        context = jax.set_mesh(mesh)
        axes, shapes = transformer.logical_axes(CONFIG), transformer.abstract(CONFIG)
        shardings = sharding.tree(mesh, axes, shapes)
        rows = sharding.batch(mesh, 4)
        tokens, segments, positions = jax.device_put((tokens, segments, positions), rows)
    with context:
        init = jax.jit(transformer.init, static_argnums=0, out_shardings=shardings)
        params = init(CONFIG, jax.random.key(5))
        step = jax.jit(jax.value_and_grad(objective, has_aux=True))
        (value, (scores, nll)), grads = step(params, tokens, segments, positions)
        if mesh is not None:
            where = jax.tree.map(
                lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), grads, shardings
            )
            assert all(jax.tree.leaves(where))
    return jax.tree.map(np.asarray, (params, value, scores, nll, grads))


def refusals():
    """The messages of what a real mesh refuses, before any device work."""
    mesh, found = made(1, 2, 2), []
    config = tiny_model.config(heads=3, kv_heads=3)
    axes, shapes = transformer.logical_axes(config), transformer.abstract(config)

    def constrain():
        with jax.set_mesh(mesh):
            sharding.constrain(jnp.ones((3, 2)), ("batch", None))

    for refused in (
        lambda: sharding.tree(mesh, axes, shapes),
        lambda: sharding.batch(mesh, 3),
        constrain,
        lambda: sharding.make(sharding.Mesh(data=1, fsdp=3, tensor=1)),
    ):
        try:
            refused()
            found.append("nothing")
        except ValueError as error:
            found.append(str(error))
    return found


def travelling(kind, **mesh):
    """Shapes that such collectives of a gradient give: four rows of 128 tokens, four devices."""
    mesh = sharding.make(sharding.Mesh(data=1, tensor=1, **mesh), jax.devices()[:4])
    config = tiny_model.config(layers=2, loss_chunk_tokens=16, tied_head=False)
    axes, shapes = transformer.logical_axes(config), transformer.abstract(config)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        sharding.tree(mesh, axes, shapes),
    )
    row = jax.ShapeDtypeStruct((4, 128), jnp.int32, sharding=sharding.batch(mesh, 4))

    def objective(params, tokens, segments, positions):
        hidden = transformer.hidden(config, params, tokens, segments, positions)
        return tiny_model.mean_loss(config, params, hidden, tokens)

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(objective)).lower(params, row, row, row).compile().as_text()
    found = re.findall(rf"= \w+\[([\d,]+)\]\S* {kind}\(", text)
    return sorted({tuple(map(int, shape.split(","))) for shape in found})


def moved_without_context():
    """Parameters that would lie elsewhere if `context` were a part of `fsdp`."""
    mesh = sharding.make(sharding.Mesh(data=1, fsdp=2, tensor=1, context=2))
    config = tiny_model.config()
    shapes, axes = transformer.abstract(config), transformer.logical_axes(config)
    places = [sharding.tree(one, axes, shapes) for one in (mesh, sharding.without_context(mesh))]
    alike = jax.tree.map(lambda x, *of: of[0].is_equivalent_to(of[1], x.ndim), shapes, *places)
    split = [len(x.spec) > 1 and x.spec[1] for x in jax.tree.leaves(places[1])]
    return sum(not one for one in jax.tree.leaves(alike)), any(split)


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """What `main` made on four emulated devices."""
    out = tmp_path_factory.mktemp("mesh") / "out.pickle"
    devices.run_script(__file__, out)
    return pickle.loads(out.read_bytes())  # noqa: S301 (our own, made a moment ago)


def test_a_mesh_refuses_early(four_devices):
    parameter, batch, activation, devices = four_devices["refusals"]
    assert "layers/wo: axis 'heads' of size 3 does not divide over mesh tensor 2" in parameter
    assert "The batch: axis 'batch' of size 3 does not divide over mesh data 1 x fsdp 2" in batch
    assert "axis 'batch' of size 3" in activation
    assert "does not fit 4 devices" in devices


@pytest.mark.parametrize("sizes", MESHES)
def test_the_mesh_changes_no_number(sizes, four_devices):
    params, *rest = four_devices[sizes]
    want_params, *want = four_devices[None]
    jax.tree.map(np.testing.assert_array_equal, params, want_params)
    for one, other in zip(jax.tree.leaves(rest), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


def test_without_context_parameters_stay_where_they_are(four_devices):
    assert four_devices["moved"] == (0, True)


def test_context_splits_the_work_of_every_layer(four_devices):
    """Whole rows are gathered as keys and values only, never at the model's or the mlp's width."""
    whole_rows = [shape for shape in four_devices["gathered"] if 128 in shape or 256 in shape]
    keys = {(2, 2, 64, 2, 16), (2, 128, 2, 16), (4, 128, 2, 16)}
    ids = {shape for shape in whole_rows if len(shape) == 2}  # segments and the like
    assert set(whole_rows) <= keys | ids, whole_rows


def test_where_fsdp_is_the_only_axis_the_embedding_stays(four_devices):
    """Each device looks up its part of the width; elsewhere the table travels."""
    table = (96, 32)
    assert table in four_devices["gathered"]
    assert table not in four_devices["gathered over fsdp"]


def main(out):
    found = {"refusals": refusals(), None: outcome(None)}
    found["gathered"] = travelling("all-gather", fsdp=2, context=2)
    found["gathered over fsdp"] = travelling("all-gather", fsdp=4)
    found["moved"] = moved_without_context()
    for sizes in MESHES:
        found[sizes] = outcome(made(*sizes))
    pathlib.Path(out).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
