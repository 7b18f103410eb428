# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from midjax.hardware import chips, slices

# From the tables of "Configurations" in Google's pages on v4, v5e, v5p and v6e: name, torus, hosts.
PUBLISHED = {
    "v4-8": ((2, 2, 1), 1),
    "v4-32": ((2, 2, 4), 4),
    "v4-128": ((4, 4, 4), 16),
    "v4-512": ((4, 8, 8), 64),
    "v4-4096": ((8, 16, 16), 512),
    "v5e-1": ((1, 1), 1),
    "v5e-4": ((2, 2), 1),
    "v5e-8": ((2, 4), 1),
    "v5e-16": ((4, 4), 4),
    "v5e-128": ((8, 16), 32),
    "v5e-256": ((16, 16), 64),
    "v5p-8": ((2, 2, 1), 1),
    "v5p-64": ((2, 4, 4), 8),
    "v5p-128": ((4, 4, 4), 16),
    "v5p-256": ((4, 4, 8), 32),
    "v5p-512": ((4, 8, 8), 64),
    "v5p-1024": ((8, 8, 8), 128),
    "v5p-4096": ((8, 16, 16), 512),
    "v5p-12288": ((16, 16, 24), 1536),
    "v6e-1": ((1, 1), 1),
    "v6e-8": ((2, 4), 1),
    "v6e-32": ((4, 8), 8),
    "v6e-256": ((16, 16), 64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_slices(name):
    torus, hosts = PUBLISHED[name]
    found = slices.parse(name)
    assert (found.name, found.torus, found.hosts) == (name, torus, hosts)
    assert found.chips == math.prod(torus) and found.has_default_torus
    family, _, number = name.partition("-")
    assert int(number) == found.chips * (2 if family in ("v4", "v5p") else 1)
    assert found.topology_name == f"{family}:{'x'.join(map(str, torus))}"
    assert found.accelerator_type == name.replace("v5e", "v5litepod")
    assert slices.parse(found.topology_name) == found == slices.parse(found.accelerator_type)


@pytest.mark.parametrize("chip", chips.CHIPS)
def test_every_name_parses_to_itself(chip):
    names = slices.names(chip)
    assert len(names) == {"v4": 10, "v5e": 8, "v6e": 8}.get(chip, len(names))
    for name in names:
        found = slices.parse(name)
        assert found.name == name and found.chip is chips.CHIPS[chip]
        assert found.hosts * found.chips_per_host == found.chips
        assert len(found.torus) == found.chip.torus_dims


def test_v5p_has_every_number_of_cubes_up_to_96():
    cubes = {slices.parse(name).chips / 64 for name in slices.names("v5p")}
    assert {int(c) for c in cubes if c >= 1} == set(range(1, 97))
    assert slices.parse("v5p-7680").torus == (12, 16, 20)  # MaxText's 1160B run: 3,840 chips


def test_several_slices():
    found = slices.parse("2xv5litepod-256")
    assert (found.name, found.slices, found.chips, found.hosts) == ("2xv5e-256", 2, 512, 128)
    assert (found.chips_per_slice, found.hosts_per_slice) == (256, 64)
    assert found.topology_name == "v5e:16x16" and found.accelerator_type == "v5litepod-256"


def test_another_torus_of_the_same_size():
    found = slices.parse("v5p:8x4x8")
    assert found.name == found.topology_name == "v5p:8x4x8" and not found.has_default_torus
    assert found.accelerator_type == "v5p-512"
    assert slices.parse("4xv5p:4x4x32").name == "4xv5p:4x4x32"
    assert slices.parse(" V5P:4x4x4 ").name == "v5p-128"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5p-100", "Nearest: v5p-32, v5p-64, v5p-128 (the number counts cores, 2 a chip)"),
        ("v5litepod-24", "Nearest: v5e-8, v5e-16, v5e-32 (the number counts chips)"),
        ("v5p-12416", "up to v5p-12288"),
        ("v6e:4x2x2", "no torus 4x2x2. It has 1x1, 2x2, 2x4"),
        ("v5p:4x4x6", "multiples of 4"),
        ("v5p:4x4x388", "up to 96 cubes"),
        ("v6-16", "Nearest: v6e-16"),
        ("0xv5e-16", "no TPU slice"),
        ("v5p-9", "no TPU slice"),
        ("a100", "chips: v4, v5e, v5p, v6e"),
        ("", "chips: v4, v5e, v5p, v6e"),
        ("v5e-16; rm -rf /", "no TPU slice"),
    ],
)
def test_there_is_no_such_slice(name, said):
    with pytest.raises(slices.NoSuchSliceError) as refused:
        slices.parse(name)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "rings"),
    [
        ("v5e-256", (True, True)),
        ("v6e-128", (False, True)),
        ("v5e-16", (False, False)),
        ("v5p-128", (True, True, True)),
        ("v5p-512", (True, True, True)),
        ("v5p-32", (False, False, False)),
        ("v4-64", (False, False, False)),
    ],
)
def test_which_edges_close_to_rings(name, rings):
    """As MaxText's table of topologies has them (utils/accelerator_to_spec_map.py, "wrap")."""
    assert slices.parse(name).rings == rings
