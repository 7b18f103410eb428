# SPDX-License-Identifier: Apache-2.0
"""Mixtral against transformers."""

import dataclasses

import parity
import pytest

from midjax.model import hf


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"num_local_experts": 4}),
        (1, {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 6}),
        (2, {"num_local_experts": 3, "num_experts_per_tok": 1, "head_dim": 20}),
    ],
)
def test_mixtral(seed, settings, tmp_path):
    config, _, _ = parity.round_trip(tmp_path, "mixtral", seed, **settings)
    assert config.experts is not None and config.experts.normalized


def test_without_experts_it_is_none():
    import tiny_model

    config = dataclasses.replace(tiny_model.config(), family="mixtral")
    with pytest.raises(ValueError, match="'mixtral' needs experts"):
        hf.config_to_hf(config)
