# SPDX-License-Identifier: Apache-2.0
"""Only models of one kind go into an average, and a damaged one is found and named."""

import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny_average as tiny
import tiny_model

from midjax import checkpoint
from midjax.average import ingredients

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture
def run(tmp_path):
    return tiny.write(
        tmp_path, "a", {2: tiny.params(tiny.model()), 4: tiny.params(tiny.model(), 1)}
    )


def other(tmp_path, config=None, **kwargs):
    config = config or tiny.model()
    return tiny.write(tmp_path, "b", {3: tiny.params(config)}, config, **kwargs)


def test_the_json_is_read(run):
    two, four = tiny.gathered((run, 2), (run, None))
    assert (two.run, two.step, two.model) == (run, 2, tiny.model())
    assert four.step == 4 and four.tokenizer_hash == "abc" and four.place == f"{run}, step 4"
    assert two.hash != four.hash and len(two.hash) == 64
    assert ingredients.check([two, four]) == "abc"
    with pytest.raises(
        checkpoint.CheckpointError, match=r"holds the checkpoints \[2, 4\], asked f"
    ):
        tiny.gathered((run, 3))


@pytest.mark.parametrize(
    ("change", "field", "values"),
    [
        ({"rope": tiny_model.PI}, "rope.scaling.kind", ("none", "pi")),
        ({"context_tokens": 512}, "context_tokens", (256, 512)),
        ({"norm_eps": 1e-6}, "norm_eps", (1e-5, 1e-6)),
        ({"ffn_dim": 64}, "ffn_dim", (48, 64)),
        ({"param_dtype": "bfloat16"}, "param_dtype", ("float32", "bfloat16")),
        ({"family": "mistral"}, "family", ("llama", "mistral")),
        ({"tied_head": True}, "tied_head", (False, True)),
    ],
)
def test_another_model_is_refused_with_field_and_values(tmp_path, run, change, field, values):
    found = tiny.gathered((run, 4), (other(tmp_path, tiny.model(**change)), 3))
    with pytest.raises(ingredients.AverageError, match="are not the same model") as error:
        ingredients.check(found)
    assert f"{field}: {values[0]!r} and {values[1]!r}" in str(error.value)
    assert f"{run}, step 4, and {tmp_path}/b, step 3" in str(error.value)


def test_how_it_is_computed_may_differ(tmp_path, run):
    numerics = {"compute_dtype": "bfloat16", "remat": "full", "loss_chunk_tokens": 64}
    found = tiny.gathered((run, 4), (other(tmp_path, tiny.model(**numerics)), 3))
    assert ingredients.check(found) == "abc"


def test_another_tokenizer_is_refused_and_an_unknown_one_is_said(tmp_path, run, capsys):
    found = tiny.gathered((run, 4), (other(tmp_path, tokenizer="xyz"), 3))
    with pytest.raises(ingredients.AverageError, match="tokenizer_hash: 'abc' and 'xyz'"):
        ingredients.check(found)
    shutil.rmtree(tmp_path / "b")
    found = tiny.gathered((other(tmp_path, tokenizer=None), 3), (run, 4))
    assert ingredients.check(found) == "abc"
    assert f"{tmp_path}/b, step 3, came without a tokenizer" in capsys.readouterr().out
    assert ingredients.check(found[:1]) is None


def test_one_that_is_named_twice_is_refused(run):
    again = f"{run}/../a"
    with pytest.raises(ingredients.AverageError, match="step 4, is named twice"):
        ingredients.check(tiny.gathered((run, 4), (run, 2), (again, None)))


def test_one_that_diverged_is_refused(tmp_path, run):
    bad = tiny.params(tiny.model())
    bad["final_norm"] = bad["final_norm"].at[3].set(np.nan)
    diverged = tiny.write(tmp_path, "bad", {9: bad})
    with pytest.raises(ingredients.AverageError, match=f"{diverged}, step 9, .* not finite"):
        ingredients.check(tiny.gathered((run, 4), (diverged, 9)))


def test_arrays_are_read_by_name(run):
    (one,) = tiny.gathered((run, 4))
    reader = ingredients.Reader(one, tiny.targets())
    found = reader.read("layers/wq", HERE)
    np.testing.assert_array_equal(found, tiny.params(tiny.model(), 1)["layers"]["wq"])


def params_folder(run, step):
    return pathlib.Path(checkpoint.folder(run)) / str(step) / "params"


def test_arrays_that_are_not_what_was_saved_are_damage(run):
    """Whole and readable, of the right shape, and another checkpoint's."""
    shutil.rmtree(params_folder(run, 2))
    shutil.copytree(params_folder(run, 4), params_folder(run, 2))
    (one,) = tiny.gathered((run, 2))
    reader = ingredients.Reader(one, tiny.targets())
    with pytest.raises(checkpoint.DamagedError, match="params/embed is not what was sav") as error:
        reader.read("embed", HERE)
    assert str(error.value).startswith(f"{run}, step 2: ")


def test_files_that_are_cut_off_or_gone_are_named(run):
    (one,) = tiny.gathered((run, 2))
    for file in params_folder(run, 2).rglob("*"):
        if file.is_file() and file.parent.name == "d":
            os.truncate(file, 10)
    with pytest.raises(checkpoint.CheckpointError, match=f"^{run}, step 2: .*OUT_OF_RANGE"):
        ingredients.Reader(one, tiny.targets()).read("embed", HERE)
    shutil.rmtree(params_folder(run, 2))
    with pytest.raises(checkpoint.CheckpointError, match=f"^{run}, step 2: .*no PyTree"):
        ingredients.Reader(one, tiny.targets())


def test_arrays_that_are_not_the_models_are_refused(run):
    (one,) = tiny.gathered((run, 2))
    with pytest.raises(checkpoint.CheckpointError, match=r"step 2, does not hold .*params/layers"):
        ingredients.Reader(one, tiny.targets(tiny.model(ffn_dim=64)))
