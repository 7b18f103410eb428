# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of transformers, one table of settings per family, and how to compare."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midjax.model import hf, transformer

# Odd on purpose: a head size that is not dim / heads, and a vocabulary that 4 does not divide.
BASE = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LENGTHS = (37, 11, 44)


def torch_model(kind: str, seed: int = 0, **settings):
    """A random model of `model_type` kind: every parameter, norms and biases too, is random."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **(BASE | settings))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "experts" in name or "gate.weight" in name or "router" in name:
                parameter.normal_(0, 0.2)
    return model.float().eval()


def torch_logits(model, tokens: np.ndarray) -> np.ndarray:
    """[T, V] of one document on its own."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()


def documents(vocab: int, lengths=LENGTHS, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, length).astype(np.int32) for length in lengths]


def packed(texts: list[np.ndarray], row_tokens: int):
    """(tokens, segments, positions) [1, T] of documents end to end, padding after them."""
    tokens, segments, positions = (np.zeros((1, row_tokens), np.int32) for _ in range(3))
    at = 0
    for number, text in enumerate(texts, 1):
        here = slice(at, at + len(text))
        tokens[0, here], segments[0, here], positions[0, here] = text, number, np.arange(len(text))
        at += len(text)
    return tuple(map(jnp.asarray, (tokens, segments, positions)))


def our_logits(config, params, texts: list[np.ndarray], row_tokens: int = 96) -> list[np.ndarray]:
    """[length, V] of each document, all of them computed in one packed row."""
    apply = jax.jit(transformer.apply, static_argnums=0)
    found = np.asarray(apply(config, params, *packed(texts, row_tokens)))[0]
    ends = np.cumsum([len(text) for text in texts])
    return [found[end - len(text) : end] for text, end in zip(texts, ends, strict=True)]


def assert_close(found: np.ndarray, want: np.ndarray, atol: float = 5e-5) -> None:
    """Logits of the two, which are not zeros."""
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(found, want, atol=atol)


def assert_same(config, params, model, texts=None, atol: float = 5e-5, **kwargs) -> None:
    """Our packed row against transformers on each document alone."""
    texts = documents(config.vocab_size) if texts is None else texts
    for text, found in zip(texts, our_logits(config, params, texts, **kwargs), strict=True):
        assert_close(found, torch_logits(model, text), atol)


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)


def round_trip(folder: pathlib.Path, kind: str, seed: int = 0, **settings):
    """Theirs -> ours -> theirs -> ours: the same logits at each step and the same bits.

    Returns (config, params, transformers' model).
    """
    import transformers

    model = torch_model(kind, seed, **settings)
    theirs, ours = folder / "theirs", folder / "ours"
    model.save_pretrained(str(theirs))
    config, params = hf.load(str(theirs))
    assert config.family == kind
    assert_same(config, params, model)
    hf.save(str(ours), config, params, "float32")
    back, info = transformers.AutoModelForCausalLM.from_pretrained(
        str(ours), attn_implementation="eager", output_loading_info=True
    )
    assert type(back) is type(model)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for text in documents(config.vocab_size):
        np.testing.assert_array_equal(torch_logits(back, text), torch_logits(model, text))
    config_again, params_again = hf.load(str(ours))
    assert (config_again, bits(params_again)) == (config, bits(params))
    hf.save(str(folder / "again"), config_again, params_again, "float32")
    for file in ("config.json", "model.safetensors"):
        assert (ours / file).read_bytes() == (folder / "again" / file).read_bytes()
    return config, params, model


def edit(folder: pathlib.Path, **keys) -> None:
    """Changes keys of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
