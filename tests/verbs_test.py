# SPDX-License-Identifier: Apache-2.0
"""Verbs through the command line, on a tiny run."""

import dataclasses

import pytest
import tiny_run as tiny

from midjax import __main__ as cli
from midjax import checkpoint, config, verbs
from midjax.model import architecture


@pytest.fixture
def recipe(tmp_path):
    """A saved recipe of a tiny run, as a gin file."""
    tiny.write_tokens(tmp_path / "tokens")
    config.save(tiny.train(tmp_path, steps=4), tmp_path / "recipe")
    return ["train", f"--gin_file={tmp_path / 'recipe' / 'config.gin'}"]


def test_a_moved_run_resumes_and_is_read(tmp_path, recipe):
    assert cli.main(recipe) == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    assert cli.main([*recipe, f"--gin.Train.run_dir={tmp_path}/moved"]) == 0
    model, step, facts = verbs.checkpoint_of(str(tmp_path / "moved"), None)
    assert model == tiny.model() and step == 4 and facts["manifest"]["adam_count"] == 4
    with pytest.raises(
        checkpoint.CheckpointError, match=r"holds the checkpoints \[4\], asked for 3"
    ):
        verbs.checkpoint_of(str(tmp_path / "moved"), 3)


def test_a_run_that_trained_in_8_bits_is_read_without(monkeypatch):
    model = tiny.model(quantization=architecture.Quantization(dtype="int8"))
    manifest = {"model": dataclasses.asdict(model)}
    monkeypatch.setattr(checkpoint, "steps", lambda run: [4])
    monkeypatch.setattr(checkpoint, "read_facts", lambda run, step: {"manifest": manifest})
    assert verbs.checkpoint_of("run", None)[0] == tiny.model()
