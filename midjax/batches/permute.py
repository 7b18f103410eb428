# SPDX-License-Identifier: Apache-2.0
"""Keyed permutations of [0, n): where one index goes costs the same for any n, and is no table.

A Feistel network on the bits of an index: in turn each half is XORed with a hash of the other,
which is undone by doing it again, so every key gives a bijection. Where n is no power of two, an
index that leaves [0, n) is sent on until it is back ("cycle walking", Black and Rogaway 2002),
fewer than twice on average. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
All of it is integer arithmetic on 64 bits, the same on every machine and with every NumPy.
"""

import hashlib

import numpy as np
from jaxtyping import Int, UInt64

# As many as make all 120 orders of five things equally frequent (12 do not). Part of what a
# checkpoint's data position means: another number gives other orders.
ROUNDS = 16
# Indices worked on at a time: they stay in the processor's cache.
_PIECE = 1 << 13
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# From one round's key to the next: odd, and unlike `mix`'s own step, which would make rounds alike.
_ROUND = np.uint64(0xD1342543DE82EF95)


def key(*parts: str | int) -> np.uint64:
    """A key from names and numbers: 64 bits of a SHA-256."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def keys(base: np.uint64, numbers: Int[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """A key of its own for each number, such as an epoch."""
    return mix(mix(np.atleast_1d(numbers).astype(np.uint64)) + base)


def mix(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """SplitMix64's step and finaliser: a bijection of 64 bits whose output looks random."""
    z = values + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permute(
    index: Int[np.ndarray, " n"],
    size: int | Int[np.ndarray, " n"],
    key: np.uint64 | UInt64[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """Where each index goes under the permutation of [0, size) that its key chooses.

    Args:
      index: in [0, size).
      size: 1 or more; one for all or one for each.
      key: one for all or one for each.
    """
    index = np.asarray(index, np.int64)
    whole = np.empty(len(index), np.int64)
    for begin in range(0, len(index), _PIECE):
        here = slice(begin, begin + _PIECE)
        whole[here] = _walk(index[here].astype(np.uint64), _of(size, here), _of(key, here))
    return whole


def _of(value: object, here: slice) -> np.ndarray:
    array = np.atleast_1d(np.asarray(value)).astype(np.uint64)
    return array if len(array) == 1 else array[here]


def _walk(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    # Bits of size - 1, exact up to 2^53.
    bits = np.frexp((size - np.uint64(1)).astype(np.float64))[1].astype(np.uint64)
    place = _feistel(index, bits, key)
    (outside,) = np.nonzero(place >= size)
    while len(outside):
        some_bits, some_key, some_size = (
            x if len(x) == 1 else x[outside] for x in (bits, key, size)
        )
        moved = _feistel(place[outside], some_bits, some_key)
        place[outside] = moved
        outside = outside[moved >= some_size]
    return place.astype(np.int64)


def _feistel(index: np.ndarray, bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    low_bits = bits >> np.uint64(1)
    high_bits = bits - low_bits
    # A hash's top bits are used. A shift by all 64 gives 0 in NumPy, as it should here.
    low_shift, high_shift = np.uint64(64) - low_bits, np.uint64(64) - high_bits
    high = index >> low_bits
    low = index ^ (high << low_bits)
    for _ in range(ROUNDS // 2):
        key = key + _ROUND
        high = high ^ (mix(low + key) >> high_shift)
        key = key + _ROUND
        low = low ^ (mix(high + key) >> low_shift)
    return (high << low_bits) | low
