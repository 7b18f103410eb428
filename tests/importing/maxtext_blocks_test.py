# SPDX-License-Identifier: Apache-2.0
"""The table of decoder blocks: a model of each is taken, and everything else is named."""

import typing

import imported
import pytest

from midjax.importing import maxtext_blocks
from midjax.model import architecture, transformer


def contradictions(block, model_name="default", normalize=True, **kwargs):
    model = imported.model(**(imported.BLOCK_MODELS[block] | kwargs))
    return maxtext_blocks.contradictions(
        block, model, model_name=model_name, normalize_embedding_logits=normalize
    )


def test_the_table_and_its_names_are_the_same():
    assert (
        set(typing.get_args(maxtext_blocks.Name))
        == set(maxtext_blocks.BLOCKS)
        == set(imported.BLOCK_MODELS)
    )


@pytest.mark.parametrize("block", imported.BLOCK_MODELS)
def test_a_model_of_each_block_is_taken_and_every_parameter_has_a_name(block):
    assert contradictions(block) == []
    layers = transformer.abstract(imported.model(**imported.BLOCK_MODELS[block]))["layers"]
    assert set(layers) <= set(maxtext_blocks.BLOCKS[block].names)


@pytest.mark.parametrize(
    ("block", "wrong", "message"),
    [
        ("llama2", {"attention_scale": None}, "the factor is in the query weights"),
        ("qwen3", {"attention_scale": 1.0}, "this block has 0.35355339"),
        ("gemma3", {"attention_scale": 1.0}, "attention_scale is 1.0"),
        ("llama2", {"qk_norm": "head"}, "qk_norm is head, and this block has none"),
        ("llama2", {"norm_placement": "post"}, "norm_placement is post, and this block has pre"),
        ("mistral", {"attention_softcap": 30.0}, "attention_softcap is 30.0"),
        ("llama2", {"logits_softcap": 30.0}, "logits_softcap is 30.0"),
        ("llama2", {"tied_head": True}, "logits_scale is None"),
        ("gemma", {"logits_scale": None}, "has 0.17677669"),
        ("gemma2", {"norm_eps": 1e-5}, "norm_eps is 1e-05, and this block has 1e-06"),
        ("gemma2", {"layer_pattern": ("full", "window")}, "layer_pattern is"),
        ("gemma", {"embed_scale": 5.6}, "embed_scale is 5.6"),
        ("mixtral", {"experts": None}, "this block has experts in every layer"),
        ("llama2", {"experts": imported.EXPERTS}, "this block has none"),
        ("mixtral", {"dense_layers": (0,)}, "experts in every layer"),
        ("llama2", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama2", {"activation": "gelu"}, "activation is gelu"),
    ],
)
def test_what_a_block_does_not_compute_is_named(block, wrong, message):
    (found,) = contradictions(block, **wrong)
    assert message in found


def test_experts_are_weighted_by_a_softmax_over_the_chosen():
    plain = architecture.Experts(count=4, per_token=2, ffn_dim=16)
    assert "normalized True" in contradictions("mixtral", experts=plain)[0]


def test_facts_that_maxtext_decides_by_other_fields_of_its_config():
    # A tied head without the division by sqrt(dim).
    assert contradictions("gemma", normalize=False, logits_scale=None) == []
    # Gemma 3 27B scales by dim / heads instead of head_dim.
    assert contradictions("gemma3", "gemma3-27b") == []  # 32 / 4 = 8 = head_dim
    assert "has 0.25" in contradictions("gemma3", "gemma3-27b", heads=2, kv_heads=1)[0]
