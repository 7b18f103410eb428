# SPDX-License-Identifier: Apache-2.0
"""Token folders + mixture -> batches, from any row on, on any number of readers.

The position of a run is one integer: the next global row. A batch is the next B rows, whatever B is
at this step, and each process makes some of n equal parts of it: what reaches the devices does not
depend on the number of processes.

Batch i is made in one go by arithmetic on its index, so any number of threads or processes can make
them, in any order: see `ahead`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from midjax.batches import ahead, assemble, pack, permute, plans, rows, shards
from midjax.batches import batch as batch_lib
from midjax.batches import starts as starts_lib
from midjax.mixture import order as order_lib
from midjax.mixture import stages as stages_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A token folder in a mixture, or its documents of some lengths.

    Two sources may read one folder: its long and its short documents, with a weight each.

    Attributes:
      tokens: folder that `midjax tokenize` wrote.
      packing: how its documents become rows, the `policy` of `pack.Packing`.
      mask: what a token sees of its row, see `pack.Packing`.
      least_tokens, most_tokens: documents of fewer or more tokens (BOS and EOS included) are in no
        row of this source; None is no bound.
    """

    tokens: str
    packing: pack.Policy
    mask: pack.Mask = "document"
    least_tokens: int | None = None
    most_tokens: int | None = None

    def __post_init__(self) -> None:
        low, high = self.least_tokens, self.most_tokens
        if any(bound is not None and bound < 2 for bound in (low, high)) or (
            low is not None and high is not None and low > high
        ):
            raise ValueError(
                "Source.least_tokens and most_tokens must be 2 or more (a document of 2 tokens is "
                f"one input with its target), the least not over the most; got {low} and {high}."
            )

    def packed(self, row_tokens: int) -> pack.Packing:
        """How its documents become rows of `row_tokens`."""
        return pack.Packing(
            row_tokens=row_tokens,
            policy=self.packing,
            mask=self.mask,
            least_tokens=self.least_tokens,
            most_tokens=self.most_tokens,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a run reads.

    Attributes:
      sources: name -> token folder; the mixture's stages give their weights. Under another name
        a source begins anew.
      mixture: staged weights, caps, seed.
      row_tokens: T, tokens per row.
      batch_rows: B, rows per optimizer step, over all hosts; or a `Ramp` of them.
      workers: processes that make batches ahead; 0 is a thread of this one, which makes some
        10,000 rows a second. Never decides what is in a batch.
    """

    sources: Mapping[str, Source]
    mixture: stages_lib.Mixture
    row_tokens: int
    batch_rows: int | starts_lib.Ramp
    workers: int = 0

    def __post_init__(self) -> None:
        if self.row_tokens < 1 or min(self.batch_sizes) < 1:
            raise ValueError(
                "Data.row_tokens and Data.batch_rows must be positive, got "
                f"{self.row_tokens} and {self.batch_rows}."
            )
        if extra := sorted(set(self.sources) - set(self.mixture.names)):
            raise ValueError(
                f"Data.sources has {extra}, to which no stage gives a weight. "
                "Give a weight (0 is allowed) or drop the source."
            )
        if missing := sorted(set(self.mixture.names) - set(self.sources)):
            raise ValueError(
                f"The mixture has weights for {missing}, and Data.sources are "
                f"{sorted(self.sources)}. Add the source or drop the weight."
            )

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows of a batch: every size that a run may have, in order."""
        if isinstance(self.batch_rows, starts_lib.Ramp):
            return self.batch_rows.rows
        return (self.batch_rows,)


class Opened:
    """The token folders of a run, opened, with their packing plans.

    Raises:
      FileNotFoundError: a token folder is missing.
      ValueError: the folders were made by different tokenizers.
    """

    def __init__(self, data: Data) -> None:
        self.names = data.mixture.names
        self._asked = {n: data.sources[n] for n in self.names}
        # Two sources may read one folder.
        folders = {asked.tokens for asked in self._asked.values()}
        opened = {folder: shards.TokenSource(folder) for folder in sorted(folders)}
        self._sources = {n: opened[asked.tokens] for n, asked in self._asked.items()}
        self.vocab_size: int = _same(self._sources, "vocab_size")
        self.tokenizer_hash: str = _same(self._sources, "tokenizer_hash")
        self.plans = {
            name: plans.of(self._sources[name], asked.packed(data.row_tokens))
            for name, asked in self._asked.items()
        }

    @property
    def texts(self) -> list[assemble.Text]:
        """What `assemble.batch` reads, in the order of `names`."""
        return [
            assemble.Text(tokens=self._sources[name], mask=asked.mask)
            for name, asked in self._asked.items()
        ]

    def rows(self, name: str, seed: int) -> rows.Planned | rows.Laid:
        """The rows of a source, epoch after epoch, the same whatever else is mixed."""
        plan, key = self.plans[name], _seed_of(seed, name)
        if isinstance(plan, pack.Plan):
            return rows.Planned(plan, key)
        return rows.Laid(plan, self._sources[name].lengths, self._asked[name].mask, key)

    def special_tokens(self) -> dict[str, tuple[int, int]]:
        """Special token besides BOS and EOS -> (its id, times in the sources), as tokenize saw."""
        found: dict[str, tuple[int, int]] = {}
        for folder in {asked.tokens: self._sources[n] for n, asked in self._asked.items()}.values():
            for name, key in folder.manifest.get("special_ids", {}).items():
                times = found.get(name, (key, 0))[1] + folder.manifest["lint"]["special"][name]
                found[name] = key, times
        return found

    def contents(self) -> dict[str, str]:
        """Source -> hash of its tokens, packing, mask, bounds, which `Order.fingerprint` lacks."""
        found = {}
        for name, asked in self._asked.items():
            parts = [self._sources[name].manifest["content_hash"][:16], asked.packing]
            if asked.mask != "document":
                parts.append(f"mask {asked.mask}")
            if asked.least_tokens is not None or asked.most_tokens is not None:
                parts.append(f"{asked.least_tokens or ''}-{asked.most_tokens or ''}")
            found[name] = "/".join(parts)
        return found


class Loader:
    """The rows of a run in their order, computed by index.

    Args:
      data: sources and mixture.
      opened: `Opened(data)`.
      total_rows: rows of the run.
      base_rows, past: see `Order`.

    Raises:
      ValueError: a source is empty or a cap is broken. Before any device work.
    """

    def __init__(
        self,
        data: Data,
        opened: Opened,
        *,
        total_rows: int,
        base_rows: Mapping[str, int] | None = None,
        past: order_lib.Past = order_lib.NOTHING,
    ) -> None:
        self.data, self.names = data, opened.names
        self._rows = [opened.rows(name, data.mixture.seed) for name in self.names]
        self._texts = opened.texts
        self.order = order_lib.Order(
            data.mixture,
            source_rows={n: len(r) for n, r in zip(self.names, self._rows, strict=True)},
            row_tokens=data.row_tokens,
            total_rows=total_rows,
            base_rows=base_rows,
            past=past,
        )
        self._again = data, total_rows, base_rows, past

    def __reduce__(self) -> tuple:
        # A worker opens the folders by itself: what lies in files is not sent.
        return _loader, self._again

    def rows(self, begin: int, end: int) -> "GlobalRows":
        """Global rows [begin, end), but for their tokens."""
        source, numbers = self.order.rows(begin, end)
        row_id, pieces = rows.mixed(self._rows, source, numbers)
        return GlobalRows(
            ids=np.stack([source, row_id], axis=1),
            layout=assemble.lay(pieces, source, self._texts, self.data.row_tokens),
        )

    def batch(self, found: "GlobalRows", begin: int, end: int) -> batch_lib.Batch:
        """The rows [begin, end) of those found."""
        return assemble.batch(found.layout, begin, end, self._texts)

    def row_id(self, name: str, number: int) -> list[int]:
        """[row, its first document] of a source's plan that is its row `number` over all epochs."""
        row, pieces = self._rows[self.names.index(name)].pieces(np.array([number]))
        return [int(row[0]), int(pieces.document[0])]

    def places(self, begin: int, end: int) -> "Places":
        """Global rows [begin, end): where documents lie in them. No token is read."""
        return _places(self.rows(begin, end).layout)

    def last_rows(self, next_row: int, count: int = 8) -> list[list[Any]]:
        """[source, `row_id`] of the last `count` rows before `next_row`.

        Fewer where the order begins later.

        What a resumed run compares: that the same indices still mean the same rows.
        """
        sources, numbers = self.order.rows(max(self.order.first_row, next_row - count), next_row)
        names = [self.names[k] for k in sources]
        return [[n, self.row_id(n, k)] for n, k in zip(names, numbers.tolist(), strict=True)]

    def named(self, begin: int, end: int) -> list[dict[str, Any]]:
        """What global rows [begin, end) are, for people: source, row in its plan, first document.

        Each is {"source": name, "row": int, "document": the source's own id}.
        """
        sources, numbers = self.order.rows(begin, end)
        row_ids, pieces = rows.mixed(self._rows, sources, numbers)
        firsts = pieces.document[pieces.first[:-1]].tolist()
        ids = {
            k: self._texts[k].tokens.ids_of(
                {d for d, of in zip(firsts, sources, strict=True) if of == k}
            )
            for k in np.unique(sources).tolist()
        }
        return [
            {"source": self.names[k], "row": row, "document": ids[k][document]}
            for k, row, document in zip(sources.tolist(), row_ids.tolist(), firsts, strict=True)
        ]

    def batches(
        self,
        *,
        next_row: int,
        parts: Sequence[int] = (0,),
        of: int = 1,
        batch_rows: Callable[[int], int] | Mapping[int, int] | None = None,
        first_step: int = 0,
        prefetch: int = 2,
    ) -> ahead.Batches:
        """Yields (some equal parts of each batch, their row ids [rows, 2]) from `next_row` on.

        Row ids are (source index, row in the source's plan). Ends with the run's last whole batch.

        Args:
          next_row: first global row; any, not only where a batch ended.
          parts, of: which of how many equal parts, rising, see `readers.Share`; `of` divides the
            rows of every batch.
          batch_rows: rows of the batch of a step, as a function of the step or as {first step of
            which it holds: rows}; None is `Data.batch_rows`, which must be one number then.
          first_step: the step of the first batch.
          prefetch: batches made ahead in a thread; 0 makes them when asked. With `Data.workers`
            each process makes as many ahead.

        Raises:
          ValueError: a batch does not divide into the parts, or has no row.
        """
        starts = starts_lib.starts(
            batch_rows or self._one_size(),
            first_step=first_step,
            next_row=next_row,
            total_rows=self.order.total_rows,
        )
        starts_lib.check_divides(starts, of)
        source = ahead.Source(self, starts, tuple(parts), of)
        return ahead.Batches(source, self.data.workers, prefetch)

    def _one_size(self) -> dict[int, int]:
        assert not isinstance(self.data.batch_rows, starts_lib.Ramp), "sizes come from the timeline"
        return {0: self.data.batch_rows}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalRows:
    """Some rows in the order of a run.

    Attributes:
      ids: source index and row in the source's plan, [rows, 2].
      layout: of them all.
    """

    ids: Int[np.ndarray, "rows 2"]
    layout: assemble.Layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """What `batch.Batch` says of its documents.

    Attributes:
      segments, positions: see there.
    """

    segments: Int[np.ndarray, "rows T"]
    positions: Int[np.ndarray, "rows T"]


def _places(layout: assemble.Layout) -> Places:
    segments, positions = assemble.places(layout, 0, len(layout.row_source))
    return Places(segments=segments, positions=positions)


def _loader(
    data: Data, total_rows: int, base_rows: Mapping[str, int] | None, past: order_lib.Past
) -> Loader:
    opened = Opened(data)
    return Loader(data, opened, total_rows=total_rows, base_rows=base_rows, past=past)


def _same(sources: Mapping[str, shards.TokenSource], key: str) -> Any:
    values = {name: source.manifest[key] for name, source in sources.items()}
    if len(set(values.values())) > 1:
        raise ValueError(
            f"The sources differ in {key}: {values}. Tokenize them with one tokenizer."
        )
    return next(iter(values.values()))


def _seed_of(seed: int, name: str) -> np.uint64:
    """A key per source name, so that adding a source changes no other's order."""
    return permute.key("source", seed, name)
