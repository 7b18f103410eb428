# SPDX-License-Identifier: Apache-2.0
"""Token folders + mixture -> batches, from any row on, on any number of readers.

The position of a run is one integer: the next global row. Step s of a run with B rows per batch
reads the rows [s * B, (s + 1) * B); reader r of R takes those with index % R == r.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import grain
import jax
import numpy as np

from midjax.batches import batch as batch_lib
from midjax.batches import pack, shards
from midjax.mixture import order as order_lib
from midjax.mixture import stages as stages_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A token folder in a mixture, or its documents of some lengths.

    Two sources may read one folder: its long and its short documents, with a weight each.

    Attributes:
      tokens: folder that `midjax tokenize` wrote.
      packing: how its documents become rows, see `pack.plan`.
      least_tokens, most_tokens: documents of fewer or more tokens (BOS and EOS included) are in no
        row of this source; None is no bound.
    """

    tokens: str
    packing: Literal["concat", "best_fit"]
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

    @property
    def bounds(self) -> dict[str, int | None]:
        """The bounds, as `pack.plan` takes them."""
        return {"least_tokens": self.least_tokens, "most_tokens": self.most_tokens}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a run reads.

    Attributes:
      sources: name -> token folder; the mixture's stages give their weights.
      mixture: staged weights, caps, seed.
      row_tokens: T, tokens per row.
      batch_rows: B, rows per optimizer step, over all hosts.
    """

    sources: Mapping[str, Source]
    mixture: stages_lib.Mixture
    row_tokens: int
    batch_rows: int

    def __post_init__(self) -> None:
        if self.row_tokens < 1 or self.batch_rows < 1:
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
    def batch_tokens(self) -> int:
        """Tokens per optimizer step, padding included."""
        return self.row_tokens * self.batch_rows


class Opened:
    """The token folders of a run, opened, with their packing plans.

    Raises:
      FileNotFoundError: a token folder is missing.
      ValueError: the folders were made by different tokenizers.
    """

    def __init__(self, data: Data) -> None:
        self.names = data.mixture.names
        self._sources = {n: shards.TokenSource(data.sources[n].tokens) for n in self.names}
        self._asked = {n: data.sources[n] for n in self.names}
        self.vocab_size: int = _same(self._sources, "vocab_size")
        self.tokenizer_hash: str = _same(self._sources, "tokenizer_hash")
        self.plans = {
            name: pack.plan(
                self._sources[name].lengths, data.row_tokens, asked.packing, **asked.bounds
            )
            for name, asked in self._asked.items()
        }
        self.rows = {
            name: pack.Rows(self._sources[name], plan, k)
            for k, (name, plan) in enumerate(self.plans.items())
        }

    def contents(self) -> dict[str, str]:
        """Source -> hash of its tokens, packing, bounds: what `Order.fingerprint` does not see."""
        found = {}
        for name, asked in self._asked.items():
            parts = [self._sources[name].manifest["content_hash"][:16], asked.packing]
            if any(bound is not None for bound in asked.bounds.values()):
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
        self.order = order_lib.Order(
            data.mixture,
            source_rows={name: len(rows) for name, rows in opened.rows.items()},
            row_tokens=data.row_tokens,
            total_rows=total_rows,
            base_rows=base_rows,
            past=past,
        )
        self._sources = {name: self._epochs(name, opened.rows[name]) for name in self.names}
        self._dataset = grain.MapDataset.select_from_datasets(
            list(self._sources.values()), self.order
        )

    def _epochs(self, name: str, rows: pack.Rows) -> grain.MapDataset:
        """A source without end: each epoch a fresh permutation, the same whatever else is mixed."""
        numbered = grain.MapDataset.source(_Numbered(rows))
        return numbered.shuffle(seed=_seed_of(self.data.mixture.seed, name)).repeat()

    def row(self, index: int) -> dict[str, Any]:
        """Global row `index`, with `row_id`, its number in the source's plan."""
        return self._dataset[index]

    def row_id(self, name: str, number: int) -> int:
        """Which row of a source's plan its row `number`, counted over epochs, is."""
        return int(self._sources[name][number]["row_id"])

    def last_rows(self, next_row: int, count: int = 8) -> list[list[Any]]:
        """[source, row in the source's plan] of the last `count` rows before `next_row`.

        Fewer where the order begins later.

        What a resumed run compares: that the same indices still mean the same rows.
        """
        first = max(self.order.first_row, next_row - count)
        rows = [self.row(index) for index in range(first, next_row)]
        return [[self.names[row["source"][0]], row["row_id"]] for row in rows]

    def batches(
        self, *, next_row: int, reader: int = 0, readers: int = 1, prefetch: int = 2
    ) -> Iterator[tuple[batch_lib.Batch, np.ndarray]]:
        """Yields (this reader's part of each batch, its row ids [rows, 2]) from `next_row` on.

        Row ids are (source index, row in the source's plan). Ends with the run's last whole batch.

        Args:
          next_row: first global row; any, not only where a batch ended.
          reader, readers: which share of each batch; `readers` divides `batch_rows`.
          prefetch: batches made ahead in a thread; 0 makes them when asked.
        """
        if self.data.batch_rows % readers:
            raise ValueError(
                f"Data.batch_rows = {self.data.batch_rows} does not divide over {readers} readers "
                "(hosts). Choose a multiple."
            )
        mine = self._dataset.slice(slice(next_row + reader, self.order.total_rows, readers))
        # Local rows: no reading threads of Grain's own, which cost more than they save.
        dataset = mine.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        dataset = dataset.batch(
            self.data.batch_rows // readers, drop_remainder=True, batch_fn=_batch
        )
        if prefetch:
            dataset = grain.experimental.ThreadPrefetchIterDataset(
                dataset, prefetch_buffer_size=prefetch
            )
        return iter(dataset)


class _Numbered:
    """Rows with their own number, for accounting and tests."""

    def __init__(self, rows: pack.Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[int(index)] | {"row_id": int(index)}


def _batch(rows: list[dict[str, Any]]) -> tuple[batch_lib.Batch, np.ndarray]:
    ids = np.array([(row["source"][0], row["row_id"]) for row in rows], np.int64)
    return batch_lib.stack(rows), ids


def _seed_of(seed: int, name: str) -> int:
    """A seed per source name, so that adding a source changes no other's permutation."""
    digest = np.frombuffer(name.encode().ljust(4, b"\0"), np.uint8)
    mixed = np.random.SeedSequence([seed, *digest.tolist()]).generate_state(1)[0]
    return int(mixed) & 0x7FFFFFFF


def _same(sources: Mapping[str, shards.TokenSource], key: str) -> Any:
    values = {name: source.manifest[key] for name, source in sources.items()}
    if len(set(values.values())) > 1:
        raise ValueError(
            f"The sources differ in {key}: {values}. Tokenize them with one tokenizer."
        )
    return next(iter(values.values()))


def place(batch: batch_lib.Batch, sharding: jax.sharding.NamedSharding) -> batch_lib.Batch:
    """Rows in host memory -> arrays [B, T] on the mesh.

    Args:
      batch: rows in the order that the mesh wants, see `model.context.arrange`.
      sharding: of rows, `model.sharding.batch`.
    """
    return jax.tree.map(lambda x: jax.device_put(x, sharding), batch)
