# SPDX-License-Identifier: Apache-2.0
"""When transformers reads an export, and what is said when it does not. The rest: export_test."""

import numpy as np
import pytest
import tiny_model as tiny

from midjax import export_check
from midjax.model import hf, sharding


@pytest.fixture
def given(tmp_path):
    config = tiny.config()
    params = tiny.params(config)
    hf.save(str(tmp_path), config, params, "float32")
    mesh = sharding.make(sharding.Mesh(data=1, fsdp=1, tensor=1))
    tokens = np.arange(15, dtype=np.int32).reshape(1, 15)
    return str(tmp_path), config, params, "float32", tokens, mesh


def test_a_model_that_the_host_cannot_hold_twice(given, monkeypatch):
    """The reason is given with its two numbers, and the logits are compared all the same."""
    pytest.importorskip("torch")
    monkeypatch.setattr(export_check, "free_host_bytes", lambda: 10_000)
    found = export_check.logits(*given)
    assert (found.reader, found.difference) == ("midjax", 0.0)
    assert "(10 bytes per parameter), 0.0 GB are free" in found.why_not


def test_transformers_where_there_is_room(given):
    pytest.importorskip("torch")
    found = export_check.logits(*given)
    assert found.why_not is None and found.reader.startswith("transformers ")
    assert 0 < found.difference < 2e-5


def test_free_memory_is_some_and_no_more_than_there_is():
    import os

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < export_check.free_host_bytes() <= total
