# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders as imported runs, on the smallest that can be written here."""

import json

import imported
import jax
import numpy as np
import pytest
import tiny_model as tiny

from midjax import checkpoint
from midjax.importing import foreign, huggingface, recipe
from midjax.model import hf


@pytest.fixture
def folder(tmp_path):
    """A folder with a tokenizer; returns (path, parameters)."""
    model = tiny.config()
    params = tiny.params(model)
    hf.save(str(tmp_path / "hf"), model, params, "float32")
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps({"any": "thing"}))
    return str(tmp_path / "hf"), params


def test_parameters_and_tokenizer_arrive(tmp_path, folder):
    path, params = folder
    source = huggingface.HuggingFace(path=path)
    recipe.run(imported.importing(tmp_path / "run", source))
    found, _ = imported.restored(str(tmp_path / "run"), 0, source.open(None).model)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    facts = checkpoint.read_facts(str(tmp_path / "run"), 0)
    assert facts["manifest"]["lineage"][0] == {
        "imported from": {"format": "huggingface", "path": path}
    }
    assert facts["manifest"]["adam_count"] is None
    copied = (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text()
    assert copied == json.dumps({"any": "thing"})
    config = (tmp_path / "hf" / "config.json").read_bytes()
    assert (tmp_path / "run" / "source" / "config.json").read_bytes() == config


def test_settings_for_generation_that_are_no_json_stop_the_import(tmp_path, folder):
    path, _ = folder
    (tmp_path / "hf" / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json is not JSON"):
        recipe.run(imported.importing(tmp_path / "run", huggingface.HuggingFace(path=path)))
    assert not (tmp_path / "run").exists()


def test_numerics_may_be_given_and_nothing_else(folder):
    path, _ = folder
    source = huggingface.HuggingFace(path=path)
    given = tiny.config(remat="full", compute_dtype="bfloat16")
    assert source.open(given).model == given
    with pytest.raises(foreign.ForeignError, match="layers: there 3, given 2"):
        source.open(tiny.config(layers=2))


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        huggingface.HuggingFace(path=str(tmp_path / "none")).open(None)
