# SPDX-License-Identifier: Apache-2.0
"""Every recipe loads, strictly, with the command that its header gives."""

import pathlib
import re
import shlex

import pytest

from midjax import config

ROOT = config.gin_root()
RECIPES = sorted((ROOT / "recipes").glob("*.gin"))
# Each is the optimizer of a recipe by one line: include "settings/NAME.gin".
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon", "lion": "Lion", "adafactor": "Adafactor"}
EACH = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


def header(recipe: pathlib.Path) -> list[str]:
    """The comment lines that a recipe begins with, without their `#`."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.lstrip("#").strip() for line in lines[:end]]


def command(recipe: pathlib.Path) -> tuple[str, list[str], list[str]]:
    """(verb, gin files, bindings) of the first `midjax VERB ...` line in a recipe's header."""
    joined = "\n".join(header(recipe)).replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if re.match(r"midjax \w+ --gin_file", line)]
    assert lines, f"the header of {recipe.name} has no line `# midjax VERB --gin_file=... `"
    _, verb, *rest = shlex.split(lines[0], comments=True)
    gin_files, bindings, others = config.split_argv(rest)
    assert not others, f"{recipe.name}: {others}"
    return verb, gin_files, bindings


def test_there_are_recipes():
    assert RECIPES, f"no recipes in {ROOT / 'recipes'}"


@EACH
def test_recipe_loads_with_the_command_of_its_header(recipe):
    verb, gin_files, bindings = command(recipe)
    assert f"gin/recipes/{recipe.name}" in gin_files
    root = config.load(verb, gin_files, bindings)
    assert type(root) is config.root_class(verb)
    assert config.show(root).startswith(type(root).__name__)


@EACH
def test_recipe_is_the_same_after_saving(recipe, tmp_path):
    verb, gin_files, bindings = command(recipe)
    root = config.load(verb, gin_files, bindings)
    config.save(root, tmp_path)
    assert config.load_run(tmp_path, verb) == root
    assert config.load(verb, [str(tmp_path / "config.gin")]) == root


def test_every_library_file_is_part_of_a_recipe():
    included = set(RECIPES) | {ROOT / "settings" / f"{name}.gin" for name in OPTIMIZERS}
    for path in ROOT.rglob("*.gin"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^include\s+['\"](.+?)['\"]", text, flags=re.MULTILINE):
            included |= {(folder / name).resolve() for folder in (path.parent, ROOT)}
    unused = sorted(str(path) for path in ROOT.rglob("*.gin") if path.resolve() not in included)
    assert not unused, f"no recipe includes {unused}"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_line_of_a_recipe_is_its_optimizer(name, tmp_path):
    text = (ROOT / "recipes" / "demo_midtrain.gin").read_text(encoding="utf-8")
    line = 'include "settings/adamw.gin"'
    assert text.count(line) == 1
    recipe = tmp_path / "mine.gin"
    recipe.write_text(text.replace(line, f'include "settings/{name}.gin"'))
    assert type(config.load("train", [str(recipe)]).optimizer).__name__ == OPTIMIZERS[name]


def test_the_other_ropes_of_the_extension_can_be_pasted(tmp_path):
    lines = (ROOT / "settings" / "extend.gin").read_text(encoding="utf-8").splitlines()
    pasted: dict[str, list[str]] = {}
    block: list[str] = []
    for line in lines:
        if not line.startswith("#   "):
            block = []
            continue
        block.append(line.removeprefix("#   "))
        if kind := re.search(r'RopeScaling.kind = "(\w+)"', line):
            pasted[kind[1]] = block
    assert set(pasted) == {"none", "longrope"}
    for kind, bindings in pasted.items():
        recipe = tmp_path / f"{kind}.gin"
        recipe.write_text("\n".join(['include "recipes/extend_4x.gin"', *bindings, ""]))
        rope = config.load("train", [str(recipe)]).model.rope
        assert rope.scaling.kind == kind
        assert (rope.theta, rope.scaling.factor) == {"none": (250000.0, None)}.get(
            kind, (10000.0, 4.0)
        )


def test_library_files_have_no_macros():
    for path in ROOT.rglob("*.gin"):
        macros = re.findall(r"^([A-Z][A-Z0-9_]*) *=", path.read_text("utf-8"), flags=re.MULTILINE)
        assert len(macros) <= (5 if path in RECIPES else 0), f"{path}: {macros}"
