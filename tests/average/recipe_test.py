# SPDX-License-Identifier: Apache-2.0
"""The run directory that an average writes, and what is refused before anything is written."""

import os
import pathlib
import shutil

import numpy as np
import pytest
import tiny_average as tiny

from midjax import __main__ as cli
from midjax import checkpoint, config, files, lineage, verbs
from midjax.average import ingredients, methods, recipe
from midjax.model import architecture, sharding

TOKENIZER = b'{"version": "1.0"}'
HASH = files.sha256(TOKENIZER)


def soup(*runs, steps=None):
    return methods.Soup(runs=runs, steps=steps, weights=None)


def average(output, method, scorer=tiny.no_scorer):
    recipe.run(tiny.average(output, method), find=verbs.checkpoint_of, scorer=scorer)
    return files.read_json(output / "average.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An import with a tokenizer, and three runs that began from it."""
    folder = tmp_path_factory.mktemp("recipe")
    origin = {"format": "other", "path": "somewhere"}
    imported = tiny.write(
        folder, "in", {7: tiny.params(tiny.model())}, tokenizer=HASH,
        before=[{"imported from": origin}],
    )  # fmt: skip
    files.write_bytes(folder / "in" / "tokenizer" / "tokenizer.json", TOKENIZER)
    files.write_bytes(folder / "in" / "tokenizer" / "tokenizer_config.json", b"{}")
    for seed, name in enumerate("abc", 1):
        made = {step: tiny.params(tiny.model(), 10 * seed + step) for step in (2, 4)}
        tiny.write(folder, name, made, tokenizer=HASH, before=lineage.of(imported, 7))
    return folder


def _name(run, step):
    seal = checkpoint.read_facts(run, step)["manifest"]["seal"]
    return {"run": run, "step": step, "hash": seal}


def places(folder, *names):
    return [str(folder / name) for name in names]


def test_it_is_a_run_like_an_imported_one(folder, tmp_path, capsys):
    a, b = places(folder, "a", "b")
    record = average(tmp_path / "out", soup(a, b, steps=(2, None)))
    model, step, facts = verbs.checkpoint_of(str(tmp_path / "out"), None)
    manifest = facts["manifest"]
    assert model == tiny.model() and step == 4 and facts["data"] == {}
    assert manifest["tokenizer_hash"] == HASH
    assert (manifest["adam_count"], manifest["lr"]) == (None, {"last": None, "next": None})
    assert set(manifest["norms"]) == {"params"} and record["norm"] == manifest["norms"]["params"]
    assert {name.partition("/")[0] for name in manifest["arrays"]} == {"params"}

    kept = manifest["lineage"][0]["average of"]
    assert kept["method"] == record["method"] == "Soup" and record["left out"] == []
    assert kept["ingredients"] == record["ingredients"]
    for one, (run, at) in zip(kept["ingredients"], ((a, 2), (b, 4)), strict=True):
        assert (one["run"], one["step"], one["weight"]) == (run, at, 0.5)
        assert one["hash"] == checkpoint.read_facts(run, at)["manifest"]["seal"]
        first, start, own = one["stages, oldest first"]
        assert first == {"imported from": {"format": "other", "path": "somewhere"}}
        assert start["run"] == str(folder / "in") and own == _name(run, at)
    assert lineage.of(str(tmp_path / "out"), 4) == [
        {"average of": kept},
        _name(str(tmp_path / "out"), 4),
    ]
    said = capsys.readouterr().out
    assert f"0.5 of {a}, step 2: norm" in said and "Start.kind = 'weights'" in said

    saved = [tiny.read(a, 2), tiny.read(b, 4)]
    found = tiny.read(tmp_path / "out", 4)["layers"]["wq"]
    expected = np.mean([np.float64(tree["layers"]["wq"]) for tree in saved], axis=0)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_the_tokenizer_of_a_forebear_goes_along(folder, tmp_path):
    record = average(tmp_path / "out", soup(*places(folder, "a", "b")))
    assert record["tokenizer"] == str(folder / "in" / "tokenizer")
    copied = {p.name: p.read_bytes() for p in (tmp_path / "out" / "tokenizer").iterdir()}
    assert copied == {"tokenizer.json": TOKENIZER, "tokenizer_config.json": b"{}"}
    # An average of averages finds it in its ingredient.
    again = average(tmp_path / "again", soup(str(tmp_path / "out")))
    assert again["tokenizer"] == str(tmp_path / "out" / "tokenizer")


def test_a_tokenizer_that_is_not_the_models_does_not_go_along(folder, tmp_path, capsys):
    shutil.copytree(folder / "in", tmp_path / "in")
    (tmp_path / "in" / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    record = average(tmp_path / "out", soup(str(tmp_path / "in")))
    assert record["tokenizer"] is None and not (tmp_path / "out" / "tokenizer").exists()
    assert "holds the tokenizer's files: name them to export" in capsys.readouterr().out


def test_a_soup_of_one_is_that_checkpoint(folder, tmp_path):
    (a,) = places(folder, "a")
    average(tmp_path / "out", soup(a))
    one, other = (checkpoint.read_facts(run, 4)["manifest"] for run in (a, str(tmp_path / "out")))
    assert one["digests"] == other["digests"] and one["norms"] == other["norms"]
    assert tiny.same_bits(tiny.read(tmp_path / "out", 4), tiny.read(a, 4))


def test_last_and_interpolation(folder, tmp_path):
    a, b = places(folder, "a", "b")
    last = average(
        tmp_path / "last", methods.LastN(run=a, newest=2, steps=None, weights=(0.25, 0.75))
    )
    assert [(x["step"], x["weight"]) for x in last["ingredients"]] == [(2, 0.25), (4, 0.75)]
    between = methods.Interpolation(
        first_run=a, first_step=4, second_run=b, second_step=2, weight=0.1, extrapolate=False
    )
    record = average(tmp_path / "between", between)
    assert [x["weight"] for x in record["ingredients"]] == [0.9, 0.1] and record["step"] == 4
    first, second = (np.float64(tiny.read(run, step)["head"]) for run, step in ((a, 4), (b, 2)))
    found = tiny.read(tmp_path / "between", 4)["head"]
    np.testing.assert_allclose(found, 0.9 * first + 0.1 * second, rtol=1e-6)


def test_a_greedy_soup_keeps_whom_the_score_wants(folder, tmp_path):
    """Scored by the distance to the mean of a and c: b does not belong there."""
    a, b, c = places(folder, "a", "b", "c")
    wanted = (tiny.read(a, 4)["embed"] + tiny.read(c, 4)["embed"]) / 2
    asked = []

    def scorer(root, model, mesh, tokenizer_hash):
        asked.append((root.method.domains, model, mesh.size, tokenizer_hash))
        return lambda params: {"code": float(np.abs(params["embed"] - wanted).mean())}

    method = methods.GreedySoup(
        runs=(a, b, c), steps=None, tokens="t", domains=("code",), row_tokens=8, batch_rows=1,
        tokenizer="t",
    )  # fmt: skip
    record = average(tmp_path / "out", method, scorer)
    assert asked == [(("code",), tiny.model(), 1, HASH)]
    assert {one["run"] for one in record["ingredients"]} == {a, c}
    assert [one["weight"] for one in record["ingredients"]] == [0.5, 0.5]
    assert record["left out"] == [{"run": b, "step": 4}]
    assert len(record["scored"]) == 5
    best = min(trial["mean"] for trial in record["scored"])
    (trial,) = [trial for trial in record["scored"] if trial["mean"] == best]
    assert trial["kept"] and trial["bits per byte"] == {"code": best} and best < 1e-7
    assert {one["run"] for one in trial["ingredients"]} == {a, c}
    np.testing.assert_allclose(tiny.read(tmp_path / "out", 4)["embed"], wanted, rtol=1e-6)


def refused(output, method, error, words):
    with pytest.raises(error, match=words):
        average(output, method)
    assert not checkpoint.steps(str(output)) and not (output / "average.json").exists()


def test_what_cannot_be_averaged_writes_nothing(folder, tmp_path):
    a, b = places(folder, "a", "b")
    out = tmp_path / "out"
    refused(
        out, soup(a, b, steps=(2, 3)), checkpoint.CheckpointError, r"b holds the .* asked for 3"
    )
    refused(out, soup(a, a), ingredients.AverageError, "a, step 4, is named twice")
    refused(out, soup(a, "no"), checkpoint.CheckpointError, "^no holds the checkpoints")
    wide = tiny.model(ffn_dim=64)
    other = tiny.write(tmp_path, "wide", {1: tiny.params(wide)}, wide, tokenizer=HASH)
    refused(out, soup(a, other), ingredients.AverageError, "ffn_dim: 48 and 64")
    assert not out.exists()


def test_a_damaged_ingredient_is_named(folder, tmp_path):
    shutil.copytree(folder / "b", tmp_path / "b")
    damaged = str(tmp_path / "b")
    params = pathlib.Path(checkpoint.folder(damaged)) / "4" / "params"
    for file in params.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            os.truncate(file, 10)
    a = str(folder / "a")
    refused(tmp_path / "out", soup(a, damaged), checkpoint.CheckpointError, f"^{damaged}, step 4: ")
    (params.parent / "manifest" / "metadata").unlink()
    refused(tmp_path / "out", soup(a, damaged), checkpoint.DamagedError, f"^{damaged}, step 4: ")


def test_numbers_that_grow_too_large_are_refused(tmp_path):
    made = {}
    for step, value in ((1, 3e16), (2, -3e16)):
        made[step] = tiny.params(tiny.model())
        made[step]["embed"] = made[step]["embed"] * 0 + value
    run = tiny.write(tmp_path, "run", made)
    beyond = methods.Interpolation(
        first_run=run, first_step=1, second_run=run, second_step=2, weight=1e6, extrapolate=True
    )
    refused(tmp_path / "out", beyond, ingredients.AverageError, "too large for float32")


def test_a_folder_with_checkpoints_is_not_written_to(folder):
    a, b = places(folder, "a", "b")
    before = checkpoint.read_facts(a, 4)
    with pytest.raises(ingredients.AverageError, match=r"a holds the checkpoints \[2, 4\] already"):
        average(folder / "a", soup(a, b))
    assert checkpoint.read_facts(a, 4) == before


def test_local_disks_only():
    with pytest.raises(ValueError, match="written to local disks only"):
        recipe.Average(output="gs://bucket/run", method=soup("a"), mesh=tiny.ONE)


def test_the_recipe_and_the_model_are_saved(folder, tmp_path):
    root = tiny.average(tmp_path / "out", soup(*places(folder, "a", "b")))
    config.save(root, tmp_path / "saved")
    gin_file = str(tmp_path / "saved" / "config.gin")
    assert config.load("average", [gin_file]) == root
    assert cli.main(["average", f"--gin_file={gin_file}"]) == 0
    assert config.load_run(tmp_path / "out", "average") == root
    model = config.load_class(architecture.TransformerConfig, [str(tmp_path / "out" / "model.gin")])
    assert model == tiny.model() and isinstance(root.mesh, sharding.Mesh)
