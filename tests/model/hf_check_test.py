# SPDX-License-Identifier: Apache-2.0
"""One changed bit in a folder is found; so is a tensor too many, and another type."""

import dataclasses
import shutil

import numpy as np
import pytest
import tiny_model as tiny

from midjax.model import hf, hf_check, hf_rows


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, config, parameters) of a model that is rounded on the way out."""
    folder = tmp_path_factory.mktemp("saved")
    config = tiny.config()
    params = tiny.params(config)
    # What some hardware would flush to zero on the way to bfloat16.
    params["final_norm"] = params["final_norm"].at[0].set(1e-39).at[1].set(-0.0)
    hf.save(str(folder), config, params, "bfloat16")
    return folder, config, params


@pytest.mark.parametrize("piece_bytes", [64, 1 << 25])
def test_what_was_written_is_found(saved, piece_bytes, monkeypatch):
    monkeypatch.setattr(hf_rows, "PIECE_BYTES", piece_bytes)
    folder, config, params = saved
    assert hf_check.same_bits(str(folder), config, params, "bfloat16") == 3 + 9 * config.layers


def test_every_bit_counts(saved, tmp_path):
    folder, config, params = saved
    whole = (folder / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for at in np.random.default_rng(0).integers(begin, len(whole), 20):
        changed = bytearray(whole)
        changed[at] ^= 1
        (tmp_path / "model.safetensors").write_bytes(changed)
        with pytest.raises(RuntimeError, match="read back, is not the model's"):
            hf_check.same_bits(str(tmp_path), config, params, "bfloat16")


def test_another_type_and_another_model(saved):
    folder, config, params = saved
    with pytest.raises(RuntimeError, match="holds bfloat16, not float32"):
        hf_check.same_bits(str(folder), config, params, "float32")
    more = dataclasses.replace(config, layers=config.layers + 1)
    with pytest.raises(ValueError, match="9 missing"):
        hf_check.same_bits(str(folder), more, tiny.params(more), "bfloat16")


def test_the_config_comes_back_with_the_numerics_given(saved, tmp_path):
    folder, config, _ = saved
    shutil.copy(folder / "config.json", tmp_path)
    given = dataclasses.replace(config, compute_dtype="bfloat16", remat="full")
    assert hf_check.config_of(str(tmp_path), given) == given
