# SPDX-License-Identifier: Apache-2.0
"""`midjax eval --against PARENT` from the command line: two runs, one that forgot."""

import json

import pytest
import tiny_run as tiny

import midjax.__main__ as cli
from midjax import against_verb, files, opening, verbs
from midjax.evals import pairing
from midjax.train import loop

GATE = ["--gin.Eval.comparison=@Comparison()", "--gin.Comparison.gates=(@Gate(),)"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on prose, and one that went on from it with code alone."""
    folder = tmp_path_factory.mktemp("against")
    tokenizer = tiny.write_tokenizer(folder / "tokenizer")
    tiny.write_tokens(folder / "tokens", tokenizer=tokenizer)

    def only(name, source, **kwargs):
        data = tiny.data(folder / "tokens", tiny.mixture((0, {source: 1.0})))
        loop.run(tiny.train(folder, name, data=data, model=tiny.model(layers=1), **kwargs))

    only("parent", "prose", steps=40)
    only("child", "code", steps=12, start=tiny.begin("weights", run=str(folder / "parent")))
    (folder / "eval.gin").write_text(f"""
Eval.name = "held_out"
Eval.run = "{folder}/child"
Eval.tokens = "{folder}/tokens"
Eval.domains = ("prose", "code")
Eval.row_tokens = {tiny.T}
Eval.batch_rows = 16
Eval.tokenizer = "{folder}/tokenizer"
Eval.mesh = @Mesh()
Mesh.data = 1
Mesh.fsdp = -1
Mesh.tensor = 1
""")
    return folder


def evaluate(folder, *arguments):
    return cli.main(["eval", f"--gin_file={folder}/eval.gin", *arguments])


def test_a_child_against_its_parent(folder, capsys):
    assert evaluate(folder, "--against", f"{folder}/parent") == 0
    said = capsys.readouterr().out
    assert f"{folder}/parent, step 40, has no such result yet, and is measured" in said
    found = files.read_json(folder / "child" / "eval" / "held_out.against.json")
    results = [
        files.read_json(folder / run / "eval" / f"{name}.json")["domains"]
        for run, name in (("parent", "held_out-40"), ("child", "held_out"))
    ]
    rows = {row["score"]: row for row in found["rows"]}
    for name, verdict in (("prose", "worse"), ("code", "better")):
        row = rows[f"domain/{name}/bits_per_byte"]
        before, after = (result[name]["bits_per_byte"] for result in results)
        assert [row["parent"], row["now"]] == pytest.approx([before, after])
        assert row["verdict"] == verdict
        (line,) = (x for x in said.splitlines() if f"domain/{name}/bits_per_byte" in x)
        assert f"{before:.4f}" in line and f"{after:.4f}" in line and line.endswith(verdict)
    assert (found["step"], found["parent"]["step"]) == (12, 40) and found["passed"]


def test_a_gate_that_fails_is_exit_code_6_and_the_parent_is_measured_once(folder, capsys):
    gate = ["--gin.Gate.scores=domain/prose/*", "--gin.Gate.largest_loss=0.02"]
    place = f"--against={folder}/parent/checkpoints/40"
    assert evaluate(folder, place, *GATE, *gate) == 6
    said = capsys.readouterr()
    assert "child, step 12, has forgotten more than its gates allow:" in said.err
    assert "gate 'domain/prose/*': domain/prose/bits_per_byte lost" in said.err
    assert "GATE FAILED" in said.out and "measured:" not in said.out
    lines = [json.loads(x) for x in (folder / "parent" / "evals.jsonl").open()]
    assert [(x["name"], x["step"]) for x in lines] == [("held_out", 40)]
    # Against itself nothing is lost.
    own = f"--against={folder}/child/eval/held_out.json"
    assert evaluate(folder, own, *GATE, *gate) == 0
    # The parent's result serves whatever its name is.
    assert evaluate(folder, "--gin.Eval.name=after", place) == 0
    assert "measured:" not in capsys.readouterr().out


def test_other_settings_measure_the_parent_anew_and_a_file_is_refused(folder, capsys):
    wide = ["--gin.Eval.name=code", "--gin.Eval.domains=('code',)"]
    assert evaluate(folder, *wide, f"--against={folder}/parent/eval/held_out-40.json") == 0
    short = "--gin.Eval.row_tokens=8"
    assert evaluate(folder, short, f"--against={folder}/parent/eval/held_out-40.json") == 2
    assert "row_tokens: the parent has 16, now it is 8" in capsys.readouterr().err
    assert evaluate(folder, short, f"--against={folder}/parent") == 0
    assert "and is measured" in capsys.readouterr().out
    coarse = "--gin.Eval.compute_dtype=bfloat16"
    capsys.readouterr()
    assert evaluate(folder, coarse, f"--against={folder}/child/eval/code.json") == 2
    assert (
        'compute_dtype: the parent has "float32", now it is "bfloat16"' in capsys.readouterr().err
    )
    assert evaluate(folder, coarse, f"--against={folder}/parent") == 0
    assert "and is measured" in capsys.readouterr().out
    path = folder / "parent" / "eval" / "held_out-40.json"
    assert files.read_json(path)["compute_dtype"] == "bfloat16"


def test_a_gate_on_no_score_is_refused_before_parameters_are_read(folder, monkeypatch, capsys):
    monkeypatch.setattr(opening.Opened, "params", None)  # to call it is a TypeError
    gate = ["--gin.Gate.scores=domain/poetry/*", "--gin.Gate.largest_loss=0.02"]
    assert evaluate(folder, f"--against={folder}/parent", *GATE, *gate) == 2
    assert "'domain/poetry/*' is no score; there are domain/prose" in capsys.readouterr().err


def test_the_parent_is_measured_in_the_dtype_of_the_model(folder):
    """Which its own configuration may not have, where `Eval.compute_dtype` is not set."""
    asked = []

    class Stop(Exception):
        pass

    def measure(root, stem):
        asked.append(root.compute_dtype)
        raise Stop

    root = verbs.load("eval", [f"--gin_file={folder}/eval.gin"])
    now = pairing.of({"run": "child", "step": 12, "compute_dtype": "bfloat16"}, "now.json")
    with pytest.raises(Stop):
        against_verb.run(root, now, against_verb.Parent(run=str(folder / "none")), measure)
    assert (root.compute_dtype, asked) == (None, ["bfloat16"])


def test_parents_that_are_not_there(folder, capsys):
    for place, words in (
        (f"{folder}/nowhere", "no checkpoint there"),
        (f"{folder}/parent/checkpoints/39", "asked for 39"),
        (f"{folder}/no.json", "`midjax eval` writes"),
    ):
        assert evaluate(folder, "--against", place) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(ValueError, match="give --against PARENT"):
        against_verb.split(["--against"])
    assert against_verb.split(["--gin_file=a"]) == (["--gin_file=a"], None)
