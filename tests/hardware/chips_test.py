# SPDX-License-Identifier: Apache-2.0
import pytest

from midjax.hardware import chips

# Matrix units of one chip: cores x units of each, from the public tables. For v6e they say 2; its
# peak and clock say that each does the work of 2.
UNITS = {"v4": 2 * 4, "v5e": 4, "v5p": 2 * 4, "v6e": 2 * 2}
# Gbit/s of a chip's links, both directions, from the same tables.
ICI_GBIT = {"v4": 2400 * 2, "v5e": 1600 * 2, "v5p": 4800 * 2, "v6e": 3200 * 2}


@pytest.mark.parametrize("name", chips.CHIPS)
def test_peak_is_clock_times_matrix_units(name):
    chip = chips.CHIPS[name]
    peak = UNITS[name] * chip.mxu**2 * 2 * chip.clock_hz
    assert chip.bf16_flops_per_second == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize("name", chips.CHIPS)
def test_links_reach_nine_tenths_of_the_tables(name):
    chip = chips.CHIPS[name]
    links = 2 * chip.torus_dims
    table = ICI_GBIT[name] * 1e9 / 8
    assert 2 * links * chip.link_bytes_per_second == pytest.approx(0.9 * table, rel=0.01)


def test_names_are_their_own_keys():
    assert list(chips.CHIPS) == ["v4", "v5e", "v5p", "v6e"]
    assert all(chip.name == name for name, chip in chips.CHIPS.items())
