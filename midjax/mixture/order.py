# SPDX-License-Identifier: Apache-2.0
"""The mixture as a pure function: global row index -> (source, how many rows of it came before).

Each stage repeats one pattern of `PERIOD_BLOCKS` blocks in which every source has an exact count
(largest remainder) and is spread evenly, so that each block holds its share to within one row.
Inside a block the order is shuffled by seed. Prefix counts make any row computable, so the
position of a run is one integer, the same for any number of hosts. Rows have a fixed number of
tokens and hold one source each: weights are shares of tokens, not of documents.
"""

import bisect
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping

import numpy as np

from midjax import units

# A weight is exact to one part in PERIOD_BLOCKS * block_rows.
PERIOD_BLOCKS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Weights from `start_tokens` on, until the next stage starts.

    Attributes:
      name: for logs and reports.
      start_tokens: tokens since the run began; rounded up to whole rows. The first stage has 0.
      weights: source -> share of tokens. They need not sum to 1: they are normalised, and the run
        says so. Zero means that the source rests in this stage.
    """

    name: str
    start_tokens: int
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        bad = {k: w for k, w in self.weights.items() if not 0 <= w < float("inf")}
        if bad or not sum(self.weights.values()) > 0:
            raise ValueError(
                f"Stage {self.name!r}: weights must be 0 or more, with a sum above 0, got "
                f"{dict(self.weights)}."
            )

    def shares(self, names: tuple[str, ...]) -> np.ndarray:
        """Normalised weights in the order of `names`, [sources]."""
        weights = np.array([self.weights.get(name, 0.0) for name in names], np.float64)
        return weights / weights.sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Staged weights with caps.

    Attributes:
      stages: in order of `start_tokens`, the first at 0.
      max_epochs: source -> how often its rows may be seen in this run (1.0 = once). Checked before
        the run starts. Every source that has a weight needs a cap.
      seed: of the order inside blocks and of each source's permutations.
      block_rows: rows between two points at which the shares are kept to within one row.
    """

    stages: tuple[Stage, ...]
    max_epochs: Mapping[str, float]
    seed: int
    block_rows: int

    def __post_init__(self) -> None:
        starts = [stage.start_tokens for stage in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(
                "Mixture.stages must start at 0 tokens and rise, got start_tokens "
                f"{starts}. Put the stages in order and the first at 0."
            )
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"Mixture.seed must lie in [0, 2^32), got {self.seed}.")
        if self.block_rows < 1:
            raise ValueError(f"Mixture.block_rows must be 1 or more, got {self.block_rows}.")
        if missing := sorted(set(self.names) - set(self.max_epochs)):
            raise ValueError(
                f"Mixture.max_epochs has no cap for {missing}. Say how many epochs of each source "
                "this run may see."
            )
        if unused := sorted(set(self.max_epochs) - set(self.names)):
            raise ValueError(
                f"Mixture.max_epochs caps {unused}, which no stage gives a weight; the stages know "
                f"{list(self.names)}."
            )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Sources of all stages, sorted: a source's index is its place here."""
        return tuple(sorted({name for stage in self.stages for name in stage.weights}))

    def unnormalised(self) -> list[str]:
        """One sentence for each stage whose weights do not sum to 1."""
        return [
            f"weights of stage {s.name!r} sum to {total:.6g}; normalised to 1"
            for s in self.stages
            if abs((total := sum(s.weights.values())) - 1) > 1e-6
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRow:
    """What one stage draws from one source."""

    stage: str
    source: str
    share: float
    rows: int
    tokens: int
    epochs: float


class Order:
    """`order[i] -> (source index, row number of that source)`; satisfies Grain's selection map.

    Args:
      mixture: stages, caps, seed.
      source_rows: source -> rows in one epoch of it.
      row_tokens: tokens per row.
      total_rows: rows of the run.
      base_rows: source -> rows of it that were drawn before this run began (a branch that keeps
        its data position); 0 where absent.

    Raises:
      ValueError: a source is missing or empty, a weight is too small to be drawn, a cap is broken,
        a stage begins after the run ends.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        source_rows: Mapping[str, int],
        row_tokens: int,
        total_rows: int,
        base_rows: Mapping[str, int] | None = None,
    ) -> None:
        self.mixture, self.names = mixture, mixture.names
        self.row_tokens, self.total_rows = row_tokens, total_rows
        if missing := sorted(set(self.names) - set(source_rows)):
            raise ValueError(
                f"The mixture has weights for {missing}, and the sources are "
                f"{sorted(source_rows)}. Add the source or drop the weight."
            )
        self.source_rows = np.array([source_rows[name] for name in self.names], np.int64)
        self.base = np.array([(base_rows or {}).get(name, 0) for name in self.names], np.int64)
        self._starts = [
            units.rows_of_tokens(stage.start_tokens, row_tokens) for stage in mixture.stages
        ]
        for stage, start in zip(mixture.stages[1:], self._starts[1:], strict=True):
            if start >= total_rows:
                raise ValueError(
                    f"Stage {stage.name!r} begins at {stage.start_tokens} tokens and the run ends "
                    f"at {total_rows * row_tokens}: it would never be reached. Begin it earlier, "
                    "train on more tokens, or drop it."
                )
        self._period = PERIOD_BLOCKS * mixture.block_rows
        self._patterns = [self._pattern(stage) for stage in mixture.stages]
        # Rows of each source before each place of the pattern, [period + 1, sources].
        one_hot = np.eye(len(self.names), dtype=np.int64)
        self._prefix = [
            np.vstack([np.zeros_like(one_hot[0]), np.cumsum(one_hot[p], axis=0)])
            for p in self._patterns
        ]
        self._stage_base = [np.zeros(len(self.names), np.int64)]
        for s, (start, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            self._stage_base.append(self._stage_base[s] + self._within(s, end - start))
        self._block = functools.lru_cache(maxsize=64)(self._shuffled_block)
        self._check_caps()

    def __len__(self) -> int:
        return self.total_rows

    def __getitem__(self, index: int) -> tuple[int, int]:
        stage = self.stage_at(index)
        offset = int(index) - self._starts[stage]
        block, place = divmod(offset, self.mixture.block_rows)
        sources, numbers = self._block(stage, block)
        return int(sources[place]), int(numbers[place])

    def rows(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Global rows [begin, end): (source indices [rows] int64, row numbers [rows] int64).

        `self[i]` for each of them; any `begin`, in time that depends on `end - begin` only.
        """
        assert 0 <= begin <= end, (begin, end)
        sources, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while begin < end:
            stage = self.stage_at(begin)
            block, place = divmod(begin - self._starts[stage], self.mixture.block_rows)
            piece = slice(place, place + end - begin)
            found = self._block(stage, block)
            sources.append(found[0][piece])
            numbers.append(found[1][piece])
            begin += len(sources[-1])
        return np.concatenate(sources), np.concatenate(numbers)

    def stage_at(self, index: int) -> int:
        """Index of the stage that row `index` belongs to."""
        return bisect.bisect_right(self._starts, int(index)) - 1

    def counts(self, index: int) -> np.ndarray:
        """Rows of each source among global rows [0, index), [sources]; without `base_rows`.

        Exact at every index, in time that doesn't depend on it.
        """
        if index == 0:
            return np.zeros(len(self.names), np.int64)
        stage = self.stage_at(index - 1)
        offset = int(index) - self._starts[stage]
        block, place = divmod(offset, self.mixture.block_rows)
        done = self._stage_base[stage] + self._within(stage, block * self.mixture.block_rows)
        if place:
            sources, _ = self._block(stage, block)
            done = done + np.bincount(sources[:place], minlength=len(self.names))
        return done

    def epochs(self, index: int) -> np.ndarray:
        """Epochs of each source seen before global row `index`, those before the run included."""
        return (self.base + self.counts(index)) / self.source_rows

    def plan(self) -> list[PlanRow]:
        """What each stage of the whole run draws from each source."""
        rows = []
        ends = [*self._starts[1:], self.total_rows]
        for s, stage in enumerate(self.mixture.stages):
            begin, end = (min(i, self.total_rows) for i in (self._starts[s], ends[s]))
            drawn = self.counts(end) - self.counts(begin)
            for k, name in enumerate(self.names):
                rows.append(
                    PlanRow(
                        stage=stage.name,
                        source=name,
                        share=float(stage.shares(self.names)[k]),
                        rows=int(drawn[k]),
                        tokens=int(drawn[k]) * self.row_tokens,
                        epochs=float(drawn[k] / self.source_rows[k]),
                    )
                )
        return rows

    def fingerprint(self) -> str:
        """Hash of everything that decides the order: equal fingerprints give equal rows."""
        facts = {
            "names": self.names,
            "rows": self.source_rows.tolist(),
            "base": self.base.tolist(),
            "row_tokens": self.row_tokens,
            "starts": self._starts,
            "shares": [s.shares(self.names).tolist() for s in self.mixture.stages],
            "seed": self.mixture.seed,
            "block_rows": self.mixture.block_rows,
            "period_blocks": PERIOD_BLOCKS,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def _pattern(self, stage: Stage) -> np.ndarray:
        """Sources of one period, each spread evenly, [period]."""
        shares = stage.shares(self.names)
        counts = largest_remainder(shares, self._period)
        for name, share, count in zip(self.names, shares, counts, strict=True):
            if share > 0 and count == 0:
                raise ValueError(
                    f"Stage {stage.name!r}: the weight of {name!r} is {share:.2g} of the tokens, "
                    f"less than one row in {self._period}. Raise the weight, drop the source, or "
                    "raise Mixture.block_rows."
                )
        times = np.concatenate([(np.arange(c) + 0.5) / max(c, 1) for c in counts])
        sources = np.repeat(np.arange(len(self.names)), counts)
        return sources[np.argsort(times, kind="stable")]

    def _within(self, stage: int, rows: int) -> np.ndarray:
        """Rows of each source among the first `rows` of a stage, at a block's edge or its end."""
        periods, rest = divmod(int(rows), self._period)
        return periods * self._prefix[stage][-1] + self._prefix[stage][rest]

    def _shuffled_block(self, stage: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, row number of that source) of each row of a block."""
        begin = block * self.mixture.block_rows
        size = self.mixture.block_rows
        if stage + 1 < len(self._starts):  # the stage's last block may be cut short
            size = min(size, self._starts[stage + 1] - self._starts[stage] - begin)
        sources = np.take(self._patterns[stage], np.arange(begin, begin + size), mode="wrap")
        # Raw bits, as NumPy keeps a bit generator's stream stable between versions.
        bits = np.random.Philox(key=[self.mixture.seed, (stage << 48) + block])
        sources = sources[np.argsort(bits.random_raw(size), kind="stable")]
        numbers = np.empty(size, np.int64)
        first = self.base + self._stage_base[stage] + self._within(stage, begin)
        for k in range(len(self.names)):
            (places,) = np.nonzero(sources == k)
            numbers[places] = first[k] + np.arange(len(places))
        return sources, numbers

    def _check_caps(self) -> None:
        drawn = self.counts(self.total_rows)
        if empty := [n for n, r in zip(self.names, self.source_rows, strict=True) if r == 0]:
            raise ValueError(
                f"{empty} hold no row of {self.row_tokens} tokens. Give more text or drop them."
            )
        broken = [
            f"{name}: {drawn[k]} of {self.source_rows[k]} rows = "
            f"{drawn[k] / self.source_rows[k]:.2f} epochs, cap {self.mixture.max_epochs[name]:g}"
            for k, name in enumerate(self.names)
            if drawn[k] > self.mixture.max_epochs[name] * self.source_rows[k] + 1e-9
        ]
        if broken:
            raise ValueError(
                "The mixture needs more epochs than its caps allow: "
                + "; ".join(broken)
                + ". Lower these weights, train on fewer tokens, add text, or raise max_epochs."
            )


def largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """Integers that sum to `total`, nearest to `shares * total` (Hamilton's method).

    Ties go to the lower index.
    """
    ideal = np.asarray(shares, np.float64) * total
    counts = np.floor(ideal + 1e-9).astype(np.int64)
    order = np.argsort(-(ideal - counts), kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts
