# SPDX-License-Identifier: Apache-2.0
"""Plans that are kept: the same as new ones, made anew after any change, never read when torn."""

import dataclasses
import json

import numpy as np
import pytest

from midjax import files
from midjax.batches import pack, plans, shards

BEST_FIT = pack.Packing(row_tokens=16, policy="best_fit")
CONCAT = pack.Packing(row_tokens=16, policy="concat")
ARRAYS = ("row_start", "documents", "class_start", "place", "start", "length")


def write(folder, seed=0, documents=50, shift=0):
    lengths = np.random.default_rng(seed).integers(1, 40, documents)
    made = [(str(i), 3, shift + np.arange(n)) for i, n in enumerate(lengths.tolist())]
    shards.write(str(folder), made, facts={"vocab_size": 200}, shard_tokens=100)
    return shards.TokenSource(str(folder))


@pytest.fixture
def made(monkeypatch):
    """What was planned anew, and not read."""
    found = []
    make = plans.make

    def noted(lengths, packing):
        found.append(packing)
        return make(lengths, packing)

    monkeypatch.setattr(plans, "make", noted)
    return found


def same(one, other):
    assert type(one) is type(other)
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert (
            (np.array_equal(a, b) and a.dtype == b.dtype)
            if field.name in ARRAYS and a is not None
            else a == b
        )


@pytest.mark.parametrize("packing", [BEST_FIT, CONCAT])
def test_a_kept_plan_is_the_plan(tmp_path, packing, made):
    source = write(tmp_path)
    first = plans.of(source, packing)
    assert made == [packing] and first.dropped == {
        "fewer than 2 tokens": (source.lengths == 1).sum()
    }
    again = plans.of(shards.TokenSource(str(tmp_path)), packing)
    assert made == [packing]  # not another time
    for found in (first, again):
        same(found, plans.make(source.lengths, packing))
        # Mapped: the memory is that of the file.
        assert not found.documents.flags.owndata and not found.documents.flags.writeable


def test_plans_of_nothing_are_kept_too(tmp_path, made):
    shards.write(str(tmp_path), [("a", 1, np.array([3]))], facts={"vocab_size": 9}, shard_tokens=9)
    for packing in (BEST_FIT, CONCAT):
        for _ in range(2):
            assert len(plans.of(shards.TokenSource(str(tmp_path)), packing)) == 0
    assert len(made) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"row_tokens": 17},
        {"policy": "first_fit"},
        {"mask": "none"},
        {"least_tokens": 5},
        {"most_tokens": 30},
    ],
    ids=str,
)
def test_every_part_of_the_packing_has_a_plan_of_its_own(tmp_path, change, made):
    source = write(tmp_path)
    other = dataclasses.replace(BEST_FIT, **change)
    for packing in (BEST_FIT, other, BEST_FIT, other):
        same(plans.of(source, packing), pack.plan(source.lengths, packing))
    assert made == [BEST_FIT, other]


def test_other_tokens_have_another_plan_and_old_ones_go(tmp_path, made):
    plans.of(write(tmp_path), BEST_FIT)
    (old,) = (tmp_path / "plans").iterdir()
    source = write(tmp_path, seed=1)
    same(plans.of(source, BEST_FIT), pack.plan(source.lengths, BEST_FIT))
    plans.of(source, CONCAT)
    assert len(made) == 3 and not old.exists()
    assert len(list((tmp_path / "plans").iterdir())) == 2


def test_another_version_of_the_algorithms_plans_anew(tmp_path, made, monkeypatch):
    source = write(tmp_path)
    plans.of(source, BEST_FIT)
    monkeypatch.setattr(plans, "FORMAT", plans.FORMAT + 1)
    plans.of(source, BEST_FIT)
    assert len(made) == 2


@pytest.mark.parametrize("name", [*ARRAYS, "plan"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_torn_files_are_not_read(tmp_path, name, damage, made):
    source = write(tmp_path)
    plans.of(source, BEST_FIT)
    (folder,) = (tmp_path / "plans").iterdir()
    file = folder / ("plan.json" if name == "plan" else f"{name}.npy")
    whole = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    same(plans.of(source, BEST_FIT), pack.plan(source.lengths, BEST_FIT))
    assert len(made) == 2 and file.read_bytes() == whole
    plans.of(source, BEST_FIT)
    assert len(made) == 2


def test_killed_before_the_last_file_there_is_no_plan(tmp_path, made, monkeypatch):
    source = write(tmp_path)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "write_json", killed)
        plans.of(source, BEST_FIT)
    (folder,) = (tmp_path / "plans").iterdir()
    assert len(list(folder.glob("*.npy"))) == len(ARRAYS)
    same(plans.of(source, BEST_FIT), pack.plan(source.lengths, BEST_FIT))
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_works_and_says_so(tmp_path, made, capsys):
    source = write(tmp_path)
    (tmp_path / "plans").write_text("not a folder")
    for _ in range(2):
        same(plans.of(source, BEST_FIT), pack.plan(source.lengths, BEST_FIT))
    assert len(made) == 2
    assert capsys.readouterr().out.count("packing plan is not kept") == 2


def test_what_a_plan_is_of_can_be_read(tmp_path):
    source = write(tmp_path)
    plans.of(source, BEST_FIT)
    (file,) = tmp_path.glob("plans/*/plan.json")
    facts = json.loads(file.read_text())
    assert facts["packing"] == dataclasses.asdict(BEST_FIT)
    assert facts["tokens"] == source.manifest["content_hash"] and facts["documents"] == 50
