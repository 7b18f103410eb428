# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import subprocess
import sys

import plan_recipes
import pytest

from midjax.hardware import chips, flags

EACH = pytest.mark.parametrize("chip", chips.CHIPS)


@EACH
@pytest.mark.parametrize("dense", [True, False])
def test_tables_are_whole(chip, dense):
    table = flags.flags(chip, dense)
    text = flags.as_libtpu_init_args(table)
    # What libtpu is given reads back as what the compiler is given, and has no flag twice.
    at_start = {flag.name: flag.value for flag in table if flag.start_only}
    assert flags.parse(text) == flags.as_compiler_options(table) | at_start
    assert len(text.split()) == len(table) == len(flags.parse(text))
    assert set(at_start) <= {"xla_sc_disjoint_spmem"}
    for flag in table:
        assert re.fullmatch(r"(xla|tpu)_\w+", flag.name) and re.fullmatch(r"\w+", flag.value)
        assert len(flag.why) > 20 and flag.source


# libtpu ends a process whose LIBTPU_INIT_ARGS has a flag that it does not know, and the compiler
# refuses what it does not know.
STARTS = """
import json, sys
import jax
from midjax.hardware import slices
from midjax.plan import program

device = program.devices(slices.parse(sys.argv[1]))[0]
place = jax.sharding.SingleDeviceSharding(device)
x = jax.ShapeDtypeStruct((128, 128), "bfloat16", sharding=place)
jax.jit(lambda x: x @ x).lower(x).compile(compiler_options=json.loads(sys.argv[2]))
print("compiled for", device.device_kind)
"""


def start(name: str, args: str, options: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", STARTS, name, json.dumps(options)],
        env={**environment, "LIBTPU_INIT_ARGS": args},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "dense", "kind"),
    [
        ("v4-8", True, "TPU v4"),
        ("v5e-4", True, "TPU v5 lite"),
        ("v5p-8", True, "TPU v5"),
        ("v6e-4", True, "TPU v6 lite"),
        ("v6e-4", False, "TPU v6 lite"),
    ],
)
def test_the_installed_libtpu_takes_all_flags_of_a_chip(name, dense, kind):
    plan_recipes.need_compiler()
    table = flags.flags(name.partition("-")[0], dense)
    done = start(name, flags.as_libtpu_init_args(table), flags.as_compiler_options(table))
    assert done.stdout == f"compiled for {kind}\n", done.stderr[-2000:]


def test_libtpu_does_not_start_with_a_flag_that_it_does_not_know():
    plan_recipes.need_compiler()
    done = start("v5e-4", "--xla_no_such_flag=true", {})
    assert done.returncode and "xla_no_such_flag" in done.stderr
    done = start("v5e-4", "", {"xla_no_such_flag": "true"})
    assert done.returncode and "xla_no_such_flag" in done.stderr


def test_v6e_has_less_vmem_for_fusions_beside_kernels_of_experts():
    name = "xla_tpu_scoped_vmem_limit_kib"
    found = [flags.as_compiler_options(flags.flags("v6e", dense))[name] for dense in (True, False)]
    assert found == ["98304", "81920"]


def test_parse():
    assert flags.parse("  --xla_a=1\n--tpu_b=x=y --xla_c ") == {
        "xla_a": "1",
        "tpu_b": "x=y",
        "xla_c": "true",
    }
    assert flags.parse("") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--xla_a=true --xla_a=false", "--xla_a is given twice, as true and as false"),
        ("--xla_a=true --xla_b=1 --xla_a=true", "--xla_a=true is given twice"),
        ("--xla_a --xla_a=true", "given twice"),
        ("TPU_MEGACORE=MEGACORE_DENSE", "no flag of the TPU's compiler"),
        ("--jax_enable_async_collective_offload=true", "no flag of the TPU's compiler"),
        ("xla_a=true", "no flag of the TPU's compiler"),
    ],
)
def test_mistakes_are_refused(text, said):
    with pytest.raises(flags.FlagError) as refused:
        flags.parse(text)
    assert said in str(refused.value)


def test_merge_replaces_and_appends():
    table = flags.flags("v6e")
    merged = flags.merge(table, "--xla_tpu_scoped_vmem_limit_kib=65536 --xla_dump_to=/x")
    options = flags.as_compiler_options(merged)
    assert options["xla_tpu_scoped_vmem_limit_kib"] == "65536" and options["xla_dump_to"] == "/x"
    assert len(merged) == len(table) + 1 and merged[-1].source == "the recipe"
    other = flags.merge(table, "--xla_sc_disjoint_spmem=true")
    assert flags.as_compiler_options(other) == flags.as_compiler_options(table)
    assert "--xla_sc_disjoint_spmem=true" in flags.as_libtpu_init_args(other)
    with pytest.raises(flags.FlagError, match="given twice: the table"):
        flags.merge(table, "--xla_tpu_scoped_vmem_limit_kib=98304")


def test_no_such_chip():
    with pytest.raises(flags.FlagError, match="'v9'; there are: v4"):
        flags.flags("v9")
