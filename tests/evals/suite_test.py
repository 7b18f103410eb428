# SPDX-License-Identifier: Apache-2.0
"""Tasks through the verb: the numbers of render + ask + score, of a folder and of its import alike;
everything that was cut or left out counted; refusals before a parameter is read."""

import collections
import dataclasses
import gzip
import json
import math
import pathlib
import re
import statistics

import byte_pairs
import datasets
import pytest
import sandboxes
import tiny_model

from midjax import __main__ as cli
from midjax import files, opening
from midjax.evals import (
    engine,
    likelihood,
    likelihood_tokens,
    pairing,
    record,
    render,
    requests,
    suite,
    task,
    task_data,
)
from midjax.evals.metrics import scoring
from midjax.evals.sandbox import program, selftest
from midjax.model import hf

CONFIG = tiny_model.config(
    vocab_size=264, layers=1, heads=2, kv_heads=1, initializer_std=0.4, context_tokens=64
)
DATA = pathlib.Path(__file__).parents[1] / "data"
CHOICE = """
source = "a test"
kind = "choice"
primary = "acc_norm"
prompt = "Q: {{q}}?\\nA:"
answer = " {{choice}}"
choices = "options"
gold = "right"
metrics = [{ name = "acc" }, { name = "acc_norm" }, { name = "bits_per_byte" }]
subsets = ["u", "v"]

[data]
path = "set/{split}"
split = "test"
licence = "MIT"
hub = "who/set"
subset = "part"
keep = "q != 'left out'"

[shots]
count = 1
take = "first"
split = "dev"
"""
GOLD = """
source = "a test"
kind = "gold"
primary = "bits_per_byte"
prompt = "{{q}}"
answer = " {{options[right]}}"
metrics = [{ name = "bits_per_byte" }]

[data]
path = "set/{split}"
split = "test"
licence = "MIT"
"""
WRITE = """
source = "a test"
kind = "generate"
primary = "exact_match"
prompt = "{{q}}="
gold = "options[right]"
metrics = [{ name = "exact_match", filters = [{ kind = "regex", pattern = '[0-9]+' }] }]

[data]
path = "set/{split}"
split = "test"
licence = "MIT"

[generate]
stop = ["\\n"]
max_new_tokens = 40
"""
TASKS = {"ranked": CHOICE, "likely": GOLD, "written": WRITE}


def a_record(number, q="", part="u"):
    options = ["x", "yy zz", "5", "a longer choice"]
    q = q or "xy" * (10 * number + 1)
    return {"q": q, "options": options, "right": number % 4, "part": part}


RECORDS = [*map(a_record, range(5)), a_record(9, "left out")]
RECORDS += [a_record(number, f"v{number}", "v") for number in range(3)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Hugging Face folder, its import as a run, a data folder and task files."""
    folder = tmp_path_factory.mktemp("made")
    hf.save(str(folder / "hf"), CONFIG, tiny_model.params(CONFIG), "float32", ids={})
    tokenizer = byte_pairs.make(template=True)
    byte_pairs.save(folder / "hf", tokenizer, bos_token="<s>", eos_token="</s>")
    for split, records in {
        "test": RECORDS,
        "dev": [a_record(1, "e" * 22), a_record(2, "e" * 42, "v")],
    }.items():
        place = folder / "data" / "set" / f"{split}.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(json.dumps(one) + "\n" for one in records))
    for name, text in TASKS.items():
        (folder / f"{name}.toml").write_text(text)
    members = json.dumps([f"{folder}/{name}.toml" for name in TASKS])
    (folder / "all.toml").write_text(f'source = "a test"\nkind = "group"\nmembers = {members}\n')
    recipe = "--gin_file=gin/recipes/import_huggingface.gin"
    given = (f"--gin.Import.output={folder}/run", f"--gin.HuggingFace.path={folder}/hf")
    assert cli.main(["import", recipe, *given]) == 0
    return folder


def asked(folder, names="all.toml", recipe="eval_core_small", **changes):
    bindings = {
        "Tasks.data": f"{folder}/data",
        "Tasks.names": repr(tuple(f"{folder}/{name}" for name in names.split())),
        "Tasks.batch_rows": 4,
        "Tasks.batch_tokens": 512,
    }
    if recipe == "eval_core_small":
        bindings |= {"Eval.run": f"{folder}/run", "Eval.tokenizer": f"{folder}/run/tokenizer"}
    else:
        bindings |= {"Eval.folder": f"{folder}/hf", "Eval.output": f"{folder}/out"}
    bindings |= {key.replace("__", "."): value for key, value in changes.items()}
    given = [f"--gin.{key}={value}" for key, value in bindings.items()]
    return cli.main(["eval", f"--gin_file=gin/recipes/{recipe}.gin", *given])


def an_engine():
    tokenizer = likelihood_tokens.Tokenizer(tokenizer=byte_pairs.make(template=True), prefix_id=0)
    scorer = likelihood.Scorer(
        config=CONFIG, params=tiny_model.params(CONFIG), tokenizer=tokenizer, batch_tokens=512
    )
    return engine.Engine(scorer=scorer, eos_ids=(tokenizer.tokenizer.token_to_id("</s>"),))


def test_the_verb_gives_the_numbers_of_the_library(made, capsys):
    assert asked(made) == 0
    table = capsys.readouterr().out.splitlines()[-8:]
    assert asked(made, recipe="eval_huggingface") == 0
    results = {
        where: files.read_json(made / where / "eval" / "core_small.json")
        for where in ("run", "out")
    }
    for where, folder in (("run", None), ("out", str(made / "hf"))):
        found = results[where]
        assert (found.pop("run"), found.pop("folder")) == (str(made / where), folder)
    assert results["run"] == results["out"]  # to the last bit
    lines = [(made / w / "eval" / "core_small.documents.jsonl").read_text() for w in results]
    assert lines[0] == lines[1]

    model, found, scores = an_engine(), results["run"], {}
    for name in TASKS:
        mine = task.load(str(made / f"{name}.toml"))
        instances = render.prepare(mine, str(made / "data"))
        scores[name] = scoring.score(mine, instances, render.ask(model, instances))
        for key in ("metrics", "macro"):
            wanted = scores[name].get(key)
            assert found["tasks"][name].get(key) == (wanted and pytest.approx(wanted, rel=1e-5))
    assert found["groups"]["all"]["macro"]["acc"] == scores["ranked"]["macro"]["acc_norm"]
    assert found["step"] == 0 and found["domains"] == {} and found["tokenizer_hash"]

    (line,) = (one for one in record.read(str(made / "run")) if one["name"] == "core_small")
    assert line["scores"]["task/ranked/acc"] == scores["ranked"]["macro"]["acc"]
    assert table[-1] == f"written to {made}/run/eval/core_small.json"
    assert [row.split()[0] for row in table[:-1]] == ["metric", *TASKS, "all", "all", "all"]


def test_documents_have_lines_whose_means_are_the_scores(made):
    assert asked(made, "ranked.toml written.toml", Eval__name="lines") == 0
    found = files.read_json(made / "run" / "eval" / "lines.json")["tasks"]
    text = (made / "run" / "eval" / "lines.documents.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    for metric in ("acc", "acc_norm", "bits_per_byte"):
        by_subset = collections.defaultdict(list)
        for row in rows:
            if row["task"] == "ranked":
                by_subset[row["subset"]].append(row["scores"][metric])
        assert {len(part) for part in by_subset.values()} == {5, 3}
        means = {subset: statistics.fmean(part) for subset, part in by_subset.items()}
        assert means == {s: part[metric] for s, part in found["ranked"]["subsets"].items()}
        assert found["ranked"]["macro"][metric] == statistics.fmean(means.values())
    first = rows[0]
    assert (first["id"], first["gold"], len(first["nats"])) == ("u/0", 0, 4)
    by_length = [nats / len(c) for nats, c in zip(first["nats"], first["choices"], strict=True)]
    assert first["answer"] == by_length.index(max(by_length))
    written = [row for row in rows if row["task"] == "written"]
    assert [row["gold"] for row in written][:4] == ["x", "yy zz", "5", "a longer choice"]
    assert found["written"]["counts"]["no answer"] == sum(
        row["prediction"] == "[invalid]" for row in written
    )
    # What a comparison with a parent reads of them has these means too.
    own = pairing.read(made / "run" / "eval" / "lines.json")
    recorded = record.scores(own.result)
    values = {
        pair.score: statistics.fmean(stratum.now.mean() for stratum in pair.strata)
        for pair in pairing.pairs(own, own)
    }
    assert values == pytest.approx({score: recorded[score] for score in values})
    assert len(values) == 4 and values.keys() == recorded.keys()


def test_every_batch_can_be_the_last(made):
    """Of likelihoods and of texts: what is called between batches may end it."""
    config = suite.Tasks(data=str(made / "data"), names=(f"{made}/all.toml",), batch_rows=4)
    inputs = suite.check(config, context_tokens=64, tokenizer_folder=str(made / "hf"))
    called = []

    class EnoughError(Exception):
        pass

    def between(most):
        called.append(most)
        if called.count(most) == most:
            raise EnoughError

    def run(most):
        model = engine.of_model(
            CONFIG, tiny_model.params(CONFIG), inputs.tokenizer, (), None,
            batch_rows=4, batch_tokens=256, between=lambda: between(most),
        )  # fmt: skip
        suite.run(config, inputs, model)

    run(0)
    every = called.count(0)
    assert every > 10  # more than one for each of three tasks
    for most in (1, every):
        with pytest.raises(EnoughError):
            run(most)
        assert called.count(most) == most


def test_what_is_cut_and_left_out_is_counted(made):
    given = {"Eval__name": "cut", "Tasks__limit": 2, "Tasks__max_new_tokens": 12}
    assert asked(made, "ranked.toml written.toml", **given) == 0
    found = files.read_json(made / "run" / "eval" / "cut.json")["tasks"]
    # By hand: 5 and 3 documents in the subsets, one more that data.keep leaves out.
    assert found["ranked"]["documents"] == 4
    assert found["ranked"]["counts"]["left out"] == {"data.keep": 1, "limit": 4}
    assert found["written"]["counts"]["left out"] == {"limit": 7}
    assert found["written"]["settings"]["max_new_tokens"] == 12
    # One token per byte, and <s> before; the last token is read by nobody.
    example = {"u": f"Q: {'e' * 22}?\nA: yy zz\n\n", "v": f"Q: {'e' * 42}?\nA: 5\n\n"}
    cuts = []
    for number in (0, 1, 6, 7):
        one = RECORDS[number]
        for choice in one["options"]:
            whole = f"{example[one['part']]}Q: {one['q']}?\nA: {choice}"
            cuts.append(max(len(whole) + 1 - 1 - CONFIG.context_tokens, 0))
    counts = found["ranked"]["counts"]
    assert 0 < counts["cut requests"] == sum(cut > 0 for cut in cuts) < len(cuts)
    assert counts["cut tokens"] == sum(cuts)
    assert found["ranked"]["settings"]["cut_to_tokens"] == 64
    # Of a prompt for a text as much is kept as leaves room for 12 tokens.
    left = max(len(RECORDS[1]["q"]) + len("<=") - 52, 0)
    assert found["written"]["counts"]["cut tokens"] == left
    assert found["written"]["settings"]["cut_to_tokens"] is None


def test_a_likelihood_that_is_not_finite_makes_no_score(made):
    class Broken:
        scorer = likelihood.Scorer(
            config=CONFIG, params=None, tokenizer=an_engine().scorer.tokenizer
        )

        def loglikelihoods(self, wanted):
            return [
                requests.Likelihood(nats=math.nan if i == 5 else -1.0, greedy=False, tokens=1)
                for i, _ in enumerate(wanted)
            ]

    config = suite.Tasks(data=str(made / "data"), names=(str(made / "ranked.toml"),))
    inputs = suite.check(config, context_tokens=64, tokenizer_folder=str(made / "hf"))
    found = suite.run(config, inputs, Broken())
    assert found.tasks["ranked"]["metrics"]["acc"] is None
    assert found.tasks["ranked"]["macro"]["acc"] is None
    assert found.tasks["ranked"]["subsets"]["v"]["acc"] is not None
    assert found.tasks["ranked"]["counts"]["not finite"] == 1
    assert [row["id"] for row in found.documents if row["scores"]["acc"] is None] == ["u/1"]


def test_data_may_be_fetched_from_the_hub(made, tmp_path, monkeypatch, capsys):
    """By `datasets`, here from files: the numbers of the same data on the disk, once asked for."""
    real, fetched = datasets.load_dataset, []

    def load_dataset(name, config, *, split):
        fetched.append((name, config, split))
        place = str(made / "data" / "set" / f"{split}.jsonl")
        return real("json", data_files=place, split="train", cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (tmp_path / "data").mkdir()
    given = {"Tasks__data": tmp_path / "data", "Tasks__limit": 2}
    assert asked(made, "ranked.toml", Eval__name="off", **given) == 2 and not fetched
    assert asked(made, "ranked.toml", Eval__name="online", Tasks__online=True, **given) == 0
    assert set(fetched) == {("who/set", None, "test"), ("who/set", None, "dev")}
    assert asked(made, "ranked.toml", Eval__name="disk", Tasks__limit=2) == 0
    names = ("online", "disk")
    found, disk = (files.read_json(made / "run" / "eval" / f"{n}.json")["tasks"] for n in names)
    assert found == disk and not list((tmp_path / "data").iterdir())

    def unreachable(name, config, *, split):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    capsys.readouterr()
    assert asked(made, "ranked.toml", Tasks__online=True, **given) == 2
    told = capsys.readouterr().err
    words = (
        "who/set was not fetched (ConnectionError: Couldn't reach 'who/set' on the Hub), and there"
    )
    assert words in told and "Get it from the Hugging Face data set who/set" in told
    assert f"there is no {tmp_path}/data/set/test" in told

    def broken(name, config, *, split):
        raise datasets.exceptions.DatasetGenerationError("An error occurred while generating")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    assert asked(made, "ranked.toml", Tasks__online=True, **given) == 2
    assert "(DatasetGenerationError: An error occurred" in capsys.readouterr().err
    assert asked(made, "likely.toml", Tasks__online=True, **given) == 2  # names no data set
    assert "they are not on the Hugging Face hub, and there is no" in capsys.readouterr().err


def test_code_is_judged_in_the_sandbox(made, monkeypatch):
    box = sandboxes.opened()
    monkeypatch.setattr(selftest, "open", lambda **settings: box)
    source = DATA / "humaneval" / "HumanEval.jsonl.gz"
    lines = gzip.decompress(source.read_bytes()).splitlines()[:3]
    (made / "data" / "humaneval").mkdir(exist_ok=True)
    (made / "data" / "humaneval" / "test.jsonl").write_bytes(b"\n".join(lines))
    right = {json.loads(line)["prompt"]: json.loads(line)["canonical_solution"] for line in lines}

    class Scripted:
        scorer = an_engine().scorer

        def generate(self, wanted):
            texts = [right[one.context] for one in wanted]
            return [(texts[0],), ("    return None\n",), ("",)]

    config = suite.Tasks(data=str(made / "data"), names=("humaneval",))
    inputs = suite.check(config, context_tokens=2048, tokenizer_folder=str(made / "hf"))
    found = suite.run(config, inputs, Scripted())
    assert found.tasks["humaneval"]["metrics"] == {"pass@1": pytest.approx(1 / 3)}
    counts = found.tasks["humaneval"]["counts"]
    assert counts["verdicts"]["passed"] == 1 and counts["empty"] == 1
    assert [row["verdict"] == ["passed"] for row in found.documents] == [True, False, False]


def no_sandbox(**settings):
    raise program.SandboxUnavailable(["bubblewrap does not start here"])


MISSING = (
    r"3 of 3 tasks have no data(.|\n)*\n  ranked: /nowhere/set/test, from the Hugging Face data "
    "set who/set, licence MIT"
)


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ("nothing.toml", {}, "There is no task file"),
        ("all.toml", {"Tasks__data": "/nowhere"}, MISSING),
        ("ranked.toml", {"Tasks__data": "/nowhere"}, "Get it from the Hugging Face data set who/"),
        ("written.toml", {"Tasks__shots": 9}, "lists 0 examples, 9 asked"),
        ("written.toml", {"Tasks__variables": "{'a': 'b'}"}, r"variables has \['a'\], which none"),
        ("written.toml", {"Eval__step": 7}, r"holds the checkpoints \[0\], asked for 7"),
        ("ranked.toml", {"Eval__tokenizer": "/nowhere"}, "No tokenizer.json"),
    ],
)
def test_refused_before_parameters_are_read(made, monkeypatch, capsys, names, changes, message):
    monkeypatch.setattr(opening.Opened, "params", None)  # to call it is a TypeError
    assert asked(made, names, **changes) == 2
    told = capsys.readouterr()
    assert told.out == "" and re.search(message, told.err), told.err


def test_shipped_tasks_are_refused_before_parameters_are_read(made, monkeypatch, capsys):
    monkeypatch.setattr(opening.Opened, "params", None)
    monkeypatch.setattr(selftest, "open", no_sandbox)
    assert asked(made, Tasks__names="('humaneval',)") == 2
    assert "no sandbox holds:\n  - bubblewrap does not start here" in capsys.readouterr().err
    assert asked(made, Tasks__names="('arc_esy_rc',)") == 2
    assert "no task 'arc_esy_rc'. Near: arc_easy_rc" in capsys.readouterr().err
    assert asked(made, Tasks__names="('bbh',)", Tasks__shots=1) == 2
    assert "the examples of bbh are a text" in capsys.readouterr().err


def test_a_context_that_is_too_short_is_refused(made):
    place = str(made / "hf")
    for name, most, message in (
        ("written", 40, "writes up to 40 tokens, which leaves no room"),
        ("likely", 15, "document 3: an answer of 16 tokens does not fit the model's context of 15"),
    ):
        config = suite.Tasks(data=str(made / "data"), names=(str(made / f"{name}.toml"),))
        with pytest.raises(ValueError, match=message):
            suite.check(config, context_tokens=most, tokenizer_folder=place)
        suite.check(config, context_tokens=most + 1, tokenizer_folder=place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ()}, "names is empty"),
        ({"names": ("a", "a")}, r"\['a'\] more than once"),
        ({"limit": 0}, "limit must be 1 or more, got 0"),
        ({"shots": -1}, "shots must be 0 or more"),
        ({"sandbox_workers": 0}, "sandbox_workers must be 1 or more"),
    ],
)
def test_bad_fields_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        suite.Tasks(**{"data": "data", "names": ("bbh",)} | changes)


def test_prompts_without_bos_are_told_of(made, tmp_path, capsys):
    config = suite.Tasks(data=str(made / "data"), names=(str(made / "likely.toml"),))
    byte_pairs.save(tmp_path, byte_pairs.make(), bos_token="<s>", eos_token="</s>")
    for changes, folder, is_told in (
        ({}, tmp_path, True),
        ({"begins": "bos"}, tmp_path, False),
        ({}, made / "hf", False),
    ):
        asked_so = dataclasses.replace(config, **changes)
        suite.check(asked_so, context_tokens=64, tokenizer_folder=str(folder))
        assert ("begin without <s>" in capsys.readouterr().out) == is_told


def test_two_tasks_of_one_name_are_refused(made, tmp_path):
    (tmp_path / "ranked.toml").write_text(GOLD)
    names = (str(made / "ranked.toml"), str(tmp_path / "ranked.toml"))
    config = suite.Tasks(data=str(made / "data"), names=names)
    with pytest.raises(ValueError, match="two different tasks with the name 'ranked'"):
        suite.check(config, context_tokens=64, tokenizer_folder=str(made / "hf"))
    with pytest.raises(task_data.MissingDataError, match="bbh"):
        suite.check(
            suite.Tasks(data=str(tmp_path), names=("bbh",)),
            context_tokens=4096,
            tokenizer_folder=str(made / "hf"),
        )
