# SPDX-License-Identifier: Apache-2.0
"""A folded model computes what it did, and a Hugging Face folder can hold it."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import tiny_model as tiny

from midjax.model import folding, hf, transformer

GEMMA = {
    "family": "gemma2", "tied_head": True, "activation": "gelu_tanh", "logits_scale": 32**-0.5,
    "layer_pattern": ("window", "full"), "window_tokens": 8, "norm_placement": "both",
    "norm_eps": 1e-6, "attention_softcap": 5.0, "logits_softcap": 3.0, "layers": 4,
}  # fmt: skip
CASES = {
    "llama of MaxText": {"attention_scale": 1.0},
    "biased": {"family": "qwen2", "attention_scale": 0.7, "qkv_bias": True},
    "normed heads": {"family": "qwen3", "attention_scale": 1.3, "qk_norm": "head"},
    "normed heads, plus one": {"attention_scale": 1.3, "qk_norm": "head", "norm": "rms_plus_one"},
    "tied": {"tied_head": True, "logits_scale": 32**-0.5},
    "scaled head": {"logits_scale": 2.5},
    "gemma of MaxText": GEMMA | {"attention_scale": 1.0},
    "nothing to fold": {},
}


def params_of(config, seed=0):
    """Random in every entry, biases and all norms included."""
    made = transformer.init(config, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + (0.1 * rng.standard_normal(x.shape)).astype(x.dtype), made)


@pytest.mark.parametrize("case", CASES)
def test_the_same_logits(case):
    config = tiny.config(**CASES[case])
    params = params_of(config)
    folded, changed = folding.fold(config, params)
    rows = tiny.rows(2, 24)
    apply = jax.jit(transformer.apply, static_argnums=0)
    with jax.default_matmul_precision("float32"):
        before, after = apply(config, params, *rows), apply(folded, changed, *rows)
    np.testing.assert_allclose(after, before, rtol=2e-4, atol=2e-4)
    shapes = jax.tree.map(lambda x: x.shape, transformer.abstract(folded))
    assert jax.tree.map(lambda x: x.shape, changed) == shapes
    assert folded.logits_scale is None


@pytest.mark.parametrize("case", ["llama of MaxText", "biased", "normed heads", "gemma of MaxText"])
def test_a_hugging_face_folder_holds_it(tmp_path, case):
    config = tiny.config(**CASES[case], head_dtype="bfloat16")
    folded, changed = folding.fold(config, params_of(config))
    hf.save(str(tmp_path), folded, changed, "float32")
    back, params = hf.load(str(tmp_path))
    same = {"param_dtype": "float32", "loss_chunk_tokens": folded.loss_chunk_tokens}
    assert dataclasses.replace(back, **same) == folded
    jax.tree.map(np.testing.assert_array_equal, params, changed)


def test_where_the_factors_go():
    config = tiny.config(attention_scale=1.0)
    params = params_of(config)
    folded, changed = folding.fold(config, params)
    assert folded.attention_scale is None
    np.testing.assert_allclose(changed["layers"]["wq"], 4.0 * params["layers"]["wq"])  # sqrt(16)
    assert changed["layers"]["wk"] is params["layers"]["wk"]
    gemma = tiny.config(**GEMMA, attention_scale=1.0)
    folded, changed = folding.fold(gemma, params := params_of(gemma))
    assert (folded.embed_scale, folded.norm) == (math.sqrt(32), "rms_plus_one")
    assert folded.attention_scale == 1.0  # query_pre_attn_scalar says it
    np.testing.assert_allclose(changed["final_norm"], params["final_norm"] - 1.0)
    untied, _ = folding.fold(tiny.config(tied_head=True, logits_scale=0.5), params_of(
        tiny.config(tied_head=True, logits_scale=0.5)))  # fmt: skip
    assert not untied.tied_head


def test_clipped_queries_cannot_be_scaled():
    config = tiny.config(attention_scale=1.0, clip_qkv=3.0)
    with pytest.raises(ValueError, match="clip_qkv = 3.0 with an attention_scale"):
        folding.fold(config, params_of(config))
