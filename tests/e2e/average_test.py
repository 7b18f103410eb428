# SPDX-License-Identifier: Apache-2.0
"""Averages through the verbs: two runs are trained, averaged, evaluated, exported, trained on."""

import json
import pathlib

import imported
import pytest
import stories
import tiny_average
import tiny_run as tiny

from midjax import __main__ as cli
from midjax import checkpoint, config, export, files, lineage
from midjax.average import methods
from midjax.evals import run as evals


def verb(folder: pathlib.Path, name: str, root, *more: str) -> int:
    """Saves a recipe and runs it as `midjax NAME --gin_file=...` would."""
    saved = folder / "recipes" / name
    config.save(root, saved)
    return cli.main([name, f"--gin_file={saved / 'config.gin'}", *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`in`, an import, and `a` and `b`, trained from it with different seeds."""
    folder = tmp_path_factory.mktemp("average")
    source = imported.stories_source()
    assert verb(folder, "import", imported.importing(folder / "in", source)) == 0
    parts = {"train": slice(8, None), "long": slice(4), "short": slice(4, 8)}
    assert verb(folder, "tokenize", stories.tokenizing(folder, parts)) == 0
    data = stories.data(folder, "train", batch_rows=4)
    for seed, name in enumerate("ab"):
        mixture = tiny.replace(data.mixture, seed=seed)
        recipe = training(folder, name, tiny.replace(data, mixture=mixture), run="in", steps=10)
        assert verb(folder, "train", recipe) == 0
    return folder


def training(folder, name, data, *, run, steps):
    return tiny.train(
        folder, name, model=imported.stories_source().open(None).model, data=data,
        train_tokens=steps * data.batch_rows * data.row_tokens, optimizer=tiny.adamw(),
        start=tiny.begin("weights", run=str(folder / run)),
        schedule=tiny.wsd(peak_lr=5e-4, warmup_steps=0),
    )  # fmt: skip


def bits(folder: pathlib.Path, run: str) -> dict[str, float]:
    root = evals.Eval(
        name="stories", run=str(folder / run), step=None, tokens=str(folder / "tokens"),
        domains=("long", "short"), row_tokens=128, batch_rows=4, long=None, samples=None,
        tokenizer=str(folder / "in" / "tokenizer"), mesh=imported.MESH,
    )  # fmt: skip
    assert verb(folder, "eval", root) == 0
    found = json.loads((folder / run / "eval" / "stories.json").read_text())
    return {name: domain["bits_per_byte"] for name, domain in found["domains"].items()}


def test_a_greedy_soup_scores_what_eval_scores(folder, capsys):
    method = methods.GreedySoup(
        runs=tuple(str(folder / run) for run in ("in", "a", "b")), steps=None,
        tokens=str(folder / "tokens"), domains=("long", "short"), row_tokens=128, batch_rows=4,
        tokenizer=str(folder / "in" / "tokenizer"),
    )  # fmt: skip
    root = tiny_average.average(folder / "greedy", method)
    wrong = "--gin.GreedySoup.domains=('long','law')"
    assert verb(folder, "average", root, wrong) == 2
    assert "law is not a finished token folder" in capsys.readouterr().err
    assert not (folder / "greedy").exists()

    assert verb(folder, "average", root) == 0
    record = files.read_json(folder / "greedy" / "average.json")
    alone = {run: bits(folder, run) for run in ("in", "a", "b")}
    scored = [trial["bits per byte"] for trial in record["scored"]]
    assert scored[:3] == [pytest.approx(alone[run], rel=1e-6) for run in ("in", "a", "b")]
    best = min(trial["mean"] for trial in record["scored"])
    assert sum(bits(folder, "greedy").values()) / 2 == pytest.approx(best, rel=1e-6)
    assert record["tokenizer"] == str(folder / "in" / "tokenizer")


def test_a_soup_is_exported_and_trained_on(folder, capsys):
    runs = tuple(str(folder / run) for run in "ab")
    method = methods.Soup(runs=runs, steps=None, weights=None)
    assert verb(folder, "average", tiny_average.average(folder / "soup", method)) == 0

    root = export.Export(
        run=str(folder / "soup"), step=None, output=str(folder / "hf"),
        tokenizer=str(folder / "soup" / "tokenizer"), dtype="float32", mesh=imported.MESH,
    )  # fmt: skip
    assert verb(folder, "export", root) == 0
    assert "logits within" in capsys.readouterr().out
    card = (folder / "hf" / "README.md").read_text()
    assert "average of" in card and all(run in card for run in runs)
    assert "stories260K.bin" in card  # what both began from

    data = config.load_run(folder / "a", "train").data
    recipe = training(folder, "on", data, run="soup", steps=2)
    moments = tiny.replace(recipe, start=tiny.begin("anneal", run=str(folder / "soup")))
    assert verb(folder, "train", moments) == 2
    assert "holds no moments of Adam" in capsys.readouterr().err
    assert verb(folder, "train", recipe) == 0
    start = json.loads((folder / "on" / "events.jsonl").open().readline())
    norms = checkpoint.read_facts(str(folder / "soup"), 10)["manifest"]["norms"]
    assert start["norms"] == norms and start["parts"]["params"] == "keep"
    first, middle, last = lineage.of(str(folder / "on"), 2)
    assert [one["run"] for one in first["average of"]["ingredients"]] == list(runs)
    assert (middle["run"], last["run"]) == (str(folder / "soup"), str(folder / "on"))

    again = tiny.replace(recipe, run_dir=str(folder / "soup"))
    assert verb(folder, "train", again) == 2
    assert "was written by `midjax average`, not by `midjax train`" in capsys.readouterr().err
