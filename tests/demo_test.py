# SPDX-License-Identifier: Apache-2.0
"""The demo's list of commands: every recipe loads, and each step finds what it needs."""

import imported
import pytest

from midjax import against_verb, config, demo
from midjax.importing import llama2c


def loaded():
    for why, (verb, *rest) in demo.commands():
        rest, parent = against_verb.split(rest)
        gin_files, bindings, unknown = config.split_argv(rest)
        assert not unknown and (parent is None or (verb, parent) == ("eval", demo.STORIES)), why
        yield verb, config.load(verb, gin_files, bindings)


def test_every_step_reads_what_an_earlier_step_wrote():
    written: set[str] = set()

    def needs(place):
        assert place in written, place

    for verb, root in loaded():
        if verb == "import":
            written |= {root.output, f"{root.output}/tokenizer"}
        elif verb == "tokenize":
            if root.tokenizer.path.startswith(demo.OUTPUT):
                needs(root.tokenizer.path)
            written |= {f"{root.output}/{name}" for name in root.sources}
        elif verb == "train":
            for source in root.data.sources.values():
                needs(source.tokens)
            if root.start.run:
                needs(root.start.run)
            for evaluation in root.evaluations:
                needs(evaluation.tokenizer)
                for domain in evaluation.domains:
                    needs(f"{evaluation.tokens}/{domain}")
            written.add(root.run_dir)
        elif verb == "eval":
            for domain in root.domains:
                needs(f"{root.tokens}/{domain}")
            needs(root.run)
            written.add(f"{root.run}/eval/{root.name}.json")
        elif verb == "export":
            needs(root.run)
            written.add(f"{root.output}/export.json")
        else:
            for _, place in (*root.runs, *root.columns):
                needs(place)
            if root.export:
                needs(root.export)


def test_the_control_differs_from_mid_training_in_its_data_only():
    runs = {root.run_dir.rpartition("/")[2]: root for verb, root in loaded() if verb == "train"}
    for one, control in (("midtrain", "control"), ("extend", "control_extend")):
        changed = {
            path for path, _, _ in config.changes(
                config.to_json(runs[one]), config.to_json(runs[control])
            )
        }  # fmt: skip
        allowed = ("data.mixture", "run_dir") + (("start.run",) if one == "extend" else ())
        assert changed and all(path.startswith(allowed) for path in changed), changed
    pretraining = config.to_json(runs["pretrain"].data.mixture)
    assert config.to_json(runs["control"].data.mixture) == pretraining
    assert config.to_json(runs["control_extend"].data.mixture) == pretraining


def test_the_demo_is_what_it_claims():
    runs = {root.run_dir.rpartition("/")[2]: root for verb, root in loaded() if verb == "train"}
    assert runs["pretrain"].schedule.decay_steps == 0 < runs["pretrain"].schedule.warmup_steps
    assert runs["midtrain"].start.kind == runs["extend"].start.kind == "anneal"
    assert len(runs["midtrain"].data.mixture.stages) == 2
    assert runs["midtrain"].schedule.peak_lr == "checkpoint"
    assert runs["midtrain"].schedule.final_lr == 0
    yarn = runs["extend"].model.rope.scaling
    assert yarn.kind == "yarn" and yarn.factor == 4
    assert runs["extend"].data.row_tokens == 4 * runs["midtrain"].data.row_tokens
    stories = runs["stories"]
    assert stories.start.kind == "weights" and stories.train_tokens == 60 * 256 * 8
    path, tokenizer = (str(imported.STORIES / name) for name in ("stories260K.bin", "tok512.bin"))
    assert stories.model == llama2c.Llama2c(path=path, tokenizer=tokenizer).open(None).model


def test_a_failing_step_stops_the_demo_and_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []

    def main(line):
        lines.append(line[0])
        return 2 * (line[0] == "train")

    with pytest.raises(ValueError, match=r"step 2 \(pretrain.*failed"):
        demo.run([], main)
    assert lines == ["tokenize", "train"]


@pytest.mark.parametrize("finished", [True, False])
def test_an_import_is_kept_or_done_anew(tmp_path, monkeypatch, finished):
    """An import refuses a folder that holds checkpoints; an interrupted one has left some."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / demo.STORIES
    (place / "checkpoints" / "0").mkdir(parents=True)
    if finished:
        (place / "model.gin").touch()
    verbs = []

    def main(line):
        verbs.append(line[0])
        if line[0] == "import":
            assert not place.exists()
        return 0

    demo.run([], main)
    assert ("import" in verbs) is not finished and place.exists() is finished


def test_fresh_starts_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = tmp_path / demo.OUTPUT / "old"
    old.mkdir(parents=True)
    demo.run([], lambda line: 0)
    assert old.exists()
    demo.run(["--fresh"], lambda line: 0)
    assert not old.exists()
