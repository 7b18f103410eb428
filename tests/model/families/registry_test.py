# SPDX-License-Identifier: Apache-2.0
"""The table of families."""

import pytest

from midjax.model.families import registry


def test_families():
    assert set(registry.FAMILIES) == {
        "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "phi3", "phimoe", "olmo2",
        "olmo3", "olmoe", "gemma2", "gemma3_text", "smollm3",
    }  # fmt: skip
    assert registry.family("olmo3").architecture == "Olmo3ForCausalLM"


def test_what_is_not_in_the_table_lists_what_is():
    with pytest.raises(ValueError, match="'mamba' is not supported; supported: gemma2, gemma3"):
        registry.family("mamba")
