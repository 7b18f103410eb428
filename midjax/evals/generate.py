# SPDX-License-Identifier: Apache-2.0
"""Continuations of prompts: greedy, or sampled with a seed.

Each new token is a forward pass over the whole buffer [B, L] (L = longest prompt + new tokens).
Attention is causal, so what stands behind a row's last token can't change what comes next, and
rows of different lengths share one buffer and one compilation.

B = rows, S = shards of the mesh's context axis, D = model width.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Bool, Float, Int

from midjax.evals import loss
from midjax.model import context, sharding, transformer
from midjax.units import ceil_div


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """What to generate.

    Attributes:
      prompts: texts to continue; BOS is put before each.
      max_new_tokens: a continuation ends at EOS or here.
      temperature: 0 takes the likeliest token; otherwise logits are divided by it and sampled.
      seed: of the sampling; token j of prompt i depends on (seed, i, j) only.
    """

    prompts: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    seed: int

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("Samples.prompts is empty. Give a prompt, or set samples to None.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, got {self.max_new_tokens}.")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}.")


def prompt_ids(
    config: Samples, tokenizer: tokenizers.Tokenizer, bos_id: int | None, context_tokens: int
) -> list[list[int]]:
    """Token ids of the prompts, BOS first.

    Raises:
      ValueError: a prompt without a token, or one that doesn't fit the context with what follows.
    """
    head = [] if bos_id is None else [bos_id]
    found = []
    for prompt in config.prompts:
        ids = [*head, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        if not ids:
            raise ValueError("An empty prompt needs a BOS token, and this tokenizer has none.")
        if len(ids) + config.max_new_tokens > context_tokens:
            raise ValueError(
                f"Prompt {prompt[:40]!r} has {len(ids)} tokens; with max_new_tokens="
                f"{config.max_new_tokens} it exceeds the model's context of {context_tokens}. "
                "Shorten one of them."
            )
        found.append(ids)
    return found


def complete(
    config: Samples,
    model_config: transformer.TransformerConfig,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int | None,
    vocab_size: int,
    jax_mesh: jax.sharding.Mesh | None = None,
) -> list[list[int]]:
    """New token ids for each prompt, without EOS.

    Args:
      vocab_size: ids from here on (rows that pad the embedding) are never chosen.
    """
    divisor = loss.row_divisor(jax_mesh)
    rows = -(-len(prompts) // divisor) * divisor
    padded = [*prompts, *[prompts[0]] * (rows - len(prompts))]
    lengths = np.array([len(prompt) for prompt in padded], np.int32)
    shards = 1 if jax_mesh is None else context.shards(jax_mesh.shape)
    multiple = 1 if shards == 1 else 2 * shards  # see `context.order`
    buffer = ceil_div(int(lengths.max()) + config.max_new_tokens, multiple) * multiple
    tokens = np.zeros((rows, buffer), np.int32)
    for row, prompt in enumerate(padded):
        tokens[row, : len(prompt)] = prompt
    run = functools.partial(
        _complete,
        model_config,
        config.max_new_tokens,
        config.temperature,
        -1 if eos_id is None else eos_id,
        vocab_size,
        shards,
    )
    key = jax.random.key(config.seed)
    if jax_mesh is None:
        filled, ends = jax.jit(run)(params, key, tokens, lengths)
    else:
        by_row = sharding.batch(jax_mesh)
        first = jax.sharding.PartitionSpec(by_row.spec[0])
        everywhere = jax.sharding.NamedSharding(jax_mesh, jax.sharding.PartitionSpec())
        with jax.set_mesh(jax_mesh):
            filled, ends = jax.jit(run, out_shardings=everywhere)(
                params,
                key,
                loss.place(tokens, by_row),
                loss.place(lengths, jax.sharding.NamedSharding(jax_mesh, first)),
            )
    filled, ends = np.asarray(filled), np.asarray(ends)
    return [filled[i, len(p) : ends[i]].tolist() for i, p in enumerate(prompts)]


def text_of(tokenizer: tokenizers.Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that `new` adds to `prompt`: some decoders drop a space at the start of a text."""
    before, whole = tokenizer.decode(list(prompt)), tokenizer.decode([*prompt, *new])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(list(new))


def _complete(
    config: transformer.TransformerConfig,
    max_new_tokens: int,
    temperature: float,
    eos_id: int,
    vocab_size: int,
    shards: int,
    params: Any,
    key: jax.Array,
    tokens: Int[jax.Array, "B L"],
    lengths: Int[jax.Array, " B"],
) -> tuple[Int[jax.Array, "B L"], Int[jax.Array, " B"]]:
    """Fills the buffer, which is in natural order; returns it and where each row ends."""
    row = jnp.arange(tokens.shape[0])
    segments = jnp.ones_like(tokens)
    order = context.order(tokens.shape[1], shards)
    natural = jnp.asarray(context.natural(tokens.shape[1], shards))
    positions = jnp.broadcast_to(jnp.asarray(order), tokens.shape)

    def unfinished(state: tuple) -> Bool[jax.Array, ""]:
        step, _, _, done = state
        return (step < max_new_tokens) & ~done.all()

    def one_token(state: tuple) -> tuple:
        step, tokens, ends, done = state
        hidden_BLD = transformer.hidden(config, params, tokens[:, order], segments, positions)
        last = natural[ends - 1][:, None, None]
        # The same place for every shard: `logits` splits places over them.
        last_BSD = jnp.take_along_axis(hidden_BLD, jnp.repeat(last, shards, axis=1), axis=1)
        logits_BV = transformer.logits(config, params, last_BSD)[:, 0]
        token = _choose(logits_BV[:, :vocab_size], temperature, key, row, step)
        done = done | (token == eos_id)
        tokens = tokens.at[row, ends].set(jnp.where(done, tokens[row, ends], token))
        return step + 1, tokens, jnp.where(done, ends, ends + 1), done

    start = (jnp.int32(0), tokens, lengths, jnp.zeros(tokens.shape[0], bool))
    _, tokens, ends, _ = jax.lax.while_loop(unfinished, one_token, start)
    return tokens, ends


def _choose(
    logits_BV: Float[jax.Array, "B V"],
    temperature: float,
    key: jax.Array,
    row: Int[jax.Array, " B"],
    step: Int[jax.Array, ""],
) -> Int[jax.Array, " B"]:
    if temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), step))(row)
    drawn = jax.vmap(jax.random.categorical)(keys, logits_BV / temperature)
    return drawn.astype(jnp.int32)
