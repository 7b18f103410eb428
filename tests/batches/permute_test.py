# SPDX-License-Identifier: Apache-2.0
"""Keyed permutations against the same arithmetic on Python's integers, and their uniformity."""

import math

import hypothesis
import numpy as np
from hypothesis import strategies as st

from midjax.batches import permute

WORD = (1 << 64) - 1
KEYS = st.integers(0, WORD)


def mix(value):
    z = (value + 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def slow(index, size, key):
    """The definition: 16 rounds on the halves of the index, until it is inside."""
    bits = (size - 1).bit_length()
    low_bits, high_bits = bits // 2, bits - bits // 2
    while True:
        high, low = index >> low_bits, index & ((1 << low_bits) - 1)
        for turn in range(1, 17):
            turn_key = (key + turn * 0xD1342543DE82EF95) & WORD
            if turn % 2:
                high ^= mix((low + turn_key) & WORD) >> (64 - high_bits)
            else:
                low ^= mix((high + turn_key) & WORD) >> (64 - low_bits)
        index = (high << low_bits) | low
        if index < size:
            return index


@hypothesis.given(size=st.integers(1, 300), key=KEYS)
@hypothesis.settings(max_examples=50, deadline=None)
def test_every_key_is_a_bijection(size, key):
    assert sorted(permute.permute(np.arange(size), size, np.uint64(key))) == list(range(size))


@hypothesis.given(
    cases=st.lists(
        st.tuples(st.integers(1, 1 << 40), st.integers(0, WORD), st.floats(0, 0.999)), max_size=20
    )
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_it_is_the_definition_with_a_size_and_a_key_for_each(cases):
    sizes, keys = [size for size, _, _ in cases], [key for _, key, _ in cases]
    index = [int(size * share) for size, _, share in cases]
    found = permute.permute(np.array(index), np.array(sizes), np.array(keys, np.uint64))
    assert found.tolist() == [slow(*case) for case in zip(index, sizes, keys, strict=True)]


def test_long_inputs_are_worked_on_in_pieces():
    size = 20_011
    found = permute.permute(np.arange(size), size, permute.key("a", 1))
    assert np.bincount(found).tolist() == [1] * size
    sizes = np.full(size, size)
    again = permute.permute(np.arange(size), sizes, np.full(size, permute.key("a", 1)))
    assert (again == found).all()


def test_all_orders_of_five_are_equally_frequent():
    keys = permute.keys(permute.key("orders"), np.arange(60_000))
    places = [permute.permute(np.full(len(keys), i), 5, keys) for i in range(5)]
    counts = np.bincount(sum(p * 5**i for i, p in enumerate(places)))
    counts = counts[counts > 0]
    expected = len(keys) / math.factorial(5)
    assert len(counts) == 120
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 119 + 4 * math.sqrt(2 * 119)


def test_neighbours_part():
    """Differences of the places of neighbours are as uniform as those of random places."""
    size = 1_000_003
    found = permute.permute(np.arange(200_000), size, permute.key("neighbours"))
    counts = np.histogram(np.diff(found) % size, 100, (0, size))[0]
    chi_squared = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert chi_squared < 99 + 4 * math.sqrt(2 * 99)


def test_keys_differ_by_every_part():
    made = [permute.key(*parts) for parts in (("a", 1), ("a", "1"), ("a1",), (1, "a"), ("a", 2))]
    assert len({int(key) for key in made}) == 5
    epochs = permute.keys(made[0], np.arange(1000))
    assert len(np.unique(epochs)) == 1000
    # A source's second epoch is not another source's first.
    assert not set(epochs.tolist()) & set(permute.keys(made[1], np.arange(1000)).tolist())
