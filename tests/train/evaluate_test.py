# SPDX-License-Identifier: Apache-2.0
"""A run that is measured on its way is the same run; a gate ends one that forgets by design."""

import dataclasses
import json
import os
import pathlib
import signal

import byte_pairs
import jax
import numpy as np
import pytest
import tiny_run as tiny

import midjax.__main__ as cli
from midjax import checkpoint, config, files, log, verbs
from midjax.batches import shards, vocabulary
from midjax.evals import compare, loss, recipe, record, suite
from midjax.evals import run as run_lib
from midjax.evals.long import run as long_run
from midjax.model import transformer
from midjax.train import evaluation, loop, preemption


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tokens, their tokenizer, and a run on prose alone that others start from."""
    folder = tmp_path_factory.mktemp("evaluate")
    tokenizer = tiny.write_tokenizer(folder / "tokenizer")
    tiny.write_tokens(folder / "tokens", tokenizer=tokenizer)
    loop.run(only(folder, "run", "prose", steps=60))
    return folder


def only(folder, name, source, **kwargs):
    """A run on one source."""
    data = tiny.data(folder / "tokens", tiny.mixture((0, {source: 1.0})))
    return tiny.train(folder, name, **{"data": data, "model": tiny.model(layers=1), **kwargs})


def gated(scores, largest_loss):
    gate = compare.Gate(scores=scores, largest_loss=largest_loss)
    return compare.Comparison(gates=(gate,), general=("domain/prose/*",), resamples=400)


def rows(run, name="metrics"):
    return [json.loads(line) for line in (pathlib.Path(run.run_dir) / f"{name}.jsonl").open()]


def numbers(run):
    """(step, scores) of each line, in the file's order."""
    return [(line["step"], line["scores"]) for line in record.read(run.run_dir)]


def state_of(run):
    return jax.device_get(loop.begin(run).state)


def test_a_run_with_evaluations_every_50_steps_is_the_run_without(folder, monkeypatch):
    """Bit for bit; after the first evaluation nothing is compiled; no parameter is copied."""
    start = tiny.begin("anneal", run=str(folder / "run"), allow_lr_jump="a test")
    # Saves beside an evaluation would hold arrays of their own.
    rare = checkpoint.Keep(every_steps=30, last=1, forever_every_steps=None)
    plain = only(folder, "plain", "code", steps=60, start=start, checkpoint=rare)
    measured = tiny.replace(
        plain, run_dir=str(folder / "measured"), evaluations=(tiny.held_out(folder),)
    )
    compiled, grown = [], []

    def noted(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(len(record.read(measured.run_dir)))

    def live_bytes():
        return sum(x.nbytes for x in jax.live_arrays())

    def from_model(*given):
        row_nll, before = losses(*given), live_bytes()

        def counted(batch):
            found = row_nll(batch)
            if len(record.read(measured.run_dir)) < 2:  # that of the end stands beside a save
                grown.append(live_bytes() - before)
            return found

        return counted

    losses = loss.from_model
    monkeypatch.setattr(loss, "from_model", from_model)
    jax.monitoring.register_event_duration_secs_listener(noted)
    try:
        loop.run(measured)
    finally:
        jax.monitoring.unregister_event_duration_listener(noted)
    loop.run(plain)
    assert [step for step, _ in numbers(measured)] == [0, 50, 60]
    # The train step and the checkpoint are compiled by the second update, the evaluation before it.
    assert max(compiled, default=0) <= 1
    # Two batches' losses are there, of 16 rows each; the parameters are not there twice.
    assert max(grown) <= 2 * 16 * tiny.T * 4 < 4 * transformer.parameter_count(plain.model)
    for one, other in zip(rows(measured), rows(plain), strict=True):
        same = {name for name in one if not name.startswith("perf/")}
        assert {n: one[n] for n in same} == {n: other[n] for n in same}
    seals = [checkpoint.read_facts(r.run_dir, 60)["manifest"]["arrays"] for r in (measured, plain)]
    assert seals[0] == seals[1] and seals[0]
    jax.tree.map(np.testing.assert_array_equal, state_of(measured), state_of(plain))
    ends = [e for e in rows(measured, "events") if e["event"] == "goodput"]
    assert ends[-1]["session_seconds"]["eval"] > 0


def test_the_numbers_are_those_of_midjax_eval(folder):
    run = tiny.replace(
        only(folder, "same", "code", steps=4), evaluations=(tiny.held_out(folder, every_steps=9),)
    )
    loop.run(run)
    inside = files.read_json(pathlib.Path(run.run_dir) / "eval" / "held_out-4.json")
    asked = recipe.Eval(
        name="outside", run=run.run_dir, step=4, tokens=str(folder / "tokens"),
        domains=("prose", "code"), row_tokens=tiny.T, batch_rows=16,
        tokenizer=str(folder / "tokenizer"), mesh=run.mesh,
    )  # fmt: skip
    model, step, facts = verbs.checkpoint_of(run.run_dir, None)
    mesh = loop.begin(run).mesh
    params = verbs.params_of(model, facts, run.run_dir, "params", mesh)
    outside = run_lib.run(asked, model, params, step, mesh)
    assert inside["domains"] == outside["domains"] and inside["step"] == 4
    assert numbers(run) == [(4, record.scores(outside))]  # a fresh start is not measured


def test_an_interrupted_run_has_each_line_once(folder, monkeypatch):
    straight = only(folder, "straight", "code", steps=8)
    straight = tiny.replace(straight, evaluations=(tiny.held_out(folder, every_steps=3),))
    loop.run(straight)
    assert [step for step, _ in numbers(straight)] == [3, 6, 8]

    killed = tiny.replace(straight, run_dir=str(folder / "killed"))
    metrics = log.Journal.metrics

    def dies(self, row):
        metrics(self, row)
        if row["step"] == 7:  # behind the line of step 6; the checkpoint is of step 4
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(log.Journal, "metrics", dies)
        with pytest.raises(KeyboardInterrupt):
            loop.run(killed)
    assert [step for step, _ in numbers(killed)] == [3, 6]
    loop.run(killed)
    assert numbers(killed) == numbers(straight)

    asked = tiny.replace(straight, run_dir=str(folder / "asked"))
    with monkeypatch.context() as patch:
        patch.setattr(preemption.Stop, "reached", lambda self, step: step == 6)
        with pytest.raises(preemption.PreemptedError):
            loop.run(asked)
    assert [step for step, _ in numbers(asked)] == [3]  # SIGTERM leaves no time for it
    loop.run(asked)
    assert numbers(asked) == numbers(straight)


def test_sigterm_ends_an_evaluation_between_two_batches(folder, monkeypatch):
    """Before the first update, at an update that is saved for it, and at the end of the run."""
    start = tiny.begin("anneal", run=str(folder / "run"), allow_lr_jump="a test")
    straight = only(folder, "uncut", "code", steps=8, start=start)
    straight = tiny.replace(straight, evaluations=(tiny.held_out(folder, every_steps=3),))
    loop.run(straight)
    assert [step for step, _ in numbers(straight)] == [0, 3, 6, 8]

    cut = tiny.replace(straight, run_dir=str(folder / "cut"))
    losses = loss.from_model
    for whole, newest, lines in ((0, None, []), (2, 6, [0, 3]), (1, 8, [0, 3, 6])):
        left, batches = [whole], []

        def from_model(*given, left=left, batches=batches):
            row_nll, is_last = losses(*given), left[0] == 0
            left[0] -= 1

            def signalled(batch):
                batches.append(is_last)
                if batches.count(True) == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return row_nll(batch)

            return signalled

        with monkeypatch.context() as patch:
            patch.setattr(loss, "from_model", from_model)
            with pytest.raises(preemption.PreemptedError) as error:
                loop.run(cut)
        assert batches.count(True) == 2 and error.value.exit_code == 42
        saved = checkpoint.steps(cut.run_dir)
        assert (saved[-1] if saved else None) == newest
        assert [step for step, _ in numbers(cut)] == lines
    loop.run(cut)
    assert numbers(cut) == numbers(straight)
    jax.tree.map(np.testing.assert_array_equal, state_of(cut), state_of(straight))
    told = [e["saved_step"] for e in rows(cut, "events") if e["event"] == "preempted"]
    assert told == [None, 6, 8]


def test_what_is_due_is_saved_before_it_is_measured(folder, monkeypatch):
    """An evaluation takes its time and may fail: at a save that is due, and at the end."""
    straight = only(folder, "due", "code", steps=8)
    straight = tiny.replace(straight, evaluations=(tiny.held_out(folder, every_steps=4),))
    loop.run(straight)
    broken = tiny.replace(straight, run_dir=str(folder / "broken"))
    measured = run_lib.run
    for works, step in ((0, 4), (1, 8)):  # how many evaluations work, and what is saved then
        left = [measured] * works
        with monkeypatch.context() as patch:
            patch.setattr(run_lib, "run", lambda *a, left=left, **k: left.pop()(*a, **k))
            with pytest.raises(IndexError):
                loop.run(broken)
        assert checkpoint.steps(broken.run_dir)[-1] == step
        assert [at for at, _ in numbers(broken)] == [4][:works]
    loop.run(broken)  # nothing is left to train
    assert numbers(broken) == numbers(straight)


TASK = """
source = "a test"
kind = "{kind}"
primary = "{metric}"
prompt = "Q: {{{{q}}}}\\nA:"
answer = " {{{{choice}}}}"
choices = "{choices}"
gold = "{gold}"
metrics = [{{ name = "{metric}" }}]
[data]
path = "set"
split = "test"
licence = "none"
"""
GENERATE = '[generate]\nstop = ["\\n"]\nmax_new_tokens = 6\n'


def test_tasks_and_long_tasks_on_the_way(tmp_path):
    """The run is the run without, and its numbers are those of its checkpoint."""
    tokenizer = byte_pairs.make(template=True)
    byte_pairs.save(tmp_path / "tokenizer", tokenizer, bos_token="<s>", eos_token="</s>")
    opened = vocabulary.FastTokenizer(
        path=str(tmp_path / "tokenizer"), bos_token="<s>", eos_token="</s>"
    ).open()
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, 5))) for _ in range(300)]
    documents = []
    for i in range(20):
        text = " ".join(rng.choice(words, 60)) + "."
        ids = np.array([*tokenizer.encode(text).ids, tokenizer.token_to_id("</s>")])
        documents.append((f"d{i}", len(text), ids))
    names = ("source", "vocab_size", "tokenizer_hash", "bos_id", "eos_id")
    facts = {name: opened.facts[name] for name in names[1:]} | {"source": "prose"}
    shards.write(str(tmp_path / "tokens" / "prose"), documents, facts=facts, shard_tokens=5000)
    records = [{"q": words[i], "options": words[i : i + 3], "right": i % 3} for i in range(4)]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    made = {
        "ranked": {"kind": "choice", "metric": "acc", "choices": "options", "gold": "right"},
        "written": {"kind": "generate", "metric": "exact_match", "choices": "", "gold": "q"},
    }
    for name, fields in made.items():
        more = GENERATE if name == "written" else ""
        (tmp_path / f"{name}.toml").write_text(TASK.format(**fields) + more)
    tasks = suite.Tasks(
        data=str(tmp_path), names=tuple(f"{tmp_path}/{name}.toml" for name in made), batch_rows=4
    )
    long_tasks = long_run.LongTasks(
        source="prose", row_tokens=(600,), per_cell=1, tasks=("niah_single_1",), forms=("rank",),
        decoys=2, answer_tokens=12,
    )  # fmt: skip
    asked = evaluation.Evaluation(
        name="asked", every_steps=3, tokenizer=str(tmp_path / "tokenizer"), tasks=tasks,
        tokens=str(tmp_path / "tokens"), long_tasks=long_tasks,
    )  # fmt: skip
    data = tiny.data(tmp_path / "tokens", tiny.mixture((0, {"prose": 1.0})))
    plain = tiny.train(
        tmp_path, "plain", steps=4, data=data,
        model=tiny.model(layers=1, vocab_size=264, context_tokens=64),
    )  # fmt: skip
    run = tiny.replace(plain, run_dir=str(tmp_path / "run"), evaluations=(asked,))
    loop.run(plain)
    loop.run(run)
    assert [step for step, _ in numbers(run)] == [3, 4]
    jax.tree.map(np.testing.assert_array_equal, state_of(run), state_of(plain))
    scores = numbers(run)[-1][1]
    wanted = {"task/ranked/acc", "task/written/exact_match"}
    assert wanted | {f"long/{name}/600/first" for name in ("niah_single_1", "mean")} == set(scores)
    config = recipe.Eval(
        name="after", run=run.run_dir, mesh=run.mesh, tokenizer=asked.tokenizer,
        tokens=asked.tokens, tasks=tasks, long_tasks=long_tasks,
    )  # fmt: skip
    model, step, facts = verbs.checkpoint_of(run.run_dir, None)
    mesh = loop.begin(run).mesh
    params = verbs.params_of(model, facts, run.run_dir, "params", mesh)
    assert record.scores(run_lib.run(config, model, params, step, mesh)) == scores
    lines = (tmp_path / "run" / "eval" / "asked-4.documents.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in lines] == ["ranked"] * 4 + ["written"] * 4


@pytest.fixture(scope="module")
def forgetful(folder):
    """Trains what learnt prose on code alone, at a high rate."""
    return only(
        folder,
        "forgetful",
        "code",
        steps=20,
        start=tiny.begin("weights", run=str(folder / "run")),
        schedule=tiny.wsd(peak_lr=3e-2, warmup_steps=1),
        evaluations=(
            tiny.held_out(folder, every_steps=5, comparison=gated("domain/prose/*", 0.05)),
        ),
    )


def test_a_gate_ends_a_run_that_forgets_by_design(folder, forgetful, capsys):
    config.save(forgetful, folder / "recipe")
    command = ["train", f"--gin_file={folder / 'recipe' / 'config.gin'}"]
    assert cli.main(command) == 6
    told = capsys.readouterr().err
    assert "forgetful has forgotten more than its gates allow, by step 5, which is saved" in told
    assert "gate 'domain/prose/*': domain/prose/bits_per_byte lost" in told
    assert "95 % interval" in told and "above 5 %" in told
    assert checkpoint.steps(forgetful.run_dir)[-1] == 5  # no save was due: every 4 updates
    (before, at_start), (after, now) = numbers(forgetful)
    assert (before, after) == (0, 5) and at_start["retention"] == 1
    lost = [now[f"domain/{name}/bits_per_byte"] / at_start[f"domain/{name}/bits_per_byte"] - 1
            for name in ("prose", "code")]  # fmt: skip
    assert lost[0] > 0.05 and lost[1] < 0
    assert now["retention"] == pytest.approx(1 / (1 + lost[0]))
    events = [e for e in rows(forgetful, "events") if e["event"] == "gate_failed"]
    assert [e["step"] for e in events] == [5] and "domain/prose" in events[0]["what"]
    against = files.read_json(compare.path(forgetful.run_dir, "held_out"))
    assert not against["passed"] and (against["step"], against["parent"]["step"]) == (5, 0)

    assert cli.main(command) == 6  # it does not go on past the gate by being started again
    assert rows(forgetful)[-1]["step"] == 5
    wide = dataclasses.replace(
        forgetful,
        evaluations=(
            tiny.held_out(folder, every_steps=5, comparison=gated("domain/prose/*", 9.0)),
        ),
    )
    loop.run(wide)
    assert [step for step, _ in numbers(wide)] == [0, 5, 10, 15, 20]


def test_the_parent_may_be_a_result_of_midjax_eval(folder, forgetful):
    """Here of the start itself: the same gate fails at the same place."""
    parent = pathlib.Path(forgetful.run_dir) / "eval" / "held_out-start.json"
    asked = tiny.held_out(
        folder, every_steps=3, parent=str(parent), comparison=gated("retention", 0.02)
    )
    run = tiny.replace(forgetful, run_dir=str(folder / "by_parent"), evaluations=(asked,))
    with pytest.raises(compare.ForgottenError, match=r"by step 3.*\n.*gate 'retention'") as error:
        loop.run(run)
    assert error.value.exit_code == 6


def test_a_parent_that_was_measured_otherwise_is_refused_before_the_run(folder, forgetful):
    parent = str(pathlib.Path(forgetful.run_dir) / "eval" / "held_out-start.json")
    for changes, words in (
        ({"domains": ("prose", "maths")}, "domain 'maths': the parent has no number of it"),
        ({"row_tokens": 8}, "Eval.row_tokens: the parent has 16, now it is 8"),
    ):
        gate = gated("domain/prose/*", 0.1)
        asked = tiny.held_out(folder, parent=parent, comparison=gate, **changes)
        run = tiny.replace(forgetful, run_dir=str(folder / "otherwise"), evaluations=(asked,))
        with pytest.raises(ValueError, match=f"step 0 .*held_out-start.json.*\n.*{words}"):
            loop.run(run)
        assert not (folder / "otherwise").exists()


def test_what_cannot_be_measured_is_refused_before_the_run(folder):
    def refused(words, *evaluations, **changes):
        with pytest.raises(ValueError, match=words):
            loop.run(tiny.train(folder, "refused", evaluations=evaluations, **changes))
        assert not (folder / "refused").exists()

    gate = gated("domain/prose/*", 0.1)
    refused("'held_out' more than once", tiny.held_out(folder), tiny.held_out(folder))
    refused("starts fresh, with nothing to forget", tiny.held_out(folder, comparison=gate))
    with pytest.raises(FileNotFoundError, match=r"no\.json does not exist"):
        lost = tiny.held_out(folder, comparison=gate, parent=str(folder / "no.json"))
        loop.run(tiny.train(folder, "refused", evaluations=(lost,)))
    wrong = tiny.held_out(folder, comparison=gated("domain/prsoe/*", 0.1))
    refused(
        r"'domain/prsoe/\*' is no score; there are domain/prose/bits_per_byte, domain/code", wrong
    )
    other = compare.Comparison(gates=gate.gates, general=("task/*",))
    refused(r"general = \('task/\*',\) names no score", tiny.held_out(folder, comparison=other))
    refused("exceeds the model's context of 16", tiny.held_out(folder, row_tokens=2 * tiny.T))
    run = only(folder, "run", "prose", steps=60)  # it ended, and began without gates
    with pytest.raises(ValueError, match=r"began without it: .*held_out-start.json is missing"):
        loop.run(tiny.replace(run, evaluations=(tiny.held_out(folder, comparison=gate),)))
