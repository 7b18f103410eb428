# SPDX-License-Identifier: Apache-2.0
"""Gathers and sums dimension by dimension against all at once; tori read off coordinates."""

import dataclasses
import pathlib
import pickle
import re
import sys

import devices
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from midjax.model import torus

TORI = {
    "in one": torus.Torus(),
    "sums": torus.Torus(sizes=(2, 2)),
    "both": torus.Torus(sizes=(2, 2), sparse_cores=True),
    "gathers": torus.Torus(sizes=(2, 2), sparse_cores=True, sums_at_once=True),
}
INNER, OUTER = "{{0,1},{2,3}}", "{{0,2},{1,3}}"


def main(out):
    """On four devices: what is gathered, its gradient, and the program."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    part, weights = rng.normal(size=(8, 3)), rng.normal(size=(4, 8, 3))

    def by_device(part, weights):
        """Every device weighs the whole in its own way."""
        whole = torus.gathered(part, ("x",), 0)
        return whole[None], (whole * weights[0]).sum(keepdims=True)[0]

    def total(part, weights):
        specs = {"in_specs": (P("x"), P("x")), "out_specs": (P("x"), P("x"))}
        whole, sums = jax.shard_map(by_device, check_vma=False, **specs)(part, weights)
        return sums.sum(), whole

    found = {"part": part, "weights": weights}
    for name, one in TORI.items():
        with jax.set_mesh(mesh):
            step = jax.jit(torus.traced_on(one, jax.value_and_grad(total, has_aux=True)))
            made = step.lower(part, weights).compile()
            (_, whole), gradient = made(part, weights)
        found[name] = (np.asarray(whole), np.asarray(gradient), made.as_text())
    pathlib.Path(out).write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("torus") / "out.pickle"
    devices.run_script(__file__, out)
    return pickle.loads(out.read_bytes())  # noqa: S301 (our own, made a moment ago)


@pytest.mark.parametrize("name", TORI)
def test_every_device_has_the_whole_and_gets_its_part_of_the_sum(name, found):
    whole, gradient, _ = found[name]
    for one in whole:
        np.testing.assert_array_equal(one, np.float32(found["part"]))
    np.testing.assert_allclose(gradient, found["weights"].sum(0), rtol=1e-6)


def groups(program, kind):
    """Shapes and replica groups of these collectives."""
    return re.findall(rf"= f32\[([\d,]*)\]\S* {kind}\(.*?replica_groups=(\S+?), ", program)


def test_each_step_is_along_one_dimension(found):
    program = found["both"][2]
    assert groups(program, "all-gather") == [("4,3", INNER), ("8,3", OUTER)]
    # Half of it over the outer lines, and of that half the half.
    assert groups(program, "reduce-scatter") == [("4,3", OUTER), ("2,3", INNER)]
    (gather,), sums = (groups(found["sums"][2], kind) for kind in ("all-gather", "reduce-scatter"))
    assert gather[0] == "8,3" and gather[1] not in (INNER, OUTER)
    assert [where for _, where in sums] == [OUTER, INNER]
    (at_once,) = groups(found["gathers"][2], "reduce-scatter")
    assert at_once == ("2,3", gather[1])
    assert groups(found["gathers"][2], "all-gather") == groups(program, "all-gather")
    (at_once,) = groups(found["in one"][2], "reduce-scatter")
    assert at_once[0] == "2,3" and at_once[1] not in (INNER, OUTER)


def test_gathers_take_the_inner_dimensions_together():
    one = torus.Torus(sizes=(2, 2, 3), sparse_cores=True)
    planes, lines = one.gathers()
    assert planes == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert lines == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
    outer, middle, inner = one.sums()
    assert outer == lines
    assert middle == [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]
    assert inner == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert torus.Torus(sizes=(2, 2)).gathers() == torus.Torus().sums() == [None]


def members(groups, number, device):
    every = [list(range(number))] if groups is None else groups
    (found,) = [group for group in every if device in group]
    return found


@pytest.mark.parametrize("sizes", [(), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("sparse_cores", [False, True])
def test_steps_make_what_one_step_makes(sizes, sparse_cores):
    """By NumPy: parts in their order on every device, and of the sum each device its part."""
    one, number = torus.Torus(sizes=sizes, sparse_cores=sparse_cores), int(np.prod(sizes or (6,)))
    parts = [np.array([device]) for device in range(number)]
    for groups in one.gathers():
        mine = [members(groups, number, device) for device in range(number)]
        parts = [np.concatenate([parts[other] for other in group]) for group in mine]
    for whole in parts:
        np.testing.assert_array_equal(whole, np.arange(number))
    wholes = np.random.default_rng(0).integers(100, size=(number, number))
    left = list(wholes)
    for groups in one.sums():
        mine = [members(groups, number, device) for device in range(number)]
        sums = [np.split(sum(left[other] for other in group), len(group)) for group in mine]
        left = [sums[device][mine[device].index(device)] for device in range(number)]
    np.testing.assert_array_equal(np.concatenate(left), wholes.sum(0))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a TPU."""

    id: int
    coords: tuple[int, ...]
    device_kind: str
    platform: str = "tpu"


def mesh_at(places, copies=1, kind="TPU v5"):
    """A mesh of `fsdp`, and of `data` for copies, whose devices have these coordinates."""
    chips = [Chip(number, place, kind) for number, place in enumerate(places)]
    return jax.sharding.Mesh(np.array(chips).reshape(copies, -1), ("data", "fsdp"))


GRID = [(x, y, z) for x in range(2) for y in range(4) for z in range(3)]


def test_sizes_are_read_off_the_coordinates():
    assert torus.of(mesh_at(GRID), ("fsdp",)).sizes == (2, 4, 3)
    assert torus.of(mesh_at(GRID), ("fsdp",), "at_once").sums_at_once
    # Another order of the coordinates, the same of the places.
    assert torus.of(mesh_at([place[::-1] for place in GRID]), ("fsdp",)).sizes == (2, 4, 3)
    # Two copies of the model, each in one plane.
    assert torus.of(mesh_at(GRID, copies=2), ("fsdp",)).sizes == (4, 3)
    assert torus.of(mesh_at(GRID, copies=2), ("data",)).sizes == ()
    # Along both axes, one inside of the other.
    assert torus.of(mesh_at(GRID, copies=2), ("data", "fsdp")).sizes == (2, 4, 3)


@pytest.mark.parametrize(
    "places",
    [
        [(0, 0), (1, 0), (1, 1), (0, 1)],  # a ring that winds through the torus
        [(0, 0), (0, 1), (1, 0)],  # not all of it
        [(0, 0), (0, 1), (0, 2)],  # one dimension: nothing to be done in steps
        [(0, 0), (0, 0), (1, 0), (1, 0)],  # two devices to a chip
    ],
)
def test_where_there_are_no_dimensions_there_is_one_step(places):
    assert torus.of(mesh_at(places), ("fsdp",)).sizes == ()


def test_copies_that_lie_differently_have_no_dimensions():
    mixed = [
        *((0, y, z) for y in range(2) for z in range(2)),
        *((1, y, z) for z, y in ((0, 0), (0, 1), (1, 0), (1, 1))),
    ]
    assert torus.of(mesh_at(mixed, copies=2), ("fsdp",)).sizes == (2, 2)
    ring = [(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1)]
    assert torus.of(mesh_at([*mixed[:4], *ring], copies=2), ("fsdp",)).sizes == ()


def test_which_chips_have_sparse_cores():
    kinds = {"TPU v4": False, "TPU v5 lite": False, "TPU v5": True, "TPU v6 lite": True}
    assert {
        kind: torus.of(mesh_at(GRID, kind=kind), ("fsdp",)).sparse_cores for kind in kinds
    } == kinds


def test_a_cpu_has_no_torus():
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    assert torus.of(mesh, ("fsdp",)) == torus.Torus()


if __name__ == "__main__":
    main(sys.argv[1])
