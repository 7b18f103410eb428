# SPDX-License-Identifier: Apache-2.0
"""Config: what transformers 4 and 5 would read is what we compute."""

import numpy as np
import pytest
import tiny_model

from midjax.model import rope, transformer
from midjax.model.families import llama, rope_keys

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


def test_rotary_keys_are_those_of_rope_keys():
    config = tiny_model.config(rope=tiny_model.YARN, context_tokens=192)
    written = llama.config_to_hf(config)
    keys = rope_keys.written(config.rope, config.head_dim, config.context_tokens)
    assert keys.items() <= written.items()


def test_old_and_bare_configs_are_read():
    config = read()
    assert (config.rope, config.kv_heads, config.head_dim) == (tiny_model.NONE, 4, 8)
    assert (config.tied_head, config.initializer_std) == (False, 0.02)


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
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "axial"}}, "default, linear"),
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
