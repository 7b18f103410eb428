# SPDX-License-Identifier: Apache-2.0
"""The printed plan is what a run reads, also where its mixture changes at a resume."""

import collections
import json
import pathlib

import pytest
import tiny_run as tiny

from midjax import __main__ as cli
from midjax import checkpoint, config
from midjax.batches import loader
from midjax.mixture import stages as stages_lib
from midjax.mixture import weights

ROW = tiny.T  # tokens of a row: the table's numbers are whole rows


@pytest.fixture
def read(monkeypatch):
    """Row ids of the batches in the order in which they are read: [(source, row of its plan)]."""
    found = []
    batches = loader.Loader.batches

    def noted(self, **kwargs):
        for batch, ids in batches(self, **kwargs):
            found.extend((self.names[source], row) for source, row in ids.tolist())
            yield batch, ids

    monkeypatch.setattr(loader.Loader, "batches", noted)
    return found


def recipe(folder, name, mix):
    root = tiny.train(folder, steps=16, data=tiny.data(folder / "tokens", mix))
    config.save(root, folder / name)
    return f"--gin_file={folder / name / 'config.gin'}"


def stages(*given):
    return tiny.mixture(*given, cap=50.0)


def lines(folder, name):
    return [json.loads(line) for line in (folder / "run" / f"{name}.jsonl").open()]


FIRST = (0, {"prose": 0.7, "code": 0.3})


def test_a_changed_mixture_is_a_new_stage(tmp_path, read, capsys):
    """8 steps of one mixture, 4 of another with a new source, then 4 more after a second resume."""
    tiny.write_tokens(tmp_path / "tokens")
    old = recipe(tmp_path, "old", stages(FIRST))
    new = recipe(tmp_path, "new", stages((0, {"prose": 0.2, "code": 0.2, "maths": 0.6})))
    assert cli.main(["train", old]) == 0
    before = collections.Counter(name for name, _ in read[: 8 * tiny.B])
    for step in (12, 16):  # as if killed after step 8
        checkpoint.set_aside(str(tmp_path / "run"), step)
    past = read[: 8 * tiny.B]
    read.clear()

    capsys.readouterr()
    assert cli.main(["show", "mixture", new]) == 0
    shown = capsys.readouterr().out
    assert "changed: a new stage of" in shown and "from step 9 on" in shown
    assert cli.main(["train", new]) == 0
    assert "the mixture CHANGED: a new stage from step 9 on (global row 64)" in (
        capsys.readouterr().out
    )
    straight = list(read)
    drawn = collections.Counter(name for name, _ in straight)
    for name in ("code", "maths", "prose"):
        tokens, total = drawn[name] * ROW, (drawn[name] + before[name]) * ROW
        assert f"{name} {tokens}" in _squeezed(shown, "s0")
        assert f"{name} {total}" in _squeezed(shown, "total")
    # Each source goes on where it was: no row is read twice before all of it was read once.
    for name in ("code", "prose"):
        rows = [row for source, row in past + straight if source == name]
        assert len(set(rows)) == len(rows)

    (event,) = [e for e in lines(tmp_path, "events") if e["event"] == "mixture_changed"]
    assert (event["step"], event["first_row"], event["drawn_rows"]) == (8, 64, dict(before))
    assert event["new"]["stages"][0]["weights"]["maths"] == 0.6
    facts = checkpoint.read_facts(str(tmp_path / "run"), 16)
    history = facts["manifest"]["mixtures"]
    assert [(m["step"], m["first_row"]) for m in history] == [(0, 0), (8, 64)]
    assert facts["manifest"]["sources"]["maths"]["tokens"] == drawn["maths"] * ROW
    last = lines(tmp_path, "metrics")[-1]
    assert last["rows/maths"] == drawn["maths"]
    assert last["rows/prose"] == drawn["prose"] + before["prose"]

    # The run that changed is resumed like any other: the same rows, the same parameters.
    digests = facts["manifest"]["digests"]
    checkpoint.set_aside(str(tmp_path / "run"), 16)
    read.clear()
    assert cli.main(["train", new]) == 0
    assert "CHANGED" not in capsys.readouterr().out
    assert read == straight[4 * tiny.B :]
    assert checkpoint.read_facts(str(tmp_path / "run"), 16)["manifest"]["digests"] == digests

    # And so is the mixture that it began with: one more change.
    checkpoint.set_aside(str(tmp_path / "run"), 16)
    assert cli.main(["train", old]) == 0
    assert "the mixture CHANGED: a new stage from step 13 on" in capsys.readouterr().out
    facts = checkpoint.read_facts(str(tmp_path / "run"), 16)
    assert [m["step"] for m in facts["manifest"]["mixtures"]] == [0, 8, 12]
    at_12 = collections.Counter(n for n, _ in straight[: 4 * tiny.B])
    assert facts["data"]["drawn_rows"]["maths"] == at_12["maths"]  # it keeps its place
    assert sum(facts["data"]["drawn_rows"].values()) == 16 * tiny.B


def _squeezed(table: str, stage: str) -> set[str]:
    """`source tokens` of a stage's lines."""
    lines = [line.split() for line in table.splitlines()]
    # stage, source, share asked (not in totals), share in force, tokens
    at = 3 if stage == "total" else 4
    return {
        f"{cells[1]} {cells[at].replace(',', '')}"
        for cells in lines
        if cells[:1] == [stage] and len(cells) > 4
    }


def test_a_mixture_that_changes_only_later_leaves_the_rows_until_then(tmp_path, read):
    tiny.write_tokens(tmp_path / "tokens")
    later = (100 * ROW, {"prose": 0.1, "code": 0.9})
    old = recipe(tmp_path, "old", stages(FIRST))
    assert cli.main(["train", old]) == 0
    straight = list(read)
    for step in (8, 12, 16):
        checkpoint.set_aside(str(tmp_path / "run"), step)
    read.clear()
    assert cli.main(["train", recipe(tmp_path, "new", stages(FIRST, later))]) == 0
    assert read[:68] == straight[32:100] and read[68:] != straight[100:]


def test_what_else_may_not_change_is_refused(tmp_path, capsys):
    tiny.write_tokens(tmp_path / "tokens")
    old = recipe(tmp_path, "old", stages(FIRST))
    assert cli.main(["train", old]) == 0
    checkpoint.set_aside(str(tmp_path / "run"), 16)
    assert cli.main(["train", old, "--gin.Mixture.seed=5"]) == 2
    assert "Mixture.seed was 1 and is 5" in capsys.readouterr().err
    assert cli.main(["show", "mixture", old, "--gin.data_sources_code/Source.packing=concat"]) == 2
    assert "the tokens or packing of 'code' changed" in capsys.readouterr().err
    (tmp_path / "tokens" / "code" / "manifest.json").unlink()
    assert cli.main(["train", old]) == 2
    assert "code is not a finished token folder" in capsys.readouterr().err
    assert checkpoint.steps(str(tmp_path / "run")) == [4, 8, 12]


def test_show_mixture_fails_as_the_run_would_and_leaves_nothing(tmp_path, capsys):
    tiny.write_tokens(tmp_path / "tokens")
    dry = recipe(tmp_path, "dry", tiny.mixture(FIRST, cap=0.1))
    for verb in (["show", "mixture"], ["train"]):
        assert cli.main([*verb, dry]) == 2
        assert "cap 0.1, dry at" in capsys.readouterr().err
    assert not pathlib.Path(tmp_path / "run").exists()


GIN = """
Mixture.stages = (@web/Stage(), @languages/Stage())
Mixture.max_epochs = {"web": 1.0, "de": 4.0, "sw": 4.0}
Mixture.seed = 0
Mixture.block_rows = 64
Mixture.over_cap = "shift"
web/Stage.name = "web"
web/Stage.start_share = 0.0
web/Stage.weights = {"web": 1.0}
languages/Stage.name = "languages"
languages/Stage.start_share = 0.8
languages/Stage.ramp_share = 0.1
languages/Stage.weights = @UniMax()
UniMax.sources = ("de", "sw")
UniMax.max_epochs = 4.0
"""


def test_computed_weights_and_ramps_in_gin_and_in_json(tmp_path):
    (tmp_path / "mix.gin").write_text(GIN)
    mix = config.load_class(stages_lib.Mixture, [str(tmp_path / "mix.gin")])
    assert mix.stages[1] == stages_lib.Stage(
        name="languages", start_share=0.8, ramp_share=0.1,
        weights=weights.UniMax(sources=("de", "sw"), max_epochs=4.0),
    )  # fmt: skip
    assert config.from_json(stages_lib.Mixture, json.loads(json.dumps(config.to_json(mix)))) == mix
