# SPDX-License-Identifier: Apache-2.0
"""A checkpoint tells where it comes from, whatever became of the folders of older runs."""

import hashlib
import json
import pathlib
import shutil

import jax.numpy as jnp
import pytest

from midjax import __main__ as cli
from midjax import checkpoint, lineage

KEEP = checkpoint.Keep(every_steps=1, last=9, forever_every_steps=None)
T = 10  # tokens of a row


def data(rows, begun=None, fingerprint="f"):
    """The item `data`, of sources drawn so many rows, of which `begun` were before the run."""
    mixture = {"step": 0, "first_row": 0, "fingerprint": fingerprint, "mixture": {"seed": 1}}
    return {
        "row_tokens": T,
        "drawn_rows": rows,
        "begun_rows": begun or {},
        "mixtures": [mixture],
        "midjax": "9.9",
    }


def save(run, step, item, before=(), lr=(0.5, 0.25)):
    """A checkpoint as a run writes it; returns its lineage."""
    run_dir = str(run)
    facts = {"lr": {"first": lr[0], "last": lr[1], "next": lr[1]}}
    recipe = lineage.recipe_of(run_dir)
    own = lineage.stage(run_dir, step, data=item, facts=facts, recipe=recipe)
    facts["lineage"] = lineage.extended(before, own)
    with checkpoint.Store(run_dir, KEEP) as store:
        store.save(step, params={"w": jnp.float32(step)}, opt_state=None, data=item, facts=facts)
    return lineage.of(run_dir, step)


def manifest_file(run, step):
    return pathlib.Path(checkpoint.folder(str(run))) / str(step) / "manifest" / "metadata"


@pytest.fixture
def three(tmp_path):
    """Pretraining -> an anneal with other data -> a branch that goes on in that data."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"config": {"steps": 4}}')
    first = save(tmp_path / "a", 4, data({"web": 6, "code": 2}))
    second = save(tmp_path / "b", 8, data({"web": 3, "maths": 5}), first)
    kept = data({"web": 4, "maths": 9}, {"web": 3, "maths": 5}, fingerprint="g")
    return tmp_path, save(tmp_path / "c", 2, kept, second)


def test_every_stage_is_told_and_its_tokens_are_summed(three):
    folder, stages = three
    assert [(s["run"], s["step"]) for s in stages] == [
        (str(folder / "a"), 4), (str(folder / "b"), 8), (str(folder / "c"), 2)
    ]  # fmt: skip
    assert [s["tokens by source"] for s in stages] == [
        {"web": 60, "code": 20}, {"web": 30, "maths": 50}, {"web": 10, "maths": 40}
    ]  # fmt: skip
    assert stages[-1]["tokens by source in all"] == {"code": 20, "maths": 90, "web": 100}
    for stage in stages:
        file = manifest_file(stage["run"], stage["step"])
        assert stage["hash"] == json.loads(file.read_text())["seal"]
        assert stage["learning rate"] == {"first": 0.5, "last": 0.25, "jump": None}
    recipe = (folder / "a" / "config.json").read_bytes()
    assert stages[0]["recipe"] == {
        "path": str(folder / "a" / "config.json"),
        "hash": hashlib.sha256(recipe).hexdigest(),
        "content": json.loads(recipe),
    }
    assert stages[1]["recipe"] is None and stages[2]["mixtures"][0]["fingerprint"] == "g"


def test_nothing_is_lost_with_older_runs(three, capsys):
    folder, stages = three
    shutil.rmtree(folder / "a")
    shutil.rmtree(folder / "b")
    assert lineage.of(str(folder / "c"), 2) == stages
    assert [lineage.where(stage) for stage in stages] == ["gone", "gone", "there"]
    assert cli.main(["show", "lineage", f"--run={folder / 'c'}", "--step=2"]) == 0
    said = capsys.readouterr().out
    assert f"1. {folder / 'a'}, step 4 (gone)" in said and stages[0]["hash"][:12] in said
    assert "maths: 40 tokens, 90 since pretraining" in said
    assert "learning rate 0.5 at its first update, 0.25 at its last" in said
    assert cli.main(["show", "lineage", "c"]) == 2
    assert "show lineage takes --run=DIR" in capsys.readouterr().err


def test_a_folder_that_was_written_anew_is_another_checkpoint(three):
    folder, stages = three
    shutil.rmtree(folder / "a")
    save(folder / "a", 4, data({"web": 7, "code": 1}))
    assert [lineage.where(stage) for stage in stages] == ["another", "there", "there"]


def test_an_average_counts_a_shared_trunk_once(three):
    folder, stages = three
    trunk, middle, end = stages
    earlier = save(folder / "b", 9, data({"web": 4, "maths": 6}), [trunk])
    inner = "stages, oldest first"
    ingredients = [{"run": "c", inner: [trunk, middle, end]}, {"run": "b", inner: earlier}]
    average = {"average of": {"method": "Soup", "ingredients": ingredients}}
    # a once; b as far as step 9, which is farther than c's own start from it; c's own.
    assert lineage.totals([average]) == {"web": 60 + 40 + 10, "code": 20, "maths": 60 + 40}
    assert lineage.brief([average, trunk])[1]["recipe"].keys() == {"path", "hash"}
    told = lineage.brief([average])[0]["average of"]["ingredients"][0][inner]
    assert told[0]["recipe"].keys() == {"path", "hash"}


def as_format_3(run, step, parent):
    """Rewrites a checkpoint as format 3 had it: the parent's name, and no lineage."""
    file = manifest_file(run, step)
    manifest = json.loads(file.read_text())
    del manifest["lineage"], manifest["seal"], manifest["lr"]["first"]
    nothing = {"run": None, "step": None, "huggingface": None}
    manifest |= {"format": 3, "parent": nothing | parent}
    item = json.loads((file.parents[1] / "data" / "metadata").read_text())
    text = json.dumps([step, item, manifest], sort_keys=True)
    manifest["seal"] = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps(manifest))


def test_older_checkpoints_are_looked_up(three):
    folder, stages = three
    as_format_3(folder / "a", 4, {"imported": {"format": "other"}})
    as_format_3(folder / "b", 8, {"run": str(folder / "a"), "step": 4})
    imported, first, second = lineage.of(str(folder / "b"), 8)
    assert imported == {"imported from": {"format": "other"}}
    for found, want in ((first, stages[0]), (second, stages[1])):
        assert found["tokens by source"] == want["tokens by source"]
        assert found["learning rate"] == {"first": None, "last": 0.25, "jump": None}
        seal = json.loads(manifest_file(found["run"], found["step"]).read_text())["seal"]
        assert found["hash"] == seal
    assert second["tokens by source in all"] == {"code": 20, "maths": 50, "web": 90}
    shutil.rmtree(folder / "a")
    gone, _ = lineage.of(str(folder / "b"), 8)
    assert gone == {"run": str(folder / "a"), "step": 4} and lineage.where(gone) == "gone"


def test_a_folder_whose_name_is_used_again_is_another_run():
    def one(run, step, tokens):
        return {"run": run, "step": step, "tokens by source": {"a": tokens}}

    chain = [one("run", 100, 10), one("anneal", 5, 3), one("run", 50, 5)]
    assert lineage.totals(chain) == {"a": 18}
