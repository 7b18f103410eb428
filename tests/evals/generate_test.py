# SPDX-License-Identifier: Apache-2.0
"""Sampling from a padded buffer against a loop that runs each prompt alone, without padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from midjax.evals import generate
from midjax.model import architecture, rope, transformer

CONFIG = architecture.TransformerConfig(
    vocab_size=40,
    dim=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    ffn_dim=24,
    norm_eps=1e-5,
    tied_head=True,
    context_tokens=64,
    rope=rope.Rope(theta=10000.0, scaling=rope.RopeScaling(kind="none")),
    initializer_std=0.5,
    param_dtype="float32",
    compute_dtype="float32",
    remat="none",
    loss_chunk_tokens=64,
)
# One compilation per length.
APPLY = jax.jit(functools.partial(transformer.apply, CONFIG))
PROMPTS = [[1, 5, 9], [1, 7], [1, 3, 4, 6, 8, 30, 2, 11], [1, 39]]
VOCAB = 36  # ids 36..39 pad the embedding


@pytest.fixture(scope="module")
def params():
    return transformer.init(CONFIG, jax.random.key(3))


def samples(**changes):
    fields = {"prompts": ("a",), "max_new_tokens": 6, "temperature": 0.0, "seed": 5}
    return generate.Samples(**(fields | changes))


def naive(params, prompt, row, config, eos):
    """One prompt, one token at a time, no buffer."""
    tokens, new = list(prompt), []
    for step in range(config.max_new_tokens):
        array = jnp.array([tokens])
        logits = APPLY(params, array, jnp.ones_like(array), jnp.arange(len(tokens))[None])
        logits = logits[0, -1, :VOCAB]
        if config.temperature:
            key = jax.random.fold_in(jax.random.key(config.seed), row)
            noise = jax.random.gumbel(jax.random.fold_in(key, step), logits.shape)
            token = int(jnp.argmax(logits / config.temperature + noise))
        else:
            token = int(jnp.argmax(logits))
        if token == eos:
            break
        tokens.append(token)
        new.append(token)
    return new


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_equal_to_a_loop_without_padding(params, temperature):
    config = samples(temperature=temperature)
    found = generate.complete(config, CONFIG, params, PROMPTS, eos_id=None, vocab_size=VOCAB)
    expected = [naive(params, p, row, config, None) for row, p in enumerate(PROMPTS)]
    assert found == expected
    assert all(len(new) == 6 and max(new) < VOCAB for new in found)


def test_stops_at_eos(params):
    config = samples(temperature=1.0)
    free = generate.complete(config, CONFIG, params, PROMPTS, eos_id=None, vocab_size=VOCAB)
    eos = free[0][4]
    found = generate.complete(config, CONFIG, params, PROMPTS, eos_id=eos, vocab_size=VOCAB)
    assert found == [new[: new.index(eos)] if eos in new else new for new in free]
    assert found == [naive(params, p, row, config, eos) for row, p in enumerate(PROMPTS)]
    assert len(found[0]) <= 4


def test_the_seed_decides(params):
    def run(seed):
        config = samples(temperature=1.0, seed=seed)
        return generate.complete(config, CONFIG, params, PROMPTS, eos_id=None, vocab_size=VOCAB)

    assert run(1) == run(1) != run(2)


def test_a_row_does_not_depend_on_the_others(params):
    config = samples(temperature=1.0)
    together = generate.complete(config, CONFIG, params, PROMPTS, eos_id=None, vocab_size=VOCAB)
    alone = generate.complete(config, CONFIG, params, PROMPTS[:1], eos_id=None, vocab_size=VOCAB)
    assert alone[0] == together[0]


def test_sampled_frequencies_are_the_softmax(params):
    config = samples(max_new_tokens=1, temperature=0.8)
    prompt = [1, 5, 9]
    drawn = generate.complete(
        config, CONFIG, params, [prompt] * 2000, eos_id=None, vocab_size=VOCAB
    )
    array = jnp.array([prompt])
    logits = APPLY(params, array, jnp.ones_like(array), jnp.arange(3)[None])
    expected = np.asarray(jax.nn.softmax(logits[0, -1, :VOCAB] / 0.8))
    counts = np.bincount(np.ravel(drawn), minlength=VOCAB) / 2000
    # Five standard errors of a share estimated from 2,000 draws.
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected / 2000) + 1e-3)


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0} | {token: i for i, token in enumerate(alphabet, 1)}
    found = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return found


def test_prompts_begin_with_bos(tokenizer):
    config = samples(prompts=("ab", ""))
    ids = generate.prompt_ids(config, tokenizer, 0, 64)
    assert [len(i) for i in ids] == [3, 1] and all(i[0] == 0 for i in ids)
    assert tokenizer.decode(ids[0][1:]) == "ab"


@pytest.mark.parametrize(
    ("changes", "bos", "context", "words"),
    [
        ({"prompts": ("abcdef",)}, 0, 12, "exceeds the model's context of 12"),
        ({"prompts": ("",)}, None, 16, "needs a BOS token"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(tokenizer, changes, bos, context, words):
    with pytest.raises(ValueError, match=words):
        generate.prompt_ids(samples(**changes), tokenizer, bos, context)


@pytest.mark.parametrize("changes", [{"prompts": ()}, {"max_new_tokens": 0}, {"temperature": -1.0}])
def test_bad_fields_are_refused(changes):
    with pytest.raises(ValueError, match=r"got|Give"):
        samples(**changes)


def test_a_continuation_is_what_it_adds_to_the_prompt():
    """Metaspace decoders drop the space at the start of a text, so new tokens alone lose it."""
    words = tokenizers.Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1}, unk_token="▁one"))
    words.decoder = decoders.Metaspace()
    assert words.decode([1]) == "two"
    assert generate.text_of(words, [0], [1]) == " two"
