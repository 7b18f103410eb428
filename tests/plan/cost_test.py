# SPDX-License-Identifier: Apache-2.0
"""Costs of programs: one written by hand, and some that the TPU's compiler makes."""

import jax
import jax.numpy as jnp
import pytest
import tpu_compiler
from jax.sharding import NamedSharding, PartitionSpec

from midjax.hardware import slices
from midjax.plan import cost, dump, groups

KNOBS = {
    "kernel_efficiency": 0.5,
    "grouped_efficiency": 0.7,
    "attention_share": 0.5,
    "ici_efficiency": 0.85,
    "dcn_efficiency": 0.85,
}
TEXT = """HloModule x, is_scheduled=true

ENTRY %main (a: u8[1000000]) -> u8[4000000] {
  %a = u8[1000000]{0} parameter(0)
  %g = u8[4000000]{0} all-gather(%a), replica_groups=[4,4]<=[16], dimensions={0}
  %h = u8[4000000]{0} all-gather(%a), replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}
  %r = u8[4000000]{0} all-reduce(%g), replica_groups=[4,4]<=[16], to_apply=%add
  ROOT %c = u8[4000000]{0} copy(%r), metadata={op_name="jit(step)/mlp"}, a={"estimated_cycles":1500}
}
"""
MESH = {"data": 4, "fsdp": 4}


def test_the_parts_are_the_step():
    found = cost.estimate(TEXT, slices.parse("v5e-16"), MESH, **KNOBS)
    assert found.step_seconds == pytest.approx(sum(found.parts.values()))
    assert found.parts["vector"] == pytest.approx(1e-6)
    assert found.assumptions == KNOBS
    axes = found.by_axis()
    assert set(axes) == {"data", "fsdp"}
    assert axes["data"]["bytes_sent"] == 3e6
    assert axes["fsdp"]["bytes_sent"] == 9e6
    assert sum(one["exposed_seconds"] for one in axes.values()) == pytest.approx(
        found.parts["collectives"]
    )
    first = found.most_expensive[0]
    assert (first.name, first.bytes_sent, first.how) == ("r", 6e6, "all-reduce over fsdp")


def test_half_the_links_take_twice_as_long():
    one = slices.parse("v5e-16")
    slow = cost.estimate(TEXT, one, MESH, **{**KNOBS, "ici_efficiency": 0.4})
    fast = cost.estimate(TEXT, one, MESH, **{**KNOBS, "ici_efficiency": 0.8})
    assert slow.parts["collectives"] == pytest.approx(2 * fast.parts["collectives"])


def test_a_knob_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"ici_efficiency is a share .* got 85"):
        cost.estimate(TEXT, slices.parse("v5e-16"), MESH, **{**KNOBS, "ici_efficiency": 85})


def compiled(step, devices, mesh_sizes, arguments, **flags):
    """The program of a step; arguments are (shape, spec)."""
    axis_types = (jax.sharding.AxisType.Auto,) * len(mesh_sizes)
    mesh = jax.make_mesh(
        tuple(mesh_sizes.values()), tuple(mesh_sizes), devices=devices, axis_types=axis_types
    )
    given = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in arguments
    ]
    with jax.set_mesh(mesh):
        lowered = jax.jit(step).lower(*given)
    return dump.compiled(lowered, flags), groups.places(mesh.devices.flat)


@pytest.mark.parametrize(
    ("name", "peak_share"), [("v5p:2x2x1", 0.90), ("v5e:2x2", 0.88), ("v6e:2x2", 0.70)]
)
def test_one_large_product_per_chip(name, peak_share):
    """What the compiler says of a product of 8,192^3 with its own limit on VMEM."""
    rows = PartitionSpec("data")
    program, places = compiled(
        lambda a, b: a @ b,
        tpu_compiler.devices(name),
        {"data": 4},
        [((4 * 8192, 8192), rows), ((8192, 8192), PartitionSpec())],
    )
    one = slices.parse(name)
    found = cost.estimate(program.text, one, {"data": 4}, places=places, **KNOBS)
    assert found.matrix_flops == 2 * 8192**3
    reached = found.matrix_flops / found.step_seconds / one.chip.bf16_flops_per_second
    assert reached == pytest.approx(peak_share, abs=0.02)


def test_layers_whose_weights_are_gathered():
    """A forward and a backward pass of 6 layers [1024, 1024], weights split over fsdp."""
    layers, dim, rows = 6, 1024, 4096

    def loss(weights, x):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, PartitionSpec())
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    mesh = {"data": 2, "fsdp": 2}
    program, places = compiled(
        jax.grad(loss),
        tpu_compiler.devices("v5e:2x2"),
        mesh,
        [
            ((layers, dim, dim), PartitionSpec(None, "fsdp")),
            ((rows, dim), PartitionSpec(("data", "fsdp"))),
        ],
    )
    found = cost.estimate(program.text, slices.parse("v5e-4"), mesh, places=places, **KNOBS)
    product = 2 * rows / 4 * dim * dim
    # Forward, and backward to weights and inputs; no gradient is wanted of the first input, but
    # a loop does the same for every layer.
    assert found.matrix_flops == pytest.approx(3 * layers * product)
    assert {loop.trips for loop in found.loops} <= {layers, layers - 1}
    kinds = {(one.axis, one.kind): one.bytes_sent for one in found.collectives}
    whole = layers * dim * dim * 2  # bytes
    assert kinds["fsdp", "all-gather"] == whole / 2
    assert kinds["data+fsdp", "all-reduce"] == 2 * whole * 3 / 4
    assert found.notes == {}
