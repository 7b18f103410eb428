# SPDX-License-Identifier: Apache-2.0
"""The root of `midjax import`: what it passes on, and the tokenizer that goes along."""

import imported
import pytest

from midjax import checkpoint, config, files
from midjax.importing import foreign, recipe


def test_a_tokenizer_folder_goes_along(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer" / "README.md").write_text("not a tokenizer's")
    recipe.run(
        imported.importing(
            tmp_path / "run",
            imported.maxtext_source(),
            imported.model(),
            tokenizer=str(tmp_path / "tokenizer"),
        )
    )
    manifest = checkpoint.read_facts(str(tmp_path / "run"), 17)["manifest"]
    assert manifest["tokenizer_hash"] == files.sha256(b"{}")
    assert [p.name for p in (tmp_path / "run" / "tokenizer").iterdir()] == ["tokenizer.json"]


def test_two_tokenizers_are_one_too_many(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(foreign.ForeignError, match="brings one of its own"):
        recipe.run(
            imported.importing(tmp_path / "run", imported.stories_source(), tokenizer=str(tmp_path))
        )
    assert not (tmp_path / "run").exists()


def test_local_disks_only():
    with pytest.raises(ValueError, match="written to local disks only"):
        imported.importing("gs://bucket/run", imported.stories_source())


def test_a_recipe_is_saved_and_read_with_its_source(tmp_path):
    root = imported.importing(tmp_path / "run", imported.maxtext_source(), imported.model())
    config.save(root, tmp_path / "saved")
    assert config.load_run(tmp_path / "saved", "import") == root
    assert config.load("import", [str(tmp_path / "saved" / "config.gin")]) == root
