# SPDX-License-Identifier: Apache-2.0
"""Strict loading, against toy dataclasses: what plain gin accepts in silence is an error."""

import dataclasses
import json
import re
import sys
from typing import Literal

import gin
import pytest
import tiny_run as tiny

from midjax import config, export
from midjax.model import sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    peak: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.floor > self.peak:
            raise ValueError(f"Cosine.floor must not exceed peak, got {self.floor} > {self.peak}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    path: str
    weight: float = 1.0
    kind: Literal["text", "none"] = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    tokens: int
    sources: dict[str, Source]
    schedule: Cosine | Constant | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    steps: int
    run_dir: str
    schedule: Cosine | Constant
    stages: tuple[Stage, ...] = ()
    betas: tuple[float, float] = (0.9, 0.95)
    names: list[str] = dataclasses.field(default_factory=list)
    resume: bool = True
    note: str | None = None


BASE = """
Toy.steps = 10
Toy.run_dir = "runs/a"
Toy.schedule = @Cosine()
Cosine.peak = 1e-3
"""

STAGES = """
FIRST = 100
Toy.stages = (@first/Stage(), @second/Stage())
first/Stage.tokens = %FIRST
first/Stage.sources = {"prose": @prose/Source()}
second/Stage.tokens = 50
second/Stage.sources = {"prose": @prose/Source(), "code": @code/Source()}
second/Stage.schedule = @Constant()
Constant.rate = 0
prose/Source.path = "prose.jsonl"
code/Source.path = "code.jsonl"
Source.weight = 0.5
code/Source.weight = 0.25
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="toy.gin"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def toy(write, text="", bindings=(), base=BASE):
    return config.load_class(Toy, [write(base + text)], bindings)


def error(write, text="", bindings=(), base=BASE):
    """The message of the ConfigError, which is all that is raised."""
    with pytest.raises(config.ConfigError) as caught:
        toy(write, text, bindings, base)
    return str(caught.value)


# ---- what loads


def test_gin_is_gin_config_and_not_the_folder_of_recipes():
    assert hasattr(gin, "register")
    assert not gin.__file__.startswith(str(config.gin_root()))


def test_loads_files_stages_macros_scopes_and_fallbacks(write):
    root = toy(write, STAGES)
    prose, code = Source(path="prose.jsonl", weight=0.5), Source(path="code.jsonl", weight=0.25)
    assert root == Toy(
        steps=10,
        run_dir="runs/a",
        schedule=Cosine(peak=1e-3),
        stages=(
            Stage(tokens=100, sources={"prose": prose}),
            Stage(tokens=50, sources={"prose": prose, "code": code}, schedule=Constant(rate=0.0)),
        ),
    )
    assert root.stages[0].sources["prose"] is root.stages[1].sources["prose"]
    assert type(root.stages[1].schedule.rate) is float


def test_a_scope_holds_for_what_is_built_below_it(write):
    text = """
Toy.stages = (@first/Stage(), @second/Stage())
Stage.tokens = 1
Stage.sources = {}
Stage.schedule = @Constant()
Constant.rate = 1.0
second/Constant.rate = 2.0
"""
    root = toy(write, text)
    assert [stage.schedule.rate for stage in root.stages] == [1.0, 2.0]


def test_loading_leaves_nothing_behind(write):
    assert toy(write, "Toy.resume = False").resume is False
    assert toy(write).resume is True
    assert gin.config_str() == ""
    assert Toy(steps=1, run_dir="x", schedule=Constant(rate=1.0)).betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("binding", "field", "value"),
    [
        ("Toy.run_dir=gs://bucket/run-1", "run_dir", "gs://bucket/run-1"),
        ("Toy.run_dir='quoted'", "run_dir", "quoted"),
        ("Toy.run_dir=2026-11-23", "run_dir", "2026-11-23"),
        ("Toy.run_dir=a=b c", "run_dir", "a=b c"),
        ("Toy.steps=1_000", "steps", 1000),
        ("Toy.betas=(0.5, 1)", "betas", (0.5, 1.0)),
        ("Toy.names=['a', 'b']", "names", ["a", "b"]),
        ("Toy.resume=False", "resume", False),
        ("Toy.note=None", "note", None),
        ("Toy.note='\"none\"'", "note", '"none"'),
    ],
)
def test_command_line_values(write, binding, field, value):
    got = getattr(toy(write, bindings=[binding]), field)
    assert got == value and type(got) is type(value)


def test_command_line_overrides_scopes_macros_and_references(write):
    bindings = ["FIRST=7", "code/Source.kind=none", "Constant.rate=2", "Cosine.floor=1e-4"]
    root = toy(write, STAGES, bindings)
    assert root.stages[0].tokens == 7
    assert root.stages[1].sources["code"].kind == "none"
    assert root.stages[1].schedule == Constant(rate=2.0)
    assert root.schedule.floor == 1e-4


# ---- every silent row of plain gin


def test_misspelled_macro_on_the_command_line(write):
    text = error(write, STAGES, ["FRIST=50"])
    assert "the command line: FRIST: %FRIST is used nowhere. Did you mean 'FIRST'?" in text


def test_misspelled_scope(write):
    text = error(write, STAGES + "cdoe/Source.kind = 'none'")
    assert "cdoe/Source.kind" in text and "in use: code, prose. Did you mean 'code'?" in text


def test_binding_for_something_never_built(write):
    text = error(write, "Constant.rate = 1.0")
    assert "no Constant is built. Bind @Constant() to Toy.schedule, Stage.schedule" in text


def test_unscoped_binding_that_every_instance_overrides(write):
    text = error(write, STAGES + "Stage.tokens = 1")
    assert "each Stage has a value of its own (first, second)" in text


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ('Cosine.peak = "abc"', "toy.gin:1: Cosine.peak must be float, got 'abc'"),
        ("Cosine.peak = True", "Cosine.peak must be float, got True"),
        ("Toy.steps = 1e3", "toy.gin:1: Toy.steps must be int, got 1000.0. Write 1000."),
        ("Toy.steps = True", "must be int, got True"),
        ("Toy.steps = 1e999", "must be int, got inf"),
        ("Toy.resume = 1", "Toy.resume must be bool, got 1"),
        ("Toy.run_dir = 5", "must be str, got 5"),
        ("Toy.betas = (0.5,)", "must have 2 elements"),
        ("Toy.betas = [0.5, 0.5]", "A tuple is written (a, b)"),
        ('Toy.stages = @Source()\nSource.path = ""', "must be tuple[Stage, ...], got @Source()"),
        ('Toy.names = "a"', "must be list[str], got 'a'"),
        ("Toy.names = ['a', 1]", "Toy.names[1] must be str, got 1"),
        ("Toy.note = @Cosine()", "must be str | None, got @Cosine()"),
        ("Toy.note = 1", "must be str | None, got 1"),
    ],
)
def test_wrong_types(write, binding, message):
    field = binding.partition(" =")[0]
    others = [line for line in BASE.splitlines() if not line.startswith(field)]
    assert message in error(write, "\n".join([binding, *others]), base="")


def test_wrong_class(write):
    base = BASE.replace("@Cosine()", "@Source()").replace("Cosine.peak = 1e-3", "Source.path = ''")
    assert "Toy.schedule must be Cosine | Constant, got @Source()" in error(write, base=base)


def test_literal_outside_its_choices(write):
    text = error(write, STAGES + 'prose/Source.kind = "txet"')
    assert "must be 'text' or 'none', got 'txet'. Did you mean 'text'?" in text


def test_same_binding_twice_in_a_file(write):
    text = error(write, "Toy.steps = 11")
    assert re.search(r"Toy.steps is bound twice \(\S+toy.gin:2 and \S+toy.gin:6\)", text)


def test_same_binding_twice_on_the_command_line(write):
    text = error(write, bindings=["Toy.steps=1", "Toy.steps=2"])
    assert text == "Toy.steps is bound twice (the command line). Keep one."


def test_same_key_twice_in_a_dict(write):
    text = error(write, STAGES + 'x/Stage.sources = {"a": @Source(), "a": @Source()}')
    assert "the key 'a' is given twice" in text


def test_the_same_reference_twice_is_one_object(write):
    text = "Toy.stages = (@Stage(), @Stage())\nStage.tokens = 1\nStage.sources = {}"
    first, second = toy(write, text).stages
    assert first is second


def test_bindings_never_change_a_python_call(write):
    toy(write, "Cosine.floor = 1e-4")
    assert Cosine(peak=1.0).floor == 0.0


def test_order_of_dicts_survives_the_saved_file(write, tmp_path):
    root = toy(write, STAGES)
    config.save(root, tmp_path / "run")
    again = config.load_class(Toy, [str(tmp_path / "run" / "config.gin")])
    assert list(again.stages[1].sources) == ["prose", "code"]


# ---- unknown, missing, malformed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Cosien.peak = 1", "Toy has no part 'Cosien'. Did you mean 'Cosine'?"),
        ("Toy.step = 1", "Toy has no field 'step'. Did you mean 'steps'?"),
        ("Toy.note = %NOTE", "the macro %NOTE is not defined"),
        ("A = %B\nB = %A\nToy.note = %A", "macros in a circle: %A -> %B -> %A"),
        ("Toy.note = @Csine()", "no class 'Csine' for @Csine(). Did you mean 'Cosine'?"),
        ("Toy.stages = (@Stage,)", "write @Stage(), with parentheses"),
        ("Toy.stages = (@a/b/Stage(),)", "a scope has one level"),
        ("a/b/Stage.tokens = 1", "a scope has one level"),
        ("note = 'x'", "neither a field (Class.field) nor a macro (NAME in upper case)"),
        ("import os", "`import os` is refused"),
        ("from os import path", "`import os.path` is refused"),
        ("import os as o", "`import os` is refused"),
        ("Toy.resume = true", "toy.gin:6: true is not a value: write True"),
        ("Toy.note = none", "none is not a value: write None"),
        ("Toy.note = text", "text is not a value: strings need quotes"),
        ("Toy.note = 'a' 5", "Expected newline"),
        ("Toy.betas = (1, 2**3)", "Expected ',' or ')'"),
        ("Toy.betas = (1,", "toy.gin:"),
        ("Toy.note = 'a", "toy.gin:6"),
        ("Toy.note =", "toy.gin:6: Unable to parse value"),
        ("Toy.note", "toy.gin:6"),
        ("include", "toy.gin:6"),
        ("include 'x.gin'", "includes stand before all bindings"),
    ],
)
def test_mistakes_in_a_file(write, text, message):
    got = error(write, text)
    assert message in got
    assert "gin/config" not in got and "Traceback" not in got


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Toy.resume=true", "--gin.Toy.resume=true: write True"),
        ("Toy.note=null", "write None, or '\"null\"' to mean the word"),
        ("Toy.steps=ten", "the command line: Toy.steps must be int, got 'ten'"),
        ("Toy.betas=(1,", "--gin.Toy.betas=(1,: "),
        ("Toy.steps=", "has no value"),
        ("Toy steps=1", "is not a binding"),
        ("=1", "is not a binding"),
        ("Toy.note=%NOTE", "the macro %NOTE is not defined"),
    ],
)
def test_mistakes_on_the_command_line(write, binding, message):
    base = BASE.replace("Toy.steps = 10\n", "") if binding.startswith("Toy.steps") else BASE
    assert message in error(write, bindings=[binding], base=base)


def test_missing_required_fields_are_all_named(write):
    text = error(write, base="Toy.steps = 1\nToy.stages = (@a/Stage(),)\nb/Stage.tokens = 1\n")
    for line in (
        "Toy.run_dir (str)",
        "Toy.schedule (Cosine | Constant)",
        "a/Stage.tokens (int)",
        "a/Stage.sources (dict[str, Source])",
        "b/Stage.tokens",
    ):
        assert line in text


def test_errors_of_a_class_itself_name_the_instance(write):
    assert error(write, "Cosine.floor = 1") == "Cosine.floor must not exceed peak, got 1.0 > 0.001."
    scoped = BASE.replace("@Cosine", "@main/Cosine") + "main/Cosine.floor = 1"
    assert error(write, scoped, base="").startswith("main/Cosine: Cosine.floor must not")


def test_a_part_that_contains_itself(write):
    text = error(write, "Toy.stages = (@Stage(),)\nStage.tokens = 1\nStage.sources = @Stage()")
    assert "A part cannot contain itself: Toy -> Stage -> Stage" in text


def test_unknown_verb():
    with pytest.raises(
        config.ConfigError, match="'tarin' takes no recipe; tokenize, import, train"
    ):
        config.load("tarin")


# ---- files


def test_missing_file_says_where_it_looked(tmp_path):
    with pytest.raises(config.ConfigError) as caught:
        config.load_class(Toy, ["recipes/none.gin"])
    assert str(config.gin_root() / "recipes/none.gin") in str(caught.value)


def test_includes_are_overridden_by_the_file_that_includes(write, tmp_path):
    write("Toy.steps = 1\nToy.run_dir = 'a'\n", "base.gin")
    write("include 'base.gin'\nToy.note = 'left'\n", "left.gin")
    write("include 'base.gin'\nToy.resume = False\n", "right.gin")
    top = write(
        "include 'left.gin'\ninclude 'right.gin'\nToy.steps = 2\n"
        "Toy.schedule = @Constant()\nConstant.rate = 1\n",
        "top.gin",
    )
    root = config.load_class(Toy, [top], ["Toy.run_dir=b"])
    assert (root.steps, root.run_dir, root.note, root.resume) == (2, "b", "left", False)


def test_two_included_files_that_disagree(write):
    write("Toy.steps = 1\n", "left.gin")
    write("Toy.steps = 2\n", "right.gin")
    text = error(write, base="include 'left.gin'\ninclude 'right.gin'\n")
    assert "Toy.steps is bound by more than one file" in text


def test_a_later_file_overrides_an_earlier_one(write):
    files = [write(BASE), write("Toy.steps = 3", "more.gin")]
    assert config.load_class(Toy, files).steps == 3


def test_includes_from_elsewhere_are_refused(write, tmp_path):
    write("Toy.note = 'x'", "other/x.gin")
    for name in ("../other/x.gin", str(tmp_path / "other/x.gin")):
        path = write(f"include {name!r}\n{BASE}", "own/toy.gin")
        with pytest.raises(config.ConfigError, match="is refused: files may be included from"):
            config.load_class(Toy, [path])
    (tmp_path / "own/link.gin").symlink_to(tmp_path / "other/x.gin")
    path = write(f"include 'link.gin'\n{BASE}", "own/toy.gin")
    with pytest.raises(config.ConfigError, match="is refused"):
        config.load_class(Toy, [path])


def test_missing_and_circular_includes(write):
    assert "no file to include as 'gone.gin'. Looked for" in error(
        write, base="include 'gone.gin'\n"
    )
    assert "includes itself" in error(write, base="include 'toy.gin'\n")


# ---- arguments, show, save


def test_split_argv():
    argv = ["--gin_file=a.gin", "x", "--gin.A.b=c d", "--gin_file", "b.gin", "--fresh"]
    assert config.split_argv(argv) == (["a.gin", "b.gin"], ["A.b=c d"], ["x", "--fresh"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--gin_file"],
        ["--gin_file="],
        ["--gin_file", "--gin.A.b=1"],
        ["--gin.A.b", "1"],
        ["--gin_fiel=a"],
    ],
)
def test_split_argv_refuses(argv):
    with pytest.raises(config.ConfigError):
        config.split_argv(argv)


def test_show_marks_what_is_not_the_default(write):
    lines = [re.sub(" +", " ", line) for line in config.show(toy(write, STAGES)).splitlines()]
    assert "* steps = 10" in lines
    assert " betas = (0.9, 0.95)" in lines
    assert "* stages[1].sources['code'].weight = 0.25" in lines
    assert " stages[1].sources['code'].kind = 'text'" in lines
    assert "* stages[1].schedule = @Constant()" in lines
    assert " schedule.floor = 0.0" in lines


def test_saved_run_reloads_to_an_equal_object(write, tmp_path, monkeypatch):
    monkeypatch.setitem(config.ROOTS, "toy", f"{Toy.__module__}:Toy")
    monkeypatch.setitem(sys.modules, Toy.__module__, sys.modules[__name__])
    root = toy(write, STAGES + "Toy.note = 'quote \" and \\n line'")
    config.save(root, tmp_path)
    assert config.load_class(Toy, [str(tmp_path / "config.gin")]) == root
    assert config.load_run(tmp_path, "toy") == root
    record = json.loads((tmp_path / "config.json").read_text())
    assert (record["verb"], record["midjax"]) == ("toy", "0.1.0")
    assert record["config"]["stages"][1]["schedule"] == {"class": "Constant", "rate": 0.0}
    with pytest.raises(config.ConfigError, match="is a run of 'toy'; a run of 'train' is needed"):
        config.load_run(tmp_path, "train")
    with pytest.raises(config.ConfigError, match=r"No config\.json"):
        config.read(tmp_path / "elsewhere")


def test_resuming_with_another_configuration(write, tmp_path):
    root = toy(write)
    assert config.guard_resume(root, tmp_path, ("betas",)) == []
    config.save(root, tmp_path)
    assert config.guard_resume(root, tmp_path, ()) == []
    other = dataclasses.replace(root, betas=(0.9, 0.99))
    assert config.guard_resume(other, tmp_path, ("betas",)) == ["betas[1]: 0.95 -> 0.99"]
    with pytest.raises(config.ConfigError, match=r"betas\[1\]: 0.95 -> 0.99"):
        config.guard_resume(other, tmp_path, ("beta", "steps"))


def test_a_saved_model_is_the_model_of_a_recipe(tmp_path):
    """`model.gin` of an import, after a recipe: the rest stays the recipe's."""
    recipe = "recipes/demo_midtrain.gin"
    wanted = config.load("train", [recipe], ["TransformerConfig.qk_norm=head"]).model
    config.save_model(wanted, tmp_path)
    loaded = config.load("train", [recipe, str(tmp_path / "model.gin")])
    assert loaded.model == wanted != config.load("train", [recipe]).model
    assert loaded.data == config.load("train", [recipe]).data


def test_the_folder_of_another_verb_is_not_resumed(tmp_path):
    config.save(tiny.train(tmp_path), tmp_path)
    with pytest.raises(config.ConfigError, match="written by `midjax train`, not by `midjax exp"):
        config.guard_resume(
            export.Export(
                run="a",
                step=None,
                output="b",
                tokenizer="c",
                dtype="float32",
                mesh=sharding.Mesh(data=1, fsdp=1, tensor=1),
            ),
            tmp_path,
            (),
        )
