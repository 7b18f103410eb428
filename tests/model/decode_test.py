# SPDX-License-Identifier: Apache-2.0
"""Greedy continuations against `transformers.generate`, family by family; what a cache holds."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny_model

from midjax.evals import batcher
from midjax.model import decode, hf, rope, transformer

# The first prompt begins within the original length of the scaled rotary embeddings and ends beyond
# it, the second begins beyond.
LENGTHS, ORIGINAL, NEW = (28, 35, 3, 14), 32, 9
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32, "beta_slow": 1,
    "original_max_position_embeddings": ORIGINAL,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": ORIGINAL,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0,
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [2.0 + 0.7 * i for i in range(6)],
    "original_max_position_embeddings": ORIGINAL,
}  # fmt: skip
# The other families have no part that none of these has; the layers are shared.
SETTINGS = {
    "llama": {"num_key_value_heads": 1, "rope_parameters": LLAMA3, "attention_bias": True},
    "mixtral": {"num_local_experts": 4, "sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1,
              "rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL},
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": ORIGINAL},
    "olmo2": {"rope_parameters": YARN},
    "gemma2": {"head_dim": 20, "sliding_window": 6, "tie_word_embeddings": False,
               "rope_parameters": LINEAR},
}  # fmt: skip


def theirs(model, prompts):
    """New tokens of each prompt alone, by a model of its own: a scaled rotary embedding of theirs
    reads the length of the longest row of a batch, and remembers the longest that it has seen."""
    import torch

    found = []
    for prompt in prompts:
        tokens = torch.from_numpy(prompt[None].astype(np.int64))
        mask = torch.ones_like(tokens)
        out = copy.deepcopy(model).generate(
            tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=True
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


def greedy(prompt, new=NEW):
    return batcher.Asked(
        prompt=tuple(int(token) for token in prompt),
        max_new_tokens=new,
        temperature=0.0,
        top_p=1.0,
        key=np.zeros(2, np.uint32),
    )


@pytest.mark.parametrize("kind", SETTINGS)
def test_greedy_continuations_are_those_of_transformers(kind, tmp_path):
    model = parity.torch_model(kind, 7, **({"num_hidden_layers": 2} | SETTINGS[kind]))
    model.save_pretrained(str(tmp_path))
    config, params = hf.load(str(tmp_path))
    prompts = parity.documents(config.vocab_size, LENGTHS)
    ours = batcher.Model(config=config, params=params, vocab_size=101, eos_ids=(), chunk_tokens=5)
    found = batcher.continuations(ours, [greedy(prompt) for prompt in prompts])
    assert found == theirs(model, prompts)
    assert len({token for new in found for token in new}) > 8


def packed(prompts, rows, length):
    """One row of prompts, {row of the cache: tokens}."""
    tokens, segments, positions = np.zeros((3, 1, length), np.int32)
    begin, size, is_new, at = np.zeros(rows, np.int32), np.ones(rows, np.int32), [False] * rows, 0
    for row, prompt in prompts.items():
        here = slice(at, at + len(prompt))
        tokens[0, here], segments[0, here] = prompt, row + 1
        positions[0, here] = np.arange(len(prompt))
        begin[row], size[row], is_new[row], at = at, len(prompt), True, at + len(prompt)
    return decode.Prompts(tokens, segments, positions, np.array(is_new), begin, size)


def test_logits_are_those_of_whole_texts():
    """Through a ring that turns over, with a row that is filled anew on the way; layers are a loop,
    where those above are laid out flat."""
    config = tiny_model.config(
        layers=9, layer_pattern=("window", "full"), window_tokens=5, rope=tiny_model.YARN
    )
    params, rows, slots = tiny_model.params(config), 4, 16
    whole = jax.jit(transformer.apply, static_argnums=0)
    fill, step = (jax.jit(f, static_argnums=0) for f in (decode.fill, decode.step))

    def check(logits, texts):
        for row, text in texts.items():
            tokens = np.zeros((1, 24), np.int32)
            tokens[0, : len(text)] = text
            segments = (np.arange(24) < len(text)).astype(np.int32)[None]
            want = whole(config, params, tokens, segments, np.arange(24, dtype=np.int32)[None])
            np.testing.assert_allclose(logits[row], want[0, len(text) - 1], atol=2e-5)

    cache = decode.empty(config, rows, slots)
    texts = {2: [1, 2, 3, 4, 5, 6, 7], 0: [20, 21, 22]}
    logits, cache = fill(config, params, cache, packed(texts, rows, 12))
    check(logits, texts)
    for number in range(13):
        if number == 9:  # the longer row would not fit any more
            cache = jax.jit(decode.resized, static_argnums=1)(cache, 24)
        if number == 5:
            texts[0] = [9, 8, 7, 6, 5, 4]
            logits, cache = fill(config, params, cache, packed({0: texts[0]}, rows, 12))
            check(logits, {0: texts[0]})
        tokens, positions = np.zeros((2, rows), np.int32)
        for row, text in texts.items():
            tokens[row], positions[row] = (7 * number + row) % 96, len(text)
            text.append(int(tokens[row]))
        valid = np.isin(np.arange(rows), list(texts))
        logits, cache = step(config, params, cache, tokens, positions, valid)
        check(logits, texts)
    assert int(cache.newest) == 15 + 4  # it had grown from slot 15 on

    # The longer row has ended: fewer slots are enough for the other, and it needs no company.
    cache = jax.jit(decode.resized, static_argnums=1)(cache, 16)
    cache = jax.jit(decode.some_rows)(cache, np.array([0, 3]))
    position = np.array([len(texts[0]), 0])
    logits, cache = step(config, params, cache, np.array([5, 0]), position, np.array([True, False]))
    check(logits, {0: [*texts[0], 5]})


def test_bfloat16_is_kept_in_bfloat16():
    config = tiny_model.config(layers=1, compute_dtype="bfloat16")
    cache = decode.empty(config, 2, 16)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves((cache.keys, cache.values)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((cache.keys, cache.values)))
    assert decode.cache_bytes(config, 2, 16) == size == 2 * 1 * 2 * 2 * 16 * 16 * 2


def test_where_longrope_begins_anew():
    scaling = rope.RopeScaling(
        kind="longrope",
        factor=4.0,
        original_context_tokens=32,
        short_factors=(1.0,) * 8,
        long_factors=(2.0,) * 8,
    )
    config = tiny_model.config(rope=rope.Rope(theta=1e4, scaling=scaling))
    assert [decode.longest_row(config, n) for n in (1, 32, 33)] == [32, 32, None]
    assert decode.longest_row(tiny_model.config(rope=tiny_model.YARN), 1) is None
