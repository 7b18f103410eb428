# SPDX-License-Identifier: Apache-2.0
"""Texts to score -> rows of trees in which what they share is computed once.

    texts --sorted--> neighbours share most
      --prefixes-->  groups: begin alike, and are too many for a row: keys and values made once
      --trees-->     neighbours of a group that fit a row and share the rest of their context
      --best fit-->  rows of few lengths --> batches of few shapes

A text is the token ids that a model reads; its last `scored` places are scored, each against a
target. Two texts whose ids are the same up to a place share what was computed there, whichever
tasks and questions they belong to.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from midjax.batches import fit

# Rows have so many places at least: enough for several texts, few enough that little of a row's
# attention is between texts that don't see each other.
ROW_TOKENS = 256
# A shorter prefix is not worth its keys' second softmax; of one with fewer rows to spare neither.
_LEAST_PREFIX_TOKENS = 32
# Texts that share fewer tokens are trees of their own, which pack better.
_LEAST_SHARED_TOKENS = 4
# How much larger than a text a tree may be, where texts share most of their tokens.
_MOST_TEXTS_PER_TREE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """What a model reads, and what it should say.

    Attributes:
      ids: tokens.
      targets: what comes after each of the last so many tokens; one at least.
      is_apart: shares nothing with others.
    """

    ids: Int[np.ndarray, " ids"]
    targets: Int[np.ndarray, " targets"]
    is_apart: bool = False

    @property
    def context(self) -> int:
        """Tokens after which nothing is scored."""
        return len(self.ids) - len(self.targets)


@dataclasses.dataclass(frozen=True)
class Group:
    """Texts that begin with the same `prefix` tokens: `order[first:last]` of a `_Sorted`."""

    first: int
    last: int
    prefix: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one length that continue one prefix, or none.

    Attributes:
      tokens, segments, positions, ends: [rows, T], see `token_trees.Rows`.
      slots: of each row (places, targets, numbers of the texts), one entry per target.
      used: tokens that are not padding.
    """

    tokens: Int[np.ndarray, "rows T"]
    segments: Int[np.ndarray, "rows T"]
    positions: Int[np.ndarray, "rows T"]
    ends: Int[np.ndarray, "rows T"]
    slots: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    used: int


class Plan:
    """Which rows score which texts.

    Attributes:
      groups: in the order of their prefixes' lengths.
    """

    def __init__(self, texts: Sequence[Text], *, share: bool = True) -> None:
        """Plans.

        Args:
          texts: what to score.
          share: False computes each text by itself.
        """
        self._texts, self._share = texts, share
        keys = [text.ids.astype(">u4").tobytes() for text in texts]
        self._order = sorted(range(len(texts)), key=lambda i: (texts[i].is_apart, keys[i]))
        self._alike = np.zeros(len(texts) + 1, np.int64)  # tokens shared with the one before
        for place in range(1, len(texts) if share else 0):
            self._alike[place] = self._shared(*self._order[place - 1 : place + 1])
        self.groups = sorted(self._grouped(), key=lambda group: group.prefix)

    def _shared(self, one: int, other: int) -> int:
        a, b = self._texts[one], self._texts[other]
        if a.is_apart or b.is_apart:
            return 0
        size = min(len(a.ids), len(b.ids))
        differ = np.flatnonzero(a.ids[:size] != b.ids[:size])
        return int(differ[0]) if len(differ) else size

    def prefix(self, group: Group) -> Int[np.ndarray, " prefix"]:
        """The ids that a group's texts begin with."""
        return self._texts[self._order[group.first]].ids[: group.prefix]

    def texts(self, group: Group) -> int:
        """How many a group has."""
        return group.last - group.first

    # ---- prefixes ----

    def _grouped(self) -> list[Group]:
        found, at = [], 0
        for group in sorted(self._with_prefix(), key=lambda group: group.first):
            found += [Group(at, group.first, 0)] if at < group.first else []
            found.append(group)
            at = group.last
        return found + ([Group(at, len(self._order), 0)] if at < len(self._order) else [])

    def _with_prefix(self) -> list[Group]:
        """The prefixes that spare most tokens.

        Runs of neighbours that share at least so much are nested; of each it is asked what spares
        more: a prefix for all of it, or those inside of it. Runs are open while their texts last,
        innermost on top.
        """
        lengths = np.array([len(self._texts[i].ids) for i in self._order], np.int64)
        added = np.concatenate([[0], np.cumsum(lengths - self._alike[:-1])])
        outer = _Run(shared=0, first=0)
        runs = [outer]
        for place in range(len(self._order)):
            text = self._texts[self._order[place]]
            inner = _Run(shared=len(text.ids), first=place, context=text.context)
            shared = int(self._alike[place + 1])
            shared = shared if shared >= _LEAST_PREFIX_TOKENS else 0
            while shared < runs[-1].shared:
                runs[-1].absorb(inner)
                inner = runs.pop()
                inner.close(place + 1, lengths, added)
            if shared > runs[-1].shared:
                runs.append(_Run(shared=shared, first=inner.first))
            runs[-1].absorb(inner)
        return outer.chosen

    # ---- trees and rows ----

    def trees(self, group: Group) -> Iterator[tuple[int, int, int]]:
        """(first, last, tokens) of neighbours that are a tree, of all of a group's texts."""
        first, size = group.first, 0
        for place in range(group.first, group.last):
            tokens = len(self._texts[self._order[place]].ids) - group.prefix
            shared = int(self._alike[place]) - group.prefix if place > group.first else 0
            most = ROW_TOKENS
            if 2 * shared >= tokens:
                most = max(most, _MOST_TEXTS_PER_TREE * tokens)
            fits = place > first and size + tokens - shared <= most
            if fits and shared >= _LEAST_SHARED_TOKENS:
                size += tokens - shared
                continue
            if place > first:
                yield first, place, size
            first, size = place, tokens
        yield first, group.last, size

    def rows(self, group: Group) -> list[Rows]:
        """The rows of a group, by their length, longest first.

        A length is a power of two. Rows are as long as a tree that fills more than half of them
        wants; shorter trees fill what it leaves.
        """
        trees = list(self.trees(group))
        sizes = np.array([size for _, _, size in trees], np.int64)
        left, found = np.arange(len(trees)), []
        length = ROW_TOKENS << max(int(sizes.max() - 1) // ROW_TOKENS, 0).bit_length()
        while len(left):
            is_long = 2 * sizes[left] > length
            if length > ROW_TOKENS and not is_long.any():
                length //= 2
                continue
            row = fit.best_fit(sizes[left], length)
            if length > ROW_TOKENS:
                taken = np.isin(row, row[is_long])
            else:
                taken = np.ones(len(left), bool)
            _, row_of = np.unique(row[taken], return_inverse=True)
            found.append(self._laid(group, [trees[i] for i in left[taken]], row_of, length))
            left, length = left[~taken], max(length // 2, ROW_TOKENS)
        return found

    def _laid(
        self, group: Group, trees: list[tuple[int, int, int]], row_of: np.ndarray, length: int
    ) -> Rows:
        rows = int(row_of.max()) + 1
        tokens, segments, positions = np.zeros((3, rows, length), np.int32)
        ends = np.tile(np.arange(1, length + 1, dtype=np.int32), (rows, 1))
        used, count = np.zeros((2, rows), np.int64)
        slots: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in range(rows)]
        for row, (first, last, size) in zip(row_of, trees, strict=True):
            begin = int(used[row])
            count[row] += 1
            segments[row, begin : begin + size] = count[row]
            path, at = np.zeros(0, np.int64), begin  # places of the tokens of the text before
            for place in range(first, last):
                index = self._order[place]
                text = self._texts[index]
                shared = int(self._alike[place]) - group.prefix if place > first else 0
                ends[row, path[shared:]] = at
                new = len(text.ids) - group.prefix - shared
                tokens[row, at : at + new] = text.ids[group.prefix + shared :]
                positions[row, at : at + new] = group.prefix + shared + np.arange(new)
                path = np.concatenate([path[:shared], np.arange(at, at + new)])
                at += new
                scored = path[len(path) - len(text.targets) :]
                slots[row].append((scored, text.targets, np.full(len(scored), index)))
            ends[row, path] = at
            used[row] = at
        return Rows(
            tokens=tokens,
            segments=segments,
            positions=positions,
            ends=ends,
            slots=[tuple(map(np.concatenate, zip(*row, strict=True))) for row in slots],  # type: ignore[misc]
            used=int(used.sum()),
        )


@dataclasses.dataclass(kw_only=True)
class _Run:
    """Neighbours that share `shared` tokens at least.

    Attributes:
      context: the fewest tokens before a scored place, of all of them: a prefix has no more.
      spared: tokens that the prefixes in `chosen` spare.
    """

    shared: int
    first: int
    context: int = 1 << 60
    spared: int = 0
    chosen: list[Group] = dataclasses.field(default_factory=list)

    def absorb(self, inner: "_Run") -> None:
        self.context = min(self.context, inner.context)
        self.spared += inner.spared
        self.chosen += inner.chosen

    def close(self, last: int, lengths: np.ndarray, added: np.ndarray) -> None:
        """Chooses between a prefix for all of it and those inside."""
        prefix = min(self.shared, self.context)
        rest = int(added[last] - added[self.first + 1]) + int(lengths[self.first]) - prefix
        spared = prefix * (-(-rest // ROW_TOKENS) - 1)
        if prefix >= _LEAST_PREFIX_TOKENS and spared > self.spared:
            self.spared, self.chosen = spared, [Group(self.first, last, prefix)]
