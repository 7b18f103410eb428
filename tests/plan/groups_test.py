# SPDX-License-Identifier: Apache-2.0
"""Groups of devices and the axes of the mesh that they follow."""

import itertools
import types

import numpy as np
import pytest

from midjax.hardware import slices
from midjax.plan import groups, hlo

MESH = {"data": 2, "fsdp": 4, "context": 2}  # 16 devices


def group(attributes: str, mesh=None, name="v5e-16", where=None) -> groups.Group:
    one = hlo.Instruction("x", "all-gather", "f32[8]{0}", "", attributes)
    return groups.Mesh(slices.parse(name), mesh or MESH, where).group(one)


def lists(*axes: int) -> str:
    """The groups along these axes of MESH, one after another, by numpy alone."""
    grid = np.arange(16).reshape(2, 4, 2)
    rest = [axis for axis in range(3) if axis not in axes]
    rows = grid.transpose(*rest, *axes).reshape(-1, int(np.prod([grid.shape[a] for a in axes])))
    return "{" + ",".join("{" + ",".join(map(str, row)) + "}" for row in rows.tolist()) + "}"


@pytest.mark.parametrize(
    "axes", [a for n in (1, 2, 3) for a in itertools.combinations(range(3), n)]
)
def test_explicit_groups_follow_their_axes(axes):
    found = group(f"replica_groups={lists(*axes)}, dimensions={{0}}")
    names = [name for i, name in enumerate(MESH) if i in axes]
    assert found.axis == "+".join(names)
    assert found.size == np.prod([MESH[name] for name in names])


def test_groups_counted_up():
    assert group("replica_groups=[8,2]<=[16], x").axis == "context"
    assert group("replica_groups=[8,2]<=[2,8]T(1,0), x").axis == "data"
    assert group("replica_groups=[4,4]<=[2,4,2]T(0,2,1), x").axis == "fsdp"
    found = group("replica_groups=[1,16]<=[16], x")
    assert (found.axis, found.size) == ("data+fsdp+context", 16)


def test_groups_in_a_mesh_of_the_compilers_own():
    assert group("replica_groups=mesh['a'=2,'b'=8] {'a'}, dimensions={0}").axis == "data"
    found = group("replica_groups=mesh['a'=2,'b'=8] {'b'}, x")
    assert (found.axis, found.size) == ("fsdp+context", 8)
    part = group("replica_groups=mesh['a'=16] {'a':(2)4}, x")
    assert (part.axis, part.size) == ("fsdp", 4)
    turned = "replica_groups=mesh['a'=8,'b'=2], device_ids=([8,2]<=[2,8]T(1,0)) {'b'}, x"
    assert group(turned).axis == "data"
    short = "replica_groups=mesh['a'=2,'c'=1,'b'=8], device_ids=([8,2]T(1,0)) {'a'}, x"
    assert group(short).axis == "context"
    listed = "replica_groups=mesh['a'=2,'b'=2], device_ids=(0,8,1,9) {'b'}, x"
    assert group(listed).axis == "data"


def test_no_groups_are_all_devices():
    assert group("replica_groups={}, x").size == 16


def test_pairs_of_a_permutation():
    ring = ",".join(f"{{{i},{(i // 8) * 8 + (i + 2) % 8}}}" for i in range(16))
    assert group(f"channel_id=1, source_target_pairs={{{ring}}}").axis == "fsdp"


def test_groups_that_follow_no_axis_are_other():
    assert group("replica_groups={{0,3},{1,2}}, x").axis == "fsdp+context"
    assert group("replica_groups={{0,1},{2,4}}, x").axis == groups.OTHER
    assert group("replica_groups={{0,1},{30,31}}, x").axis == groups.OTHER
    assert group("replica_groups=[8,2]<|[16], written in a way of its own").axis == groups.OTHER


def test_a_mesh_must_have_as_many_devices_as_the_slice():
    with pytest.raises(ValueError, match=r"data 2 x fsdp 4\) has 8 devices, v5e-16 has 16 chips"):
        groups.Mesh(slices.parse("v5e-16"), {"data": 2, "fsdp": 4})


def test_a_program_for_several_slices_numbers_one_of_them():
    mesh = {"data": 2, "fsdp": 16}
    found = group("replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}", mesh, "2xv5e-16")
    assert (found.axis, found.slices) == ("fsdp", 1)
    whole = groups.Mesh(slices.parse("2xv5e-16"), mesh)
    send = hlo.Instruction("s", "send", "", "", '_xla_megascale_target="{1,2}x{0:15}"')
    between = whole.across_slices(send)
    assert (between.axis, between.size, between.slices) == ("data", 2, 2)


def test_slices_may_lie_along_an_inner_axis():
    """Two slices split the fsdp axis: devices 0-3 and 8-11 of the mesh are the first one's."""
    mesh = {"data": 2, "fsdp": 8}
    spots = [
        groups.Place(slice_index=i % 8 // 4, coordinates=(i // 8 * 2 + i % 2, i % 4 // 2, 0))
        for i in range(16)
    ]
    assert group("replica_groups={{0,4},{1,5}}", mesh, "2xv5e-8", spots).axis == "data"
    assert group("replica_groups={{0,1,2,3},{4,5,6,7}}", mesh, "2xv5e-8", spots).axis == "fsdp"
    whole = groups.Mesh(slices.parse("2xv5e-8"), mesh, spots)
    assert whole.across_slices(hlo.Instruction("s", "send", "", "", "")).axis == "fsdp"


def test_places_tell_links_from_the_torus():
    devices = [
        types.SimpleNamespace(coords=[x, y, z], slice_index=0)
        for x in range(4)
        for y in range(4)
        for z in range(4)
    ]
    where = groups.places(devices)
    mesh = {"fsdp": 4, "context": 16}
    row = "replica_groups=[4,16]<=[64]"
    flat = group(row, mesh, "v5p-128", where)
    assert (flat.axis, flat.torus_dims, flat.closed) == ("context", 2, True)
    line = group("replica_groups=[16,4]<=[4,16]T(1,0)", mesh, "v5p-128", where)
    assert (line.axis, line.torus_dims, line.closed) == ("fsdp", 1, True)
    half = group("replica_groups=[32,2]<=[64]", {"a": 32, "b": 2}, "v5p-128", where)
    assert (half.torus_dims, half.closed) == (1, False)
