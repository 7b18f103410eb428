# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder, opened: what it is, and its parameters. tests/evals/suite_test.py sets a
folder beside its import as a run."""

import jax
import numpy as np
import pytest
import tiny_model

from midjax import checkpoint, opening
from midjax.model import hf, sharding

CONFIG = tiny_model.config(layers=1)


def test_a_folder(tmp_path):
    params = tiny_model.params(CONFIG)
    hf.save(str(tmp_path), CONFIG, params, "float32", ids={})
    found = opening.model(folder=str(tmp_path), compute_dtype="bfloat16")
    assert (found.step, found.tokenizer_hash) == (0, None)
    assert found.model.compute_dtype == "bfloat16" and found.model.dim == CONFIG.dim
    read = found.params(sharding.make(sharding.Mesh(data=1, fsdp=-1, tensor=1)))
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        opening.model(folder=str(tmp_path / "none"))
    with pytest.raises(checkpoint.CheckpointError, match=r"holds the checkpoints \[\]"):
        opening.model(run=str(tmp_path / "none"))
