# SPDX-License-Identifier: Apache-2.0
"""Rows written out by hand, models that copy or are blind, and a real model scored one by one."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
import tokenizers
from tokenizers import models

from midjax.batches import shards
from midjax.evals import needle
from midjax.model import transformer

BOS, EOS = 94, 95
# Ids 0..9 are the digits' and 20.. the letters'; "12" and "345" are tokens of their own.
LETTERS = "abcdefghijklmnopqrstuvwxyz :?."
VOCAB = (
    {str(d): d for d in range(10)}
    | {c: 20 + i for i, c in enumerate(LETTERS)}
    | {"12": 10, "34": 11, "345": 12}
)
TEXTS = [[60 + i % 30 for i in range(5)], [], list(range(60, 90)), [60, 70, 80] * 9]


@pytest.fixture
def tokenizer():
    merges = [("1", "2"), ("3", "4"), ("34", "5")]
    return tokenizers.Tokenizer(models.BPE(vocab=VOCAB, merges=merges))


def write(folder, texts, *, bos=BOS, eos=EOS):
    documents = [
        (str(i), len(t), np.array([*([] if bos is None else [bos]), *t, *([eos] if eos else [])]))
        for i, t in enumerate(texts)
    ]
    facts = {"tokenizer_hash": "t", "vocab_size": 96, "bos_id": bos, "eos_id": eos}
    shards.write(str(folder), documents, facts=facts, shard_tokens=30)
    return shards.TokenSource(str(folder))


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "books", TEXTS)


def config(**changes):
    fields = {
        "source": "books",
        "row_tokens": (40, 64),
        "depths": (0.0, 0.5, 1.0),
        "per_cell": 3,
        "digits": 4,
        "statement": "key:{key}.",
        "question": "key:",
        "batch_rows": 5,
        "seed": 7,
    }
    return needle.Needles(**(fields | changes))


def ids(text):
    """Without merges: one token per character."""
    return [VOCAB[c] for c in text]


def numbers(found, name):
    return [cell[name] for cell in found["cells"]]


def test_a_row_by_hand(source, tokenizer):
    asked = config(per_cell=1, question="say key:", digits=6)
    inputs = needle.check(asked, source, tokenizer)
    (hidden,) = inputs.hidden
    key = list(hidden.key)
    assert list(hidden.statement) == [*ids("key:"), *key, *ids(".")]
    texts = [text for text in TEXTS if text]
    begin = [i for i, text in enumerate(TEXTS) if text].index(inputs.starts[0])
    around = list(itertools.chain(*texts[begin:], *texts[:begin]))
    size = 60 - 1 - len("say key:") - len(key)
    for depth, start in ((0.0, 0), (0.5, round((size - 5 - len(key)) / 2)), (1.0, None)):
        start = size - 5 - len(key) if start is None else start
        text = list(around[:size])
        text[start : start + 5 + len(key)] = hidden.statement
        made = needle.row(inputs, 0, 60, depth)
        assert made.tolist() == [BOS, *text, *ids("say key:"), *key] and len(made) == 60
    without = needle.row(inputs, 0, 60, None)
    assert without.tolist() == [BOS, *around[:size], *ids("say key:"), *key]


def test_the_key_stands_everywhere_in_the_same_tokens(source, tokenizer):
    asked = config(statement="a {key} b {key}", per_cell=40, digits=7)
    inputs = needle.check(asked, source, tokenizer)
    merged = 0
    for hidden in inputs.hidden:
        key = list(hidden.key)
        assert list(hidden.statement) == [*ids("a "), *key, *ids(" b "), *key]
        text = "".join(next(w for w, i in VOCAB.items() if i == token) for token in key)
        assert len(text) == 7 and text.isdigit()
        merged += len(key) < 7
    assert merged and len({hidden.key for hidden in inputs.hidden}) == 40


def test_haystacks_go_round_without_bos_and_eos(source):
    stack = needle.Haystacks(source)
    flat = list(itertools.chain(*TEXTS))
    assert stack.lengths.tolist() == [len(text) for text in TEXTS]
    assert stack.text(0, 7).tolist() == flat[:7]
    assert stack.text(1, 40).tolist() == flat[5:45]
    assert stack.text(3, 100).tolist() == (TEXTS[3] + flat + flat)[:100]


def copying(window=10_000, nats=5.0):
    """Says what followed the last four tokens where it saw them before, in the newest `window`."""

    def score(tokens, places, answers):
        said = np.full(places.shape, -1)
        for row, line in enumerate(tokens):
            for at, place in enumerate(places[row]):
                last = line[place - 3 : place + 1].tolist()
                for end in range(place - 1, max(place - window, 3), -1):
                    if line[end - 3 : end + 1].tolist() == last:
                        said[row, at] = line[end + 1]
                        break
        return said, np.where(said == answers, 0.0, nats)

    return score


@pytest.mark.parametrize("batch_rows", [1, 5, 64])
def test_a_model_that_copies_finds_every_key(source, tokenizer, batch_rows):
    asked = config(batch_rows=batch_rows)
    seen = []
    found = needle.run(asked, needle.check(asked, source, tokenizer), copying(), seen.append)
    assert [(c["row_tokens"], c["depth"]) for c in found["cells"]] == [
        (length, depth) for length in (40, 64) for depth in (0.0, 0.5, 1.0)
    ]
    assert numbers(found, "accuracy") == [1.0] * 6
    assert numbers(found, "nats_per_token") == [0.0] * 6
    assert numbers(found, "nats_without") == [5.0] * 6
    assert numbers(found, "saved_error") == [0.0] * 6
    assert sum(seen) == needle.total_tokens(asked)
    assert found["seed"] == 7 and found["source"] == "books"


def test_a_model_of_short_sight_finds_what_is_near(source, tokenizer):
    asked = config()
    found = needle.run(asked, needle.check(asked, source, tokenizer), copying(window=14))
    assert numbers(found, "accuracy") == [0.0, 0.0, 1.0] * 2
    assert numbers(found, "nats_per_token")[::3] == numbers(found, "nats_without")[::3]


def test_one_wrong_token_is_a_wrong_key(source, tokenizer):
    asked = config(per_cell=4, batch_rows=3)
    inputs = needle.check(asked, source, tokenizer)

    def score(tokens, places, answers):
        said = answers.copy()
        for row, line in enumerate(tokens.tolist()):
            hidden = next(h for h in inputs.hidden if tuple(line[-len(h.key) :]) == h.key)
            if hidden is not inputs.hidden[1]:
                said[row, len(hidden.key) - 1] += 1
        return said, np.zeros(answers.shape)

    found = needle.run(asked, inputs, score)
    assert numbers(found, "accuracy") == [0.25] * 6


def test_nats_are_those_of_the_keys_tokens(source, tokenizer):
    """Keys of different numbers of tokens: what fills up the shorter ones does not count."""
    asked = config(per_cell=30, digits=5, row_tokens=(50,), depths=(0.3,), batch_rows=7)
    inputs = needle.check(asked, source, tokenizer)
    sizes = [len(hidden.key) for hidden in inputs.hidden]
    assert len(set(sizes)) > 1

    def score(tokens, places, answers):
        for row, line in enumerate(tokens.tolist()):
            assert [line[p + 1] for p in places[row]] == answers[row].tolist()
        return answers, places.astype(np.float32)

    (cell,) = needle.run(asked, inputs, score)["cells"]
    expected = sum(sum(range(49 - size, 49)) for size in sizes) / sum(sizes)
    assert cell["nats_per_token"] == pytest.approx(expected, rel=1e-12)
    assert cell["nats_without"] == cell["nats_per_token"] and cell["saved_error"] == 0


def test_the_error_is_that_of_a_mean_over_keys(source, tokenizer):
    asked = config(per_cell=4, row_tokens=(64,), depths=(0.0,), batch_rows=8)
    inputs = needle.check(asked, source, tokenizer)
    saved = [1.0, 2.0, 4.0, 9.0]

    def score(tokens, places, answers):
        nats = np.zeros(answers.shape)
        for row, line in enumerate(tokens.tolist()):
            for i, hidden in enumerate(inputs.hidden):
                if tuple(line[-len(hidden.key) :]) == hidden.key:
                    told = tuple(line[1 : 1 + len(hidden.statement)]) == hidden.statement
                    nats[row] = 10 - saved[i] if told else 10
        return answers, nats

    (cell,) = needle.run(asked, inputs, score)["cells"]
    assert cell["saved_error"] == pytest.approx(math.sqrt(38 / 3) / 2)  # variance 38 / 3
    (alone,) = needle.run(
        dataclasses.replace(asked, per_cell=1), needle.check(config(per_cell=1), source, tokenizer),
        score,
    )["cells"]  # fmt: skip
    assert alone["saved_error"] is None


def test_seeds(source, tokenizer):
    rows = [
        needle.row(needle.check(config(seed=seed), source, tokenizer), 2, 64, 0.5).tolist()
        for seed in (7, 7, 8)
    ]
    assert rows[0] == rows[1] != rows[2]
    more = needle.check(config(per_cell=9), source, tokenizer)
    assert needle.row(more, 2, 64, 0.5).tolist() == rows[0]


def test_a_model_scored_one_by_one(source, tokenizer):
    asked = config(per_cell=2, row_tokens=(33, 48), depths=(0.25,), batch_rows=3)
    inputs = needle.check(asked, source, tokenizer)
    model = tiny_model.config()
    params = tiny_model.params(model, seed=1)
    found = needle.run(asked, inputs, needle.from_model(model, params, None))
    for cell in found["cells"]:
        right, nats = {}, {}
        for depth in (0.25, None):
            logps = []
            for index, hidden in enumerate(inputs.hidden):
                row = jnp.array(needle.row(inputs, index, cell["row_tokens"], depth)[None, :-1])
                places = jnp.arange(row.shape[1])[None]
                logits = transformer.apply(model, params, row, jnp.ones_like(row), places)
                logp = np.asarray(jax.nn.log_softmax(logits[0, -len(hidden.key) :]))
                logps.append(logp[np.arange(len(hidden.key)), list(hidden.key)])
                right[depth, index] = (logp.argmax(axis=1) == list(hidden.key)).all()
            nats[depth] = -np.concatenate(logps).mean()
        assert cell["nats_per_token"] == pytest.approx(nats[0.25], rel=2e-5)
        assert cell["nats_without"] == pytest.approx(nats[None], rel=2e-5)
        assert cell["accuracy"] == np.mean([right[0.25, i] for i in (0, 1)])


def test_a_score_that_is_not_finite_is_null(source, tokenizer):
    asked = config()
    found = needle.run(
        asked, needle.check(asked, source, tokenizer), lambda t, p, a: (a, np.full(a.shape, np.nan))
    )
    assert numbers(found, "nats_per_token") == numbers(found, "saved_error") == [None] * 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row_tokens": ()}, "row_tokens must name at least one value"),
        ({"row_tokens": (8, 8)}, "none twice"),
        ({"row_tokens": (0,)}, "each 1 or more"),
        ({"depths": (0.0, 1.5)}, r"shares from 0 to 1; got \(0.0, 1.5\)"),
        ({"depths": (math.nan,)}, "shares from 0 to 1"),
        ({"per_cell": 0}, "per_cell must be 1 or more"),
        ({"digits": 0}, "digits must be 1 or more"),
        ({"batch_rows": -1}, "batch_rows must be 1 or more"),
        ({"statement": "the key"}, r"must hold \{key\}"),
        ({"question": "is it {key}?"}, "without the key"),
        ({"question": ""}, "without the key"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_bad_fields_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        config(**changes)


def test_what_cannot_be_hidden_is_refused(source, tokenizer, tmp_path):
    # key: 4, statement 5 + 4, question 4, BOS and one token of haystack
    need = max(2 * len(h.key) for h in needle.check(config(), source, tokenizer).hidden) + 11
    needle.check(config(row_tokens=(need,)), source, tokenizer)
    with pytest.raises(ValueError, match=rf"row_tokens={need - 1} is too short: .* {need} tokens"):
        needle.check(config(row_tokens=(need - 1, 64)), source, tokenizer)
    with pytest.raises(ValueError, match=r"has 62 tokens of text, and a row of 200 tokens needs"):
        needle.check(config(row_tokens=(200,)), source, tokenizer)
    with pytest.raises(ValueError, match="tokenized without BOS"):
        needle.check(config(), write(tmp_path / "bare", TEXTS, bos=None), tokenizer)
    letters = tokenizers.Tokenizer(models.BPE(vocab={"k": 0}, merges=[]))
    with pytest.raises(ValueError, match="no token for digits"):
        needle.check(config(), source, letters)
