# SPDX-License-Identifier: Apache-2.0
"""Steps compiled in another process, refused there, and kept."""

import importlib.util
import math

import jax
import plan_recipes
import pytest

from midjax.hardware import flags, slices
from midjax.model import sharding, transformer
from midjax.plan import compiler

FOUR = slices.parse("v5e-4")
OPTIONS = flags.as_compiler_options(flags.flags("v5e"))


def compiled(made, config, options=OPTIONS, rows=4):
    return made.compile(config, FOUR, rows, options, "a test")


def test_a_step_is_compiled_once(made, compiler_folder):
    first = compiled(made, plan_recipes.train())
    assert first.outcome == "compiled"
    count = made.compilations
    again = compiled(made, plan_recipes.train(mesh=sharding.Mesh(data=1, fsdp=4, tensor=1)))
    assert again.was_kept and again.entry == first.entry and made.compilations == count
    # Another plan, whose compiler was never started.
    with compiler.Compiler(str(compiler_folder), print) as other:
        kept = compiled(other, plan_recipes.train())
        assert kept.was_kept and other.compilations == 0 and other._process is None
    assert kept.record == first.record
    assert kept.text("text").startswith("HloModule")


def test_the_arguments_are_the_states(made):
    """Each chip of four holds a quarter of each matrix, and of its moments."""
    config = plan_recipes.train()
    record = compiled(made, config).record
    assert record["mesh"] == {"data": 1, "fsdp": 4, "context": 1, "expert": 1, "tensor": 1}
    leaves = jax.tree.leaves(transformer.abstract(config.model))
    whole = sum(4 * math.prod(leaf.shape) for leaf in leaves)
    norms = sum(4 * leaf.size for leaf in leaves if leaf.shape[-1] == 128 and leaf.ndim < 3)
    of_params = {k: v for k, v in record["argument_bytes"].items() if k.startswith("state/params/")}
    assert whole / 4 < sum(of_params.values()) < whole / 4 + norms
    assert record["argument_bytes"]["batch/tokens"] == 4 * plan_recipes.TOKENS
    # Parameters, both moments, and Adam's count.
    assert record["checkpoint_bytes"] == 3 * whole + 4


@pytest.mark.parametrize(
    "mesh, said",
    [
        (sharding.Mesh(data=1, fsdp=3, tensor=1), "does not fit 4 devices"),
        (sharding.Mesh(data=1, fsdp=1, tensor=4), "heads"),
    ],
)
def test_a_mesh_that_does_not_fit_is_told(made, mesh, said):
    found = compiled(made, plan_recipes.train(mesh=mesh))
    assert found.outcome == "refused" and found.record["refusal"]["kind"] == "recipe"
    assert said in found.record["refusal"]["said"]


def test_a_batch_that_does_not_divide_is_told(made):
    found = compiled(made, plan_recipes.train(rows=6), rows=6)
    assert "size 6 does not divide" in found.record["refusal"]["said"]


def test_a_run_too_short_for_its_phases_is_refused_whatever_is_kept(made):
    """The length of a run is no part of its step, and decides whether the run can be."""
    updates = {n: plan_recipes.train(train_tokens=n * 4 * plan_recipes.TOKENS) for n in (1, 10)}
    assert compiled(made, updates[10]).outcome == "compiled"
    short = compiled(made, updates[1])
    assert short.outcome == "refused" and short.record["refusal"]["kind"] == "recipe"
    assert compiled(made, updates[10]).was_kept


def test_what_a_recipe_refuses_is_asked_again(made):
    misfit = plan_recipes.train(mesh=sharding.Mesh(data=1, fsdp=1, tensor=4))
    assert [compiled(made, misfit).was_kept for _ in range(2)] == [False, False]


def test_an_unknown_flag_fails_and_is_not_kept(made):
    found = compiled(made, plan_recipes.train(), {"xla_nonsense": "1"})
    assert found.outcome == "failed" and "xla_nonsense" in found.record["said"]
    assert found.entry is None
    assert not compiled(made, plan_recipes.train(), {"xla_nonsense": "1"}).was_kept


def test_a_process_that_dies_is_started_again(made):
    compiled(made, plan_recipes.train())
    if made._process is None:
        made._start()
    made._process.kill()
    made._process.wait()
    assert made.placeable(FOUR, [{"data": 4, "fsdp": 1, "tensor": 1}]) == [True]


def test_a_process_that_dies_at_work_is_told(made, monkeypatch):
    monkeypatch.setattr(compiler, "_WORKER", ["-c", "import sys; sys.exit('no room for me')"])
    made._stop()
    found = compiled(made, plan_recipes.train(rows=16), rows=16)
    monkeypatch.undo()
    made._stop()
    assert found.outcome == "failed"
    assert "ended with 1" in found.record["said"] and "no room for me" in found.record["said"]


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(compiler.NoCompilerError, match=r"pip install 'midjax\[tpu\]'"):
        compiler.Compiler(None)


def test_flags_of_the_shell_are_not_used(made, monkeypatch, heard):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_nonsense=1")
    with made:
        pass
    assert any("LIBTPU_INIT_ARGS" in line for line in heard)
    fresh = made.placeable(FOUR, [{"data": 3, "fsdp": 1, "tensor": 1}])
    assert fresh == [False]


def test_meshes_over_slices(made):
    two = slices.parse("2xv5e-4")
    meshes = [{"data": d, "fsdp": 8 // d, "tensor": 1} for d in (1, 2, 4, 8)]
    assert made.placeable(two, meshes) == [False, True, True, True]
