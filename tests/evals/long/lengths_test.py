# SPDX-License-Identifier: Apache-2.0
"""The search against counting out, and what it does where a number of tokens does not exist."""

import random

import pytest

from midjax.evals.long import draft, lengths


def filled(render, **changes):
    fields = {
        "render": render, "least_units": 1, "most_units": None, "characters": 30,
        "references": ("x",), "beside": lambda text: [], "elsewhere": lambda: iter(()), "forms": 1,
    }  # fmt: skip
    return draft.Draft(**(fields | changes))


def test_the_most_that_fit_as_counted_out():
    rng = random.Random(0)
    for _ in range(60):
        steps = [rng.choice((0, 1, 1, 2, 7, 60)) for _ in range(400)]
        sums = [3 + sum(steps[:n]) for n in range(400)]
        calls = []

        def made(at, sums=sums, calls=calls):
            calls.append(at)
            return lengths.Fitted(text="", tokens=sums[at], units=at, characters=0)

        limit = rng.randrange(sums[1], sums[-1] + 20)
        found = lengths.most(made, 1, 399, limit)
        assert found.tokens == max(total for total in sums[1:] if total <= limit)
        assert len(calls) < 40


def test_units_then_characters():
    """A token for each 4 characters of the text: 9 characters a unit."""
    one = filled(lambda units, size, tail: "123456789" * units + "abcdefgh"[:size] + tail)
    for tokens in range(3, 200):
        found = lengths.fit(one, lambda text: len(text) // 4, tokens)
        assert found.tokens == tokens == len(found.text) // 4
        assert found.text == "123456789" * found.units + "abcdefgh"[: found.characters]


def test_characters_of_two_tokens_are_passed_by():
    """Every unit and every character is two tokens; only a mark makes an odd number, which is one
    more than a unit's."""

    def count(text):
        return 2 * len(text) - text.count("-")

    one = filled(lambda units, size, tail: "u" * units + "c" * size + tail)
    for tokens in (10, 11, 40, 41):
        found = lengths.fit(one, count, tokens)
        assert count(found.text) == found.tokens == tokens
        assert ("-" in found.text) == bool(tokens % 2)


def test_a_number_that_no_text_has_is_told_by_the_next_smaller_one():
    one = filled(lambda units, size, tail: "u" * units + "c" * size + tail)
    found = lengths.fit(one, lambda text: 3 * len(text), 31)
    assert found.tokens == 30 == 3 * len(found.text)


def test_filling_that_ends_before_the_next_unit_begins_is_all_used():
    """Units of 10 tokens, and 4 characters between them."""
    one = filled(
        lambda units, size, tail: "u" * 10 * units + "c" * min(size, 4) + tail, characters=4
    )
    assert lengths.fit(one, len, 34).tokens == 34
    found = lengths.fit(one, len, 37)
    assert (found.tokens, found.units, found.characters) == (34, 3, 4)


def test_too_short_and_too_long():
    one = filled(lambda units, size, tail: "u" * units + "c" * min(size, 5) + tail, most_units=20)
    with pytest.raises(lengths.TooShortError) as short:
        lengths.fit(one, lambda text: len(text) + 10, 10)
    assert short.value.tokens == 11
    with pytest.raises(lengths.RanOutError) as long:
        lengths.fit(one, lambda text: len(text) + 10, 36)
    assert long.value.tokens == 35
    assert lengths.fit(one, lambda text: len(text) + 10, 35).tokens == 35
