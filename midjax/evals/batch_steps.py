# SPDX-License-Identifier: Apache-2.0
"""What `batcher` has the devices do with the rows of a cache.

    empty --fill--> rows with their first token --chunk--> several tokens more per row
            ^ resized: more or fewer slots; some_rows: those alone that still write

Shape suffixes: B rows of the cache, C some of them, E tokens that end a text, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from midjax.evals import sampling
from midjax.model import architecture, decode, sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Where every row is, [B] each.

    Attributes:
      token: the newest, which is not in the cache yet.
      position: where it stands.
      limit: the position whose token is not continued.
      number: of the next token within its continuation.
      is_active: it is to be continued.
      key, temperature, top_p: see `sampling.choose`.
    """

    token: Any
    position: Any
    limit: Any
    number: Any
    is_active: Any
    key: Any
    temperature: Any
    top_p: Any


@dataclasses.dataclass(frozen=True)
class How:
    """What a compiled function is made for."""

    config: architecture.TransformerConfig
    vocab_size: int
    policy: sampling.Policy
    chunk_tokens: int

    def choose(self, logits_BV: Array, rows: Rows) -> Int[Array, "B"]:
        """The next token of each row."""
        return sampling.choose(
            self.policy,
            logits_BV[:, : self.vocab_size],
            rows.key,
            rows.number,
            rows.temperature,
            rows.top_p,
        )


def _goes_on(rows: Rows, eos: Int[Array, "E"]) -> Bool[Array, "B"]:
    return (rows.token[:, None] != eos).all(axis=1) & (rows.position < rows.limit)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty(how: How, rows: int, slots: int) -> tuple[decode.Cache, Rows]:
    """A cache, and rows that write nothing."""
    zeros, reals = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.float32)
    nothing = Rows(
        token=zeros,
        position=zeros,
        limit=zeros,
        number=zeros,
        is_active=zeros > 0,
        key=jnp.zeros((rows, 2), jnp.uint32),
        temperature=reals,
        top_p=reals,
    )
    return decode.empty(how.config, rows, slots), sharding.everywhere(nothing)


@functools.partial(jax.jit, static_argnums=1)
def resized(cache: decode.Cache, slots: int) -> decode.Cache:
    """See `decode.resized`."""
    return decode.resized(cache, slots)


@jax.jit
def some_rows(
    cache: decode.Cache, rows: Rows, rows_C: Int[Array, "C"]
) -> tuple[decode.Cache, Rows]:
    """These rows alone. On one device."""
    return decode.some_rows(cache, rows_C), jax.tree.map(lambda x: x[rows_C], rows)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def fill(
    how: How,
    params: Any,
    cache: decode.Cache,
    rows: Rows,
    eos: Int[Array, "E"],
    prompts: decode.Prompts,
    given: Rows,
) -> tuple[decode.Cache, Rows, Int[Array, "B"]]:
    """The first token of new rows; `given` says all about them but that."""
    params = decode.apart(how.config, params)
    logits_BV, cache = decode.fill(how.config, params, cache, prompts)
    new = dataclasses.replace(given, token=how.choose(logits_BV, given), number=given.number + 1)
    new = dataclasses.replace(new, is_active=_goes_on(new, eos))

    def merged(new: Array, old: Array) -> Array:
        return jnp.where(prompts.is_new.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    rows = sharding.everywhere(jax.tree.map(merged, new, rows))
    return cache, rows, rows.token


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def chunk(
    how: How,
    params: Any,
    cache: decode.Cache,
    rows: Rows,
    eos: Int[Array, "E"],
    is_wanted_B: Bool[Array, "B"],
) -> tuple[decode.Cache, Rows, Int[Array, "B chunk"]]:
    """Up to `chunk_tokens` more of each row; -1 where a row had ended."""
    params = decode.apart(how.config, params)
    out = jnp.full((len(is_wanted_B), how.chunk_tokens), -1, jnp.int32)
    rows = dataclasses.replace(rows, is_active=rows.is_active & is_wanted_B)

    def unfinished(state: Any) -> Array:
        at, _, rows, _ = state
        return (at < how.chunk_tokens) & rows.is_active.any()

    def one(state: Any) -> Any:
        at, cache, rows, out = state
        logits_BV, cache = decode.step(
            how.config, params, cache, rows.token, rows.position, rows.is_active
        )
        on = rows.is_active
        token = jnp.where(on, how.choose(logits_BV, rows), rows.token)
        out = jax.lax.dynamic_update_index_in_dim(out, jnp.where(on, token, -1), at, 1)
        rows = dataclasses.replace(
            rows, token=token, position=rows.position + on, number=rows.number + on
        )
        return at + 1, cache, dataclasses.replace(rows, is_active=on & _goes_on(rows, eos)), out

    state = (jnp.int32(0), cache, rows, out)
    _, cache, rows, out = jax.lax.while_loop(unfinished, one, state)
    return cache, *sharding.everywhere((rows, out))
