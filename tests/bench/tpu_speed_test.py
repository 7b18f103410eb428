# SPDX-License-Identifier: Apache-2.0
"""The ideal that what a chip sends is set beside, by hand."""

import pathlib
import sys

import pytest


@pytest.fixture
def tpu_speed(monkeypatch):
    here = pathlib.Path(__file__).parent
    monkeypatch.setattr(sys, "path", [str(here), str(here / "tpu_steps"), *sys.path])
    import tpu_speed

    return tpu_speed


def test_where_context_splits_rows_keys_and_values_travel_too(tpu_speed):
    """4 rows on 64 chips, 16 to a row: each chip has a part of one row of 131,072 tokens."""
    case = tpu_speed.cases_lib.CASES["Llama-3.1-8B at 131,072 tokens on v5p-128"]
    # Keys and values of 8 heads of 128, of 32 layers, three times in bfloat16: 15 of 16 parts.
    keys = 3 * 32 * 2 * 131_072 * 8 * 128 * 2 * 15 / 16
    # Matrices of the layers three times, that of the head twice, and the vectors of a chip's 8,192
    # tokens, and their gradients: 63 of 64 parts.
    layers = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    weights = (3 * layers + 2 * 128_256 * 4096 + 2 * 8192 * 4096) * 2 * 63 / 64
    assert tpu_speed.ideal_bytes(case, 64, 1) == pytest.approx(keys + weights, rel=1e-12)
