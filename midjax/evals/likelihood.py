# SPDX-License-Identifier: Apache-2.0
"""How likely texts are, many at once: what they share is computed once.

    requests --likelihood_tokens--> ids --likelihood_plan--> prefixes and rows of trees
    prefixes --token_trees.prefixes--> keys and values --+
    rows --token_trees.hidden----------------------------+--> logits of scored places only
        --> nats and whether the target was the likeliest, summed per request

Examples before a question, which all questions of a task share, are computed once for all of them;
a question once for all of its choices; choices of one token cost nothing but their logits.
Params are used where they lie.

Shape suffixes: B rows, T places of a row, S scored places of a row, D model width, V vocabulary.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from midjax import log
from midjax.evals import likelihood_plan, likelihood_tokens, loss, packing, requests
from midjax.model import architecture, rope, sharding, token_trees, transformer
from midjax.units import ceil_div

_LEAST_PREFIX_PLACES = 128
_LEAST_SLOTS = 16
# Prefixes whose keys and values are held at once take no more than this, unless there is only one.
_PREFIX_BYTES = 1 << 29


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """A model that says how likely texts are.

    Attributes:
      config, params: the model; params on one device or sharded over `jax_mesh`.
      tokenizer: of the model.
      jax_mesh: from `sharding.make`. Rows are split over `context` too, see
        `sharding.without_context`.
      context_tokens: of longer texts the beginning is cut off; None is the config's.
      batch_tokens: places that are computed at once, on all devices together.
      between: called between batches; what it raises ends the question.
      counts: what was done so far: "requests"; "tokens", which the requests' texts have; "places",
        which were computed for them, padding included; "cut requests" and "cut tokens", what was
        cut off at the left of texts that were too long.
    """

    config: architecture.TransformerConfig
    params: Any
    tokenizer: likelihood_tokens.Tokenizer
    jax_mesh: jax.sharding.Mesh | None = None
    context_tokens: int | None = None
    batch_tokens: int = 4096
    between: Callable[[], None] = lambda: None
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __post_init__(self) -> None:
        for name in ("context_tokens", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"Scorer.{name} must be 1 or more, got {value}.")
        most = self.tokenizer.tokenizer.get_vocab_size()
        if most > self.config.vocab_size:
            raise ValueError(
                f"The tokenizer has {most} tokens, the model {self.config.vocab_size}. Give the "
                "tokenizer that it was trained with."
            )

    def loglikelihoods(self, asked: Sequence[requests.Loglikelihood]) -> list[requests.Likelihood]:
        """The answers in the order of the requests.

        Raises:
          ValueError: a continuation without a token, or one longer than the model's context.
            Nothing has been computed then.
        """
        pairs = likelihood_tokens.pairs(self.tokenizer, asked)
        return self._answers(pairs, np.arange(len(pairs)), len(asked))

    def rolling(self, asked: Sequence[requests.Rolling]) -> list[requests.Likelihood]:
        """The answers in the order of the requests; of an empty text 0 nats of 0 tokens."""
        context_tokens = self.context_tokens or self.config.context_tokens
        pairs, owners = [], []
        for number, one in enumerate(asked):
            for pair in likelihood_tokens.windows(self.tokenizer, one.text, context_tokens):
                pairs.append(pair)
                owners.append(number)
        return self._answers(pairs, np.array(owners, np.int64), len(asked))

    def _answers(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        owner: Int[np.ndarray, " pairs"],
        asked: int,
    ) -> list[requests.Likelihood]:
        context_tokens = self.context_tokens or self.config.context_tokens
        texts, cuts = [], []
        longest = _longest_shared(self.config)
        for context, continuation in pairs:
            text, cut = likelihood_tokens.text(
                context, continuation, context_tokens, longest=longest
            )
            texts.append(text)
            cuts.append(cut)
        self.counts["requests"] += asked
        self.counts["tokens"] += sum(len(text.ids) for text in texts)
        self.counts["cut requests"] += sum(cut > 0 for cut in cuts)
        self.counts["cut tokens"] += sum(cuts)
        if any(cuts):
            log.say(
                f"likelihood: {sum(cut > 0 for cut in cuts)} of {asked} requests exceed the "
                f"context of {context_tokens} tokens: {sum(cuts)} tokens are cut off where they "
                "begin."
            )
        nats, misses, tokens = np.zeros(asked), np.zeros(asked, np.int64), np.zeros(asked, np.int64)
        for slots, slot_nats, slot_hits in self._scored(texts):
            np.add.at(nats, owner[slots], slot_nats.astype(np.float64))
            np.add.at(misses, owner[slots], ~slot_hits)
            np.add.at(tokens, owner[slots], 1)
        return [
            requests.Likelihood(nats=float(n), greedy=not m, tokens=int(t))
            for n, m, t in zip(nats, misses, tokens, strict=True)
        ]

    def _scored(
        self, texts: Sequence[likelihood_plan.Text]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(numbers of texts, nats, whether it is the likeliest) of all targets in some order."""
        if not texts:
            return []
        places = self.counts["places"]
        plan = likelihood_plan.Plan(texts)
        mesh = None if self.jax_mesh is None else sharding.without_context(self.jax_mesh)
        runner = _Runner(self.config, self.params, mesh, self.batch_tokens, self.counts)
        found, waiting = [], collections.deque[tuple[np.ndarray, np.ndarray, Any]]()
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            for given in runner.run(plan):
                # The devices have the next batch before the host looks at what the last one gave.
                waiting.append(given)
                found += [_read(waiting.popleft())] if len(waiting) > 1 else []
                self.between()
            found += map(_read, waiting)
        log.say(
            f"likelihood: {len(texts)} texts of {sum(len(text.ids) for text in texts)} tokens, "
            f"computed in {self.counts['places'] - places} places"
        )
        return found


def _read(found: tuple[np.ndarray, np.ndarray, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers, is_slot, (nats_BS, hits_BS) = found
    return numbers, np.asarray(nats_BS)[is_slot], np.asarray(hits_BS)[is_slot]


def _longest_shared(config: architecture.TransformerConfig) -> int | None:
    """Longer texts turn all of their keys by angles of their own length."""
    found = [
        one.scaling.original_context_tokens or 0
        for one in (config.rope, config.window_rope)
        if one is not None and rope.needs_lengths(one)
    ]
    return min(found, default=None)


# ---- on the device ----


@functools.partial(jax.jit, static_argnums=0)
def _prefixes(
    config: architecture.TransformerConfig, params: Any, tokens_CP: Array, tokens_C: Array
) -> token_trees.Prefixes:
    return token_trees.prefixes(config, params, tokens_CP, tokens_C)


@functools.partial(jax.jit, static_argnums=0)
def _score(
    config: architecture.TransformerConfig,
    params: Any,
    rows: token_trees.Rows,
    given: token_trees.Prefixes | None,
    places_BS: Int[Array, "B S"],
    targets_BS: Int[Array, "B S"],
) -> tuple[Float32[Array, "B S"], Bool[Array, "B S"]]:
    """Of each target the nats, 0 or less, and whether it is the likeliest token."""
    hidden_BTD = token_trees.hidden(config, params, rows, given)
    hidden_BSD = jnp.take_along_axis(hidden_BTD, places_BS[:, :, None], axis=1)
    slots = targets_BS.shape[1]
    chunk = min(slots, 1 << (config.loss_chunk_tokens.bit_length() - 1))
    if chunk == slots:
        return sharding.everywhere(_of_slots(config, params, hidden_BSD, targets_BS))

    def chunks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(len(x), -1, chunk, *x.shape[2:]), 1, 0)

    nats, hits = jax.lax.map(
        lambda piece: _of_slots(config, params, *piece), (chunks(hidden_BSD), chunks(targets_BS))
    )
    return sharding.everywhere(
        tuple(jnp.moveaxis(x, 0, 1).reshape(targets_BS.shape) for x in (nats, hits))
    )


def _of_slots(
    config: architecture.TransformerConfig,
    params: Any,
    hidden_BSD: Float[Array, "B S D"],
    targets_BS: Int[Array, "B S"],
) -> tuple[Float32[Array, "B S"], Bool[Array, "B S"]]:
    logits_BSV = transformer.logits(config, params, hidden_BSD)
    # A comparison and a sum stay local where the vocabulary is sharded.
    hit_BSV = jnp.arange(logits_BSV.shape[-1]) == targets_BS[..., None]
    target_BS = jnp.where(hit_BSV, logits_BSV, 0.0).sum(axis=-1)
    nats_BS = target_BS - jax.nn.logsumexp(logits_BSV, axis=-1)
    return nats_BS, jnp.argmax(logits_BSV, axis=-1) == targets_BS


# ---- on the host ----


class _Runner:
    """Gives a plan's batches to the devices."""

    def __init__(
        self,
        config: architecture.TransformerConfig,
        params: Any,
        mesh: jax.sharding.Mesh | None,
        batch_tokens: int,
        counts: collections.Counter[str],
    ) -> None:
        self._config = dataclasses.replace(config, remat="none", quantization=None)
        self._params, self._mesh = params, mesh
        self._batch_tokens, self._counts = batch_tokens, counts
        self._parts = loss.row_divisor(mesh)

    def run(self, plan: likelihood_plan.Plan) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
        """(numbers of texts, which slots of [B, S] are theirs, what `_score` gives) per batch."""
        for wave in self._waves(plan):
            given = self._given(plan, wave)
            by_length: dict[int, list[tuple[int, likelihood_plan.Rows]]] = {}
            for number, group in enumerate(wave):
                for rows in plan.rows(group):
                    by_length.setdefault(rows.tokens.shape[1], []).append((number, rows))
            for length, some in by_length.items():
                yield from self._batches(length, some, given)

    def _waves(self, plan: likelihood_plan.Plan) -> Iterator[list[likelihood_plan.Group]]:
        """Groups whose prefixes are held at once: of like length, and no more than fit."""
        wave: list[likelihood_plan.Group] = []
        for group in plan.groups:
            places = self._places(group)
            most = (
                1
                if not places
                else max(_PREFIX_BYTES // token_trees.prefix_bytes(self._config, places), 1)
            )
            if wave and (places != self._places(wave[0]) or len(wave) >= most):
                yield wave
                wave = []
            wave.append(group)
        yield wave

    def _places(self, group: likelihood_plan.Group) -> int:
        # Splash wants multiples.
        size = packing.bucket(group.prefix, _LEAST_PREFIX_PLACES) if group.prefix else 0
        return ceil_div(size, _LEAST_PREFIX_PLACES) * _LEAST_PREFIX_PLACES

    def _given(
        self, plan: likelihood_plan.Plan, wave: list[likelihood_plan.Group]
    ) -> token_trees.Prefixes | None:
        places = self._places(wave[0])
        if not places:
            return None
        count = ceil_div(packing.bucket(len(wave)), self._parts) * self._parts
        tokens, lengths = np.zeros((count, places), np.int32), np.zeros(count, np.int32)
        for number, group in enumerate(wave):
            ids = plan.prefix(group)
            tokens[number, : len(ids)], lengths[number] = ids, len(ids)
        self._counts["places"] += tokens.size
        return _prefixes(self._config, self._params, *self._placed((tokens, lengths)))

    def _batches(
        self,
        length: int,
        some: list[tuple[int, likelihood_plan.Rows]],
        given: token_trees.Prefixes | None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
        """Rows with many scored places first, so that those of a batch have like numbers."""
        arrays = [
            np.concatenate([getattr(rows, name) for _, rows in some])
            for name in ("tokens", "segments", "positions", "ends")
        ]
        prefix = np.concatenate([np.full(len(r.tokens), n, np.int32) for n, r in some])
        slots = [slot for _, rows in some for slot in rows.slots]
        order = sorted(range(len(slots)), key=lambda row: -len(slots[row][0]))
        most = ceil_div(max(self._batch_tokens // length, 1), self._parts) * self._parts
        while order:
            here, order = order[:most], order[most:]
            count = min(ceil_div(packing.bucket(len(here)), self._parts) * self._parts, most)
            size = _LEAST_SLOTS
            while size < len(slots[here[0]][0]):
                size *= 4
            shape = (count, size)
            places, targets = np.zeros((2, *shape), np.int32)
            is_slot, numbers = np.zeros(shape, bool), []
            for row, index in enumerate(here):
                at, wanted, texts = slots[index]
                places[row, : len(at)], targets[row, : len(at)] = at, wanted
                is_slot[row, : len(at)] = True
                numbers.append(texts)
            rows = token_trees.Rows(*(_filled(x[here], count) for x in (*arrays, prefix)))
            self._counts["places"] += rows.tokens.size
            arguments = self._placed((rows, places, targets))
            found = _score(self._config, self._params, arguments[0], given, *arguments[1:])
            yield np.concatenate(numbers), is_slot, found

    def _placed(self, tree: Any) -> Any:
        """Arrays of rows, split over the mesh."""
        if self._mesh is None:
            return tree
        axes = sharding.batch(self._mesh).spec[0]
        by_row = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec(axes))
        return jax.tree.map(lambda x: loss.place(x, by_row), tree)


def _filled(x: np.ndarray, rows: int) -> np.ndarray:
    """With rows of padding behind."""
    return np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1))
