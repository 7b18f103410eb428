# SPDX-License-Identifier: Apache-2.0
"""Config and rotary keys: what transformers 4 and 5 would read is what we compute."""

import math

import numpy as np
import pytest
import tiny_model

from midjax.model import rope, transformer
from midjax.model.families import llama

GIVEN = {
    "param_dtype": "float32",
    "compute_dtype": "float32",
    "remat": "none",
    "loss_chunk_tokens": 256,
}
BASE = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
}


def read(**kwargs):
    return llama.config_from_hf(BASE | kwargs, **GIVEN)


@pytest.mark.parametrize("kind", sorted(tiny_model.ROPES))
@pytest.mark.parametrize("tied", [False, True])
def test_config_round_trip(kind, tied):
    config = tiny_model.config(rope=tiny_model.ROPES[kind], tied_head=tied)
    back = llama.config_from_hf(llama.config_to_hf(config), **GIVEN)
    if kind == "ntk":  # has no name there: comes back as the theta that it amounts to
        frequencies = [rope.frequencies(c.rope, c.head_dim)[0] for c in (config, back)]
        np.testing.assert_array_equal(*frequencies)
        assert llama.config_to_hf(back) == llama.config_to_hf(config)
    else:
        assert back == config


@pytest.mark.parametrize("kind", sorted(tiny_model.ROPES))
def test_keys_of_version_4_and_of_version_5_say_the_same(kind):
    """Each major version reads its own keys only."""
    written = llama.config_to_hf(tiny_model.config(rope=tiny_model.ROPES[kind]))
    four = {k: v for k, v in written.items() if k != "rope_parameters"}
    five = {k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling")}
    assert llama.rope_from_hf(four) == llama.rope_from_hf(five)
    # Version 4 warns about keys that it does not know, and 5 about those missing.
    assert "rope_theta" not in (written["rope_scaling"] or {})
    assert {"rope_type", "rope_theta"} <= written["rope_parameters"].keys()


def test_yarn_length_is_factor_times_original():
    """Releases of version 4 compute the factor from these two lengths."""
    written = llama.config_to_hf(tiny_model.config(rope=tiny_model.YARN, context_tokens=192))
    assert written["max_position_embeddings"] == 4 * 64


def test_old_and_bare_configs_are_read():
    config = read()
    assert (config.rope, config.kv_heads, config.head_dim) == (tiny_model.NONE, 4, 8)
    assert (config.tied_head, config.initializer_std) == (False, 0.02)
    old = read(rope_theta=10000, rope_scaling={"type": "linear", "factor": 4})
    assert old.rope == tiny_model.PI
    assert read(rope_scaling=None, rope_theta=5e5).rope.theta == 5e5


def test_yarn_defaults_are_those_of_transformers():
    scaling = read(rope_scaling={"rope_type": "yarn", "factor": 4}).rope.scaling
    assert (scaling.original_context_tokens, scaling.truncate) == (256, True)
    assert (scaling.beta_fast, scaling.beta_slow, scaling.attention_factor) == (32.0, 1.0, None)


def test_mscale_becomes_the_attention_factor():
    deepseek = {
        "rope_type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
    }
    by = read(rope_scaling=deepseek).rope.scaling.attention_factor
    assert by == pytest.approx((0.1 * math.log(40) + 1) / (0.08 * math.log(40) + 1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "'silu' or 'swish'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForCausalLM"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "default, linear, yarn, llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "shift": 1}}, "shift"),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "two different rotary",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
    ],
)
def test_what_we_do_not_compute_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        read(**keys)


def test_a_width_that_transformers_refuses_is_refused():
    with pytest.raises(ValueError, match="no multiple of its heads"):
        llama.config_to_hf(tiny_model.config(dim=34))


@pytest.mark.parametrize("tied", [False, True])
def test_names_cover_every_parameter(tied):
    config = tiny_model.config(tied_head=tied)
    names, shapes = llama.names(config), transformer.abstract(config)
    assert len(set(names.values())) == len(names) == (2 if tied else 3) + 9 * config.layers
    paths = {path for path, _ in names.values()}
    assert paths == {("layers", name) for name in shapes.pop("layers")} | {(n,) for n in shapes}
