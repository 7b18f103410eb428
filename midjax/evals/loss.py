# SPDX-License-Identifier: Apache-2.0
"""Loss on held-out text: bits per byte of a domain, nats per token by position in long documents.

B = rows of a batch, T = row length in tokens. Every function takes `row_nll`, which maps a `Batch`
to the nats of each of its targets, [B, T]; `from_model` makes it from a model. Sums are float64.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from midjax.batches import assemble, pack, shards
from midjax.batches import batch as batches
from midjax.batches import rows as row_lib
from midjax.model import architecture, context, sharding, transformer
from midjax.model import loss as model_loss

RowNll = Callable[[batches.Batch], Float[np.ndarray, "B T"]]

# Groups of neighbouring documents whose sums are kept, so that a reader can tell a change from
# chance (a jackknife over groups) without the sums of every document.
MAX_BLOCKS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongDocuments:
    """Which documents show how well a model uses its context.

    Attributes:
      source: name of the token folder.
      row_tokens: targets per document; documents with fewer are left out and counted.
      bucket_tokens: width of a bucket of positions; divides `row_tokens`.
      batch_rows: documents per batch.
    """

    source: str
    row_tokens: int
    bucket_tokens: int
    batch_rows: int

    def __post_init__(self) -> None:
        for name in ("row_tokens", "bucket_tokens", "batch_rows"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"LongDocuments.{name} must be 1 or more, got {value}.")
        if self.row_tokens % self.bucket_tokens:
            raise ValueError(
                f"LongDocuments.row_tokens={self.row_tokens} is not a multiple of "
                f"bucket_tokens={self.bucket_tokens}. Choose a bucket that divides the row."
            )

    def plan(self, source: shards.TokenSource) -> pack.Plan:
        """A row for each document that is long enough."""
        packing = pack.Packing(row_tokens=self.row_tokens, policy="whole")
        return pack.plan(source.lengths, packing)


def from_model(
    config: architecture.TransformerConfig, params: Any, jax_mesh: jax.sharding.Mesh | None
) -> RowNll:
    """The loss of each target under a model, jitted once per batch shape.

    With a mesh, params may be sharded over it, batches are split over its data axes, and every
    process gets all the losses back.
    """

    if jax_mesh is None:
        return lambda batch: np.asarray(_nll(config, params, batch))
    rows = sharding.batch(jax_mesh)

    def on_mesh(batch: batches.Batch) -> np.ndarray:
        arranged = context.arrange(batch, jax_mesh.shape)
        with jax.set_mesh(jax_mesh):
            found = _nll(config, params, jax.tree.map(lambda x: place(x, rows), arranged))
        return context.restore(np.asarray(found), jax_mesh.shape)

    return on_mesh


# One for all calls: a run that evaluates many times compiles it once.
@functools.partial(jax.jit, static_argnums=0)
def _nll(config: architecture.TransformerConfig, params: Any, batch: Any) -> jax.Array:
    hidden_BTD = transformer.hidden(config, params, batch.tokens, batch.segments, batch.positions)
    nll_BT, _ = model_loss.token_losses(config, params, hidden_BTD, batch.targets)
    return sharding.everywhere(nll_BT)


def place(array: np.ndarray, on: jax.sharding.Sharding) -> jax.Array:
    """A host array, the same in every process, as one array sharded over all of them."""
    return jax.make_array_from_callback(array.shape, on, lambda index: array[index])


def row_divisor(jax_mesh: jax.sharding.Mesh | None) -> int:
    """Into how many parts the mesh splits the rows of a batch."""
    if jax_mesh is None:
        return 1
    axes = sharding.batch(jax_mesh).spec[0] or ()
    axes = (axes,) if isinstance(axes, str) else axes
    return math.prod(jax_mesh.shape[axis] for axis in axes)


def domain(
    source: shards.TokenSource,
    row_nll: RowNll,
    *,
    row_tokens: int,
    batch_rows: int,
    advance: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Bits per byte of one domain.

        bits_per_byte = sum of nll over text targets / (ln 2 * UTF-8 bytes of the text)

    Text targets are all targets but EOS, which has no bytes: each token of the text is scored
    exactly once, the first one from BOS. Documents are laid end to end in rows of `row_tokens`
    ("concat") with attention inside each document only; a document that is cut goes on in the
    next row without its past, so numbers are comparable at the same `row_tokens` only.

    Returns:
      bits_per_byte, nats_per_token (null when not finite), tokens (text targets), bytes,
      documents, and blocks: {nats, bytes} of up to `MAX_BLOCKS` groups of neighbouring documents.
    """
    name, eos = source.manifest["source"], source.manifest["eos_id"]
    plan = pack.plan(source.lengths, pack.Packing(row_tokens=row_tokens, policy="concat"))
    nats = np.zeros(len(source), np.float64)
    scored = np.zeros(len(source), np.int64)
    for first, batch, count in _batches(source, plan, batch_rows):
        nll, text = row_nll(batch), text_targets(batch, eos)
        for row in range(count):
            pieces = slice(plan.row_start[first + row], plan.row_start[first + row + 1])
            document = np.repeat(plan.document[pieces], plan.length[pieces])
            here = text[row, : len(document)]
            np.add.at(nats, document[here], nll[row, : len(document)][here].astype(np.float64))
            np.add.at(scored, document[here], 1)
        advance(count * row_tokens)
    _check_scored_once(name, source, scored)
    tokens, size = int(scored.sum()), int(source.text_bytes.sum())
    if not tokens:
        raise ValueError(f"Domain {name!r} has no text to score. Give it documents with text.")
    total = float(nats.sum())
    return {
        "bits_per_byte": finite(total / (math.log(2) * size)),
        "nats_per_token": finite(total / tokens),
        "tokens": tokens,
        "bytes": size,
        "documents": len(source),
        "blocks": _blocks(nats, source.text_bytes),
    }


def by_position(
    source: shards.TokenSource,
    row_nll: RowNll,
    config: LongDocuments,
    advance: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Mean nats per text target at each distance from the start of long documents.

    One row per document with at least `row_tokens` targets: its first `row_tokens`. The buckets
    compare like with like: every bucket is a mean over the same documents.

    Returns:
      source, row_tokens, documents, dropped (documents left out, by reason) and buckets of
      {from, to (exclusive, in targets), nats_per_token, tokens}.
    """
    plan = config.plan(source)
    nats = np.zeros(config.row_tokens, np.float64)
    scored = np.zeros(config.row_tokens, np.int64)
    for _, batch, count in _batches(source, plan, config.batch_rows):
        nll, text = row_nll(batch)[:count], text_targets(batch, source.manifest["eos_id"])[:count]
        nats += np.where(text, nll, 0).sum(axis=0, dtype=np.float64)
        scored += text.sum(axis=0)
        advance(count * config.row_tokens)
    buckets = []
    for start in range(0, config.row_tokens, config.bucket_tokens):
        here = slice(start, start + config.bucket_tokens)
        tokens = int(scored[here].sum())
        mean = float(nats[here].sum()) / tokens if tokens else math.nan
        buckets.append(
            {"from": start, "to": here.stop, "nats_per_token": finite(mean), "tokens": tokens}
        )
    return {
        "source": config.source,
        "row_tokens": config.row_tokens,
        "documents": len(plan),
        "dropped": plan.dropped,
        "buckets": buckets,
    }


def text_targets(batch: batches.Batch, eos_id: int | None) -> Bool[np.ndarray, "B T"]:
    """Which targets are tokens of a text: neither padding nor EOS."""
    text = np.asarray(batch.segments) > 0
    return text if eos_id is None else text & (np.asarray(batch.targets) != eos_id)


def finite(value: float) -> float | None:
    """JSON has no NaN: a number that is not finite is null."""
    return value if math.isfinite(value) else None


def _batches(
    source: shards.TokenSource, plan: pack.Plan, batch_rows: int
) -> Iterator[tuple[int, batches.Batch, int]]:
    """(index of the first row, batch of `batch_rows` rows, how many are real), one shape always."""
    texts = [assemble.Text(tokens=source)]
    for first in range(0, len(plan), batch_rows):
        pieces = row_lib.of_plan(plan, first, first + batch_rows)
        layout = assemble.lay(pieces, np.zeros(batch_rows, np.int64), texts, plan.row_tokens)
        made = assemble.batch(layout, 0, batch_rows, texts)
        yield first, made, min(batch_rows, len(plan) - first)


def _check_scored_once(name: str, source: shards.TokenSource, scored: np.ndarray) -> None:
    """An EOS inside a text would be left out while its bytes count, and flatter the model."""
    ends = 0 if source.manifest["eos_id"] is None else 1
    expected = np.maximum(source.lengths - 1 - ends, 0)
    wrong = np.flatnonzero(scored != expected)
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"Domain {name!r}: {len(wrong)} documents have EOS inside their text, or none at the "
            f"end (the first is document {first}: {scored[first]} text targets, "
            f"{expected[first]} expected). Tokenize {source.folder} again."
        )


def _blocks(nats: np.ndarray, sizes: np.ndarray) -> list[dict[str, Any]]:
    groups = min(MAX_BLOCKS, len(nats))
    return [
        {"nats": finite(float(n.sum())), "bytes": int(b.sum())}
        for n, b in zip(np.array_split(nats, groups), np.array_split(sizes, groups), strict=True)
    ]
