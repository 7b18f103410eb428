# SPDX-License-Identifier: Apache-2.0
"""What a run says of the compiler's flags in its environment."""

import pytest

from midjax.hardware import chips, flags
from midjax.model import flops
from midjax.train import compiler_flags

VARIABLE = "LIBTPU_INIT_ARGS"


def test_all_kinds_are_of_chips_with_the_peak_that_is_told():
    assert set(chips.OF_KIND.values()) == set(chips.CHIPS)
    for kind, name in chips.OF_KIND.items():
        assert flops.peak_flops_per_second(kind) == chips.CHIPS[name].bf16_flops_per_second


@pytest.mark.parametrize(
    "given", ["--xla_a=1 --xla_a=2", "--megascale_x=1 --xla_b --megascale_x=1"]
)
def test_twice_is_refused_where_it_is_read(monkeypatch, given):
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(flags.FlagError, match="ARGS: --(xla_a|megascale_x).* given twice"):
        compiler_flags.check("TPU v5 lite")
    compiler_flags.check("cpu")  # does not read it
    monkeypatch.setenv(VARIABLE, "--xla_a=1 --megascale_x=30m")
    compiler_flags.check("TPU v5 lite")


@pytest.mark.parametrize(("kind", "name"), chips.OF_KIND.items())
@pytest.mark.parametrize("dense", [True, False])
def test_what_the_chip_lacks_is_said(monkeypatch, kind, name, dense):
    table = flags.flags(name, dense)
    monkeypatch.setenv(VARIABLE, flags.as_libtpu_init_args(table))
    assert compiler_flags.lacking(kind, dense=dense) is None
    monkeypatch.setenv(VARIABLE, flags.as_libtpu_init_args(table[:-1]) + " --xla_mine=1")
    said = compiler_flags.lacking(kind, dense=dense)
    assert said.startswith(f"1 of the {len(table)} compiler flags for {name} are not in {VARIABLE}")
    assert f": {table[-1].text}. " in said
    monkeypatch.setenv(VARIABLE, flags.as_libtpu_init_args(table[:-1]) + f" --{table[-1].name}=7")
    assert compiler_flags.lacking(kind, dense=dense) is None
    monkeypatch.delenv(VARIABLE)
    assert f"{len(table)} of the {len(table)}" in compiler_flags.lacking(kind, dense=dense)


def test_others_have_none(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert compiler_flags.lacking("cpu", dense=True) is None
