# SPDX-License-Identifier: Apache-2.0
"""All tasks at several lengths with two tokenizers: exact, solvable, and chance is what it is."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import long_answers
import numpy as np
import pytest
import tiny_model

from midjax.evals import engine as engines
from midjax.evals import task_data
from midjax.evals.long import run, tasks
from midjax.model import transformer

TOKENIZERS = {"bytes": long_answers.byte_level, "pieces": long_answers.sentence_pieces}


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def opened(request, tmp_path_factory):
    tokenizer = TOKENIZERS[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    return tokenizer, long_answers.source(folder / "prose", tokenizer, long_answers.texts())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Things and where they are, in the form of SQuAD and of HotpotQA."""
    folder = tmp_path_factory.mktemp("questions")
    letters = "abcdefghijklmnopqrst"
    things = [f"{a}{b}x" for a in letters[:6] for b in letters]
    places = [f"{a.upper()}{b}ville" for a in letters for b in letters[:6]]
    facts = [
        f"The {t} is in {p}. It has been there for long."
        for t, p in zip(things, places, strict=True)
    ]
    articles = [
        {
            "paragraphs": [
                {
                    "context": facts[n],
                    "qas": [
                        {
                            "question": f"Where is the {things[n]}?",
                            "answers": [{"text": places[n]}, {"text": places[n]}],
                            "is_impossible": False,
                        },
                        {"question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
                for n in range(start, start + 4)
            ]
        }
        for start in range(0, len(things), 4)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    asked = [
        {
            "question": f"Where is the {things[n]}?",
            "answer": places[n],
            "supporting_facts": [[things[n], 0]],
            "context": [[things[m], [facts[m]]] for m in (n, n - 1, n - 2)],
        }
        for n in range(len(things))
    ]
    (folder / "hotpot.json").write_text(json.dumps(asked))
    return {"squad": str(folder / "squad.json"), "hotpot": str(folder / "hotpot.json")}


def config(**changes):
    fields = {"source": "prose", "row_tokens": (2048,), "per_cell": 3, "seed": 5}
    return run.LongTasks(**(fields | changes))


def test_an_oracle_is_always_right_and_every_length_is_exact(opened, data):
    tokenizer, source = opened
    asked = config(tasks=("ruler",), row_tokens=(1536, 2311), decoys=7, **data)
    inputs = run.check(asked, source, tokenizer.tokenizer)
    oracle, told = long_answers.Oracle(), []
    found = run.run(asked, inputs, oracle, told.append)
    assert [cell["score"] for cell in found["cells"]] == [1.0] * 26
    assert [cell["first"] for cell in found["cells"]] == [1.0] * 26
    assert [cell["first_chance"] for cell in found["cells"]] == [0.125] * 26
    assert found["effective_tokens"] == 2311 and [m["score"] for m in found["means"]] == [1, 1]
    assert sum(told) == run.total_tokens(asked) == 2 * 13 * 3 * (1536 + 2311)
    # The program's own count is not believed: BOS, and the ids of the text.
    sizes = [len(tokenizer.tokenizer.encode(t, add_special_tokens=False).ids) for t in oracle.seen]
    rooms = [tasks.TASKS[name].answer_tokens for name in asked.names for _ in range(3)]
    wanted = [length - room for length in (1536, 2311) for room in rooms]
    assert [1 + size for size in sizes] == wanted
    assert {cell["inexact"] + cell["short_tokens"] for cell in found["cells"]} == {0}
    for (task, _), made in inputs.prompts.items():
        for prompt in made:
            assert len(set(prompt.decoys) - set(prompt.references)) == 7
            for right in prompt.references:
                assert not any(right in decoy for decoy in prompt.decoys)
                if task.startswith(("niah", "qa")):  # and nothing else in the text is an answer
                    assert prompt.text.count(right) == 1


GUESSED = (
    "niah_multikey_1", "niah_multikey_2", "vt", "cwe", "fwe", "niah_single_1", "niah_multivalue",
)  # fmt: skip


@pytest.mark.parametrize("opened", ["bytes"], indirect=True)
def test_who_guesses_has_the_score_of_chance(opened):
    tokenizer, source = opened
    asked = config(tasks=GUESSED, per_cell=40, chains=3, row_tokens=(1400,))
    inputs = run.check(asked, source, tokenizer.tokenizer)
    scores, chances, firsts = {}, {}, []
    rounds = 5
    for seed in range(rounds):
        for cell in run.run(asked, inputs, long_answers.Guesser(seed))["cells"]:
            scores[cell["task"]] = scores.get(cell["task"], 0) + cell["score"] / rounds
            chances[cell["task"]] = cell["chance"]
            firsts.append(cell["first"])
    assert chances["niah_multikey_1"] == 1 / 4 and chances["vt"] == pytest.approx(1 / 3)
    assert chances["niah_single_1"] == 1 / 9e6 and chances["niah_multivalue"] == 4 / 9e6
    lists = [set(long_answers.listed(one.text)) for one in inputs.prompts["cwe", 1400]]
    expected = sum(10 / len(words) for words in lists) / len(lists)
    assert chances["cwe"] == pytest.approx(expected, rel=1e-12)
    for task, score in scores.items():
        # Of n draws from N the share found varies less than of one draw.
        error = math.sqrt(chances[task] * (1 - chances[task]) / (40 * rounds))
        assert abs(score - chances[task]) < 4.5 * error + 1e-5, task
    error = math.sqrt(0.1 * 0.9 / (40 * len(firsts)))
    assert abs(sum(firsts) / len(firsts) - 0.1) < 4.5 * error


def test_numbers_do_not_depend_on_what_else_is_asked(opened):
    tokenizer, source = opened
    names = ("niah_single_3", "niah_multikey_2", "vt", "fwe")
    both = run.check(
        config(tasks=names, row_tokens=(900, 1100)), source, tokenizer.tokenizer
    ).prompts
    again = run.check(
        config(tasks=("fwe", "vt"), row_tokens=(1100,), per_cell=1), source, tokenizer.tokenizer
    ).prompts
    for (task, length), (prompt,) in again.items():
        assert both[task, length][0] == prompt
    other = run.check(
        config(tasks=names, row_tokens=(900,), seed=6), source, tokenizer.tokenizer
    ).prompts
    for task in names:
        assert len({p.text for p in (*both[task, 900], *other[task, 900])}) == 6
        short, long = both[task, 900][1], both[task, 1100][1]
        assert short.references == long.references and len(short.text) < len(long.text)


def test_forms_that_are_not_asked_have_no_numbers(opened):
    tokenizer, source = opened
    for form, there in (("generate", "score"), ("rank", "first")):
        asked = config(tasks=("fwe",), row_tokens=(700,), per_cell=2, forms=(form,))
        found = run.run(asked, run.check(asked, source, tokenizer.tokenizer), long_answers.Oracle())
        assert {"score", "first"} & set(found["cells"][0]) == {there}
        assert (found["effective_tokens"] == 700) == (form == "generate")
        assert set(found["means"][0]) & {"score", "first"} == {there}


def test_lengths_that_are_not_met_are_told(opened, capsys):
    tokenizer, source = opened
    asked = config(tasks=("vt",), row_tokens=(700,), per_cell=2, forms=("generate",))
    inputs = run.check(asked, source, tokenizer.tokenizer)
    first, second = inputs.prompts["vt", 700]
    first = dataclasses.replace(first, tokens=first.tokens - 2, is_exact=False)
    short = dataclasses.replace(inputs, prompts={("vt", 700): (first, second)})
    found = run.run(asked, short, long_answers.Oracle())["cells"][0]
    assert (found["inexact"], found["short_tokens"]) == (1, 2)
    assert "1 prompts are shorter than asked for, by 2 tokens" in capsys.readouterr().out


def test_a_model_reads_rows_beyond_its_context(tmp_path):
    """Nats of the gold answers, by one forward pass each."""
    tokenizer = long_answers.byte_level()
    source = long_answers.source(tmp_path / "prose", tokenizer, long_answers.texts())
    asked = config(tasks=("fwe",), row_tokens=(400,), per_cell=2, decoys=2, answer_tokens=40)
    inputs = run.check(asked, source, tokenizer.tokenizer)
    size = tokenizer.tokenizer.get_vocab_size()
    model = tiny_model.config(
        vocab_size=size, dim=16, heads=2, kv_heads=1, head_dim=8, ffn_dim=16, layers=1,
        context_tokens=64,
    )  # fmt: skip
    params = tiny_model.params(model, seed=3)
    engine = engines.of_model(
        model, params, inputs.tokenizer, (), None,
        batch_rows=asked.batch_rows, context_tokens=asked.context_tokens,
    )  # fmt: skip
    (cell,) = run.run(asked, inputs, engine)["cells"]
    assert engine.scorer.counts["cut requests"] == 0
    nats, letters = 0.0, 0
    for prompt in inputs.prompts["fwe", 400]:
        before, whole = tokenizer.encode([prompt.text, f"{prompt.text} {prompt.references[0]}"])
        assert len(before) == 360
        row = jnp.array([whole[:-1]])
        places = jnp.arange(row.shape[1])[None]
        logits = transformer.apply(model, params, row, jnp.ones_like(row), places)[0]
        logp = np.asarray(jax.nn.log_softmax(logits[len(before) - 1 :]))
        nats -= logp[np.arange(len(logp)), whole[len(before) :]].sum()
        letters += len(prompt.references[0]) + 1
    assert cell["bits_per_byte"] == pytest.approx(nats / letters / math.log(2), rel=1e-5)
    assert 1 <= cell["rank"] <= 3 and cell["score"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row_tokens": ()}, "row_tokens must name at least one value"),
        ({"row_tokens": (64, 64)}, "none twice"),
        ({"row_tokens": (0,)}, "each 1 or more"),
        ({"forms": ("write",)}, "'generate' or 'rank'; got"),
        ({"tasks": ()}, "tasks must name at least one"),
        ({"tasks": ("niah_singel_1",)}, "Did you mean 'niah_single_1'"),
        ({"per_cell": 0}, "per_cell must be 1 or more"),
        ({"decoys": 0}, "decoys must be 1 or more"),
        ({"hops": 0}, "hops must be 1 or more"),
        ({"answer_tokens": 0}, "answer_tokens must be 1 or more, or None"),
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\)"),
    ],
)
def test_bad_fields_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        config(**changes)


def test_what_cannot_be_made_is_refused(opened, data):
    tokenizer, source = opened

    def refused(error=ValueError, **changes):
        with pytest.raises(error) as caught:
            run.check(config(**changes), source, tokenizer.tokenizer)
        return str(caught.value)

    assert "row_tokens=200 is too short for niah_single_1" in refused(
        row_tokens=(200,), tasks=("niah",)
    )
    assert "tokens of text, and the longest row 1000000" in refused(row_tokens=(1_000_000,))
    assert "Set LongTasks.answer_tokens to" in refused(tasks=("fwe",), answer_tokens=3)
    missing = refused(task_data.MissingDataError, tasks=("qa_squad",))
    assert "LongTasks.squad is not set" in missing and "rajpurkar.github.io" in missing
    missing = refused(task_data.MissingDataError, tasks=("qa_hotpot",), hotpot="/nowhere.json")
    assert "'/nowhere.json', and there is no such file" in missing and "CC BY-SA 4.0" in missing
    swapped = refused(tasks=("qa_squad",), squad=data["hotpot"])
    assert "is not what the task qa_squad reads, which is dev-v2.0.json" in swapped
    many = refused(tasks=("qa_squad",), squad=data["squad"], per_cell=121)
    assert "per_cell=121, and qa_squad has 120 questions" in many
    long = refused(tasks=("qa_squad",), squad=data["squad"], row_tokens=(9000,))
    assert "row_tokens=9000 is too long for qa_squad: all that it has are" in long
