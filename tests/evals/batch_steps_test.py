# SPDX-License-Identifier: Apache-2.0
"""Rows of a cache, step by step, against greedy text from whole forward passes."""

import jax
import numpy as np
import pytest
import tiny_model

from midjax.evals import batch_steps, packing
from midjax.model import transformer

CONFIG = tiny_model.config(layers=1, initializer_std=0.4)
VOCAB = 90  # ids 90..95 pad the embedding
CHUNK = 4
HOW = batch_steps.How(CONFIG, VOCAB, "greedy", CHUNK)
PROMPTS = {0: (5, 17, 3, 60), 1: (8, 8), 2: (71, 2, 33)}
NOBODY = np.full(1, -1, np.int32)
ALL = np.ones(3, bool)


@pytest.fixture(scope="module")
def params():
    return tiny_model.params(CONFIG)


@pytest.fixture(scope="module")
def greedy(params):
    """Twelve tokens after each prompt, one whole forward pass per token."""
    apply = jax.jit(transformer.apply, static_argnums=0)

    def written(prompt):
        tokens = list(prompt)
        for _ in range(12):
            row = np.zeros((1, 16), np.int32)
            row[0, : len(tokens)] = tokens
            inside, places = (np.arange(16) < len(tokens))[None], np.arange(16)[None]
            logits = apply(CONFIG, params, row, inside.astype(np.int32), places.astype(np.int32))
            tokens.append(int(np.argmax(logits[0, len(tokens) - 1, :VOCAB])))
        return tokens[len(prompt) :]

    return [written(prompt) for prompt in PROMPTS.values()]


def given(new, limit=99):
    """What `fill` is told of these rows."""
    rows = np.zeros((4, 3), np.int32)
    for row in new:
        rows[1:3, row] = len(PROMPTS[row]), limit
    reals = np.zeros((2, 3), np.float32)
    key = np.zeros((3, 2), np.uint32)
    return batch_steps.Rows(*rows, np.zeros(3, bool), key, *reals)


def filled(params, new, cache=None, rows=None, eos=NOBODY, limit=99):
    if cache is None:
        cache, rows = batch_steps.empty(HOW, 3, 16)
    packed = packing.prompts({row: PROMPTS[row] for row in new}, 3, 1, 4)
    return batch_steps.fill(HOW, params, cache, rows, eos, packed, given(new, limit))


def more(params, cache, rows, eos=NOBODY, wanted=ALL):
    cache, rows, out = batch_steps.chunk(HOW, params, cache, rows, eos, wanted)
    return cache, rows, np.asarray(out).tolist()


def test_rows_that_hold_nothing_write_nothing(params):
    cache, rows = batch_steps.empty(HOW, 3, 16)
    newest = int(cache.newest)
    cache, rows, out = more(params, cache, rows)
    assert out == [[-1] * CHUNK] * 3 and int(cache.newest) == newest
    assert not np.asarray(rows.is_active).any()


def test_a_row_is_filled_while_the_others_go_on(params, greedy):
    cache, rows, first = filled(params, [0, 2])
    assert [int(first[row]) for row in (0, 2)] == [greedy[0][0], greedy[2][0]]
    cache, rows, out = more(params, cache, rows)
    assert out == [greedy[0][1:5], [-1] * CHUNK, greedy[2][1:5]]
    cache, rows, first = filled(params, [1], cache, rows)
    # `fill` leaves the tokens of the others where they were.
    assert np.asarray(first).tolist() == [greedy[0][4], greedy[1][0], greedy[2][4]]
    assert np.asarray(rows.number).tolist() == [5, 1, 5]
    assert np.asarray(rows.position).tolist() == [8, 2, 7]
    *_, out = more(params, cache, rows)
    assert out == [greedy[0][5:9], greedy[1][1:5], greedy[2][5:9]]


def test_more_slots_and_fewer_rows_change_no_token(params, greedy):
    cache, rows, _ = filled(params, [0, 1, 2])
    cache, rows, _ = more(params, cache, rows)
    cache, rows = batch_steps.some_rows(batch_steps.resized(cache, 24), rows, np.array([2, 0]))
    cache, rows, out = more(params, cache, rows, wanted=ALL[:2])
    assert out == [greedy[2][5:9], greedy[0][5:9]]
    # 11 tokens of that prompt and what follows are there, 3 more are looked at.
    cache, rows = batch_steps.some_rows(batch_steps.resized(cache, 14), rows, np.array([0]))
    *_, out = more(params, cache, rows, wanted=np.array([True]))
    assert out[0][:3] == greedy[2][9:12]


def test_a_row_ends_at_its_limit_an_end_token_or_when_it_is_not_wanted(params, greedy):
    # The token at position 6 is not continued: the second after the first one of row 0.
    cache, rows, _ = filled(params, [0, 1, 2], limit=6)
    *_, out = more(params, cache, rows, wanted=np.array([True, True, False]))
    assert out == [[*greedy[0][1:3], -1, -1], greedy[1][1:5], [-1] * CHUNK]

    at = next(i for i in range(1, 4) if greedy[0][i] not in greedy[0][:i])
    end = np.array([greedy[0][at], -1], np.int32)
    cache, rows, _ = filled(params, [0], eos=end)
    _, rows, out = more(params, cache, rows, eos=end)
    assert out[0] == [*greedy[0][1 : at + 1], *[-1] * (CHUNK - at)]
    assert not bool(rows.is_active[0])

    end = np.array([greedy[0][0], -1], np.int32)  # the first one may be the end, too
    cache, rows, first = filled(params, [0], eos=end)
    *_, out = more(params, cache, rows, eos=end)
    assert int(first[0]) == greedy[0][0] and out[0] == [-1] * CHUNK
