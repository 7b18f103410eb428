# SPDX-License-Identifier: Apache-2.0
"""The verb `train` through the command line, on a tiny run."""

import pathlib
import subprocess
import sys

import pytest
import tiny_run as tiny

import midjax
from midjax import __main__ as cli
from midjax import checkpoint, config, training
from midjax.distributed import group
from midjax.train import recipe as recipe_lib


@pytest.fixture
def recipe(tmp_path):
    """A saved recipe of a tiny run, as a gin file."""
    tiny.write_tokens(tmp_path / "tokens")
    config.save(tiny.train(tmp_path, steps=4), tmp_path / "recipe")
    return ["train", f"--gin_file={tmp_path / 'recipe' / 'config.gin'}"]


def test_a_recipe_that_cannot_run_leaves_no_run_behind(tmp_path, recipe, capsys):
    assert cli.main([*recipe, "--gin.Start.kind=anneal", f"--gin.Start.run={tmp_path}/no"]) == 2
    assert "holds no finished checkpoint" in capsys.readouterr().err
    assert cli.main([*recipe, "--gin.Train.train_tokens=99_999_999"]) == 2
    assert "epochs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_recipe_is_refused_but_another_mesh_is_not(tmp_path, recipe, capsys):
    assert cli.main(recipe) == 0
    assert cli.main([*recipe, "--gin.AdamW.b2=0.99"]) == 2
    assert "optimizer.b2: 0.95 -> 0.99" in capsys.readouterr().err
    assert cli.main([*recipe, "--gin.Train.microbatches=2"]) == 0
    assert "changed since this run began: microbatches: 1 -> 2" in capsys.readouterr().out
    assert checkpoint.steps(str(tmp_path / "run")) == [4]


def test_a_run_that_diverges_ends_with_exit_code_4(tmp_path, recipe):
    """A z-loss that is infinite in float32: no gradient is finite."""
    done = subprocess.run(
        [sys.executable, "-m", "midjax", *recipe, "--gin.Loss.z_loss_weight=1e39"],
        cwd=pathlib.Path(midjax.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "midjax train: Steps 1 to 3: 3 updates in a row were skipped" in done.stderr
    assert "Last good checkpoint: none, as none was saved before them." in done.stderr
    assert not checkpoint.steps(str(tmp_path / "run"))


def test_config_json_is_what_was_run(tmp_path, recipe):
    assert cli.main(recipe) == 0
    assert config.load_run(str(tmp_path / "run"), "train") == tiny.train(tmp_path, steps=4)
    assert isinstance(config.load_run(str(tmp_path / "run"), "train"), recipe_lib.Train)
    assert pathlib.Path(tmp_path / "run" / "config.gin").is_file()


def test_a_folder_that_others_do_not_see_is_refused(tmp_path, monkeypatch):
    """Each process of a pod with a disk of its own would write its part of a checkpoint there."""
    place, unlinked = tmp_path / ".processes", []
    monkeypatch.setattr(group, "first", lambda what, work: unlinked.append(work()) or "theirs")
    with pytest.raises(ValueError, match="is another folder here than on process 0"):
        training._see_one_folder(str(tmp_path))
    place.write_text("theirs")
    monkeypatch.setattr(group, "first", lambda what, work: "theirs")
    training._see_one_folder(str(tmp_path))


def test_a_list_of_jobs_is_no_work_for_several_processes(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    with pytest.raises(ValueError, match="trains in one process, and this is one of several"):
        training.branch(["--gin_file=recipes/demo_branch.gin"])
