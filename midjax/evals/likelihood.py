# SPDX-License-Identifier: Apache-2.0
"""How likely texts are, many at once: what they share is computed once.

    requests --likelihood_tokens--> ids --likelihood_plan--> prefixes and rows of trees
    prefixes --token_trees.prefixes--> keys and values --+
    rows --token_trees.hidden----------------------------+--> logits of scored places only
        --> nats and whether the target was the likeliest, summed per request

Examples before a question, which all questions of a task share, are computed once for all of them;
a question once for all of its choices; choices of one token cost nothing but their logits.
Params are used where they lie.

Shape suffixes: B rows, T places of a row, M parts into which the mesh splits rows, S scored places
of a part, D model width, V vocabulary.
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
from midjax.evals import likelihood_plan, likelihood_tokens, loss, packing, requests, sampling
from midjax.model import architecture, decode, rope, sharding, token_trees, transformer
from midjax.units import ceil_div

_LEAST_PREFIX_PLACES = 128
_LEAST_SLOTS = 16
# Prefixes whose keys and values are held at once take no more than this, unless there is only one.
_PREFIX_BYTES = 1 << 29
# Logits that a part of the mesh has at once, in float32.
_LOGITS_BYTES = 1 << 26


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
        cut off at the left of texts that were too long; "texts cut", by `engine`.
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
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        waiting = collections.deque[list[_Given]]()
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            for given in runner.run(plan):
                # The devices have the next batch before the host looks at what the last one gave.
                waiting.append(given)
                found += map(_read, waiting.popleft()) if len(waiting) > 1 else []
                self.between()
            found += [_read(one) for given in waiting for one in given]
        log.say(
            f"likelihood: {len(texts)} texts of {sum(len(text.ids) for text in texts)} tokens, "
            f"computed in {self.counts['places'] - places} places"
        )
        return found


# Numbers of texts, which slots of [M, S] are theirs, and what `_score` gives.
_Given = tuple[np.ndarray, np.ndarray, Any]


def _read(found: _Given) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers, is_slot, (nats_MS, hits_MS) = found
    return numbers, np.asarray(nats_MS)[is_slot], np.asarray(hits_MS)[is_slot]


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
def _hidden(
    config: architecture.TransformerConfig,
    params: Any,
    rows: token_trees.Rows,
    given: token_trees.Prefixes | None,
) -> Float[Array, "B T D"]:
    return token_trees.hidden(config, params, rows, given)


@functools.partial(jax.jit, static_argnums=0)
def _score(
    config: architecture.TransformerConfig,
    params: Any,
    hidden_BTD: Float[Array, "B T D"],
    places_MS: Int[Array, "M S"],
    targets_MS: Int[Array, "M S"],
) -> tuple[Float32[Array, "M S"], Bool[Array, "M S"]]:
    """Of each target the nats, 0 or less, and whether it is the likeliest token.

    A program of its own: how many places are scored differs from batch to batch, and the layers
    need not be compiled for each number.

    Args:
      places_MS: where in the rows of its part of the mesh a target is said, 0..(B / M) T - 1.
    """
    hidden_MSD = decode.from_packed(hidden_BTD, places_MS, (None,))
    logits_MSV = transformer.logits(config, params, hidden_MSD)
    # A comparison and a sum stay local where the vocabulary is sharded.
    hit_MSV = jnp.arange(logits_MSV.shape[-1]) == targets_MS[..., None]
    target_MS = jnp.where(hit_MSV, logits_MSV, 0.0).sum(axis=-1)
    nats_MS = target_MS - jax.nn.logsumexp(logits_MSV, axis=-1)
    return sharding.everywhere((nats_MS, sampling.likeliest(logits_MSV) == targets_MS))


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

    def run(self, plan: likelihood_plan.Plan) -> Iterator[list[_Given]]:
        """What is found in each batch."""
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
    ) -> Iterator[list[_Given]]:
        arrays = [
            np.concatenate([getattr(rows, name) for _, rows in some])
            for name in ("tokens", "segments", "positions", "ends")
        ]
        prefix = np.concatenate([np.full(len(r.tokens), n, np.int32) for n, r in some])
        slots = [slot for _, rows in some for slot in rows.slots]
        most = ceil_div(max(self._batch_tokens // length, 1), self._parts) * self._parts
        for first in range(0, len(slots), most):
            left = len(slots) - first
            count = min(ceil_div(packing.bucket(left), self._parts) * self._parts, most)
            # Dealt out by their scored places, so that all parts have about as many.
            here = sorted(
                range(first, min(first + most, len(slots))), key=lambda i: -len(slots[i][0])
            )
            parts = [here[part :: self._parts] for part in range(self._parts)]
            rows = token_trees.Rows(
                *(_dealt(x, parts, count // self._parts) for x in (*arrays, prefix))
            )
            self._counts["places"] += rows.tokens.size
            hidden = _hidden(self._config, self._params, self._placed(rows), given)
            yield [
                (numbers, is_slot, _score(self._config, self._params, hidden, *self._placed(asked)))
                for numbers, is_slot, asked in self._slots(length, parts, slots)
            ]

    def _slots(
        self,
        length: int,
        parts: list[list[int]],
        slots: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    ) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
        """(numbers of texts, which slots of [M, S] are theirs, (places, targets) of all), a few
        sizes of S: as many as make good use of the devices, few enough to hold their logits."""
        most = max(_LOGITS_BYTES // (4 * self._config.vocab_size), _LEAST_SLOTS)
        most = 1 << (min(most, self._config.loss_chunk_tokens).bit_length() - 1)
        flat = [
            tuple(
                np.concatenate([np.zeros(0, np.int64), *found])
                for found in (
                    [row * length + slots[index][0] for row, index in enumerate(part)],
                    [slots[index][1] for index in part],
                    [slots[index][2] for index in part],
                )
            )
            for part in parts
        ]
        total = max(len(places) for places, _, _ in flat)
        for first in range(0, total, most):
            size = min(packing.bucket(total - first, _LEAST_SLOTS), most)
            places, targets = np.zeros((2, len(parts), size), np.int32)
            is_slot, numbers = np.zeros((len(parts), size), bool), []
            for part, of in enumerate(flat):
                at, wanted, texts = (x[first : first + size] for x in of)
                places[part, : len(at)], targets[part, : len(at)] = at, wanted
                is_slot[part, : len(at)] = True
                numbers.append(texts)
            yield np.concatenate(numbers), is_slot, (places, targets)

    def _placed(self, tree: Any) -> Any:
        """Arrays of rows, split over the mesh."""
        if self._mesh is None:
            return tree
        axes = sharding.batch(self._mesh).spec[0]
        by_row = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec(axes))
        return jax.tree.map(lambda x: loss.place(x, by_row), tree)


def _dealt(x: np.ndarray, parts: list[list[int]], rows: int) -> np.ndarray:
    """Rows of x for each part, with rows of padding behind."""
    found = np.zeros((len(parts), rows, *x.shape[1:]), x.dtype)
    for part, here in zip(found, parts, strict=True):
        part[: len(here)] = x[here]
    return found.reshape(-1, *x.shape[1:])
