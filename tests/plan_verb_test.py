# SPDX-License-Identifier: Apache-2.0
"""The arguments of `midjax plan`, and one plan from the command line."""

import json

import plan_recipes
import pytest

from midjax import __main__ as main
from midjax import plan_verb

MIDTRAIN = "--gin_file=gin/recipes/demo_midtrain.gin"
EXTEND = "gin/recipes/demo_extend.gin"


def test_any_recipe_of_train_is_one_of_plan():
    root, stages = plan_verb.load([MIDTRAIN, "--slice=v5e-4", "--gin.Mesh.fsdp=4"])
    assert root.slices == ("v5e-4",) and root.search is None and root.prices is None
    assert [name for name, _ in stages] == ["midtrain"]
    assert root.train is stages[0][1] and root.train.mesh.fsdp == 4


def test_later_stages_take_the_same_overrides():
    arguments = [MIDTRAIN, f"--stage={EXTEND}", "--slice=v5e-4", "--slice=v5p-8"]
    root, stages = plan_verb.load(
        [*arguments, "--gin.Mesh.fsdp=2", "--gin.Plan.output=x", "--search", "--price=v5e:1.2"]
    )
    assert [name for name, _ in stages] == ["midtrain", "extend"]
    assert [config.mesh.fsdp for _, config in stages] == [2, 2]
    assert stages[1][1].data.row_tokens > stages[0][1].data.row_tokens
    assert root.search is not None and root.prices == {"v5e": 1.2} and root.output == "x"
    assert root.slices == ("v5e-4", "v5p-8")


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([MIDTRAIN, "--slice=v5e-63"], "Nearest"),
        ([MIDTRAIN], "Plan.slices"),
        (["--slice=v5e-4"], "no recipe"),
        ([MIDTRAIN, "--slice=v5e-4", "--fast"], "unknown arguments"),
        ([MIDTRAIN, "--slice=v5e-4", "--price=cheap"], "USD per chip"),
        ([MIDTRAIN, "--slice=v5e-4", "--price=1", "--price=v5e:1"], "one price"),
        ([MIDTRAIN, "--slice=v5e-4", "--gin.Plan.compiler_flags=--xla_a=1 --xla_a=2"], "twice"),
    ],
)
def test_wrong_arguments_are_told(arguments, said, capsys):
    assert main.main(["plan", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_plan_from_the_command_line(tmp_path, capsys, monkeypatch):
    plan_recipes.need_compiler()
    arguments = [
        "plan", MIDTRAIN, "--slice=v5e-4", "--price=1.2", f"--gin.Plan.cache={tmp_path / 'cache'}",
        f"--gin.Plan.output={tmp_path / 'plan'}", "--gin.TransformerConfig.layers=1",
        "--gin.TransformerConfig.attention_kernel=blocked",
    ]  # fmt: skip
    assert main.main(arguments) == 0
    said = capsys.readouterr().out
    assert "midtrain" in said and "Nothing was measured" in said and "USD" in said
    read = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert read["stages"][0]["steps"][0]["mesh"] == {"fsdp": 4}
    assert "</html>" in (tmp_path / "plan" / "plan.html").read_text()
    # A mesh that does not fit is a row, and exit code 2 when all is written.
    assert main.main([*arguments, "--gin.Mesh.fsdp=3"]) == 2
    found = capsys.readouterr()
    assert "refused" in found.out and "does not fit 4 devices" in found.err
