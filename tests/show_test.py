# SPDX-License-Identifier: Apache-2.0
"""The verb `show` through the command line."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import tiny_run as tiny

import midjax
from midjax import __main__ as cli
from midjax import config


@pytest.fixture
def recipe(tmp_path):
    """A saved recipe of a tiny run, as a gin file."""
    tiny.write_tokens(tmp_path / "tokens")
    config.save(tiny.train(tmp_path, steps=4), tmp_path / "recipe")
    return ["train", f"--gin_file={tmp_path / 'recipe' / 'config.gin'}"]


def test_show_runs_nothing(tmp_path, recipe, capsys):
    assert cli.main(["show", *recipe, "--gin.Train.seed=7"]) == 0
    assert "seed" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_show_mixture_touches_no_device(recipe):
    """JAX is told to use a platform that does not exist, and would fail if it were asked."""
    done = subprocess.run(
        [sys.executable, "-m", "midjax", "show", "mixture", recipe[1]],
        env=os.environ | {"JAX_PLATFORMS": "none"},
        cwd=pathlib.Path(midjax.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "s0: from 0 to 512 tokens" in done.stdout and done.stdout.split()[-2:] == ["512", "-"]


def test_show_schedule_prints_and_plots_and_needs_no_data(tmp_path, recipe, capsys):
    """The tiny recipe: 3 updates of warm-up to 0.01; then an anneal of what it left."""
    shutil.rmtree(tmp_path / "tokens")
    assert cli.main(["show", "schedule", *recipe[1:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["0", "0", "0", "0.000000e+00", "warm-up:", "linear"]
    assert lines[4].split() == ["3", "384", "384", "1.000000e-02", "stable:", "hold"]
    assert lines[-1] == f"plot: {tmp_path}/run/schedule.svg"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["schedule.svg"]
    missing = ["--gin.Start.kind=anneal", f"--gin.Start.run={tmp_path}/no"]
    assert cli.main(["show", "schedule", *recipe[1:], *missing]) == 2
    assert "holds no finished checkpoint" in capsys.readouterr().err


def test_show_schedule_reads_the_rate_in_force_from_the_checkpoint(tmp_path, recipe, capsys):
    assert cli.main(recipe) == 0
    anneal = [
        "--gin.Start.kind=anneal", f"--gin.Start.run={tmp_path}/run",
        f"--gin.Train.run_dir={tmp_path}/anneal", "--gin.Schedule.peak_lr=checkpoint",
        "--gin.Schedule.warmup_steps=0", "--gin.Schedule.decay_steps=4",
    ]  # fmt: skip
    capsys.readouterr()
    assert cli.main(["show", "schedule", *recipe[1:], *anneal]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert [row[3] for row in rows] == [f"{0.0025 * left:.6e}" for left in (4, 3, 2, 1, 0)]
