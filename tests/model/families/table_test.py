# SPDX-License-Identifier: Apache-2.0
"""Tables of names cover every parameter once; what a family cannot say is refused."""

import dataclasses

import jax
import pytest
import tiny_model

from midjax.model import architecture, hf, rope, transformer
from midjax.model.families import registry, table

EXPERTS = architecture.Experts(count=3, per_token=2, ffn_dim=8, normalized=True)


def parts(config):
    for tensor in table.tensors(registry.family(config.family), config):
        yield from tensor.parts


@pytest.mark.parametrize(
    "config",
    [
        tiny_model.config(),
        tiny_model.config(tied_head=True, qkv_bias=True, out_bias=True, mlp_bias=True),
        tiny_model.config(family="phi3"),
        tiny_model.config(family="gemma3_text", norm_placement="both", qk_norm="head"),
        tiny_model.config(family="olmo2", norm_placement="post", qk_norm="whole"),
        tiny_model.config(family="mixtral", experts=EXPERTS),
        tiny_model.config(family="qwen3_moe", experts=EXPERTS, dense_layers=(1,), qk_norm="head"),
        tiny_model.config(family="phimoe", experts=EXPERTS, norm="layer", head_bias=True),
    ],
    ids=lambda config: config.family,
)
def test_every_number_has_one_place(config):
    """Names differ, and the parts of all tensors are the parameters, each once."""
    tensors = list(table.tensors(registry.family(config.family), config))
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    found = [(part.path, part.index) for part in parts(config)]
    assert len(set(found)) == len(found)
    sizes: dict[str, int] = {}
    for part in parts(config):
        name = "/".join(part.path)
        sizes[name] = sizes.get(name, 0) + jax.ShapeDtypeStruct(part.shape, "f4").size
    flat, _ = jax.tree_util.tree_flatten_with_path(transformer.abstract(config))
    want = {jax.tree_util.keystr(k, simple=True, separator="/"): leaf.size for k, leaf in flat}
    assert sizes == want


def test_fused_tensors_stand_for_their_parts():
    names = {t.name: t for t in table.tensors(registry.family("phi3"), tiny_model.config())}
    fused = names["model.layers.1.self_attn.qkv_proj.weight"]
    assert fused.shape == ((4 + 2 + 2) * 16, 32)
    assert [part.path[-1] for part in fused.parts] == ["wq", "wk", "wv"]
    assert not any("q_proj" in name for name in names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qk_norm": "head"}, "'llama' cannot have this model's qk_norm"),
        ({"norm": "layer", "logits_softcap": 3.0}, "norm, logits_softcap"),
        ({"layer_pattern": ("full", "full_nope")}, "layer_pattern"),
        ({"qkv_bias": True}, "out_bias"),  # Llama has one key for both
        ({"attention_scale": 1.0}, "attention_scale"),
        ({"experts": EXPERTS}, "experts"),
    ],
)
def test_what_config_json_has_no_key_for_is_not_lost(changes, words):
    with pytest.raises(ValueError, match=words):
        hf.config_to_hf(tiny_model.config(head_dim=8, **changes))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForCausalLM"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
    ],
)
def test_what_we_do_not_compute_is_refused(keys, words):
    theirs = hf.config_to_hf(tiny_model.config(head_dim=8))
    with pytest.raises(ValueError, match=words):
        hf.config_from_hf(theirs | keys)


def test_a_rope_under_another_name_is_the_same():
    """NTK-aware scaling is written as the theta that it amounts to."""
    config = tiny_model.config(rope=tiny_model.NTK, head_dim=8)
    back = hf.config_from_hf(hf.config_to_hf(config), loss_chunk_tokens=256)
    assert back.rope.scaling == rope.RopeScaling(kind="none")
    assert dataclasses.replace(back, rope=config.rope) == config
